"""Both commands, line by line, where no other test of the command line is about it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import requests
from server import PROGRAM, Server, environment

from apsislib import yamlio

JOBS = {
    "load": "params: [date]\nprogram: {type: no-op}\n",
    "slow": "program: {type: no-op, duration: 600}\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("rest"), JOBS).running() as server:
        yield server


def apsisctl(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROGRAM, *words], capture_output=True, text=True, env=environment(), cwd=cwd
    )


def test_a_stop_time_is_shown(server: Server) -> None:
    made = server.command("schedule", "2036-01-01T00:00:00Z", "slow", "--stop-time", "90m").stdout
    assert "[O] for 2036-01-01 00:00:00 stop at 2036-01-01 01:30:00\n" in made
    run_id = made.split()[1]
    server.command("skip", run_id)
    assert "stop at" not in server.command("run", run_id).stdout
    run_id = server.command("schedule", "now", "slow", "--stop-time", "2036-01-01T00:00:00Z").stdout.split()[
        1
    ]
    server.until(run_id, "running")
    shown = server.command("run", run_id, TZ="America/New_York").stdout
    assert " elapsed 0:0" in shown and shown.endswith(" stop at 2035-12-31 19:00:00\n\n")
    server.command("stop", run_id)


def test_runs_that_are_known_are_shown_beside_one_that_is_not(server: Server) -> None:
    run_id = server.schedule({"job_id": "load", "args": {"date": "2031-01-01"}})
    done = server.command("run", run_id, "r99999")
    assert done.returncode == 1
    assert f"run {run_id} load(date=2031-01-01)" in done.stdout
    assert "Error: unknown run r99999 [API status: 404]" in done.stdout
    done = server.command("run", "r99999", run_id, "--format", "json")
    assert done.returncode == 1 and [run["run_id"] for run in json.loads(done.stdout)] == [run_id]
    assert "unknown run r99999" in done.stderr
    assert server.command("run", "-v", "r99999").returncode == 1


def test_an_output_that_was_lost_in_part_is_an_error(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with server.running():
        run_id = server.schedule({"job": {"program": "echo one"}})
        server.until(run_id, "success")
        server.end()
        # As programs/fetching.py has it where an agent does not give what a program has printed.
        with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
            why = "3 of its 7 bytes were lost with the agent"
            db.execute("UPDATE runs SET meta = json_set(meta, '$.program.output_incomplete', ?)", (why,))
        server.start()
        for follow in ([], ["-f"]):
            done = server.command("output", run_id, *follow)
            assert (done.returncode, done.stdout) == (1, "one\n")
            assert done.stderr == f"error: the output of {run_id} is incomplete: {why}\n"


@pytest.mark.parametrize("program", ["echo one", ["/bin/echo", "one"]])
def test_programs_are_taken_as_older_clients_send_them(server: Server, program: object) -> None:
    answer = server.post("/runs", {"job": {"program": program}, "times": {"schedule": "now"}})
    (run_id,) = answer["runs"]
    assert server.until(run_id, "success", "failure", "error")["state"] == "success"
    assert server.output(run_id) == b"one\n"


def test_requests_are_logged_on_standard_output(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS)
    argv = [sys.executable, PROGRAM, "serve", "--config", str(tmp_path / "apsis.yaml")]
    with open(tmp_path / "out.log", "wb") as out, open(tmp_path / "server.log", "wb") as err:
        server.process = subprocess.Popen([*argv, "--port", str(server.port)], stdout=out, stderr=err)
    try:
        server.await_running()
        server.get("/jobs", label="a b")
        requests.post(f"{server.url}/runs/r9/skip", timeout=30)
        requests.get(f"{server.url}/alive", headers={"Host": "evil.example"}, timeout=30)
        assert server.end() == 0
    finally:
        server.end_agent()
    lines = [line.split(" ", 1)[1].strip() for line in (tmp_path / "out.log").read_text().splitlines()]
    lines = [line.removeprefix("access").strip() for line in lines if "/running" not in line]
    assert lines == [
        "I 200 GET /api/v1/jobs?label=a+b (127.0.0.1)",
        "I 404 POST /api/v1/runs/r9/skip (127.0.0.1)",
        "I 403 GET /api/v1/alive (127.0.0.1)",
    ]
    assert "/api/v1" not in server.log()


def test_a_server_whose_standard_output_nobody_reads_goes_on(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS)
    argv = [sys.executable, PROGRAM, "serve", "--config", str(tmp_path / "apsis.yaml")]
    reading, writing = os.pipe()
    with open(tmp_path / "server.log", "wb") as err:
        server.process = subprocess.Popen([*argv, "--port", str(server.port)], stdout=writing, stderr=err)
    os.close(writing)
    os.close(reading)
    try:
        server.await_running()
        assert server.get("/alive") == {} and server.get("/alive") == {}
        assert server.end(signal.SIGTERM) == 0
    finally:
        server.end_agent()
    assert server.log().count("requests can't be logged: ") == 1 and "Traceback" not in server.log()


def test_a_server_whose_log_waits_for_a_reader_that_stands_still_goes_on_and_ends(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS)
    argv = [sys.executable, PROGRAM, "serve", "--config", str(tmp_path / "apsis.yaml")]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    server.process = subprocess.Popen([*argv, "--port", str(server.port)], stdout=writing, stderr=writing)
    os.close(writing)
    try:
        server.await_running()
        assert server.get("/alive") == {}
        os.set_blocking(reading, False)
        with suppress(BlockingIOError):
            while os.read(reading, 65536):
                pass
        assert server.get("/jobs")
        os.set_blocking(reading, True)
        said = os.read(reading, 65536).decode()
        assert re.match(r"\([1-9][0-9]* lines lost\)\n.* I 200 GET /api/v1/jobs ", said), said
        assert server.end(signal.SIGTERM) == 0
    finally:
        server.process.kill()  # at the latest
        os.close(reading)
        server.end_agent()


def test_check_db_takes_a_path_as_it_always_did(tmp_path: Path) -> None:
    path = tmp_path / "apsis.db"
    assert apsisctl("create", str(path)).returncode == 0
    assert apsisctl("check-db", str(path)).stdout == f"{path}: no damage found\n"
    both = apsisctl("check-db", str(path), "-d", str(path))
    assert both.returncode == 1 and "name one database" in both.stderr
    again = apsisctl("create", str(path))
    assert (again.returncode, again.stderr) == (1, f"error: {path} exists already\n")
    missing = apsisctl("check-db", str(tmp_path / "none.db"))
    assert missing.returncode == 1 and "there is no database" in missing.stderr


def test_check_jobs_answers_machines_too(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("program: {type: no-op}\n")
    (tmp_path / "bad.yaml").write_text("program:\n  type: no-op\n  duration: soon\n")
    done = apsisctl("check-jobs", str(tmp_path), "--format", "json")
    (error,) = json.loads(done.stdout)["errors"]
    assert done.returncode == 1 and (error["job_id"], error["line"]) == ("bad", 3)
    assert error["path"] == str(tmp_path / "bad.yaml") and "soon" in error["message"]
    (tmp_path / "bad.yaml").write_text("program: echo\n")
    done = apsisctl("check-jobs", str(tmp_path), "--format", "yaml")
    found = yamlio.load(done.stdout, "")
    assert done.returncode == 0 and found["errors"] == [] and "old form" in found["warnings"][0]


def test_check_jobs_looks_for_dependencies_that_nothing_schedules_and_for_cycles(tmp_path: Path) -> None:
    daily = "schedule: {type: interval, interval: 6h}\nprogram: {type: no-op}\n"
    daily += "condition: {type: dependency, job_id: %s}\n"
    for name, text in {
        "load": "program: {type: no-op}\n",
        "report": daily % "load",
        "hen": daily % "egg",
        "egg": daily % "hen",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    plain = apsisctl("check-jobs", str(tmp_path))
    assert (plain.returncode, plain.stdout) == (0, "")
    done = apsisctl("check-jobs", str(tmp_path), "--check-dependencies-scheduled")
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert sum("scheduled run report: dependency load not scheduled" in line for line in said) >= 1
    assert any("dependency cycle detected: hen → egg → hen" in line for line in said), said
    assert any("dependency cycle detected: egg → hen → egg" in line for line in said), said
    assert all(f"{tmp_path}/{line.split(':')[0]}.yaml:3: " in line for line in said), said


@pytest.mark.parametrize(
    "words, status, said",
    [
        ([], 2, "error: no command"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        (["--log", "LOUD", "jobs"], 2, "invalid choice: 'LOUD'"),
        (["check-jobs", "/nonexistent"], 2, "not a directory"),
        (["serve", "--config", "/nonexistent/apsis.yaml"], 1, "can't be read"),
        (["serve", "-o", "nonsense"], 1, "nonsense"),
        (["serve", "--port", "many"], 2, "invalid int value"),
        (["mark", "running", "r1"], 2, "not a final state"),
        (["runs", "-j", "x", "-t", "sometime"], 2, "not a span"),
    ],
)
def test_what_is_typed_wrong_is_said(words: list[str], status: int, said: str, tmp_path: Path) -> None:
    done = apsisctl(*words, cwd=tmp_path)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr


def test_a_port_in_use_is_an_exit(server: Server, tmp_path: Path) -> None:
    """The old server went on without HTTP, and ran everything twice if there were two."""
    other = Server(tmp_path, JOBS)
    done = apsisctl("serve", "--config", str(tmp_path / "apsis.yaml"), "--port", str(server.port))
    assert done.returncode == 1 and "choose another with --host and --port" in done.stderr
    other.end_agent()


def test_options_may_be_shortened_and_stand_before_the_command(server: Server) -> None:
    for words in (
        ["--log", "DEBUG", "jobs"],
        ["--host", f"127.0.0.1:{server.port}", "--log-l", "error", "jobs"],
    ):
        done = subprocess.run(
            [sys.executable, PROGRAM, *([] if "--host" in words else ["--port", str(server.port)]), *words],
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert done.returncode == 0 and "load" in done.stdout


@pytest.mark.parametrize("columns", [24, 40, 60, 80, 132])
def test_tables_fit_the_terminal(server: Server, columns: int) -> None:
    server.schedule({"job_id": "load", "args": {"date": "a-very-long-date-that-no-calendar-has-ever-seen"}})
    mine, theirs = pty.openpty()
    subprocess.run(
        server.argv("runs", "--all"), stdout=theirs, env=environment(COLUMNS=str(columns)), check=True
    )
    os.close(theirs)
    lines = os.read(mine, 65536).decode().splitlines()
    os.close(mine)
    assert len(lines) > 3 and max(map(len, lines)) <= columns
