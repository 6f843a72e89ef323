"""How the engine is: its figures, and what ails it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from apsislib import figures
from apsislib.driver.guard import Guard
from apsislib.driver.hands import Hands
from apsislib.driver.timer import Timer
from apsislib.feeds import Feed
from apsislib.states import State
from apsislib.times import format_time

LATE = 5.0  # s; a timer that is behind by more is an ailment, and so is a commit that takes longer
UNPLACED = 5.0  # s; and so is a run that finds no agent for longer


class Health:
    def __init__(self, guard: Guard, timer: Timer, hands: Hands, feed: Feed) -> None:
        self._guard = guard
        self._timer = timer
        self._hands = hands
        self._feed = feed
        self._started = guard.clock.wall()

    def stats(self) -> dict[str, Any]:
        """Figures about the server: sizes in bytes, times in seconds, instants as ISO texts.

        `tasks`, `scheduled` and `run_store` have the names that readers of them have always known.
        """
        guard = self._guard
        with guard.hold() as kernel:
            counts = kernel.counts()
        queues = self._hands.queued()
        return {
            "start_time": format_time(self._started),
            "time": format_time(guard.clock.wall()),
            "tasks": {
                "num_waiting": counts["waiting"],
                "num_running": counts["starting"] + counts["running"],
                "num_stopping": counts["stopping"],
                "num_action": queues["action"] + queues["own"],
            },
            "scheduled": {"num_heap": counts["heap"], "num_entries": counts["alarms"]},
            "run_store": {
                "num_expected_runs": counts["expected"],
                "num_active_runs": counts["active"],
                "publisher": self._feed.stats(),
            },
            "queues": queues,
            "writer": guard.store.stats(),
            **figures.process(),
            "runs": counts,
            "timer": self._timer.lateness.json(),
            "lock_hold": guard.holds.json(),
            "lock_wait": guard.waits.json(),
            "started": self._started,
            "writer_braked": guard.store.braked,
        }

    def peak(self) -> float:
        """The longest that the timer was late, in seconds, since this was last asked."""
        return self._timer.lateness.take_peak()

    def status(self) -> str:
        """What goes on, in a line."""
        with self._guard.hold() as kernel:
            counts = kernel.counts()
        said = f"{counts['starting'] + counts['running']} running, {counts['waiting']} waiting"
        return "; ".join([said, *self.ailments()])

    def ailments(self) -> list[str]:
        """What keeps runs from starting in time, a sentence each; empty: nothing."""
        if not self._timer.is_running.is_set():
            return ["starting: runs of earlier times are being taken up"]
        found = []
        if short := figures.shortage():
            found.append(short)
        writer = self._guard.store.stats()
        if failing := writer["failing"]:
            found.append(f"the database can't be written: {failing}; nothing new is started")
        elif writer["committing"] > LATE:
            found.append(f"a commit has been under way for {writer['committing']:.0f} s: the disk or a lock")
        elif self._guard.store.braked:
            found.append("the disk is far behind; nothing new is started")
        now = self._guard.clock.wall()
        with self._guard.hold() as kernel:
            due = kernel.next_due()
            unplaced = Counter(
                str((run.program or {})["group_id"])
                for run in kernel.runs.values()
                if run.state is State.STARTING
                and "group_id" in (run.program or {})
                and not (run.run_state or {}).get("conn_id")
                and now - run.timestamp > UNPLACED
            )
        if due is not None and now - due > LATE:
            found.append(f"the timer is {now - due:.0f} s late")
        for group, number in sorted(unplaced.items()):
            found.append(f"no agent takes runs of group {group}: {number} wait for one")
        return found
