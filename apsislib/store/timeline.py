"""Runs by job over a span of time, and what fails now: what the board of the day is drawn from.

A span's runs are found by the index of their latest transitions: one query counts them by job, and for the
jobs that are shown their runs, which lie between two numbers, are walked. Both end at a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from apsislib.states import FINISHED, State
from apsislib.store.history import Past, read_past
from apsislib.store.rows import COLUMNS
from apsislib.terms import lower

Query = Callable[[str, Collection[Any]], list[Any]]

MOST = 100_000  # runs of a span that are looked at, the newest of it: some 150 ms
# Seconds behind a span in which runs that began within it are looked for.
AFTER = 6 * 3600.0
FAILED = 500  # failures of either kind among which those that still stand are looked for

_ENDED = ", ".join(f"'{state.value}'" for state in sorted(FINISHED))


@dataclass(frozen=True, slots=True)
class Lane:
    """A job's finished runs in a span: how many, how many of them failed, and between which numbers."""

    job_id: str
    count: int
    failures: int
    first: int
    last: int


def lanes(query: Query, since: float, until: float, words: Sequence[str]) -> tuple[list[Lane], float | None]:
    """(of each job that finished runs in the span, in no order; the instant before which runs are left out).

    `words`: each must be in the job ID, lower case. None: nothing is left out.
    """
    # Of what ended after the span only what began in it counts. CASE: damaged JSON would end the query.
    began = "CASE WHEN json_valid(times) THEN json_extract(times, '$.running') END"
    rows = query(
        "SELECT job_id, count(*), sum(state IN ('failure', 'error')), min(number), max(number),"
        " min(timestamp) FROM (SELECT job_id, state, number, timestamp FROM runs"
        f" INDEXED BY runs_timestamp WHERE timestamp >= ? AND timestamp < ? AND state IN ({_ENDED})"
        f" AND (timestamp < ? OR {began} < ?) ORDER BY timestamp DESC LIMIT ?) GROUP BY job_id",
        (since, until + AFTER, until, until, MOST),
    )
    found = [Lane(*row[:5]) for row in rows]
    oldest = min((row[5] for row in rows), default=since)
    complete = sum(lane.count for lane in found) < MOST
    meant = [lane for lane in found if all(word in lower(lane.job_id) for word in words)]
    return meant, None if complete else oldest


def bars(query: Query, lane: Lane, since: float, until: float, limit: int) -> list[Past]:
    """A job's finished runs in the span, newest first."""
    rows = query(
        "SELECT number, state, args, schedule, times, timestamp FROM runs INDEXED BY runs_job"
        f" WHERE job_id = ? AND number >= ? AND number <= ? AND timestamp >= ? AND timestamp < ?"
        f" AND state IN ({_ENDED}) ORDER BY number DESC LIMIT ?",
        (lane.job_id, lane.first, lane.last, since, until + AFTER, limit),
    )
    return [run for run in read_past(rows) if (run.begun or run.ended) < until]


def slots(query: Query, lane: Lane, since: float, until: float, count: int) -> list[tuple[int, int, int]]:
    """(slot, from 0 to `count`; how many of a job's runs ended in it; how many of these failed)."""
    return query(
        "SELECT CAST((timestamp - ?) / ? AS INTEGER) AS slot, count(*), sum(state IN ('failure', 'error'))"
        " FROM runs INDEXED BY runs_job WHERE job_id = ? AND number >= ? AND number <= ?"
        f" AND timestamp >= ? AND timestamp < ? AND state IN ({_ENDED}) GROUP BY slot ORDER BY slot",
        (since, (until - since) / count, lane.job_id, lane.first, lane.last, since, until),
    )


def active(query: Query, limit: int) -> list[tuple[str, Past]]:
    """(job ID, run) of what waits, starts, runs or stops, newest first."""
    columns = "job_id, number, state, args, schedule, times, timestamp"
    rows: list[Any] = []
    for state in (State.WAITING, State.STARTING, State.RUNNING, State.STOPPING):
        rows += query(
            f"SELECT {columns} FROM runs INDEXED BY runs_state WHERE state = ? ORDER BY number DESC LIMIT ?",
            (state.value, limit),
        )
    rows.sort(key=lambda row: -row[1])
    return [(row[0], run) for row in rows[:limit] for run in read_past([row[1:]])]


def scheduled(query: Query, since: float, until: float, limit: int) -> list[Any]:
    """The first rows (of COLUMNS) of runs that were scheduled by hand or by an action, due in the span."""
    return query(
        f"SELECT {COLUMNS} FROM runs INDEXED BY runs_state WHERE state = ? AND schedule >= ? AND schedule < ?"
        " ORDER BY schedule, number LIMIT ?",
        (State.SCHEDULED.value, since, until, limit),
    )


def standing(query: Query, since: float) -> list[Any]:
    """Rows (of COLUMNS) of failures since an instant that no later run of the same instance has made good."""
    later = (
        "SELECT 1 FROM runs AS later INDEXED BY runs_instance WHERE later.job_id = failed.job_id"
        " AND later.args = failed.args AND later.state IN ('success', 'failure', 'error')"
        " AND later.number > failed.number"
    )
    rows: list[Any] = []
    for state in (State.FAILURE, State.ERROR):
        newest = (
            f"SELECT {COLUMNS} FROM runs INDEXED BY runs_state WHERE state = ? ORDER BY number DESC LIMIT ?"
        )
        rows += query(
            f"SELECT {COLUMNS} FROM ({newest}) AS failed WHERE timestamp >= ? AND NOT EXISTS ({later})",
            (state.value, FAILED, since),
        )
    return sorted(rows, key=lambda row: -row[0])
