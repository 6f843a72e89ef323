"""A busy installation to look at: a bank's batch, with a day and a half of history, made in a second.

Job files are real and the history is that of their schedules, so what is to come fits what was. Programs are
no-ops that last as long as in the history; a few have been running for a while, some wait, some failed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apsislib import jobs as job_files
from apsislib import previews
from apsislib.clock import Deadline, WallClock
from apsislib.jobs import Kinds
from apsislib.runs import Run, Save
from apsislib.states import State
from apsislib.store import SetMeta, Store
from programs import noop
from programs.base import Settings

HOUR = 3600.0
BACK = 40 * HOUR  # s of history


@dataclass(frozen=True)
class Demo:
    """A job: its schedule, the seconds that it takes, how many of 100 runs fail, and more of its file."""

    job_id: str
    schedule: str
    takes: float
    fails: float = 0.0
    more: str = ""


def daily(*times: str) -> str:
    return f"{{type: daily, tz: Europe/London, calendar: all, daytime: [{', '.join(map(repr, times))}]}}"


def every(seconds: int, phase: int = 0) -> str:
    return f"{{type: interval, interval: {seconds}, phase: {phase}}}"


WAITS = "condition:\n- {{type: dependency, job_id: {0}, args: {{date: '{{{{ date }}}}'}}}}\n"
HEAD = "params: [date]\nmetadata: {{labels: [{0}]}}\n"
PROGRAM = "program: {{type: no-op, duration: {0:g}}}\n"
JOBS = (
    Demo("market-data/ticks/equities", every(900, 60), 210, 1, "expect: {max_duration: 20 m}\n"),
    Demo("market-data/ticks/fx", every(900, 240), 150),
    Demo("market-data/ticks/futures", every(1800, 420), 320, 2),
    Demo("market-data/reference/instruments", every(7200, 900), 600),
    Demo("market-data/reference/calendars", daily("05:30:00"), 45),
    Demo("market-data/close/us", daily("21:15:00"), 1500),
    Demo("market-data/close/eu", daily("17:05:00"), 1200),
    Demo("market-data/close/asia", daily("08:10:00"), 1100, 40),
    Demo("etl/trades/load", every(3600, 300), 760, 3, "expect: {within: 10 m}\n"),
    Demo("etl/trades/normalise", every(3600, 1200), 420),
    Demo("etl/positions/snapshot", every(7200, 1800), 900, 2),
    Demo("etl/positions/reconcile", daily("06:20:00", "12:20:00", "18:20:00"), 1400, 12),
    Demo("etl/ledger/post", daily("22:00:00"), 2700),
    Demo("risk/var/intraday", every(3600, 2100), 1300, 2, "expect: {max_duration: 40 m}\n"),
    Demo("risk/var/overnight", daily("01:00:00"), 9800, 0, "expect: {by: '05:00:00', tz: Europe/London}\n"),
    Demo("risk/stress/weekly", daily("03:30:00"), 5200, 8),
    Demo("risk/limits/check", every(1800, 900), 95, 4),
    Demo("risk/counterparty/exposure", daily("07:00:00", "13:00:00", "19:00:00"), 2100),
    Demo("pricing/curves/build", every(3600, 600), 520, 1),
    Demo("pricing/vol-surfaces/fit", daily("07:30:00", "11:30:00", "15:30:00", "20:30:00"), 2300, 5),
    Demo("pricing/marks/publish", daily("18:00:00"), 340),
    Demo("reports/desk-pnl", daily("08:00:00", "12:00:00", "16:00:00"), 260, 6),
    Demo("reports/regulatory/emir", daily("23:30:00"), 1900, 30),
    Demo("reports/regulatory/mifid-transactions", daily("02:15:00"), 2600),
    Demo("reports/board-summary", daily("09:00:00"), 130),
    Demo("billing/invoices/render", daily("04:00:00"), 3300, 3),
    Demo("billing/statements/send", daily("06:45:00"), 1500),
    Demo("ml/features/daily", daily("00:30:00"), 6100),
    Demo("ml/fraud/score", every(3600, 2700), 610, 2),
    Demo("ops/backup/database", daily("02:00:00", "14:00:00"), 4300),
    Demo("ops/backup/verify", daily("05:00:00"), 2400, 10),
    Demo("ops/certificates/check", daily("07:15:00"), 12),
    Demo("ops/log-shipping", every(1800, 1500), 75),
    Demo("ops/disk-usage", every(3600, 3000), 20),
    Demo("compliance/sanctions/refresh", daily("06:00:00", "18:30:00"), 800, 5),
    Demo("compliance/surveillance/scan", every(7200, 5400), 1700),
)
# Jobs without a schedule: (job, seconds that its run has been going on).
GOING = (
    ("risk/monte-carlo/credit-book", 5900.0, 6300.0),
    ("etl/archive/compact", 2900.0, 1500.0),
    ("ml/fraud/retrain", 1450.0, 7200.0),
)
WAITING = (
    ("reports/client-valuations", "market-data/close/us"),
    ("billing/fees/accrue", "etl/ledger/post"),
    ("reports/liquidity", "market-data/close/eu"),
)
# What failed and stands, by job and how many hours ago at least.
STANDING = {
    "market-data/close/asia": 0.0,
    "reports/regulatory/emir": 0.0,
    "etl/trades/load": 0.7,
    "risk/limits/check": 1.2,
}


def parse_program(mapping: Any) -> noop.NoOp:
    return noop.parse(mapping, Settings())


def job_text(demo: Demo) -> str:
    team = demo.job_id.split("/")[0]
    return (
        f"params: [{'date' if 'daily' in demo.schedule else 'time'}]\n"
        f"metadata:\n  labels: [{team}{', nightly' if 'daily' in demo.schedule else ''}]\n"
        f"  description: Part of the batch of {team}.\n"
        f"schedule: {demo.schedule}\n{demo.more}program: {{type: no-op, duration: {demo.takes:g}}}\n"
    )


def write_jobs(directory: Path) -> None:
    files = {demo.job_id: job_text(demo) for demo in JOBS}
    for job_id, _, takes in GOING:
        expect = "expect: {max_duration: 45 m}\n" if takes < 2700 else ""
        files[job_id] = HEAD.format(job_id.split("/")[0]) + expect + PROGRAM.format(takes * 2.4)
    for job_id, needs in WAITING:
        files[job_id] = HEAD.format(job_id.split("/")[0]) + WAITS.format(needs) + PROGRAM.format(300)
    for job_id, text in files.items():
        path = directory / f"{job_id}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def history(directory: Path, now: float) -> Iterator[Run]:
    """Runs of the past of these jobs' schedules, by the time that they were due."""
    random.seed(42)
    found = job_files.load_dir(directory, Kinds(parse_program))
    known = {demo.job_id: demo for demo in JOBS}
    going = [(job_id, now - since, takes) for job_id, since, takes in GOING]
    number = 4200
    past = previews.upcoming(found.jobs.values(), now - BACK, now, 100_000, False)
    last = {
        coming.job_id: coming.time
        for coming in past
        if coming.time < now - STANDING.get(coming.job_id, BACK) * HOUR
    }
    for coming in past:
        number += 1
        fails = 100.0 if last.get(coming.job_id) == coming.time else known[coming.job_id].fails
        yield from one_run(replace(known[coming.job_id], fails=fails), coming, f"r{number}", now)
    for job_id, begun, takes in going:
        for day in range(4):
            number += 1
            start = begun - (day + 1) * 24 * HOUR
            yield ended(
                job_id,
                {"date": day_of(start)},
                f"r{number}",
                start,
                start + takes * random.uniform(0.9, 1.1),
                State.SUCCESS,
            )
        number += 1
        program = {"type": noop.BOUND, "duration": f"{takes * 2.4:g}", "success": True, "str": "no-op"}
        times = {"schedule": begun, "scheduled": begun, "starting": begun, "running": begun}
        labels = meta(job_id) | ({"alarms": ["long"]} if job_id == "etl/archive/compact" else {})
        yield Run(
            f"r{number}",
            job_id,
            {"date": day_of(begun)},
            State.RUNNING,
            begun,
            times,
            program=program,
            run_state={"start": begun},
            meta=labels,
        )


def one_run(demo: Demo, coming: previews.Coming, run_id: str, now: float) -> Iterator[Run]:
    args = dict(coming.args)
    begun = coming.time + random.uniform(0.2, 3)
    takes = demo.takes * math.exp(random.gauss(0, 0.18))
    if random.random() < 0.04:
        takes *= 2.4
    end = begun + takes
    draw = random.random() * 100
    state = (
        State.SUCCESS
        if draw >= demo.fails
        else State.ERROR
        if 20 < draw < 20 + demo.fails / 5
        else State.FAILURE
    )
    if state is not State.SUCCESS:
        end = begun + takes * random.uniform(0.05, 0.8)
    if demo.job_id == "ops/log-shipping" and random.random() < 0.1:
        times = {"schedule": coming.time, "scheduled": coming.time, "skipped": begun}
        yield Run(run_id, demo.job_id, args, State.SKIPPED, begun, times, meta=meta(demo.job_id))
    elif end < now:
        yield ended(demo.job_id, args, run_id, begun, end, state, coming.time)
    else:
        times = {"schedule": coming.time, "scheduled": coming.time, "starting": begun, "running": begun}
        program = {"type": noop.BOUND, "duration": f"{takes:.0f}", "success": True, "str": "no-op"}
        yield Run(
            run_id,
            demo.job_id,
            args,
            State.RUNNING,
            begun,
            times,
            program=program,
            run_state={"start": begun},
            meta=meta(demo.job_id),
        )


def ended(
    job_id: str,
    args: dict[str, str],
    run_id: str,
    begun: float,
    end: float,
    state: State,
    due: float | None = None,
) -> Run:
    due = begun - 0.4 if due is None else due
    times = {
        "schedule": due,
        "scheduled": due - HOUR,
        "starting": begun - 0.1,
        "running": begun,
        state.value: end,
    }
    program = {
        "type": noop.BOUND,
        "duration": f"{end - begun:.0f}",
        "success": state is State.SUCCESS,
        "str": "no-op",
    }
    return Run(run_id, job_id, args, state, end, times, program=program, meta=meta(job_id))


def meta(job_id: str) -> dict[str, Any]:
    return {"job": {"labels": [job_id.split("/")[0]]}}


def day_of(time: float) -> str:
    from apsislib.times import format_time

    return format_time(time)[:10]


def build(directory: Path) -> None:
    """Job files and a database in a directory that a server is to be started in."""
    clock = WallClock()
    now = clock.wall()
    write_jobs(directory / "jobs")
    store = Store(directory / "apsis.db", clock)
    store.open()
    store.start()
    runs = list(history(directory / "jobs", now))
    store.wait(store.put([*(Save(run) for run in runs), SetMeta("clock", now)]), 60)
    assert store.close(Deadline(30))


def begin(server: Any) -> None:
    """Once a server runs there: what waits for something."""
    for job_id, _ in WAITING:
        server.post("/runs", {"job_id": job_id, "args": {"date": day_of(WallClock().wall())}})
