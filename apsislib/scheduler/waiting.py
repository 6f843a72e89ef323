"""From *waiting* on: a run's conditions are judged, in order, until all hold at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from apsislib import conditions
from apsislib.conditions import HOLDS, Bound, BoundMaxRunning, BoundOwn, RunKey, Verdict, View
from apsislib.errors import ApsisError
from apsislib.runs import Alarm, Check, Lookup, Run
from apsislib.scheduler.ledger import Ledger
from apsislib.scheduler.waits import Wait
from apsislib.states import State

LAST_WORD = 10.0  # s; how long an answer that is under way is waited for when waiting.max_time is over
HELD = 1.0  # s; after which a waiting run's alarm is looked at again, while nothing may be started
NAMED = 100  # runs that a waiting run is said to wait for

Begin = Callable[[Run, float, float], object]


class Waiting:
    def __init__(self, ledger: Ledger, view: View, begin: Begin) -> None:
        """`begin(run, wall, boot)` starts a run all of whose conditions hold."""
        self._ledger = ledger
        self._waits = ledger.waits
        self._view = view
        self._begin = begin

    def enter(self, run: Run, wall: float, boot: float) -> None:
        """Its time has come, and it has conditions."""
        ledger = self._ledger
        try:
            conds = run.judged or _load(run)
        except (ApsisError, LookupError, TypeError, ValueError) as error:  # as another release stored them
            ledger.move(run, State.ERROR, wall, f"error: a condition can't be read: {error}")
            return
        run = ledger.move(run, State.WAITING, wall)
        ledger.note(run, wall, f"waiting until: {run.conds[0].get('str', '')}")
        self._waits.enter(run.run_id, Wait(conds, since=wall))
        if ledger.settings.max_waiting is not None:
            ledger.arm(run, Alarm.WAITING, ledger.settings.max_waiting, wall, boot)
        if ledger.held or self._waits.ready:  # it is its turn after those before it
            self._waits.wake(run.run_id)
        else:
            self.judge(run.run_id, wall, boot)

    def restore(self, run: Run, wall: float, boot: float) -> None:
        """It was waiting when an earlier process ended."""
        wait = Wait(_load(run), since=run.times.get("waiting", wall))
        self._waits.enter(run.run_id, wait)
        self._waits.wake(run.run_id)
        limit = self._ledger.settings.max_waiting
        if limit is not None:
            stored = ((run.run_state or {}).get("timers") or {}).get(Alarm.WAITING.name)
            end = run.times.get("waiting", wall) + limit if stored is None else stored
            self._ledger.alarms.arm(run.run_id, Alarm.WAITING, boot + max(0.0, end - wall))

    # -- judging -------------------------------------------------------------------------------------

    def judge(self, run_id: str, wall: float, boot: float, last: bool = False) -> None:
        """Look at a waiting run's conditions in order; start it, move it, or file it again.

        `last`: its time to wait is over, so what does not hold now is an error.
        """
        ledger, waits = self._ledger, self._waits
        run = ledger.runs[run_id]
        wait, keys = waits.take(run_id)
        verdict, index = self._verdict(run, wait, wall)
        if verdict.holds:
            waits.leave(run_id)
            self._begin(run, wall, boot)
        elif verdict.move is not None:
            waits.leave(run_id)
            text = f"error: {verdict.reason}" if verdict.move is State.ERROR else verdict.reason
            ledger.move(run, verdict.move, wall, text, force=True)
        elif last or (wait.over and verdict.lookup is None and index not in wait.asked):
            waits.leave(run_id)
            text = run.conds[index].get("str", "")
            limit = ledger.settings.max_waiting or 0.0
            ledger.move(run, State.ERROR, wall, f"error: waiting for {text}: timeout after {limit:g} s")
        else:
            if wait.blocked != index:
                wait.since = wall
            wait.blocked, wait.reason = index, verdict.reason
            waits.file(run_id, verdict.keys)
            if verdict.lookup is not None and ledger.outcomes.ask(verdict.lookup):
                ledger.outbox.append(Lookup(verdict.lookup))
        if keys:
            waits.passed(keys, waits.get(run_id))

    def _verdict(self, run: Run, wait: Wait, wall: float) -> tuple[Verdict, int]:
        """The first that does not hold, and its index."""
        conds, begun = wait.conds, wait.at
        for index in range(begun, len(conds)):
            verdict = self._ask(run, wait, index)
            if not verdict.holds:
                return verdict, index
            wait.at = index + 1
            if wait.at < len(conds):
                self._ledger.note(run, wall, f"waiting until: {run.conds[wait.at].get('str', '')}")
        # What held when it was asked before may not hold now, save for monotonic ones. What was asked
        # just now does: nobody comes between this and the start.
        for index in range(begun):
            if not conds[index].monotonic:
                verdict = self._ask(run, wait, index)
                if not verdict.holds:
                    return verdict, index
        return HOLDS, 0

    def _ask(self, run: Run, wait: Wait, index: int) -> Verdict:
        cond = wait.conds[index]
        if isinstance(cond, BoundOwn):
            return self._asked(run, wait, index, cond)
        verdict = cond.judge(run, self._view)
        if verdict.holds and isinstance(cond, BoundMaxRunning):
            # First come, first served: a free slot belongs to the head of the queue.
            head = self._waits.head(cond.key)
            first = None if head is None else self._waits.get(head)
            if head is not None and first is not None and first.place < wait.place:
                self._waits.wake(head)
                return Verdict(False, f"{head} is first in the queue", ((cond.key, None),))
        return verdict

    def time_is_up(self, run_id: str, wall: float, boot: float) -> None:
        """waiting.max_time is over. An answer that is under way, as after a restart, may still come."""
        wait, alarms = self._waits.get(run_id), self._ledger.alarms
        if wait is None:
            return
        if self._ledger.held or self._ledger.braked:
            alarms.arm(run_id, Alarm.WAITING, boot + HELD)
        elif wait.over:
            self.judge(run_id, wall, boot, last=True)
        else:
            wait.over = True
            wait.answers = {i: v for i, v in wait.answers.items() if v.holds}
            alarms.arm(run_id, Alarm.WAITING, boot + LAST_WORD)
            self.judge(run_id, wall, boot)

    def outcome(self, key: RunKey, states: Iterable[State]) -> None:
        """The answer to a Lookup."""
        self._ledger.outcomes.answer(key, states)
        self._waits.touch(key, None)

    # -- conditions of users' own ------------------------------------------------------------------

    def _asked(self, run: Run, wait: Wait, index: int, cond: BoundOwn) -> Verdict:
        verdict = wait.answers.get(index)
        if verdict is not None:
            return verdict
        if index not in wait.asked:
            wait.asked.add(index)
            self._ledger.outbox.append(Check(run, index))
        return Verdict(False, f"asking {cond.path}")

    def answer(self, run_id: str, index: int, verdict: Verdict, boot: float, output: str | None) -> None:
        """The answer to a Check. `output`: a traceback to store with the error that it makes."""
        ledger = self._ledger
        run, wait = ledger.runs.get(run_id), self._waits.get(run_id)
        if run is None or wait is None or index not in wait.asked:
            return
        wait.asked.discard(index)
        wait.answers[index] = verdict
        cond = wait.conds[index]
        assert isinstance(cond, BoundOwn)
        if output is not None:
            ledger.output(run, output, "traceback")
        if not (verdict.holds and cond.monotonic) and ledger.alarms.armed(run_id, Alarm.CHECK) is None:
            ledger.alarms.arm(run_id, Alarm.CHECK, boot + cond.interval)
        self._waits.wake(run_id)

    def check_again(self, run_id: str, wall: float, boot: float) -> None:
        """Answers that may have changed are too old."""
        wait, alarms = self._waits.get(run_id), self._ledger.alarms
        if wait is None:
            return
        conds = wait.conds
        if self._ledger.braked:
            alarms.arm(run_id, Alarm.CHECK, boot + HELD)
        elif wait.asked:
            # Those that came stay good until the last has: or two slow ones would never hold at once.
            slowest = max(c.interval for c in conds if isinstance(c, BoundOwn))
            alarms.arm(run_id, Alarm.CHECK, boot + slowest)
        else:
            wait.answers = {i: v for i, v in wait.answers.items() if v.holds and conds[i].monotonic}
            self.judge(run_id, wall, boot)

    # -- why a run waits -----------------------------------------------------------------------------

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """Why a run waits: its conditions in order, what is known of each, and since when."""
        run, wait = self._ledger.runs.get(run_id), self._waits.get(run_id)
        if run is None or wait is None:
            return []
        rows: list[dict[str, Any]] = []
        for index, cond in enumerate(run.conds):
            row: dict[str, Any] = {"condition": cond.get("str", ""), "holds": index < wait.at}
            if index == wait.blocked:
                # As of now: much may have changed since it was judged, for which it was not to be woken.
                reason = wait.conds[index].why(self._view) or wait.reason
                row |= {"holds": False, "reason": reason, "since": wait.since}
                row["runs"] = self._concerned(wait.conds[index])
            rows.append(row)
        return rows

    def _concerned(self, cond: Bound) -> list[dict[str, str]]:
        about = conditions.about(cond)
        if about is None:
            return []
        key, states = about
        mine = (r for r in self._view.live(key) if r.state in states)
        return [{"run_id": r.run_id, "state": r.state.value} for r in islice(mine, NAMED)]


def _load(run: Run) -> tuple[Bound, ...]:
    """The run's conditions, of their JSON. Raises what a row of another release makes it raise."""
    return tuple(map(conditions.load, run.conds))
