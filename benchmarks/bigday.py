"""A large installation for measurements: 10,000 jobs and a million runs of the last month."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from apsislib.clock import Deadline, WallClock
from apsislib.runs import Run
from apsislib.states import State
from apsislib.store import SetMeta, Store
from apsislib.store.rows import SAVE, to_saved

DAY = 86400.0
TEAMS = ("etl", "risk", "pricing", "reports", "billing", "ml", "ops", "backup", "market-data", "compliance")
WORDS = ("load", "check", "publish", "rates", "trades", "positions", "daily", "archive", "snapshot", "curves")


def job_ids(count: int) -> list[str]:
    return [f"{TEAMS[n % 10]}/{WORDS[n // 10 % 10]}/{WORDS[n // 100 % 10]}-{n:05}" for n in range(count)]


def job_files(directory: Path, count: int) -> None:
    """Each job once a day, at its own minute."""
    for n, job_id in enumerate(job_ids(count)):
        path = directory / f"{job_id}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        hour, minute = divmod(n * 1440 // count, 60)
        path.write_text(
            f"params: [date]\nmetadata: {{labels: [{job_id.split('/')[0]}]}}\n"
            f"schedule: {{type: daily, tz: UTC, calendar: all, daytime: '{hour:02}:{minute:02}:00'}}\n"
            "program: {type: no-op}\n"
        )


def runs(jobs: int, count: int, now: float) -> Iterator[Run]:
    """The history, oldest first: spread evenly over 30 days up to now; 1 in 100 failed."""
    random.seed(7)
    ids = job_ids(jobs)
    for n in range(count):
        due = now - 30 * DAY + n * 30 * DAY / count
        took = random.lognormvariate(3, 1.2)
        state = State.SUCCESS if random.random() > 0.01 else State.FAILURE
        end = min(now, due + 0.3 + took)
        job_id = ids[n % jobs]
        yield Run(
            f"r{n + 1}",
            job_id,
            {"date": time.strftime("%Y-%m-%d", time.gmtime(due))},
            state,
            end,
            {
                "schedule": due,
                "scheduled": due,
                "starting": due + 0.1,
                "running": due + 0.3,
                state.value: end,
            },
            program={
                "type": "procstar",
                "argv": ["/usr/bin/bash", "-c", f"/opt/jobs/{job_id}"],
                "group_id": "default",
            },
            meta={"job": {"labels": [job_id.split("/")[0]]}, "program": {"status": {"exit_code": 0}}},
            occurrence=f"{job_id}#0#{due}",
            rev=5,
        )


def fill(path: Path, jobs: int, count: int) -> None:
    """The database, made anew. Rows are inserted past the store, which would be a few minutes' work."""
    clock = WallClock()
    store = Store(path, clock)
    store.open()
    store.start()
    store.wait(store.put([SetMeta("clock", clock.wall())]), 60)
    assert store.close(Deadline(60))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -400000")
        db.executemany(SAVE, map(to_saved, runs(jobs, count, clock.wall())))
