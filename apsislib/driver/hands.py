"""The threads that do what was decided, and their second tries.

    apsis-program    tells programs what was decided about their runs, in order
    apsis-bind-N     expands templates of expected runs, asks the database for outcomes
    apsis-action-N   schedules what actions schedule
    apsis-own-N, apsis-check-N    users' own actions and conditions, and e-mail: see outside.py
    apsis-remote-N   blocking work of programs (ECS, users' classes)

stop() ends them all.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apsislib.clock import Deadline
from apsislib.driver.guard import Guard
from apsislib.outside import Outside

log = logging.getLogger(__name__)

RETRY = 1.0  # s; after which work that a failing disk refused is tried again


class Hands:
    def __init__(self, guard: Guard, outside: Outside) -> None:
        self._guard = guard
        # (boot instant, pool, work, args): to be tried again; under the lock
        self._again: list[tuple[float, ThreadPoolExecutor, Callable[..., None], tuple[Any, ...]]] = []
        self.programs = ThreadPoolExecutor(1, "apsis-program")
        self.binders = ThreadPoolExecutor(2, "apsis-bind")
        self.actors = ThreadPoolExecutor(2, "apsis-action")
        self.remote = ThreadPoolExecutor(8, "apsis-remote")
        self.outside = outside

    def start(self) -> None:
        """All threads, now: later there might be none to be had, and work would lie where nobody looks.

        Raises RuntimeError if that is so already.
        """
        for pool in self._pools():
            ready = threading.Barrier(pool._max_workers + 1)
            try:
                for _ in range(pool._max_workers):
                    pool.submit(ready.wait)  # each keeps one thread busy, so that the next gets another
            except RuntimeError:
                ready.abort()
                raise
            ready.wait()

    def _pools(self) -> tuple[ThreadPoolExecutor, ...]:
        return self.actors, self.binders, self.programs, self.remote, *self.outside.pools

    def spawn(self, work: Callable[[], None]) -> None:
        """Do blocking work of a program."""
        self.submit(self.remote, work)

    def submit(self, pool: ThreadPoolExecutor, work: Callable[..., None], *args: Any) -> None:
        try:
            pool.submit(self.guarded, work, *args)
        except RuntimeError:  # the pool is shut down: what is owed on disk is taken up at the next start
            assert self._guard.stopping

    def guarded(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except Exception:
            log.error("%s failed:\n%s", work.__name__, traceback.format_exc())

    def insist(self, pool: ThreadPoolExecutor, work: Callable[..., None], *args: Any) -> None:
        """Work that must be done sooner or later, and changes nothing unless it succeeds: try it again.

        Later, by the timer: hands that waited for a disk would be missed by everybody else.
        """
        self.submit(pool, self._insist, pool, work, *args)

    def _insist(self, pool: ThreadPoolExecutor, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:
            log.warning("%s: %s; trying again in %g s", work.__name__, saying(error), RETRY)
            with self._guard.hold():
                self._again.append((self._guard.clock.boot() + RETRY, pool, work, args))
                self._guard.wake_timer_locked()

    def retry_locked(self, boot: float) -> float | None:
        """Hand out again what is due; the boot instant at which more is."""
        due = [entry for entry in self._again if entry[0] <= boot]
        self._again = [entry for entry in self._again if entry[0] > boot]
        for _, pool, work, args in due:
            self.insist(pool, work, *args)
        return min((entry[0] for entry in self._again), default=None)

    def queued(self) -> dict[str, int]:
        """How much work waits for hands, by kind."""
        pools = {"bind": self.binders, "action": self.actors, "remote": self.remote}
        pools |= {"own": self.outside.actors, "check": self.outside.checkers}
        return {name: pool._work_queue.qsize() for name, pool in pools.items()}

    def stop(self, deadline: Deadline) -> list[threading.Thread]:
        """Let go of what nobody has begun; answers the threads still alive."""
        threads: list[threading.Thread] = []
        for pool in self._pools():
            threads += list(pool._threads)
            pool.shutdown(wait=False, cancel_futures=True)
        for thread in threads:
            thread.join(deadline.left())
        return [thread for thread in threads if thread.is_alive()]


def saying(error: Exception) -> str:
    return str(error) or type(error).__name__
