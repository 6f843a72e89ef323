"""Operations on many runs: shown and confirmed on a terminal, done at once in a script."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from server import ENDS, Server, environment
from websockets.sync.client import connect

JOBS = {
    "etl/load": "params: [n]\nprogram: {type: no-op, duration: 600}\n",
    "daily": "params: [date]\nschedule: {type: daily, tz: UTC, calendar: Mon-Fri, daytime: '12:00:00'}\n"
    "program: {type: no-op}\n",
    "hourly": "schedule: {type: interval, interval: 1h}\nprogram: {type: no-op}\n",
    "fails": "program: {type: no-op, success: false}\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("many"), JOBS).running() as server:
        yield server


def later(server: Server, count: int, name: str) -> list[str]:
    """Runs that are scheduled for 2036."""
    body = {"job_id": "etl/load", "args": {"n": name}, "times": {"schedule": "2036-01-01T00:00:00Z"}}
    return list(server.post("/runs", body, count=str(count))["runs"])


def on_terminal(server: Server, answer: str, *words: str, columns: int = 100) -> tuple[int, str, str]:
    """(exit status, what is printed, what the terminal shows beside it) of a command that asks."""
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        server.argv(*words),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(TERM="dumb", COLUMNS=str(columns)),
    )
    os.close(theirs)
    shown = b""
    answered = False
    while True:
        try:
            piece = os.read(mine, 65536)
        except OSError:  # the other end has closed
            break
        if not piece:
            break
        shown += piece
        if not answered and b"[y/N]" in shown:
            os.write(mine, f"{answer}\n".encode())
            answered = True
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    status = process.wait(60)
    os.close(mine)
    return status, printed, shown.decode().replace("\r\n", "\n")


def states(server: Server, runs: list[str]) -> set[str]:
    return {server.run(run_id)["state"] for run_id in runs}


def test_a_search_is_shown_and_asked_about_on_a_terminal(server: Server) -> None:
    runs = later(server, 3, "ask")
    words = ("skip", "--matching", "etl n=ask state:scheduled")
    status, printed, shown = on_terminal(server, "n", *words)
    assert (status, printed) == (1, "")
    assert all(run_id in shown for run_id in runs) and "n=ask" in shown and "2036-01-01" in shown
    assert "skip 3 runs? [y/N]" in shown and "nothing is done" in shown
    assert states(server, runs) == {"scheduled"}
    status, printed, shown = on_terminal(server, "yes", *words)
    assert status == 0 and printed.endswith("skip done to 3 runs\n")
    assert states(server, runs) == {"skipped"}
    status, printed, shown = on_terminal(server, "", *words)
    assert status == 2 and "no run that could be served matches: etl n=ask state:scheduled" in shown


def test_only_what_was_shown_is_served(server: Server) -> None:
    runs = later(server, 25, "more")
    status, _, shown = on_terminal(server, "", "skip", "--matching", "n=more state:scheduled")
    assert status == 1 and "... and 5 more" in shown and "skip 25 runs?" in shown
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        server.argv("skip", "--matching", "n=more state:scheduled"),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(),
    )
    asked = b""
    while b"[y/N]" not in asked:
        asked += os.read(mine, 65536)
    late = later(server, 1, "more")
    os.write(mine, b"y\n")
    assert process.stdout is not None and b"skip done to 25 runs" in process.stdout.read()
    process.wait(60)
    os.close(theirs)
    os.close(mine)
    assert states(server, runs) == {"skipped"} and states(server, late) == {"scheduled"}


def test_a_script_is_not_asked_and_nor_is_who_says_yes(server: Server) -> None:
    runs = later(server, 2, "script")
    done = server.command("skip", "--matching", "n=script state:scheduled")
    assert (done.returncode, done.stderr) == (0, "") and states(server, runs) == {"skipped"}
    runs = later(server, 2, "yes")
    status, printed, shown = on_terminal(server, "", "skip", "-y", "--matching", "n=yes state:scheduled")
    assert (status, shown) == (0, "") and printed.endswith("skip done to 2 runs\n")


def test_a_dry_run_is_a_table_on_a_terminal(server: Server) -> None:
    (run_id,) = later(server, 1, "dry")
    mine, theirs = pty.openpty()
    subprocess.run(
        server.argv("skip", "--dry-run", run_id, "r999"), stdout=theirs, env=environment(), check=False
    )
    os.close(theirs)
    shown = os.read(mine, 65536).decode()
    os.close(mine)
    assert "run_id" in shown and "n=dry" in shown and "unknown run r999" in shown
    assert "skip would be done to 1 run, 1 can't" in shown
    assert states(server, [run_id]) == {"scheduled"}


@pytest.mark.parametrize(
    "verb", [["skip"], ["start"], ["stop"], ["signal", "TERM"], ["mark", "error"], ["rerun"]]
)
def test_machines_are_told_what_was_done_and_what_not(server: Server, verb: list[str]) -> None:
    done = server.command(*verb, "r99999", "--format", "json", "--dry-run")
    answer = json.loads(done.stdout)
    assert done.returncode == 1 and answer["operation"] == verb[0]
    assert answer["refused"] == {"r99999": "unknown run r99999"} and answer["dry_run"] is True


def test_what_is_done_for_machines_is_done(server: Server) -> None:
    runs = later(server, 2, "machine")
    done = server.command("skip", *runs, "--format", "yaml")
    assert done.returncode == 0 and f"done:\n- {runs[0]}\n- {runs[1]}\n" in done.stdout
    assert states(server, runs) == {"skipped"}
    again = server.command("skip", runs[0], "--format", "json")
    assert again.returncode == 1 and json.loads(again.stdout)["done"] == []
    marked = json.loads(server.command("mark", "success", *runs, "--format", "json").stdout)
    assert marked["done"] == runs and states(server, runs) == {"success"}
    new = json.loads(server.command("rerun", "--matching", "n=machine", "--format", "json").stdout)
    assert [run["rerun_of"] for run in new] == runs
    server.command("stop", *(run["run_id"] for run in new))


def test_a_reason_is_given_with_what_is_done(server: Server) -> None:
    (run_id,) = later(server, 1, "why")
    assert server.command("skip", run_id, "--reason", "nothing to load").returncode == 0
    assert server.messages(run_id)[-1] == "reason: nothing to load"
    done = server.command(
        "mark", "success", "--matching", "etl n=why state:skipped", "--reason", "it was there"
    )
    assert done.returncode == 0 and server.messages(run_id)[-1] == "reason: it was there"


# -- runs of a span -----------------------------------------------------------------------------------


def dates(server: Server) -> list[str]:
    found = server.get("/runs", job_id="daily")["runs"].values()
    return sorted(run["args"]["date"] for run in found if not run.get("expected"))


def test_runs_of_a_span_are_made_but_for_those_that_succeeded(server: Server) -> None:
    week = ("backfill", "daily", "2020-03-02..2020-03-08")  # Monday to Sunday
    done = server.schedule({"job_id": "daily", "args": {"date": "2020-03-03"}})
    failed = server.schedule({"job_id": "daily", "args": {"date": "2020-03-04"}})
    server.post(f"/runs/{failed}/mark/failure")
    shown = server.command(*week, "--dry-run").stdout
    assert f"date=2020-03-03  left out: {done} success" in shown
    assert shown.endswith("4 runs would be made, 1 left out: there is a run, or was a success\n")
    assert len(dates(server)) == 2

    status, _, asked = on_terminal(server, "n", *week)
    assert status == 1 and "make 4 runs? [y/N] " in asked and "nothing is done" in asked
    assert len(dates(server)) == 2
    status, printed, _ = on_terminal(server, "y", *week)
    assert status == 0 and printed.count("date=2020-03-") == 4
    days = ["2020-03-02", "2020-03-03", "2020-03-04", "2020-03-04", "2020-03-05", "2020-03-06"]
    assert dates(server) == days
    # All of it is there now; a script is not asked.
    again = server.command(*week)
    assert again.stdout == "0 runs made, 5 left out: there is a run, or was a success\n"
    assert dates(server) == days

    every = server.command(*week, "--again", "--every", "1 h", "--format", "json")
    made = json.loads(every.stdout)["made"]
    runs = [server.run(run_id) for run_id in made]
    assert [run["state"] for run in runs] == ["success", *["scheduled"] * 4]
    assert [run["args"]["date"] for run in runs] == sorted(set(days))
    server.command("skip", *made[1:])


def test_a_backfill_that_is_cut_off_says_what_it_has_made_and_leaves_out_what_lists_hide(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path, JOBS, "runs: {retention: off, lookback: 60}\n")
    with server.running():
        done = server.schedule({"job_id": "daily", "args": {"date": "2020-03-03"}})
        server.until(done, *ENDS)
        with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
            db.execute("UPDATE runs SET timestamp = timestamp - 3600 WHERE number = ?", (int(done[1:]),))
        assert server.get("/runs", job_id="daily", state="success")["runs"] == {}
        shown = server.command("backfill", "daily", "2020-03-02..2020-03-04", "--dry-run").stdout
        assert f"date=2020-03-03  left out: {done} success" in shown

        killed = server.spawn("backfill", "daily", "2017-01-01..2019-12-31", "--again", "--format", "json")
        with connect(f"ws{server.url[4:]}/summary", max_size=None) as stream:
            seen: set[str] = set()
            while len(seen) < 3:
                told = json.loads(stream.recv(60))
                seen |= {m["run_summary"]["run_id"] for m in told if m["type"] == "run_transition"}
        server.kill()
        printed, said = killed.communicate(timeout=60)
        made = json.loads(printed)["made"]
        assert killed.returncode == 1 and f"runs {len(made)} made, and perhaps one more" in said
        server.start()
        there = {run["run_id"] for run in server.get("/runs", job_id="daily")["runs"].values()}
        assert made and {*made} <= there

        left = server.spawn("backfill", "daily", "2013-01-01..2015-12-31", "--again")
        assert left.stdout is not None and left.stdout.readline() != ""
        left.send_signal(signal.SIGINT)
        left.communicate(timeout=60)
        assert left.returncode == 130


def test_what_no_span_can_mean_is_said(server: Server) -> None:
    for words, said in (
        (("daily", "2020-03-02.."), "give both ends"),
        (("daily", "whenever"), "not a span"),
        (("daily", "2020-03-02", "--every", "soon"), "--every: "),
        (("hourly", "2020-03-02"), "runs of hourly have no args"),
        (("daily", "1990-01-01..2020-01-01"), "more than 1000 runs"),
    ):
        done = server.command("backfill", *words)
        assert done.returncode == 2 and said in done.stderr, done
    assert server.command("backfill", "daily", "2020-03-07").stdout == "Nothing is scheduled then.\n"
    assert server.command("backfill", "nope", "2020-03-07").returncode == 1
