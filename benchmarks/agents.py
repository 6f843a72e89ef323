"""Agents: messages, output, a peer that dies, many that do nothing, one that is a nuisance to the others.

A whole server over TLS, agents as processes of their own or as bare clients, all on loopback. Where other
work has the processors too, `chrt --rr 5 python benchmarks/agents.py` measures agents and not that.

python benchmarks/agents.py [messages | output | dead | idle | nuisance | agent]...
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import requests
from serving import ROOT, Client, Server, milliseconds

# isort: split
from certificates import certificate  # serving has shown the way to the tests' modules
from networks import Proxy
from raw_agent import PROC

TOKEN = "s3cret"
CONFIG = """
job_dir: jobs
database: {path: apsis.db}
procstar:
  agent:
    enable: true
    server: {host: 127.0.0.1, port: %d, access_token: s3cret, tls: {cert_path: server.pem}}
    run: {output_interval: 1}
"""
OUTPUT = 500_000_000  # bytes
MESSAGES = 30_000
CONNECTIONS = 100
IDLE = 1000  # agents
WATCH = 60.0  # s; they are pinged every 20
PROGRAMS = 1000
SAMPLES = 400  # round trips beside each nuisance
NUISANCES = {
    "nothing": "nobody else",
    "messages": "one that floods with results",
    "pings": "one that floods with pings",
    "output": "one that sends 300 MB of output",
    "half": "one that sends half a frame",
    "deaf": "one that asks for more than it reads",
    "garbage": "one that says nothing that can be read",
    "handshakes": "one that connects again and again",
}
JOBS = {
    "blocked": "params: [group]\nprogram: {type: procstar, argv: [/bin/cat, %s], group_id: '{{ group }}'}\n",
    "much": (
        "params: [group]\nprogram:\n  type: procstar-shell\n  group_id: '{{ group }}'\n"
        f"  command: yes 'a line of a program that has a lot to say' | head -c {OUTPUT}\n"
        "  output: {max_size: 2 GB}\n"
    ),
    "raw": (
        "params: [group]\n"
        "program: {type: procstar, argv: [x], group_id: '{{ group }}', output: {max_size: 1 GB}}\n"
    ),
}


# -- a bare client ---------------------------------------------------------------------------------


def frame(payload: bytes, opcode: int = 2, length: int | None = None) -> bytes:
    """Masked with zeros, which costs nothing to do; `length` is what it claims to be."""
    size = len(payload) if length is None else length
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65536:
        head = bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def say(**message: Any) -> bytes:
    return frame(msgpack.packb(message))


def result(proc_id: str, number: int = 0, state: str = "running", length: int = 0) -> bytes:
    """A ProcResult of the usual size, some 700 bytes."""
    status = {"status": 0, "exit_code": 0, "signum": None, "signal": None, "core_dump": False}
    times = dict.fromkeys(("start", "now", "stop"), "2026-03-04T05:06:07.123456789+00:00")
    stat = dict.fromkeys(("utime", "stime", "cutime", "cstime", "guest_time", "delayacct_blkio_ticks"), 0.5)
    stat |= dict.fromkeys(("minflt", "majflt", "priority", "nice", "num_threads", "vsize", "rss"), number)
    res = {
        "state": state,
        "errors": [],
        "pid": 4133,
        "proc_stat": stat,
        "proc_statm": dict.fromkeys(("size", "resident", "shared", "text", "data"), 4096),
        "cgroup_accounting": None,
        "times": {**times, "elapsed": 1.5},
        "status": None if state == "running" else status,
        "rusage": None,
        "fds": {"stderr": None, "stdout": {"type": "detached", "length": length, "encoding": "base64"}},
    }
    return say(type="ProcResult", proc_id=proc_id, res=res)


class Bare:
    """A registered agent that says what it is told."""

    def __init__(
        self, port: int, cert: str, conn_id: str, group: str = "bare", procs: tuple[str, ...] = ()
    ) -> None:
        sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.sock = ssl.create_default_context(cafile=cert).wrap_socket(sock, server_hostname="localhost")
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = b""
        self.sock.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        while b"\r\n\r\n" not in self._got:
            self._more()
        self._got = self._got.partition(b"\r\n\r\n")[2]
        self.sock.sendall(
            say(
                type="Register",
                conn={"conn_id": conn_id, "group_id": group, "restricted_exe": None},
                proc=PROC,
                proc_ids=list(procs),
                access_token=TOKEN,
                shutdown_state="active",
            )
        )
        assert self.receive() == {"type": "Registered"}

    def _more(self) -> None:
        data = self.sock.recv(1 << 20)
        if not data:
            raise EOFError
        self._got += data

    def receive(self) -> Any:
        """The next message; pings are answered."""
        while True:
            while len(self._got) < 2:
                self._more()
            opcode, size, at = self._got[0] & 15, self._got[1], 2
            if size > 125:
                more = 2 if size == 126 else 8
                while len(self._got) < 2 + more:
                    self._more()
                size, at = int.from_bytes(self._got[2 : 2 + more], "big"), 2 + more
            while len(self._got) < at + size:
                self._more()
            payload, self._got = self._got[at : at + size], self._got[at + size :]
            if opcode == 2:
                return msgpack.unpackb(payload)
            if opcode == 9:
                self.sock.sendall(frame(payload, 10))
            if opcode == 8:
                raise EOFError(payload)

    def wait(self, kind: str) -> Any:
        while (message := self.receive())["type"] != kind:
            pass
        return message


# -- the server ------------------------------------------------------------------------------------


class Place:
    """A server with TLS, and where its agents' port is."""

    def __init__(self, directory: Path) -> None:
        self.cert = str(certificate(directory, rsa=True))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        (directory / "apsis.yaml").write_text(CONFIG % self.port)
        self.gate = directory / "gate"
        os.mkfifo(self.gate)
        self.server = Server(directory, JOBS | {"blocked": JOBS["blocked"] % self.gate})

    def connections(self) -> dict[str, Any]:
        url = self.server.url.replace("/api/v1", "/api/procstar/connections")
        found: dict[str, Any] = requests.get(url, timeout=60).json()
        return found

    def schedule(self, job_id: str, group: str) -> str:
        return self.server.schedule({"job_id": job_id, "args": {"group": group}})

    def memory(self) -> float:
        """MB."""
        return memory(self._pid)

    def cpu(self) -> float:
        return cpu(self._pid)

    @property
    def _pid(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid

    @contextmanager
    def agent(self, group: str, port: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
        argv = [sys.executable, "-m", "apsislib.agent", "--agent", "--agent-host", "localhost"]
        argv += ["--agent-port", str(port or self.port), "--group-id", group, "--conn-id", group]
        argv += ["--connect-interval-max", "1", "--log-level", "info"]
        env = {**os.environ, "PROCSTAR_AGENT_CERT": self.cert, "PROCSTAR_AGENT_TOKEN": TOKEN}
        with open(self.server.directory / f"{group}.log", "wb") as log:
            agent = subprocess.Popen(argv, cwd=ROOT, env=env, stderr=log)
        try:
            wait_for(lambda: group in self.connections(), 30)
            yield agent
        finally:
            agent.send_signal(signal.SIGQUIT)
            agent.wait(30)


def memory(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def cpu(pid: int) -> float:
    """Seconds of processor that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def apart(*words: str) -> subprocess.Popen[str]:
    """This file, told to do something, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


# -- figures ---------------------------------------------------------------------------------------


def messages(place: Place) -> None:
    """Results of running programs, each of which a run has: decoded, and given to the run."""
    for count in (1, CONNECTIONS):
        clients, procs = [], []
        for number in range(count):
            clients.append(Bare(place.port, place.cert, f"m{count}-{number}", f"m{count}-{number}"))
            run_id = place.schedule("raw", f"m{count}-{number}")
            (proc_id,) = clients[-1].wait("ProcStartRequest")["specs"]
            clients[-1].sock.sendall(result(proc_id))
            place.server.until(run_id, "running")
            procs.append(proc_id)
        each = MESSAGES // count
        bursts = [result(proc_id, 7) * 10 for proc_id in procs]
        ready = threading.Barrier(count + 1)

        def flood(client: Bare, burst: bytes, ready: threading.Barrier = ready, each: int = each) -> None:
            ready.wait()
            for _ in range(each // 10):
                client.sock.sendall(burst)
            # Answers come in order: this one when all is done.
            client.sock.sendall(result("unknown", state="terminated"))
            client.wait("ProcDeleteRequest")

        threads = [
            threading.Thread(target=flood, args=(client, burst))
            for client, burst in zip(clients, bursts, strict=True)
        ]
        for thread in threads:
            thread.start()
        before = place.cpu()
        ready.wait()
        begin = time.perf_counter()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
        total, used = each * count, place.cpu() - before
        print(
            f"messages through {count:3} connections: {total / seconds:9,.0f}/s"
            f"  ({len(bursts[0]) // 10} bytes, {used / total * 1e6:.0f} us of processor each)",
            flush=True,
        )
        for client, proc_id in zip(clients, procs, strict=True):
            client.sock.sendall(result(proc_id, state="terminated"))
            client.sock.close()


def output(place: Place) -> None:
    """From the start of the program until all of its output is in the database."""
    with place.agent("output") as agent:
        client = Client(place.server)
        before = place.cpu(), cpu(agent.pid)
        begin = time.perf_counter()
        run_id = place.schedule("much", "output")
        state = place.server.until(run_id, "success", "failure", "error")["state"]
        assert state == "success", place.server.messages(run_id)
        while client.ask("GET", f"/runs/{run_id}/outputs")[0]["output_len"] < OUTPUT:
            pass
        seconds = time.perf_counter() - begin
        client.close()
        print(
            f"output over TLS, into the database: {OUTPUT / 1e6 / seconds:6.0f} MB/s"
            f"  (processor: server {place.cpu() - before[0]:.1f} s, agent {cpu(agent.pid) - before[1]:.1f} s"
            f" of {seconds:.1f} s for {OUTPUT / 1e6:.0f} MB)",
            flush=True,
        )


def dead(place: Place) -> None:
    """A network that lets nothing through, and tells nobody; with the times of real life."""
    proxy = Proxy(("127.0.0.1", place.port))
    log = place.server.directory / "dead.log"
    with place.agent("dead", proxy.port):
        proxy.whole.clear()
        begin = time.perf_counter()
        found: dict[str, float] = {}
        while len(found) < 2:
            if "server" not in found and not place.connections()["dead"]["info"]["stats"]["connected"]:
                found["server"] = time.perf_counter() - begin
            if "agent" not in found and "silent for" in log.read_text():
                found["agent"] = time.perf_counter() - begin
            assert time.perf_counter() - begin < 100, found
            time.sleep(0.05)
        proxy.whole.set()
        print(
            f"a dead peer is noticed: by the server after {found['server']:.1f} s,"
            f" by the agent after {found['agent']:.1f} s",
            flush=True,
        )
    proxy.close()


def idle(place: Place) -> None:
    before = place.memory()
    begin = time.perf_counter()
    clients = apart("be-idle", str(place.port), place.cert)
    assert clients.stdout is not None and clients.stdin is not None
    assert clients.stdout.readline() == "ready\n"
    seconds = time.perf_counter() - begin
    time.sleep(2)
    grown, used = place.memory() - before, place.cpu()
    time.sleep(WATCH)
    used = place.cpu() - used
    connected = sum(c["info"]["stats"]["connected"] for c in place.connections().values())
    assert connected >= IDLE, connected
    print(
        f"{IDLE} idle agents over TLS: {grown:.0f} MB more memory of the server ({before:.0f} MB without),"
        f" {used / WATCH * 100:.2f} % of a processor; connected in {seconds:.1f} s",
        flush=True,
    )
    clients.communicate()


def nuisance(place: Place) -> None:
    """Round trips of a good agent, message and answer, while another is what it should not be.

    The message is the result of a program that no run knows, the answer the server's wish to delete it.
    """
    good = Bare(place.port, place.cert, "good")
    for kind, words in NUISANCES.items():
        other = apart("be", kind, str(place.port), place.cert)
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "ready\n"
        took = []
        for number in range(SAMPLES):
            time.sleep(0.005)
            begin = time.perf_counter()
            good.sock.sendall(result(f"x{number}", state="terminated"))
            good.wait("ProcDeleteRequest")
            took.append(time.perf_counter() - begin)
        going = other.poll() is None
        other.kill()
        other.communicate()
        print(f"a message answered, beside {words:38} {milliseconds(took)}", flush=True)
        assert going, "the nuisance has ended too early"
    good.sock.close()


def agent(place: Place) -> None:
    with place.agent("many") as process:
        time.sleep(2)
        before = memory(process.pid), cpu(process.pid), switches(process.pid)
        time.sleep(10)
        used, switched = cpu(process.pid) - before[1], switches(process.pid) - before[2]
        print(
            f"an idle agent: {before[0]:.1f} MB, {used / 10 * 100:.2f} % of a processor,"
            f" {switched} switches of context in 10 s",
            flush=True,
        )
        client = Client(place.server)
        begin = time.perf_counter()
        client.ask("POST", f"/runs?count={PROGRAMS}", {"job_id": "blocked", "args": {"group": "many"}})

        def count(state: str) -> int:
            return len(client.ask("GET", f"/runs?summary=true&job_id=blocked&state={state}")["runs"])

        wait_for(lambda: count("running") == PROGRAMS, 120)
        started = time.perf_counter() - begin
        full = memory(process.pid)
        begin = time.perf_counter()
        os.close(os.open(place.gate, os.O_WRONLY))  # all of them read until the last writer goes
        wait_for(lambda: count("success") == PROGRAMS, 120)
        print(
            f"{PROGRAMS} programs at once on one agent: all running after {started:.1f} s with {full:.0f} MB"
            f" of the agent's memory, all ended {time.perf_counter() - begin:.1f} s after they may",
            flush=True,
        )
        client.close()


def switches(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


# -- what runs apart -------------------------------------------------------------------------------


def be_idle(port: str, cert: str) -> None:
    """Many agents that answer pings, until the input ends."""
    selector = selectors.DefaultSelector()
    for number in range(IDLE):
        client = Bare(int(port), cert, f"idle{number}", "idle")
        client.sock.setblocking(False)
        selector.register(client.sock, selectors.EVENT_READ, client.sock)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            sock = key.data
            with suppress(ssl.SSLWantReadError):
                while data := sock.recv(4096):
                    if data[0] == 0x89:
                        sock.send(frame(data[2 : 2 + data[1]], 10))


def be(kind: str, port: str, cert: str) -> None:
    """A nuisance, until it is killed."""
    if kind == "handshakes":
        print("ready", flush=True)
        while True:
            Bare(int(port), cert, "bad").sock.close()
    bad = Bare(int(port), cert, "bad", procs=("p",))
    threading.Thread(target=swallow, args=(bad, kind), daemon=True).start()
    if kind == "half":
        bad.sock.sendall(frame(b"\x82\xa4type", length=1 << 20))
    print("ready", flush=True)
    burst = b""
    if kind == "messages":
        burst = result("p") * 100
    elif kind == "pings":
        burst = frame(b"x" * 100, 9) * 100
    elif kind == "deaf":
        burst = b"".join(result(f"y{number}", state="terminated") for number in range(100))
    elif kind == "garbage":
        burst = frame(b"\xc1" * 100) * 10
    elif kind == "output":
        size = 300_000_000
        head = {
            "type": "ProcFdData",
            "proc_id": "p",
            "fd": "stdout",
            "start": 0,
            "stop": size,
            "encoding": None,
        }
        start = msgpack.packb(head | {"data": b""})[:-2] + b"\xc6" + size.to_bytes(4, "big")
        piece = os.urandom(1 << 20)
        while True:
            bad.sock.sendall(frame(start, length=len(start) + size))
            for at in range(0, size, len(piece)):
                bad.sock.sendall(piece[: size - at])
    while True:
        if not burst:
            time.sleep(60)
            continue
        try:
            bad.sock.sendall(burst)
        except OSError:  # it has been thrown out: once more
            bad = Bare(int(port), cert, "bad", procs=("p",))


def swallow(bad: Bare, kind: str) -> None:
    with suppress(EOFError, OSError):
        while kind != "deaf":
            bad.receive()


FIGURES = (messages, output, dead, idle, nuisance, agent)


def main() -> None:
    match sys.argv[1:]:
        case ["be-idle", port, cert]:
            be_idle(port, cert)
        case ["be", kind, port, cert]:
            be(kind, port, cert)
        case names:
            for figure in FIGURES:
                if not names or figure.__name__ in names:
                    with tempfile.TemporaryDirectory(prefix="apsis-bench-", dir="/var/tmp") as directory:
                        place = Place(Path(directory))
                        with place.server.running():
                            figure(place)


if __name__ == "__main__":
    main()
