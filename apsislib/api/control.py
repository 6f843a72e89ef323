"""The server itself: whether it lives, what it counts, its jobs directory, its agents, its end."""

from __future__ import annotations

from typing import Any

from apsislib.api.message import Request, Response, failed, ok
from apsislib.api.parts import Parts
from apsislib.errors import BadRequest, JobErrors, Unavailable

# Seconds that GET /running waits: within the read timeouts that clients use, so that they see an
# answer rather than silence.
PATIENCE = 20.0

_BOOLS = {"True": True, "true": True, "T": True, "t": True}
_BOOLS |= {"False": False, "false": False, "F": False, "f": False}


def parse_bool(text: str, name: str) -> bool:
    if text not in _BOOLS:
        raise BadRequest(f"{name} must be True or False: {text!r}")
    return _BOOLS[text]


def alive(parts: Parts, request: Request) -> Response:
    return ok({})


def running(parts: Parts, request: Request) -> Response:
    if not parts.driver.is_running.wait(PATIENCE):
        raise Unavailable("not running yet")
    return ok({})


def stats(parts: Parts, request: Request) -> Response:
    return ok(parts.driver.stats())


def health(parts: Parts, request: Request) -> Response:
    """For load balancers and whoever is on call: 200, or 503 with reasons."""
    reasons = parts.driver.ailments()
    if reasons:
        return failed(503, "; ".join(reasons), reasons=reasons)
    return ok({"reasons": []})


def version(parts: Parts, request: Request) -> Response:
    return ok({"version": parts.version})


def reload_jobs(parts: Parts, request: Request) -> Response:
    dry_run = parse_bool(request.one("dry_run") or "False", "dry_run")
    try:
        return ok(parts.driver.reload(dry_run))
    except JobErrors as error:
        found = [[e.job_id or e.path, e.message] for e in error.errors]
        return failed(400, str(error), job_errors=found)


def shut_down(parts: Parts, request: Request) -> Response:
    restart = request.flag("restart")
    return Response(after=lambda: parts.shut_down(restart), close=True)


def connections(parts: Parts, request: Request) -> Response:
    return ok(_connections(parts))


def groups(parts: Parts, request: Request) -> Response:
    found: dict[str, list[Any]] = {}
    for connection in _connections(parts).values():
        found.setdefault(connection["info"]["conn"]["group_id"], []).append(connection)
    return ok(found)


def _connections(parts: Parts) -> dict[str, Any]:
    if parts.connections is None:
        raise BadRequest("no agent server running")
    return dict(parts.connections())
