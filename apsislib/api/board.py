"""The operator's board: what fails, runs, waits and comes next; and runs by job over a span of time.

    GET /api/v1/board
    GET /api/v1/timeline?since=2031-05-06T00:00:00Z&until=2031-05-07T00:00:00Z&q=etl&limit=40&offset=40

Both are bounded, whatever there is: the board in runs of each kind (with how many there are), the timeline
in jobs of a page and in bars of a job. Of a job with more runs than that come equal slots of the span, with
how many runs ended in each and how many of these failed. Jobs that failed come first, then those that have
active runs, then the others; each group by name.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from apsislib import previews, terms
from apsislib.api.history import past_shape
from apsislib.api.message import Request, Response, ok
from apsislib.api.parts import Parts
from apsislib.api.runs import instant, waits
from apsislib.api.search import parse_limit
from apsislib.api.upcoming import MANY
from apsislib.errors import BadRequest
from apsislib.expectations import ALARMS
from apsislib.runs import Run
from apsislib.shapes import run_summary
from apsislib.states import FINISHED, State
from apsislib.store import Lane, Past, Reader
from apsislib.terms import Marked, StateIn, Term
from apsislib.times import DAY, format_time

LISTED = 100  # runs of a kind on the board
EXPLAINED = 40  # waiting runs of which it is said why
NEXT = 20  # starts
COUNTED = 10_000  # beyond, "so many or more"
EVER = 1e300  # beyond every instant
PLACED = frozenset({State.STARTING, State.RUNNING, State.STOPPING})

SHORTEST, LONGEST = 60.0, 32 * DAY  # s, of a timeline
ROWS = 100  # jobs of a page
BARS = 200  # runs of a job; of more come slots
SLOTS = 120
AHEAD = 200  # starts to come of a job
ASKED = 2000  # starts by which jobs of a span that lies ahead are found
UNFINISHED = 2000  # runs that are placed in rows
TYPICAL = 20  # a job's last runs, the successes of which say how long it takes


def board(parts: Parts, request: Request) -> Response:
    now = parts.clock.wall()
    late: list[Term] = [Marked(frozenset(ALARMS)), StateIn(frozenset(State) - FINISHED)]
    coming = _next(parts, now)
    with parts.store.read() as reader:
        failing = reader.standing(now - DAY)
        alarmed, _ = reader.search(late, None, LISTED)
        running = reader.runs(states=PLACED, limit=LISTED)
        waiting = reader.runs(states={State.WAITING}, limit=LISTED)
        counts = {
            "running": reader.count(states=PLACED, limit=COUNTED),
            "waiting": reader.count(states={State.WAITING}, limit=COUNTED),
            "failing": len(failing),
        }
        shown = {run.job_id for run in (*running, *alarmed)} | {start["job_id"] for start in coming}
        typical = _typical(reader, shown)
    return ok(
        {
            "when": format_time(now),
            "counts": counts,
            "failing": [run_summary(run) for run in failing[:LISTED]],
            "alarmed": [run_summary(run) for run in alarmed],
            "running": [run_summary(run) for run in running],
            "waiting": [run_summary(run) for run in waiting],
            "why": {run.run_id: _why(parts, run) for run in waiting[:EXPLAINED]},
            "next": coming,
            "typical": typical,
            "agents": _agents(parts),
            "ailments": parts.driver.ailments(),
        }
    )


def _why(parts: Parts, run: Run) -> list[dict[str, Any]]:
    """What a run waits for."""
    found = [row for row in waits(parts, run) if not row["holds"]]
    return [{key: row[key] for key in ("condition", "reason", "since") if key in row} for row in found]


def _next(parts: Parts, now: float) -> list[dict[str, Any]]:
    """The next starts: of runs that there are already, then of what schedules will make."""
    firsts = heapq.nsmallest(NEXT, parts.driver.next_runs().values(), key=_due)
    # A job whose first run is not among these has none among the next.
    ahead = [run for job_id in {run.job_id for run in firsts} for run in parts.driver.expected(job_id)]
    with parts.store.read() as reader:
        ahead += reader.scheduled(0.0, EVER, NEXT)
    runs = {run.run_id: run for run in ahead if run.state is State.SCHEDULED}
    found: list[dict[str, Any]] = [
        {"job_id": run.job_id, "args": dict(run.args), "time": format_time(_due(run)), "run_id": run.run_id}
        for run in heapq.nsmallest(NEXT, runs.values(), key=_due)
    ]
    if len(found) < NEXT:
        # All that there are: what is due beyond them is asked of the schedules.
        made = {(run.job_id, _due(run)) for run in runs.values()}
        jobs = [job for job in parts.driver.jobs.jobs.values() if job.schedules]
        with parts.turns.take(len(jobs) > MANY):
            later = previews.upcoming(jobs, now, now + 366 * DAY, NEXT + len(made), False)
        found += [
            {
                "job_id": coming.job_id,
                "args": dict(coming.args),
                "time": format_time(coming.time),
                "run_id": None,
            }
            for coming in later
            if (coming.job_id, coming.time) not in made
        ]
        found = heapq.nsmallest(NEXT, found, key=lambda start: start["time"])
    return found


def _due(run: Run) -> float:
    return run.times.get("schedule", run.timestamp)


def _typical(reader: Reader, job_ids: Iterable[str]) -> dict[str, float]:
    """The usual seconds of a success, of the jobs that had any lately."""
    found = {}
    for job_id in sorted(job_ids):
        took = [
            run.elapsed
            for run in reader.past(job_id, None, None, TYPICAL)[0]
            if run.state is State.SUCCESS and run.elapsed is not None
        ]
        if took:
            found[job_id] = round(median(took), 3)
    return found


def _agents(parts: Parts) -> dict[str, Any]:
    counts = {"live": 0, "draining": 0}
    lost = []
    for record in (parts.connections or dict)().values():
        info = record["info"]
        if info["stats"]["connected"]:
            counts["live" if record["shutdown_state"] == "active" else "draining"] += 1
        elif record["shutdown_state"] != "done":
            lost.append(
                {
                    "conn_id": info["conn"]["conn_id"],
                    "group_id": info["conn"]["group_id"],
                    "hostname": info.get("proc", {}).get("hostname", ""),
                    "since": info["stats"].get("last_disconnect_time"),
                }
            )
    return {**counts, "lost": lost}


# -- the timeline ------------------------------------------------------------------------------------


def timeline(parts: Parts, request: Request) -> Response:
    now = parts.clock.wall()
    since, until = _span(request)
    limit = parse_limit(request.one("limit"), 40, ROWS)
    offset = _offset(request.one("offset"))
    words = terms.lower(request.one("q") or "").split()

    begin = max(now, since)
    made = _made(parts, begin, until, words)
    firsts = parts.driver.next_runs()
    # Up to here all starts have been made runs of: the latest of what is due first lies within the horizon.
    reach = max(map(_due, firsts.values()), default=now)
    coming = _coming(parts, firsts, now, since, until, words) | made.keys()
    with parts.store.read() as reader:
        lanes, complete = reader.lanes(since, until, words)
        active = _by_job(reader.unfinished(UNFINISHED), words) if until > now - DAY else {}
        known = {lane.job_id: lane for lane in lanes}
        order = sorted(
            {*known, *active, *coming},
            key=lambda job_id: (_rank(known.get(job_id), active.get(job_id)), job_id),
        )
        page = order[offset : offset + limit]
        typical = _typical(reader, page)
        rows = [
            {
                "job_id": job_id,
                "typical": typical.get(job_id),
                "active": [past_shape(run) for run in active.get(job_id, ())[:BARS]],
                "ahead": _ahead(parts, job_id, begin, until, reach, made),
                **_past(reader, known.get(job_id), since, until),
            }
            for job_id in page
        ]
    return ok(
        {
            "when": format_time(now),
            "since": format_time(since),
            "until": format_time(until),
            "jobs": len(order),
            "complete": None if complete is None else format_time(complete),
            "rows": rows,
        }
    )


def _span(request: Request) -> tuple[float, float]:
    since, until = instant(request.one("since"), "since"), instant(request.one("until"), "until")
    if since is None or until is None:
        raise BadRequest("since and until are needed: instants with zone, such as 2031-05-06T07:00:00Z")
    if not SHORTEST <= until - since <= LONGEST:
        raise BadRequest("until must be from a minute to 32 days after since")
    return since, until


def _offset(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise BadRequest(f"offset must be a whole number from 0 to 999999: {text}")
    return int(text)


def _rank(lane: Lane | None, active: Sequence[Past] | None) -> int:
    if lane is not None and lane.failures:
        return 0
    return 1 if active else 2


def _by_job(runs: Iterable[tuple[str, Past]], words: Sequence[str]) -> dict[str, list[Past]]:
    found: dict[str, list[Past]] = {}
    for job_id, run in runs:
        if _is_meant(job_id, words):
            found.setdefault(job_id, []).append(run)
    return found


def _past(reader: Reader, lane: Lane | None, since: float, until: float) -> dict[str, Any]:
    if lane is None:
        return {"count": 0, "failures": 0, "runs": [], "slots": []}
    counts = {"count": lane.count, "failures": lane.failures}
    if lane.count <= BARS:
        runs = reader.bars(lane, since, until, BARS)
        return {**counts, "runs": [past_shape(run) for run in runs], "slots": []}
    found = reader.slots(lane, since, until, SLOTS)
    return {**counts, "runs": [], "slots": [list(slot) for slot in found]}


Starts = dict[str, list[tuple[float, str | None]]]  # by job: when, and the run's ID if there is one


def _made(parts: Parts, since: float, until: float, words: Sequence[str]) -> Starts:
    """The starts of runs that were scheduled by hand or by an action."""
    with parts.store.read() as reader:
        runs = reader.scheduled(since, until, ASKED)
    found: Starts = {}
    for run in runs:
        if _is_meant(run.job_id, words):
            found.setdefault(run.job_id, []).append((_due(run), run.run_id))
    return found


def _coming(
    parts: Parts, firsts: Mapping[str, Run], now: float, since: float, until: float, words: Sequence[str]
) -> set[str]:
    """The jobs whose schedules have a start in the span; of very many, those that are due first."""
    start = max(now, since)
    if start >= until:
        return set()
    found = set()
    if since <= now:
        found = {job_id for job_id, run in firsts.items() if _due(run) < until and _is_meant(job_id, words)}
    # Runs are made ahead for a day or so; beyond, and where there are none yet, schedules are asked.
    jobs = [
        job
        for job in parts.driver.jobs.jobs.values()
        if job.schedules and (since > now or job.job_id not in firsts) and _is_meant(job.job_id, words)
    ]
    with parts.turns.take(len(jobs) > MANY):
        return found | {coming.job_id for coming in previews.upcoming(jobs, start, until, ASKED, False)}


def _ahead(
    parts: Parts, job_id: str, since: float, until: float, reach: float, made: Starts
) -> list[list[str | None]]:
    """A job's starts in a span that lies ahead. Up to `reach` they have been made runs of."""
    runs = [(_due(run), run.run_id) for run in parts.driver.expected(job_id) if run.state is State.SCHEDULED]
    starts: list[tuple[float, str | None]] = [*runs, *made.get(job_id, ())]
    job = parts.driver.jobs.get(job_id)
    last = max((when for when, _ in runs), default=-EVER)
    if job is not None and max(reach, last) < until and len(starts) < AHEAD:
        later = previews.upcoming([job], max(since, last), until, AHEAD, False)
        starts += [(coming.time, None) for coming in later if coming.time > last]
    shown = heapq.nsmallest(AHEAD, ((w, i or "") for w, i in starts if since <= w < until))
    return [[format_time(when), run_id or None] for when, run_id in shown]


def _is_meant(job_id: str, words: Sequence[str]) -> bool:
    text = terms.lower(job_id)
    return all(word in text for word in words)
