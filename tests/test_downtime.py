"""A server that was down: what was due meanwhile is made up for, recorded as missed, or refused."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from server import ENDS, Server

HOUR = 3600
INSTANT = r"[-0-9]+T[:0-9]+\+00:00"
DOWN = rf"the server was down from {INSTANT} to {INSTANT}"
JOBS = {"tick": "schedule: {type: interval, interval: 1h}\nprogram: {type: no-op}\n"}


def set_clock_back(server: Server, hours: int) -> None:
    """As if the server, which is down, had last been running that long ago."""
    with closing(sqlite3.connect(server.directory / "apsis.db")) as db, db:
        assert db.execute("UPDATE meta SET value = value - ? WHERE name = 'clock'", (hours * HOUR,)).rowcount


def ends(server: Server, job_id: str = "tick") -> list[tuple[str, str]]:
    """State and last log line of each run of what was due of a job, by schedule time."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    runs = server.get("/runs", job_id=job_id)["runs"].values()
    due = sorted((run["times"]["schedule"], run["run_id"]) for run in runs)
    return [(server.until(i, *ENDS)["state"], server.messages(i)[-1]) for at, i in due if at <= now]


def test_all_that_was_due_meanwhile_runs_at_start(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS)
    with server.running():
        before = len(ends(server))
        server.end()
        set_clock_back(server, 5)
        server.start()
        assert ends(server)[before:] == 5 * [("success", "success")]
        made_up = server.get("/search/runs", q="tick state:success")["runs"]
        assert re.search(f" W {DOWN}\n", (tmp_path / "server.log").read_text())
        said = [
            line for run_id in made_up for line in server.messages(run_id) if "the server was down" in line
        ]
        assert len(said) == 5 and all(re.match(rf"\d+ s late: {DOWN}", line) for line in said), said
        assert made_up.keys() == server.get("/search/runs", q="alarm:late")["runs"].keys()
        (why,) = {run["reasons"]["late"] for run in made_up.values()}
        assert re.fullmatch(DOWN, why), why
        assert all(run["alarms"] == ["late"] for run in made_up.values())
        shown = server.command("search", "alarm:late").stdout
        assert all(run_id in shown for run_id in made_up) and shown.count(" late") == 5


def test_what_is_older_than_max_age_is_shown_as_missed(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS, "schedule: {max_age: 150 min}\n")
    with server.running():
        server.end()
        set_clock_back(server, 5)
        server.start()
        found = ends(server)
        missed = [message for state, message in found if state == "skipped"]
        assert len(missed) in (2, 3)  # how many depends on the minute at which this test runs
        assert [state for state, _ in found[len(missed) :]] == (5 - len(missed)) * ["success"]
        assert all(re.match(f"skipped: missed: {DOWN}; due ", m) for m in missed)
        assert all(m.endswith("s ago, schedule.max_age is 9000 s") for m in missed)
        assert len(server.get("/search/runs", q="alarm:missed")["runs"]) == len(missed)
        shown = server.command("runs", "--job", "tick", "-s", "skipped")
        assert shown.stdout.count("[-]") == len(missed), shown.stdout + shown.stderr


def test_what_is_made_up_for_is_as_the_servers_file_and_the_job_say(tmp_path: Path) -> None:
    jobs = {**JOBS, "own": JOBS["tick"] + "catch_up: {policy: all, cap: 2}\n"}
    server = Server(tmp_path, jobs, "schedule: {catch_up: latest}\n")
    with server.running():
        server.end()
        set_clock_back(server, 5)
        server.start()
        for job_id, ran, why in (
            ("tick", 1, "catch_up is latest"),
            ("own", 2, "catch_up.cap is 2 runs of a job"),
        ):
            found = ends(server, job_id)
            assert [state for state, _ in found] == (5 - ran) * ["skipped"] + ran * ["success"]
            assert all(re.fullmatch(f"skipped: missed: {DOWN}; {why}", m) for _, m in found[:-ran]), found
        missed = server.get("/search/runs", q="alarm:missed tick")["runs"]
        run_id, run = next(iter(missed.items()))
        assert len(missed) == 4 and run["alarms"] == ["missed"]
        assert run["reasons"]["missed"].endswith("; catch_up is latest")
        assert f"missed: {run['reasons']['missed']}" in server.command("run", run_id).stdout
        assert server.get("/jobs/own")["catch_up"] == {"policy": "all", "cap": 2}


def test_schedules_go_on_from_since_if_that_is_later_than_where_the_server_stopped(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS)
    with server.running():
        server.end()
        set_clock_back(server, 5)
        now = datetime.now(UTC)
        since = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
        long_ago = since - timedelta(days=9)
        server.start("-o", f"schedule.since='{since.isoformat()}'")
        made = len(ends(server))
        assert made in (3, 4)  # one more if an hour was full meanwhile
        server.end()
        set_clock_back(server, 1)
        server.start("-o", f"schedule.since='{long_ago.isoformat()}'")
        assert len(ends(server)) in (made, made + 1)  # an occurrence that was run is not run again


def test_a_server_that_stood_still_says_so_of_what_it_began_late(tmp_path: Path) -> None:
    server = Server(tmp_path, {"tick": JOBS["tick"].replace("1h", "1s")})
    with server.running():
        assert server.process is not None
        while not ends(server):
            pass
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(4)  # of which nothing can be waited for
        server.process.send_signal(signal.SIGCONT)
        while not (late := server.get("/search/runs", q="alarm:late")["runs"]):
            pass
        assert all("the server stood still from " in run["reasons"]["late"] for run in late.values()), late


def test_with_on_max_age_fail_the_server_does_not_start_and_says_how_to(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS, "schedule: {max_age: 150 min, on_max_age: fail}\n")
    with server.running():
        server.end()
        set_clock_back(server, 5)
        refused = subprocess.run(
            server.argv("serve", "--config", str(tmp_path / "apsis.yaml")),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert refused.returncode == 1
        last = refused.stderr.splitlines()[-1]
        assert "schedule.max_age: the server was last running at " in last
        assert last.endswith("to go on without what was missed since, serve with -o schedule.since=now")
        server.start("-o", "schedule.since=now")
        assert ends(server) == []
