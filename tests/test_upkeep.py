"""Old runs leave the database: what goes, what stays, and what a crash leaves."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from storing import a_run, opened, put

from apsislib.clock import WallClock
from apsislib.errors import ApsisError
from apsislib.runs import Note, Output, SetClock
from apsislib.runs import Save as SaveRun
from apsislib.states import State
from apsislib.store import Archive, Store
from apsislib.store import archive as archives
from apsislib.upkeep import STEP, Retired, Upkeep, describe

ALL = 2e9  # an instant after every run of these tests


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with opened(tmp_path / "apsis.db") as (store, _):
        yield store


def fill(store: Store, numbers: range, **fields: object) -> None:
    effects: list[object] = []
    for number in numbers:
        effects += [
            SaveRun(a_run(number, **fields)),  # type: ignore[arg-type]
            Note(f"r{number}", 1e9, "scheduled: now"),
            Note(f"r{number}", 1e9 + 1, "running ☃"),
            Output(f"r{number}", f"output of {number}\n".encode() * 50),
        ]
    put(store, *effects)


def numbers(store: Store) -> list[int]:
    with store.read() as reader:
        return [run.number for run in reader.runs()]


def retire(
    store: Store, path: Path | None, count: int = 10_000, before: float = ALL, **more: object
) -> Retired:
    return Upkeep(store, WallClock()).retire(before, count, path, **more)  # type: ignore[arg-type]


def test_archived_runs_are_in_the_archive_whole_and_in_the_database_no_more(store, tmp_path):
    fill(store, range(1, 131))
    path = tmp_path / "archive.db"
    done = retire(store, path)
    assert done.runs == 130 and done.log == 260 and done.outputs == 130 and not done.left
    assert numbers(store) == []
    with store.read() as reader:
        assert reader.log("r7") == [] and reader.outputs("r7") == []
    found = archives.query(path)
    assert [run.run_id for run in found] == [f"r{n}" for n in range(1, 131)]
    assert found[6].job_id == "etl/load" and found[6].args == {"date": "2031-05-08", "region": "eu"}
    assert found[6].state is State.SUCCESS and found[6].meta["elapsed"] == 9.5
    assert archives.history(path, "r7") == [(1e9, "scheduled: now"), (1e9 + 1, "running ☃")]
    assert b"".join(archives.output(path, "r7")) == b"output of 7\n" * 50
    assert [run.run_id for run in archives.query(path, since=1e9 + 129, limit=1)] == ["r130"]


def test_an_archive_has_the_columns_that_its_readers_know(store, tmp_path):
    fill(store, range(1, 2))
    retire(store, tmp_path / "archive.db")
    with closing(sqlite3.connect(tmp_path / "archive.db")) as db:
        row = db.execute("SELECT rowid, run_id, args, times, run_state, expected FROM runs").fetchone()
        assert row == (
            1,
            "r1",
            '{"date":"2031-05-02","region":"eu"}',
            '{"schedule":"2001-09-09T01:46:41+00:00","success":"2001-09-09T01:46:41.1234568+00:00"}',
            '{"conn_id":"c","proc_id":"p1"}',
            0,
        )
        assert db.execute("SELECT length, compression FROM output").fetchall() == [(600, "gzip")]


def test_only_finished_runs_of_that_age_go_and_the_oldest_first(store, tmp_path):
    fill(store, range(1, 5))
    fill(store, range(5, 7), state=State.RUNNING)
    done = retire(store, tmp_path / "archive.db", before=1e9 + 4)
    assert done.chunks == [["r1", "r2", "r3"]] and numbers(store) == [4, 5, 6]
    fill(store, range(7, 10))
    assert retire(store, tmp_path / "archive.db", 2).chunks == [["r4", "r7"]]
    assert Upkeep(store, WallClock()).count(ALL) == 2


def test_a_run_that_keeps_its_occurrence_from_being_made_again_stays(store, tmp_path):
    put(store, SetClock(1e9 + 2))
    fill(store, range(1, 3), occurrence=None)
    put(store, SaveRun(a_run(3, occurrence="x")), SaveRun(a_run(1, occurrence=None, rev=4)))
    retire(store, tmp_path / "archive.db")
    assert numbers(store) == [3]


def test_chunks_are_paused_between_and_told_and_a_stop_ends_it_after_a_step(store, tmp_path):
    fill(store, range(1, 21))
    told: list[int] = []
    done = retire(store, None, 12, chunk=5, progress=lambda done: told.append(done.runs))
    assert told == [5, 10, 12] and [len(chunk) for chunk in done.chunks] == [5, 5, 2]
    stop = Event()
    done = retire(store, None, chunk=5, pause=3600, stop=stop, progress=lambda done: stop.set())
    assert done.runs == 5 and len(numbers(store)) == 3


def test_what_was_copied_before_a_crash_is_not_copied_again(store, tmp_path):
    fill(store, range(1, 4))
    path = tmp_path / "archive.db"
    with store.read() as reader:  # the crash came between the two files
        archive = Archive(path, store.path)
        archive.copy(reader, reader.runs(run_ids=["r1", "r2"]))
        archive.close()
    put(store, SaveRun(a_run(2, State.FAILURE, rev=4)), Note("r2", 1e9 + 2, "marked as failure"))
    assert retire(store, path).runs == 3
    assert [(run.run_id, str(run.state)) for run in archives.query(path)] == [
        ("r1", "success"),
        ("r2", "failure"),
        ("r3", "success"),
    ]
    assert [message for _, message in archives.history(path, "r2")][-1] == "marked as failure"
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM run_history").fetchone() == (7,)


VICTIM = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from apsislib.clock import WallClock
from apsislib.store import Store
from apsislib.upkeep import Upkeep
store = Store(Path(sys.argv[1]), WallClock())
store.open()
store.start()
told = lambda done: print(done.runs, flush=True)
Upkeep(store, WallClock()).retire(2e9, 10_000, Path(sys.argv[2]), chunk=7, progress=told)
store.close()
"""


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_instant_each_run_is_in_one_of_the_files(tmp_path, seed):
    live, path = tmp_path / "live.db", tmp_path / "archive.db"
    with opened(live) as (store, _):
        fill(store, range(1, 201))
    dice = random.Random(seed)
    argv = [sys.executable, "-c", VICTIM, str(live), str(path), str(Path(__file__).parent.parent)]
    kills = 0
    ended = False
    while not ended:
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            for _ in range(dice.randrange(1, 12)):
                victim.stdout.readline()
            Event().wait(dice.random() * 0.01)  # into the midst of a step
            victim.kill()
            ended = victim.wait() == 0
        kills += not ended
        with opened(live) as (store, _):
            left = set(numbers(store))
        archived = {int(run.run_id[1:]) for run in archives.query(path)} if path.exists() else set()
        assert left | archived == set(range(1, 201))
        ended = ended or not left
    assert kills >= 1
    with opened(live) as (store, _):
        retire(store, path)
        assert numbers(store) == []
    with closing(sqlite3.connect(path)) as db:
        for table, rows in (("runs", 200), ("output", 200), ("run_history", 400)):
            assert db.execute(f"SELECT count(*), count(DISTINCT run_id) FROM {table}").fetchone() == (
                rows,
                200,
            )


def test_a_run_that_changes_while_it_is_copied_stays(store, tmp_path, monkeypatch):
    fill(store, range(1, 3))
    copy = Archive.copy

    def copy_and_mark(self, reader, runs):
        copied = copy(self, reader, runs)
        put(store, SaveRun(a_run(1, State.FAILURE, rev=4)))
        return copied

    monkeypatch.setattr(Archive, "copy", copy_and_mark)
    done = retire(store, tmp_path / "archive.db")
    assert done.left == {"r1": "it changed meanwhile"} and numbers(store) == [1] and done.runs == 1
    assert describe(done) == ["1 runs stay (r1): it changed meanwhile"]


@pytest.mark.parametrize("to", ["archive.db", None])
def test_a_run_whose_row_cannot_be_read_stays_and_is_said_to(store, tmp_path, to):
    fill(store, range(1, 6))
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("UPDATE runs SET times = '{' WHERE number = 3")
    done = Upkeep(store, WallClock()).retire(ALL, 100, to and tmp_path / to)
    assert done.left == {"r3": "its row can't be read"} and done.runs == 4
    assert describe(done) == ["1 runs stay (r3): its row can't be read"]


def test_a_run_is_never_written_over_another_of_its_id(store, tmp_path):
    fill(store, range(1, 2), job_id="other")
    retire(store, tmp_path / "archive.db")
    fill(store, range(1, 3))
    done = retire(store, tmp_path / "archive.db")
    assert list(done.left) == ["r1"] and "another run r1, of job other" in done.left["r1"]
    assert numbers(store) == [1]
    assert [run.job_id for run in archives.query(tmp_path / "archive.db")] == ["other", "etl/load"]


def test_a_large_output_goes_in_pieces(store, tmp_path):
    import random

    data = random.Random(1).randbytes(9 << 20)
    put(store, SaveRun(a_run(1)), Output("r1", data))
    retire(store, tmp_path / "archive.db")
    assert b"".join(archives.output(tmp_path / "archive.db", "r1")) == data
    with store.read() as reader:
        assert reader.is_swept() and reader._all("SELECT count(*) FROM chunks") == [(0,)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b"x" * 9999), "it is no database"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE t (x)"), "not an archive of Apsis"),
        (lambda path: path.symlink_to("apsis.db"), "is the live database"),
        (lambda path: opened(path).__enter__(), "is a database of Apsis, not an archive"),
    ],
)
def test_nothing_but_an_archive_is_written_to(store, tmp_path, make, message):
    fill(store, range(1, 3))
    path = tmp_path / "archive.db"
    make(path)
    with pytest.raises(ApsisError, match=message):
        retire(store, path)
    with pytest.raises(ApsisError, match="there is no directory"):
        retire(store, tmp_path / "none" / "archive.db")
    assert numbers(store) == [1, 2]


def test_runs_in_memory_stay_and_the_jobs_of_the_others_are_told(store, tmp_path):
    fill(store, range(1, STEP + 10))
    told: list[set[str]] = []
    upkeep = Upkeep(store, WallClock(), lambda run_id: run_id == "r9", told.append)
    done = upkeep.retire(ALL, 1000, None)
    assert numbers(store) == [9] and done.left == {"r9": "it has only just finished"}
    assert told == [{"etl/load"}, {"etl/load"}]
