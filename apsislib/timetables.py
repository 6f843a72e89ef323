"""The kinds of schedules: each gives its occurrences from any instant on, ascending and lazily.

All are pure and immutable. `after` begins its work near the instant asked for, never at the
schedule's beginning, and ends instead of searching without end. schedules.py reads them from mappings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any

from apsislib import cron as crons
from apsislib import times
from apsislib.calendars import Calendar, OutOfRange
from apsislib.runs import Args, Occurrence
from apsislib.times import DAY, EPOCH, Fold, Gap, Zone, format_daytime, format_instant, placed

# From 0001-01-01, as existing jobs expect: a weekly interval fires on Mondays, 00:00 UTC.
YEAR_ONE = (1 - EPOCH) * DAY
SHORTEST = 0.001  # seconds; below, instants that differ would become the same float
# Dates in succession without a window (stop before start) after which a daily-interval counts as
# having ended: 27 years of weekdays, 40 ms of search.
EMPTY_DATES = 10_000
WIDEST = 366  # days between start and stop of a daily-interval: how many windows can be open at once


# -- what the schedules of wall times share --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wall:
    """Where and on which dates wall times are read."""

    tz: Zone
    calendar: Calendar
    calendar_name: str  # as given back by the API; `calendar.name` is what args show
    gap: Gap = "shift"
    fold: Fold = "first"

    def today(self, t: float) -> int:
        return times.local(t, self.tz)[0].toordinal()

    def givers(self) -> dict[str, Giver]:
        return {"calendar": _always(self.calendar.name), "tz": _always(self.tz.key)}

    def policy(self) -> dict[str, str]:
        """The JSON of what differs from the default."""
        chosen = {"dst_gap": str(self.gap), "dst_fold": str(self.fold)}
        return {key: value for key, value in chosen.items() if value not in ("shift", "first")}

    def __str__(self) -> str:
        return self.tz.key if self.calendar_name == "all days" else f"{self.tz.key}, {self.calendar_name}"

    def clock(self) -> str:
        """Whose clocks are meant, for people: `London time` for Europe/London."""
        name = self.tz.key.rpartition("/")[2].replace("_", " ")
        return f"{name} time" if "/" in self.tz.key and not self.tz.key.startswith("Etc/") else self.tz.key

    def dates(self) -> str:
        """On which dates, for people: `weekdays`, `Tue and Thu`, `dates of holidays-uk`."""
        days = tuple(sorted(self.calendar.weekdays))
        if not days:  # of a file
            return f"dates of {self.calendar_name}"
        known = {tuple(range(7)): "every day", tuple(range(5)): "weekdays", (5, 6): "weekends"}
        return known.get(days) or crons.day_names(days)

    def note(self, item: Item) -> str:
        """Of an instant that was moved."""
        t, _, day, seconds, _ = item
        shown = format_daytime(times.local(t, self.tz)[1])
        return (
            f"{format_daytime(seconds)} does not exist on {_iso(day)} in {self.tz.key}, "
            f"where clocks are put forward: moved to {shown}"
        )


@dataclass(frozen=True, slots=True)
class Shift:
    """From a date of the calendar to the date meant: first along the calendar, then by days."""

    date_shift: int = 0
    cal_shift: int = 0

    def __str__(self) -> str:
        cal = f" {self.cal_shift:+d} cal days" if self.cal_shift else ""
        return f"{cal} {self.date_shift:+d} days" if self.date_shift else cal

    def to_json(self) -> dict[str, int]:
        return {"date_shift": self.date_shift, "cal_shift": self.cal_shift}

    def of(self, calendar: Calendar, nominal: int) -> int:
        """Raises OutOfRange."""
        return calendar.shifted(nominal, self.cal_shift) + self.date_shift

    def dates(self, calendar: Calendar, start: int) -> Iterator[tuple[int, int]]:
        """Pairs of (date of the calendar, date meant), the latter ascending from `start`; ordinals."""
        base = min(max(start - self.date_shift, calendar.first), calendar.stop)
        rank = max(calendar.rank(base), self.cal_shift, 0)
        try:
            nominal, meant = calendar.member(rank - self.cal_shift), calendar.member(rank)
        except OutOfRange:
            return
        pairs: Iterable[tuple[int, int]]
        if nominal == meant:
            pairs = ((n, n) for n in calendar.days(nominal))
        else:
            pairs = zip(calendar.days(nominal), calendar.days(meant), strict=False)
        last = date.max.toordinal() - 2
        for nominal, meant in pairs:
            if meant + self.date_shift > last:
                return
            yield nominal, meant + self.date_shift


Item = tuple[float, int, int, float, float]  # instant, nominal date, date, wall time, how far moved


def _instants(
    start: float, dates: Iterable[tuple[int, int]], walls: tuple[float, ...], zone: Zone, gap: Gap, fold: Fold
) -> Iterator[Item]:
    """The instants of `walls` on `dates` from `start` on, ascending. Ordinals and seconds in, `Item`s out."""
    # On days on which clocks are moved the order of wall times is not that of instants; what they
    # give is held back until a day without such a move shows that nothing earlier can follow.
    held: list[Item] = []
    for nominal, day in dates:
        offset = times.steady(zone, day)
        if offset is None:
            for wall in walls:
                for t, moved in placed(day, wall, zone, gap, fold):
                    heappush(held, (t, nominal, day, wall, moved))
            continue
        midnight = (day - EPOCH) * DAY - offset
        # To the day's first wall time that can matter; one more, in case the subtraction was rounded.
        first = max(0, bisect_left(walls, start - midnight) - 1) if midnight < start else 0
        for wall in walls[first:]:
            t = midnight + wall
            while held and held[0][0] <= t:
                if held[0][0] >= start:
                    yield held[0]
                heappop(held)
            if t >= start:
                yield t, nominal, day, wall, 0.0
    while held:
        item = heappop(held)
        if item[0] >= start:
            yield item


@lru_cache(maxsize=1024)  # schedules fire on the same days
def _iso(ordinal: int) -> str:
    return date.fromordinal(ordinal).isoformat()


# -- what occurrences give as args -----------------------------------------------------------------

# One value, of the occurrence's Item or the first few of its places.
Giver = Callable[[Any], str]


class Provided(Mapping[str, str]):
    """The args of an occurrence, each made when it is asked for: jobs have params for few of them."""

    __slots__ = ("_givers", "_item")

    def __init__(self, givers: Mapping[str, Giver], item: tuple[Any, ...]) -> None:
        self._givers = givers
        self._item = item

    def __getitem__(self, name: str) -> str:
        return self._givers[name](self._item)

    def __contains__(self, name: object) -> bool:
        return name in self._givers

    def __iter__(self) -> Iterator[str]:
        return iter(self._givers)

    def __len__(self) -> int:
        return len(self._givers)

    def __repr__(self) -> str:
        return repr(dict(self))


def _always(value: str) -> Giver:
    return lambda item: value


def _time(item: Item) -> str:
    return format_instant(item[0])


def _date(item: Item) -> str:
    return _iso(item[1])


def _daytime(item: Item) -> str:
    return format_daytime(item[3])


# -- the schedules ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Common:
    enabled: bool = True
    args: Args = field(default_factory=dict)

    def after(self, start: float) -> Iterator[Occurrence]:
        start = max(start, times.FIRST)
        return self._from(start) if start <= times.LAST else iter(())

    def _from(self, start: float) -> Iterator[Occurrence]:
        """`after`, for an instant at which every zone has a date."""
        raise NotImplementedError

    def _givers(self, **provided: Giver) -> dict[str, Giver]:
        """Explicit args go over provided ones; `schedule_time` over both."""
        explicit = {name: _always(value) for name, value in self.args.items()}
        return {"time": _time, **provided, **explicit, "schedule_time": _time}

    def _json(self, kind: str, fields: Mapping[str, Any], text: str) -> dict[str, Any]:
        return {"type": kind, "enabled": self.enabled, **fields, "args": dict(self.args), "str": text}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interval(_Common):
    """Every `interval` seconds, counted from year 1 in UTC; knows no DST."""

    interval: float
    phase: float = 0.0

    def _from(self, start: float) -> Iterator[Occurrence]:
        # Whole numbers over one denominator: 0.7 s is seven tenths, and nothing accumulates.
        interval, phase = Fraction(repr(self.interval)), Fraction(repr(self.phase))
        whole = interval.denominator * phase.denominator
        step, offset = int(interval * whole), int(phase * whole) + YEAR_ONE * whole
        # One too early, in case the instant was rounded up when it became a float.
        at = offset + int((Fraction(start) * whole - offset) // step) * step
        givers = self._givers(
            date=lambda item: format_instant(item[0])[:10],
            daytime=lambda item: format_instant(item[0])[11:-6],
        )
        while (t := at / whole) <= times.LAST:
            if t >= start:
                yield Occurrence(t, Provided(givers, (t,)))
            at += step

    def to_json(self) -> dict[str, Any]:
        return self._json("interval", {"interval": self.interval, "phase": self.phase}, str(self))

    def __str__(self) -> str:
        args = ", ".join(f"{k}={v}" for k, v in self.args.items())
        return f"({args}) every {self.interval} sec" if args else f"every {self.interval} sec"

    def words(self) -> str:
        phase = f", {times.format_duration(self.phase)} later" if self.phase else ""
        return f"every {times.format_duration(self.interval)}{phase}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Daily(_Common):
    """At wall times, on the dates of a calendar or on dates counted from them."""

    daytimes: tuple[float, ...]  # seconds after midnight, ascending; one twice is two occurrences
    wall: Wall
    shift: Shift = Shift()

    def _from(self, start: float) -> Iterator[Occurrence]:
        wall = self.wall
        givers = self._givers(date=_date, daytime=_daytime, **wall.givers())
        # A day early: a time may have been moved out of a gap past midnight.
        dates = self.shift.dates(wall.calendar, wall.today(start) - 1)
        for item in _instants(start, dates, self.daytimes, wall.tz, wall.gap, wall.fold):
            yield Occurrence(item[0], Provided(givers, item), None, wall.note(item) if item[4] else None)

    def to_json(self) -> dict[str, Any]:
        fields = {
            "tz": self.wall.tz.key,
            "calendar": self.wall.calendar_name,
            "daytime": [format_daytime(seconds) for seconds in self.daytimes],
            **self.shift.to_json(),
            **self.wall.policy(),
        }
        return self._json("daily", fields, str(self))

    def __str__(self) -> str:
        daytimes = ", ".join(format_daytime(seconds) for seconds in self.daytimes)
        return f"{self.wall.calendar_name} at {daytimes} {self.wall.tz.key}{self.shift}"

    def words(self) -> str:
        daytimes = " and ".join(_short(seconds) for seconds in self.daytimes)
        shift = f", moved by{self.shift}" if str(self.shift) else ""
        return f"{self.wall.dates()} at {daytimes} {self.wall.clock()}{shift}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cron(_Common):
    """At the wall times and dates of a cron expression."""

    cron: crons.Cron
    wall: Wall

    def _from(self, start: float) -> Iterator[Occurrence]:
        wall = self.wall
        givers = self._givers(date=_date, daytime=_daytime, **wall.givers())
        # What follows physical time fires whenever clocks show it: that is, in each pass of a fold
        # and in no gap.
        gap: Gap = "skip" if self.cron.physical else wall.gap
        fold: Fold = "both" if self.cron.physical else wall.fold
        last = date.max.toordinal() - 2
        days = ((n, n) for n in self.cron.days(wall.today(start) - 1, wall.calendar) if n <= last)
        for item in _instants(start, days, self.cron.daytimes, wall.tz, gap, fold):
            yield Occurrence(item[0], Provided(givers, item), None, wall.note(item) if item[4] else None)

    def to_json(self) -> dict[str, Any]:
        fields = {
            "cron": self.cron.text,
            "tz": self.wall.tz.key,
            "calendar": self.wall.calendar_name,
            **self.wall.policy(),
        }
        return self._json("cron", fields, str(self))

    def __str__(self) -> str:
        return f"cron {self.cron.text} {self.wall}"

    def words(self) -> str:
        only = "" if self.wall.calendar_name == "all days" else f", only {self.wall.dates()}"
        return f"{self.cron.words()}, {self.wall.clock()}{only}"


@dataclass(frozen=True, slots=True)
class Edge:
    """One end of a daily-interval's window."""

    daytime: float  # seconds after midnight
    shift: Shift = Shift()

    def to_json(self) -> str | dict[str, Any]:
        text = format_daytime(self.daytime)
        return text if self.shift == Shift() else {"daytime": text, **self.shift.to_json()}

    def __str__(self) -> str:
        return f"{format_daytime(self.daytime)}{self.shift}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DailyInterval(_Common):
    """Every `interval` seconds from one wall time up to another (exclusive), on a calendar's dates.

    Steps are physical: a fold within the window is longer, a gap shorter. Where start or stop lie
    in a fold and `dst_fold` is `both`, the window reaches from the first start to the second stop.
    """

    start: Edge
    stop: Edge
    interval: float
    wall: Wall

    def _from(self, start: float) -> Iterator[Occurrence]:
        wall, tz = self.wall, self.wall.tz
        givers = self._givers(
            date=_date,
            sched_date=lambda item: times.local(item[0], tz)[0].isoformat(),
            daytime=lambda item: format_daytime(times.local(item[0], tz)[1]),
            **wall.givers(),
        )
        # The windows under way: next instant, nominal date, its number, start, stop, note.
        open_: list[tuple[float, int, int, float, float, str | None]] = []
        windows = self._windows(wall.today(start) - 1)
        coming = next(windows, None)
        while open_ or coming:
            # No zone is a day ahead of UTC: a window of a later day can't begin before this.
            while coming and (not open_ or (coming[1] - EPOCH - 1) * DAY <= open_[0][0]):
                nominal, _, first, last, note = coming
                k = max(0, int((start - first) // self.interval))
                while (t := first + k * self.interval) < start:
                    k += 1
                if t < last:
                    heappush(open_, (t, nominal, k, first, last, note))
                coming = next(windows, None)
            if not open_:
                return
            t, nominal, k, first, last, note = heappop(open_)
            yield Occurrence(t, Provided(givers, (t, nominal)), None, None if k else note)
            following = first + (k + 1) * self.interval
            if following < last:
                heappush(open_, (following, nominal, k + 1, first, last, note))

    def _windows(self, today: int) -> Iterator[tuple[int, int, float, float, str | None]]:
        """Nominal date, date of the start, start, stop, note; from the first that may last until `today`."""
        wall, empty = self.wall, 0
        for nominal, stop_day in self.stop.shift.dates(wall.calendar, today):
            if empty >= EMPTY_DATES:
                return
            empty += 1
            try:
                start_day = self.start.shift.of(wall.calendar, nominal)
            except OutOfRange:
                continue
            if not 2 < start_day < date.max.toordinal() - 2:
                continue
            starts = placed(start_day, self.start.daytime, wall.tz, wall.gap, wall.fold)
            stops = placed(stop_day, self.stop.daytime, wall.tz, wall.gap, wall.fold)
            if starts and stops and starts[0][0] < stops[-1][0]:
                empty = 0
                first, moved = starts[0]
                note = wall.note((first, nominal, start_day, self.start.daytime, moved)) if moved else None
                yield nominal, start_day, first, stops[-1][0], note

    def to_json(self) -> dict[str, Any]:
        fields = {
            "tz": self.wall.tz.key,
            "calendar": self.wall.calendar_name,
            "start": self.start.to_json(),
            "stop": self.stop.to_json(),
            "interval": self.interval,
            **self.wall.policy(),
        }
        return self._json("daily-interval", fields, str(self))

    def __str__(self) -> str:
        wall = self.wall
        return (
            f"{wall.calendar_name} every {self.interval} sec from {self.start} to {self.stop} {wall.tz.key}"
        )

    def words(self) -> str:
        start, stop = (
            f"{_short(edge.daytime)}{' the next day' if edge.shift == Shift(1) else edge.shift}"
            for edge in (self.start, self.stop)
        )
        every = f"every {times.format_duration(self.interval)}"
        return f"{self.wall.dates()}, {every} from {start} to {stop} {self.wall.clock()}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explicit(_Common):
    """At listed instants, ascending."""

    times: tuple[float, ...]

    def _from(self, start: float) -> Iterator[Occurrence]:
        givers = self._givers()
        return (Occurrence(t, Provided(givers, (t,))) for t in self.times[bisect_left(self.times, start) :])

    def to_json(self) -> dict[str, Any]:
        return self._json("explicit", {"times": [format_instant(t) for t in self.times]}, str(self))

    def __str__(self) -> str:
        return ", ".join(format_instant(t) for t in self.times)

    def words(self) -> str:
        return f"at {self}"


def _short(seconds: float) -> str:
    """`09:30` for people; seconds only if there are any."""
    return format_daytime(seconds).removesuffix(":00")
