"""How jobs' runs have ended: for charts, heat maps and sparklines.

    GET /api/v1/recent?job_id=etl/load&job_id=etl/report
    GET /api/v1/history?job_id=etl/load&args={"date":"2031-05-06"}&limit=200
    GET /api/v1/days?job_id=etl/load&tz=Europe/London&since=2031-01-01

Each is bounded in rows; where there is more, `next` is the `before` of the next piece. Runs come as
lists, not objects: [run ID, state, schedule time, start, seconds], the newest first.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from datetime import date, timedelta
from typing import Any

from apsislib import times
from apsislib.api.message import Request, Response, ok
from apsislib.api.parts import Parts
from apsislib.api.search import parse_limit
from apsislib.errors import BadRequest
from apsislib.runs import run_number
from apsislib.store import Past
from apsislib.times import DAY, EPOCH, format_time

JOBS = 200  # jobs of one answer
RECENT = 20  # their runs
MOST = 1000  # runs of one answer
WALK = 20_000  # runs looked at for one answer of days: some 60 ms
YEAR = 366


def recent(parts: Parts, request: Request) -> Response:
    job_ids = list(dict.fromkeys(request.all("job_id")))
    if not 1 <= len(job_ids) <= JOBS:
        raise BadRequest(f"give from 1 to {JOBS} job_id, not {len(job_ids)}")
    with parts.store.read() as reader:
        found = {job_id: reader.past(job_id, None, None, RECENT)[0] for job_id in job_ids}
    return ok({"jobs": {job_id: [past_shape(run) for run in runs] for job_id, runs in found.items()}})


def history(parts: Parts, request: Request) -> Response:
    job_id, limit = _job_id(request), parse_limit(request.one("limit"), 200, MOST)
    args = _args(request.one("args"))
    with parts.store.read() as reader:
        runs, rest = reader.past(job_id, args, _before(request), limit)
    more = None if rest is None else f"r{rest}"
    return ok({"runs": [past_shape(run) for run in runs], "next": more})


def days(parts: Parts, request: Request) -> Response:
    job_id = _job_id(request)
    try:
        zone = times.zone(request.one("tz") or "UTC")
    except ValueError as error:
        raise BadRequest(f"tz: {error}") from None
    today = times.local(parts.clock.wall(), zone)[0]
    first = _date(request.one("since")) or today - timedelta(days=YEAR - 1)
    first = max(first, today - timedelta(days=2 * YEAR))
    # Where each date begins; a day more, for what is due in the future.
    dates = [first + timedelta(days=n) for n in range(max(0, (today - first).days) + 2)]
    starts = [_midnight(day, zone) for day in dates]
    with parts.store.read() as reader:
        found, rest = reader.outcomes(job_id, starts[0], _before(request), WALK)
    counts: Counter[tuple[int, str]] = Counter()
    for state, due in found:
        at = bisect_right(starts, due) - 1
        if at >= 0:
            counts[at, state.value] += 1
    shown: dict[str, dict[str, int]] = {}
    for (at, name), number in sorted(counts.items()):
        shown.setdefault(dates[at].isoformat(), {})[name] = number
    return ok({"since": first.isoformat(), "days": shown, "next": None if rest is None else f"r{rest}"})


def _midnight(day: date, zone: times.Zone) -> float:
    ordinal = day.toordinal()
    for t, _ in times.placed(ordinal, 0.0, zone, "end"):
        return t
    return (ordinal - EPOCH) * DAY  # a date that the zone left out


def past_shape(run: Past) -> list[Any]:
    return [
        f"r{run.number}",
        run.state.value,
        None if run.schedule is None else format_time(run.schedule),
        format_time(run.ended if run.begun is None else run.begun),
        None if run.elapsed is None else round(run.elapsed, 3),
    ]


def _job_id(request: Request) -> str:
    job_id = request.one("job_id")
    if job_id is None:
        raise BadRequest("job_id is missing")
    return job_id


def _before(request: Request) -> int | None:
    text = request.one("before")
    number = None if text is None else run_number(text)
    if text is not None and number is None:
        raise BadRequest(f"before must be a run ID: {text}")
    return number


def _args(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        args = json.loads(text)
    except (ValueError, RecursionError):
        args = None
    if not isinstance(args, dict) or not all(isinstance(value, str) for value in args.values()):
        raise BadRequest("args must be a JSON object of names and texts: " + text[:100])
    return args


def _date(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"since must be a date, such as 2031-05-06: {text}") from None
