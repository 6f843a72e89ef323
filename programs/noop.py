"""no-op: does nothing, for as long as it is told to, and ends as it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apsislib.errors import FieldError
from apsislib.runs import Finished, Json, Run, Running
from apsislib.states import State
from programs.base import (
    Bound,
    Expand,
    Host,
    Settings,
    check_keys,
    duration,
    is_static,
    number,
    optional,
    show,
)

BOUND = "apsis.program.noop.BoundNoOpProgram"


@dataclass(frozen=True, slots=True)
class NoOp(Bound):
    """`duration` is its text, a template until bound. `success`: True, False, or None for an error."""

    duration: str | None = None
    success: bool | None = True
    bound: bool = False

    def __str__(self) -> str:
        if self.duration is None:
            return "no-op"
        return f"no-op for {number(self._seconds()) + ' s' if is_static(self.duration) else self.duration}"

    def to_json(self) -> dict[str, Any]:
        kind = BOUND if self.bound else "no-op"
        return {"type": kind, "duration": self.duration, "success": self.success, "str": str(self)}

    def bind(self, expand: Expand) -> NoOp:
        text = None if self.duration is None else expand(self.duration)
        if text is not None:
            duration(text, "duration")
        return NoOp(text, self.success, bound=True)

    def _seconds(self) -> float:
        return 0.0 if self.duration is None else duration(self.duration, "duration")

    def launch(self, run: Run, host: Host) -> None:
        seconds = self._seconds()
        start = {"start": host.clock.wall()}
        host.report(run.run_id, Running(start, {}, wake=seconds if seconds > 0 else None))
        if not seconds:
            self.wake(run, host)

    def wake(self, run: Run, host: Host) -> None:
        if self.success is None:
            host.report(run.run_id, Finished(State.ERROR, "error"))
        elif self.success:
            host.report(run.run_id, Finished(State.SUCCESS))
        else:
            host.report(run.run_id, Finished(State.FAILURE, "failed"))

    def signal(self, run: Run, host: Host, signum: int, stop: bool) -> None:
        # Other signals have nobody to reach, and are ignored. A stop is a clean end, however it would
        # have ended by itself.
        if stop:
            host.report(run.run_id, Finished(State.SUCCESS))

    def connect(self, run: Run, host: Host) -> None:
        """Goes on where it was: the time that the server was down has passed for it too."""
        if run.state is State.STARTING:
            self.launch(run, host)
        elif run.state is State.STOPPING:
            self.signal(run, host, 15, True)
        else:
            begun = run.times.get("running", run.timestamp) + (run.run_state or {}).get("stepped", 0.0)
            left = begun + self._seconds() - host.clock.wall()
            if left > 0:
                host.report(run.run_id, Running(run.run_state, run.meta.get("program"), wake=left))
            else:
                self.wake(run, host)


def parse(mapping: Mapping[str, Any], settings: Settings) -> NoOp:
    check_keys(mapping, ("duration", "success"))
    text = optional(mapping, "duration")
    if text is not None and is_static(text):
        duration(text, "duration")
    success = mapping.get("success", True)
    if isinstance(success, int | float):
        success = bool(success)
    elif success is not None:
        raise FieldError(f"success must be true, false or null, not {show(success)}", ["success"])
    return NoOp(text, success)


def load(json: Json, settings: Settings) -> NoOp:
    text = json.get("duration")
    return NoOp(None if text is None else str(text), json.get("success", True), bound=True)
