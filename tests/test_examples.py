"""The example jobs, on a real server with a real agent: each comes to the end that its text promises."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from server import ENDS, PROGRAM, ROOT, Server

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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("examples") / "copy"
    shutil.copytree(ROOT / "jobs.example", directory, ignore=shutil.ignore_patterns("*.db*"))
    with Server(directory).running() as server:
        yield server


def test_every_example_has_a_promise() -> None:
    assert {path.stem for path in (ROOT / "jobs.example" / "jobs").glob("*.yaml")} == set(EXPECTED)


def test_the_examples_are_right() -> None:
    argv = [sys.executable, PROGRAM, "check-jobs", str(ROOT / "jobs.example" / "jobs")]
    argv += ["--config", str(ROOT / "jobs.example" / "apsis.yaml")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("job_id", EXPECTED)
def test_an_example_comes_to_its_end(server: Server, job_id: str) -> None:
    state, output = EXPECTED[job_id]
    params = requests.get(f"{server.url}/jobs/{job_id}", timeout=60).json()["params"]
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
    server.until_printed(run_id, b"first\n")
    assert requests.post(f"{server.url}/runs/{run_id}/stop", timeout=60).status_code == 200
    server.until(run_id, *ENDS)


def test_a_killed_server_loses_neither_the_program_nor_its_output(server: Server) -> None:
    program = {"type": "procstar-shell", "command": "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"}
    run_id = server.schedule({"job": {"program": program}})
    server.until(run_id, "running")
    server.kill()
    server.start()
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert server.output(run_id) == b"1\n2\n3\n4\n5\n6\n"
    assert "reconnecting" in server.messages(run_id)


def test_the_command_line_makes_follows_and_shows_a_run(server: Server) -> None:
    made = server.command("schedule", "now", "hello", "--wait", "--format", "json")
    assert made.returncode == 0, made.stderr
    run = json.loads(made.stdout)
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
    argv = [sys.executable, PROGRAM, "--port", "1", "jobs"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no server at" in done.stderr and "Traceback" not in done.stderr


def test_a_port_in_use_is_a_sentence_and_exit_status_1(server: Server, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "apsis.yaml").write_text("job_dir: jobs\n")
    argv = [sys.executable, PROGRAM, "serve", "--config", str(tmp_path / "apsis.yaml")]
    done = subprocess.run([*argv, "--port", str(server.port)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and str(server.port) in done.stderr


def test_make_run_is_ended_by_ctrl_c_but_its_programs_are_not(tmp_path: Path) -> None:
    server = Server(tmp_path)
    args = f"--port {server.port} --override database.path={tmp_path}/apsis.db"
    argv = ["make", "--old-file", ".venv/installed", "run", f"ARGS={args}"]

    def start() -> None:
        with open(tmp_path / "server.log", "ab") as log:
            server.process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        server.await_running()

    def ctrl_c() -> None:
        """What a terminal does: the signal goes to all that was started there."""
        assert server.process is not None
        os.killpg(server.process.pid, signal.SIGINT)
        server.process.wait(60)

    try:
        start()
        assert set(EXPECTED) <= {job["job_id"] for job in server.get("/jobs")}
        command = f"echo begun; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo done"
        run_id = server.schedule({"job": {"program": {"type": "procstar-shell", "command": command}}})
        server.until_printed(run_id, b"begun\n")
        ctrl_c()
        log = server.log()
        assert "Traceback" not in log and "KeyboardInterrupt" not in log, log
        (tmp_path / "go").touch()
        start()
        assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
        assert server.output(run_id) == b"begun\ndone\n"
        ctrl_c()
        # At once: it would wait for a server to fetch what it knows of the last of the example jobs.
        os.kill(json.loads((tmp_path / "apsis.db.agent.json").read_text())["pid"], signal.SIGKILL)
    finally:
        if server.process is not None and server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait(60)
        server.end_agent()
