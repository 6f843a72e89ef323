"""Runs, jobs and logs as clients see them: what the HTTP API and the live streams have in common.

Pure. Each function answers something that json can write; `encode` writes it as clients expect it:
compact, ASCII only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from apsislib import templates
from apsislib.errors import ApsisError
from apsislib.runs import Args, Job, Json, Run, alarms, late_verdict
from apsislib.runs import labels as labels
from apsislib.schedules import words
from apsislib.times import format_time

FindJob = Callable[[str], Job | None]

_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def encode(value: Any) -> bytes:
    """One piece of JSON."""
    return _encode(value).encode("ascii")


def join(pieces: Iterable[bytes], head: bytes, tail: bytes) -> list[bytes]:
    """`head`, the pieces with commas between them, and `tail`, in blocks of about 64 KiB.

    A single call of json over 10,000 runs would keep every other thread waiting; runs encoded one by
    one give way between any two.
    """
    blocks: list[bytes] = []
    held, size, comma = [head], 0, b""
    for piece in pieces:
        held += (comma, piece)
        comma = b","
        size += len(piece) + 1
        if size > 65536:
            blocks.append(b"".join(held))
            held, size = [], 0
    held.append(tail)
    blocks.append(b"".join(held))
    return blocks


# -- runs ------------------------------------------------------------------------------------------


def run_summary(run: Run) -> dict[str, Any]:
    """What lists show of a run."""
    args = run.args
    shape: dict[str, Any] = {
        "job_id": run.job_id,
        "args": {name: args[name] for name in sorted(args)},
        "run_id": run.run_id,
        "state": run.state.value,
        "times": {name: format_time(time) for name, time in run.times.items()},
        "labels": labels(run.meta.get("job")),
    }
    if run.expected:
        shape["expected"] = True
    if called := alarms(run.meta):
        shape["alarms"] = called
        if reasons := run.meta.get("reasons"):
            shape["reasons"] = dict(reasons)
    if (late := late_verdict(run.meta)) not in (None, run.state.value):
        shape["late_verdict"] = late
    needs = [[c["job_id"], dict(c["args"])] for c in run.conds if c.get("type") == "dependency"]
    if needs:
        shape["dependencies"] = needs
    return shape


def run_record(run: Run, reruns: Sequence[str] = ()) -> dict[str, Any]:
    """All of a run. `reruns`: IDs of those that rerun it."""
    shape = run_summary(run)
    shape["conds"] = [dict(c) for c in run.conds]
    shape["actions"] = [dict(a) for a in run.actions]
    shape["meta"] = dict(run.meta)
    shape["program"] = None if run.program is None else dict(run.program)
    if run.rerun_of is not None:
        shape["rerun_of"] = run.rerun_of
    if reruns:
        shape["reruns"] = list(reruns)
    return shape


def runs_body(now: float, runs: Iterable[Run], summary: bool = False, **more: Any) -> list[bytes]:
    """The envelope that runs come in: `{"when": ..., "runs": {run_id: run, ...}}`, and `more` behind."""
    shape = run_summary if summary else run_record
    pieces = (b'"%b":%b' % (run.run_id.encode("ascii"), encode(shape(run))) for run in runs)
    tail = b"".join(b",%b:%b" % (encode(key), encode(value)) for key, value in more.items())
    return join(pieces, b'{"when":"%b","runs":{' % format_time(now).encode(), b"}%b}" % tail)


def log_entry(time: float, message: str) -> dict[str, Any]:
    return {"timestamp": format_time(time), "message": message}


# -- jobs ------------------------------------------------------------------------------------------


def job_object(job: Job, find_job: FindJob) -> dict[str, Any]:
    """All of a job, its conditions also as each of its schedules resolves them."""
    common, resolved = resolve_conditions(job, find_job)
    return {
        "job_id": job.job_id,
        "params": sorted(job.params),
        "schedule": [{**s.to_json(), "words": words(s)} for s in job.schedules],
        "program": {**job.program.to_json(), "str": str(job.program)},
        "condition": [c.to_json() for c in job.conditions],
        "common_conditions": common,
        "resolved_conditions": resolved,
        "action": [a.to_json() for a in job.actions],
        "metadata": {**job.metadata, "labels": labels(job.metadata)},
        "ad_hoc": job.ad_hoc,
        **({} if job.catch_up is None else {"catch_up": job.catch_up.to_json()}),
        **({} if job.expect is None else {"expect": {**job.expect.to_json(), "str": str(job.expect)}}),
    }


def resolve_conditions(job: Job, find_job: FindJob) -> tuple[list[Any], list[Any]]:
    """(what every schedule waits for, what each schedule waits for besides).

    For display only: what a template gives depends on the run, so what cannot be expanded yet stays
    as its source text.
    """
    conditions = [c.to_json() for c in job.conditions if c.enabled.value is not False]
    if not job.schedules:
        alone = [c for c in conditions if not templates.has_template(str(c.get("job_id") or ""))]
        return [_resolve(job, c, {}, find_job) for c in alone], []

    every = [_schedule_args(s.to_json()) for s in job.schedules]
    groups: list[dict[str, Any]] = [{"schedule_args": args, "conditions": []} for args in every]
    common: list[Any] = []
    for condition in conditions:
        entries = [
            _resolve(job, condition, args, find_job) if _enabled(job, condition, args) else None
            for args in every
        ]
        if entries[0] is not None and all(e == entries[0] for e in entries):
            common.append(entries[0])
            continue
        for group, entry in zip(groups, entries, strict=True):
            if entry is not None:
                group["conditions"].append(entry)
    return common, groups


def _schedule_args(schedule: Json) -> dict[str, str]:
    args = schedule.get("start", schedule).get("args") if "args" not in schedule else schedule["args"]
    return {str(name): str(value) for name, value in (args or {}).items()}


def _expand(job: Job, text: str, args: Args) -> str | None:
    """`text` expanded as far as the args of a schedule go; None where they do not suffice."""
    if not templates.has_template(text):
        return text
    try:
        return templates.expand(text, {"job_id": job.job_id, **args})
    except ApsisError:
        return None


def _enabled(job: Job, condition: Json, args: Args) -> bool:
    enabled = condition.get("enabled")
    if not isinstance(enabled, str):
        return enabled is not False
    text = _expand(job, enabled, args)
    return text is None or text not in ("false", "False", "")


def _resolve(job: Job, condition: Json, args: Args, find_job: FindJob) -> dict[str, Any]:
    entry = dict(condition)
    if entry.get("type") != "dependency":
        return entry
    given: Mapping[str, str] = entry.get("args") or {}
    job_id = _expand(job, entry["job_id"], args)
    target = None if job_id is None else find_job(job_id)
    values: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for name in sorted(given if target is None else target.params):
        if name in given:
            value = _expand(job, given[name], args)
            if value is None:
                unknown[name] = given[name]
            else:
                values[name] = value
        elif name in args:
            values[name] = args[name]
        else:
            unknown[name] = "{{ " + name + " }}"
    entry["resolved_job_id"] = job_id
    entry["resolved_args"] = {**values, **unknown}
    return entry
