"""What an operator may do to a run, and in which states."""

from __future__ import annotations

from apsislib.runs import Run, adrift
from apsislib.states import FINISHED, State

VERBS = ("skip", "start", "stop", "signal", "mark", "rerun")


def refusal(verb: str, run: Run, to: State | None = None) -> str | None:
    """Why `verb` can't be done to the run as it is; None: it can. `to`: the state to mark it as."""
    run_id, state = run.run_id, run.state
    match verb:
        case "skip" | "start" if state not in (State.SCHEDULED, State.WAITING):
            return f"can't {verb} {run_id} in state {state}"
        case "stop" | "signal" if adrift(run) is not None:
            return None  # its program may still run
        case "stop" if state not in (State.STARTING, State.RUNNING, State.STOPPING):
            return f"can't stop run {run_id}: run is {state}"
        case "signal" if state not in (State.RUNNING, State.STOPPING):
            return f"invalid run state for signal: {state}"
        case "mark" if to not in FINISHED:
            return f"can't mark {run_id} to state {to}"
        case "mark" if state not in FINISHED:
            return f"can't mark {run_id} in state {state}"
        case "mark" if state is to:
            return f"run {run_id} already in state {state}"
    return None
