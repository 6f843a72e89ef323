"""Vacuuming a database that is in use: nothing is lost, whenever it is cut off."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from storing import opened

from apsislib.errors import ApsisError
from apsislib.runs import Note, Owe, Run, Save, SetClock, Settle
from apsislib.states import State
from apsislib.store import Archive, DropJob, SaveJob, Store, Version, files, vacuum

TABLES = {
    name: f"SELECT {columns} FROM {name} ORDER BY {order}"
    for name, columns, order in (
        ("meta", "*", "name"),
        ("runs", "*", "number"),
        ("log", "*", "number, seq"),
        ("outputs", "*", "id"),
        ("chunks", "*", "output, start"),
        ("owed", "*", "seq"),
        ("jobs", "*", "job_id"),
    )
}


def contents(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {name: db.execute(sql).fetchall() for name, sql in TABLES.items()}


def run(number: int, state: State = State.SUCCESS, rev: int = 3, **more: Any) -> Run:
    times = {"schedule": 1.0 * number, state.value: 2.0 * number}
    return Run(f"r{number}", "job", {"n": str(number % 7)}, state, 2.0 * number, times, rev=rev, **more)


def work(store: Store, seed: int, steps: int, first: int = 1) -> int:
    """A life of a database, the same for the same seed. The last ticket."""
    dice = random.Random(seed)
    ticket, last = 0, first
    sizes: dict[int, int] = {}
    for step in range(steps):
        now = dice.randrange(6)
        old = dice.randrange(first, last + 1)
        if now < 3:
            last += 1
            more = {"occurrence": f"[{last}]"} if now else {}
            ticket = store.put(
                [Save(run(last, **more)), Note(f"r{last}", 1.0 * step, "made"), SetClock(1.0 * step)]
            )
        elif now == 3:
            ticket = store.put(
                [Save(run(old, State.FAILURE, rev=4 + step)), Note(f"r{old}", 1.0 * step, "marked")]
            )
        elif now == 4:
            data = dice.randbytes(dice.randrange(1, 60_000))
            store.put_output(f"r{old}", "output", sizes.get(old, 0), data)
            sizes[old] = sizes.get(old, 0) + len(data)
            ticket = store.put(
                [Owe(f"r{old}/0/{step}", run(old), {"type": "schedule"}), SaveJob(f"j{step}", {})]
            )
        else:
            doomed = [Version(f"r{n}", rev) for n in range(old, old + 3) for rev in (3,)]
            sizes = {n: size for n, size in sizes.items() if n not in range(old, old + 3)}
            store.wait(store.put([]), 20)
            ticket = store.delete_runs(doomed)
            store.put([Settle(f"r{old}/0/{step - 1}"), DropJob(f"j{step - 1}")])
    return ticket


def test_a_database_that_is_written_to_all_the_while_is_the_same_but_smaller(tmp_path: Path) -> None:
    sizes: list[tuple[int, int]] = []
    for name, vacuums in (("plain.db", False), ("vacuumed.db", True)):
        with opened(tmp_path / name) as (store, told):
            store.wait(work(store, 1, 300), 30)
            ended = threading.Event()
            swaps = threading.Thread(target=_vacuums, args=(store, ended, sizes)) if vacuums else None
            if swaps is not None:
                swaps.start()
            try:
                for seed in range(2, 12):
                    store.wait(work(store, seed, 150, 1000 * seed), 30)
                while swaps is not None and len(sizes) < 5:
                    assert swaps.is_alive()
            finally:
                ended.set()
                if swaps is not None:
                    swaps.join()
            assert told.failing == [] and told.deaths == []
    plain, vacuumed = contents(tmp_path / "plain.db"), contents(tmp_path / "vacuumed.db")
    for found in (plain, vacuumed):  # the UUID of each, and how the batches fell
        found["meta"] = [row for row in found["meta"] if row[0] not in ("installation", "batch")]
        # Chunks fall as the batches did: their bytes are compared by output.
        found["chunks"] = []
    assert vacuumed == plain
    assert len(sizes) >= 5
    assert [p.name for p in tmp_path.iterdir() if "vacuum" in p.name.removeprefix("vacuumed")] == []


def _vacuums(store: Store, ended: threading.Event, sizes: list[tuple[int, int]]) -> None:
    while not ended.is_set():
        sizes.append(store.vacuum())


def test_outputs_are_the_same_after_it(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as (store, _):
        pieces = [random.Random(n).randbytes(70_000) for n in range(20)]
        store.wait(store.put([Save(run(1)), Save(run(2))]), 20)
        at = 0
        for n, piece in enumerate(pieces):
            store.put_output("r1", "output", at, piece)
            at += len(piece)
            if n % 5 == 2:
                store.vacuum()
        store.wait(store.put([]), 20)
        while store.has_pending("r1"):
            pass
        with store.read() as reader:
            assert b"".join(reader.output("r1", "output", 0, at)) == b"".join(pieces)
        store.wait(store.delete_runs([Version("r1", 3)]), 20)
        before, after = store.vacuum()
        assert before > at > 10 * after


def test_a_reader_that_lasts_puts_the_swap_off_and_sees_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "RETRY", 0.01)
    with opened(tmp_path / "a.db") as (store, _):
        store.wait(work(store, 3, 100), 30)
        tried = threading.Semaphore(0)
        swap = store._swap
        store._swap = lambda change: (swap(change), tried.release())[0]  # type: ignore[method-assign]
        thread = threading.Thread(target=store.vacuum)
        with store.read() as reader:
            before = len(reader.runs())
            thread.start()
            assert tried.acquire(timeout=30) and tried.acquire(timeout=30)
            assert thread.is_alive()
            store.wait(store.put([Save(run(5000))]), 20)  # commits go on
            assert len(reader.runs()) == before + 1
        thread.join(30)
        assert not thread.is_alive()
        with store.read() as reader:
            assert len(reader.runs()) == before + 1


def test_another_program_that_has_it_open_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "RETRY", 0.01)
    monkeypatch.setattr(vacuum, "PATIENCE", 0.03)
    with opened(tmp_path / "a.db") as (store, _):
        store.wait(work(store, 3, 30), 30)
        with closing(sqlite3.connect(tmp_path / "a.db")) as shell:
            shell.execute("SELECT count(*) FROM runs").fetchone()
            with pytest.raises(ApsisError, match="was open elsewhere for 0.03 s"):
                store.vacuum()
        store.wait(store.put([Save(run(6000))]), 20)
        store.vacuum()
    assert any(row[0] == 6000 for row in contents(tmp_path / "a.db")["runs"])


def test_without_room_for_the_copy_it_says_how_much_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "a.db") as (store, _):
        store.wait(work(store, 3, 30), 30)
        monkeypatch.setattr(vacuum, "SPARE", 1 << 60)
        with pytest.raises(
            ApsisError, match=r"it takes [\d,]+ bytes of room beside .*, where [\d,]+ are free"
        ):
            store.vacuum()
        store.wait(store.put([Save(run(7000))]), 20)


def test_a_store_that_closes_does_not_wait_for_it(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as (store, _):
        store.wait(work(store, 4, 200), 30)
        said: list[str] = []

        def forever() -> None:
            try:
                while True:
                    store.vacuum()
            except ApsisError as error:
                said.append(str(error))

        thread = threading.Thread(target=forever)
        thread.start()
        store.close()
        thread.join(30)
        assert not thread.is_alive()
    assert "the server is stopping" in said[0]
    contents(tmp_path / "a.db")


def test_it_gives_up_where_more_is_written_than_it_can_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "FEW", -1)  # there are never few enough
    with opened(tmp_path / "a.db") as (store, _):
        store.wait(work(store, 7, 20), 30)
        with pytest.raises(ApsisError, match="more is written than can be brought over"):
            store.vacuum()
        store.wait(store.put([Save(run(9000))]), 20)


def test_a_swap_that_fails_halfway_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with opened(tmp_path / "a.db") as (store, told):
        store.wait(work(store, 6, 60), 30)
        with monkeypatch.context() as broken:
            broken.setattr(vacuum.os, "replace", refuse)
            with pytest.raises(ApsisError, match="Input/output error"):
                store.vacuum()
        store.wait(store.put([Save(run(8000))]), 20)
        mode = store._between(lambda: store._connection().execute("PRAGMA journal_mode").fetchone())
        assert mode == ("wal",) and told.failing == []
        with monkeypatch.context() as broken:
            broken.setattr(vacuum.os, "fsync", lambda fd: None if is_file(fd) else refuse())
            with pytest.raises(ApsisError, match="server is stopping|writer has failed"):
                store.vacuum()
        assert "could not be made durable" in str(told.deaths[0])
    assert any(row[0] == 8000 for row in contents(tmp_path / "a.db")["runs"])


def is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def test_the_copy_is_never_open_to_more_people_than_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    flush = vacuum._Flushing._flush

    def look(flushing: vacuum._Flushing) -> None:
        modes.append(os.fstat(flushing._file).st_mode & 0o777)
        flush(flushing)

    monkeypatch.setattr(vacuum._Flushing, "_flush", look)
    before = os.umask(0)
    try:
        with opened(tmp_path / "a.db") as (store, _):
            os.chmod(tmp_path / "a.db", 0o600)
            store.wait(work(store, 9, 20), 30)
            store.vacuum()
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


def test_a_disk_that_fails_while_the_copy_is_made_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    with opened(tmp_path / "a.db") as (store, told):
        store.wait(work(store, 8, 60), 30)
        with monkeypatch.context() as broken:
            broken.setattr(vacuum.os, "fdatasync", refuse)
            with pytest.raises(ApsisError, match="Input/output error"):
                store.vacuum()
        store.vacuum()
        assert told.failing == []
    contents(tmp_path / "a.db")


def test_a_new_table_would_not_be_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as (store, _):
        assert store._db is not None
        store._between(lambda: store._connection().execute("CREATE TABLE more (x)"))
        with pytest.raises(ApsisError, match="does not know the tables more"):
            store.vacuum()


VICTIM = """
import sys, threading
sys.path[:0] = sys.argv[2:]
from test_vacuum import run
from apsislib.clock import WallClock
from apsislib.runs import Note, Save
from apsislib.store import Store
from pathlib import Path
store = Store(Path(sys.argv[1]), WallClock())
store.open()
store.start()
def vacuums():
    while True:
        store.vacuum()
threading.Thread(target=vacuums, daemon=True).start()
number = int(sys.stdin.readline())
while True:
    number += 1
    store.wait(store.put([Save(run(number)), Note(f"r{number}", 1.0, "made")]), 60)
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_instant_nothing_that_was_promised_is_lost(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    path = tmp_path / "a.db"
    here = Path(__file__).parent
    number = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(path), str(here), str(here.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as victim:
            assert victim.stdin is not None and victim.stdout is not None
            victim.stdin.write(f"{number}\n")
            victim.stdin.flush()
            for _ in range(dice.randrange(20, 120)):
                number = int(victim.stdout.readline())
            victim.send_signal(signal.SIGKILL)
            for line in victim.stdout:  # what it had promised before it was killed
                if line.endswith("\n"):
                    number = int(line)
        with opened(path) as (store, _):
            with store.read() as reader:
                there = {found.number for found in reader.runs()}
            assert set(range(1, number + 1)) <= there <= set(range(1, number + 2))
            number = max(there)
            left = [p.name for p in tmp_path.iterdir() if ".vacuum" in p.name]
            assert left == []
        contents(path)


def test_the_file_keeps_its_mode_and_header(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with opened(path) as (store, _):
        os.chmod(path, 0o640)
        store.wait(work(store, 5, 50), 30)
        store.vacuum()
        assert path.stat().st_mode & 0o777 == 0o640
        found = [
            store._between(lambda name=name: store._connection().execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("auto_vacuum", "journal_mode", "page_size", "user_version", "synchronous")
        ]
        assert found == [2, "wal", 4096, len(files.MIGRATIONS), 2]
    (tmp_path / "other.db").touch()
    with pytest.raises(ApsisError):
        Archive(path, tmp_path / "other.db")  # still known as a database of Apsis
