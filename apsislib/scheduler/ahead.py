"""From schedules to scheduled runs, made ahead of time; and the stored clock, which says how far that is.

An occurrence is taken from its schedule (Bind), becomes an expected run, which is in memory only,
and is claimed when it leaves *scheduled*: from then on it is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from apsislib.conditions import RunKey
from apsislib.runs import (
    Alarm,
    Bind,
    Drop,
    Expect,
    Job,
    Note,
    Run,
    SetClock,
    Taken,
    occurrence_time,
    parse_args,
    stamp,
)
from apsislib.scheduler import lateness
from apsislib.scheduler.cursors import Cursor, Cursors
from apsislib.scheduler.ledger import Ledger

DUE = Alarm.DUE
CLOCK_STEP = 1.0  # s; the stored clock moves at least so far, unless runs are claimed


class Ahead:
    def __init__(self, ledger: Ledger, clock: float, claimed: Iterable[str]) -> None:
        self.clock = clock  # everything due before it has been claimed
        self.jobs: dict[str, Job] = {}
        self.cursors = Cursors(ledger.settings.horizon, ledger.settings.max_expected)
        self._ledger = ledger
        self._cursor_of: dict[str, Cursor] = {}
        self._claimed = {identity: occurrence_time(identity) for identity in claimed}
        self._last_claimed = max(self._claimed.values(), default=float("-inf"))  # nothing is claimed after
        # By token, what is being bound: the earliest instant, of which schedule, and all of it.
        self._binding: dict[int, tuple[float, Cursor, Sequence[Taken]]] = {}
        self._token = 0
        self._prune_at = 1000  # claimed identities; those before the clock can't be made again
        self._notes: dict[str, str] = {}  # run ID: what to say of an expected run's time
        self._has_claimed = False  # since the clock was moved
        self._skipped: dict[Cursor, float] = {}  # what was left out, and nobody knows of yet: from when on

    # -- jobs ----------------------------------------------------------------------------------------

    def set_jobs(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self.jobs[job.job_id] = job
            self.cursors.add(job, self.clock)

    def change_jobs(self, removed: Iterable[str], changed: Iterable[Job], touched: Iterable[Job]) -> None:
        changed = list(changed)
        for job_id in [*removed, *(j.job_id for j in changed)]:
            self.jobs.pop(job_id, None)
            self.cursors.remove(job_id)
            for run in list(self._ledger.expected.get(job_id, {}).values()):
                self._discard(run)
                self._ledger.outbox.append(Drop(run.run_id))
        self._skipped = {cursor: t for cursor, t in self._skipped.items() if self.cursors.goes_on(cursor)}
        self.set_jobs(changed)
        for job in touched:
            self.jobs[job.job_id] = job
            self.cursors.touch(job)

    def _discard(self, run: Run) -> None:
        self._unexpect(run)
        self._notes.pop(run.run_id, None)
        self._ledger.alarms.forget(run.run_id)
        self._ledger.remove(run.run_id)
        self._ledger.waits.touch(run.key, run.state)  # who waits for it, provided that it exists

    # -- occurrences become expected runs --------------------------------------------------------------

    def take(self, wall: float, limit: int) -> int:
        """Have about `limit` runs made whose instants have come within the horizon; how many were."""
        count = 0
        while count < limit and (due := self.cursors.due()) is not None and due <= wall:
            cursor, taken = self.cursors.take(wall, limit - count)
            count += len(taken) + 1
            self._bind(cursor, taken)
        return count

    def _bind(self, cursor: Cursor, taken: Sequence[Taken]) -> None:
        fresh = taken
        if taken and taken[0][0].time <= self._last_claimed:
            fresh = [t for t in taken if t[2] not in self._claimed]
            for _ in range(len(taken) - len(fresh)):
                self.cursors.left(cursor)
        if fresh:
            self._token += 1
            self._binding[self._token] = fresh[0][0].time, cursor, fresh
            self._ledger.outbox.append(Bind(self._token, cursor.job, tuple(fresh)))

    def skip(self, cursor: Cursor, instant: float) -> None:
        """Make nothing of before `instant`: one run for all of it says that it was missed."""
        assert cursor.next is not None
        self._skipped.setdefault(cursor, cursor.next.time)
        self.cursors.skip(cursor, instant)

    def skipped(self, cursor: Cursor) -> float | None:
        """The first instant that was left out; to be asked, and told, once."""
        return self._skipped.pop(cursor, None) if self._skipped else None

    def cursor_of(self, run: Run) -> Cursor | None:
        """Of an expected run."""
        return self._cursor_of.get(run.run_id)

    @property
    def binding(self) -> bool:
        """Some occurrences are being bound."""
        return bool(self._binding)

    def expect(self, token: int, runs: Sequence[Run], notes: Sequence[str | None]) -> None:
        """The runs of a Bind effect, in state scheduled. A job that was changed meanwhile takes none."""
        _, cursor, _ = self._binding.pop(token)
        job_id = cursor.job.job_id
        if not runs or not self.cursors.goes_on(cursor):
            return
        ledger, alarms = self._ledger, self._ledger.alarms
        outbox, filed = ledger.outbox, ledger.waits.filed
        expected = ledger.expected.setdefault(job_id, {})
        for run, note in zip(runs, notes, strict=True):
            run_id = run.run_id
            self._cursor_of[run_id] = cursor
            if note:
                self._notes[run_id] = note
            expected[run_id] = run
            ledger.enter(run)
            alarms.arm(run_id, DUE, run.times["schedule"])
            if "expect" in run.meta:
                lateness.watch(alarms, run)
            outbox.append(Expect(run))
            if run.key in filed:
                ledger.touch(run, None)

    def planned(self, key: RunKey) -> bool:
        """A schedule will make such a run, beyond those that it has made."""
        job = self.jobs.get(key[0])
        if job is None:
            return False
        args = next((r.args for r in self._ledger.live(key)), None) or parse_args(key[1])
        made = (a for _, cursor, taken in self._binding.values() if cursor.job is job for _, a, _ in taken)
        return any(a == args for a in made) or self.cursors.plans(job.job_id, args)

    # -- expected runs become stored ones --------------------------------------------------------------

    def claim(self, run: Run) -> Run:
        """An expected run leaves *scheduled*, for whatever state: it is stored from its next move on."""
        if not run.expected:
            return run
        ledger, schedule = self._ledger, run.times["schedule"]
        self._has_claimed = True
        ledger.leaving[run.run_id] = run
        self._unexpect(run)
        if run.occurrence is not None and schedule >= self.clock:
            self._claimed[run.occurrence] = schedule
            if schedule > self._last_claimed:
                self._last_claimed = schedule
        self.note_schedule(run)
        if run.actions or ledger.settings.actions:
            ledger.owe(run.but(expected=False))
        return run

    def _unexpect(self, run: Run) -> None:
        expected = self._ledger.expected
        mine = expected[run.job_id]
        del mine[run.run_id]
        if not mine:
            del expected[run.job_id]
        self.cursors.left(self._cursor_of.pop(run.run_id))

    def note_schedule(self, run: Run) -> None:
        """The first lines of a run's log: for when it is."""
        ledger, at, times = self._ledger, run.timestamp, run.times
        schedule = times["schedule"]
        text = "now" if schedule <= at and not run.occurrence else stamp(schedule)
        ledger.outbox.append(Note(run.run_id, at, f"scheduled: {text}"))
        if "stop" in times:
            ledger.note(run, at, f"stop time: {stamp(times['stop'])}")
        if self._notes:
            note = self._notes.pop(run.run_id, None)
            if note:
                ledger.note(run, at, note)

    # -- the stored clock ------------------------------------------------------------------------------

    def move_clock(self, wall: float) -> None:
        """Not past what is claimed by nobody yet: a due alarm, an occurrence not made or being bound."""
        to = wall
        due = self._ledger.alarms.next_wall()
        if due is not None and due < to:
            to = due
        unmade = self.cursors.due()
        if unmade is not None and unmade + self._ledger.settings.horizon < to:
            to = unmade + self._ledger.settings.horizon
        for earliest, _, _ in self._binding.values():
            if earliest < to:
                to = earliest
        if self._skipped:
            to = min(to, *self._skipped.values())
        if to > self.clock and (self._has_claimed or to >= self.clock + CLOCK_STEP):
            self._has_claimed = False
            self.clock = to
            self._ledger.outbox.append(SetClock(to))
            if len(self._claimed) > self._prune_at:
                self._claimed = {i: t for i, t in self._claimed.items() if t >= to}
                self._prune_at = 2 * len(self._claimed) + 1000
                self.cursors.forget_before(to)

    def position(self) -> tuple[float, frozenset[str]]:
        """From where occurrences are made anew, and the identities of those that are not made again."""
        return self.clock, frozenset(self._claimed)
