"""THE LOCK, and what it guards.

A command takes the lock, lets the kernel decide, and hands what was decided to the writer before it
lets go: so the database sees decisions in the order they were made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from apsislib.clock import Clock
from apsislib.errors import Unavailable
from apsislib.figures import Extent
from apsislib.runs import Effect
from apsislib.scheduler import Scheduler
from apsislib.store import Store

COMMIT = 30.0  # s; how long a command waits for its commit before it answers 503


class Guard:
    """The kernel behind its lock: `with guard.hold() as kernel: ...`"""

    def __init__(self, kernel: Scheduler, store: Store, clock: Clock) -> None:
        # Without the lock: only its dicts, each read by one C-level copy.
        self.kernel = kernel
        self.store = store
        self.clock = clock
        self.holds = Extent()
        self.waits = Extent()
        self.ticket = 0  # of the latest hand-over; read by the thread that made it, under the lock
        self.stopping = False
        self.braked: Callable[[Sequence[Effect]], None] = lambda effects: None  # told while the disk fails
        self.overtake: Callable[[], None] = lambda: None  # has signals sent that wait for the disk
        # Protects the kernel. Nothing but leaf locks is taken under it, and no I/O is done.
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)  # the timer sleeps on it until something may be due
        self._owner = 0  # ident of the thread that holds it
        self._since = 0.0  # monotonic; since when it does

    def hold(self) -> Hold:
        """Hold the lock; on leaving, whatever was decided goes to the writer."""
        return Hold(self)

    def take(self) -> None:
        asked = self.clock.monotonic()
        self._lock.acquire()
        self._has()
        self.waits.add(self._since - asked)

    def release(self) -> None:
        try:
            self.flush_locked()
        finally:
            self._leaves()
            self._lock.release()

    def flush_locked(self) -> None:
        """Hand what was decided to the writer, in order, and note the ticket of its commit."""
        assert self._owner == threading.get_ident()
        effects = self.kernel.outbox
        if effects:
            self.kernel.outbox = []
            if self.store.braked:
                # Before they are handed over: the disk may be whole again at any moment, and what has been
                # done of them must be known by then.
                self.braked(effects)
            self.ticket = self.store.put(effects)

    def wake_timer_locked(self) -> None:
        """Something may be due that was not before."""
        self._due.notify()

    def sleep_locked(self, seconds: float) -> None:
        """(apsis-timer) Let go of the lock until somebody wakes the timer, or for so long."""
        self._leaves()
        self._due.wait(seconds)
        self._has()

    def stop(self) -> None:
        """The timer and the hands are to end."""
        with self._lock:
            self.stopping = True
            self._due.notify_all()

    def wait(self, ticket: int) -> None:
        """Until what was handed over is on disk. Raises Unavailable."""
        self.store.wait(ticket, COMMIT)

    def check_disk(self) -> None:
        if self.store.braked:
            raise Unavailable("nothing new is started: the database can't be written (see the server's log)")

    def _has(self) -> None:
        self._owner = threading.get_ident()
        self._since = self.clock.monotonic()

    def _leaves(self) -> None:
        self.holds.add(self.clock.monotonic() - self._since)
        self._owner = 0


class Hold:
    __slots__ = ("_guard",)

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __enter__(self) -> Scheduler:
        self._guard.take()
        return self._guard.kernel

    def __exit__(self, *failure: object) -> None:
        self._guard.release()
