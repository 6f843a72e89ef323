"""What becomes of occurrences that nothing could be started for in time: the server was down, say.

all       every one is made up for
latest    of each schedule the latest; the others are recorded as missed
none      all are recorded as missed

`window` and `cap` bound what is made up for; the rest is recorded as missed, too. The server's file says
it for all jobs, a job's file for that job, key by key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, Literal

from apsislib import times
from apsislib.errors import FieldError
from apsislib.runs import Schedule
from apsislib.times import format_duration

POLICIES = ("all", "latest", "none")
_KEYS = ("policy", "window", "cap")
# A night's backlog of an every-minute job is 600; more than a thousand at once are mostly a mistake.
CAP = 1000
MOST = 1_000_000
# Runs a second, of all jobs with a backlog together: it must not keep agents from what is due now.
PACE = 20.0
FIRST = 60.0  # s; how far newest() looks back at first
FACTOR = 4


@dataclass(frozen=True, slots=True)
class CatchUp:
    """What a file says; None: it does not say."""

    policy: str | None = None
    window: float | Literal["off"] | None = None  # s back from now; off: as far as it may be
    cap: int | None = None  # runs of a job
    pace: float | Literal["off"] | None = None  # runs a second, of all jobs; the server's file only

    def over(self, other: CatchUp) -> CatchUp:
        """What this says and, where it does not, the other."""
        return CatchUp(
            other.policy if self.policy is None else self.policy,
            other.window if self.window is None else self.window,
            other.cap if self.cap is None else self.cap,
            other.pace if self.pace is None else self.pace,
        )

    def to_json(self) -> dict[str, Any]:
        said = {key: getattr(self, key) for key in (*_KEYS, "pace")}
        return {key: value for key, value in said.items() if value is not None}

    def __str__(self) -> str:
        parts = [] if self.policy is None else [self.policy]
        if self.window is not None and self.window != "off":
            parts.append(f"of the last {format_duration(self.window)}")
        if self.cap is not None:
            parts.append(f"{self.cap} at most")
        return ", ".join(parts)


DEFAULT = CatchUp("all", "off", CAP, PACE)


def parse(value: Any) -> CatchUp | None:
    """The `catch_up` of a job. Raises FieldError with the key path."""
    return None if value is None else _parse(value, _KEYS)


def parse_server(value: Any) -> CatchUp:
    """The `schedule.catch_up` of the server's file, complete. Raises FieldError with the key path."""
    return _parse(value, (*_KEYS, "pace")).over(DEFAULT)


def _parse(value: Any, keys: Sequence[str]) -> CatchUp:
    if not isinstance(value, Mapping):
        return CatchUp(_policy(value, []))
    surplus = [str(key) for key in value if key not in keys]
    if surplus:
        hint = f" (known: {', '.join(keys)})"
        if surplus[0] == "pace":
            hint = ": it is for all jobs together, and set in the server's file (schedule.catch_up.pace)"
        raise FieldError(f"unexpected keys: {' '.join(surplus)}{hint}", [surplus[0]])
    policy = value.get("policy")
    return CatchUp(
        None if policy is None else _policy(policy, ["policy"]),
        _window(value.get("window")),
        _cap(value.get("cap")),
        _pace(value.get("pace")),
    )


def _policy(value: Any, keys: list[str | int]) -> str:
    if value not in POLICIES:
        raise FieldError(f"must be one of {', '.join(POLICIES)}: {value!r}", keys)
    return str(value)


def _window(value: Any) -> float | Literal["off"] | None:
    if value is None:
        return None
    if value is False or value == "off":
        return "off"
    try:
        seconds = times.parse_duration(value)
    except ValueError as error:
        raise FieldError(str(error), ["window"]) from None
    if seconds <= 0:
        raise FieldError(f"must be more than 0: {value}", ["window"])
    return seconds


def _cap(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise FieldError(f"must be a whole number from 1 to {MOST}: {value!r}", ["cap"])
    return value


def _pace(value: Any) -> float | Literal["off"] | None:
    if value is None:
        return None
    if value is False or value == "off":
        return "off"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= 1e6:
        raise FieldError(f"must be a number of runs a second, or off: {value!r}", ["pace"])
    return float(value)


def newest(schedule: Schedule, start: float, end: float, count: int) -> list[float]:
    """The latest `count` instants of a schedule within [start, end), ascending; all, if there are fewer.

    Schedules tell what comes after an instant, not before it: it is looked for ever further back.
    """
    span = FIRST
    while True:
        begin = max(start, end - span)
        until_end = takewhile(lambda occurrence: occurrence.time < end, schedule.after(begin))
        found = deque((occurrence.time for occurrence in islice(until_end, MOST)), maxlen=count)
        if len(found) == count or begin == start:
            return list(found)
        span *= FACTOR
