"""The states of a run and the legal moves between them. Depends on nothing of ours."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    NEW = "new"
    SCHEDULED = "scheduled"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    SKIPPED = "skipped"


# Names of their own, for where it counts: an attribute of an Enum class takes as long as a call.
SCHEDULED, WAITING, STARTING = State.SCHEDULED, State.WAITING, State.STARTING
RUNNING, ERROR = State.RUNNING, State.ERROR

FINISHED = frozenset({State.SUCCESS, State.FAILURE, State.ERROR, State.SKIPPED})

# In flight: between the schedule and the end.
ACTIVE = frozenset({State.WAITING, State.STARTING, State.RUNNING, State.STOPPING})

# What a run may do by itself. Marks move freely among FINISHED and are checked where they are made.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.SCHEDULED, State.ERROR, State.SKIPPED}),
    State.SCHEDULED: frozenset({State.WAITING, State.STARTING, State.ERROR, State.SKIPPED}),
    State.WAITING: frozenset({State.STARTING, State.ERROR, State.SKIPPED}),
    # starting -> skipped is ours: a stop that arrives before the program was sent cancels the start.
    State.STARTING: frozenset({State.RUNNING, State.ERROR, State.SKIPPED}),
    State.RUNNING: frozenset({State.STOPPING, State.SUCCESS, State.FAILURE, State.ERROR}),
    State.STOPPING: frozenset({State.SUCCESS, State.FAILURE, State.ERROR}),
    State.SUCCESS: frozenset(),
    State.FAILURE: frozenset(),
    State.ERROR: frozenset(),
    State.SKIPPED: frozenset(),
}


def finished(state: State) -> bool:
    return state in FINISHED


def reachable(goals: frozenset[State]) -> frozenset[State]:
    """The states from which one of `goals` can still be reached, the goals included."""
    found = set(goals)
    while True:
        more = {s for s, nexts in TRANSITIONS.items() if nexts & found} - found
        if not more:
            return frozenset(found)
        found |= more
