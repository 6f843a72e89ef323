"""What the pages of agents and of the server show: who is there, how it has been, what is in force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from apsislib.api.message import Request, Response, ok
from apsislib.api.parts import Parts
from apsislib.errors import BadRequest
from apsislib.runs import Run
from apsislib.samples import RINGS
from apsislib.states import State
from apsislib.times import format_time

PLACED = (State.STARTING, State.RUNNING, State.STOPPING)
LISTED = 100  # runs of an agent
MOST = 5000  # runs that are looked at: what agents run at once


def agents(parts: Parts, request: Request) -> Response:
    """Agents by group, what each runs, and what waits for one; and connections that came and went."""
    if parts.connections is None:
        raise BadRequest("no agent server running")
    with parts.store.read() as reader:
        runs = reader.runs(states=frozenset(PLACED), limit=MOST)
    placed: dict[str, list[Run]] = {}
    unplaced: Counter[str] = Counter()
    for run in runs:
        conn_id = (run.run_state or {}).get("conn_id")
        if conn_id:
            placed.setdefault(str(conn_id), []).append(run)
        elif run.state is State.STARTING and "group_id" in (run.program or {}):
            unplaced[str((run.program or {})["group_id"])] += 1
    shown = [_agent(record, placed.get(key, [])) for key, record in parts.connections().items()]
    shown.sort(key=lambda agent: (agent["group_id"], agent["hostname"], agent["conn_id"]))
    return ok(
        {
            "when": format_time(parts.clock.wall()),
            "agents": shown,
            "unplaced": dict(unplaced),
            "history": list(parts.history()),
        }
    )


def _agent(record: Mapping[str, Any], runs: list[Run]) -> dict[str, Any]:
    info = record["info"]
    proc, stats = info.get("proc", {}), info["stats"]
    state = {"active": "live", "idling": "draining"}.get(record["shutdown_state"], "done")
    return {
        "conn_id": info["conn"]["conn_id"],
        "group_id": info["conn"]["group_id"],
        "state": state if stats["connected"] or state == "done" else "lost",
        "hostname": proc.get("hostname", ""),
        "address": info.get("socket", {}).get("address", ""),
        "username": proc.get("username", ""),
        "pid": proc.get("pid"),
        "restricted_exe": info["conn"].get("restricted_exe"),
        "since": stats["last_connect_time"] if stats["connected"] else stats["last_disconnect_time"],
        "first_connect_time": stats.get("first_connect_time"),
        "connections": stats.get("num_connections"),
        "load": len(runs),
        "runs": [
            {
                "run_id": run.run_id,
                "job_id": run.job_id,
                "args": dict(run.args),
                "state": run.state.value,
                "since": format_time(run.timestamp),
            }
            for run in runs[:LISTED]
        ],
    }


def series(parts: Parts, request: Request) -> Response:
    """Figures of the last hour, day or week."""
    span = request.one("span") or "hour"
    if span not in RINGS:
        raise BadRequest(f"span must be one of {', '.join(RINGS)}: {span}")
    return ok(parts.series(span))


def config(parts: Parts, request: Request) -> Response:
    """The configuration in force, without secrets."""
    return ok({"config": dict(parts.config()), "version": parts.version})


def last_reload(parts: Parts, request: Request) -> Response:
    """What the last reload, or the start, made of the job directory."""
    return ok(dict(parts.driver.last_reload))
