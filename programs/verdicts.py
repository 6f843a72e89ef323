"""What the end of a process means for its run, from what its agent says of it. All of it pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apsislib.runs import Json
from apsislib.states import State
from programs.base import OutputLimit, number, signal_name
from programs.sudo import refusal

WARNINGS = 10  # of an agent, about one process
NEAR = 0.97  # of a memory limit: whoever was killed there met it
DRIFT = 0.001  # of a duration, by which clocks of two hosts may differ about it


def output_length(res: Json) -> int:
    """Bytes of output in all, as a result says."""
    stdout = (res.get("fds") or {}).get("stdout")
    length = stdout.get("length") if isinstance(stdout, Mapping) else None
    return length if isinstance(length, int) and length > 0 else 0


def verdict(res: Json, program: str) -> tuple[State, str | None]:
    """What a final result means, a timeout not considered. `program`: what was to be executed."""
    errors = [str(error) for error in res.get("errors") or ()]
    if res.get("state") == "error" or errors:
        text = "; ".join(errors) or "the agent could not start the process"
        if "No such file" in text and "/" not in program:
            text += " (agents do not search PATH: give the program as an absolute path)"
        return State.ERROR, text
    status = res.get("status")
    if not isinstance(status, Mapping):
        return State.ERROR, "the agent did not tell how the process ended"
    code = status.get("exit_code")
    if code == 0:
        return State.SUCCESS, None
    if isinstance(code, int):
        return State.FAILURE, f"exit code {code}"
    name = _signal(status)
    if name is None:
        return State.ERROR, "the agent did not tell how the process ended"
    return State.FAILURE, f"killed by {name}"


def _signal(status: Mapping[str, Any]) -> str | None:
    """The name of the signal that killed a process, if one did."""
    signum = status.get("signum")
    return status.get("signal") or (signal_name(signum) if isinstance(signum, int) else None)


def conclusion(
    res: Json,
    run_state: Mapping[str, Any],
    program: str,
    limit: OutputLimit,
    memory_max: Any,
    sudo_user: str | None,
    said: bytes,
) -> tuple[State, str | None]:
    """The verdict on a run, with the part that the server had in it, and why its program may have failed.

    `memory_max`: the limit in bytes that the agent was to set; `said`: the first output of the process.
    """
    state, message = verdict(res, program)
    if sudo_user is not None and state is State.FAILURE and (why := refusal(said)):
        message = f"{message}: sudo may not run it as {sudo_user}: {why}"
    after = run_state.get("timed_out")
    if after is not None and state is not State.ERROR and not ended_in_time(res, run_state):
        state = State.FAILURE
        message = f"{message or 'exit code 0'} (timeout after {number(after)} s)"
    too_long = limit.max_size is not None and output_length(res) > limit.max_size
    if limit.kill and too_long and state is State.FAILURE:
        message = f"{message} (output exceeds {limit.max_size} bytes)"
    if message == "killed by SIGKILL" and not run_state.get("signals") and _met(res, memory_max):
        message = f"{message} (it needed more memory than its limit)"
    return state, message


def ended_in_time(res: Json, run_state: Mapping[str, Any]) -> bool:
    """Whether a run's timeout came to pass after its program had ended by itself: its agent measured it.

    The server may hear of the end later than that: it was down, or the agent away, or output took its time.
    """
    after, took = run_state.get("timed_out"), elapsed(res)
    if after is None or took is None or took >= after * (1 - DRIFT):
        return False
    # A clock that was set may have made it ring early: then what it had sent ended the program.
    return _signal(res.get("status") or {}) not in (run_state.get("signals") or ())


def elapsed(res: Json) -> float | None:
    """For how many seconds the program ran, as a result says."""
    times = res.get("times")
    took = times.get("elapsed") if isinstance(times, Mapping) else None
    good = isinstance(took, int | float) and not isinstance(took, bool) and took >= 0
    return float(took) if good and took is not None else None


def _met(res: Json, memory_max: Any) -> bool:
    accounting = res.get("cgroup_accounting")
    memory = accounting.get("memory") if isinstance(accounting, Mapping) else None
    peak = memory.get("peak") if isinstance(memory, Mapping) else None
    return isinstance(memory_max, int) and isinstance(peak, int) and peak >= memory_max * NEAR


def unmet(res: Json, limits: Mapping[str, Any]) -> list[str]:
    """What the agent could not do of these limits, as ours tells; of others it can be inferred.

    Each is to be read after the agent's name.
    """
    told = res.get("warnings")
    if isinstance(told, list) and told:
        return [f": {str(warning)[:200]}" for warning in told[:WARNINGS]]
    if res.get("state") == "terminated" and limits.get("memory_max") is not None:
        accounting = res.get("cgroup_accounting")
        if not isinstance(accounting, Mapping) or accounting.get("memory") is None:
            # It has no systemd at its service, or a kernel that lacks one of many figures.
            return [" gave no account of memory: whether its limit was applied can't be told"]
    return []


def kept(res: Json) -> dict[str, Any]:
    """What of a result is stored with the run."""
    keys = ("status", "times", "rusage", "proc_stat", "proc_statm", "cgroup_accounting")
    return {key: res[key] for key in keys if res.get(key) is not None}
