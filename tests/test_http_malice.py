"""Whatever a client says on the server's port, by mutation of real requests and by hypothesis: the server
lives, logs no failure, serves others meanwhile, and keeps neither memory nor descriptors of it.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server import ENDS, Server
from websockets.sync.client import connect

from apsislib.api.routes import ROUTES

WAIT = 60.0
JOBS = {
    "noop": "params: [a]\nprogram: {type: no-op}\n",
    "echo": "program: {type: procstar, argv: [/bin/echo, here]}\n",
    "big": "program: {type: procstar, argv: [/usr/bin/head, -c, '8000000', /dev/zero]}\n",
    "slow": "program: {type: procstar-shell, command: echo begun; sleep 600}\n",
}
# Nothing that ends the server, which is no failure.
DANGEROUS = (b"shut_down", b"restart")
UPGRADE = (
    b"GET /api/v1/summary?init HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("site"), JOBS).running() as server:
        server.until(server.schedule({"job_id": "echo"}), *ENDS)
        slow = server.schedule({"job_id": "slow"})
        server.until(slow, "running")
        yield server
        if server.run(slow)["state"] == "running":  # or a request that was changed has stopped it
            server.post(f"/runs/{slow}/stop")
        server.until(slow, *ENDS)


def recorded() -> list[bytes]:
    """Requests as clients send them: each route, bodies, parts, several at once, upgrades."""
    found = [UPGRADE]
    body = b'{"job_id":"noop","args":{"a":"1"},"times":{"schedule":"now","stop":"+1h"}}'
    head = b"Host: localhost\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nConnection: keep-alive\r\n"
    for route in ROUTES:
        path = route.pattern.replace("{job_id+}", "noop").replace("{run_id}", "r1")
        path = path.replace("{output_id}", "output").replace("{signal}", "TERM").replace("{state}", "failure")
        if any(word in path.encode() for word in DANGEROUS):
            continue
        for method in route.methods:
            start = f"{method} {path}?job_id=noop&q=x&init HTTP/1.1\r\n".encode() + head
            if route.body:
                start += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
            found.append(start + b"\r\n" + (body if route.body else b""))
    ranged = (
        b"GET /api/v1/runs/r1/output/output HTTP/1.1\r\n"
        + head
        + b'Range: bytes=1-2\r\nIf-Range: "x"\r\n\r\n'
    )
    chunked = b"POST /api/v1/runs HTTP/1.1\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\n4b\r\n" + body
    return [*found, ranged, chunked + b"\r\n0\r\n\r\n", found[1] * 5]


REQUESTS = recorded()
PIECES = [
    b"\r\n",
    b"\n",
    b"\0",
    b"\xff",
    b"%",
    b"%00",
    b"%zz",
    b"..",
    b"/",
    b"?",
    b"&",
    b" ",
    b":",
    b"chunked",
    b"Expect: 100-continue",
]
PIECES += [
    b"Content-Length: ",
    b"-1",
    b"99999999999999999999",
    b"Transfer-Encoding: chunked\r\n",
    b"x" * 70_000,
]
PIECES += [b"{", b"[" * 20_000, b'"', b"\\ud800", b"1e999", b"null", b"HTTP/9.9", b"h" * 9000 + b": x\r\n"]


def mutated(chosen: random.Random) -> bytes:
    data = bytearray(chosen.choice(REQUESTS))
    for _ in range(chosen.choice((1, 1, 2, 3, 8))):
        at, to = sorted(chosen.randrange(len(data) + 1) for _ in range(2))
        match chosen.randrange(6):
            case 0:
                data[at:at] = chosen.choice(PIECES)
            case 1:
                del data[at : min(to, at + 30)]
            case 2 if data:
                data[chosen.randrange(len(data))] = chosen.randrange(256)
            case 3:
                data[at:at] = data[at : at + 200]
            case 4:
                other = chosen.choice(REQUESTS)
                data[at:] = other[chosen.randrange(len(other)) :]
            case _:
                data[at:] = b""
        if not data:
            break
    return bytes(data)


def say(server: Server, data: bytes, cut: int | None = None) -> bytes:
    """Send it, in two pieces where `cut` says so, and no more; the beginning of what is answered."""
    if any(word in data for word in DANGEROUS):
        return b""
    with socket.create_connection(("127.0.0.1", server.port), WAIT) as sock:
        try:
            for piece in (data[:cut], data[cut:]) if cut else (data,):
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(WAIT)
            answer = b""
            while len(answer) < 100_000 and (more := sock.recv(65536)):
                answer += more
                if answer.startswith(b"HTTP/1.1 101"):
                    break  # a stream, which may have nothing to say
            return answer
        except (ConnectionResetError, BrokenPipeError):
            return b""


def resident(server: Server) -> int:
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(server: Server) -> int:
    """Those of clients, and all others but the database's: readers are kept, more after a busier moment."""
    assert server.process is not None
    count = 0
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += "/apsis.db" not in os.readlink(link)
    return count


def unhurt(server: Server, fds: int) -> None:
    """Nothing has failed, nothing is kept, and others are served."""
    assert requests.get(f"{server.url}/alive", timeout=WAIT).status_code == 200
    assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"
    log = server.log()
    assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:3000]
    end = time.monotonic() + WAIT
    while descriptors(server) > fds + 3:
        assert time.monotonic() < end, "descriptors are kept"
        time.sleep(0.05)


def test_requests_that_were_changed_at_random_hurt_nobody(server: Server) -> None:
    for data in REQUESTS:  # as they are, they are understood
        assert say(server, data).startswith(b"HTTP/1.1 "), data
    before, fds = resident(server), descriptors(server)
    statuses: set[bytes] = set()
    slowest = 0.0
    stop = threading.Event()

    def serve_others() -> None:
        nonlocal slowest
        session = requests.Session()
        while not stop.wait(0.02):
            begun = time.monotonic()
            assert session.get(f"{server.url}/jobs", timeout=WAIT).status_code == 200
            slowest = max(slowest, time.monotonic() - begun)

    def attack(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(150):
            data = mutated(chosen)
            answer = say(server, data, chosen.choice((None, len(data) // 2)))
            statuses.add(answer[9:12])

    other = threading.Thread(target=serve_others)
    attackers = [threading.Thread(target=attack, args=(seed,)) for seed in range(4)]
    other.start()
    for thread in attackers:
        thread.start()
    for thread in attackers:
        thread.join()
    stop.set()
    other.join()
    assert b"500" not in statuses and {b"200", b"400", b"404"} <= statuses, statuses
    assert slowest < 20
    unhurt(server, fds)
    assert resident(server) - before < 60 << 20


@settings(max_examples=120, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "get", "", "G T"]),
    path=st.text(max_size=60).map(lambda text: "/api/v1/" + text),
    headers=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=60)), max_size=6),
    body=st.binary(max_size=500),
    ending=st.sampled_from(["\r\n", "\n", "\r"]),
)
def test_requests_of_any_text_are_answered_or_refused(
    server: Server, method: str, path: str, headers: list[tuple[str, str]], body: bytes, ending: str
) -> None:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
    data = (ending.join(lines) + 2 * ending).encode("utf-8", "surrogatepass") + body
    assert not say(server, data).startswith(b"HTTP/1.1 500"), data


def test_after_all_that_the_server_is_unhurt(server: Server) -> None:
    unhurt(server, descriptors(server))


def test_frames_of_any_kind_end_their_own_stream_alone(server: Server) -> None:
    """RFC 6455 forbids most of this; a client of ours never says anything."""
    with connect(f"ws{server.url[4:]}/summary", max_size=None) as bystander:
        fds = descriptors(server)
        before = resident(server)
        chosen = random.Random(7)
        for _ in range(120):
            with socket.create_connection(("127.0.0.1", server.port), WAIT) as sock:
                sock.sendall(UPGRADE.replace(b"/api/v1/summary?init", b"/api/v1/summary"))
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(65536)
                assert head.startswith(b"HTTP/1.1 101")
                frame = bytearray(chosen.randbytes(chosen.choice((1, 2, 6, 14, 60, 2000))))
                if chosen.random() < 0.6:  # a beginning that is right: opcode, masked, some length
                    frame[0] = chosen.choice((0x81, 0x82, 0x88, 0x89, 0x8A, 0x01, 0x80, 0xF1))
                    if len(frame) > 1:
                        frame[1] = 0x80 | chosen.choice((0, 5, 125, 126, 127))
                try:
                    sock.sendall(frame)
                    sock.shutdown(socket.SHUT_WR)
                    sock.settimeout(WAIT)
                    while sock.recv(65536):
                        pass
                except (ConnectionResetError, BrokenPipeError):
                    continue
        run_id = server.schedule({"job_id": "echo"})
        while run_id not in str(bystander.recv(timeout=WAIT)):
            pass
        unhurt(server, fds)
        assert resident(server) - before < 30 << 20


def test_half_sent_requests_keep_nobody_out(server: Server) -> None:
    """More of them than the server serves at once, all held open. Who was there before stays as well."""
    big = server.schedule({"job_id": "big"})
    server.until(big, "success")
    fds = descriptors(server)
    assert server.process is not None
    tasks = Path(f"/proc/{server.process.pid}/task")
    threads = len(list(tasks.iterdir()))
    body = b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
    held: list[socket.socket] = []
    with connect(f"ws{server.url[4:]}/summary", max_size=None) as stream, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that most of the answer waits
        reader.settimeout(WAIT)
        reader.connect(("127.0.0.1", server.port))
        reader.sendall(
            b"GET /api/v1/runs/%s/output/output HTTP/1.1\r\nHost: localhost\r\n" % big.encode()
            + b"Connection: close\r\n\r\n"
        )
        assert reader.recv(12) == b"HTTP/1.1 200"
        try:
            for count in range(300):
                held.append(socket.create_connection(("127.0.0.1", server.port), WAIT))
                held[-1].sendall((UPGRADE[:40], body, b"")[count % 3])
                if count % 30 == 0:  # each on a connection of its own
                    assert requests.get(f"{server.url}/jobs", timeout=WAIT).status_code == 200
            run_id = server.schedule({"job_id": "echo"})
            while run_id not in str(stream.recv(timeout=WAIT)):
                pass
            assert len(list(tasks.iterdir())) < threads + 100
            for sock in held[:2]:  # the oldest have made room, which is not what befalls who is waited for
                assert sock.recv(13) == b"HTTP/1.1 503 "
            size = 12
            while piece := reader.recv(65536):
                size += len(piece)
            assert size > 8_000_000
        finally:
            for sock in held:
                sock.close()
    assert (
        1 <= server.log().count("whose request had not arrived") < 100
    )  # 10 a minute; then they are counted
    unhurt(server, fds)
