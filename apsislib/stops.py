"""When a run is to be stopped, counted from its schedule time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from apsislib import times
from apsislib.runs import Occurrence, Schedule
from apsislib.times import Zone, format_daytime


class Stop(Protocol):
    """From the schedule time to the instant at which the run is to be stopped."""

    def at(self, t: float) -> float | None: ...
    def to_json(self) -> dict[str, Any]: ...
    def words(self) -> str: ...


@dataclass(frozen=True, slots=True)
class StopDuration:
    duration: float

    def at(self, t: float) -> float:
        return t + self.duration

    def to_json(self) -> dict[str, Any]:
        return {"type": "duration", "duration": self.duration}

    def __str__(self) -> str:
        return f"stop {self.duration} s after schedule time"

    def words(self) -> str:
        return f"stopped {times.format_duration(self.duration)} later"


@dataclass(frozen=True, slots=True)
class StopDaytime:
    daytime: float  # seconds after midnight
    tz: Zone

    def at(self, t: float) -> float | None:
        """The same date if clocks show less than the daytime at `t`, else the next date that there is.

        In a gap, the first instant after it. None beyond the range of dates.
        """
        day, seconds = times.local(t, self.tz)
        first = day.toordinal() + (seconds >= self.daytime)
        for ordinal in range(first, min(first + 3, date.max.toordinal())):  # a zone left out one date at most
            for found, _ in times.placed(ordinal, self.daytime, self.tz, "end", "both"):
                if found > t:
                    return found
        return None

    def to_json(self) -> dict[str, Any]:
        return {"type": "daytime", "daytime": format_daytime(self.daytime), "tz": self.tz.key}

    def __str__(self) -> str:
        return f"stop at {format_daytime(self.daytime)} {self.tz.key} after schedule time"

    def words(self) -> str:
        return f"stopped at the next {format_daytime(self.daytime)} {self.tz.key}"


@dataclass(frozen=True, slots=True, eq=False)
class Stopped:
    """A schedule with a stop time for each of its occurrences."""

    start: Schedule
    stop: Stop | None

    @property
    def enabled(self) -> bool:
        return self.start.enabled

    def after(self, start: float) -> Iterator[Occurrence]:
        occurrences = self.start.after(start)
        stop = self.stop
        if stop is None:
            return occurrences
        return (Occurrence(o.time, o.args, stop.at(o.time), o.note) for o in occurrences)

    def to_json(self) -> dict[str, Any]:
        start = self.start.to_json()
        json = {"start": start, "str": start["str"], "enabled": self.enabled}
        if self.stop is None:
            return json
        return {**json, "stop": self.stop.to_json(), "str": f"{start['str']}, {self.stop}"}

    def words(self) -> str:
        start = words(self.start)
        return start if self.stop is None else f"{start}, {self.stop.words()}"


def words(schedule: Schedule) -> str:
    """The schedule as a person would say it: `every day at 09:30 America/New_York, Mon-Fri`."""
    said = getattr(schedule, "words", None)
    return str(said()) if said else str(schedule.to_json().get("str", ""))
