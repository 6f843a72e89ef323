"""The description of the API for machines: /api/v1/openapi.json, made of the table of routes.

A route without a row in OPERATIONS fails a test, and so does an answer that its schema does not allow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from apsislib.api.schemas import FLAG, SCHEMAS, TEXT, WHOLE, Schema, ref
from apsislib.shapes import encode


class Described(Protocol):
    """What of a route is described."""

    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def pattern(self) -> str: ...
    @property
    def call(self) -> Callable[..., Any] | None: ...


@dataclass(frozen=True, slots=True)
class Operation:
    words: str
    answer: str | None  # the schema of status 200; None: the bytes of an output
    query: tuple[tuple[str, Schema, str], ...] = ()  # name, schema, meaning
    body: str | None = None  # the schema of the request
    errors: tuple[int, ...] = ()  # statuses besides those that any request may meet
    headers: tuple[tuple[str, Schema, str], ...] = ()  # of the answer: name, schema, meaning


_MANY: Schema = {"type": "array", "items": TEXT}
_REASON = (("reason", TEXT, "why; for the run's log"),)
_LIMIT = ("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "entries of a page at most")
_UPCOMING = (
    ("since", TEXT, "an instant with zone, a date, or `now` (the default)"),
    ("until", TEXT, "the same, or a duration after `since`; a year by default"),
    ("skipped", FLAG, "whether what is left out is listed, with the reason"),
    _LIMIT,
    ("cursor", TEXT, "the `next` of the page before"),
)
_TERMS = "terms: JOB path:P ARG=VAL ARG==VAL ARG= state:S,S label:L alarm:A verdict:S since:T until:T !TERM"
_V1 = "/api/v1"
TEXT_PLAIN = "text/plain"  # instead of a schema
_RUN = f"{_V1}/runs/{{run_id}}"

OPERATIONS: dict[str, Operation] = {
    f"GET {_V1}/alive": Operation("Answers at once.", "Nothing"),
    f"GET {_V1}/running": Operation("Answers once runs are started.", "Nothing", errors=(503,)),
    f"GET {_V1}/stats": Operation("Figures about the server; more may come with any release.", "Stats"),
    f"GET {_V1}/health": Operation(
        "Whether runs start in time, and what keeps them.", "Health", errors=(503,)
    ),
    f"GET {_V1}/openapi.json": Operation("This description.", "OpenAPI"),
    f"GET {_V1}/summary": Operation(
        "All jobs, agents and runs, and every change of them.",
        "SummaryFrame",
        (("init", FLAG, "bare: begin with what there is"),),
    ),
    f"GET {_V1}/jobs": Operation("All jobs.", "Jobs", (("label", TEXT, "only those of this label"),)),
    f"GET {_V1}/jobs/{{job_id+}}/runs": Operation("A job's runs, at most 10,000.", "Runs", errors=(400,)),
    f"GET {_V1}/jobs/{{job_id+}}/upcoming": Operation(
        "What a job's schedules will do.", "Upcoming", _UPCOMING, errors=(400,)
    ),
    f"GET {_V1}/jobs/{{job_id+}}": Operation("A job, by its ID or words of it.", "Job", errors=(400, 404)),
    f"GET {_V1}/upcoming": Operation(
        "What the schedules of all jobs will do.",
        "Upcoming",
        (
            ("q", TEXT, "a part of the job ID"),
            ("label", TEXT, "only jobs of this label"),
            *_UPCOMING,
        ),
        errors=(400, 503),
    ),
    f"GET {_V1}/search/runs": Operation(
        "Runs of all jobs and times, newest first, page by page.",
        "FoundRuns",
        (
            ("q", TEXT, _TERMS),
            ("job_id", TEXT, "all of a job ID"),
            ("state", _MANY, "one or more states"),
            ("label", TEXT, "one of the job's labels"),
            ("since", TEXT, "instant of the latest transition, at the earliest"),
            ("until", TEXT, "instant before which the latest transition was"),
            (
                "order",
                {"enum": ["newest", "latest", "earliest", "schedule"]},
                "by number; by latest transition, from either end; scheduled runs by when they are due",
            ),
            _LIMIT,
            ("before", ref("RunID"), "the `next` of the page before, by number"),
            ("cursor", TEXT, "the `next` of the page before, by latest transition"),
        ),
        errors=(400, 503),
    ),
    f"GET {_V1}/export/runs": Operation(
        "All runs that a search finds, by latest transition, as a file.",
        None,
        (
            ("format", {"enum": ["csv", "json"]}, "json by default: a list of the runs of other answers"),
            ("q", TEXT, _TERMS),
            ("job_id", TEXT, "all of a job ID"),
            ("state", _MANY, "one or more states"),
            ("order", {"enum": ["latest", "earliest"]}, "the newest first, by default, or the oldest"),
        ),
        errors=(400, 503),
    ),
    f"GET {_V1}/complete": Operation(
        "Job IDs, labels and params that hold a text, for completion.",
        "Completions",
        (("q", TEXT, "a part of them, in any case"),),
        errors=(400,),
    ),
    f"GET {_V1}/search/jobs": Operation(
        "All jobs in short, or those of which all words of a search are said.",
        "FoundJobs",
        (("q", TEXT, "words of ID, params, labels, description, schedules or program"),),
        errors=(503,),
    ),
    f"GET {_V1}/overview/jobs": Operation(
        "Of every job its newest run, and the next one.", "JobsOverview", errors=(503,)
    ),
    f"GET {_V1}/board": Operation(
        "What fails, runs, waits (and why) and comes next, and how the agents are.", "Board", errors=(503,)
    ),
    f"GET {_V1}/timeline": Operation(
        "Runs by job over a span of time, past and to come, page by page: jobs that failed first.",
        "Timeline",
        (
            ("since", TEXT, "an instant with zone"),
            ("until", TEXT, "a minute to 32 days later"),
            ("q", TEXT, "words that are in the job ID"),
            ("limit", {"type": "integer", "minimum": 1, "maximum": 100}, "jobs of a page; 40 by default"),
            ("offset", WHOLE, "jobs that were on the pages before"),
        ),
        errors=(400, 503),
    ),
    f"GET {_V1}/graph": Operation(
        "The jobs that a job waits for and makes runs of, and those that do so with it.",
        "JobGraph",
        (("job_id", TEXT, "all of a job ID"),),
        errors=(400,),
    ),
    f"GET {_V1}/recent": Operation(
        "How the last 20 runs of some jobs ended.",
        "Recent",
        (("job_id", _MANY, "1 to 200 job IDs"),),
        errors=(400, 503),
    ),
    f"GET {_V1}/history": Operation(
        "How runs of a job ended, and how long they took, newest first, page by page.",
        "History",
        (
            ("job_id", TEXT, "all of a job ID"),
            ("args", TEXT, "a JSON object: only runs of just these args"),
            _LIMIT,
            ("before", ref("RunID"), "the `next` of the page before"),
        ),
        errors=(400, 503),
    ),
    f"GET {_V1}/days": Operation(
        "Outcomes of a job's runs by the date they were due, piece by piece, newest first.",
        "Days",
        (
            ("job_id", TEXT, "all of a job ID"),
            ("tz", TEXT, "whose dates; UTC by default"),
            ("since", TEXT, "a date; a year ago by default, two years at most"),
            ("before", ref("RunID"), "the `next` of the piece before"),
        ),
        errors=(400, 503),
    ),
    f"GET {_V1}/runs": Operation(
        "Runs by ID or of a job, at most 10,000. Any other name in the query is that of an arg.",
        "Runs",
        (
            ("run_id", _MANY, "one or more run IDs"),
            ("job_id", TEXT, "a job ID or words of one"),
            ("state", ref("State"), ""),
            ("since", TEXT, "instant of the latest transition, at the earliest"),
            ("summary", FLAG, "whether only what lists show is sent"),
        ),
        errors=(400, 503),
    ),
    f"POST {_V1}/runs": Operation(
        "Make runs.", "Runs", (("count", WHOLE, "how many, at most 10,000"),), "NewRun", (400,)
    ),
    f"POST {_V1}/bulk": Operation(
        "Do one operation to many runs: a list of them, or all that match a search.",
        "BulkDone",
        body="Bulk",
        errors=(400, 503),
    ),
    f"GET {_RUN}": Operation("A run.", "Runs", errors=(404,)),
    f"GET {_RUN}/log": Operation("What has happened to a run.", "RunLog", errors=(404,)),
    f"GET {_RUN}/state": Operation("A run's state.", "RunState", errors=(404,)),
    f"GET {_RUN}/dependencies": Operation("The runs a run depends on.", "Dependencies", errors=(404,)),
    f"GET {_RUN}/waiting": Operation(
        "What a waiting run waits for, and since when.", "Waiting", errors=(404,)
    ),
    f"GET {_RUN}/graph": Operation(
        "What a run hangs on and what hangs on it, each with its newest runs.",
        "RunGraph",
        errors=(404, 503),
    ),
    f"GET {_RUN}/updates": Operation(
        "Every change of a run.", "RunFrame", (("init", FLAG, "bare: begin with what there is"),)
    ),
    f"POST {_RUN}/skip": Operation("Skip a scheduled or waiting run.", "Nothing", _REASON, errors=(400, 404)),
    f"POST {_RUN}/start": Operation(
        "Start a scheduled or waiting run.", "Nothing", _REASON, errors=(400, 404)
    ),
    f"POST {_RUN}/rerun": Operation("Make a run like this one.", "Runs", _REASON, errors=(400, 404)),
    f"PUT {_RUN}/stop": Operation(
        "Have a run's program stopped; also that of one that was given up, until it has a late verdict.",
        "Runs",
        _REASON,
        errors=(400, 404),
    ),
    f"PUT {_RUN}/signal/{{signal}}": Operation(
        "Send a signal, by number or name, to a run's program.", "Nothing", _REASON, errors=(400, 404)
    ),
    f"PUT {_RUN}/mark/{{state}}": Operation(
        "Say that a finished run ended otherwise.", "Nothing", _REASON, errors=(400, 404)
    ),
    f"GET {_RUN}/outputs": Operation("A run's outputs.", "Outputs"),
    f"GET {_RUN}/output/{{output_id}}": Operation(
        "An output: all of it, or a part by Range.",
        None,
        errors=(404, 416, 503),
        headers=(
            (
                "X-Apsis-Complete",
                {"enum": ["true", "false"]},
                "whether all of the output was there when this was answered; false: the run goes on, or the"
                " last of what it printed is about to be stored",
            ),
        ),
    ),
    f"GET {_RUN}/output/{{output_id}}/lines": Operation(
        "How many lines end in each stretch of an output, piece by piece.",
        "OutputLines",
        (("start", WHOLE, "a multiple of `stride`; 0 by default"),),
        errors=(400, 404, 503),
    ),
    f"GET {_RUN}/output/{{output_id}}/search": Operation(
        "Where in an output a text stands, piece by piece.",
        "OutputMatches",
        (
            ("q", TEXT, "the text, 1000 bytes at most"),
            ("start", WHOLE, "the byte to begin at; backwards, the one before which to begin"),
            ("back", FLAG, "backwards, from the end by default"),
            ("case", FLAG, "upper and lower case differ"),
            ("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "matches at most, 100 by default"),
        ),
        errors=(400, 404, 503),
    ),
    f"GET {_RUN}/output/{{output_id}}/updates": Operation(
        "An output as it grows. Each frame is a head (Content-Type, Content-Range, Content-Length), an"
        " empty line and the bytes.",
        None,
        (("start", WHOLE, "the byte to begin with: as many as were received before"),),
    ),
    f"GET {_V1}/agents": Operation(
        "Agents, the runs on each, and connections that came and went.", "Agents", errors=(400, 503)
    ),
    f"GET {_V1}/series": Operation(
        "Figures of the server over time, since its start.",
        "Series",
        (("span", {"enum": ["hour", "day", "week"]}, "an hour by default"),),
        errors=(400,),
    ),
    f"GET {_V1}/config": Operation("The configuration in force, without secrets.", "Config"),
    "GET /metrics": Operation("Figures for Prometheus, as text.", TEXT_PLAIN),
    "GET /api/procstar/connections": Operation("Connections of agents.", "Connections", errors=(400,)),
    "GET /api/procstar/groups": Operation("Connections of agents, by group.", "Groups", errors=(400,)),
    "GET /api/control/version": Operation("The server's version.", "Version"),
    "GET /api/control/reload_jobs": Operation(
        "What the last reload, or the start, made of the jobs directory.", "LastReload"
    ),
    "POST /api/control/reload_jobs": Operation(
        "Read the jobs directory anew: all of it, or nothing if a file is wrong.",
        "Reloaded",
        (("dry_run", FLAG, "only say what would change"),),
        errors=(400,),
    ),
    "POST /api/control/shut_down": Operation(
        "End the server. Programs go on.", "Nothing", (("restart", FLAG, "bare: and start it again"),)
    ),
}

_ERRORS = {
    400: "what was asked cannot be meant, or the state does not allow it",
    403: "an unknown Host, or a change asked for by a page of another site",
    404: "there is no such thing",
    416: "there is no such range",
    500: "an internal error, which is in the server's log",
    503: "not now: try again after Retry-After seconds",
}
_PARAMS = {
    "job_id": (TEXT, "slashes may stand as they are or as %2F; a % is %25"),
    "run_id": (ref("RunID"), ""),
    "output_id": (TEXT, "mostly `output`"),
    "signal": (TEXT, "15, TERM or SIGTERM"),
    "state": (ref("State"), ""),
}


def key(route: Described) -> str:
    return f"{route.methods[0]} {route.pattern}"


@lru_cache(maxsize=1)
def document(routes: tuple[Described, ...], version: str) -> bytes:
    """The OpenAPI 3.1 document, encoded."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = OPERATIONS.get(key(route))
        if operation is None:
            continue
        path = paths.setdefault(re.sub(r"\{(\w+)\+\}", r"{\1}", route.pattern), {})
        for method in route.methods:
            if method != "HEAD":  # as GET, without the body
                path[method.lower()] = _operation(route, method, operation)
    return encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Apsis",
                "version": version,
                "description": "JSON over HTTP/1.1. Errors are objects with `error`, a sentence. Whatever is"
                " answered to GET is answered to HEAD without its body. Addresses with `x-websocket` are"
                " WebSockets; their schema is that of a frame.",
            },
            "paths": paths,
            "components": {
                "schemas": SCHEMAS,
                "responses": {
                    f"E{status}": {"description": text, "content": _json(ref("Error"))}
                    for status, text in _ERRORS.items()
                },
            },
        }
    )


def _operation(route: Described, method: str, operation: Operation) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\+?\}", route.pattern)
    shape: dict[str, Any] = {
        "summary": operation.words,
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{route.pattern.removeprefix('/api')}").strip(
            "_"
        ),
        "parameters": [
            *(_parameter(name, *_PARAMS[name], place="path") for name in names),
            *(_parameter(*one, place="query") for one in operation.query),
        ],
    }
    if operation.body is not None:
        shape["requestBody"] = {"required": True, "content": _json(ref(operation.body))}
    if operation.answer is None:
        answer = _bytes()
    elif operation.answer == TEXT_PLAIN:
        answer = {TEXT_PLAIN: {"schema": TEXT}}
    else:
        answer = _json(ref(operation.answer))
    if route.call is None:
        shape["x-websocket"] = True
        shape["responses"] = {"101": {"description": "frames of this kind follow", "content": answer}}
    else:
        shape["responses"] = {"200": {"description": "done", "content": answer}}
        if operation.answer is None:
            shape["responses"]["206"] = {"description": "a part of it", "content": answer}
        if operation.headers:
            headers = {n: {"schema": schema, "description": words} for n, schema, words in operation.headers}
            for done in ("200", "206"):
                shape["responses"][done]["headers"] = headers
    for status in sorted({*operation.errors, 403, 500}):
        shape["responses"][str(status)] = {"$ref": f"#/components/responses/E{status}"}
    return shape


def _parameter(name: str, schema: Schema, words: str, place: str) -> dict[str, Any]:
    shape: dict[str, Any] = {"name": name, "in": place, "required": place == "path", "schema": schema}
    return {**shape, "description": words} if words else shape


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _bytes() -> dict[str, Any]:
    return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
