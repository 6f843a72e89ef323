"""Schedules as job files write them: the parser, and users' own kinds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from apsislib import classes, times
from apsislib import cron as crons
from apsislib.calendars import Calendars
from apsislib.errors import FieldError, missing
from apsislib.runs import Args, Occurrence, Schedule
from apsislib.stops import Stop, StopDaytime, StopDuration, Stopped, words
from apsislib.times import DAY, format_instant
from apsislib.timetables import (
    SHORTEST,
    WIDEST,
    Cron,
    Daily,
    DailyInterval,
    Edge,
    Explicit,
    Interval,
    Shift,
    Wall,
)

__all__ = ["Own", "parse", "words"]

T = TypeVar("T")

_YES = ("yes", "on", "true")
_NO = ("no", "off", "false")
_NO_TYPES: Mapping[str, str] = MappingProxyType({})


# -- users' own kinds ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Own:
    """A schedule of a user's class: checks that it keeps the rules that the scheduler relies on.

    The class has `from_config(mapping)`, given the mapping without type, args and enabled, and
    `after(start)`, which yields instants, or pairs (instant, args), ascending from `start`.
    `to_json()` and `words()` are taken if it has them.
    """

    type: str
    inner: Any
    enabled: bool
    args: Args
    config: Mapping[str, Any]

    def after(self, start: float) -> Iterator[Occurrence]:
        with classes.unleaving():
            yield from self._checked(start)

    def _checked(self, start: float) -> Iterator[Occurrence]:
        previous = start
        for given in self.inner.after(start):
            time, provided = given if isinstance(given, tuple) else (given, {})
            t = float(time)
            if not previous <= t:
                raise ValueError(f"schedule {self.type}: {t} comes after {previous}, but times must ascend")
            previous = t
            text = format_instant(t)
            strings = {str(k): str(v) for k, v in provided.items()}
            yield Occurrence(t, {"time": text, **strings, **self.args, "schedule_time": text})

    def to_json(self) -> dict[str, Any]:
        config = self.inner.to_json() if hasattr(self.inner, "to_json") else dict(self.config)
        common = {"type": self.type, "enabled": self.enabled, "args": dict(self.args)}
        return {**config, **common, "str": self.words()}

    def words(self) -> str:
        return str(self.inner.words()) if hasattr(self.inner, "words") else str(self.inner)


# Keys that mean something in one kind of schedule or another: they are not another key, misspelt.
_KNOWN = {"type", "enabled", "args", "interval", "phase", "daytime", "time", "times", "tz", "calendar"}
_KNOWN |= {"date_shift", "cal_shift", "dst_gap", "dst_fold", "start", "stop", "cron", "duration"}


# -- reading mappings ------------------------------------------------------------------------------


class _Fields:
    """The keys of one mapping, each taken once; errors name the key."""

    def __init__(self, mapping: Mapping[Any, Any], calendars: Calendars) -> None:
        if not isinstance(mapping, Mapping):
            raise FieldError(f"not a mapping: {mapping!r}")
        self.mapping = mapping
        self.calendars = calendars
        self._taken: set[str] = set()

    def has(self, key: str) -> bool:
        return key in self.mapping

    def take(self, key: str, convert: Callable[[Any], T], default: T | None = None) -> T:
        """Without a default the key is required. Raises FieldError under `key`."""
        self._taken.add(key)
        if key not in self.mapping:
            if default is None:
                raise missing(key, self.mapping, _KNOWN)
            return default
        try:
            return convert(self.mapping[key])
        except FieldError as error:
            raise error.under(key) from None
        except ValueError as error:
            raise FieldError(str(error), [key]) from None

    def done(self) -> None:
        """Raises FieldError if there are keys that nobody took."""
        surplus = [key for key in self.mapping if key not in self._taken]
        if surplus:
            raise FieldError(f"unexpected keys: {' '.join(str(key) for key in surplus)}", [surplus[0]])

    def wall(self) -> Wall:
        zone = self.take("tz", times.zone)
        name = self.take("calendar", _calendar_name, "all")
        try:
            calendar = self.calendars.get(name)
        except ValueError as error:
            raise FieldError(str(error), ["calendar"]) from None
        if not calendar.rank(calendar.stop):
            raise FieldError(f"calendar {name!r} has no dates, so this never fires", ["calendar"])
        # `all` and `none` have two names; the one shown is the one that the API always had.
        shown = calendar.name if name in ("all", "none") else name
        gap = self.take("dst_gap", _one_of("shift", "skip"), "shift")
        fold = self.take("dst_fold", _one_of("first", "second", "both"), "first")
        return Wall(zone, calendar, shown, gap, fold)  # type: ignore[arg-type]

    def shift(self) -> Shift:
        return Shift(self.take("date_shift", _whole, 0), self.take("cal_shift", _whole, 0))


def parse(mapping: Any, calendars: Calendars, types: Mapping[str, str] | None = None) -> Schedule:
    """The schedule of one mapping, also in the form {start, stop}.

    `types` gives short names for users' own classes, as dotted paths. Raises FieldError.
    """
    if not isinstance(mapping, Mapping):
        raise FieldError(f"a schedule must be a mapping with a type: {mapping!r}")
    if "start" not in mapping or not set(mapping) <= {"start", "stop"}:
        return _parse_one(mapping, calendars, types or _NO_TYPES)
    try:
        start = _parse_one(mapping["start"], calendars, types or _NO_TYPES)
    except FieldError as error:
        raise error.under("start") from None
    try:
        stop = None if mapping.get("stop") is None else _parse_stop(_Fields(mapping["stop"], calendars))
    except FieldError as error:
        raise error.under("stop") from None
    return Stopped(start, stop)


def _parse_one(mapping: Any, calendars: Calendars, types: Mapping[str, str]) -> Schedule:
    fields = _Fields(mapping, calendars)
    if not fields.has("type"):
        beside = [str(key) for key in mapping if key not in ("start", "stop")]
        stray = fields.has("start") and isinstance(mapping["start"], Mapping) and beside
        if stray:
            hint = f"beside start and stop nothing may stand: move {' '.join(beside)} under start"
            error = missing("stop", beside, _KNOWN, f"missing type ({hint})")
            raise FieldError(error.message, error.keys or beside[:1])
        raise missing("type", mapping, _KNOWN, "missing type")
    kind = fields.take("type", str)
    enabled = fields.take("enabled", _enabled, True)
    args = fields.take("args", _args, dict[str, str]())
    parser = _KINDS.get(kind)
    if parser is None:
        return _parse_own(fields, kind, types, enabled, args)
    schedule = parser(fields, enabled, args)
    fields.done()
    if next(schedule.after(times.FIRST), None) is None:
        raise FieldError(f"{kind} schedule never fires")
    return schedule


def _parse_interval(fields: _Fields, enabled: bool, args: Args) -> Schedule:
    interval = fields.take("interval", times.parse_duration)
    phase = fields.take("phase", times.parse_duration, 0.0)
    if interval < SHORTEST:
        raise FieldError(f"interval shorter than {SHORTEST} s", ["interval"])
    if not 0 <= phase < interval:
        raise FieldError("phase not between 0 and interval", ["phase"])
    return Interval(interval=interval, phase=phase, enabled=enabled, args=args)


def _parse_daily(fields: _Fields, enabled: bool, args: Args) -> Schedule:
    if fields.has("time") and fields.has("daytime"):
        raise FieldError("daytime and time mean the same: give one of them", ["time"])
    daytimes = fields.take("time" if fields.has("time") else "daytime", _list(times.parse_daytime))
    return Daily(
        daytimes=tuple(sorted(daytimes)),
        wall=fields.wall(),
        shift=fields.shift(),
        enabled=enabled,
        args=args,
    )


def _parse_daily_interval(fields: _Fields, enabled: bool, args: Args) -> Schedule:
    start, stop = (
        fields.take(key, lambda value: _edge(value, fields.calendars)) for key in ("start", "stop")
    )
    interval = fields.take("interval", times.parse_duration)
    if not SHORTEST <= interval < DAY:
        raise FieldError(f"interval not between {SHORTEST} s and one day: {interval} s", ["interval"])
    days = stop.shift.date_shift - start.shift.date_shift
    cal_days = stop.shift.cal_shift - start.shift.cal_shift
    if max(abs(days), abs(cal_days)) > WIDEST:
        raise FieldError(f"stop lies more than {WIDEST} days from start", ["stop"])
    if not cal_days and days * DAY + stop.daytime <= start.daytime:
        raise FieldError(f"stop {stop} is not after start {start} (past midnight: date_shift: 1)", ["stop"])
    schedule = DailyInterval(
        start=start, stop=stop, interval=interval, wall=fields.wall(), enabled=enabled, args=args
    )
    if next(schedule.after(times.FIRST), None) is None:
        raise FieldError(f"stop {stop} is never after start {start}", ["stop"])
    return schedule


def _parse_explicit(fields: _Fields, enabled: bool, args: Args) -> Schedule:
    instants = fields.take("times", _list(_instant))
    return Explicit(times=tuple(sorted(instants)), enabled=enabled, args=args)


def _parse_cron(fields: _Fields, enabled: bool, args: Args) -> Schedule:
    cron = fields.take("cron", crons.parse)
    wall = fields.wall()
    for key in ("dst_gap", "dst_fold"):
        if cron.physical and fields.has(key):
            raise FieldError(
                f"{key} has no effect: with a wildcard or step in minute or hour "
                "cron fires whenever clocks show a matching time",
                [key],
            )
    if next(cron.days(1, wall.calendar), None) is None:
        raise FieldError(
            f"calendar {wall.calendar_name!r} has no date on which cron {cron.text!r} fires", ["cron"]
        )
    return Cron(cron=cron, wall=wall, enabled=enabled, args=args)


_KINDS: Mapping[str, Callable[[_Fields, bool, Args], Schedule]] = MappingProxyType(
    {
        "interval": _parse_interval,
        "daily": _parse_daily,
        "daily-interval": _parse_daily_interval,
        "explicit": _parse_explicit,
        "cron": _parse_cron,
    }
)


def _parse_own(fields: _Fields, kind: str, types: Mapping[str, str], enabled: bool, args: Args) -> Schedule:
    path = types.get(kind, kind)
    if "." not in path:
        known = ", ".join([*_KINDS, *types])
        raise FieldError(f"bad type: {kind} (known: {known}, or the dotted path of a class)", ["type"])
    try:
        cls = classes.locate(path)
    except Exception as error:  # whatever importing a user's module raises
        raise FieldError(f"bad type: {kind}: {error}", ["type"]) from error
    if not (isinstance(cls, type) and callable(getattr(cls, "from_config", None)) and hasattr(cls, "after")):
        raise FieldError(f"type {kind} not a schedule: a class with from_config and after", ["type"])
    config = {str(k): v for k, v in fields.mapping.items() if k not in ("type", "enabled", "args")}
    inner = classes.called(kind, cls.from_config, dict(config))  # type: ignore[attr-defined]
    return Own(kind, inner, enabled, args, config)


def _parse_stop(fields: _Fields) -> Stop:
    kind = fields.take("type", str) if fields.has("type") else None
    stop: Stop
    if kind == "duration":
        stop = StopDuration(fields.take("duration", times.parse_duration))
        if stop.duration < 0:
            raise FieldError(f"stops before it starts: {stop.duration} s", ["duration"])
    elif kind == "daytime":
        stop = StopDaytime(fields.take("daytime", times.parse_daytime), fields.take("tz", times.zone))
    elif kind is None:
        raise missing("type", fields.mapping, _KNOWN, "missing type")
    else:
        raise FieldError(f"bad type: {kind} (known: duration, daytime)", ["type"])
    fields.done()
    return stop


# -- converters: raise ValueError, or FieldError where the place lies deeper -------------------------


def _edge(value: Any, calendars: Calendars) -> Edge:
    if not isinstance(value, Mapping):
        return Edge(times.parse_daytime(value))
    fields = _Fields(value, calendars)
    edge = Edge(fields.take("daytime", times.parse_daytime), fields.shift())
    fields.done()
    return edge


def _list(convert: Callable[[Any], float]) -> Callable[[Any], list[float]]:
    """A converter of one value, or of a list that is not empty."""

    def converted(value: Any) -> list[float]:
        if not isinstance(value, list | tuple):
            return [convert(value)]
        if not value:
            raise ValueError("an empty list never fires: give at least one time, or leave the schedule out")
        found = []
        for index, item in enumerate(value):
            try:
                found.append(convert(item))
            except ValueError as error:
                raise FieldError(str(error), [index]) from None
        return found

    return converted


def _instant(value: Any) -> float:
    t = times.parse_time(value)
    if not times.FIRST <= t <= times.LAST:
        raise ValueError(f"time out of range: {value}")
    return t


def _calendar_name(value: Any) -> str:
    return "all" if value is None else str(value)


def _whole(value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or not re.fullmatch(r"[+-]?[0-9]{1,9}", str(value))
    ):
        raise ValueError(f"not a whole number of days: {value!r}")
    return int(value)


def _one_of(*known: str) -> Callable[[Any], str]:
    def converted(value: Any) -> str:
        if value not in known:
            raise ValueError(f"unknown: {value} (known: {', '.join(known)})")
        return str(value)

    return converted


def _enabled(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else value
    if word in _YES or word in _NO:
        return word in _YES
    raise ValueError(f"enabled must be true or false: {value!r}")


def _args(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"args must be a mapping of names to values: {value!r}")
    return {str(name): str(item) for name, item in value.items()}
