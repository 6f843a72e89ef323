"""An agent's life: registering, losing the server and finding it again, keeping alive, ending."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import queue
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from agent_peer import ROOT, STDERR, STDOUT, TIMEOUT, Agent, Link, Peer
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

REGISTERED = bytes.fromhex("81a474797065aa52656769737465726564")


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


class Agents:
    """Starts agents and sees that none outlives its test."""

    def __init__(self) -> None:
        self._all: list[Agent] = []

    def __call__(self, *args: str, peer: Peer | None = None, **options: Any) -> Agent:
        agent = Agent(*args, **options) if peer is None else Agent.of(peer, *args, **options)
        self._all.append(agent)
        return agent

    def end(self) -> None:
        for agent in self._all:
            agent.kill()


@pytest.fixture
def agents() -> Iterator[Agents]:
    agents = Agents()
    yield agents
    agents.end()


def running(link: Link, proc_id: str, *argv: str) -> int:
    """Start a program and wait until it has become itself; its pid."""
    link.start(proc_id, list(argv) or ["/bin/sleep", "60"])
    link.wait("ProcResult", proc_id=proc_id)
    while (res := link.result(proc_id))["proc_stat"]["comm"] == "python":
        pass
    pid: int = res["pid"]
    return pid


# -- registering


def test_an_agent_says_who_it_is_and_nothing_else(peer: Peer, agents: Agents) -> None:
    env = {"PROCSTAR_GROUP_ID": "batch"}
    agent = agents(peer=peer, env=env)
    register = peer.link().register
    theirs = ["type", "conn", "proc", "proc_ids", "access_token", "shutdown_state"]
    assert list(register) == [*theirs, "instance"] and len(register["instance"]) == 36
    conn_id = register["conn"].pop("conn_id")
    assert len(conn_id) == 36 and register["conn"] == {"group_id": "batch", "restricted_exe": None}
    assert list(register["proc"]) == [
        "pid", "ppid", "uid", "euid", "username", "gid", "egid", "groupname", "hostname",
    ]  # fmt: skip
    assert register["proc"]["pid"] == agent.process.pid and register["proc"]["ppid"] == os.getpid()
    assert register["proc"]["hostname"] == socket.gethostname()
    assert register["proc_ids"] == [] and register["shutdown_state"] == "active"


def test_options_name_the_agent_and_its_group(peer: Peer, agents: Agents) -> None:
    agents("--conn-id", "me", "--group-id", "us", "--restrict-exe", "/bin/true", peer=peer)
    link = peer.link()
    assert link.register["conn"] == {"conn_id": "me", "group_id": "us", "restricted_exe": "/bin/true"}
    assert link.run("p", ["/bin/true"])["state"] == "terminated"
    res = link.run("q", ["/bin/echo"])
    assert res["errors"] == ["restricted executable: /bin/echo"] and res["status"]["exit_code"] == 63


def test_a_refused_token_is_tried_again_after_a_while(agents: Agents) -> None:
    peer = Peer(token="right")
    try:
        agents("--connect-interval-start", "0.1", peer=peer, env={"PROCSTAR_AGENT_TOKEN": "wrong"})
        for _ in range(3):
            assert peer.refused.acquire(timeout=TIMEOUT)
        agents(peer=peer, env={"PROCSTAR_AGENT_TOKEN": "right"})
        assert peer.link().register["access_token"] == "right"
    finally:
        peer.close()


NO_THREADS = """
import os
import threading

start = threading.Thread.start


def limited(thread):
    # More than there is address space: so the system refuses the thread.
    threading.stack_size(1 << 46 if os.path.exists(os.environ["FULL"]) else 0)
    start(thread)


threading.Thread.start = limited
"""


def test_an_agent_that_can_start_no_thread_connects_once_it_can(
    peer: Peer, agents: Agents, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.touch()
    (tmp_path / "sitecustomize.py").write_text(NO_THREADS)
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "FULL": str(full)}
    agent = agents("--connect-interval-start", "0.1", peer=peer, env=env)
    assert agent.process.stderr is not None
    while "can't start new thread" not in agent.process.stderr.readline():
        pass
    full.unlink()
    assert peer.link().run("p", ["/bin/echo"])["status"]["exit_code"] == 0


def test_the_delay_grows_between_attempts_and_the_count_ends_them(agents: Agents) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        intervals = ["--connect-interval-start", "0.1", "--connect-interval-max", "0.3"]
        agent = agents(
            "--agent", "--agent-host", "127.0.0.1", "--agent-port", port, "--connect-count-max", "5",
            *intervals,
        )  # fmt: skip
        times = []
        for _ in range(5):
            sock, _ = server.accept()
            times.append(time.monotonic())
            sock.close()
    assert agent.end()[0] == 1
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    for gap, want in zip(gaps, [0.1, 0.2, 0.3, 0.3], strict=True):
        assert want - 0.01 <= gap < want + 0.5


def test_tls_trusts_the_servers_own_certificate_and_checks_its_name(tmp_path: Path, agents: Agents) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "cert.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    peer = Peer(context=context)
    try:
        trusting = {"PROCSTAR_AGENT_CERT": str(cert), "PROCSTAR_AGENT_HOST": "localhost"}
        port = ["--agent", "--agent-port", str(peer.port)]
        agents(*port, plain=False, env=trusting)
        link = peer.link()
        link.run("p", ["/usr/bin/head", "-c", "5000000", "/dev/zero"])
        assert link.output("p") == bytes(5_000_000)
        for env in ({"PROCSTAR_AGENT_HOST": "localhost"}, trusting | {"PROCSTAR_AGENT_HOST": "127.0.0.1"}):
            status, _, log = agents(*port, "--connect-count-max", "1", plain=False, env=env).end()
            assert status == 1 and "CERTIFICATE_VERIFY_FAILED" in log
    finally:
        peer.close()


# -- bytes, with a server made by hand


class Raw:
    """One connection, accepted and upgraded by hand; frames in and out as bytes."""

    def __init__(self, server: socket.socket, leftover: bytes = b"") -> None:
        self.sock, _ = server.accept()
        self.sock.settimeout(TIMEOUT)
        self._file = self.sock.makefile("rb")
        self.head = [self._file.readline().decode().rstrip("\r\n")]
        while self.head[-1]:
            self.head.append(self._file.readline().decode().rstrip("\r\n"))
        key = self.head[5].removeprefix("Sec-WebSocket-Key: ")
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        answer = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" \
                 f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\n\r\n"  # fmt: skip
        self.sock.sendall(answer.encode() + leftover)

    def frame(self) -> tuple[int, bytes]:
        """(first byte, unmasked payload) of the next frame."""
        first, second = self._file.read(2)
        assert second & 0x80, "a client must mask"
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
        mask = self._file.read(4)
        return first, bytes(byte ^ mask[at % 4] for at, byte in enumerate(self._file.read(size)))

    def send(self, data: bytes, first: int = 0x82) -> None:
        assert len(data) < 126
        self.sock.sendall(bytes([first, len(data)]) + data)

    def ended(self) -> bool:
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        yield server


def connect(agents: Agents, server: socket.socket, *args: str) -> Agent:
    port = str(server.getsockname()[1])
    return agents("--agent", "--agent-host", "127.0.0.1", "--agent-port", port, *args)


def test_the_upgrade_has_the_headers_of_other_agents_in_their_order(
    server: socket.socket, agents: Agents
) -> None:
    connect(agents, server)
    raw = Raw(server)
    names = [line.partition(":")[0] for line in raw.head[1:] if line]
    assert raw.head[0] == "GET / HTTP/1.1" and names == [
        "Host", "Connection", "Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key",
    ]  # fmt: skip


def test_a_ping_follows_registration_at_once_and_pings_are_answered(
    server: socket.socket, agents: Agents
) -> None:
    connect(agents, server)
    raw = Raw(server)
    first, register = raw.frame()
    assert first == 0x82 and register.startswith(b"\x87\xa4type\xa8Register")
    raw.send(REGISTERED)
    assert raw.frame() == (0x89, b"")
    raw.send(b"abcd", first=0x89)
    assert raw.frame() == (0x8A, b"abcd")
    raw.send(b"", first=0x8A)
    raw.send(b"unasked", first=0x8A)
    raw.send(b"\x81\xa4type\xb1ProcidListRequest")
    assert raw.frame() == (0x82, b"\x82\xa4type\xaaProcidList\xa8proc_ids\x90")


def test_a_request_in_fragments_and_byte_by_byte_is_understood(server: socket.socket, agents: Agents) -> None:
    connect(agents, server)
    raw = Raw(server)
    raw.frame()
    for byte in bytes([0x82, len(REGISTERED)]) + REGISTERED:
        raw.sock.sendall(bytes([byte]))
    assert raw.frame()[0] == 0x89
    raw.send(b"\x81\xa4ty", first=0x02)
    raw.send(b"", first=0x89)
    raw.send(b"pe\xb1ProcidListRequest", first=0x80)
    assert raw.frame() == (0x8A, b"")
    assert raw.frame()[1].startswith(b"\x82\xa4type\xaaProcidList")


def test_a_server_that_falls_silent_is_left_for_a_new_connection(
    server: socket.socket, agents: Agents
) -> None:
    connect(agents, server, "--agent-read-timeout", "0.5")
    raw = Raw(server)
    raw.frame()
    raw.send(REGISTERED)
    began = time.monotonic()
    assert raw.frame()[0] == 0x89
    assert raw.ended() and 0.4 < time.monotonic() - began < 40
    assert Raw(server).frame()[1].startswith(b"\x87\xa4type\xa8Register")


@pytest.mark.parametrize(
    ("data", "first"), [(b"hello", 0x81), (b"\xc1", 0x82), (b"\x81\xa4type\xb1ProcidListRequest", 0x82)]
)
def test_what_is_not_registered_is_a_failed_attempt(
    data: bytes, first: int, server: socket.socket, agents: Agents
) -> None:
    connect(agents, server, "--connect-interval-start", "0.1")
    raw = Raw(server)
    raw.frame()
    raw.send(data, first)
    assert raw.ended()
    assert Raw(server).frame()[0] == 0x82


def test_text_makes_the_agent_connect_anew(server: socket.socket, agents: Agents) -> None:
    connect(agents, server)
    raw = Raw(server)
    raw.frame()
    raw.send(REGISTERED)
    raw.send(b"{}", first=0x81)
    raw.frame()
    assert raw.ended()
    assert Raw(server).frame()[0] == 0x82


def test_a_server_that_stops_reading_holds_back_answers_and_no_program(
    server: socket.socket, agents: Agents, tmp_path: Path
) -> None:
    agent = connect(agents, server)
    raw = Raw(server)
    raw.frame()
    raw.send(REGISTERED)
    raw.frame()
    peer_start = b"\x82\xa4type\xb0ProcStartRequest\xa5specs\x81\xa1p\x82\xa4argv\x93\xa7/bin/sh\xa2-c"
    script = b"head -c 50000000 /dev/zero; echo > %s" % os.fsencode(tmp_path / "done")
    fds = b"\xa3fds\x91\x92\xa6stdout\x81\xa7capture\x81\xa8attached\xc2"
    data = peer_start + bytes([0xD9, len(script)]) + script + fds
    raw.sock.sendall(bytes([0x82, 126]) + len(data).to_bytes(2, "big") + data)
    while b"terminated" not in raw.frame()[1]:
        pass
    request = b"\x85\xa4type\xb1ProcFdDataRequest\xa7proc_id\xa1p\xa2fd\xa11\xa5start\x00\xa4stop\xc0"
    for _ in range(200):
        raw.send(request)
    raw.send(b"", first=0x89)
    # 10 GB are asked for and nothing is read: the agent neither grows nor dies.
    assert (tmp_path / "done").exists()
    time_is_up = time.monotonic() + 1
    while time.monotonic() < time_is_up:
        raw.sock.getpeername()
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        assert rss < 45_000
    assert raw.frame()[0] in (0x02, 0x8A)


# -- losing the server


def test_programs_survive_the_server_and_are_named_when_it_is_back(agents: Agents, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    peer = Peer()
    port = peer.port
    agents("--connect-interval-start", "0.1", "--connect-interval-max", "0.2", peer=peer)
    link = peer.link()
    conn_id = link.register["conn"]["conn_id"]
    link.run("b", ["/bin/echo", "before"])
    running(link, "a", "/bin/sh", "-c", f"read line < {gate}; echo after")
    peer.close()
    with open(gate, "w") as opened:
        opened.write("go\n")
    peer = Peer(port)
    try:
        link = peer.link()
        assert link.register["proc_ids"] == ["a", "b"] and link.register["conn"]["conn_id"] == conn_id
        while link.result("a")["state"] == "running":
            pass
        assert link.output("a") == b"after\n" and link.output("b") == b"before\n"
        link.delete("a")
        link.delete("b")
    finally:
        peer.close()


def test_a_closed_connection_is_followed_by_another_at_once(peer: Peer, agents: Agents) -> None:
    agents("--connect-interval-start", "100", peer=peer)
    peer.link().close()
    peer.link()


def test_a_server_that_closes_in_the_same_breath_as_it_registers_has_registered(agents: Agents) -> None:
    """Two frames in one segment: such an end is a lost connection, not a failed attempt with its delay."""
    began: queue.Queue[float] = queue.Queue()

    def breathe(ws: ServerConnection) -> None:
        began.put(time.monotonic())
        ws.recv(timeout=TIMEOUT)
        with ws.protocol_mutex:
            ws.protocol.send_binary(msgpack.packb({"type": "Registered"}))
            ws.protocol.send_close(1000)
            ws.socket.sendall(b"".join(ws.protocol.data_to_send()))
        with suppress(ConnectionClosed):
            ws.recv(timeout=TIMEOUT)

    server = serve(breathe, "127.0.0.1", 0, compression=None)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        port = server.socket.getsockname()[1]
        agents(
            "--agent",
            "--agent-host",
            "127.0.0.1",
            "--agent-port",
            str(port),
            "--connect-interval-start",
            "30",
        )
        times = [began.get(timeout=TIMEOUT) for _ in range(3)]
        assert times[2] - times[0] < 10
    finally:
        server.shutdown()
        thread.join(TIMEOUT)


def test_what_a_server_asks_in_the_same_breath_as_it_closes_is_done(peer: Peer, agents: Agents) -> None:
    agents(peer=peer)
    link = peer.link()
    assert link.run("old", ["/bin/true"])["status"]["status"] == 0
    spec = {"argv": ["/bin/echo", "begun"], "fds": [STDOUT, STDERR]}
    link.send_and_close(
        {"type": "ProcStartRequest", "specs": {"new": spec}}, {"type": "ProcDeleteRequest", "proc_id": "old"}
    )
    link = peer.link()
    link.send("ProcidListRequest")
    assert link.wait("ProcidList")["proc_ids"] == ["new"]
    while link.result("new")["state"] == "running":
        pass
    assert link.output("new") == b"begun\n"


BAD_DISK = """
import errno
import os

pread = os.pread


def failing(*args):
    try:
        with open(os.environ["FAULT"]) as fault:
            raise {"EIO": OSError(errno.EIO, os.strerror(errno.EIO)), "": MemoryError()}[fault.read()]
    except FileNotFoundError:
        return pread(*args)


os.pread = failing
"""


def test_output_that_cannot_be_read_costs_neither_the_connection_nor_the_agent(
    peer: Peer, agents: Agents, tmp_path: Path
) -> None:
    fault = tmp_path / "fault"
    (tmp_path / "sitecustomize.py").write_text(BAD_DISK)
    agents(peer=peer, env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "FAULT": str(fault)})
    link = peer.link()
    link.run("p", ["/bin/echo", "here"])
    fault.write_text("EIO")
    request = {"type": "ProcFdDataRequest", "proc_id": "p", "fd": "stdout", "start": 0, "stop": None}
    link.send(**{"kind" if name == "type" else name: value for name, value in request.items()})
    assert link.error() == "Input/output error (os error 5)"
    # Whatever else goes wrong as a connection ends, another follows it.
    fault.write_text("")
    link.send_and_close(request)
    link = peer.link()
    fault.unlink()
    assert link.output("p") == b"here\n"


def test_output_is_had_from_an_agent_that_has_no_descriptor_left(peer: Peer, agents: Agents) -> None:
    agent = agents(peer=peer)
    link = peer.link()
    link.run("p", ["/usr/bin/head", "-c", "1000000", "/dev/zero"])
    _, hard = resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (4, hard))
    assert link.output("p") == bytes(1000000)
    link.start("q", ["/bin/true"])
    assert link.error() == "Too many open files (os error 24)"
    link.delete("p")


FULL_EPOLL = """
import errno
import os
import select

Epoll = select.epoll


class Full:
    def __init__(self):
        self._epoll = Epoll()

    def register(self, *args):
        if os.path.exists(os.environ["FULL"]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._epoll.register(*args)

    def __getattr__(self, name):
        return getattr(self._epoll, name)


select.epoll = Full
"""


def test_a_program_that_runs_is_not_said_to_have_failed_where_no_descriptor_can_be_watched(
    peer: Peer, agents: Agents, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(FULL_EPOLL)
    agents(peer=peer, env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "FULL": str(full)})
    link = peer.link()
    full.touch()
    assert link.run("p", ["/bin/echo", "here"])["state"] == "terminated"
    assert link.output("p") == b"here\n"
    assert link.run("q", ["/none"])["errors"] == [
        "execve failed: /none: No such file or directory (os error 2)"
    ]
    # What could never be read is not begun.
    link.start("r", ["/bin/echo"], [["stdout", {"capture": {"mode": "memory"}}]])
    assert link.error() == "No space left on device (os error 28)"
    full.unlink()
    link.send("ProcidListRequest")
    assert link.wait("ProcidList")["proc_ids"] == ["p", "q"]


def test_a_server_that_registers_only_to_close_is_not_rushed_at(peer: Peer, agents: Agents) -> None:
    agents(peer=peer)
    for _ in range(3):
        peer.link().close()
    began = time.monotonic()
    peer.link()
    assert time.monotonic() - began > 0.9


# -- ending


def test_sigterm_ends_programs_and_waits_for_the_server_to_take_what_they_left(
    peer: Peer, agents: Agents
) -> None:
    agent = agents(peer=peer)
    link = peer.link()
    link.run("old", ["/bin/echo", "hi"])
    running(link, "p")
    agent.signal(signal.SIGTERM)
    assert link.final("p")["status"]["signal"] == "SIGTERM"
    assert link.output("old") == b"hi\n"
    link.send("ProcDeleteRequest", proc_id="old")
    link.send("ProcDeleteRequest", proc_id="p")
    types = [message["type"] for message in link.rest()]
    assert types[-3:] == ["ProcDelete", "ProcDelete", "ShutDown"] and "idling" not in str(types)
    assert agent.end()[0] == 0


def ignores_sigterm(pid: int) -> None:
    """Returns once a program does: its shell has to come to its first line."""
    end = time.monotonic() + 30
    while True:
        ignored = Path(f"/proc/{pid}/status").read_text().partition("SigIgn:")[2].split()[0]
        if int(ignored, 16) >> (signal.SIGTERM - 1) & 1:
            return
        assert time.monotonic() < end


def test_new_starts_are_accepted_while_sigterm_has_its_effect(peer: Peer, agents: Agents) -> None:
    agent = agents(peer=peer)
    link = peer.link()
    ignores_sigterm(running(link, "stubborn", "/bin/sh", "-c", "trap '' TERM; sleep 60 & wait; wait"))
    agent.signal(signal.SIGTERM)
    assert link.run("late", ["/bin/true"])["state"] == "terminated"
    agent.signal(signal.SIGQUIT)
    assert link.final("stubborn")["status"]["signal"] == "SIGKILL"
    link.delete("stubborn")
    link.send("ProcDeleteRequest", proc_id="late")
    assert link.rest()[-1] == {"type": "ShutDown", "shutdown_state": "done"}
    assert agent.end()[0] == 0


def test_sigquit_kills_at_once(peer: Peer, agents: Agents) -> None:
    agent = agents(peer=peer)
    link = peer.link()
    ignores_sigterm(running(link, "p", "/bin/sh", "-c", "trap '' TERM; sleep 60 & wait; wait"))
    agent.signal(signal.SIGQUIT)
    assert link.final("p")["status"]["signal"] == "SIGKILL"
    link.delete("p")
    assert agent.end()[0] == 0


def test_records_that_nobody_fetches_hold_an_ending_agent_for_5_seconds(peer: Peer, agents: Agents) -> None:
    agent = agents(peer=peer)
    peer.link().run("p", ["/bin/true"])
    began = time.monotonic()
    agent.signal(signal.SIGINT)
    assert agent.end()[0] == 0
    assert 4.9 < time.monotonic() - began < 30


def test_sigusr1_takes_no_more_work_and_ends_with_the_last_record(peer: Peer, agents: Agents) -> None:
    agent = agents(peer=peer)
    link = peer.link()
    running(link, "p")
    agent.signal(signal.SIGUSR1)
    link.wait("ShutDown", shutdown_state="idling")
    link.start("late", ["/bin/true"])
    assert link.error() == "agent shutting down: idling"
    link.close()
    link = peer.link()
    assert link.register["shutdown_state"] == "idling"
    link.send("ProcSignalRequest", proc_id="p", signum=15)
    link.final("p")
    link.send("ProcDeleteRequest", proc_id="p")
    assert [message["type"] for message in link.rest()] == ["ProcDelete", "ShutDown"]
    assert agent.end()[0] == 0


def test_sigusr1_ends_an_agent_without_records_at_once(peer: Peer, agents: Agents) -> None:
    agent = agents(peer=peer)
    link = peer.link()
    agent.signal(signal.SIGUSR1)
    assert [message["shutdown_state"] for message in link.rest()] == ["idling", "done"]
    assert agent.end()[0] == 0


def test_a_signal_is_noticed_between_attempts_to_connect(agents: Agents) -> None:
    agent = agents(
        "--agent", "--agent-host", "127.0.0.1", "--agent-port", "1", "--connect-interval-start", "30"
    )
    assert agent.process.stderr is not None
    while "cannot connect" not in agent.process.stderr.readline():
        pass
    agent.signal(signal.SIGTERM)
    assert agent.end()[0] == 0


def test_wait_ends_when_the_last_record_is_deleted(peer: Peer, agents: Agents) -> None:
    agent = agents("--wait", "--wait-timeout", "60", peer=peer)
    link = peer.link()
    link.run("p", ["/bin/true"])
    link.send("ProcDeleteRequest", proc_id="p")
    assert [message["type"] for message in link.rest()] == ["ProcDelete", "ShutDown"]
    assert agent.end()[0] == 0


def test_wait_ends_when_no_work_comes(peer: Peer, agents: Agents) -> None:
    agent = agents("--wait", "--wait-timeout", "1", peer=peer)
    assert peer.link().rest() == [{"type": "ShutDown", "shutdown_state": "done"}]
    assert agent.end()[0] == 0


def test_idle_exit_ends_an_agent_without_server_and_records(agents: Agents) -> None:
    peer = Peer()
    agent = agents("--idle-exit", "0.5", "--connect-interval-start", "0.1", peer=peer)
    link = peer.link()
    link.run("p", ["/bin/true"])
    link.delete("p")
    peer.close()
    assert agent.end()[0] == 0


# -- the command line


def test_modes_and_mistakes_have_their_exit_codes(agents: Agents, tmp_path: Path) -> None:
    specs = tmp_path / "specs.json"
    specs.write_text('{"specs": {"p": {"argv": []}}}')
    deep = tmp_path / "deep.json"
    deep.write_text('{"specs": ' + "[" * 200_000)
    busy = socket.create_server(("127.0.0.1", 0))
    for args, status in [
        ([], 65),
        (["--agent"], 2),
        (["--no-such-option"], 2),
        (["--help"], 0),
        (["--exit", str(tmp_path / "missing")], 2),
        (["--exit", str(deep)], 2),
        (["--exit", str(specs)], 65),
        (["--serve", "--serve-port", str(busy.getsockname()[1]), str(specs)], 2),
        (["--exit", "--output", "/no/such/file"], 72),
        (["--agent", "--agent-host", "127.0.0.1", "--agent-port", "1", "--connect-count-max", "1"], 1),
        (["--wait"], 0),
        (["--exit", "--agent", "--agent-host", "127.0.0.1"], 0),
    ]:
        assert agents(*args).end()[0] == status, args
    busy.close()


def test_a_failure_of_its_own_has_an_exit_code_too(tmp_path: Path) -> None:
    code = (
        "import apsislib.agent.program as program\n"
        "def fail(): raise RuntimeError('a bug')\n"
        "program.cgroups.find = fail\n"
        "raise SystemExit(program.main(['--wait']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 101 and "RuntimeError: a bug" in done.stderr


def test_an_agent_needs_no_standard_descriptors_and_gives_programs_some(tmp_path: Path) -> None:
    specs, results = tmp_path / "specs.json", tmp_path / "results.json"
    argv = ["/bin/sh", "-c", "cat; echo there; echo there >&2"]
    specs.write_text(json.dumps({"specs": {"p": {"argv": argv}}}))
    script = f"exec {sys.executable} -m apsislib.agent --output {results} --print {specs} <&- >&- 2>&-"
    subprocess.run(["/bin/sh", "-c", script], cwd=ROOT, check=True, timeout=60)
    assert json.loads(results.read_text())["p"]["status"]["exit_code"] == 0


def test_programs_of_an_input_file_are_run_and_their_results_printed(agents: Agents, tmp_path: Path) -> None:
    specs = tmp_path / "specs.json"
    specs.write_text(
        '{"specs": {"p": {"argv": ["/bin/echo", "hi"],'
        ' "fds": [["stdout", {"capture": {"encoding": "utf-8"}}]]}}}'
    )
    status, out, _ = agents("--print", str(specs)).end()
    assert status == 0 and '"text": "hi\\n"' in out and '"exit_code": 0' in out


def test_an_idle_agent_is_small_and_does_not_poll(peer: Peer, agents: Agents) -> None:
    agent = agents(peer=peer)
    link = peer.link()
    link.send("ProcidListRequest")
    link.wait("ProcidList")

    def switches() -> int:
        text = Path(f"/proc/{agent.process.pid}/status").read_text()
        return sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)

    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    assert next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) < 30_000
    before = switches()
    with pytest.raises(subprocess.TimeoutExpired):
        agent.process.wait(1)
    assert switches() - before <= 2
