"""Rows that can't be read: left out, said, and counted, so that one never stops what reads many."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from threading import Lock
from typing import Any

from apsislib.runs import Owe
from apsislib.store import outputs
from apsislib.store.rows import COLUMNS, from_row, from_text

log = logging.getLogger(__name__)

UNREADABLE = (ValueError, TypeError, KeyError, RecursionError)  # what reading a damaged row raises
CANT_READ = "its row can't be read"


class Damage:
    """Rows that could not be read: each is logged once, counted, and otherwise left out."""

    def __init__(self) -> None:
        self._lock = Lock()  # protects _seen; leaf
        self._seen: set[tuple[str, Any]] = set()

    @property
    def count(self) -> int:
        return len(self._seen)

    def note(self, table: str, key: Any, error: Exception) -> None:
        with self._lock:
            if (table, key) in self._seen:
                return
            self._seen.add((table, key))
        log.error("unreadable row left out, table=%s key=%s: %s", table, key, error)


def unreadable(db: Connection) -> list[str]:
    """What can't be read of a database whose file is whole: a line for each such row."""
    return [f"{table} {_shown(key)}: {CANT_READ}: {why}" for table, key, why in find(db)]


def damaged_outputs(db: Connection) -> Iterator[str]:
    """A line for each output of which bytes are missing or can't be unpacked. Reads all of them."""
    ids = [row for (row,) in db.execute("SELECT id FROM outputs ORDER BY id")]
    for output in ids:
        # A transaction each: a server that goes on may join chunks, and must not wait for its log to shrink.
        db.execute("BEGIN")
        try:
            sql = "SELECT number, output_id, length FROM outputs WHERE id = ?"
            row = db.execute(sql, (output,)).fetchone()
            if row is None or row[0] < 0:  # deleted meanwhile, or about to be
                continue
            at = outputs.sound(db, output)
            if at != row[2]:
                yield f"outputs {output}: output {_shown(row[1])} of r{row[0]} is damaged at byte {at}"
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


def find(db: Connection) -> Iterator[tuple[str, Any, str]]:
    """(table, key, why) of each row that can't be read. From now on `db` answers bytes for bad UTF-8."""
    db.text_factory = _text
    for table, record in RECORDS.items():
        for row in db.execute(f"SELECT {record.columns} FROM {table} ORDER BY 1"):
            try:
                if any(isinstance(value, bytes) for value in row):
                    raise ValueError("it holds text that is not UTF-8")
                record.read(row)
            except UNREADABLE as error:
                yield table, row[0], str(error)


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _shown(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def read_owed(row: Sequence[Any]) -> Owe:
    return Owe(row[0], from_text(row[1]), dict(json.loads(row[2])))


def read_job(row: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    return row[0], dict(json.loads(row[1]))


@dataclass(frozen=True, slots=True)
class Record:
    """How a table is read: its key, the first of its columns, and what makes of a row what it says."""

    key: str
    columns: str
    read: Callable[[Any], Any]


RECORDS = {
    "runs": Record("number", COLUMNS, from_row),
    "owed": Record("cause", "cause, run, action", read_owed),
    "jobs": Record("job_id", "job_id, job", read_job),
}
