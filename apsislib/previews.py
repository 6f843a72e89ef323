"""What schedules will do, and where they leave a date out: computed, for any span. Pure.

Nothing here is a run yet; whether one has been made of an occurrence is for the caller to say.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import islice, takewhile

from apsislib import times
from apsislib.calendars import Calendar
from apsislib.runs import Args, Job, Occurrence, Schedule
from apsislib.stops import Stopped
from apsislib.times import DAY, EPOCH, Gap, format_daytime
from apsislib.timetables import Cron, Daily, DailyInterval, Wall

DISABLED = "the schedule is disabled"


@dataclass(frozen=True, slots=True, order=True)
class Coming:
    """An occurrence to come, or one that there would be, if it were not skipped."""

    time: float  # instant
    job_id: str
    schedule: int  # its place in the job file, from 0
    args: Args = field(compare=False)  # cut to the job's params
    stop: float | None = field(default=None, compare=False)  # instant
    note: str | None = field(default=None, compare=False)
    skipped: str | None = field(default=None, compare=False)  # why


def upcoming(jobs: Iterable[Job], start: float, until: float, limit: int, skipped: bool) -> list[Coming]:
    """The first `limit` occurrences in [start, until), ascending; with `skipped` also those left out."""
    every = [(job, n, schedule) for job in jobs for n, schedule in enumerate(job.schedules)]
    streams = [
        _occurrences(job, n, schedule, start, until)
        for job, n, schedule in every
        if skipped or schedule.enabled
    ]
    found = list(islice(heapq.merge(*streams), limit))
    if not skipped:
        return found
    # Only as far as this page reaches: a calendar may have no date for thousands of years.
    end = found[-1].time if len(found) == limit else until
    gaps = [_left_out(job, n, schedule, start, end) for job, n, schedule in every if schedule.enabled]
    return list(islice(heapq.merge(found, *gaps), limit))


def _occurrences(job: Job, n: int, schedule: Schedule, start: float, until: float) -> Iterator[Coming]:
    why = None if schedule.enabled else DISABLED
    for occurrence in takewhile(lambda o: o.time < until, schedule.after(start)):
        yield _coming(job, n, occurrence, why)


def _coming(job: Job, n: int, occurrence: Occurrence, why: str | None) -> Coming:
    args = {name: occurrence.args[name] for name in job.params if name in occurrence.args}
    return Coming(occurrence.time, job.job_id, n, args, occurrence.stop, occurrence.note, why)


def _left_out(job: Job, n: int, schedule: Schedule, start: float, end: float) -> Iterator[Coming]:
    for t, why in left_out(schedule, start, end):
        yield Coming(t, job.job_id, n, {}, None, None, why)


def left_out(schedule: Schedule, start: float, end: float) -> Iterator[tuple[float, str]]:
    """(when it would have been, why it is not) for the dates that a schedule leaves out, ascending.

    Only what a person would look for there: a date that is not in the calendar though the schedule's
    own rule has it, a wall time that clocks skip. Schedules that know no dates leave nothing out.
    """
    if isinstance(schedule, Stopped):
        schedule = schedule.start
    start = max(start, times.FIRST)
    end = min(end, times.LAST)
    if start >= end or not isinstance(schedule, Daily | DailyInterval | Cron):
        return
    wall = schedule.wall
    held: list[tuple[float, str]] = []
    # A day more at either end: a zone's date may be a day from that of UTC.
    first, last = int(start // DAY) + EPOCH - 1, int(end // DAY) + EPOCH + 1
    for day, found in _by_day(schedule, wall, first, last):
        held += found
        held.sort()
        # Nothing of a later day comes before this.
        settled = (day - EPOCH - 1) * DAY
        while held and held[0][0] < settled:
            if start <= held[0][0] < end:
                yield held[0]
            held.pop(0)
    yield from ((t, why) for t, why in held if start <= t < end)


def _by_day(
    schedule: Daily | DailyInterval | Cron, wall: Wall, first: int, last: int
) -> Iterator[tuple[int, list[tuple[float, str]]]]:
    gap: Gap = wall.gap
    if isinstance(schedule, Cron):
        walls, shift = schedule.cron.daytimes, 0
        if schedule.cron.physical:
            walls, gap = walls[:1], "shift"  # follows physical time: in a gap there is nothing to miss
        every = Calendar("all", range(7))
        days: Iterable[int] = schedule.cron.days(first, every)
    else:
        if isinstance(schedule, Daily):
            walls, shift = schedule.daytimes, schedule.shift.date_shift
        else:
            walls, shift = (schedule.start.daytime,), schedule.start.shift.date_shift
        days = range(first - shift, last - shift + 1)
    for nominal in days:
        day = nominal + shift
        if day > last:
            return
        if nominal >= wall.calendar.stop:
            yield (
                day,
                _absent(wall, day, walls[0], f"calendar {wall.calendar_name} ends before {_iso(nominal)}"),
            )
            return
        if nominal < wall.calendar.first or not wall.calendar.has(nominal):
            why = f"{_iso(nominal)} is not in calendar {wall.calendar_name}"
            yield day, _absent(wall, day, walls[0], why)
        elif times.steady(wall.tz, day) is None:
            yield day, [missed for seconds in walls for missed in _missed(wall, day, seconds, gap)]


def _absent(wall: Wall, day: int, seconds: float, why: str) -> list[tuple[float, str]]:
    return [(t, why) for t, _ in times.placed(day, seconds, wall.tz)]


def _missed(wall: Wall, day: int, seconds: float, gap: Gap) -> Iterator[tuple[float, str]]:
    if times.placed(day, seconds, wall.tz, gap):
        return
    where = f"on {_iso(day)} in {wall.tz.key}, where clocks are put forward"
    why = f"{format_daytime(seconds)} does not exist {where}"
    shifted = times.placed(day, seconds, wall.tz)
    # Of a date that the zone left out there is no instant: a day after the date before, then.
    for t, _ in shifted or times.placed(day - 1, seconds, wall.tz):
        yield t if shifted else t + DAY, why


def _iso(ordinal: int) -> str:
    return date.fromordinal(ordinal).isoformat()
