"""Read-only connections, lent to one thread at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from threading import Condition

from apsislib.clock import Clock
from apsislib.errors import Unavailable
from apsislib.store import files
from apsislib.store.damage import Damage
from apsislib.store.reader import Reader

IDLE = 16  # connections kept open for the next reader; opening one takes 0.2 ms


class Pool:
    """Lends readers. Any thread may use it."""

    def __init__(self, path: Path, clock: Clock, timeout: float | None) -> None:
        self.damage = Damage()
        self._path = path
        self._clock = clock
        self._timeout = timeout
        self._changed = Condition()  # protects all below; leaf
        self._idle: list[Connection] = []
        self._lent = 0
        self._paused = False
        self._closed = False

    @contextmanager
    def read(self, limit: float) -> Iterator[Reader]:
        """A Reader whose queries may take `limit` s each. Unavailable: it cannot read, or one took longer."""
        db: Connection | None = None
        with self._changed:
            self._changed.wait_for(lambda: not self._paused)
            self._lent += 1
            if self._idle:
                db = self._idle.pop()
        try:
            if db is None:
                db = files.connect(self._path, "ro", self._timeout)
            yield Reader(db, self._clock, self.damage, limit)
        except sqlite3.Error as error:
            if db is not None:
                db.close()
                db = None
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
                raise Unavailable(f"the query took more than {limit:g} s: narrow it") from error
            raise Unavailable(files.explain(self._path, error)) from error
        finally:
            self._give_back(db)

    def _give_back(self, db: Connection | None) -> None:
        if db is not None:
            db.set_progress_handler(None, 0)
        with self._changed:
            keep = not self._closed and len(self._idle) < IDLE
            if keep and db is not None:
                self._idle.append(db)
        if db is not None and not keep:
            db.close()
        with self._changed:
            self._lent -= 1
            self._changed.notify_all()

    @contextmanager
    def paused(self, limit: float) -> Iterator[bool]:
        """Whether all connections are closed, which takes up to `limit` s. None is lent in the block."""
        with self._changed:
            self._paused = True
            free = self._changed.wait_for(lambda: self._lent == 0, limit)
            idle: list[Connection] = []
            if free:
                idle, self._idle = self._idle, []
        try:
            for db in idle:
                db.close()
            yield free
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    def close(self) -> None:
        """Close the connections; those lent out close when they come back."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
        for db in idle:
            db.close()
