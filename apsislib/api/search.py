"""Runs of all jobs and of the whole history, newest first, page by page.

    GET /api/v1/search/runs?q=etl+date%3D2031+state:fail,error&limit=100&before=r5120

`q` is in the language of terms.py. Beside it, `job_id` is all of a job ID, `label` a label, `state` a
state (all of its name; may be repeated), `since` and `until` are instants that bound the latest
transition. The answer's `next`, if not null, is the `before` of the next page: pages neither repeat nor
leave out a run, whatever is added meanwhile. A page may be short of `limit`, even empty, though more
follow: a search that finds little ends a page after half a second.

With `order=latest` runs come by the instant of their latest transition, the newest first, and with
`order=earliest` the oldest first: without those that schedules have made ahead of time, and `next` is the
`cursor` of the next page. With `order=schedule` the scheduled runs come instead, by the time they are due;
there are no pages.
"""

from __future__ import annotations

import heapq
import re

from apsislib import shapes
from apsislib.api.message import Request, Response, blocks
from apsislib.api.parts import Parts
from apsislib.api.runs import instant, parse_state
from apsislib.errors import BadRequest
from apsislib.runs import Run, run_number
from apsislib.states import State
from apsislib.terms import JobIs, Label, Since, StateIn, Term, Until, admits, parse

MAX_LIMIT = 1000  # runs of a page
DEFAULT = 100
ORDERS = ("newest", "latest", "earliest", "schedule")


def search(parts: Parts, request: Request) -> Response:
    limit = parse_limit(request.one("limit"), DEFAULT, MAX_LIMIT)
    before = request.one("before")
    cursor = None if before is None else run_number(before)
    if before is not None and cursor is None:
        raise BadRequest(f"before must be a run ID: {before}")
    terms = read_terms(parts, request)
    order = request.one("order")
    if order not in (None, *ORDERS):
        raise BadRequest(f"order must be one of {', '.join(ORDERS)}: {order}")
    if order == "schedule":
        return _by_schedule(parts, terms, limit)
    if order in ("latest", "earliest"):
        start = parse_place(request.one("cursor"))
        with parts.store.read() as reader:
            page, place = reader.search_by_time(terms, start, limit, order == "earliest")
        more = None if place is None else f"{place[0]!r}~{place[1]}"
        return blocks(shapes.runs_body(parts.clock.wall(), page, summary=True, next=more))

    # Before the database, as runs go from here to there.
    expected = [run for run in parts.driver.expected() if admits(terms, run)]
    with parts.store.read() as reader:
        rows, rest = reader.search(terms, cursor, limit)
    found = {run.run_id: run for run in rows}
    for run in expected:
        if (cursor is None or run.number < cursor) and (rest is None or run.number >= rest):
            found.setdefault(run.run_id, run)
    newest = heapq.nlargest(limit, found.values(), key=lambda run: run.number)
    more = None if rest is None else f"r{rest}"
    if len(newest) < len(found):
        more = newest[-1].run_id
    return blocks(shapes.runs_body(parts.clock.wall(), newest, summary=True, next=more))


def parse_place(text: str | None) -> tuple[float, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(-?\d{1,12}(?:\.\d{1,17})?)~(\d{1,18})", text, re.ASCII)
    if found is None:
        raise BadRequest(f"cursor must be the `next` of an answer: {text}")
    return float(found[1]), int(found[2])


def read_terms(parts: Parts, request: Request) -> list[Term]:
    terms = parse(request.one("q") or "", parts.clock.wall())
    states = frozenset(parse_state(text) for text in request.all("state"))
    job_id, label = request.one("job_id"), request.one("label")
    since, until = instant(request.one("since"), "since"), instant(request.one("until"), "until")
    if states:
        terms.append(StateIn(states))
    if job_id is not None:
        terms.append(JobIs(job_id))
    if label is not None:
        terms.append(Label(label))
    if since is not None:
        terms.append(Since(since))
    if until is not None:
        terms.append(Until(until))
    return terms


def _by_schedule(parts: Parts, terms: list[Term], limit: int) -> Response:
    expected = [run for run in parts.driver.expected() if admits(terms, run)]
    with parts.store.read() as reader:
        rows = reader.runs(states={State.SCHEDULED})
    due = {run.run_id: run for run in (*expected, *(run for run in rows if admits(terms, run)))}

    def when(run: Run) -> tuple[float, int]:
        return run.times.get("schedule", 0.0), run.number

    found = heapq.nsmallest(limit, due.values(), key=when)
    return blocks(shapes.runs_body(parts.clock.wall(), found, summary=True, next=None))


def parse_limit(text: str | None, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not 1 <= int(text) <= most:
        raise BadRequest(f"limit must be a whole number from 1 to {most}: {text}")
    return int(text)
