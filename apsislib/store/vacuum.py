"""Vacuuming a database that is in use: a compact copy grows beside it, and then takes its name.

    record    triggers in the writer's own connection note the key of every row that it changes
    copy      VACUUM INTO, of one instant, while the writer goes on
    replay    the rows that were changed meanwhile are brought over, again and again, until few are left
    swap      between two batches: the last few rows; then the file is renamed, and opened anew

Nobody waits but for the swap, some ten milliseconds. Killed before the rename, the old file is whole and
the copy is removed at the next start; after it, the copy is whole: it was synced before.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from sqlite3 import Connection
from threading import Event, Thread
from typing import Any
from urllib.parse import quote

from apsislib.errors import ApsisError
from apsislib.store import files

log = logging.getLogger(__name__)

# What tells the rows of each table apart. (A rowid that has no name may change when it is copied.)
KEYS = {
    "meta": ("name",),
    "runs": ("number",),
    "log": ("number", "seq"),
    "outputs": ("id",),
    "chunks": ("output", "start"),
    "owed": ("seq",),
    "jobs": ("job_id",),
}
FLUSH = 0.02  # s; between two times that what has been copied is written to the disk
FEW = 200  # rows that the swap may bring over: some ms
PASSES = 200  # after which what is written has not become less
RETRY = 0.5  # s; until the next try, where somebody had the database open
PATIENCE = 600.0  # s; for which that is tried
SPARE = 1 << 20  # bytes of room that are left over

Dirty = dict[str, set[tuple[Any, ...]]]


def copy_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.vacuum")


def copied(path: Path) -> int:
    """How large the copy of a vacuum that is under way has become, in bytes."""
    try:
        return copy_of(path).stat().st_size
    except OSError:
        return 0


def sweep(path: Path) -> None:
    """Remove what a vacuum that was cut off has left. Nobody else may be at it."""
    for end in ("", "-wal", "-shm", "-journal"):
        copy_of(path).with_name(copy_of(path).name + end).unlink(missing_ok=True)


class Vacuum:
    """One vacuum of the database at `path`."""

    def __init__(
        self,
        path: Path,
        between: Callable[[Callable[[Connection], Any]], Any],
        swap: Callable[[Callable[[Connection], bool]], bool],
    ) -> None:
        """`between` has a function called with the writer's connection, between two batches. `swap` has
        one called so while nobody reads, if it comes to that at once; True: the file is another now."""
        self._path = path
        self._between = between
        self._swap_by = swap
        self._target = copy_of(path)
        self._copy: Connection | None = None
        self._dirty: Dirty = {}
        self._old: int | None = None  # a descriptor of the file that has lost its name
        self._cancelled = Event()

    def cancel(self) -> None:
        """End it as soon as may be; any thread."""
        self._cancelled.set()
        copy = self._copy
        if copy is not None:
            with suppress(sqlite3.Error):
                copy.interrupt()

    def run(self) -> tuple[int, int]:
        """The sizes before and after, in bytes. ApsisError: it failed, and all is as before."""
        sweep(self._path)
        try:
            before = self._between(_record)
            self._make_copy(before)
            self._bring_over()
            return before, self._path.stat().st_size
        except (sqlite3.Error, OSError, MemoryError) as error:
            if self._cancelled.is_set():
                raise ApsisError("the server is stopping") from error
            raise ApsisError(files.explain(self._path, error)) from error
        finally:
            if self._copy is not None:
                self._copy.close()
            if self._old is not None:
                os.close(self._old)
            with suppress(ApsisError, sqlite3.Error):
                self._between(_forget)
            sweep(self._path)

    def _make_copy(self, before: int) -> None:
        need, free = before + SPARE, shutil.disk_usage(self._path.parent).free
        if free < need:
            raise ApsisError(f"it takes {need:,} bytes of room beside {self._path}, where {free:,} are free")
        found = self._path.stat()
        # Made before it is filled: at no time may more people read it than the database.
        file = os.open(self._target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if (found.st_uid, found.st_gid) != (os.fstat(file).st_uid, os.fstat(file).st_gid):
                os.fchown(file, found.st_uid, found.st_gid)
            os.fchmod(file, found.st_mode & 0o7777)
            with closing(files.connect(self._path, "rw")) as live:  # a read-only one may not copy either
                self._copy = live  # for cancel()
                self._check()
                with _Flushing(file):
                    live.execute("VACUUM INTO ?", (str(self._target),))
                self._copy = None
            os.fsync(file)
        finally:
            os.close(file)
        with closing(sqlite3.connect(self._target, isolation_level=None)) as copy:
            said = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said != "ok":
                raise ApsisError(f"the copy is damaged, so the file is too: {said}")

    def _bring_over(self) -> None:
        tries, passes = int(PATIENCE / RETRY), 0
        while True:
            self._check()
            self._take(self._between(_taken))
            few = self._count() <= FEW
            self._replay()
            if not few:
                passes += 1
                if passes == PASSES:
                    raise ApsisError("more is written than can be brought over: try again when it is less")
                continue
            with closing(files.connect(self._path, "rw")) as live:
                live.execute("PRAGMA wal_checkpoint(PASSIVE)")  # or the swap would have to
            if self._swap_by(self._swap):
                return
            tries -= 1
            if tries == 0:
                raise ApsisError(
                    f"{self._path} was open elsewhere for {PATIENCE:g} s, as by a long query, a download or"
                    " another program: try again when it is not"
                )
            if self._count() <= FEW:
                self._cancelled.wait(RETRY)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise ApsisError("the server is stopping")

    def _take(self, dirty: Dirty) -> None:
        for table, keys in dirty.items():
            self._dirty.setdefault(table, set()).update(keys)

    def _count(self) -> int:
        return sum(map(len, self._dirty.values()))

    def _replay(self) -> None:
        """Bring the rows over that were changed: as they are now, or their absence."""
        copy = self._opened()
        copy.execute("BEGIN IMMEDIATE")
        for table, keys in self._dirty.items():
            copy.executemany(f"DELETE FROM main.{table} WHERE {_where(table)}", keys)
        for table, keys in self._dirty.items():
            # OR REPLACE: what stands in the way has been changed since, and is brought over next.
            copy.executemany(
                f"INSERT OR REPLACE INTO main.{table} SELECT * FROM live.{table} WHERE {_where(table)}", keys
            )
        copy.execute("COMMIT")
        self._dirty = {}

    def _opened(self) -> Connection:
        if self._copy is None:
            copy = sqlite3.connect(
                f"file:{quote(str(self._target))}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,  # the writer's thread has it for the swap, while this one waits
            )
            self._copy = copy
            copy.execute("PRAGMA journal_mode = WAL")
            copy.execute("PRAGMA synchronous = NORMAL")  # it is synced when it is folded
            copy.execute("ATTACH DATABASE ? AS live", (f"file:{quote(str(self._path))}?mode=ro",))
        return self._copy

    def _swap(self, db: Connection) -> bool:
        """(apsis-writer, no reader is lent) Give the copy the file's name, and close `db`. False: not now."""
        self._take(_taken(db))
        if self._count() > FEW:
            return False
        self._replay()
        copy = self._opened()
        marks = [
            copy.execute(f"SELECT value FROM {name}.meta WHERE name = 'batch'").fetchone()
            for name in ("main", "live")
        ]
        if marks[0] != marks[1]:
            raise ApsisError("the copy is not what the database is")
        copy.execute("DETACH DATABASE live")
        folded = copy.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        copy.close()
        self._copy = None
        if folded[0] != 0:
            raise ApsisError("the copy could not be folded")
        # Without a write-ahead log, whose name the new file would take for its own. It is refused while
        # anybody else, of whatever process, has the database open.
        wait = db.execute("PRAGMA busy_timeout").fetchone()[0]
        try:
            db.execute("PRAGMA busy_timeout = 0")
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            db.execute(f"PRAGMA busy_timeout = {wait}")
            db.execute("PRAGMA journal_mode = WAL")
            return False
        try:
            # Whoever closes it last waits for its blocks to be freed: that takes 200 ms of 600 MB.
            self._old = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            os.replace(self._target, self._path)
        except OSError:
            db.execute("ROLLBACK")
            db.execute(f"PRAGMA busy_timeout = {wait}")
            db.execute("PRAGMA journal_mode = WAL")
            raise
        try:
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            # Which of the two files a power cut would leave is not known: nothing may be written any more.
            raise RuntimeError(f"the new name of {self._path} could not be made durable") from error
        db.close()
        return True


class _Flushing:
    """Writes a file to the disk bit by bit while it grows: all at once would hold up every commit.

    OSError on leaving: the disk failed meanwhile, of which a later sync need not tell.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._made = Event()
        self._error: OSError | None = None
        self._thread = Thread(target=self._flush, name="apsis-vacuum-flush")

    def __enter__(self) -> None:
        self._thread.start()

    def _flush(self) -> None:
        try:
            while True:
                os.fdatasync(self._file)
                if self._made.wait(FLUSH):
                    return
        except OSError as error:
            self._error = error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._made.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error


def _where(table: str) -> str:
    return " AND ".join(f"{column} = ?{n}" for n, column in enumerate(KEYS[table], 1))


def _record(db: Connection) -> int:
    """(apsis-writer) From here on, note what is changed. Answers the size of the database, in bytes."""
    tables = {name for (name,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
    if tables != set(KEYS):
        raise ApsisError(f"a vacuum does not know the tables {', '.join(sorted(tables ^ set(KEYS)))}")
    _forget(db)
    db.execute("PRAGMA temp_store = MEMORY")
    for table, columns in KEYS.items():
        # One key many times, rather than a unique one: what the outer statement says of conflicts would
        # hold in here, too.
        db.execute(f"CREATE TEMP TABLE dirty_{table} ({', '.join(columns)})")
        for event, sides in (("INSERT", ("NEW",)), ("DELETE", ("OLD",)), ("UPDATE", ("OLD", "NEW"))):
            keys = (", ".join(f"{side}.{column}" for column in columns) for side in sides)
            notes = " ".join(f"INSERT INTO dirty_{table} VALUES ({key});" for key in keys)
            db.execute(
                f"CREATE TEMP TRIGGER dirty_{table}_{event} AFTER {event} ON main.{table} BEGIN {notes} END"
            )
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    size = db.execute("PRAGMA page_size").fetchone()[0]
    return int(pages * size)


def _taken(db: Connection) -> Dirty:
    """(apsis-writer) The keys noted since the last time. OperationalError: it has connected anew since."""
    found: Dirty = {}
    for table in KEYS:
        keys = set(db.execute(f"SELECT * FROM temp.dirty_{table}"))
        if keys:
            db.execute(f"DELETE FROM temp.dirty_{table}")
            found[table] = keys
    return found


def _forget(db: Connection) -> None:
    """(apsis-writer) Note nothing any more, and be as before also after a swap that failed halfway."""
    db.execute("PRAGMA journal_mode = WAL")
    for table in KEYS:
        for event in ("INSERT", "DELETE", "UPDATE"):
            db.execute(f"DROP TRIGGER IF EXISTS temp.dirty_{table}_{event}")
        db.execute(f"DROP TABLE IF EXISTS temp.dirty_{table}")
