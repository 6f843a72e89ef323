"""The disk's bad days: killed amid writing, full, locked, moved away. Nothing is lost, nothing is double."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from storing import PATIENCE, a_run, opened, output_of, put

from apsislib.clock import Deadline
from apsislib.errors import Unavailable
from apsislib.runs import Launch, Note, Save
from apsislib.states import State
from apsislib.store import batches

ROOT = Path(__file__).parents[1]

# Says on stdout what it was told is committed, line by line, until it is killed.
WRITER = """
import sys
from pathlib import Path
from apsislib.clock import WallClock
from apsislib.runs import Note, Run, Save, SetClock
from apsislib.states import State
from apsislib.store import Store

def committed(effects, grew):
    for effect in effects:
        if isinstance(effect, Save):
            print("run", effect.run.number, flush=True)
    for one in grew:
        print("output", one.length, flush=True)

store = Store(Path(sys.argv[1]), WallClock(), committed=committed)
store.open()
store.start()
number = store.reserve(1_000_000)
at = 0
while True:
    run = Run(f"r{number}", "job", {"n": str(number)}, State.RUNNING, float(number), {"running": 1.0})
    lines = [Note(run.run_id, 1.0, "one"), Note(run.run_id, 2.0, "two")]
    ticket = store.put([Save(run), *lines, SetClock(float(number))])
    store.put_output("r1", "output", at, b"%015d\\n" % number * 64)
    at += 1024
    number += 1
    if number % 20 == 0:
        store.wait(ticket)
"""


@pytest.mark.parametrize("lines", [1, 150, 1000])
def test_what_was_said_to_be_committed_is_there_after_a_kill_and_every_decision_is_whole(tmp_path, lines):
    path = tmp_path / "apsis.db"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    said += [line for line in child.stdout if line.endswith("\n")]
    child.wait()
    last = max((int(line.split()[1]) for line in said if line.startswith("run")), default=0)
    length = max((int(line.split()[1]) for line in said if line.startswith("output")), default=0)
    with opened(path) as (store, _):  # the lock went with the process
        assert store.check() == []
        with store.read() as reader:
            runs = reader.active()
            numbers = [run.number for run in runs]
            assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= last
            assert reader.clock() == float(numbers[-1])
            for run in runs:
                assert reader.log(run.run_id) == [(1.0, "one"), (2.0, "two")]
        output = output_of(store, "r1")
        assert len(output) >= length and len(output) % 1024 == 0
        assert output == b"".join(b"%015d\n" % (number + 1) * 64 for number in range(len(output) // 1024))
        assert store.reserve(1) > 1_000_000
        put(store, Save(a_run(2_000_000)))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MiB. Where mounting is refused, see the test with a limit on file size."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.xfail("mounting is refused here; the same is tested by a limit on the size of files")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_puts_on_the_brake_and_room_releases_it_and_nothing_is_lost(small_disk):
    with opened(small_disk / "apsis.db") as (store, told):
        put(store, Save(a_run(1)))
        ballast = small_disk / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        run = a_run(2, State.STARTING, args={"pad": "x" * 100_000})
        ticket = store.put([Save(run), Note("r2", 1.0, "starting"), Launch(run)])
        store.put_output("r1", "output", 0, bytes(range(256)) * 64)
        with pytest.raises(Unavailable, match="make room on the disk"):
            store.wait(ticket, PATIENCE)
        assert store.braked and "full" in store.stats()["failing"]
        for number in range(3, 50):  # the server goes on deciding meanwhile
            last = store.put([Save(a_run(number)), Note(f"r{number}", 1.0, "x")])
        with store.read() as reader:  # and people go on looking
            assert reader.count() == 1
        assert not [effect for effect in told.committed if isinstance(effect, Launch)]
        ballast.unlink()
        told.wait(lambda: None in told.failing)
        store.wait(last, PATIENCE)
        assert len(told.failing) == 2 and told.failing[1] is None
        assert not store.braked and told.unwritable == [] and told.deaths == []
        with store.read() as reader:
            assert reader.count() == 49
            assert all(len(reader.log(f"r{number}")) == 1 for number in range(2, 50))
        told.wait(lambda: told.grew)
        assert output_of(store, "r1") == bytes(range(256)) * 64
        assert [effect.run for effect in told.committed if isinstance(effect, Launch)] == [run]
        assert store.check() == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from storing import PATIENCE, a_run, opened
from apsislib.errors import Unavailable
from apsislib.runs import Note, Save

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with opened(Path(sys.argv[1])) as (store, told):
    store.wait(store.put([Save(a_run(1))]))
    size = (Path(sys.argv[1] + "-wal")).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, resource.RLIM_INFINITY))
    ticket = store.put([Save(a_run(2, args={"pad": "x" * 50_000})), Note("r2", 1.0, "x")])
    try:
        store.wait(ticket, PATIENCE)
    except Unavailable as error:
        print("refused", error)
    assert store.braked
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    told.wait(lambda: None in told.failing)
    store.wait(ticket, PATIENCE)
    with store.read() as reader:
        assert reader.count() == 2 and len(reader.log("r2")) == 1
    assert store.check() == []
    print("released", len(told.failing))
"""


def test_a_file_that_may_not_grow_is_a_disk_that_refuses(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "apsis.db")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert "refused not on disk yet" in child.stdout and "released 2" in child.stdout


def test_a_lock_held_by_another_program_is_waited_out(tmp_path):
    with opened(tmp_path / "apsis.db", timeout=0.05) as (store, told):
        put(store, Save(a_run(1)))
        with closing(sqlite3.connect(store.path, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="end that program's transaction"):
                put(store, Save(a_run(2)))
            with store.read() as reader:
                assert reader.count() == 1
            shell.execute("ROLLBACK")
        told.wait(lambda: None in told.failing)
        put(store, Save(a_run(3)))
        with store.read() as reader:
            assert reader.count() == 3


def test_a_database_that_is_moved_away_is_not_written_to_and_neither_is_what_takes_its_place(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, told):
        put(store, Save(a_run(1)))
        os.rename(store.path, tmp_path / "elsewhere.db")
        with pytest.raises(Unavailable, match="moved, deleted or replaced"):
            put(store, Save(a_run(2)))
        shutil.copy(tmp_path / "elsewhere.db", store.path)
        with pytest.raises(Unavailable, match="moved, deleted or replaced"):
            put(store, Save(a_run(3)))
        os.rename(tmp_path / "elsewhere.db", store.path)
        told.wait(lambda: None in told.failing)
        put(store, Save(a_run(4)))
        with store.read() as reader:
            assert [run.number for run in reader.runs()] == [1, 2, 3, 4]


@pytest.mark.parametrize("lost", ["answer", "commit"])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(tmp_path, monkeypatch, lost):
    """An I/O error out of COMMIT says nothing of whether the transaction is on disk."""
    honest = batches.write
    failed = []

    def write(db, number, entries, chunks, written):
        if failed:
            honest(db, number, entries, chunks, written)
            return
        failed.append(number)
        if lost == "answer":
            honest(db, number, entries, chunks, written)
        raise sqlite3.OperationalError("disk I/O error")

    with opened(tmp_path / "apsis.db") as (store, told):
        monkeypatch.setattr("apsislib.store.store.write", write)
        effects = [Save(a_run(1)), Note("r1", 1.0, "once"), Launch(a_run(1))]
        store.put_output("r1", "output", 0, b"once")
        store.put(effects)
        told.wait(lambda: None in told.failing and Launch(a_run(1)) in told.committed and told.grew)
        with store.read() as reader:
            assert reader.log("r1") == [(1.0, "once")]
        assert output_of(store, "r1") == b"once"
        assert told.committed == effects and told.unwritable == [] and len(failed) == 1


def test_a_store_that_cannot_write_closes_at_its_deadline_and_says_what_is_lost(tmp_path, caplog):
    with opened(tmp_path / "apsis.db", timeout=0.0) as (store, told):
        with closing(sqlite3.connect(store.path, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            store.put([Save(a_run(1)), Save(a_run(2))])
            told.wait(lambda: told.failing)
            assert not store.close(Deadline(0.2))
            shell.execute("ROLLBACK")
        assert "without having stored effects=2" in caplog.text
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, Save(a_run(3)))
        assert store.check() == []
