"""(apsis-timer) The thread that ticks the kernel when something is due."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable

from apsislib.clock import Deadline
from apsislib.driver.guard import Guard
from apsislib.driver.hands import Hands
from apsislib.figures import Extent
from apsislib.runs import stamp
from apsislib.scheduler import SHORT

log = logging.getLogger(__name__)

NAP = 5.0  # s; a wall clock set forward by an operator must not be slept through
SLICE = 100  # steps of one hold of the lock: a few ms
STEP = 1.0  # s; a wall clock that moved so far against the boot clock was set, not slewed
LAG = 1.0  # s; a timer that was away for so long was kept from it: stopped, or starved
STALLED = 30.0  # s; without a round of the timer, which naps for NAP at most


class Timer:
    def __init__(
        self, guard: Guard, hands: Hands, die: Callable[[str], None], down_since: float | None
    ) -> None:
        """`down_since`: the wall instant up to which an earlier process has come."""
        self._guard = guard
        self._hands = hands
        self._die = die
        self.clock = clock = guard.clock
        self.is_running = threading.Event()  # runs of earlier times have been taken up
        self.lateness = Extent()
        self._offset = clock.wall() - clock.boot()
        self._down_since = down_since
        self._began = clock.wall()  # the first round
        # Wall, boot and monotonic instants at which the last round ended, and how long it then meant to nap.
        self._left: tuple[float, float, float, float] | None = None
        # apsis-timer only: to be logged, at which level, when the lock is let go.
        self._news: list[tuple[int, str]] = []
        self._ticked = clock.monotonic()  # when it last had the lock
        self.thread = threading.Thread(target=self._tick_for_ever, name="apsis-timer")

    def start(self) -> None:
        self.thread.start()

    def stop(self, deadline: Deadline) -> list[threading.Thread]:
        """The guard was told to stop. Answers the thread if it is still alive."""
        if self.thread.ident is not None:
            self.thread.join(deadline.left())
        return [self.thread] if self.thread.is_alive() else []

    def is_alive(self) -> bool:
        """Whether the timer goes round. False: only a restart helps."""
        return self.clock.monotonic() - self._ticked < STALLED

    def _tick_for_ever(self) -> None:
        """Ends when stop() was called; an exception is the end of the process."""
        try:
            while self._tick():
                while self._news:
                    level, text = self._news.pop(0)
                    log.log(level, "%s", text)
        except BaseException:
            log.critical("the timer died:\n%s", traceback.format_exc())
            self._die("timer")

    def _tick(self) -> bool:
        guard = self._guard
        with guard.hold() as kernel:
            if guard.stopping:
                return False
            self._ticked = self.clock.monotonic()
            wall, boot = self.clock.wall(), self.clock.boot()
            stepped = self._notice_step(wall, boot)
            self._notice_gap(wall, boot, stepped)
            due = kernel.next_due()
            # What the clock jumped over, or fell due while no server was there, is not the timer's doing.
            if due is not None and due <= wall and self.is_running.is_set() and not stepped:
                self.lateness.add(wall - due)
            kernel.tick(wall, boot, SLICE, brake=guard.store.braked)
            if not self.is_running.is_set() and not kernel.binding and (kernel.due() or wall + 1) > wall:
                kernel.restored()
                self._lost(self._began, wall, "the server was starting")
                self.is_running.set()
            self._news += [(logging.ERROR, text) for text in kernel.failures()]
            guard.flush_locked()
            retry = self._hands.retry_locked(boot)
            next_wall, next_boot = kernel.next_wake()
            nap = NAP if retry is None else max(0.0, retry - boot)
            if not guard.store.braked:
                if next_wall is not None:
                    nap = min(nap, next_wall - self.clock.wall())
                if next_boot is not None:
                    nap = min(nap, next_boot - self.clock.boot())
            # Between slices of a burst the lock is let go for an instant: commands must get in.
            nap = max(nap, 0.0002)
            self._left = self.clock.wall(), self.clock.boot(), self.clock.monotonic(), nap
            guard.sleep_locked(nap)
            return not guard.stopping

    def _notice_step(self, wall: float, boot: float) -> bool:
        """Whether the wall clock was set since the last time, of which the kernel is told."""
        delta = wall - boot - self._offset
        self._offset += delta
        if abs(delta) <= STEP:
            return False
        log.warning("the wall clock was set by %+.3f s; schedules follow it, durations do not", delta)
        self._guard.kernel.stepped(delta, wall)
        self._lost(wall - delta, wall, "the clock was set forward")
        return True

    def _lost(self, start: float, end: float, reason: str) -> None:
        """Nothing was started between these wall instants: the kernel is told, and who reads the log."""
        self._guard.kernel.lost(start, end, reason)
        if end - start >= SHORT:
            self._news.append((logging.WARNING, f"{reason} from {stamp(start)} to {stamp(end)}"))

    def _notice_gap(self, wall: float, boot: float, stepped: bool) -> None:
        """Tell since when this thread could do nothing, if that was for long."""
        if self._left is None:
            self._began = wall
            if self._down_since is not None:
                self._lost(self._down_since, wall, "the server was down")
            return
        since, boot_then, then, nap = self._left
        away = self.clock.monotonic() - then
        if boot - boot_then - away > LAG:
            self._lost(since, wall, "the host was suspended")
        elif away > nap + LAG and not stepped:
            self._lost(since, wall, "the server stood still")
