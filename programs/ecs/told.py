"""What ECS tells of a task that has ended or does not start, in a sentence."""

from __future__ import annotations

from apsislib.config.keys import Ecs as Config
from apsislib.runs import Json, Run
from apsislib.states import State
from programs.base import number
from programs.ecs.aws import Aws, one_line
from programs.ecs.request import group_id, log_streams, task_id

LINES = 50  # of a task's own log
ENDED = ("DEPROVISIONING", "STOPPED", "DELETED")  # the container is no more


def is_over(described: Json, ending: bool = False) -> bool:
    """Whether a task has ended; with `ending`, also whether it is about to."""
    return described.get("lastStatus") in ENDED or ending and described.get("desiredStatus") == "STOPPED"


def why(described: Json) -> str:
    """The reason of the task, and of each container with its exit code."""
    parts = [str(described.get("stoppedReason") or described.get("stopCode") or "no reason given")]
    for container in described.get("containers") or ():
        told = [str(container["reason"])] if container.get("reason") else []
        if container.get("exitCode") is not None:
            told.append(f"exit code {container['exitCode']}")
        if told:
            parts.append(f"container {container.get('name')}: {', '.join(told)}")
    return one_line("; ".join(parts))


def outcome(described: Json, run: Run, arn: str, killed: bool) -> tuple[State, str]:
    """How the run ends whose task has stopped. `killed`: by us, as its program would not end."""
    state = run.run_state or {}
    text = f"ECS task {task_id(arn)} stopped"
    if run.state is State.STARTING and not state.get("conn_id"):
        return State.ERROR, f"{text} before its agent connected: {why(described)}"
    if run.state is State.STARTING:
        return State.ERROR, f"{text}, the program may have started: {why(described)}"
    if killed:
        told = "" if state.get("timed_out") is None else f" (timeout after {number(state['timed_out'])} s)"
        return State.FAILURE, f"{text}, as the program did not end{told}: {why(described)}"
    return State.ERROR, f"{text} while the program ran: {why(described)}"


def last_lines(aws: Aws, config: Config, arn: str) -> tuple[str, bytes | None]:
    """(a hand) A task's log stream, and its last lines with a heading; None: it has none. Raises AwsError."""
    streams = log_streams(config, arn)
    for stream in streams:
        lines = aws.last_lines(config.log_group, stream, LINES)
        if lines:
            head = f"[apsis: last lines of the CloudWatch log stream {stream} of {config.log_group}]"
            text = "".join(f"{line.rstrip()}\n" for line in (head, *lines))
            return stream, text.encode("utf-8", "replace")
    return streams[0], None


def late(run_id: str, arn: str | None, status: str, trouble: str, limit: float) -> str:
    """Why a run that has waited for `limit` seconds still has no agent, and where to look."""
    text = f"start timeout: no agent of group {group_id(run_id)} after {number(limit)} s"
    if arn is None:
        return f"{text}: no ECS task could be launched" + (f": {trouble}" if trouble else "")
    if status == "RUNNING":
        hint = "check the agent's host, port and token in the task definition, and its security group"
    else:
        hint = "the cluster may have no room for it, or the image takes long to pull"
    return f"{text}: ECS task {task_id(arn)} is {status or 'unknown'}; {hint}"
