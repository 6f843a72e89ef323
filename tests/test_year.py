"""A simulated year of 200 jobs in five zones, through the kernel, its conditions and its actions.

What should come of it is worked out by other means: date arithmetic and the standard library's zones.
`benchmarks/year.py` prints how long it takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sim import Sim, SimProgram, instant

from apsislib.actions import ScheduleAction
from apsislib.calendars import Calendars
from apsislib.conditions import Dependency, MaxRunning, SkipDuplicate
from apsislib.runs import Schedule
from apsislib.schedules import parse
from apsislib.states import State

ZONES = ("UTC", "America/New_York", "Europe/London", "Asia/Tokyo", "Australia/Sydney")
START, END = "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"


def schedule(**mapping: Any) -> Schedule:
    return parse(mapping, Calendars(None))


def local_times(zone: str, clock: time, days: Callable[[date], bool] = lambda day: True) -> list[float]:
    """Instants in the year at which clocks in `zone` show `clock`, on some days."""
    found = []
    day = date(2025, 12, 30)
    while day < date(2027, 1, 3):
        at = datetime.combine(day, clock, ZoneInfo(zone)).timestamp()
        if days(day) and instant(START) <= at < instant(END):
            found.append(at)
        day += timedelta(days=1)
    return found


def weekday(day: date) -> bool:
    return day.weekday() < 5


def build(sim: Sim) -> dict[str, int]:
    """Adds the jobs; answers how many runs of each the year must have."""
    counts: dict[str, int] = {}

    def add(job_id: str, count: int, *schedules: Schedule, **rest: Any) -> None:
        sim.add_job(job_id, *schedules, **rest)
        counts[job_id] = count

    for zone in ZONES:
        for n in range(10):  # a nightly load ...
            clock = f"{n:02}:30:00"
            daily = schedule(type="daily", daytime=clock, tz=zone)
            nightly = len(local_times(zone, time.fromisoformat(clock)))
            add(f"{zone}/load{n}", nightly, daily, params=("date",), program=SimProgram(600))
            # ... the report that waits for it, two at a time ...
            waits = (Dependency(f"{zone}/load{n}"), MaxRunning("2"))
            add(
                f"{zone}/report{n}",
                nightly,
                daily,
                params=("date",),
                conditions=waits,
                program=SimProgram(60),
            )
        for n in range(4):  # ... twice on weekdays, with something that follows ...
            twice = schedule(type="daily", daytime=["08:45:00", "17:15:00"], tz=zone, calendar="Mon-Fri")
            count = sum(len(local_times(zone, clock, weekday)) for clock in (time(8, 45), time(17, 15)))
            mails = (ScheduleAction(f"{zone}/mail", {}, frozenset({State.SUCCESS})),) if n == 0 else ()
            add(f"{zone}/close{n}", count, twice, params=("daytime",), actions=mails)
        add(f"{zone}/mail", counts[f"{zone}/close0"])
        for n in range(4):  # ... business hours on weekdays ...
            every = schedule(
                type="daily-interval",
                start="09:00:00",
                stop="17:00:00",
                interval=7200,
                tz=zone,
                calendar="Mon-Fri",
            )
            count = sum(len(local_times(zone, time(9 + 2 * i), weekday)) for i in range(4))
            add(f"{zone}/desk{n}", count, every, params=("time",))
        for n in range(5):  # ... crontab entries ...
            entry = schedule(type="cron", cron=f"{n} 6,18 * * mon-fri", tz=zone)
            count = sum(len(local_times(zone, time(hour, n), weekday)) for hour in (6, 18))
            add(f"{zone}/cron{n}", count, entry)
        for n in range(5):  # ... and what runs every twelve hours, unless it still runs.
            shift = schedule(type="interval", interval=12 * 3600, phase=60 * n)
            duplicate = (SkipDuplicate(),)
            add(f"{zone}/shift{n}", 365 * 2, shift, conditions=duplicate, program=SimProgram(60))
        add(f"{zone}/manual", 0)
    return counts


def test_a_year_of_200_jobs_has_exactly_the_runs_that_it_should() -> None:
    sim = Sim(START)
    counts = build(sim)
    assert len(counts) == 200
    sim.run_until(instant(END) - 1)
    assert sum(counts.values()) >= 100_000
    happened = Counter(run.job_id for run in sim.rows.values())
    assert {j: happened[j] for j in counts} == counts
    unfinished = [r for r in sim.rows.values() if r.state is not State.SUCCESS]
    assert all(r.times["schedule"] > instant(END) - 3600 for r in unfinished)


def test_reports_start_only_after_their_loads() -> None:
    sim = Sim(START)
    build(sim)
    sim.run_until("2026-01-15T00:00:00Z")
    for zone in ZONES:
        for load, report in zip(sim.runs(f"{zone}/load3"), sim.runs(f"{zone}/report3"), strict=True):
            assert report.args == load.args
            assert report.times["starting"] == load.times["success"]
