"""Times in which nothing could be started, and what becomes of the runs that were due in them.

The server was down, the host suspended, the disk full, the clock set forward: whatever was due in such
a gap is begun late, or recorded as missed, as `catch_up` says; and says why.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import islice, takewhile

from apsislib.catchup import CatchUp, newest
from apsislib.runs import Alarm, Job, Run, Schedule, stamp
from apsislib.scheduler import lateness
from apsislib.scheduler.ahead import Ahead
from apsislib.scheduler.cursors import Cursor
from apsislib.scheduler.ledger import Ledger
from apsislib.states import State

LATE = 1.0  # s; what begins later than this is called late, whether or not a gap is known
SHORT = 10.0  # s; a gap that is shorter is a hiccup, a restart: all of it is made up for, and at once
KEPT = 20  # gaps that are remembered
# Missed runs of a schedule, the newest, that are recorded one by one; of the older ones one tells.
RECORDED = 1000


@dataclass(slots=True)
class _Plan:
    """What of a job is made up for: from when on, by schedule, and how many of just that instant."""

    job: Job
    start: dict[int, float]  # by id of the schedule
    why: str  # nothing before
    instant: float = float("-inf")
    room: int = 0
    paced: bool = False  # there is more to make up for than one run of each schedule


@dataclass(slots=True, eq=False)
class Gap:
    start: float  # wall instants
    end: float
    reason: str
    plans: dict[str, _Plan] = field(default_factory=dict)  # by job ID

    def __str__(self) -> str:
        return f"{self.reason} from {stamp(self.start)} to {stamp(self.end)}"


class Gaps:
    def __init__(self, ledger: Ledger, ahead: Ahead) -> None:
        self._ledger = ledger
        self._ahead = ahead
        self._gaps: list[Gap] = []
        self._slot = float("-inf")  # wall instant before which no other run is made up for

    def add(self, start: float, end: float, reason: str) -> None:
        """Nothing was started between these wall instants."""
        if end <= start:
            return
        self._gaps.append(Gap(start, end, reason))
        if len(self._gaps) > KEPT:  # hiccups go first: by the others runs are judged
            self._gaps.remove(next((g for g in self._gaps if g.end - g.start < SHORT), self._gaps[0]))
        if end - start >= SHORT:
            for cursor in self._ahead.cursors.behind(end):
                self._skip(cursor, end)

    def stepped(self, delta: float) -> None:
        """The wall clock was set: what is paced is so by a clock that is not."""
        self._slot += delta
        alarms = self._ledger.alarms
        for run in self._ledger.runs.values():
            if run.state is State.SCHEDULED and is_put_off(run):
                slot = alarms.armed(run.run_id, Alarm.DUE)
                if slot is not None:
                    alarms.arm(run.run_id, Alarm.DUE, slot + delta)

    def _skip(self, cursor: Cursor, end: float) -> None:
        """An every-second job that was missed for a month: the oldest are not recorded one by one."""
        assert cursor.next is not None
        most = RECORDED + (self._policy(cursor.job).cap or 0)
        first = cursor.next.time
        try:
            after = takewhile(lambda occurrence: occurrence.time < end, cursor.schedule.after(first))
            if sum(1 for _ in islice(after, most + 1)) > most:
                self._ahead.skip(cursor, newest(cursor.schedule, first, end, most)[0])
        except Exception:  # of a user's class: it is heard of when the cursor gets there
            return

    # -- a run is due --------------------------------------------------------------------------------

    def sift(self, run: Run, cursor: Cursor | None, wall: float) -> Run | None:
        """A run whose time has come, as it is to go on; None: it was missed, or is put off.

        `cursor`: of the schedule that has made it, unless somebody has decided about it before.
        """
        before = None if cursor is None else self._ahead.skipped(cursor)
        if before is not None:
            text = f"what else was due before, from {stamp(before)} on, was missed, too"
            self._ledger.note(run, wall, text)
        late = wall - run.times["schedule"]
        if late <= LATE:
            return run
        gap = self._of(run.times["schedule"])
        plan = None if gap is None or cursor is None else self._plan_of(cursor.job, gap)
        missed = self._missed(run, cursor, plan, late)
        if missed is not None:
            lateness.miss(self._ledger, run, missed if gap is None else f"{gap}; {missed}", wall)
            return None
        due = lateness.due(run)
        why = self.why(due, wall)
        if why is None or "late" in run.meta.get("reasons", ()):
            return run
        slot = self.slot(wall) if plan is not None and plan.paced else wall
        text = f"{wall - due:.0f} s late: {why}"
        if slot <= wall:
            return lateness.call_late(self._ledger, run, why, wall, text)
        run = lateness.call_late(self._ledger, run, why, wall, f"{text}; to be begun at {stamp(slot)}")
        self._ledger.alter(run.but(expected=False), transition=True)
        self._ledger.alarms.arm(run.run_id, Alarm.DUE, slot)
        return None

    def slot(self, wall: float) -> float:
        """When another late run may begin: they are paced."""
        pace = self._ledger.settings.catch_up.pace
        slot = max(wall, self._slot)
        if isinstance(pace, float):
            self._slot = slot + 1 / pace
        return slot

    def why(self, due: float, wall: float) -> str | None:
        """Why what was due then has not begun before now; None: it is as good as on time."""
        if wall - due <= LATE:
            return None
        return self.between(due, wall) or f"the server was {wall - due:.1f} s behind"

    def between(self, start: float, end: float) -> str | None:
        """The latest gap that there was between two instants, in words."""
        return next((str(gap) for gap in reversed(self._gaps) if gap.start < end and gap.end > start), None)

    def _of(self, instant: float) -> Gap | None:
        return next((gap for gap in reversed(self._gaps) if gap.start <= instant < gap.end), None)

    # -- what is made up for ---------------------------------------------------------------------------

    def _policy(self, job: Job) -> CatchUp:
        said = job.catch_up or CatchUp()
        return said.over(self._ledger.settings.catch_up)

    def _missed(self, run: Run, cursor: Cursor | None, plan: _Plan | None, late: float) -> str | None:
        """Why it is not made up for; None: it is."""
        max_age = self._ledger.settings.max_age
        if (
            run.occurrence
            and max_age is not None
            and late > max_age
            and "late" not in run.meta.get("reasons", ())
        ):
            return f"due {late:.0f} s ago, schedule.max_age is {max_age:g} s"
        if plan is None or cursor is None:
            return None
        instant = run.times["schedule"]
        if instant < plan.start.get(id(cursor.schedule), instant):
            return plan.why
        if instant == plan.instant:
            plan.room -= 1
            if plan.room < 0:
                return plan.why
        return None

    def _plan_of(self, job: Job, gap: Gap) -> _Plan | None:
        """None: the gap is too short to plan anything."""
        if gap.end - gap.start < SHORT:
            return None
        plan = gap.plans.get(job.job_id)
        if plan is None or plan.job is not job:
            plan = gap.plans[job.job_id] = self._plan(job, gap)
        return plan

    def _plan(self, job: Job, gap: Gap) -> _Plan:
        policy = self._policy(job)
        schedules = self._ahead.cursors.schedules(job.job_id)
        start, why = gap.start, "catch_up is none"
        if isinstance(policy.window, float) and gap.end - policy.window > start:
            start, why = gap.end - policy.window, f"catch_up.window is {policy.window:g} s"
        if policy.policy == "none":
            return _Plan(job, {id(s): gap.end for s in schedules}, "catch_up is none")
        if policy.policy == "latest":
            last = {id(s): _last(s, start, gap.end) for s in schedules}
            return _Plan(job, last, "catch_up is latest")
        cap = policy.cap or 0
        instants = sorted(t for s in schedules for t in _latest(s, start, gap.end, cap + 1))
        plan = _Plan(job, {id(s): start for s in schedules}, why, paced=len(instants) > len(schedules))
        if len(instants) > cap:
            plan.why = f"catch_up.cap is {cap} runs of a job"
            plan.instant = instants[-cap]
            plan.room = cap - (len(instants) - bisect_right(instants, plan.instant))
            plan.start = {id(s): plan.instant for s in schedules}
        return plan


def is_put_off(run: Run) -> bool:
    """Whether a run in state scheduled is one that is made up for, in its turn."""
    return not run.expected and run.occurrence is not None and "late" in run.meta.get("reasons", ())


def _last(schedule: Schedule, start: float, end: float) -> float:
    found = _latest(schedule, start, end, 1)
    return found[0] if found else end


def _latest(schedule: Schedule, start: float, end: float, count: int) -> list[float]:
    try:
        after = takewhile(lambda occurrence: occurrence.time < end, schedule.after(start))
        found = [occurrence.time for occurrence in islice(after, count + 1)]
        return found if len(found) <= count else newest(schedule, start, end, count)
    except Exception:  # of a user's class: it is heard of when the cursor gets there
        return []
