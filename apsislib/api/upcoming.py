"""What is to come: computed from the schedules, for any span, page by page.

    GET /api/v1/upcoming?until=7d&label=etl
    GET /api/v1/jobs/<id>/upcoming?since=2031-01-01&until=2032-01-01&limit=500

`since` (default: now) and `until` (default: a year later) are an instant with zone or a date (its
beginning, UTC); `until` may be a duration after `since`. `skipped=true` (the default for one job) also
lists what is left out, with the reason. Where a run has been made of an occurrence already, its ID and
state are there. `next`, if not null, is the `cursor` of the next page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from apsislib import previews, terms
from apsislib.api.control import parse_bool
from apsislib.api.jobs import find_job_id
from apsislib.api.message import Request, Response, blocks
from apsislib.api.parts import Parts
from apsislib.api.search import parse_limit
from apsislib.errors import BadRequest
from apsislib.previews import Coming
from apsislib.runs import Job, Run, canonical
from apsislib.shapes import encode, join, labels
from apsislib.states import State
from apsislib.times import DAY, format_time, parse_duration

MAX_LIMIT = 1000
DEFAULT = 100
SPAN = 366 * DAY  # where no end is said
MANY = 200  # jobs whose occurrences are computed at once; more take turns


def of_job(parts: Parts, request: Request) -> Response:
    job_id = find_job_id(parts, request.params["job_id"])
    job = parts.driver.jobs.get(job_id)
    return _page(parts, request, [job] if job is not None else [], skipped=True)


def of_all(parts: Parts, request: Request) -> Response:
    label, part = request.one("label"), terms.lower(request.one("q") or "")
    jobs = [
        job
        for job in parts.driver.jobs.jobs.values()
        if job.schedules
        and part in terms.lower(job.job_id)
        and (label is None or label in labels(job.metadata))
    ]
    return _page(parts, request, jobs, skipped=False)


def _page(parts: Parts, request: Request, jobs: Sequence[Job], skipped: bool) -> Response:
    limit = parse_limit(request.one("limit"), DEFAULT, MAX_LIMIT)
    skipped = parse_bool(request.one("skipped") or str(skipped), "skipped")
    now = parts.clock.wall()
    start = _instant(request.one("since") or "now", now, "since")
    until = _until(request.one("until"), start, now)
    start, seen = _parse_cursor(request.one("cursor"), start)
    with parts.turns.take(len(jobs) > MANY):
        found = previews.upcoming(jobs, start, until, seen + limit + 1, skipped)
    page = found[: seen + limit]
    following = None
    if len(found) > len(page):
        last = page[-1].time
        following = f"{last!r}~{sum(coming.time == last for coming in page)}"
    made = _made(parts, page)
    # With those that have been seen: equals share their runs in order.
    pieces = [encode(_shape(coming, made)) for coming in page][seen:]
    head = b'{"when":"%b","since":"%b","until":"%b","upcoming":[' % tuple(
        format_time(t).encode() for t in (now, start, until)
    )
    return blocks(join(pieces, head, b'],"next":%b}' % encode(following)))


def _shape(coming: Coming, made: dict[Any, list[Run]]) -> dict[str, Any]:
    runs = None if coming.skipped else made.get((coming.job_id, canonical(coming.args), coming.time))
    run = runs.pop(0) if runs else None
    why = coming.skipped
    if run is not None and run.state is State.SKIPPED:
        why = f"run {run.run_id} was skipped"
    return {
        "job_id": coming.job_id,
        "schedule": coming.schedule,
        "time": format_time(coming.time),
        "args": dict(coming.args),
        "stop": None if coming.stop is None else format_time(coming.stop),
        "note": coming.note,
        "skipped": why,
        "run_id": None if run is None else run.run_id,
        "state": None if run is None else run.state.value,
    }


def _made(parts: Parts, page: Sequence[Coming]) -> dict[Any, list[Run]]:
    """The runs that were made of these occurrences, by job, args and time."""
    times = {coming.time for coming in page if not coming.skipped}
    if not times:
        return {}
    runs = {run.run_id: run for job_id in {c.job_id for c in page} for run in parts.driver.expected(job_id)}
    with parts.store.read() as reader:
        rows = reader.occurred(min(times), max(times), {coming.job_id for coming in page})
    runs |= {run.run_id: run for run in rows}
    made: dict[Any, list[Run]] = {}
    for run in sorted(runs.values(), key=lambda run: run.number):
        if run.times.get("schedule") in times:
            made.setdefault((*run.key, run.times["schedule"]), []).append(run)
    return made


def _instant(text: str, now: float, name: str) -> float:
    if re.fullmatch(r"\S+ \d\d:\d\d", text):  # the + of an offset, which stands for a blank in a query
        text = text.replace(" ", "+")
    try:
        return terms.instant(text, now)
    except BadRequest as error:
        raise BadRequest(f"{name}: {error}") from None


def _until(text: str | None, start: float, now: float) -> float:
    if text is None:
        return start + SPAN
    try:
        return start + parse_duration(text.strip().removeprefix("+"))
    except ValueError:
        return _instant(text, now, "until")


def _parse_cursor(text: str | None, start: float) -> tuple[float, int]:
    """(instant to go on from, how many of its occurrences have been seen)."""
    if text is None:
        return start, 0
    found = re.fullmatch(r"(-?\d{1,12}(?:\.\d{1,17})?)~(\d{1,6})", text, re.ASCII)
    if found is None:
        raise BadRequest(f"cursor must be the `next` of an answer: {text}")
    return float(found[1]), int(found[2])
