"""Outputs: no gap, no repetition, bounded memory, and never in the way of a transition."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storing import PATIENCE, a_run, opened, output_of, put

from apsislib.clock import Deadline
from apsislib.errors import ApsisError
from apsislib.runs import Forget, Output, Save
from apsislib.states import State
from apsislib.store import Chunk, Grew, Version, files, outputs
from apsislib.store.backlog import Backlog
from apsislib.store.batches import write
from apsislib.store.records import Written


def drained(store, told, run_id: str, length: int) -> None:
    told.wait(lambda: any(grew.run_id == run_id and grew.length >= length for grew in told.grew))


def test_output_comes_back_whole_and_in_windows(tmp_path):
    data = random.Random(1).randbytes(300_000) + b"line of a log\n" * 50_000
    with opened(tmp_path / "apsis.db") as (store, told):
        for at in range(0, len(data), 70_000):
            store.put_output("r1", "output", at, data[at : at + 70_000], "stdout", "text/plain")
        drained(store, told, "r1", len(data))
        assert output_of(store, "r1") == data
        assert output_of(store, "r1", start=5, stop=5) == b""
        assert output_of(store, "r1", start=299_990, stop=300_010) == data[299_990:300_010]
        assert output_of(store, "r1", start=len(data) - 3) == data[-3:]
        assert output_of(store, "r1", start=len(data) + 3) == output_of(store, "r1", stop=-1) == b""
        assert output_of(store, "r1", start=-5, stop=4) == data[:4]
        assert output_of(store, "r2") == output_of(store, "r1", "other") == b""
        with store.read() as reader:
            info = reader.output_info("r1", "output")
            assert (info.name, info.content_type, info.length) == ("stdout", "text/plain", len(data))
            pieces = list(reader.output("r1", "output"))
            assert max(map(len, pieces)) <= outputs.CHUNK
        assert store.output_backlog() == 0


@settings(max_examples=150)
@given(st.data())
def test_overlapping_pieces_make_one_text(data):
    """Whatever overlaps, repeats or comes in whatever batches: what is stored is a prefix of the text."""
    text = random.Random(2).randbytes(data.draw(st.integers(1, 40_000)))
    db = _memory()
    reference = 0
    for number in range(data.draw(st.integers(1, 8))):
        batch = []
        end = reference
        for _ in range(data.draw(st.integers(1, 5))):
            start = data.draw(
                st.integers(
                    max(0, end - 6000), min(len(text), end + (1 if data.draw(st.integers(0, 9)) == 0 else 0))
                )
            )
            stop = data.draw(st.integers(start, min(len(text), start + 9000)))
            batch.append(Chunk("r1", "o", start, text[start:stop]))
            if start <= end:
                end = max(end, stop)
        written = Written()
        write(db, number, [], batch, written)
        gaps = [chunk for chunk, _ in written.refused]
        assert all(isinstance(error, outputs.Gap) for _, error in written.refused)
        assert (Grew("r1", "o", end) in written.grew) == (end > reference)
        assert all(chunk.offset > reference for chunk in gaps)
        reference = end
        _agrees(db, text[:reference])
    db.close()


def _memory():
    db = sqlite3.connect(":memory:", isolation_level=None)
    files.MIGRATIONS[0](db)
    return db


def _agrees(db, text: bytes) -> None:
    """The stored output is `text`; its chunks leave no gap, overlap, or exceed their size."""
    rows = db.execute("SELECT start, size, codec, data FROM chunks ORDER BY start").fetchall()
    end = 0
    for start, size, codec, data in rows:
        assert start == end and 0 < size <= outputs.CHUNK
        assert len(outputs._unpack(codec, data)) == size
        end += size
    assert b"".join(outputs._unpack(row[2], row[3]) for row in rows) == text
    assert outputs.length_of(db, 1, "o") == len(text)


def test_a_run_that_says_little_for_long_makes_few_rows_and_little_work():
    """20 bytes a second for half a day, each in a transaction of its own."""
    db, length, written = _memory(), 0, 0
    output, _ = outputs.open_output(db, 1, "o", "o", "text/plain")
    line = b"still here, 20 byte\n"
    for _ in range(43_200):
        before = db.total_changes
        length = outputs.append(db, output, length, line)
        written += db.total_changes - before
    rows = db.execute("SELECT size FROM chunks ORDER BY start").fetchall()
    assert len(rows) < 20
    assert outputs.window(db, output, length - 1) is not None
    assert written / 43_200 < 4  # rows touched a line: one chunk out, one in, the length
    db.close()


def test_a_gap_is_told_once_and_healed_by_what_was_missing(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, told):
        store.put_output("r1", "output", 0, b"abc")
        drained(store, told, "r1", 3)
        for at in (5, 6, 7):
            store.put_output("r1", "output", at, b"x")
            put(store, Save(a_run(9)))
        store.put_output("r1", "output", 2, b"cdefgh")
        drained(store, told, "r1", 8)
        assert output_of(store, "r1") == b"abcdefgh"
        store.put_output("r1", "output", 99, b"x")
        told.wait(lambda: len(told.unwritable) == 2)
    (chunk, error), (again, _) = told.unwritable
    assert (chunk.run_id, chunk.offset, again.offset) == ("r1", 5, 99)
    assert "has 3 bytes, and what came begins at 5" in str(error)


def test_output_for_something_that_is_no_run_is_refused(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, told):
        store.put_output("nonsense", "output", 0, b"abc")
        store.put_output("r1", "\ud800", 0, b"abc")
        told.wait(lambda: len(told.unwritable) == 2)
        assert told.failing == []


def test_a_verdict_comes_with_what_its_run_has_said(tmp_path):
    with opened(tmp_path / "apsis.db", start=False) as (store, told):
        for other in range(2, 12):  # ten loud neighbours
            store.put_output(f"r{other}", "output", 0, bytes(1 << 20))
        store.put_output("r1", "output", 0, b"last words")
        run = a_run(1)
        seen = []

        def committed(effects, grew):
            if Save(run) in effects:
                seen.append(output_of(store, "r1"))
            told._on_commit(effects, grew)

        store.committed = committed
        ticket = store.put([Save(run), Forget(run)])
        store.start()
        store.wait(ticket, PATIENCE)
        told.wait(lambda: Forget(run) in told.committed)
        assert seen == [b"last words"]


def test_a_verdict_comes_with_all_of_the_output_and_the_agent_may_forget_after_it(tmp_path):
    with opened(tmp_path / "apsis.db", start=False) as (store, told):
        size = 5 << 20  # more than goes with another transaction
        for at in range(0, size, 1 << 20):
            store.put_output("r1", "output", at, random.Random(at).randbytes(1 << 20))
        run = a_run(1)
        lengths = []

        def committed(effects, grew):
            with store.read() as reader:
                info = reader.output_info("r1", "output")
            for effect in effects:
                lengths.append((type(effect).__name__, info.length if info else 0))
            told._on_commit(effects, grew)

        store.committed = committed
        store.put([Save(run), Forget(run)])
        store.start()
        told.wait(lambda: Forget(run) in told.committed)
    assert [name for name, _ in lengths] == ["Save", "Forget"]
    assert [length for _, length in lengths] == [size, size]


def test_transitions_do_not_wait_for_output(tmp_path):
    with opened(tmp_path / "apsis.db", start=False) as (store, told):
        for at in range(0, 20 << 20, 1 << 20):
            store.put_output("r1", "output", at, bytes(1 << 20))
        ticket = store.put([Save(a_run(2, State.STARTING))])
        store.start()
        store.wait(ticket, PATIENCE)
        assert told.grew == [] or told.grew[0].length <= 1 << 20
        drained(store, told, "r1", 20 << 20)


def test_a_reason_goes_after_what_the_program_said(tmp_path):
    with opened(tmp_path / "apsis.db", start=False) as (store, told):
        store.put_output("r1", "output", 0, b"working...\n" * 200_000)
        store.put([Save(a_run(1, State.ERROR)), Output("r1", b"lost: agent gone")])
        store.put([Output("r1", b""), Output("r1", b"trace", "traceback", "traceback")])
        store.start()
        drained(store, told, "r1", 2_200_016)
        assert output_of(store, "r1") == b"working...\n" * 200_000 + b"lost: agent gone"
        assert output_of(store, "r1", "traceback") == b"trace"


def test_outputs_take_turns():
    backlog = Backlog()
    for at in range(10):
        backlog.add(Chunk("r1", "o", at << 20, bytes(1 << 20)))
    backlog.add(Chunk("r2", "o", 0, b"quiet"))
    backlog.add(Chunk("r3", "o", 0, b"ends"))
    backlog.add(Chunk("r3", "other", 0, bytes(3 << 20)))
    assert backlog.waiting("r3") == 4 + (3 << 20)
    first = backlog.take(4 << 20, {"r3"})
    assert sum(len(chunk.data) for chunk in first if chunk.run_id == "r3") == backlog.waiting("r3")
    assert first[0].run_id == "r3" and "r2" in {chunk.run_id for chunk in first}
    assert backlog.pending("r2")  # until it is on disk
    backlog.done(first)
    assert not backlog.pending("r2") and backlog.pending("r1") and not backlog.waiting("r3")
    while chunks := backlog.take(1 << 20, set()):
        assert sum(len(chunk.data) for chunk in chunks) <= 1 << 20
        backlog.done(chunks)
    assert backlog.size == 0 and not backlog and not backlog.pending("r1")


def test_room_is_announced_once_when_half_is_written(tmp_path):
    with opened(tmp_path / "apsis.db", start=False, output_limit=4 << 20) as (store, _):
        calls: list[int] = []
        room = threading.Event()

        def on_room() -> None:
            calls.append(store.output_backlog())
            room.set()

        store.on_room(lambda: calls.append(-1))  # there is room now: at once
        assert calls == [-1] and not store.output_full()
        for at in range(0, 4 << 20, 1 << 20):
            store.put_output("r1", "output", at, bytes(1 << 20))
        assert store.output_full() and store.output_backlog() >= 4 << 20
        store.on_room(on_room)
        assert calls == [-1]
        store.start()
        assert room.wait(PATIENCE)
        assert store.close(Deadline(PATIENCE))
        assert len(calls) == 2 and calls[1] < 2 << 20


def test_damaged_bytes_are_named(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, told):
        store.put_output("r1", "output", 0, b"line\n" * 200_000)
        drained(store, told, "r1", 1_000_000)
        with closing(files.connect(store.path, "rw")) as db:
            db.execute("UPDATE chunks SET data = x'00' WHERE start = ?", (outputs.CHUNK,))
        with pytest.raises(ApsisError, match=f"output output of r1 is damaged at byte {outputs.CHUNK}"):
            output_of(store, "r1")
        assert output_of(store, "r1", stop=10) == b"line\nline\n"
        assert len(output_of(store, "r1", start=2 * outputs.CHUNK)) == 1_000_000 - 2 * outputs.CHUNK


BIG = """
import resource, sys, threading
from pathlib import Path
from apsislib.clock import WallClock
from apsislib.store import Store

store = Store(Path(sys.argv[1]), WallClock())
store.open()
store.start()
block = (b"2031-05-06 07:08:09 INFO a line of some program's log, number %07d\\n" * 16000)[: 1 << 20]
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for at in range(0, int(sys.argv[2]), 1 << 20):
    if store.output_full():
        room = threading.Event()
        store.on_room(room.set)
        room.wait()
    store.put_output("r1", "output", at, block)
assert store.close()
store = Store(Path(sys.argv[1]), WallClock())
store.open()
with store.read() as reader:
    assert sum(map(len, reader.output("r1", "output"))) == int(sys.argv[2])
store.close()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""


def test_a_check_of_the_database_finds_outputs_that_are_damaged(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, told):
        for number in range(1, 6):
            put(store, Save(a_run(number)))
            store.put_output(f"r{number}", "output", 0, b"a line\n" * 100_000)
            drained(store, told, f"r{number}", 700_000)
        assert store.check() == []
        with closing(sqlite3.connect(store.path)) as db, db:
            for number, change in (
                (1, "UPDATE chunks SET data = x'00' WHERE start > 0 AND output = ?"),  # no zlib
                (2, "DELETE FROM chunks WHERE start > 0 AND output = ?"),
                (3, "UPDATE chunks SET codec = 0 WHERE start = 0 AND output = ?"),  # too short
                (4, "UPDATE outputs SET length = length + 1 WHERE id = ?"),
            ):
                sql = "SELECT id FROM outputs WHERE number = ?"
                (row,) = db.execute(sql, (number,)).fetchone()
                db.execute(change, (row,))
        found = [line.partition(": ")[2] for line in store.check()]
        assert found == [
            "output output of r1 is damaged at byte 262144",
            "output output of r2 is damaged at byte 262144",
            "output output of r3 is damaged at byte 0",
            "output output of r4 is damaged at byte 700000",
        ]


def test_an_output_that_is_deleted_while_it_is_read_ends_and_is_not_called_damaged(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, told):
        put(store, Save(a_run(1)))
        data = random.Random(2).randbytes(5_000_000)  # such large ones are freed bit by bit
        store.put_output("r1", "output", 0, data)
        drained(store, told, "r1", len(data))
        with store.read() as reader:
            pieces = reader.output("r1", "output")
            next(pieces)
            store.wait(store.delete_runs([Version("r1", a_run(1).rev)]))
            store.wait(store.sweep(100))
            assert list(pieces) == []


def test_a_large_output_costs_little_memory_on_its_way_in_and_out(tmp_path):
    size = 200 << 20
    child = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "apsis.db"), str(size)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < 50, "MiB"
