"""The local HTTP service of an agent."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from agent_peer import Agent, Peer

CAPTURED = {"argv": ["/bin/echo", "hi"], "fds": [["stdout", {"capture": {"attached": False}}]]}
SLEEPING = {"argv": ["/bin/sleep", "60"]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    agent = Agent("--serve", "--serve-port", str(port))
    assert agent.process.stderr is not None
    while "serving" not in agent.process.stderr.readline():
        pass
    yield f"http://127.0.0.1:{port}/procs"
    agent.kill()


def start(url: str, **specs: Any) -> requests.Response:
    return requests.post(url, json={"specs": specs}, timeout=60)


def ended(url: str, proc_id: str) -> dict[str, Any]:
    while True:
        res: dict[str, Any] = requests.get(f"{url}/{proc_id}", timeout=60).json()["data"]
        if res["status"] is not None:
            return res


def error(response: requests.Response) -> tuple[int, str]:
    body = response.json()["errors"]
    assert body["status"] == response.status_code
    return response.status_code, body["detail"]


def test_a_program_is_started_looked_at_and_deleted(url: str) -> None:
    assert start(url, p=CAPTURED).status_code == 200
    assert ended(url, "p")["status"]["exit_code"] == 0
    assert list(requests.get(url, timeout=60).json()["data"]) == ["p"]
    output = requests.get(f"{url}/p/output/stdout/data", timeout=60)
    assert output.content == b"hi\n" and output.headers["Content-Type"] == "application/octet-stream"
    assert requests.delete(f"{url}/p", timeout=60).json() == {"data": None}
    assert error(requests.get(f"{url}/p", timeout=60))[0] == 404


@pytest.mark.parametrize("name", ["SIGTERM", "term", "15"])
def test_a_program_is_signalled_by_name_or_number(url: str, name: str) -> None:
    start(url, s=SLEEPING)
    assert error(requests.delete(f"{url}/s", timeout=60)) == (400, "process running: s")
    assert requests.post(f"{url}/s/signals/{name}", timeout=60).status_code == 200
    assert ended(url, "s")["status"]["signal"] == "SIGTERM"
    requests.delete(f"{url}/s", timeout=60)


def test_what_cannot_be_done_is_said_with_a_status(url: str) -> None:
    for method, path, status in [
        ("GET", "/nobody", 404),
        ("POST", "/nobody/signals/SIGTERM", 404),
        ("GET", "/nobody/output/stdout/data", 404),
        ("GET", "/a/b/c", 404),
        ("PUT", "", 405),
        ("POST", "/p", 405),
        ("GET", "/nobody/signals/SIGTERM", 405),
        ("POST", "/nobody/signals/SIGNOT", 400),
    ]:
        assert error(requests.request(method, url + path, timeout=60))[0] == status, (method, path)
    assert error(start(url, p={"argv": []}))[0] == 400
    text = {"Content-Type": "text/plain"}
    assert error(requests.post(url, data=b'{"specs": {}}', headers=text, timeout=60))[0] == 400
    for body in (b"{", b"[]", b"{}", b'{"specs": 1}', b"[" * 100_000):
        header = {"Content-Type": "application/json"}
        assert error(requests.post(url, data=body, headers=header, timeout=60))[0] == 400


def test_no_page_of_another_origin_and_no_rebound_name_may_ask(url: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        assert error(requests.post(f"{url}/p/signals/9", headers=headers, timeout=60))[0] == 403


def test_large_output_and_pipelined_requests_arrive_whole(url: str) -> None:
    spec = CAPTURED | {"argv": ["/usr/bin/head", "-c", "5000000", "/dev/zero"]}
    start(url, big=spec)
    ended(url, "big")
    port = int(url.split(":")[2].split("/")[0])
    request = f"GET /procs/big/output/1/data HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall((request + "\r\n" + request + "Connection: close\r\n\r\n").encode())
        received = 0
        while data := sock.recv(1 << 20):
            received += len(data)
    assert 10_000_000 < received < 10_001_000
    requests.delete(f"{url}/big", timeout=60)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /procs HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET /procs HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST /procs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"GET /" + b"x" * 20_000, b"431"),
    ],
)
def test_a_request_that_cannot_be_read_ends_its_connection(url: str, raw: bytes, status: bytes) -> None:
    port = int(url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(60)
        sock.sendall(raw)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_changes_by_http_are_told_to_the_server() -> None:
    peer = Peer()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    agent = Agent.of(peer, "--serve", "--serve-port", str(port))
    try:
        link = peer.link()
        url = f"http://127.0.0.1:{port}/procs"
        start(url, p=CAPTURED)
        assert link.final("p")["status"]["exit_code"] == 0
        requests.delete(f"{url}/p", timeout=60)
        link.wait("ProcDelete", proc_id="p")
    finally:
        agent.kill()
        peer.close()


def test_a_client_that_cannot_be_accepted_waits_and_costs_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    agent = Agent("--serve", "--serve-port", str(port))
    pid = agent.process.pid
    try:
        assert agent.process.stderr is not None
        while "serving" not in agent.process.stderr.readline():
            pass
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            while "cannot accept a connection" not in agent.process.stderr.readline():
                pass
            began = used(pid)
            time.sleep(0.5)
            assert used(pid) - began < 0.1
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            client.sendall(b"GET /procs HTTP/1.0\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    finally:
        agent.kill()


def used(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
