"""What is learned about runs that have ended already."""

from __future__ import annotations

from apsislib.driver.guard import Guard
from apsislib.runs import Json, Note, Run, run_number
from apsislib.states import State


class Late:
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

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
        while True:
            with self._guard.hold() as kernel:
                marks = kernel.marks
            run = self.stored(run_id)
            if run is None:  # deleted since
                return
            with self._guard.hold() as kernel:
                # Somebody may have marked it while it was being read: what was read is too old then.
                if run_id in kernel.runs or kernel.marks == marks:
                    kernel.offer(run, state, message, meta, self._guard.clock.wall())
                    return
