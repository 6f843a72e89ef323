"""What is expected of a job's runs, and what a run is called that does not keep to it.

late      it has not begun `within` a duration after its schedule time
missed    it has not ended `by` a time of day, the first one after its schedule time
long      it has been running for more than `max_duration`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from apsislib import times
from apsislib.errors import FieldError
from apsislib.runs import Schedule
from apsislib.times import Zone, format_daytime, format_duration

ALARMS = ("late", "missed", "long")
_KEYS = ("within", "by", "tz", "max_duration")


@dataclass(frozen=True, slots=True)
class Expectation:
    """Durations and times of day in seconds; None: nothing is expected."""

    within: float | None = None
    by: float | None = None
    tz: Zone | None = None
    max_duration: float | None = None

    def of(self, schedule: float) -> dict[str, float]:
        """For a run with this schedule time: the instants from which it is late and missed, and the
        seconds of running from which it is long."""
        found = {}
        if self.within is not None:
            found["late"] = schedule + self.within
        if self.by is not None and self.tz is not None:
            found["missed"] = _next(schedule, self.by, self.tz)
        if self.max_duration is not None:
            found["long"] = self.max_duration
        return found

    def to_json(self) -> dict[str, Any]:
        json: dict[str, Any] = {}
        if self.within is not None:
            json["within"] = self.within
        if self.by is not None and self.tz is not None:
            json |= {"by": format_daytime(self.by), "tz": self.tz.key}
        if self.max_duration is not None:
            json["max_duration"] = self.max_duration
        return json

    def __str__(self) -> str:
        said = [] if self.within is None else [f"begun within {format_duration(self.within)}"]
        if self.by is not None and self.tz is not None:
            said.append(f"ended by {format_daytime(self.by)} {self.tz.key}")
        if self.max_duration is not None:
            said.append(f"running for {format_duration(self.max_duration)} at most")
        return ", ".join(said)


def _next(instant: float, daytime: float, tz: Zone) -> float:
    """The first instant after `instant` at which clocks show `daytime`."""
    day, _ = times.local(instant, tz)
    while True:
        for found in times.at_wall(day, daytime, tz):
            if found > instant:
                return found
        day += timedelta(days=1)


def parse(value: Any, schedules: tuple[Schedule, ...]) -> Expectation | None:
    """The value of `expect`. Where it names no zone it means that of the job's schedules.

    Raises FieldError with the key path.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise FieldError(f"expect must be a mapping with {', '.join(_KEYS)}: {value!r}")
    surplus = [str(key) for key in value if key not in _KEYS]
    if surplus:
        raise FieldError(f"unexpected keys: {' '.join(surplus)} (known: {', '.join(_KEYS)})", [surplus[0]])
    if not any(value.get(key) is not None for key in ("within", "by", "max_duration")):
        raise FieldError("expect says nothing: give within, by or max_duration")
    by, tz = value.get("by"), None
    if by is not None:
        try:
            by = times.parse_daytime(f"{by}:00" if re.fullmatch(r"\d\d?:\d\d", str(by)) else by)
        except ValueError as error:
            raise FieldError(str(error), ["by"]) from None
        tz = _zone(value.get("tz"), schedules)
    elif value.get("tz") is not None:
        raise FieldError("tz has a meaning only with by", ["tz"])
    return Expectation(_seconds(value, "within"), by, tz, _seconds(value, "max_duration"))


def _seconds(value: Mapping[str, Any], key: str) -> float | None:
    if value.get(key) is None:
        return None
    try:
        seconds = times.parse_duration(value[key])
    except ValueError as error:
        raise FieldError(str(error), [key]) from None
    if seconds <= 0:
        raise FieldError(f"must be more than 0: {value[key]}", [key])
    return seconds


def _zone(name: Any, schedules: tuple[Schedule, ...]) -> Zone:
    if name is None:
        said = [schedule.to_json() for schedule in schedules]
        found = {
            json.get("start", json).get("tz") for json in said if isinstance(json.get("start", json), Mapping)
        }
        found |= {json["tz"] for json in said if json.get("tz")}
        zones = sorted(zone for zone in found if zone)
        if len(zones) != 1:
            why = "its schedules have several" if zones else "its schedules have none"
            raise FieldError(f"missing key: tz, the time zone of by ({why})", ["by"])
        name = zones[0]
    try:
        return times.zone(str(name))
    except ValueError as error:
        raise FieldError(str(error), ["tz"]) from None
