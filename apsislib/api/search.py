"""Runs of all jobs, newest first, page by page.

    GET /api/v1/search/runs?q=etl&state=failure&state=error&limit=100&before=r5120

`q` is a part of the job ID (in any case), `job_id` all of it, `label` a label; `since` and `until` bound
the latest transition; `state` may be repeated. The answer's `next`, if not null, is the `before` of the
next page: pages neither repeat nor leave out a run, whatever is added meanwhile. A page may be short
of `limit`, even empty, though more follow: a search looks at so many runs at a time.

With `order=schedule` the scheduled runs come instead, by the time they are due; there are no pages.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from apsislib import shapes
from apsislib.api.message import Request, Response, blocks
from apsislib.api.parts import Parts
from apsislib.api.runs import instant, parse_state
from apsislib.errors import BadRequest
from apsislib.runs import Run, run_number
from apsislib.states import State

MAX_LIMIT = 1000  # runs of a page
DEFAULT = 100
SCAN = 20_000  # rows looked at for a page; some 0.2 s
PAGE = 1000  # rows read in one go


def search(parts: Parts, request: Request) -> Response:
    limit = _limit(request.one("limit"))
    before = request.one("before")
    cursor = None if before is None else run_number(before)
    if before is not None and cursor is None:
        raise BadRequest(f"before must be a run ID: {before}")
    states = frozenset(parse_state(text) for text in request.all("state")) or None
    job_id, label = request.one("job_id"), request.one("label")
    words = (request.one("q") or "").lower()
    since, until = instant(request.one("since"), "since"), instant(request.one("until"), "until")
    order = request.one("order")
    if order not in (None, "newest", "schedule"):
        raise BadRequest(f"order must be newest or schedule: {order}")

    def admits(run: Run) -> bool:
        return (
            (states is None or run.state in states)
            and (job_id is None or run.job_id == job_id)
            and words in run.job_id.lower()
            and (label is None or label in shapes.labels(run.meta.get("job")))
            and (since is None or run.timestamp >= since)
            and (until is None or run.timestamp < until)
        )

    # Before the database, as runs go from here to there.
    expected = [run for run in parts.driver.expected(job_id) if admits(run)]
    if order == "schedule":
        with parts.store.read() as reader:
            rows = reader.runs(job_id=job_id, states={State.SCHEDULED}, since=since, until=until)
        due = {run.run_id: run for run in (*expected, *filter(admits, rows))}
        found = heapq.nsmallest(
            limit, due.values(), key=lambda run: (run.times.get("schedule", 0.0), run.number)
        )
        return blocks(shapes.runs_body(parts.clock.wall(), found, summary=True, next=None))

    oldest = parts.oldest()
    if oldest is not None:
        since = oldest if since is None else max(oldest, since)
    scan = _Scan(parts, cursor, limit, job_id=job_id, states=states, since=since, until=until)
    ahead = iter(sorted((r for r in expected if cursor is None or r.number < cursor), key=_newest))
    found, seen = [], set()
    for run in heapq.merge(ahead, scan, key=_newest):
        if scan.cut and scan.last is not None and run.number < scan.last:
            break  # expected, and the next page's
        if run.run_id not in seen and admits(run):
            seen.add(run.run_id)
            found.append(run)
            if len(found) == limit:
                break
    more = f"r{scan.last}" if scan.cut else None
    if len(found) == limit:
        more = found[-1].run_id
    return blocks(shapes.runs_body(parts.clock.wall(), found, summary=True, next=more))


def _newest(run: Run) -> int:
    return -run.number


class _Scan:
    """Rows newest first, up to SCAN of them."""

    def __init__(self, parts: Parts, before: int | None, size: int, **filters: Any) -> None:
        self.cut = False  # SCAN rows were read, and there may be more
        self.last = before  # number of the last row read
        self._parts = parts
        self._size = size  # of the first page: often all that is wanted
        self._filters = filters

    def __iter__(self) -> Iterator[Run]:
        size, left = self._size, SCAN
        while left > 0:
            with self._parts.store.read() as reader:
                page = reader.runs(**self._filters, before=self.last, limit=size, newest=True)
            if page:
                self.last = page[-1].number
            yield from page
            if len(page) < size:
                return
            left -= size
            size = PAGE
        self.cut = True


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not 1 <= int(text) <= MAX_LIMIT:
        raise BadRequest(f"limit must be a whole number from 1 to {MAX_LIMIT}: {text}")
    return int(text)
