"""Rows that can't be read: left out, said, and counted, so that one never stops what reads many."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from sqlite3 import Connection
from threading import Lock
from typing import Any

from apsislib.runs import Owe
from apsislib.store.rows import COLUMNS, from_row, from_text

log = logging.getLogger(__name__)

UNREADABLE = (ValueError, TypeError, KeyError, RecursionError)  # what reading a damaged row raises


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
    found = []
    db.text_factory = lambda text: text.decode("utf-8", "replace")
    for table, columns, read in _RECORDS:
        for row in db.execute(f"SELECT {columns} FROM {table} ORDER BY 1"):
            try:
                read(row)
                if any(isinstance(value, str) and "\ufffd" in value for value in row):
                    raise ValueError("it holds text that is not UTF-8")
            except UNREADABLE as error:
                found.append(f"{table} {row[0]}: its row can't be read: {error}")
    return found


def read_owed(row: Sequence[Any]) -> Owe:
    return Owe(row[0], from_text(row[1]), dict(json.loads(row[2])))


def read_job(row: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    return row[0], dict(json.loads(row[1]))


_RECORDS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("runs", COLUMNS, from_row),
    ("owed", "cause, run, action", read_owed),
    ("jobs", "job_id, job", read_job),
)
