"""Tasks of this installation that no run needs, found by their tags, and stopped: they cost money."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from apsislib.runs import Json
from apsislib.states import FINISHED
from programs.base import Host
from programs.ecs import request
from programs.ecs.aws import Aws, AwsError
from programs.ecs.calls import Call, Calls
from programs.ecs.told import is_over

log = logging.getLogger(__name__)

BATCH = 100  # tasks that DescribeTasks takes at once


class Sweep:
    def __init__(
        self, aws: Aws, calls: Calls, host: Host, installation: str, followed: Callable[[str, str], bool]
    ) -> None:
        """`followed`: whether the task of this run ID and ARN is looked after already."""
        self._aws = aws
        self._calls = calls
        self._host = host
        self._installation = installation
        self._followed = followed

    def start(self) -> None:
        """Look for tasks left behind, and stop them."""

        def done(tasks: list[Json]) -> None:
            for described in tasks:
                self._judge(described)

        def failed(error: AwsError) -> None:
            log.warning("ECS tasks left behind could not be looked for: %s", error)

        self._calls.put(Call("ListTasks", lambda: list(self._all()), done, failed))

    def find(self, run_id: str) -> str | None:
        """(a hand) The ARN of a run's task that goes on. Raises AwsError."""
        for described in self._all():
            if _tags(described).get(request.RUN_TAG) == run_id and not is_over(described):
                return str(described["taskArn"])
        return None

    def _all(self) -> Iterable[Json]:
        """(a hand) All tasks of this installation, with their tags."""
        arns = self._aws.started_by(request.started_by(self._installation))
        for at in range(0, len(arns), BATCH):
            yield from self._aws.describe(arns[at : at + BATCH], tags=True).get("tasks") or ()

    def _judge(self, described: Json) -> None:
        """(a hand) Stop a task of ours whose run does not need it."""
        tags, arn = _tags(described), str(described.get("taskArn"))
        run_id = tags.get(request.RUN_TAG, "")
        if tags.get(request.INSTALLATION_TAG) != self._installation or is_over(described):
            return
        if self._followed(run_id, arn):
            return
        run = self._host.run(run_id)
        if run is not None and (
            run.state in FINISHED or (run.run_state or {}).get("task_arn") in (None, arn)
        ):
            return  # it is about to be followed, or let go
        log.warning("stopping ECS task %s, left behind: run %s does not need it", arn, run_id)

        def failed(error: AwsError) -> None:
            log.error("ECS task %s is left behind and could not be stopped: %s", arn, error)

        why = f"apsis: left behind by run {run_id}"
        self._calls.put(Call("StopTask", lambda: self._aws.stop(arn, why), lambda _: None, failed))


def _tags(described: Json) -> dict[str, str]:
    return {str(tag.get("key")): str(tag.get("value")) for tag in described.get("tags") or ()}
