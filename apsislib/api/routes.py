"""Which address means what. One table; what is not in it does not exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from apsislib.api import (
    board,
    bulk,
    control,
    export,
    graphs,
    history,
    jobs,
    metrics,
    openapi,
    outputs,
    runs,
    search,
    standing,
    upcoming,
    within,
)
from apsislib.api.encoding import tagged
from apsislib.api.message import Request, Response, failed, with_params
from apsislib.api.parts import Parts

Call = Callable[[Parts, Request], Response]

GET = ("GET", "HEAD")
POST = ("POST",)
EITHER = ("PUT", "POST")

V1 = "/api/v1"


@dataclass(frozen=True, slots=True)
class Route:
    methods: tuple[str, ...]
    # {name} is one segment of the path, {name+} one or more.
    pattern: str
    call: Call | None
    body: bool = False  # must say how long its body is
    live: str = ""  # of a WebSocket, which has no call: the name under which it is handed on


def openapi_json(parts: Parts, request: Request) -> Response:
    return tagged(request, Response(body=openapi.document(ROUTES, parts.version)))


ROUTES = (
    Route(GET, f"{V1}/alive", control.alive),
    Route(GET, f"{V1}/running", control.running),
    Route(GET, f"{V1}/stats", control.stats),
    Route(GET, f"{V1}/health", control.health),
    Route(GET, f"{V1}/openapi.json", openapi_json),
    Route(GET, f"{V1}/summary", None, live="summary"),
    Route(GET, f"{V1}/jobs", jobs.all_jobs),
    Route(GET, f"{V1}/jobs/{{job_id+}}/runs", runs.of_job),
    Route(GET, f"{V1}/jobs/{{job_id+}}/upcoming", upcoming.of_job),
    Route(GET, f"{V1}/jobs/{{job_id+}}", jobs.one_job),
    Route(GET, f"{V1}/upcoming", upcoming.of_all),
    Route(GET, f"{V1}/search/runs", search.search),
    Route(GET, f"{V1}/export/runs", export.runs),
    Route(GET, f"{V1}/complete", export.complete),
    Route(GET, f"{V1}/search/jobs", jobs.search),
    Route(GET, f"{V1}/overview/jobs", jobs.overview),
    Route(GET, f"{V1}/board", board.board),
    Route(GET, f"{V1}/timeline", board.timeline),
    Route(GET, f"{V1}/graph", graphs.of_job),
    Route(GET, f"{V1}/recent", history.recent),
    Route(GET, f"{V1}/history", history.history),
    Route(GET, f"{V1}/days", history.days),
    Route(GET, f"{V1}/runs", runs.query),
    Route(POST, f"{V1}/runs", runs.create, body=True),
    Route(POST, f"{V1}/bulk", bulk.bulk, body=True),
    Route(GET, f"{V1}/runs/{{run_id}}", runs.one),
    Route(GET, f"{V1}/runs/{{run_id}}/log", runs.log),
    Route(GET, f"{V1}/runs/{{run_id}}/state", runs.state),
    Route(GET, f"{V1}/runs/{{run_id}}/dependencies", runs.dependencies),
    Route(GET, f"{V1}/runs/{{run_id}}/waiting", runs.waiting),
    Route(GET, f"{V1}/runs/{{run_id}}/graph", graphs.of_run),
    Route(GET, f"{V1}/runs/{{run_id}}/updates", None, live="run"),
    Route(POST, f"{V1}/runs/{{run_id}}/skip", runs.skip),
    Route(POST, f"{V1}/runs/{{run_id}}/start", runs.start),
    Route(POST, f"{V1}/runs/{{run_id}}/rerun", runs.rerun),
    Route(EITHER, f"{V1}/runs/{{run_id}}/stop", runs.stop),
    Route(EITHER, f"{V1}/runs/{{run_id}}/signal/{{signal}}", runs.signal),
    Route(EITHER, f"{V1}/runs/{{run_id}}/mark/{{state}}", runs.mark),
    Route(GET, f"{V1}/runs/{{run_id}}/outputs", outputs.all_outputs),
    Route(GET, f"{V1}/runs/{{run_id}}/output/{{output_id}}", outputs.one_output),
    Route(GET, f"{V1}/runs/{{run_id}}/output/{{output_id}}/lines", within.lines),
    Route(GET, f"{V1}/runs/{{run_id}}/output/{{output_id}}/search", within.search),
    Route(GET, f"{V1}/runs/{{run_id}}/output/{{output_id}}/updates", None, live="output"),
    Route(GET, f"{V1}/agents", standing.agents),
    Route(GET, f"{V1}/series", standing.series),
    Route(GET, f"{V1}/config", standing.config),
    Route(GET, "/metrics", metrics.metrics),
    Route(GET, "/api/procstar/connections", control.connections),
    Route(GET, "/api/procstar/groups", control.groups),
    Route(GET, "/api/control/version", control.version),
    Route(GET, "/api/control/reload_jobs", standing.last_reload),
    Route(POST, "/api/control/reload_jobs", control.reload_jobs),
    Route(POST, "/api/control/shut_down", control.shut_down),
)


def _compiled(route: Route) -> tuple[re.Pattern[str], Route]:
    text = re.sub(r"\{(\w+)\+\}", r"(?P<\1>.+)", route.pattern)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text)), route


_FIXED: dict[str, list[Route]] = {}
for _route in ROUTES:
    if "{" not in _route.pattern:
        _FIXED.setdefault(_route.pattern, []).append(_route)
_OPEN = [_compiled(route) for route in ROUTES if "{" in route.pattern]


def find(request: Request) -> tuple[Route, Request] | Response:
    """The route of a request and the request with its parameters, or why there is none.

    The path is matched as it was sent and decoded only then, so an encoded slash stays part of a name.
    """
    path = request.path
    if len(path) > 1 and path.endswith("/"):
        path = path[:-1]
    known: list[str] = []
    for route in _FIXED.get(path, ()):
        if request.method in route.methods:
            return route, request
        known += route.methods
    if not known:
        for pattern, route in _OPEN:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if request.method in route.methods:
                return route, with_params(request, match.groupdict())
            known += route.methods
    if known:
        allow = ", ".join(dict.fromkeys(known))
        answer = failed(405, f"{request.method[:20]} is not possible here; allowed: {allow}")
        return Response(answer.status, answer.body, headers=(("allow", allow),))
    return failed(404, "no such address")
