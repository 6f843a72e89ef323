"""A server that can open no more files, or that may not write any more, or has to wait for its disk: it says
so, starts nothing that it can't record, keeps what runs, and goes on by itself.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import requests
from server import ENDS, Server, environment
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

WAIT = 60.0
JOBS = {
    "noop": "program: {type: no-op}\n",
    "count": "program:\n  type: procstar-shell\n  command: for i in `seq 9`; do echo $i; sleep 0.2; done\n",
    "often": "schedule: {type: interval, interval: 1}\nprogram: {type: procstar, argv: [/bin/echo, here]}\n",
}
COUNTED = b"".join(b"%d\n" % i for i in range(1, 10))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, JOBS).running() as server:
        yield server


def limit(server: Server, files: int) -> int:
    """Let the server have so many descriptors; how many it was let before."""
    assert server.process is not None
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (files, hard))
    return soft


def until_logged(server: Server, text: str, start: int = 0) -> None:
    end = time.monotonic() + WAIT
    while text not in server.log()[start:]:
        assert time.monotonic() < end, server.log()[start:]
        time.sleep(0.05)


def test_without_descriptors_what_runs_goes_on_and_new_clients_wait_until_there_are_some(
    server: Server,
) -> None:
    assert server.process is not None
    known = requests.Session()  # a connection that is there already
    assert known.get(f"{server.url}/alive", timeout=WAIT).status_code == 200
    going = str(
        next(iter(known.post(f"{server.url}/runs", json={"job_id": "count"}, timeout=WAIT).json()["runs"]))
    )
    server.until(going, "running")
    said = len(server.log())
    before = limit(server, len(os.listdir(f"/proc/{server.process.pid}/fd")))
    clients = [socket.create_connection(("127.0.0.1", server.port), WAIT) for _ in range(20)]
    for client in clients:
        client.sendall(b"GET /api/v1/alive HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until_logged(server, "Too many open files", said)
    # Who is known is served, what is due is begun, what runs goes on.
    end = time.monotonic() + WAIT
    made: set[str] = set()
    while len(made) < 2:
        assert time.monotonic() < end
        answer = known.get(f"{server.url}/runs?job_id=often&state=success", timeout=WAIT)
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 200:
            made |= set(answer.json()["runs"])
    while known.get(f"{server.url}/runs/{going}/state", timeout=WAIT).json()["state"] not in ENDS:
        assert time.monotonic() < end
    ill = known.get(f"{server.url}/health", timeout=WAIT)
    assert ill.status_code == 503 and "open files" in ill.json()["error"], ill.text
    assert server.log()[said:].count("can't accept connections: ") == 1
    limit(server, before)
    for client in clients:
        with closing(client):
            client.settimeout(WAIT)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert server.run(going)["state"] == "success" and server.output(going) == COUNTED
    while requests.get(f"{server.url}/health", timeout=WAIT).status_code != 200:
        assert time.monotonic() < end + WAIT
        time.sleep(0.05)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=1m", "apsis-test", str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"to mount a small disk it takes root: {done.stderr}"
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(disk: Path, but: int = 0) -> Path:
    """Nothing is free, `but` so many bytes; the file that takes the rest."""
    ballast = disk / "ballast"
    with open(ballast, "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - but)
    return ballast


def test_a_server_that_is_started_on_a_full_disk_says_so_and_starts_when_there_is_room(
    small_disk: Path,
) -> None:
    server = Server(small_disk, {"noop": JOBS["noop"]})
    argv = [*server.program, "serve", "--config", str(small_disk / "apsis.yaml"), "--port", "0"]

    def refused() -> str:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT)
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert str(small_disk / "apsis.db") in line and "make room on" in line, line
        return line

    # The log goes elsewhere.
    (small_disk / "server.log").symlink_to(small_disk.parent / "server.log")
    fill(small_disk)
    assert "full" in refused()  # it has no database yet
    fill(small_disk, 8192)
    refused()
    (small_disk / "ballast").unlink()
    with server.running():
        run_id = server.schedule({"job_id": "noop"})
    fill(small_disk)
    assert "disk I/O error (SQLITE_IOERR_" in refused()  # as SQLite says where its own files don't fit
    fill(small_disk, 8192)
    refused()
    (small_disk / "ballast").unlink()
    with server.running():
        assert server.until(run_id, *ENDS)["state"] == "success"


AGENTS = "procstar: {agent: {enable: true, server: {host: 127.0.0.1, port: %d, plain: true}}}\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which becomes read-only when it finds an error, as most do."""
    image, directory = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(bytes(16 << 20))
    directory.mkdir()
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-e", "remount-ro", str(image)], check=True)
    mount(image, directory)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def mount(image: Path, directory: Path) -> None:
    done = subprocess.run(["mount", "-o", "loop", str(image), str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, f"to mount a disk it takes root and a loop device: {done.stderr}"


def fail(disk: Path) -> None:
    """The kernel finds an error of the file system."""
    device = os.stat(disk).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("x")


def test_on_a_disk_that_becomes_read_only_nothing_new_begins_and_what_runs_is_not_lost(disk: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = "runs: {retention: off}\njob_dir: jobs\ndatabase: {path: apsis.db}\n"
    (disk / "apsis.yaml").write_text(config + AGENTS % port)
    server = Server(disk, {job_id: JOBS[job_id] for job_id in ("noop", "count")})
    argv = [*server.program, "agent", "--agent", "--plain", "--agent-host", "127.0.0.1"]
    argv += ["--agent-port", str(port), "--connect-interval-max", "1"]
    agent = subprocess.Popen(argv, env=environment(), cwd="/")
    try:
        server.start()
        going = server.schedule({"job_id": "count"})
        server.until(going, "running")
        # The files that this test made; those of the server were never in doubt.
        subprocess.run(["sync", "--file-system", str(disk / "jobs")], check=True)
        fail(disk)
        answer = requests.post(f"{server.url}/runs", json={"job_id": "noop"}, timeout=WAIT)
        assert answer.status_code == 503 and "look for errors of the disk" in answer.json()["error"]
        ill = requests.get(f"{server.url}/health", timeout=WAIT)
        assert ill.status_code == 503 and "nothing new is started" in ill.json()["error"], ill.text
        # What was known can be read still.
        assert server.run(going)["state"] == "running"
        server.kill()
        # Whoever mends it has to unmount it.
        subprocess.run(["umount", str(disk)], check=True)
        subprocess.run(
            ["/usr/sbin/e2fsck", "-p", str(disk.parent / "image")], check=False, capture_output=True
        )
        mount(disk.parent / "image", disk)
        server.start()
        assert server.until(going, *ENDS)["state"] == "success"
        assert server.output(going) == COUNTED
        assert server.until(server.schedule({"job_id": "noop"}), *ENDS)["state"] == "success"
        assert len(server.get("/runs", job_id="noop")["runs"]) in (1, 2)  # that of before was never promised
        assert server.end() == 0
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
        agent.kill()
        agent.wait(60)


def test_a_file_that_may_not_be_written_for_a_while_is_written_again_by_itself(disk: Path) -> None:
    server = Server(disk, {job_id: JOBS[job_id] for job_id in ("noop", "count", "often")})
    with server.running():
        going = server.schedule({"job_id": "count"})
        server.until(going, "running")
        database = [str(disk / "apsis.db"), str(disk / "apsis.db-wal")]
        # To take the right to write away changes nothing for who has a file open; to make it immutable does.
        subprocess.run(["chattr", "+i", *database], check=True)
        try:
            answer = requests.post(f"{server.url}/runs", json={"job_id": "noop"}, timeout=WAIT)
            # Another run may have found out before this one.
            why = "apsis.db" if "not on disk" in answer.text else "nothing new is started"
            assert answer.status_code == 503 and why in answer.json()["error"], answer.text
            ill = requests.get(f"{server.url}/health", timeout=WAIT).json()
            assert any("can't be written" in reason for reason in ill["reasons"]), ill
            known = set(server.get("/runs", job_id="often", state="success")["runs"])
            time.sleep(2.5)  # what is due meanwhile is late by more than a second
            assert set(server.get("/runs", job_id="often", state="success")["runs"]) == known
            assert server.run(going)["state"] == "running"
        finally:
            subprocess.run(["chattr", "-i", *database], check=True)
        assert server.until(going, *ENDS)["state"] == "success"
        assert server.output(going) == COUNTED
        end = time.monotonic() + WAIT
        while not (late := server.get("/search/runs", q="often alarm:late")["runs"]):
            assert time.monotonic() < end
        reasons = [run["reasons"]["late"] for run in late.values()]
        assert any(why.startswith("the database could not be written from ") for why in reasons), reasons
        assert server.get("/health") == {"reasons": []}
        assert server.until(server.schedule({"job_id": "noop"}), *ENDS)["state"] == "success"


def test_a_disk_that_hangs_is_said_and_waited_for(disk: Path) -> None:
    server = Server(disk, {job_id: JOBS[job_id] for job_id in ("noop", "count")})
    made: list[requests.Response] = []
    # Where the log goes is a disk of its own, or a write to it would wait too.
    (disk / "server.log").symlink_to(disk.parent / "server.log")

    def make() -> None:
        made.append(requests.post(f"{server.url}/runs", json={"job_id": "noop"}, timeout=2 * WAIT))

    with server.running():
        going = server.schedule({"job_id": "count"})
        server.until(going, "running")
        maker = threading.Thread(target=make)
        subprocess.run(["fsfreeze", "--freeze", str(disk)], check=True)
        try:
            maker.start()
            end = time.monotonic() + WAIT
            while (ill := requests.get(f"{server.url}/health", timeout=WAIT)).status_code == 200:
                assert time.monotonic() < end
                time.sleep(0.1)
            assert "a commit has been under way for" in ill.json()["error"]
            assert requests.get(f"{server.url}/alive", timeout=WAIT).json() == {}
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", str(disk)], check=True)
        maker.join()
        assert server.until(going, *ENDS)["state"] == "success"
        assert server.output(going) == COUNTED
        while requests.get(f"{server.url}/health", timeout=WAIT).status_code != 200:
            assert time.monotonic() < end + WAIT
            time.sleep(0.05)
        if made[0].status_code == 200:
            (run_id,) = made[0].json()["runs"]
            assert server.until(run_id, *ENDS)["state"] == "success"
        assert server.until(server.schedule({"job_id": "noop"}), *ENDS)["state"] == "success"


def status_line(client: socket.socket) -> bytes:
    """Of the answer; nothing where the connection was ended."""
    with suppress(ConnectionError):
        return client.recv(1000).split(b"\r\n")[0]
    return b""


def test_without_threads_to_be_had_who_comes_is_told_so_and_runs_go_on(tmp_path: Path) -> None:
    jobs = {
        **JOBS,
        "acts": "program: {type: no-op}\naction: {type: schedule, job_id: noop, if: {states: success}}\n",
        "waits": "condition: {type: dependency, job_id: count}\nprogram: {type: no-op}\n",
    }
    with Server(tmp_path, jobs).running() as server:
        assert server.process is not None
        known = requests.Session()
        assert known.get(f"{server.url}/alive", timeout=WAIT).status_code == 200
        pid = server.process.pid
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        # A thread's stack takes 8 MiB of address space.
        before = resource.prlimit(pid, resource.RLIMIT_AS, (size + (4 << 20), resource.RLIM_INFINITY))
        # Each keeps a thread for a quarter of a second: who makes a run is told what became of it.
        body = b'{"job_id": "waits"}'
        request = b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        with ExitStack() as stack:
            clients = []
            for _ in range(40):
                clients.append(
                    stack.enter_context(socket.create_connection(("127.0.0.1", server.port), WAIT))
                )
                clients[-1].sendall(request + body)
            answers = set(map(status_line, clients))
        busy = b"HTTP/1.1 503 Service Unavailable"
        # Who is idle makes room for others, and may be just about to ask.
        assert busy in answers <= {b"HTTP/1.1 200 OK", busy, b""}
        with ExitStack() as stack, pytest.raises((InvalidStatus, ConnectionClosed)):
            for _ in range(10):  # the stacks of threads that have ended are there for a few
                live = stack.enter_context(connect(f"ws{server.url[4:]}/summary?init"))
                live.recv(timeout=WAIT)
        acts = next(
            iter(known.post(f"{server.url}/runs", json={"job_id": "acts"}, timeout=WAIT).json()["runs"])
        )
        end = time.monotonic() + WAIT
        while not known.get(f"{server.url}/runs?job_id=noop&state=success", timeout=WAIT).json()["runs"]:
            assert time.monotonic() < end, known.get(f"{server.url}/runs/{acts}/log", timeout=WAIT).text
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        for _ in range(100):  # as many threads as ever
            assert requests.get(f"{server.url}/alive", timeout=WAIT).status_code == 200
        with connect(f"ws{server.url[4:]}/summary?init") as live:
            assert live.recv(timeout=WAIT)
        assert "Traceback" not in server.log() and "can't start a thread" in server.log()


NO_HTTP = """
import threading

start = threading.Thread.start


def limited(thread):
    # More than there is address space: so the system refuses this one thread.
    threading.stack_size(1 << 46 if thread.name == "apsis-http" else 0)
    start(thread)


threading.Thread.start = limited
"""


def test_a_server_that_fails_while_it_starts_ends_and_does_not_linger(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS)
    (tmp_path / "sitecustomize.py").write_text(NO_HTTP)
    argv = [*server.program, "serve", "--config", str(tmp_path / "apsis.yaml"), "--port", "0"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=WAIT, env=environment(PYTHONPATH=str(tmp_path))
        )
    finally:
        server.end_agent()
    assert done.returncode == 70 and "can't start new thread" in done.stderr
