"""What the real database does not hold: other releases, damage, and whatever may stand in a row."""

from __future__ import annotations

import gzip
import os
import pty
import random
import shutil
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
from hypothesis import given, settings
from hypothesis import strategies as st
from olddb import CLOCK, OldDb, apsis, brought, filled, reasons, select
from server import PROGRAM, environment

from apsislib.actions import owed
from apsislib.clock import WallClock
from apsislib.config import load as load_config
from apsislib.errors import ApsisError
from apsislib.moving.records import Movers, Unreadable, run_of
from apsislib.shapes import run_record, run_summary
from apsislib.store import Store, files
from apsislib.store.oldfile import OldFile
from apsislib.store.rows import from_row, to_row
from programs import Table

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
        "str": "apsis.program.agent.AgentProgram",
    }


def spoil(path: Path, table: str) -> None:
    """Make the middle one of the pages with a table's rows unreadable."""
    sql = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'"
    spots = select(path, sql, table)
    data = bytearray(path.read_bytes())
    at = (spots[len(spots) // 2][0] - 1) * 4096
    data[at : at + 4096] = bytes(4096)
    path.write_bytes(data)


def test_damaged_pages_cost_only_what_is_on_them(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    old.db.execute("BEGIN")
    for number in range(1, 1501):
        old.line(old.run(number, meta={"job": {"labels": []}, "text": "x" * 100}), "success")
    old.db.execute("COMMIT")
    path = old.close()
    spoil(path, "runs")
    new, report = brought(path)
    ((count,),) = select(new, "SELECT count(*) FROM runs")
    named = [name for kind, name, reason, _ in report["remarks"] if "malformed" in reason]
    assert 1400 < count < 1500 and len(named) == 1500 - count
    assert all(name.startswith("runs row ") for name in named)
    assert select(new, "SELECT count(*) FROM log") == [(count,)]


def test_damaged_pages_with_outputs_cost_only_these_and_a_damaged_clock_is_said(tmp_path: Path) -> None:
    old = OldDb(tmp_path / "old.db")
    old.db.execute("BEGIN")
    for number in range(1, 401):
        old.output(old.run(number), b"x" * 100)
    old.db.execute("COMMIT")
    path = old.close()
    spoil(path, "output")
    new, report = brought(path)
    ((count,),) = select(new, "SELECT count(*) FROM outputs")
    named = [name for kind, name, reason, _ in report["remarks"] if "malformed" in reason]
    assert 300 < count < 400 and len(named) == 400 - count
    spoil(path, "clock")
    refused = apsis("import-db", str(path), str(tmp_path / "other.db"), check=1)
    assert refused.stderr.startswith(f"error: database {path}: ") and "restore a backup" in refused.stderr


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


def test_the_new_database_is_as_private_as_the_old_one(tmp_path: Path) -> None:
    path = filled(tmp_path / "old.db", 10)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    new, _ = brought(path)
    was = path.stat()
    now = new.stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
    assert (tmp_path / "new.db.lock").stat().st_uid == was.st_uid
    copy = tmp_path / "copy.db"
    apsis("backup", "-d", str(path), str(copy))
    assert (copy.stat().st_mode, copy.stat().st_uid) == (was.st_mode, was.st_uid)


# -- anything at all -------------------------------------------------------------------------------

TEXTS = st.sampled_from(
    [
        "r1",
        "job",
        "running",
        "scheduled",
        "success",
        "waiting",
        "{}",
        "[]",
        "null",
        "7",
        "NaN",
        '"x"',
        "[null]",
        "[{}]",
    ]
    + ['{"type": "no-op", "duration": "soon"}', '[{"type": "dependency"}]', '[{"type": "x.Y", "if": 3}]']
    + ['{"type": 3}', '{"schedule": "2031-01-01T00:00:00Z", "success": 7}', '{"a": {"b": [1e999]}}']
    + ['{"type": "apsis.program.procstar.agent.BoundProcstarProgram", "argv": ["x"], "stop": 7}']
    + [
        '[{"type": "dependency", "job_id": 3, "args": {}}]',
        '[{"type": "dependency", "job_id": "j", "args": {"a": 1}}]',
    ]
    + ['[{"type": "const", "value": 1}, {"type": "apsis.cond.max_running.BoundMaxRunning", "count": "many"}]']
    + ['[{"type": "x.Y", "if": {"states": "error"}}]', '[{"type": "schedule", "if": []}]', '{"expect": 7}']
    + ['{"conn_id": 3, "proc_id": []}', '{"\\ud800": 1}', '{"job": 3}', '{"job": {"labels": {"a": 1}}}']
)
VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=5),
    TEXTS.map(str.encode),
)
GOOD = [b"r1", 1.0, b"job", b"{}", b"success", b'{"success": "2030-01-01T00:00:00Z"}', b"{}"]
GOOD += [b'{"type": "no-op"}', b"null", None, 0, b"[]", b"[]"]


@settings(max_examples=300)
@given(st.dictionaries(st.integers(0, 12), VALUES, max_size=5))
def test_no_row_of_runs_is_fatal(odd: dict[int, Any]) -> None:
    table = Table(load_config(None))
    movers = Movers(table.load, lambda kind: True, 7.0, 5.0, 6.0)
    row = (1, *[odd.get(index, value) for index, value in enumerate(GOOD)])
    try:
        run = run_of(row, movers).run
    except Unreadable:
        return
    assert run_summary(run) and run_record(run)
    for cond in run.conds:
        assert isinstance(cond["str"], str)
    for action in run.actions:
        assert owed(action, run.state) in (True, False)
    assert "expect" not in run.meta
    try:
        from_row(to_row(run))
    except (ValueError, TypeError, UnicodeEncodeError):
        assert any(index in odd for index in (2, 3, 4, 5, 6, 7, 8, 11, 12))
