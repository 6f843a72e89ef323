"""Our agent under a server that is not ours: procstar.agent.server of procstar 0.4.3, over TLS."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_peer import Agent
from certificates import certificate

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / ".venv" / "procstar"
CAPTURED = [
    ["stdout", {"capture": {"mode": "tempfile", "encoding": None, "attached": False}}],
    ["stderr", {"dup": {"fd": 1}}],
]
INTERVAL = ["--connect-interval-start", "0.1", "--connect-interval-max", "0.5"]


class Reference:
    """The server's process; `server.start(proc_id="p", spec={...})` is a command of reference_server.py."""

    def __init__(self, port: int, cert: Path, token: str = "s3cret") -> None:
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "reference_server.py"), str(port)],
            env=os.environ
            | {"PYTHONPATH": str(PACKAGE), "PROCSTAR_AGENT_CERT": str(cert), "PROCSTAR_AGENT_TOKEN": token},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._answer() == "listening"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server has ended"
        return json.loads(line)

    def __getattr__(self, command: str) -> Any:
        def ask(raising: bool = False, **fields: Any) -> Any:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps([command, fields]) + "\n")
            self.process.stdin.flush()
            answer = self._answer()
            raised = answer if isinstance(answer, dict) and "raised" in answer else None
            assert raised is None or raising, raised
            return answer

        return ask

    def run(self, proc_id: str, argv: list[str], **spec: Any) -> Any:
        self.start(proc_id=proc_id, spec={"argv": argv, "fds": CAPTURED} | spec)
        return self.final(proc_id=proc_id)

    def output(self, proc_id: str, **fields: Any) -> bytes:
        return base64.b64decode(self.data(proc_id=proc_id, **fields)["data"])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module", autouse=True)
def package() -> None:
    """`make` installs it before the tests; whoever runs them by hand gets it here."""
    done = subprocess.run(["make", "-s", ".venv/procstar/made"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"the package procstar is needed: {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(cert: Path) -> Iterator[Reference]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    server = Reference(port, cert)
    yield server
    server.kill()


def agent_of(server: Reference, cert: Path, *options: str, token: str = "s3cret") -> Agent:
    return Agent(
        *("--agent", "--agent-host", "localhost", "--agent-port", str(server.port)),
        *("--conn-id", "ours", *INTERVAL, *options),
        plain=False,
        env={"PROCSTAR_AGENT_CERT": str(cert), "PROCSTAR_AGENT_TOKEN": token},
    )


@pytest.fixture
def agent(server: Reference, cert: Path) -> Iterator[Agent]:
    agent = agent_of(server, cert)
    yield agent
    agent.kill()


def test_a_program_is_started_read_and_deleted(server: Reference, agent: Agent) -> None:
    first = server.start(proc_id="p", spec={"argv": ["/bin/echo", "hello"], "fds": CAPTURED})
    assert first["state"] in ("running", "terminated") and first["pid"] > 0
    (record,) = server.connections().values()
    assert record["shutdown_state"] == "active" and record["info"]["stats"]["connected"]
    assert record["info"]["proc"]["pid"] == agent.process.pid
    res = first if first["status"] else server.final(proc_id="p")
    assert res["status"]["exit_code"] == 0
    assert res["fds"] == {
        "stderr": None,
        "stdout": {"type": "detached", "length": 6, "encoding": "base64"},
    }
    assert server.data(proc_id="p") == {
        "fd": "stdout",
        "start": 0,
        "stop": 6,
        "encoding": None,
        "data": base64.b64encode(b"hello\n").decode(),
    }
    assert server.output("p", start=2, stop=4) == b"ll"
    assert server.delete(proc_id="p") == []
    # The record is gone at the agent too, so that its ID is free.
    assert server.run("p", ["/bin/false"])["status"]["exit_code"] == 1


def test_a_signal_ends_a_program(server: Reference, agent: Agent) -> None:
    server.start(proc_id="p", spec={"argv": ["/bin/sleep", "60"], "fds": CAPTURED})
    server.send_signal(proc_id="p", signum=int(signal.SIGTERM))
    res = server.final(proc_id="p")
    assert (res["status"]["signum"], res["status"]["signal"]) == (15, "SIGTERM")
    server.send_signal(proc_id="p", signum=15)
    assert server.result(raising=True, proc_id="p") == {
        "raised": "AgentMessageError",
        "text": "agent error response to message: no process",
    }


def test_what_cannot_be_started_is_an_error_that_the_server_understands(
    server: Reference, agent: Agent
) -> None:
    res = server.run("p", ["/no/such"])
    assert res["state"] == "error" and res["status"]["exit_code"] == 63
    assert res["errors"] == ["execve failed: /no/such: No such file or directory (os error 2)"]
    for proc_id, spec, text in (
        ("q", {"argv": []}, "argv"),
        ("r", {"argv": ["/bin/true"], "fds": [["x", {"null": {}}]]}, "bad fd: x"),
        ("s", {"argv": ["/bin/true"], "sudo": True}, "sudo"),
    ):
        answer = server.start(raising=True, proc_id=proc_id, spec=spec)
        assert answer["raised"] == "AgentMessageError" and text in answer["text"], answer
    assert server.connections(count=1), "the server has closed the connection over an answer"


def test_output_of_64_mib_comes_in_one_message(server: Reference, agent: Agent) -> None:
    size = 64 << 20
    res = server.run("p", ["/bin/sh", "-c", f"yes 0123456789abcde | head -c {size}"])
    assert res["fds"]["stdout"]["length"] == size
    data = server.output("p")
    assert len(data) == size and data == b"0123456789abcde\n" * (size // 16)


def test_programs_go_on_while_the_connection_is_cut(server: Reference, agent: Agent, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    server.start(
        proc_id="p", spec={"argv": ["/bin/sh", "-c", f"echo one; read x < {gate}; echo two"], "fds": CAPTURED}
    )
    server.cut(conn_id="ours")
    (record,) = server.connections(num_connections=2).values()
    assert record["info"]["stats"]["num_connections"] == 2
    assert server.result(proc_id="p")["state"] == "running"
    gate.write_text("\n")
    assert server.final(proc_id="p")["status"]["exit_code"] == 0
    assert server.output("p") == b"one\ntwo\n"
    assert server.delete(proc_id="p") == []


def test_programs_outlive_the_server_and_are_found_by_the_next(
    server: Reference, agent: Agent, cert: Path
) -> None:
    server.start(proc_id="p", spec={"argv": ["/bin/sleep", "60"], "fds": CAPTURED})
    server.start(proc_id="q", spec={"argv": ["/bin/sh", "-c", "echo kept"], "fds": CAPTURED})
    server.kill()
    second = Reference(server.port, cert)
    try:
        for proc_id in ("p", "q"):
            assert second.reconnect(conn_id="ours", proc_id=proc_id) is None
        assert second.result(proc_id="p")["state"] == "running"
        second.send_signal(proc_id="p", signum=9)
        assert second.final(proc_id="p")["status"]["signal"] == "SIGKILL"
        assert second.result(proc_id="q")["state"] == "terminated" and second.output("q") == b"kept\n"
        assert second.delete(proc_id="p") == ["q"]
        assert second.delete(proc_id="q") == []
    finally:
        second.kill()


def test_a_draining_agent_leaves_with_its_last_record(server: Reference, agent: Agent) -> None:
    server.run("p", ["/bin/true"])
    agent.signal(signal.SIGUSR1)
    server.connections(shutdown_state="idling")
    refused = server.start(raising=True, proc_id="q", spec={"argv": ["/bin/true"]}, timeout=0)
    assert refused["raised"] == "NoOpenConnectionInGroup"
    server.delete(proc_id="p")
    assert server.connections(count=0) == {}
    assert agent.end()[0] == 0


def test_an_agent_with_another_token_is_refused(server: Reference, cert: Path) -> None:
    agent = agent_of(server, cert, "--connect-count-max", "2", token="guess")
    try:
        assert agent.end()[0] == 1
    finally:
        agent.kill()
    assert server.connections(count=0) == {}
