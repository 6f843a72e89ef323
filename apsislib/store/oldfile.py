"""A database of Apsis 2, of any release, read without being changed.

Its tables are walked by row ID, a few hundred rows at a time, so that memory does not grow with them.
What SQLite can't read is named and passed over.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any
from urllib.parse import quote

from apsislib.errors import ApsisError
from apsislib.store import files
from apsislib.store.outputs import PIECE

# Table -> the columns that are read. Those after None came with later releases, and read as NULL before.
TABLES: dict[str, tuple[str | None, ...]] = {
    "jobs": ("job_id", "job"),
    "runs": ("run_id", "timestamp", "job_id", "args", "state", "times", "meta", None, "program")
    + ("run_state", "rerun", "expected", "conds", "actions"),
    "run_history": ("run_id", "timestamp", "message"),
    "output": ("run_id", "output_id", "name", "content_type", "length", None, "compression"),
}
OPTIONAL = {"jobs"}  # tables that very old files lack
STRETCH = 1000  # rows


@dataclass(slots=True)
class Stretch:
    """Some rows of a table: (row ID, values of TABLES), and those that SQLite can't read."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    damaged: list[tuple[int, str]] = field(default_factory=list)  # row ID, why
    last: int = 0  # everything up to this row ID has been walked
    ended: bool = False


class OldFile:
    """Open for reading, as it is at this instant. To be used by one thread."""

    def __init__(self, path: Path) -> None:
        """ApsisError: it is something else, or can't be read."""
        self.path = Path(path)
        if not self.path.is_file():
            raise ApsisError(f"there is no database {path}")
        try:
            self._db = _open(self.path)
        except sqlite3.Error as error:
            raise ApsisError(files.explain(self.path, error)) from error
        try:
            self._db.text_factory = bytes  # decoded one by one: a text may be damaged
            self._columns = self._read_columns()
            self._db.execute("BEGIN")
            self.ends = {table: self._end(table) for table in self._columns}  # their last row IDs
            self._counts: dict[str, int] = {}
            self._fingerprint = ""
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.Error):
                raise ApsisError(files.explain(self.path, error)) from error
            raise

    def close(self) -> None:
        self._db.close()

    def _read_columns(self) -> dict[str, list[str]]:
        """For each table that is there, what to select."""
        tables = {bytes(name).decode("utf-8", "replace") for name in self._names()}
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        if application == files.APPLICATION_ID:
            raise ApsisError(
                f"{self.path} is a database of this Apsis already: set database.path to it, there is"
                " nothing to import"
            )
        if application == files.ARCHIVE_ID or ("run_history" in tables and "clock" not in tables):
            raise ApsisError(f"{self.path} is an archive: look into it with apsis archive query {self.path}")
        if not tables >= files.OLD_TABLES:
            raise ApsisError(f"{self.path} is not a database of Apsis 2")
        found: dict[str, list[str]] = {}
        for table, wanted in TABLES.items():
            if table not in tables and table in OPTIONAL:
                continue
            there = {bytes(row[1]).decode() for row in self._db.execute(f"PRAGMA table_info({table})")}
            needed = list(wanted[: wanted.index(None)] if None in wanted else wanted)
            lacking = [name for name in needed if name not in there]
            if lacking:
                raise ApsisError(f"{self.path}: table {table} has no column {', '.join(map(str, lacking))}")
            found[table] = [
                name if name in there else f"NULL AS {name}" for name in wanted if name is not None
            ]
        if "output" in found:
            found["output"].append("typeof(data)")
        return found

    def _names(self) -> list[Any]:
        return [name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]

    def _end(self, table: str) -> int:
        return self._db.execute(f"SELECT max(rowid) FROM {table} NOT INDEXED").fetchone()[0] or 0

    # -- the whole ---------------------------------------------------------------------------------

    def clock(self) -> float | None:
        """Everything due up to this instant had been started. ApsisError: it can't be read."""
        try:
            return _number(self._first("SELECT max(time) FROM clock"))
        except sqlite3.Error as error:
            raise ApsisError(files.explain(self.path, error)) from error

    def clock_now(self) -> float | None:
        """The same as somebody else sees it, who may be writing it. ApsisError: it can't be read."""
        try:
            with closing(_open(self.path)) as db:
                return _number(db.execute("SELECT max(time) FROM clock").fetchone()[0])
        except sqlite3.Error as error:
            raise ApsisError(files.explain(self.path, error)) from error

    def next_run(self) -> int:
        """A run number that neither was nor will have been used."""
        numbers: list[float | None] = [1]
        with suppress(sqlite3.DatabaseError):  # very old files have no such table
            numbers.append(_number(self._first("SELECT max(number) FROM next_run_id")))
        for table in ("runs", "run_history", "output"):
            with suppress(sqlite3.DatabaseError):  # what is damaged is heard of when it is read
                used = self._first(f"SELECT max(CAST(substr(run_id, 2) AS INTEGER)) FROM {table} NOT INDEXED")
                numbers.append((_number(used) or 0) + 1)
        # What is no number, or of a magnitude that no scheduler reaches, is a damaged text.
        return max(int(number) for number in numbers if number is not None and number < 1e15)

    def counts(self) -> dict[str, int]:
        """Rows of each table."""
        for table in self.ends.keys() - self._counts.keys():
            try:
                self._counts[table] = int(self._first(f"SELECT count(*) FROM {table} NOT INDEXED"))
            except sqlite3.DatabaseError:  # damaged: no more than
                self._counts[table] = self.ends[table]
        return dict(self._counts)

    def fingerprint(self) -> str:
        """A text that changes when a server has used the file."""
        if not self._fingerprint:
            whole = [self.clock(), self.next_run(), self.ends, self.counts()]
            self._fingerprint = json.dumps(whole, sort_keys=True)
        return self._fingerprint

    def packed_by_brotli(self) -> int:
        """How many outputs are."""
        if not any(name == "compression" for name in self._columns["output"]):
            return 0
        try:
            return int(self._first("SELECT count(*) FROM output NOT INDEXED WHERE compression = 'br'"))
        except sqlite3.DatabaseError as error:
            self._heed(error)
            at = self._columns["output"].index("compression") + 1  # behind the row ID
            return sum(row[at] == b"br" for row in self._readable("output"))

    def _first(self, sql: str) -> Any:
        row = self._db.execute(sql).fetchone()
        return None if row is None else row[0]

    # -- its rows ----------------------------------------------------------------------------------

    def rows(self, table: str, after: int, limit: int) -> Stretch:
        """The next rows of a table past the row ID `after`. ApsisError: the disk fails."""
        if table not in self._columns:
            return Stretch(last=after, ended=True)
        select = f"SELECT rowid, {', '.join(self._columns[table])} FROM {table} NOT INDEXED"
        try:
            rows = self._db.execute(
                f"{select} WHERE rowid > ? ORDER BY rowid LIMIT ?", (after, limit)
            ).fetchall()
        except sqlite3.DatabaseError as error:
            self._heed(error)
            return self._one_by_one(table, select, after, limit)
        return Stretch(rows, last=rows[-1][0] if rows else after, ended=len(rows) < limit)

    def _readable(self, table: str) -> Iterator[tuple[Any, ...]]:
        """Every row of a damaged table that can be read."""
        after, ended = 0, False
        while not ended:
            stretch = self.rows(table, after, STRETCH)
            yield from stretch.rows
            after, ended = stretch.last, stretch.ended

    def _one_by_one(self, table: str, select: str, after: int, limit: int) -> Stretch:
        stop = min(after + limit, self.ends[table])
        found = Stretch(last=stop, ended=stop >= self.ends[table])
        for rowid in range(after + 1, stop + 1):
            try:
                found.rows += self._db.execute(f"{select} WHERE rowid = ?", (rowid,)).fetchall()
            except sqlite3.DatabaseError as error:
                self._heed(error)
                found.damaged.append((rowid, str(error)))
        return found

    def data(self, rowid: int) -> Iterator[bytes]:
        """The bytes of an output, as they are stored. ApsisError: they are damaged, or the disk fails."""
        try:
            with self._db.blobopen("output", "data", rowid, readonly=True) as blob:
                while piece := blob.read(PIECE):
                    yield piece
        except sqlite3.Error as error:
            raise ApsisError(f"its bytes can't be read: {error}") from error

    def _heed(self, error: sqlite3.DatabaseError) -> None:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH):
            raise ApsisError(files.explain(self.path, error)) from error


def _open(path: Path) -> Connection:
    if any(path.with_name(path.name + end).exists() for end in ("-wal", "-journal")):
        return files.connect(path, "ro")
    # Nobody has it open, nor died while writing. So nothing needs to be put beside it, where a server
    # that is started again, as another user perhaps, would find it; and its directory may be read-only.
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, isolation_level=None, cached_statements=256
    )
    db.execute("PRAGMA query_only = ON")
    return db


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value else None
