"""Jobs, as their files define them."""

from __future__ import annotations

from apsislib.api.encoding import tagged
from apsislib.api.message import Request, Response, blocks, ok
from apsislib.api.parts import Parts
from apsislib.errors import BadRequest, NotFound
from apsislib.shapes import encode, job_object, join, labels


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
