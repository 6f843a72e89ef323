"""Writing one batch in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from sqlite3 import Connection
from typing import Any

from apsislib.runs import Forget, Launch, Note, Output, Owe, Save, Send, SetClock, Settle
from apsislib.store import outputs
from apsislib.store.files import transaction
from apsislib.store.records import (
    Chunk,
    Deleted,
    DeleteRuns,
    DropJob,
    Entry,
    Grew,
    SaveJob,
    SetMeta,
    Sweep,
    Version,
    Written,
    run_id_of,
)
from apsislib.store.rows import SAVE, dump, number_of, to_saved, to_text

# What the entry itself is to blame for: a lone surrogate, a NaN, an occurrence that is taken, nesting
# without end. SQLite has undone the one statement, and the transaction goes on. Anything else that
# SQLite raises is the disk's fault, and the whole batch is tried again.
BLAME = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)

# Not to be done for a run whose record could not be written: a start must be on disk before it
# happens, and an agent keeps what it knows until the verdict is.
HELD_BACK = (Launch, Send, Forget)

LARGE = 4 << 20  # bytes of an output that are freed in a transaction of others


def write(db: Connection, number: int, entries: list[Entry], chunks: list[Chunk], written: Written) -> None:
    """Commit everything of the batch that can be written, and say in `written` what became of it.

    `written` is complete before the commit, so that it holds when only the commit's answer was lost.
    sqlite3.Error (but for BLAME): nothing is written, and the batch may be tried again.
    """
    batch = _Batch(db, written)
    with transaction(db):
        # Output first: a text that comes with the verdict goes after what the program said.
        batch.chunks(chunks)
        batch.entries(entries)
        db.execute("UPDATE meta SET value = ? WHERE name = 'batch'", (number,))


class _Batch:
    def __init__(self, db: Connection, written: Written) -> None:
        self._db = db
        self._written = written
        self._ways: dict[type, Callable[[Any], None]] = {
            Note: self._note,
            Output: self._output,
            SetClock: self._clock,
            Owe: self._owe,
            Settle: self._settle,
            SaveJob: self._save_job,
            DropJob: self._drop_job,
            SetMeta: self._set_meta,
            DeleteRuns: self._delete_runs,
            Sweep: self._sweep,
        }

    # -- state -------------------------------------------------------------------------------------

    def entries(self, entries: list[Entry]) -> None:
        saves: dict[str, list[Save]] = {}
        for entry in entries:
            if type(entry) is Save:
                saves.setdefault(entry.run.run_id, []).append(entry)
        refused = self._saves(saves.values())
        blamed: set[str | None] = set()
        for entry in entries:
            if id(entry) in refused:
                blamed.add(run_id_of(entry))
                continue
            way = self._ways.get(type(entry))
            if way is not None and not self._try(entry, way):
                continue
            if blamed and isinstance(entry, HELD_BACK) and run_id_of(entry) in blamed:
                continue
            self._written.effects.append(entry)

    def _saves(self, groups: Iterable[list[Save]]) -> set[int]:
        """Write each run as it is in the end, or as it was last writable. Returns ids of those refused."""
        refused: set[int] = set()
        for saves in groups:
            for save in reversed(saves):
                if self._try(save, self._save):
                    break
                refused.add(id(save))
        return refused

    def _try(self, entry: Entry, way: Callable[[Any], None]) -> bool:
        try:
            way(entry)
        except BLAME as error:
            self._written.refused.append((entry, error))
            return False
        return True

    def _save(self, save: Save) -> None:
        self._db.execute(SAVE, to_saved(save.run))

    def _note(self, note: Note) -> None:
        self._db.execute(
            "INSERT INTO log (number, seq, time, message)"
            " VALUES (?1, (SELECT coalesce(max(seq) + 1, 0) FROM log WHERE number = ?1), ?2, ?3)",
            (number_of(note.run_id), note.time, note.message),
        )

    def _clock(self, clock: SetClock) -> None:
        self._set_meta(SetMeta("clock", clock.time))

    def _owe(self, owe: Owe) -> None:
        self._db.execute(
            "INSERT INTO owed (cause, run, action) VALUES (?, ?, ?)",
            (owe.cause, to_text(owe.run), dump(owe.action)),
        )

    def _settle(self, settle: Settle) -> None:
        self._db.execute("DELETE FROM owed WHERE cause = ?", (settle.cause,))

    def _save_job(self, save: SaveJob) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO jobs (job_id, job) VALUES (?, ?)", (save.job_id, dump(save.job))
        )

    def _drop_job(self, drop: DropJob) -> None:
        self._db.execute("DELETE FROM jobs WHERE job_id = ?", (drop.job_id,))

    def _set_meta(self, meta: SetMeta) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (meta.name, meta.value))

    def _delete_runs(self, delete: DeleteRuns) -> None:
        gone = [version.run_id for version in delete.runs if self._is_still(version)]
        numbers = dump([number_of(run_id) for run_id in gone])
        among = "IN (SELECT value FROM json_each(?))"
        # To free the pages of a large output takes seconds, for which nobody should have to wait. It
        # gets a number that no run has, and is swept away bit by bit.
        self._db.execute(
            f"UPDATE outputs SET number = -number WHERE length > ? AND number {among}", (LARGE, numbers)
        )
        self._db.execute(
            f"DELETE FROM chunks WHERE output IN (SELECT id FROM outputs WHERE number {among})", (numbers,)
        )
        for table in ("outputs", "log", "runs"):
            self._db.execute(f"DELETE FROM {table} WHERE number {among}", (numbers,))
        self._written.effects.append(Deleted(tuple(gone)))

    def _sweep(self, sweep: Sweep) -> None:
        doomed = self._db.execute("SELECT id FROM outputs WHERE number < 0 LIMIT 1").fetchone()
        if doomed is None:
            return
        some = "SELECT rowid FROM chunks WHERE output = ? LIMIT ?"
        freed = self._db.execute(f"DELETE FROM chunks WHERE rowid IN ({some})", (*doomed, sweep.chunks))
        if freed.rowcount < sweep.chunks:
            self._db.execute("DELETE FROM outputs WHERE id = ?", doomed)

    def _is_still(self, version: Version) -> bool:
        """Whether nothing was added to the run since it was seen: a mark, a log line, output."""
        number = number_of(version.run_id)
        rev = self._db.execute("SELECT rev FROM runs WHERE number = ?", (number,)).fetchone()
        if rev != (version.rev,):
            return False
        if version.entries is not None:
            sql = "SELECT count(*) FROM log WHERE number = ?"
            if self._db.execute(sql, (number,)).fetchone() != (version.entries,):
                return False
        if version.lengths is not None:
            sql = "SELECT length FROM outputs WHERE number = ? ORDER BY output_id"
            if tuple(length for (length,) in self._db.execute(sql, (number,))) != version.lengths:
                return False
        return True

    # -- output ------------------------------------------------------------------------------------

    def _output(self, output: Output) -> None:
        """A text that ends a run, after what the run's program may have said already."""
        if not output.data:
            return
        with _savepoint(self._db):
            number = number_of(output.run_id)
            row, length = outputs.open_output(
                self._db, number, output.output_id, output.name, output.content_type
            )
            length = outputs.append(self._db, row, length, output.data)
        self._written.grew.append(Grew(output.run_id, output.output_id, length))

    def chunks(self, chunks: list[Chunk]) -> None:
        groups: dict[tuple[str, str], list[Chunk]] = {}
        for chunk in chunks:
            groups.setdefault(chunk.key, []).append(chunk)
        for group in groups.values():
            try:
                with _savepoint(self._db):
                    self._append(group)
            except BLAME as error:
                self._written.refused.extend((chunk, error) for chunk in group)

    def _append(self, group: list[Chunk]) -> None:
        """Put the pieces of one output in their places, as one piece."""
        first = group[0]
        number = number_of(first.run_id)
        end = length = outputs.length_of(self._db, number, first.output_id)
        new: list[bytes] = []
        gaps: list[tuple[Chunk, Exception]] = []
        for chunk in group:
            try:
                data = outputs.splice(end, chunk.offset, chunk.data)
            except outputs.Gap as gap:
                gaps.append((chunk, gap))
            else:
                new.append(data)
                end += len(data)
        if end > length:
            row, _ = outputs.open_output(self._db, number, first.output_id, first.name, first.content_type)
            outputs.append(self._db, row, length, b"".join(new))
            self._written.grew.append(Grew(first.run_id, first.output_id, end))
        self._written.refused.extend(gaps)


class _savepoint:  # noqa: N801
    """Undo the statements of the block where one fails, and only these."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("SAVEPOINT part")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and self._db.in_transaction:
            self._db.execute("ROLLBACK TO part")
        if self._db.in_transaction:
            self._db.execute("RELEASE part")
