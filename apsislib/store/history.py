"""How the runs of jobs ended, and how long they took: what charts and tables of jobs are drawn from.

Each query walks an index of one job, newest first, and ends at its limit; of a row no more is read than
the first columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from apsislib.states import FINISHED, State
from apsislib.store.rows import is_instant

Query = Callable[[str, Collection[Any]], list[Any]]

SOME = 500  # jobs whose latest runs are looked up by one query: some 5 ms
_ENDED = ", ".join(f"'{state.value}'" for state in sorted(FINISHED))
_STATES = {state.value for state in State}
_AHEAD = f"'{State.NEW.value}', '{State.SCHEDULED.value}'"


@dataclass(frozen=True, slots=True)
class Past:
    """What charts show of a run. Instants, and seconds."""

    number: int
    state: State
    args: str  # canonical
    schedule: float | None
    begun: float | None  # None: it never ran
    ended: float
    elapsed: float | None


def past(
    query: Query, job_id: str, args: str | None, before: int, limit: int
) -> tuple[list[Past], int | None]:
    """(up to `limit` finished runs of a job, or of an instance (`args` canonical), newest first; the
    `before` of the next page). None for the latter: there is no more.
    """
    columns = "number, state, args, schedule, times, timestamp"
    if args is None:
        rows = query(
            f"SELECT {columns} FROM runs INDEXED BY runs_job WHERE job_id = ? AND number < ?"
            f" AND state IN ({_ENDED}) ORDER BY number DESC LIMIT ?",
            (job_id, before, limit),
        )
    else:
        sql = (
            f"SELECT {columns} FROM runs INDEXED BY runs_instance WHERE job_id = ? AND args = ? AND state = ?"
            " AND number < ? ORDER BY number DESC LIMIT ?"
        )
        every = [query(sql, (job_id, args, state.value, before, limit)) for state in FINISHED]
        rows = sorted((row for rows in every for row in rows), key=lambda row: -row[0])[:limit]
    # By the rows, not by what can be read of them: one that is damaged must not hide all before it.
    return list(read_past(rows)), rows[-1][0] if len(rows) == limit else None


def read_past(rows: Iterable[Sequence[Any]]) -> Iterator[Past]:
    """Rows as what is shown of them, but for damaged ones, which are said to be so where runs are read."""
    for row in rows:
        with suppress(ValueError, TypeError, RecursionError):
            yield _read_past(*row)


def _read_past(
    number: int, state: str, args: str, schedule: float | None, times: str, timestamp: float
) -> Past:
    """Of an unfinished run, `ended` is its latest transition."""
    known = json.loads(times)
    if not isinstance(known, dict) or not is_instant(timestamp, *known.values()):
        raise ValueError("no instants")
    if not isinstance(json.loads(args), dict):
        raise ValueError("no args")
    ends = [known[s.value] for s in FINISHED if s.value in known]
    begun = known.get("running")
    # Of a run that was marked later the first end is the one of its program.
    ended = min(ends, default=timestamp)
    over = State(state) in FINISHED
    if not over:
        ended = timestamp
    elapsed = max(0.0, ended - begun) if over and begun is not None else None
    return Past(number, State(state), args, schedule, begun, ended, elapsed)


def latest(query: Query, job_ids: Sequence[str]) -> Iterator[tuple[str, int, State, float]]:
    """(job ID, run number, state, instant of its latest transition) of each job's newest run that is due."""
    newest = (
        "SELECT number FROM runs INDEXED BY runs_job"
        f" WHERE job_id = wanted.value AND state NOT IN ({_AHEAD}) ORDER BY number DESC LIMIT 1"
    )
    for at in range(0, len(job_ids), SOME):
        rows = query(
            "SELECT runs.job_id, runs.number, runs.state, runs.timestamp"
            f" FROM (SELECT ({newest}) AS number FROM json_each(?) AS wanted) AS found"
            " JOIN runs ON runs.number = found.number",
            (json.dumps(job_ids[at : at + SOME]),),
        )
        for job_id, number, state, timestamp in rows:
            if state in _STATES and is_instant(timestamp):
                yield job_id, number, State(state), timestamp


def outcomes(
    query: Query, job_id: str, since: float, before: int, limit: int
) -> tuple[list[tuple[State, float]], int | None]:
    """((state, instant it was due) of finished runs that ended since, newest first; where to go on).

    `limit` rows are looked at. None: there is no more.
    """
    rows = query(
        "SELECT number, state, coalesce(schedule, timestamp), timestamp FROM runs INDEXED BY runs_job"
        " WHERE job_id = ? AND number < ? ORDER BY number DESC LIMIT ?",
        (job_id, before, limit),
    )
    found: list[tuple[State, float]] = []
    ended = {state.value: state for state in FINISHED}
    for _, state, due, timestamp in rows:
        # One that is older is no sign that all before it are: a clock may have been wrong for a while.
        if timestamp >= since and state in ended and is_instant(due):
            found.append((ended[state], due))
    more = len(rows) == limit and rows[-1][3] >= since
    return found, rows[-1][0] if more else None
