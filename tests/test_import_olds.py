"""What the real database does not hold: other releases, damage, kill -9, and every state of a run."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pty
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import brotli
import pytest
from olddb import CLOCK, OldDb, select
from server import PROGRAM, Server, environment

from apsislib.clock import WallClock
from apsislib.errors import ApsisError
from apsislib.moving import database
from apsislib.moving.records import DOUBT
from apsislib.store import Store, files
from apsislib.store.importing import Import
from apsislib.store.oldfile import OldFile
from apsislib.times import parse_time

PROCSTAR = {
    "type": "apsis.program.procstar.agent.BoundProcstarProgram",
    "argv": ["/bin/true"],
    "group_id": "default",
    "stop": {"signal": 12, "grace_period": 15.0},
    "timeout": {"duration": 300.0, "signal": "SIGINT"},
}


def apsis(*words: str, check: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, PROGRAM, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**environ),
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


def brought(path: Path, *options: str) -> tuple[Path, dict[str, Any]]:
    """The new database, and the report."""
    new = path.with_name("new.db")
    found = apsis("import-db", str(path), str(new), "--format", "json", *options)
    report: dict[str, Any] = json.loads(found.stdout)
    return new, report


def reasons(report: dict[str, Any], kind: str) -> dict[str, str]:
    return {name: reason for one, name, reason, _ in report["remarks"] if one == kind}


def whole(path: Path) -> list[Any]:
    """Everything in a database but what is of one import alone."""
    found: list[Any] = []
    for table in ("runs", "log", "outputs", "jobs", "owed"):
        found += select(path, f"SELECT * FROM {table} ORDER BY 1, 2")
    found += select(path, "SELECT output, start, size, codec, hex(data) FROM chunks ORDER BY 1, 2")
    found += select(path, "SELECT name, value FROM meta WHERE name IN ('clock', 'next_run')")
    found += select(path, "SELECT sql FROM sqlite_master ORDER BY name")
    return found


# -- releases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["2.4.3", "2.2", "0.33"])
def test_files_of_older_releases_are_read(tmp_path: Path, release: str) -> None:
    old = OldDb(tmp_path / "old.db", release)
    old.run(3, args='{"b": "2", "a": "\\u00e9"}', rerun="r1")
    old.run(70, "failure")
    old.line("r3", "scheduled: now")
    old.line("r70", "scheduled as rerun of r3")
    new, report = brought(old.close())
    assert select(new, "SELECT number, args, rerun_of FROM runs") == [
        (3, '{"a":"é","b":"2"}', "r1"),
        (70, "{}", "r3"),
    ]
    assert (report["runs"], report["remarks"]) == ({"success": 1, "failure": 1}, [])
    assert select(new, "SELECT value FROM meta WHERE name = 'next_run'") == [(71,)]


def test_a_file_without_a_clock_leaves_the_new_one_to_begin(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db", clock=None)
    old.run(1)
    new, report = brought(old.close())
    assert report["clock"] is None
    assert select(new, "SELECT value FROM meta WHERE name = 'clock'") == []


# -- refusals --------------------------------------------------------------------------------------


def refused(*words: str, **environ: str) -> str:
    done = apsis("import-db", *words, check=1, **environ)
    assert done.stdout == "" and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    return done.stderr


def test_what_can_not_be_imported_is_refused_with_the_way_out(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    old.run(1)
    old.close()
    here, new = str(tmp_path / "old.db"), str(tmp_path / "new.db")
    apsis("create", str(tmp_path / "ours.db"))
    (tmp_path / "text.db").write_text("no database\n" * 50)
    assert "there is no database" in refused(str(tmp_path / "none.db"), new)
    assert "name the new file: apsis import-db" in refused(here)
    assert "name another file" in refused(here, here)
    assert "of this Apsis already" in refused(str(tmp_path / "ours.db"), new)
    assert "not a database" in refused(str(tmp_path / "text.db"), new)
    assert "there is no directory" in refused(here, str(tmp_path / "no" / "new.db"))
    assert "exists, and was not imported" in refused(here, str(tmp_path / "ours.db"))
    assert "--stale: can't parse" in refused(here, new, "--stale", "soon")
    (tmp_path / "apsis.yaml").write_text("database: 7\n")
    assert "apsis.yaml:1" in refused(here, "--config", str(tmp_path / "apsis.yaml"))
    assert not Path(new).exists()
    apsis("import-db", here, new)
    with closing(sqlite3.connect(here)) as db, db:
        db.execute("UPDATE clock SET time = time + 60")
    assert "but not as" in refused(here, new)


def test_serving_an_old_database_is_refused_with_the_command(tmp_path: Path) -> None:
    OldDb(tmp_path / "apsis.db").close()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "apsis.yaml").write_text("job_dir: jobs\n")
    done = apsis("serve", "--config", str(tmp_path / "apsis.yaml"), check=1)
    old = tmp_path.resolve() / "apsis.db"
    assert f"`apsis import-db {old} NEW.db`" in done.stderr


def test_a_server_that_still_runs_is_noticed(tmp_path: Path) -> None:
    """Apsis 2 stores its clock every second, whatever else it does."""
    old = OldDb(tmp_path / "old.db", clock=time.time())
    old.run(1)
    stopped = threading.Event()

    def serve() -> None:
        db = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
        while not stopped.wait(0.1):
            db.execute("UPDATE clock SET time = ?", (time.time(),))
        db.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert "a server is using" in refused(str(tmp_path / "old.db"), str(tmp_path / "new.db"))
    finally:
        stopped.set()
        thread.join()
        old.close()


def test_outputs_that_need_a_missing_package_are_said_before_anything_is_done(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    old.output(old.run(1), brotli.compress(b"x" * 20_000), "br", length=20_000)
    old.close()
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "brotli.py").write_text("raise ImportError('not here')\n")
    said = refused(str(tmp_path / "old.db"), str(tmp_path / "new.db"), PYTHONPATH=str(tmp_path / "without"))
    assert "1 outputs" in said and "pip install brotli" in said
    assert not list(tmp_path.glob("new.db*"))


# -- damage ----------------------------------------------------------------------------------------


def test_rows_that_can_not_be_read_are_named_and_left(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    good = old.run(1)
    old.line(good, "success")
    old.run(2, args="{not JSON")
    old.run(3, args="[1]")
    old.run(4, "exploded", times={})
    old.run(5, times="null")
    old.run(6, run_id="x6")
    old.run(7, run_id="r1")
    old.run(8, args='{"a": "\\ud800"}')
    old.db.execute("UPDATE runs SET job_id = CAST(x'ff41' AS TEXT) WHERE rowid = ?", (old.run(9)[1:],))
    old.run(10, "scheduled", expected=1)
    old.line("r99", "one")
    old.line("r99", "two")
    old.line(good, "a line", time="never")
    old.output("r98", b"bytes")
    old.output(good, brotli.compress(os.urandom(500))[:-20], "br")
    old.output(good, b"bytes", "zip", output_id="odd")
    old.db.execute("INSERT INTO jobs VALUES ('adhoc-bad', 'no JSON')")
    new, report = brought(old.close())
    left = reasons(report, "left")
    for name, part in {
        "r2": "args is not JSON",
        "r3": "args are not a mapping",
        "r4": "'exploded' is not a state",
        "r5": "times are not a mapping",
        "x6": "not a run ID",
        "r1": "another run has this ID",
        "r8": "surrogates",
        "r9": "job ID is not UTF-8",
        "r10": "its schedule makes it again",
        "log of r99": "there is no such run",
        "log of r1": "a line without a time",
        "output of r98": "there is no such run",
        "output of r1": "unknown compression: zip",
        "job adhoc-bad": "not JSON",
    }.items():
        assert part in left.pop(name), name
    assert left == {}
    assert ["left", "log of r99", "there is no such run", 2] in report["remarks"]
    assert any("bytes are damaged" in reason for _, name, reason, _ in report["remarks"])
    assert report["runs"] == {"success": 1}
    assert select(new, "SELECT number, seq, message FROM log") == [(1, 0, "success")]
    assert select(new, "SELECT count(*) FROM outputs") == select(new, "SELECT count(*) FROM chunks") == [(0,)]
    text = apsis("import-db", str(old.path), str(new)).stdout
    assert "not carried over: log of r99, output of r98 (3 rows): there is no such run" in text


def test_what_is_not_needed_to_know_how_a_run_ended_may_be_damaged(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    old.run(1, meta='{"job": {"labels": ["a"]}, "program": {"share": NaN}}')
    old.run(2, meta="[]", program="{", actions="7", times={"schedule": CLOCK - 9, "success": CLOCK - 8})
    old.run(3, times='{"schedule": "soon", "success": "2030-01-01T00:00:00Z"}')
    old.run(4, "scheduled", at=CLOCK + 1e6, conds="{")
    old.run(5, program={"type": "apsis.program.agent.AgentProgram", "argv": ["x"]})
    new, report = brought(old.close())
    assert report["runs"] == {"scheduled": 1, "success": 4}
    changed = reasons(report, "changed")
    assert changed.keys() == {"r2", "r3", "r4"}
    assert "soon" in changed["r3"] and "so it will be an error" in changed["r4"]
    store = Store(new, WallClock())
    store.open()
    with store.read() as reader:
        runs = {run.run_id: run for run in reader.runs()}
    store.close()
    assert runs["r1"].meta["program"] == {"share": None}
    assert (runs["r2"].meta, runs["r2"].program, runs["r2"].actions) == ({}, None, ())
    assert "schedule" not in runs["r3"].times
    assert runs["r4"].conds[0]["type"] == "unreadable"
    assert runs["r5"].program == {
        "type": "apsis.program.agent.AgentProgram",
        "argv": ["x"],
        "str": "unavailable program apsis.program.agent.AgentProgram",
    }


def test_damaged_pages_cost_only_what_is_on_them(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    for number in range(1, 1501):
        old.line(old.run(number, meta={"job": {"labels": []}, "text": "x" * 100}), "success")
    path = old.close()
    spots = [
        row for row in select(path, "SELECT pageno FROM dbstat WHERE name = 'runs' AND pagetype = 'leaf'")
    ]
    data = bytearray(path.read_bytes())
    at = (spots[len(spots) // 2][0] - 1) * 4096
    data[at : at + 4096] = bytes(4096)
    path.write_bytes(data)
    new, report = brought(path)
    ((count,),) = select(new, "SELECT count(*) FROM runs")
    named = [name for kind, name, reason, _ in report["remarks"] if "malformed" in reason]
    assert 1400 < count < 1500 and len(named) == 1500 - count
    assert all(name.startswith("runs row ") for name in named)
    assert select(new, "SELECT count(*) FROM log") == [(count,)]


# -- outputs ---------------------------------------------------------------------------------------


def test_outputs_arrive_however_they_were_packed(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    data = random.Random(4).randbytes(300_000) + b"line\n" * 200_000
    packings = {None: data, "br": brotli.compress(data, quality=3), "gzip": gzip.compress(data)}
    packings["deflate"] = zlib.compress(data)
    for number, (packing, packed) in enumerate(packings.items(), 1):
        old.output(old.run(number), packed, packing, length=len(data))
    old.output("r1", b"Traceback", output_id="outputs", name="traceback", content_type="text/plain")
    old.output("r2", b"short", output_id="odd", length=7)
    new, report = brought(old.close())
    assert (report["outputs"], report["output_bytes"]) == (6, 4 * len(data) + 14)
    assert reasons(report, "changed") == {"output of r2": "odd has 5 bytes, not 7"}
    store = Store(new, WallClock())
    store.open()
    with store.read() as reader:
        for number in range(1, 5):
            assert b"".join(reader.output(f"r{number}", "output")) == data
        assert b"".join(reader.output("r1", "traceback")) == b"Traceback"
    store.close()


def test_a_few_bytes_that_stand_for_many_do_not_fill_the_memory(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    size = 200 << 20
    packer = brotli.Compressor(quality=3)
    packed = b"".join(packer.process(bytes(1 << 20)) for _ in range(200)) + packer.finish()
    old.output(old.run(1), packed, "br", length=size)
    old.close()
    code = (
        "import resource, sys, apsis; status = apsis.main(sys.argv[1:]);"
        " print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(status)"
    )
    peaks = []
    for words in (["import-db", str(old.path), str(tmp_path / "new.db")], ["import-db"] * 2):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=Path(PROGRAM).parent,
        )
        peaks.append(int(done.stderr.split()[-1]) >> 10)
    assert select(tmp_path / "new.db", "SELECT length FROM outputs") == [(size,)]
    assert peaks[0] - peaks[1] < 60, peaks  # MiB


# -- kill -9 ---------------------------------------------------------------------------------------


def filled(path: Path, runs: int) -> Path:
    old = OldDb(path, clock=CLOCK)
    old.db.execute("BEGIN")
    for number in range(1, runs + 1):
        state = ("success", "failure", "error", "skipped", "scheduled", "waiting")[number % 6]
        at = CLOCK - 3600 + number if number % 50 else CLOCK + 60  # of these many claim one occurrence
        run_id = old.run(number, state, at=at, args={"n": str(number % 50)})
        for line in range(4):
            old.line(run_id, f"line {line}", at + line)
        if number % 10 == 0:
            old.output(run_id, random.Random(number).randbytes(5000), None)
    old.line("r0", "nobody's")
    old.job("adhoc-a")
    old.db.execute("COMMIT")
    return old.close()


def test_killed_at_any_instant_and_repeated_it_ends_the_same(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 6000)
    new, report = brought(path)
    once = whole(new)
    again = tmp_path / "again.db"
    argv = [sys.executable, PROGRAM, "import-db", str(path), str(again)]
    chance = random.Random(7)
    kills = midway = 0
    while not again.exists():
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment())
        try:
            # The more it has been killed, the longer it is let go on: it must come to an end.
            process.wait(0.25 + chance.random() * 0.3 * 1.2**kills)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            part = again.with_name("again.db.importing")
            midway += part.exists() and not again.exists()
            assert kills < 60
    assert midway > 1, "it was never killed midway"
    assert whole(again) == once
    assert (
        json.loads(apsis("import-db", str(path), str(again), "--format", "json").stdout)["runs"]
        == report["runs"]
    )


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
    for cut in range(1, 60):
        target = tmp_path / f"cut-{cut}.db"
        left[0] = cut
        if run_import(path, target, Cut):
            break
        left[0] = -1
        assert run_import(path, target, Cut)
        assert whole(target) == once, cut
    assert 10 < cut < 59


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
    half = Import(tmp_path / "new.db", earlier.fingerprint(), 1.0)
    with half.stretch("runs", 30):
        half.remark("left", "r1", "of another time")
    half.close()
    earlier.close()
    assert part.exists()
    new, report = brought(path)
    assert sum(report["runs"].values()) == 50 and "of another time" not in str(report["remarks"])
    assert not part.exists() and new.exists()


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


def test_nothing_is_put_beside_an_old_file_that_nobody_has_open(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    old.run(1)
    path = old.close()
    brought(path)
    assert [p.name for p in sorted(tmp_path.glob("old.db*"))] == ["old.db"]


def test_a_log_that_was_not_checkpointed_is_read(tmp_path: Path) -> None:
    """A server that was killed leaves its last minutes in the write-ahead log."""
    old = OldDb(tmp_path / "live.db")
    old.run(1)
    for end in ("", "-wal"):
        shutil.copy(tmp_path / f"live.db{end}", tmp_path / f"old.db{end}")
    old.close()
    assert brought(tmp_path / "old.db")[1]["runs"] == {"success": 1}


def test_a_progress_bar_is_shown_on_a_terminal(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 60)
    terminal, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, PROGRAM, "import-db", str(path), str(tmp_path / "new.db")],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        check=True,
        env=environment(),
    )
    shown = os.read(terminal, 100_000).decode()
    os.close(theirs)
    os.close(terminal)
    assert "308 of 308 rows" in shown and shown.startswith("\r[....")


def test_a_part_that_has_been_made_by_another_process_is_waited_for_by_nobody(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 10)
    lock = files.Lock(tmp_path / "new.db")
    try:
        assert "in use by process" in refused(str(path), str(tmp_path / "new.db"))
    finally:
        lock.release()
    with pytest.raises(ApsisError, match="there is no database"):
        OldFile(tmp_path / "none")
