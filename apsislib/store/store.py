"""Everything on disk. One thread writes; any thread reads."""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from threading import Condition, Event, Lock, Thread
from typing import Any

from apsislib.clock import Clock, Deadline
from apsislib.errors import ApsisError, Unavailable
from apsislib.figures import Extent
from apsislib.runs import Forget, Output, Save
from apsislib.states import finished
from apsislib.store import files
from apsislib.store.backlog import Backlog
from apsislib.store.backups import backup
from apsislib.store.batches import write
from apsislib.store.damage import damaged_outputs, unreadable
from apsislib.store.mending import mend
from apsislib.store.pool import Pool
from apsislib.store.reader import Reader
from apsislib.store.records import Chunk, DeleteRuns, Entry, Grew, SetMeta, Sweep, Version, Written, run_id_of
from apsislib.store.rows import number_of
from apsislib.store.vacuum import Vacuum, sweep

log = logging.getLogger(__name__)

# Effects a transaction: 20 ms or so of work, after which agents are acted on. Larger ones are no faster.
BATCH = 10_000
OUTPUT_BATCH = 1 << 20  # bytes of output a transaction: 15 ms or so, which a transition may have to wait
OUTPUT_LIMIT = 32 << 20  # bytes of output in memory, beyond which agents are not asked for more
BOX_LIMIT = 100_000  # effects not on disk, beyond which nothing new is to be started
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # s; between tries to write on a disk that refuses
SWAP = 0.05  # s; for which readers are waited for before the file is swapped, and new ones wait
QUERY_LIMIT = 30.0  # s; a query beyond this is ended


@dataclass(slots=True)
class _Batch:
    puts: int
    entries: list[Entry]
    chunks: list[Chunk]


class _Chore:
    """Work for the writer between two batches, that somebody waits for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.done = Event()
        self.answer: Any = None
        self.error: BaseException | None = None


def _ignore(*_: Any) -> None:
    pass


class Store:
    """The database at `path`.

    put() and put_output() hand over to `apsis-writer` and never block; wait() waits for the disk.
    read() gives the calling thread a read-only connection, taken back on leaving the block.

    The callbacks are attributes, to be set before start(). All are called on `apsis-writer`, with no
    lock held; what they raise is logged, and costs nothing else.

    committed(effects, grew)   after each commit: what was decided, in order, now to be acted on
    unwritable(effect, error)  an effect (or Chunk) that cannot be stored; the rest of its batch was.
                               committed() is not given the run's Launch, Send and Forget after it.
    failing(message or None)   the disk refuses; None: no longer. All is kept and tried again.
    on_death(error)            the thread has failed, and nothing will be written any more
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        timeout: float | None = None,
        *,
        committed: Callable[[list[Any], list[Grew]], None] = _ignore,
        failing: Callable[[str | None], None] = _ignore,
        unwritable: Callable[[Any, Exception], None] = _ignore,
        on_death: Callable[[BaseException], None] = _ignore,
        output_limit: int = OUTPUT_LIMIT,
    ) -> None:
        """`timeout`: seconds to wait for a lock held by another program (5). `output_limit`: bytes."""
        self.path = Path(path).resolve()
        self.committed = committed
        self.failing = failing
        self.unwritable = unwritable
        self.on_death = on_death
        self.installation = ""  # UUID, known once open
        self._clock = clock
        self._timeout = timeout
        self._output_limit = output_limit
        self._pool = Pool(self.path, clock, timeout)
        self._file_lock: files.Lock | None = None
        self._identity = (0, 0)
        # Used by apsis-writer alone from start() on.
        self._db: Connection | None = None
        self._batches = 0  # transactions ever made in this database; the same is in its meta table
        self._gaps: set[tuple[str, str]] = set()  # outputs that miss bytes
        self._failed_at = 0.0  # monotonic
        self._thread: Thread | None = None

        self._lock = Lock()  # protects all below; leaf: take nothing under it
        self._filled = Condition(self._lock)  # _puts or _backlog is no longer empty, or the end was asked for
        self._stored = Condition(self._lock)  # _done grew, or _failure or _dead changed
        self._puts: deque[list[Entry]] = deque()  # handed over, in order of decision; a put is never split
        self._put = 0  # puts ever: tickets
        self._done = 0  # the first so many of them are committed
        self._waiting = 0  # effects handed over and not committed, those being written included
        self._writing: list[Entry] = []  # these
        self._backlog = Backlog()
        self._room: list[Callable[[], None]] = []  # to be called when the backlog has shrunk
        self._chores: list[_Chore] = []
        self._vacuum: Vacuum | None = None  # the one under way
        self._held: list[Forget] = []  # their verdicts are on disk, some of their output is not
        self._next_run = 1
        self._failure: str | None = None
        self._dead: BaseException | None = None
        self._closing = False  # nothing more is taken; what is here is written
        self._abandoned = False  # what cannot be written at once is given up
        self._counts = {"commits": 0, "effects": 0, "refused": 0}
        self._began: float | None = None  # monotonic; since when the commit under way is tried
        self._took, self._sizes = Extent(), Extent()  # of commits: seconds, and effects of each

    # -- life --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the database, making or migrating it. ApsisError: it cannot be used, and what to do."""
        lock = files.Lock(self.path)
        try:
            sweep(self.path)
            db = files.open_database(self.path, self._timeout)
            try:
                meta = dict(db.execute("SELECT name, value FROM meta"))
                last = db.execute("SELECT max(number) FROM runs").fetchone()[0] or 0
                self._next_run = max(int(meta["next_run"]), last + 1)
                self._batches = int(meta["batch"])
                self.installation = str(meta["installation"])
                self._identity = files.identity(self.path)
            except (sqlite3.Error, KeyError, OSError) as error:
                db.close()
                raise ApsisError(files.explain(self.path, error)) from error
        except BaseException:
            lock.release()
            raise
        self._db, self._file_lock = db, lock

    def start(self) -> None:
        """Begin to write. The thread ends after close(), or dies (see on_death)."""
        assert self._db is not None and self._thread is None
        # Daemon: a disk that hangs in a write must not keep the process from ending at its deadline.
        self._thread = Thread(target=self._run, name="apsis-writer", daemon=True)
        self._thread.start()

    def close(self, deadline: Deadline | None = None) -> bool:
        """Write what has been handed over, and close. False: not all could be, which was logged."""
        with self._lock:
            self._closing = True
            self._filled.notify_all()
            vacuum = self._vacuum
        if vacuum is not None:
            vacuum.cancel()
        if self._thread is not None:
            self._thread.join(deadline.left() if deadline else None)
            if self._thread.is_alive():
                with self._lock:
                    self._abandoned = True
                    self._filled.notify_all()
                self._thread.join(1.0)  # s; a pause ends at once, a write that hangs never might
        with self._lock:
            lost, output = self._waiting, self._backlog.size
        self._pool.close()
        if lost or output:
            log.error(
                "database %s: closed without having stored effects=%d output_bytes=%d",
                self.path,
                lost,
                output,
            )
        if self._thread is not None and self._thread.is_alive():
            return False  # its connection and lock end with the process
        if self._db is not None:
            try:
                self._db.close()  # checkpoints
            except sqlite3.Error as error:
                log.warning("database %s: %s at close", self.path, error)
            self._db = None
        if self._file_lock is not None:
            self._file_lock.release()
            self._file_lock = None
        return not (lost or output)

    # -- writing -----------------------------------------------------------------------------------

    def put(self, effects: Iterable[Entry]) -> int:
        """Hand over what one decision led to: one transaction, in order with other puts. Returns a ticket.

        Unavailable: the store is closing.
        """
        entries = list(effects)
        with self._lock:
            self._refuse_when_ending()
            self._puts.append(entries)
            self._put += 1
            self._waiting += len(entries)
            self._filled.notify()
            return self._put

    def unwritten(self) -> list[Entry]:
        """What has been handed over and `committed` is still to be told of, in order."""
        with self._lock:
            return [*self._writing, *(entry for entries in self._puts for entry in entries)]

    def wait(self, ticket: int, timeout: float | None = None) -> None:
        """Return once the put is on disk.

        Unavailable: not within `timeout` s, or the disk refuses; it will still be written when that ends.
        """
        with self._lock:

            def settled() -> bool:
                return self._done >= ticket or self._failure is not None or self._dead is not None

            if not self._stored.wait_for(settled, timeout):
                raise Unavailable(f"not on disk after {timeout:g} s, but will be: look again")
            if self._done < ticket:
                if self._dead is not None:
                    raise Unavailable("the database writer has failed")
                raise Unavailable(f"not on disk yet: {self._failure}")

    def put_output(
        self,
        run_id: str,
        output_id: str,
        offset: int,
        data: bytes,
        name: str = "combined stdout & stderr",
        content_type: str = "application/octet-stream",
    ) -> None:
        """Hand over bytes of an output that begin at `offset`. What is there already is not written again.

        Look at output_full() before asking for more. Unavailable: the store is closing.
        """
        chunk = Chunk(run_id, output_id, offset, bytes(data), name, content_type)
        with self._lock:
            self._refuse_when_ending()
            self._backlog.add(chunk)
            self._filled.notify()

    def output_backlog(self) -> int:
        """Bytes of memory that output takes until it is on disk."""
        with self._lock:
            return self._backlog.size

    def output_full(self) -> bool:
        """Whether agents should not be asked for more output now."""
        with self._lock:
            return self._backlog.size >= self._output_limit

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when less than half the limit is waiting: at once, if that is so now."""
        with self._lock:
            room = self._backlog.size < self._output_limit // 2
            if not room:
                self._room.append(callback)
        if room:
            callback()

    def reserve(self, number: int, timeout: float | None = 30.0) -> int:
        """Set aside `number` run numbers, on disk before this returns. Returns the first of them.

        Not to be called under the driver's lock. Unavailable: as for wait().
        """
        with self._lock:
            first = self._next_run
            self._next_run += number
            entry = SetMeta("next_run", self._next_run)
            started = self._thread is not None
            if started:
                self._refuse_when_ending()
                self._puts.append([entry])
                self._put += 1
                self._waiting += 1
                ticket = self._put
                self._filled.notify()
        if started:
            self.wait(ticket, timeout)
        else:
            self._write_now([entry])
        return first

    def delete_runs(self, versions: Collection[Version]) -> int:
        """Remove finished runs, a hundred or so, with their logs and outputs. Returns a ticket.

        Runs that are no longer as they were seen stay.
        """
        for version in versions:
            number_of(version.run_id)  # ValueError now, not when it is written
        return self.put([DeleteRuns(tuple(versions))])

    def sweep(self, chunks: int) -> int:
        """Free so many chunks, of up to 256 KiB, of the large outputs of deleted runs. Returns a ticket."""
        return self.put([Sweep(chunks)])

    def vacuum(self) -> tuple[int, int]:
        """Rewrite the file without gaps. Returns its size before and after, in bytes.

        Takes long, of the calling thread; writer and readers go on. Whenever it is cut off, the file is
        whole. One at a time. ApsisError: it failed, for want of room say.
        """
        with self._lock:
            self._refuse_when_ending()
            if self._vacuum is not None:
                raise ApsisError("the database is being vacuumed already")
            vacuum = self._vacuum = Vacuum(
                self.path,
                lambda work: self._between(lambda: work(self._connection())),
                lambda change: bool(self._between(lambda: self._swap(change))),
            )
        try:
            return vacuum.run()
        except ApsisError as error:
            raise ApsisError(f"the database can't be vacuumed: {error}") from error
        finally:
            with self._lock:
                self._vacuum = None

    def told(self) -> None:
        """Returns once `committed` has been called for all that is on disk. ApsisError: it is closing."""
        self._between(lambda: None)

    def _between(self, work: Callable[[], Any]) -> Any:
        """Have the writer do it between two batches: what it answers or raises. ApsisError: it has ended."""
        chore = _Chore(work)
        with self._lock:
            self._refuse_when_ending()
            self._chores.append(chore)
            self._filled.notify()
        chore.done.wait()
        if chore.error is not None:
            raise chore.error
        return chore.answer

    def _connection(self) -> Connection:
        assert self._db is not None
        return self._db

    def _swap(self, change: Callable[[Connection], bool]) -> bool:
        """(apsis-writer only) Let another file take the name of this one, if nobody reads."""
        with self._pool.paused(SWAP) as free:
            if not free or not change(self._connection()):
                return False
            self._identity = files.identity(self.path)
            self._db = files.connect(self.path, "rw", self._timeout)
            return True

    def has_pending(self, run_id: str) -> bool:
        """Whether output of the run is not on disk yet."""
        with self._lock:
            return self._backlog.pending(run_id)

    def output_waiting(self, run_id: str) -> int:
        """How many bytes of the run's output are not on disk yet."""
        with self._lock:
            return self._backlog.waiting(run_id)

    def _write_now(self, entries: list[Entry]) -> None:
        """Before start(), when this thread owns the connection."""
        assert self._db is not None
        try:
            self._batches += 1
            write(self._db, self._batches, entries, [], Written())
        except sqlite3.Error as error:
            raise Unavailable(files.explain(self.path, error)) from error

    def _refuse_when_ending(self) -> None:
        assert self._lock.locked()
        if self._dead is not None:
            raise Unavailable("the database writer has failed")
        if self._closing:
            raise Unavailable("the server is stopping")

    # -- how it is -----------------------------------------------------------------------------------

    @property
    def braked(self) -> bool:
        """Whether nothing new is to be started: the disk refuses, or is far behind."""
        with self._lock:
            return self._failure is not None or self._dead is not None or self._waiting > BOX_LIMIT

    def stats(self) -> dict[str, Any]:
        """Figures for /stats: counts since the start, sizes in bytes."""
        with self._lock:
            figures: dict[str, Any] = {
                **self._counts,
                "waiting": self._waiting,
                "output_backlog": self._backlog.size,
                "failing": self._failure,
            }
        figures["commit"], figures["batch"] = self._took.json(), self._sizes.json()
        began = self._began
        figures["committing"] = 0.0 if began is None else self._clock.monotonic() - began
        figures["unreadable"] = self._pool.damage.count
        for name, path in (("size", self.path), ("wal_size", self.path.with_name(self.path.name + "-wal"))):
            figures[name] = path.stat().st_size if path.exists() else 0
        return figures

    # -- reading -----------------------------------------------------------------------------------

    def read(self, limit: float = QUERY_LIMIT) -> AbstractContextManager[Reader]:
        """`with store.read() as reader:` lends this thread a Reader. A query beyond `limit` s is ended.

        Unavailable: the database cannot be read, or a query took too long.
        """
        return self._pool.read(limit)

    def backup(self, target: Path) -> None:
        """Copy the database, as it is at one instant, to a new file. ApsisError: it cannot be done."""
        backup(self.path, Path(target))

    def check(self) -> list[str]:
        """What is damaged in the file, one finding a line; empty: nothing. Reads all of it."""
        try:
            db = files.connect(self.path, "ro", self._timeout)
            try:
                found = [text for (text,) in db.execute("PRAGMA integrity_check")]
                return [*unreadable(db), *damaged_outputs(db)] if found == ["ok"] else found
            finally:
                db.close()
        except sqlite3.Error as error:
            return [str(error)]

    def mend(self) -> list[str]:
        """(not opened) Mend rows that can't be read: see mending.py. What was done, a line a row."""
        return mend(self.path, self._timeout, self._clock.wall())

    # -- apsis-writer ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while batch := self._take():
                if batch.puts or batch.chunks:
                    self._began = self._clock.monotonic()
                    written = self._commit(batch)
                    if written is None:
                        return
                    self._took.add(self._clock.monotonic() - self._began)
                    self._began = None
                    self._sizes.add(len(batch.entries))
                    self._tell(batch, written)
                self._do_chores()
        except BaseException as error:
            log.critical("database %s: the writer has failed", self.path, exc_info=True)
            with self._lock:
                self._dead = error
                self._stored.notify_all()
            self.on_death(error)
        finally:
            with self._lock:
                self._closing = True  # nobody may wait for what is not done any more
                chores, self._chores = self._chores, []
            for chore in chores:
                chore.error = ApsisError("the server is stopping")
                chore.done.set()

    def _do_chores(self) -> None:
        """(apsis-writer only) What somebody waits for between two batches. Its errors are theirs."""
        with self._lock:
            chores, self._chores = self._chores, []
        for chore in chores:
            try:
                chore.answer = chore.work()
            except (ApsisError, sqlite3.Error, OSError, MemoryError) as error:
                chore.error = error
            finally:
                chore.done.set()

    def _take(self) -> _Batch | None:
        """(apsis-writer only) What has gathered; of output, as much as may delay a transition.

        Waits until there is something. None: closed, and nothing is left.
        """
        with self._lock:
            self._filled.wait_for(lambda: self._puts or self._backlog or self._chores or self._closing)
            if self._abandoned or not (self._puts or self._backlog or (self._chores and not self._closing)):
                return None
            entries: list[Entry] = []
            puts = 0
            while self._puts and (not entries or len(entries) + len(self._puts[0]) <= BATCH):
                entries += self._puts.popleft()
                puts += 1
            # A verdict comes with all that its run has said: after a crash nobody would ask for the rest.
            # (That it is not much is up to who reports the end.) And a text that goes after what the run
            # has said cannot be written before it.
            whole = {
                entry.run.run_id for entry in entries if isinstance(entry, Save) and finished(entry.run.state)
            }
            whole |= {entry.run_id for entry in entries if isinstance(entry, Output)}
            self._writing = entries
            return _Batch(puts, entries, self._backlog.take(OUTPUT_BATCH, whole))

    def _commit(self, batch: _Batch) -> Written | None:
        """(apsis-writer only) Write the batch, trying for as long as it takes. None: given up at close."""
        self._batches += 1
        pause = FIRST_PAUSE
        while True:
            written = Written()
            try:
                self._see_file()
                assert self._db is not None
                write(self._db, self._batches, batch.entries, batch.chunks, written)
                return written
            except (sqlite3.Error, OSError, MemoryError) as error:
                self._brake(error)
                damaged = files.is_damaged(error)
            # Another connection: one that has seen an I/O error may go on seeing it.
            reopened = False
            while not reopened:
                with self._lock:
                    if self._filled.wait_for(partial(self._gives_up_locked, damaged), pause):
                        return None
                pause = min(2 * pause, LONGEST_PAUSE)
                try:
                    done = self._reopen()
                    reopened = True
                except (sqlite3.Error, OSError) as error:
                    self._brake(error)
            if done == self._batches:  # only the answer of that commit was lost
                return written

    def _gives_up_locked(self, damaged: bool) -> bool:
        """Whether to close without what can't be written. Room may be made till then; no file heals."""
        return self._abandoned or (self._closing and damaged)

    def _reopen(self) -> int:
        """(apsis-writer only) Connect again. Returns the number of the last batch in the file."""
        self._see_file()
        if self._db is not None:
            old, self._db = self._db, None
            old.close()
        self._db = files.connect(self.path, "rw", self._timeout)
        batch: int = self._db.execute("SELECT value FROM meta WHERE name = 'batch'").fetchone()[0]
        return batch

    def _see_file(self) -> None:
        """SQLite would go on writing to a file that has lost its name, and a restart would not see it."""
        if not self.path.exists() or files.identity(self.path) != self._identity:
            raise OSError("the file was moved, deleted or replaced while in use: put it back, or restart")

    def _brake(self, error: BaseException) -> None:
        message = files.explain(self.path, error)
        with self._lock:
            first = self._failure is None
            changed = message != self._failure
            self._failure = message
            self._stored.notify_all()
        if changed:
            log.error("%s; nothing new is started until it can be written, and nothing is lost", message)
        if first:
            self._failed_at = self._clock.monotonic()
            self._call(self.failing, message)

    def _tell(self, batch: _Batch, written: Written) -> None:
        """(apsis-writer only) The batch is on disk: let go of it, and say so."""
        with self._lock:
            self._done += batch.puts
            self._waiting -= len(batch.entries)
            self._writing = []
            self._backlog.done(batch.chunks)
            failure, self._failure = self._failure, None
            self._counts["commits"] += 1
            self._counts["effects"] += len(batch.entries)
            self._counts["refused"] += len(written.refused)
            pending = self._backlog.pending
            held = [one for one in written.effects if type(one) is Forget and pending(one.run.run_id)]
            free = [one for one in self._held if not pending(one.run.run_id)]
            self._held = [one for one in self._held if pending(one.run.run_id)] + held
            room: list[Callable[[], None]] = []
            if self._room and self._backlog.size < self._output_limit // 2:
                room, self._room = self._room, []
            self._stored.notify_all()
        late = {id(one) for one in held}
        effects = [one for one in written.effects if id(one) not in late] + free
        if failure is not None:
            log.warning(
                "database %s: written again after %.1f s",
                self.path,
                self._clock.monotonic() - self._failed_at,
            )
            self._call(self.failing, None)
        for entry, error in self._news(written):
            log.error("run %s: can't store its %s: %s", run_id_of(entry), type(entry).__name__, error)
            self._call(self.unwritable, entry, error)
        if effects or written.grew:
            self._call(self.committed, effects, written.grew)
        for callback in room:
            self._call(callback)

    def _news(self, written: Written) -> list[tuple[Entry | Chunk, Exception]]:
        """What was refused, without the pieces that follow a gap which has been reported."""
        self._gaps -= {(grew.run_id, grew.output_id) for grew in written.grew}
        news: list[tuple[Entry | Chunk, Exception]] = []
        for entry, error in written.refused:
            if isinstance(entry, Chunk):
                if entry.key in self._gaps:
                    continue
                self._gaps.add(entry.key)
            news.append((entry, error))
        return news

    def _call(self, callback: Callable[..., None], *values: Any) -> None:
        try:
            callback(*values)
        except Exception:
            log.exception("database %s: what follows a commit failed", self.path)
