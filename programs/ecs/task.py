"""One run's task, as the server knows it, and where its run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from apsislib.runs import Run
from apsislib.states import State
from programs.base import Host


@dataclass(eq=False, slots=True)
class Task:
    """One run's. Fields are set under the lock, or by whoever holds the one call about it."""

    run_id: str
    program: Any  # spec.Ecs
    arn: str | None = None
    asked: bool = False  # RunTask is being called
    trouble: str = ""  # why it has failed so far
    deadline: float = math.inf  # boot; its agent is to have connected
    status: str = ""  # as ECS has told last
    missing: float = math.inf  # boot; since when ECS does not know it
    looks: int = 0  # at its end, while its agent is still connected
    kill_at: float = math.inf  # boot; then it is stopped, unless its run has ended
    stopping: bool = False  # StopTask is being, or was, called
    killed: bool = False  # because its program would not end
    over: bool = False  # it has ended, or its run is being ended
    released: bool = False  # its run has ended
    leave_by: float = math.inf  # boot; then it is stopped


def is_waiting(run: Run | None) -> bool:
    """For its task, or for the agent in it."""
    return run is not None and run.state is State.STARTING and not (run.run_state or {}).get("conn_id")


def is_connected(run: Run, host: Host) -> bool:
    """Whether the agent of a run is."""
    conn_id = (run.run_state or {}).get("conn_id")
    record = None if host.agents is None or conn_id is None else host.agents.record(conn_id)
    return record is not None and bool(record["info"]["stats"]["connected"])
