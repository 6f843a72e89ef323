"""What is learned about runs that have ended already, and what is done about it."""

from __future__ import annotations

from collections.abc import Callable

from apsislib.driver.guard import Guard
from apsislib.runs import Json, Limits, Note, Run, run_number
from apsislib.scheduler import Scheduler
from apsislib.states import State


class Late:
    def __init__(self, guard: Guard, limits: Callable[[Run], Limits]) -> None:
        """`limits`: those of a run's program."""
        self._guard = guard
        self._limits = limits

    def stored(self, run_id: str) -> Run | None:
        """The run, from the database unless it is in memory. Raises Unavailable."""
        run = self._guard.kernel.runs.get(run_id)
        if run is None and run_number(run_id) is not None:
            with self._guard.store.read() as reader:
                run = reader.run(run_id)
        return run

    def note(self, run_id: str, text: str) -> None:
        """A line for the log of a run that may have ended."""
        with self._guard.hold() as kernel:
            kernel.outbox.append(Note(run_id, self._guard.clock.wall(), text))

    def offer(self, run_id: str, state: State, message: str | None, meta: Json | None) -> None:
        """How a run really ended that was given up. Its state stays what it is. Raises Unavailable."""
        wall = self._guard.clock.wall
        self.amend(run_id, lambda kernel, run: kernel.offer(run, state, message, meta, wall()))

    def amend(self, run_id: str, change: Callable[[Scheduler, Run], None]) -> int | None:
        """Change a run that may have ended, as it is at that moment.

        Answers the ticket of the commit; None if there is no such run. Raises Unavailable, and what
        `change` does.
        """
        while True:
            with self._guard.hold() as kernel:
                amended = kernel.amended
            run = self.stored(run_id)
            if run is None:
                return None
            run = run.but(limits=self._limits(run))
            with self._guard.hold() as kernel:
                # Somebody may have changed it while it was being read: what was read is too old then.
                if run_id in kernel.runs or kernel.amended == amended:
                    change(kernel, run)
                    self._guard.flush_locked()
                    self._guard.wake_timer_locked()
                    return self._guard.ticket
