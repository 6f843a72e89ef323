"""Job and args -> what the run will do: every template expanded, once, when the run is made.

Never called under the driver's lock: a template may be slow, or fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apsislib import templates
from apsislib.conditions import Binding
from apsislib.errors import BadRequest
from apsislib.runs import Args, Job, Json, Limits, record


@record
class Bound:
    program: Json
    conds: tuple[Json, ...]
    actions: tuple[Json, ...]
    limits: Limits
    judged: tuple[Any, ...]  # the conditions that `conds` is the JSON of


def check_args(job: Job, args: Args) -> None:
    """Raises BadRequest unless `args` are exactly the job's params, in texts that can be stored."""
    if args.keys() == set(job.params):
        return
    missing = sorted(set(job.params) - set(args))
    if missing:
        raise BadRequest(f"missing args ({', '.join(missing)}) for job {job.job_id}")
    extra = sorted(set(args) - set(job.params))
    raise BadRequest(f"extra args ({', '.join(extra)}) for job {job.job_id}")


def bind(
    job: Job,
    args: Args,
    run_id: str | None,
    find_job: Callable[[str], Job],
    get_calendar: Callable[[str], Any],
) -> Bound:
    """The bound program, conditions and actions. Raises BadRequest, in the template's own words.

    `run_id` is None when a job is only checked. `find_job` raises BadRequest for an unknown job.
    """
    check_args(job, args)
    shared: Bound | None = job.shared.get("bound")
    if shared is not None and not job.conditions:
        return shared
    names: dict[str, Any] = {}

    def expand(text: str) -> str:
        if not templates.has_template(text):
            return templates.unmarked(text)
        if not names:
            names.update(templates.names(args, run_id, job.job_id, get_calendar))
        return templates.expand(text, names)

    if shared is None:
        program = job.program.bind(expand)
        actions = tuple([a.to_json() for a in job.actions])
        shared = Bound(program.to_json(), (), actions, program.limits(), ())
        if not names:  # it has no templates: all runs of the job have one and the same
            job.shared["bound"] = shared
        if not job.conditions:
            return shared
    to = Binding(job, args, run_id or "r0", expand, find_job)
    judged = tuple([c.bind(to) for c in job.conditions if c.enabled(expand)])
    conds = tuple([c.to_json() for c in judged])
    return Bound(shared.program, conds, shared.actions, shared.limits, judged)
