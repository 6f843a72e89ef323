"""Where each schedule has got to: which expected runs are to be made next.

A cursor stands before the first occurrence not yet handed out. It is due when that occurrence
comes within the horizon, and rests while `limit` of its runs are expected already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice

from apsislib.runs import Args, GivenArgs, Job, Occurrence, Schedule, Taken, canonical, quoted

_NONE = GivenArgs()


@dataclass(slots=True, eq=False)
class Cursor:
    job: Job
    schedule: Schedule
    rest: Iterator[Occurrence]
    next: Occurrence | None = None
    expected: int = 0  # runs made and still expected
    queued: bool = False


@dataclass(slots=True)
class _Equals:
    """Per job: how many occurrences share args and instant, so that each gets an ordinal."""

    prefix: str  # of the job's identities
    alone: bool  # of one schedule, whose occurrences ascend: only those of one instant are kept
    instant: float = 0.0
    counts: dict[tuple[str, float], int] = field(default_factory=dict)


class Cursors:
    def __init__(self, horizon: float, limit: int) -> None:
        self._horizon = horizon
        self._limit = limit
        self._heap: list[tuple[float, int, Cursor]] = []
        self._by_job: dict[str, list[Cursor]] = {}
        self._equals: dict[str, _Equals] = {}
        self._seq = 0
        self._failures: list[str] = []  # schedules of users' classes that raised, for the log

    def add(self, job: Job, start: float) -> None:
        """Stand before the first occurrences at or after `start` of the job's enabled schedules."""
        cursors = self._by_job[job.job_id] = []
        for schedule in job.schedules:
            if schedule.enabled:
                cursor = Cursor(job, schedule, iter(()))
                self._advance(cursor, start)
                cursors.append(cursor)
                self._queue(cursor)
        self._equals[job.job_id] = _Equals(f"[{quoted(job.job_id)},", len(cursors) <= 1)

    def remove(self, job_id: str) -> None:
        for cursor in self._by_job.pop(job_id, ()):
            cursor.next = None  # its heap entry is dropped when it comes up
        self._equals.pop(job_id, None)

    def touch(self, job: Job) -> None:
        """Another definition of the job, with the same schedules: they go on where they are."""
        for cursor in self._by_job.get(job.job_id, ()):
            cursor.job = job

    def goes_on(self, cursor: Cursor) -> bool:
        """Whether it stands for a schedule still: its job was neither removed nor changed."""
        return cursor in self._by_job.get(cursor.job.job_id, ())

    def schedules(self, job_id: str) -> list[Schedule]:
        """The job's enabled schedules."""
        return [cursor.schedule for cursor in self._by_job.get(job_id, ())]

    def behind(self, instant: float) -> list[Cursor]:
        """Those that have yet to hand out something of before `instant`."""
        every = (cursor for cursors in self._by_job.values() for cursor in cursors)
        return [cursor for cursor in every if cursor.next is not None and cursor.next.time < instant]

    def skip(self, cursor: Cursor, instant: float) -> None:
        """Hand out nothing of before `instant`."""
        self._advance(cursor, instant)
        self._queue(cursor)

    def due(self) -> float | None:
        """The wall instant at which the next occurrence comes within the horizon."""
        while self._heap and self._heap[0][2].next is None:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float, limit: int) -> tuple[Cursor, list[Taken]]:
        """Up to `limit` occurrences within the horizon, of the schedule that is due."""
        cursor = heappop(self._heap)[2]
        cursor.queued = False
        job, equals = cursor.job, self._equals[cursor.job.job_id]
        taken: list[Taken] = []
        end = now + self._horizon
        room = min(limit, self._limit - cursor.expected)
        occurrence = cursor.next
        try:
            while occurrence is not None and occurrence.time <= end and len(taken) < room:
                args = _cut(occurrence.args, job.params) if job.params else _NONE
                taken.append((occurrence, args, _identity(equals, args, occurrence.time)))
                occurrence = next(cursor.rest, None)
        except Exception as error:  # of a user's class, which may raise anything: it ends there
            occurrence = None
            self._failed(job, error)
        cursor.next = occurrence
        cursor.expected += len(taken)
        self._queue(cursor)
        return cursor, taken

    def left(self, cursor: Cursor) -> None:
        """One of its runs is not expected any more."""
        cursor.expected -= 1
        if not cursor.queued:
            self._queue(cursor)

    def forget_before(self, instant: float) -> None:
        """Ordinals are only counted among occurrences that may still be handed out or made again."""
        for equals in self._equals.values():
            if equals.counts and next(iter(equals.counts))[1] < instant:
                equals.counts = {k: n for k, n in equals.counts.items() if k[1] >= instant}

    def _advance(self, cursor: Cursor, start: float) -> None:
        try:
            cursor.rest = cursor.schedule.after(start)
            cursor.next = next(cursor.rest, None)
        except Exception as error:  # as above
            cursor.next = None
            self._failed(cursor.job, error)

    def _failed(self, job: Job, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._failures.append(f"a schedule of job {job.job_id} ends, as it failed: {text}")

    def take_failures(self) -> list[str]:
        """What went wrong in schedules since the last call, for the log."""
        found, self._failures = self._failures, []
        return found

    def plans(self, job_id: str, args: Args, look: int = 200) -> bool:
        """Whether a schedule makes such a run among the next `look` occurrences not handed out yet."""
        return any(_makes(cursor, args, look) for cursor in self._by_job.get(job_id, ()))

    def _queue(self, cursor: Cursor) -> None:
        if cursor.next is not None and not cursor.queued and cursor.expected < self._limit:
            cursor.queued = True
            self._seq += 1
            heappush(self._heap, (cursor.next.time - self._horizon, self._seq, cursor))


def _cut(given: Args, params: tuple[str, ...]) -> Args:
    """What a schedule gives, of it only what the job has params for."""
    return GivenArgs({p: given[p] for p in params if p in given})


def _identity(equals: _Equals, args: Args, instant: float) -> str:
    # The schedule's place in the file is no part of it: among equals the ordinal is enough, and
    # a job file whose schedules were put in another order must not bring a skipped run back.
    counts = equals.counts
    if equals.alone and instant != equals.instant:
        counts.clear()
        equals.instant = instant
    text = canonical(args)
    ordinal = counts.get((text, instant), 0)
    counts[text, instant] = ordinal + 1
    return f"{equals.prefix}{quoted(text)},{instant:.6f},{ordinal}]"


def _makes(cursor: Cursor, args: Mapping[str, str], look: int) -> bool:
    if cursor.next is None:
        return False
    params = cursor.job.params
    try:
        for occurrence in islice(cursor.schedule.after(cursor.next.time), look):
            if _cut(occurrence.args, params) == args:
                return True
    except Exception:  # of a user's class: it is heard of when the cursor gets there
        pass
    return False
