"""Jobs, as their files define them; and all of them in short, for a table of ten thousand.

    GET /api/v1/search/jobs?q=load+london
    GET /api/v1/overview/jobs

The first is what files say, so that a client's copy stays good until a reload; `q` are words, each of
which a job's ID, params, labels, description, schedules or program must hold. The second is how things
stand: each job's newest run, and the next one.
"""

from __future__ import annotations

from typing import Any

from apsislib.api.catalog import listed
from apsislib.api.encoding import accepts_gzip, is_known, tagged
from apsislib.api.message import Request, Response, blocks, ok
from apsislib.api.parts import Parts
from apsislib.errors import BadRequest, NotFound
from apsislib.runs import Job
from apsislib.shapes import encode, job_object, join, labels
from apsislib.times import format_time

MOST = 20  # words of a search


def find_job_id(parts: Parts, job_id: str) -> str:
    """The ID of the job that a client means: exactly, or by words of it. Raises BadRequest."""
    try:
        return parts.driver.match(job_id).job_id
    except NotFound:
        raise BadRequest(f"no job id match: {job_id}") from None


def all_jobs(parts: Parts, request: Request) -> Response:
    label = request.one("label")
    known = parts.driver.jobs
    chosen = [
        job
        for job in known.jobs.values()
        if not job.ad_hoc and (label is None or label in labels(job.metadata))
    ]
    return tagged(request, blocks(join((encode(job_object(job, known.get)) for job in chosen), b"[", b"]")))


def one_job(parts: Parts, request: Request) -> Response:
    try:
        job = parts.driver.match(request.params["job_id"])
    except NotFound:
        raise NotFound(f"no job_id {request.raw_params['job_id']}") from None
    return tagged(request, ok(job_object(job, parts.driver.jobs.get)))


def search(parts: Parts, request: Request) -> Response:
    wanted = (request.one("q") or "").casefold().split()[:MOST]
    if not wanted:
        return _all_in_short(parts, request)
    with parts.turns.take():
        entries = parts.catalog.entries(parts.driver.jobs)
        return tagged(
            request, blocks(listed(entry for text, entry in entries if all(word in text for word in wanted)))
        )


def _all_in_short(parts: Parts, request: Request) -> Response:
    whole = parts.catalog.whole(parts.driver.jobs)
    pack = accepts_gzip(request.headers.get("accept-encoding", ""))
    tag = f'{"W/" if pack else ""}"{whole.tag}"'
    headers = [("etag", tag), ("cache-control", "no-cache"), ("vary", "accept-encoding")]
    if is_known(request, f'"{whole.tag}"'):
        return Response(304, b"", headers=headers)
    if pack:
        return Response(body=whole.packed, headers=[*headers, ("content-encoding", "gzip")])
    return Response(body=whole.body, headers=headers)


def overview(parts: Parts, request: Request) -> Response:
    now = parts.clock.wall()
    jobs = parts.driver.jobs.jobs
    with parts.turns.take():
        coming = parts.driver.next_runs()
        last: dict[str, Any] = {}
        known = list(jobs)
        with parts.store.read() as reader:
            for job_id, number, state, time in reader.latest(known):
                last[job_id] = {"run_id": f"r{number}", "state": state.value, "time": format_time(time)}
        pieces = (
            b"%b:%b"
            % (
                encode(job_id),
                encode({"last": last.get(job_id), "next": _next(parts, job, coming.get(job_id), now)}),
            )
            for job_id, job in jobs.items()
        )
        return blocks(join(pieces, b'{"when":"%b","jobs":{' % format_time(now).encode(), b"}}"))


def _next(parts: Parts, job: Job, run: Any, now: float) -> dict[str, Any] | None:
    if run is not None:
        return {"run_id": run.run_id, "time": format_time(run.times["schedule"])}
    time = parts.later.of(job, now)
    return None if time is None else {"run_id": None, "time": format_time(time)}
