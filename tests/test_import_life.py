"""Imports that are cut off, and what becomes of runs that had not ended."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from olddb import CLOCK, NOOP, PROCSTAR, OldDb, apsis, brought, filled, reasons, select, whole
from server import ENDS, PROGRAM, Server, environment

from apsislib.moving import database
from apsislib.moving.records import DOUBT
from apsislib.store import files
from apsislib.store.importing import Import
from apsislib.store.oldfile import OldFile
from apsislib.times import parse_time

# -- kill -9 ---------------------------------------------------------------------------------------


pause = threading.Event()


def size(part: Path) -> int:
    """Of a database with its log."""
    total = 0
    for file in (part, part.with_name(f"{part.name}-wal")):
        with suppress(FileNotFoundError):  # it may take its name right now
            total += file.stat().st_size
    return total


def test_killed_at_any_instant_and_repeated_it_ends_the_same(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 3000)
    new, report = brought(path)
    once = whole(new)
    again = tmp_path / "again.db"
    argv = [sys.executable, PROGRAM, "import-db", str(path), str(again)]
    chance = random.Random(7)
    kills = 0
    part = again.with_name("again.db.importing")
    while not again.exists():
        before = size(part)
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment())
        if kills == 6:
            assert process.wait(120) == 0
            break
        while process.poll() is None and size(part) <= before:
            pause.wait(0.002)
        pause.wait(chance.random() * 0.05)  # something has been written; how much more is left to chance
        process.kill()
        status = process.wait(60)
        assert status in (0, -signal.SIGKILL), f"it does not go on after {kills} kills"
        kills += status == -signal.SIGKILL
    assert kills > 1, "it was never killed midway"
    assert whole(again) == once
    found = json.loads(apsis("import-db", str(path), str(again), "--format", "json").stdout)
    assert found["runs"] == report["runs"]


HALF = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = DELETE")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.execute("CREATE TABLE half (x)")
db.executemany("INSERT INTO half VALUES (randomblob(10000))", [()] * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_it_makes_the_file_it_goes_on(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 20)
    part = tmp_path / "new.db.importing"
    assert subprocess.run([sys.executable, "-c", HALF, str(part)]).returncode == -signal.SIGKILL
    assert part.with_name(f"{part.name}-journal").stat().st_size > 0  # to be rolled back
    new, report = brought(path)
    assert sum(report["runs"].values()) == 20 and new.exists()


def test_an_old_server_that_was_killed_while_it_wrote_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 20)
    assert subprocess.run([sys.executable, "-c", HALF, str(path)]).returncode == -signal.SIGKILL
    before = path.read_bytes()
    done = apsis("import-db", str(path), str(tmp_path / "new.db"), check=1)
    assert f"`sqlite3 {path} .tables`" in done.stderr
    assert path.read_bytes() == before and not (tmp_path / "new.db").exists()
    with closing(sqlite3.connect(path)) as db:  # as the shell opens it
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    assert sum(brought(path)[1]["runs"].values()) == 20


def test_cut_off_at_any_commit_and_repeated_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "old.db", 120)
    once = whole(brought(path)[0])
    monkeypatch.setattr(database, "STRETCH_ROWS", 40)
    leave = files.transaction.__exit__
    left = [0]

    class Cut(BaseException):
        pass

    def leaving(self: Any, kind: Any, *rest: object) -> None:
        if kind is None:
            left[0] -= 1
            if left[0] == 0:
                leave(self, Cut, *rest)
                raise Cut
        leave(self, kind, *rest)

    monkeypatch.setattr(files.transaction, "__exit__", leaving)
    assert run_import(path, tmp_path / "count.db", Cut)
    commits = -left[0]
    assert commits > 20
    for cut in sorted(random.Random(3).sample(range(1, commits + 1), 12)):
        target = tmp_path / f"cut-{cut}.db"
        left[0] = cut
        assert not run_import(path, target, Cut)
        left[0] = 0
        assert run_import(path, target, Cut)
        assert whole(target) == once, cut


def run_import(path: Path, target: Path, cut: type[BaseException]) -> bool:
    given = argparse.Namespace(old=path, new=target, config=None, stale="21d", format="json")
    try:
        return database.run(given) == 0
    except cut:
        return False


def test_an_import_of_what_the_old_database_was_before_begins_anew(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 50)
    part = tmp_path / "new.db.importing"
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    shutil.copy(path, stopped / "old.db")
    db = sqlite3.connect(stopped / "old.db")
    db.execute("DELETE FROM runs WHERE rowid > 30")
    db.commit()
    db.close()
    earlier = OldFile(stopped / "old.db")
    half = Import(tmp_path / "new.db", earlier.fingerprint(), earlier.path, 1.0)
    with half.stretch("runs", 30):
        half.remark("left", "r1", "of another time")
    half.close()
    earlier.close()
    assert part.exists()
    new, report = brought(path)
    assert sum(report["runs"].values()) == 50 and "of another time" not in str(report["remarks"])
    assert not part.exists() and new.exists()


def test_an_import_that_another_release_began_begins_anew(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 20)
    once = whole(brought(path)[0])
    (tmp_path / "new.db").unlink()
    old = OldFile(path)
    half = Import(tmp_path / "new.db", old.fingerprint(), path, 1.0)
    with half.stretch("runs", 20):
        half.remark("left", "r1", "of another release")
    half.close()
    old.close()
    with closing(sqlite3.connect(tmp_path / "new.db.importing")) as db:
        db.execute("PRAGMA user_version = 1")
    new, report = brought(path)
    assert whole(new) == once and "of another release" not in str(report["remarks"])


def test_a_full_disk_is_said_and_the_import_goes_on_later(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 3000)
    code = (
        "import resource, sys, signal, apsis; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, -1)); sys.exit(apsis.main(sys.argv[1:]))"
    )
    words = ["import-db", str(path), str(tmp_path / "new.db")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=Path(PROGRAM).parent
    )
    assert done.returncode == 1 and "goes on from here" in done.stderr and "Traceback" not in done.stderr
    new, report = brought(path)
    assert sum(report["runs"].values()) == 3000


# -- runs that go on -------------------------------------------------------------------------------


def test_unfinished_runs_are_given_what_takes_them_up(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    ids = {"conn_id": "C", "proc_id": "P", "start": "2030-01-01T00:00:00+00:00"}
    old.run(1, "running", at=CLOCK - 9, program=PROCSTAR, run_state=ids)
    old.run(2, "stopping", at=CLOCK - 9, program=PROCSTAR, run_state=ids | {"stopping": True})
    old.run(3, "starting", at=CLOCK - 9, program=PROCSTAR, run_state="null")
    old.run(4, "starting", at=CLOCK - 9)  # a no-op: nothing can have happened
    old.run(5, "running", at=CLOCK - 22 * 86400, program=PROCSTAR, run_state=ids)
    old.run(6, "waiting", at=CLOCK - 400 * 86400, conds=[{"type": "acme.Ready", "path": "/x"}])
    old.line("r5", "running", CLOCK - 22 * 86400)
    old.run(7, "new", at=CLOCK - 9, times={})
    old.run(8, actions=[{"type": "schedule", "if": {"states": None}, "job_id": "j", "args": {}}])
    old.run(9, actions=[{"type": "acme.Mail", "to": "ops", "if": {"states": ["error"]}}])
    new, report = brought(old.close())
    rows = {
        number: (state, json.loads(run_state or "null"))
        for number, state, run_state in select(new, "SELECT number, state, run_state FROM runs")
    }
    begun = CLOCK - 9 + 1.5
    place = {"conn_id": "C", "proc_id": "P"}
    assert rows[1] == ("running", place | {"timers": {"TIMEOUT": begun + 300}})
    assert rows[2] == ("stopping", place | {"signals": ["SIGUSR2"], "timers": {"GRACE": begun + 15}})
    assert rows[3] == ("starting", {"doubt": DOUBT})
    assert rows[4] == ("starting", None)
    assert rows[5] == ("error", None)
    assert rows[7][0] == "new"
    changed = reasons(report, "changed")
    assert changed.keys() == {"r3", "r5"}
    assert select(new, "SELECT message FROM log WHERE number = 5 ORDER BY seq")[1][0].startswith("error: ")
    ((conds,),) = select(new, "SELECT conds FROM runs WHERE number = 6")
    assert json.loads(conds)[0]["config"] == {"path": "/x"}
    found = [json.loads(a) for (a,) in select(new, "SELECT actions FROM runs WHERE actions IS NOT NULL")]
    assert found == [
        [{"type": "schedule", "job_id": "j", "args": {}, "str": "schedule j"}],
        [{"type": "acme.Mail", "to": "ops", "if": {"states": ["error"]}, "str": "acme.Mail"}],
    ]
    assert reasons(brought_again(tmp_path, "--stale", "never"), "changed").keys() == {"r3"}


def brought_again(directory: Path, *options: str) -> dict[str, Any]:
    (directory / "new.db").unlink()
    return brought(directory / "old.db", *options)[1]


def test_limits_of_the_servers_file_hold_for_running_programs(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    bare = {name: value for name, value in PROCSTAR.items() if name not in ("timeout", "stop")}
    old.run(1, "running", program=bare, run_state={"conn_id": "C", "proc_id": "P"})
    old.close()
    (tmp_path / "apsis.yaml").write_text("database: {path: new.db}\nprogram: {timeout: {duration: 1h}}\n")
    apsis("import-db", str(old.path), "--config", str(tmp_path / "apsis.yaml"))
    ((state,),) = select(tmp_path / "new.db", "SELECT run_state FROM runs")
    assert json.loads(state)["timers"] == {"TIMEOUT": CLOCK - 1000 + 1.5 + 3600}


def test_ad_hoc_jobs_lose_schedules_and_are_kept_if_they_can_not_be_read(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    old.job(
        "adhoc-a", schedule=[{"type": "interval", "interval": 5.0, "enabled": True, "args": {}, "phase": 0}]
    )
    old.job("adhoc-b", program={"type": "acme.Program"})
    old.job("adhoc-b", program={"type": "acme.Program"})
    new, report = brought(old.close())
    changed = reasons(report, "changed")
    assert "without its schedules" in changed["job adhoc-a"] and "acme" in changed["job adhoc-b"]
    jobs = {job_id: json.loads(job) for job_id, job in select(new, "SELECT job_id, job FROM jobs")}
    assert jobs["adhoc-a"]["schedule"] == [] and jobs["adhoc-b"]["program"] == {"type": "acme.Program"}


JOBS = {
    "tick": "params: [time]\nschedule: {type: interval, interval: 10}\nprogram: {type: no-op}\n",
    "alarm": "program: {type: no-op}\n",
}


def test_nothing_that_is_scheduled_is_lost_or_run_twice(tmp_path: Path) -> None:
    """The old server was killed after it had stored its clock, before it started what was due."""
    server = Server(tmp_path, JOBS)
    now = time.time()
    last = now // 10 * 10 - 40  # an instant of the schedule; the old server's clock is just past it
    old = OldDb(tmp_path / "old.db", clock=last + 0.3)
    stamp = {
        t: f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(t))}+00:00"
        for t in range(int(last) - 60, int(last) + 90)
    }

    def tick(number: int, t: float, state: str) -> None:
        old.run(
            number, state, args={"time": stamp[int(t)]}, job_id="tick", times={"schedule": t, state: last}
        )

    tick(1, last - 20, "success")
    tick(2, last - 10, "success")
    # That of `last` was due, and never was begun.
    tick(3, last + 10, "skipped")  # ahead of its time, by hand
    tick(4, last + 20, "success")  # started ahead
    tick(5, last + 30, "scheduled")  # made by hand: it is not the schedule's
    doubtful = [{"type": "schedule", "job_id": "alarm", "args": {}, "if": {"states": ["error"]}}]
    old.run(6, "starting", at=last - 60, program=PROCSTAR, actions=doubtful)
    old.close()
    apsis("import-db", str(old.path), str(tmp_path / "apsis.db"))
    with server.running():
        assert server.until("r6", "error")["state"] == "error"
        assert server.messages("r6")[-2].startswith("error: may have been started by the Apsis")
        counts: dict[float, int] = {}
        deadline = time.monotonic() + 60
        while counts.get(last + 30, 0) < 2:  # those of the past are made at once
            assert time.monotonic() < deadline, counts
            runs = server.get("/runs", job_id="tick")["runs"].values()
            times = [parse_time(run["times"]["schedule"]) for run in runs if not run.get("expected")]
            counts = {t: times.count(t) for t in times if t <= last + 30}
        assert counts == {last - 20: 1, last - 10: 1, last: 1, last + 10: 1, last + 20: 1, last + 30: 2}
        (alarm,) = server.get("/runs", job_id="alarm")["runs"].values()
        assert server.until(alarm["run_id"], "success")
        server.end()
        server.start()
        after = server.get("/runs", job_id="tick")["runs"].values()
        times = [parse_time(run["times"]["schedule"]) for run in after if not run.get("expected")]
        assert {t: times.count(t) for t in times if t <= last + 30} == counts


def test_unfinished_runs_that_can_not_be_read_are_errors_of_a_server_that_goes_on(tmp_path: Path) -> None:
    server = Server(tmp_path, JOBS)
    old = OldDb(tmp_path / "old.db", clock=time.time() - 60)
    at = time.time() - 120
    bad = [{"type": "dependency", "args": 7}]
    wrong = [
        old.run(1, "scheduled", at=at, conds=bad),
        old.run(2, "waiting", at=at, conds=bad),
        old.run(3, "waiting", at=at, conds="{"),
        old.run(4, "running", at=at, program=None),
        old.run(5, "starting", at=at, program={"type": "acme.Program", "x": 1}),
        old.run(6, "running", at=at, program=PROCSTAR, run_state="[1]"),
        old.run(7, "stopping", at=at, program={"type": "apsis.program.agent.AgentProgram"}),
        old.run(8, "new", at=at, times={}),
        old.run(9, "waiting", at=at, conds=[{"type": "acme.Ready", "path": "/x"}]),
        old.run(10, "scheduled", at=at, program={**NOOP, "duration": "soon"}),
        old.run(11, "running", at=at, program={**NOOP, "duration": "soon"}),
    ]
    good = [old.run(12, "waiting", at=at), old.run(13, "starting", at=at), old.run(14, "running", at=at)]
    old.close()
    apsis("import-db", str(old.path), str(tmp_path / "apsis.db"))
    with server.running():
        for run_id in good:
            assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
        for run_id in wrong:
            assert server.until(run_id, *ENDS)["state"] == "error", server.messages(run_id)
            assert any(line.startswith("error: ") for line in server.messages(run_id)), run_id
