"""The example jobs, on a real server with a real agent: each comes to the end that its text promises."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parent.parent
ENDS = ("success", "failure", "error", "skipped")
EXPECTED = {
    "hello": ("success", b"Hello, world!\n"),
    "every-20-seconds": ("success", b"the time is X\n"),
    "crontab": ("success", None),
    "nightly-load": ("success", b"loading 2026-03-01\n"),
    "nightly-report": ("success", b"report of 2026-03-02\n"),
    "workdays": ("success", None),
    "office-hours": ("success", None),
    "time-limit": ("failure", None),
    "service": ("success", b"open\nclosing the shop\n"),
    "failing": ("failure", b"no such luck\n"),
    "first-step": ("success", None),
    "second-step": ("success", None),
    "much-output": ("success", b"".join(b"line %d\n" % i for i in range(1, 51))),
}
ARGS = {"date": "2026-03-02", "time": "X"}


class Server:
    """`apsis serve` on a copy of the examples, as a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [
            sys.executable,
            str(ROOT / "apsis.py"),
            "serve",
            "--config",
            str(self.directory / "apsis.yaml"),
        ]
        with open(self.directory / "server.log", "ab") as log:
            self.process = subprocess.Popen([*argv, "--port", str(self.port)], stderr=log, stdout=log)
        end = time.monotonic() + 30
        while True:
            try:
                requests.get(f"{self.url}/running", timeout=20).raise_for_status()
                return
            except requests.ConnectionError:
                assert self.process.poll() is None and time.monotonic() < end, self.log()
                time.sleep(0.05)

    def log(self) -> str:
        return (self.directory / "server.log").read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def end_agent(self) -> None:
        identity = json.loads((self.directory / "apsis.db.agent.json").read_text())
        os.kill(identity["pid"], signal.SIGQUIT)

    def schedule(self, body: dict[str, Any]) -> str:
        answer = requests.post(f"{self.url}/runs", json=body, timeout=20)
        assert answer.status_code == 200, answer.text
        return str(next(iter(answer.json()["runs"])))

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"{self.url}/runs/{run_id}", timeout=20).json()["runs"][run_id]
        return found

    def until(self, run_id: str, *states: str) -> dict[str, Any]:
        end = time.monotonic() + 40
        while (run := self.run(run_id))["state"] not in states:
            assert time.monotonic() < end, (run, self.log())
            time.sleep(0.05)
        return run

    def output(self, run_id: str) -> bytes:
        return requests.get(f"{self.url}/runs/{run_id}/output/output", timeout=20).content

    def messages(self, run_id: str) -> list[str]:
        entries = requests.get(f"{self.url}/runs/{run_id}/log", timeout=20).json()["run_log"]
        return [entry["message"] for entry in entries]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(ROOT / "apsis.py"), "--port", str(self.port), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("examples") / "copy"
    shutil.copytree(ROOT / "jobs.example", directory, ignore=shutil.ignore_patterns("*.db*"))
    server = Server(directory)
    server.start()
    yield server
    assert server.end() == 0
    server.end_agent()


def test_every_example_has_a_promise() -> None:
    assert {path.stem for path in (ROOT / "jobs.example" / "jobs").glob("*.yaml")} == set(EXPECTED)


def test_the_examples_are_right() -> None:
    argv = [sys.executable, str(ROOT / "apsis.py"), "check-jobs", str(ROOT / "jobs.example" / "jobs")]
    argv += ["--config", str(ROOT / "jobs.example" / "apsis.yaml")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("job_id", EXPECTED)
def test_an_example_comes_to_its_end(server: Server, job_id: str) -> None:
    state, output = EXPECTED[job_id]
    params = requests.get(f"{server.url}/jobs/{job_id}", timeout=20).json()["params"]
    body: dict[str, Any] = {"job_id": job_id, "args": {p: ARGS[p] for p in params}}
    if job_id == "nightly-report":  # waits for it
        server.until(server.schedule({"job_id": "nightly-load", "args": body["args"]}), *ENDS)
    if job_id == "service":
        body["times"] = {"stop": "+2s"}
    run_id = server.schedule(body)
    assert server.until(run_id, *ENDS)["state"] == state, server.messages(run_id)
    if output is not None:
        assert server.output(run_id) == output


def test_output_can_be_seen_while_the_program_runs(server: Server) -> None:
    program = {"type": "procstar-shell", "command": "echo first; read -t 30 < <(sleep 30); echo last"}
    run_id = server.schedule({"job": {"program": program}})
    server.until(run_id, "running")
    end = time.monotonic() + 20
    while server.output(run_id) != b"first\n":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert requests.post(f"{server.url}/runs/{run_id}/stop", timeout=20).status_code == 200
    server.until(run_id, *ENDS)


def test_a_killed_server_loses_neither_the_program_nor_its_output(server: Server) -> None:
    program = {"type": "procstar-shell", "command": "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"}
    run_id = server.schedule({"job": {"program": program}})
    server.until(run_id, "running")
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server.start()
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert server.output(run_id) == b"1\n2\n3\n4\n5\n6\n"
    assert "reconnecting" in server.messages(run_id)


def test_the_command_line_makes_follows_and_shows_a_run(server: Server) -> None:
    made = server.command("schedule", "now", "hello", "--wait", "--format", "json")
    assert made.returncode == 0, made.stderr
    (run,) = json.loads(made.stdout)
    assert server.command("output", run["run_id"], "-f").stdout == "Hello, world!\n"
    assert "success" in server.command("log", run["run_id"]).stdout
    assert run["run_id"] in server.command("runs", "-j", "hello").stdout
    assert "hello" in server.command("jobs").stdout
    assert server.command("watch", run["run_id"]).returncode == 0
    again = server.command("mark", "failure", run["run_id"])
    assert again.returncode == 0, again.stdout
    assert server.command("watch", run["run_id"]).returncode == 1
    skipped = server.command("skip", run["run_id"])
    assert skipped.returncode == 1
    assert "can't skip" in skipped.stdout
    assert server.command("adhoc", "now", "/usr/bin/echo", "a  b").returncode == 0


def test_no_server_is_a_sentence() -> None:
    argv = [sys.executable, str(ROOT / "apsis.py"), "--port", "1", "jobs"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no server at" in done.stderr and "Traceback" not in done.stderr


def test_a_port_in_use_is_a_sentence_and_exit_status_1(server: Server, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "apsis.yaml").write_text("job_dir: jobs\n")
    argv = [sys.executable, str(ROOT / "apsis.py"), "serve", "--config", str(tmp_path / "apsis.yaml")]
    done = subprocess.run([*argv, "--port", str(server.port)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and str(server.port) in done.stderr
