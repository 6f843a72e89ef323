"""The dates, daytimes and times that templates compute with.

What existing job files write, e.g. `{{ Date(date) + 1 }}`, is the calculus of the `ora` library;
these are the parts of it that job files need, on the standard library. All objects are immutable and
hashable. Errors are ValueError for what can't be read, TypeError for what makes no sense together,
OverflowError for what leaves the years 1 to 9999, and NonexistentTime.
"""

from __future__ import annotations

import datetime
import re
from enum import IntEnum
from functools import total_ordering
from typing import Any, NamedTuple, NoReturn

from apsislib import times
from apsislib.dateformat import DATE_ESCAPES, DAYTIME_ESCAPES, TIME_ESCAPES, Parts, exact, formatted

DAY = 86_400  # seconds

_ISO_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})|([0-9]{4})([0-9]{2})([0-9]{2})")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class NonexistentTime(RuntimeError):
    """Clocks of the zone never showed this: it lies where they were set forward."""


class _Short(IntEnum):
    """A number that is shown by its name."""

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else self.name


class Month(_Short):
    Jan, Feb, Mar, Apr, May, Jun, Jul, Aug, Sep, Oct, Nov, Dec = range(1, 13)


class Weekday(_Short):
    Mon, Tue, Wed, Thu, Fri, Sat, Sun = range(7)


class _Value:
    """One value in one slot, never changed; compared with its own kind only."""

    __slots__ = ("_value",)
    _value: Any

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} can't be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} can't be changed")

    @classmethod
    def _of(cls, value: Any) -> Any:
        made = object.__new__(cls)
        object.__setattr__(made, "_value", value)
        return made

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bool(self._value == other._value)

    def __lt__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(self._value < other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return type(self), (str(self),)


# -- dates -----------------------------------------------------------------------------------------


@total_ordering
class Date(_Value):
    """A day of the calendar, from `2024-01-31`, `20240131`, (2024, 1, 31), a `datetime.date` or LocalTime."""

    __slots__ = ()
    _value: datetime.date

    def __new__(cls, *args: Any) -> Date:
        value = args[0] if len(args) == 1 else args
        if isinstance(value, Date):
            return value
        if isinstance(value, str):
            found = _ISO_DATE.fullmatch(value)
            parts = [int(p) for p in found.groups() if p] if found else []
            return _checked_date(parts, f"can't parse as date: {value!r}")
        if isinstance(value, datetime.date):  # also a datetime
            return cls._made(datetime.date(value.year, value.month, value.day))
        if isinstance(value, int) and not isinstance(value, bool):
            return cls.from_ymdi(value)
        if isinstance(value, tuple | list):
            if len(value) == 2 and isinstance(value[0], Date) and isinstance(value[1], Daytime):
                return value[0]
            if len(value) == 3:
                return _checked_date(value, f"can't convert to a date: {tuple(value)}")
        raise TypeError(f"can't convert to a date: {value!r}")

    @classmethod
    def _made(cls, value: datetime.date) -> Date:
        made: Date = cls._of(value)
        return made

    @classmethod
    def from_ymd(cls, year: Any, month: Any = None, day: Any = None) -> Date:
        return cls(year, month, day) if month is not None else cls(year)

    @classmethod
    def from_ymdi(cls, ymdi: int) -> Date:
        """The date of a number such as 20240131."""
        parts = (ymdi // 10_000, ymdi // 100 % 100, ymdi % 100)
        return _checked_date(parts, f"can't convert to a date: {ymdi}")

    @classmethod
    def from_ordinal_date(cls, year: int, ordinal: int) -> Date:
        """The `ordinal`-th day of `year`, from 1."""
        first = Date(year, 1, 1)
        found = first + (ordinal - 1)
        if found.year != year:
            raise ValueError(f"invalid date: day {ordinal} of {year}")
        return found

    @classmethod
    def from_week_date(cls, week_year: int, week: int, weekday: int) -> Date:
        """A day of an ISO week; Monday is 0."""
        try:
            return cls._made(datetime.date.fromisocalendar(week_year, week, int(weekday) + 1))
        except ValueError:
            raise ValueError(f"invalid date: week {week} of {week_year}, weekday {weekday}") from None

    @property
    def std(self) -> datetime.date:
        return self._value

    @property
    def year(self) -> int:
        return self._value.year

    @property
    def month(self) -> Month:
        return Month(self._value.month)

    @property
    def day(self) -> int:
        return self._value.day

    @property
    def weekday(self) -> Weekday:
        return Weekday(self._value.weekday())

    @property
    def ordinal(self) -> int:
        """The day of the year, from 1."""
        return self._value.toordinal() - datetime.date(self._value.year, 1, 1).toordinal() + 1

    @property
    def week(self) -> int:
        """The ISO week of `week_year`."""
        return self._value.isocalendar().week

    @property
    def week_year(self) -> int:
        return self._value.isocalendar().year

    @property
    def ymdi(self) -> int:
        """20240131 for 2024-01-31."""
        return (self._value.year * 100 + self._value.month) * 100 + self._value.day

    @property
    def datenum(self) -> int:
        """Days since 1 January of the year 1."""
        return self._value.toordinal() - 1

    def __add__(self, days: Any) -> Date:
        # A text too: args are texts, and `Date(date) + days` has always worked.
        if not isinstance(days, int | float | str):
            return NotImplemented
        count = _whole(days)
        try:
            return self._made(datetime.date.fromordinal(self._value.toordinal() + count))
        except (ValueError, OverflowError):
            raise OverflowError(f"date not in range: {self} + {days} days") from None

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        """Days between two dates, or the date that many days before."""
        if isinstance(other, Date):
            return self._value.toordinal() - other._value.toordinal()
        return self + -_whole(other) if isinstance(other, int | float | str) else NotImplemented

    def __str__(self) -> str:
        return self._value.isoformat()

    def __format__(self, spec: str) -> str:
        return formatted(spec, DATE_ESCAPES, "date", Parts(self)) if spec else str(self)


def _checked_date(parts: Any, wrong: str) -> Date:
    try:
        year, month, day = (int(p) for p in parts)
        return Date._made(datetime.date(year, month, day))
    except (ValueError, TypeError, OverflowError):
        raise ValueError(wrong) from None


def _whole(days: int | float | str) -> int:
    try:
        return int(days)
    except (ValueError, OverflowError):
        raise ValueError(f"not a number of days: {days!r}") from None


# -- daytimes --------------------------------------------------------------------------------------


@total_ordering
class Daytime(_Value):
    """A time of day, from `9:30:00`, seconds after midnight, (9, 30, 0), a `datetime.time` or LocalTime."""

    __slots__ = ()
    _value: float

    def __new__(cls, *args: Any) -> Daytime:
        value = args[0] if len(args) == 1 else args
        if isinstance(value, Daytime):
            return value
        if isinstance(value, datetime.time):
            value = (value.hour, value.minute, value.second + value.microsecond / 1e6)
        if isinstance(value, tuple | list):
            if len(value) == 2 and isinstance(value[1], Daytime):
                return value[1]
            if len(value) in (2, 3):
                hour, minute, second = (*value, 0)[:3]
                if not (0 <= hour < 24 and 0 <= minute < 60 and 0 <= second < 60):
                    raise ValueError(f"can't convert to a daytime: {tuple(value)}")
                value = int(hour) * 3600 + int(minute) * 60 + second
        if isinstance(value, tuple | list) or value is None:
            raise TypeError(f"can't convert to a daytime: {value!r}")
        made: Daytime = cls._of(times.parse_daytime(value))
        return made

    @classmethod
    def from_hms(cls, hour: int, minute: int, second: float = 0) -> Daytime:
        return cls(hour, minute, second)

    @classmethod
    def from_ssm(cls, ssm: float) -> Daytime:
        return cls(float(ssm))

    @property
    def ssm(self) -> float:
        """Seconds since midnight."""
        return self._value

    @property
    def hour(self) -> int:
        return int(self._value) // 3600

    @property
    def minute(self) -> int:
        return int(self._value) // 60 % 60

    @property
    def second(self) -> float:
        return float(exact(self._value) % 60)

    def __add__(self, seconds: Any) -> Daytime:
        """That many seconds later, around midnight."""
        if not isinstance(seconds, int | float | str):
            return NotImplemented
        # Decimal: 09:30:00.1 + 0.2 is 09:30:00.3.
        later = float((exact(self._value) + exact(_seconds(seconds))) % DAY)
        return Daytime((later + DAY if later < 0 else later) % DAY)

    __radd__ = __add__

    def __sub__(self, seconds: Any) -> Daytime:
        return self + -_seconds(seconds) if isinstance(seconds, int | float | str) else NotImplemented

    def __str__(self) -> str:
        return times.format_daytime(self._value)

    def __format__(self, spec: str) -> str:
        return formatted(spec, DAYTIME_ESCAPES, "daytime", Parts(None, self)) if spec else str(self)


def _seconds(value: int | float | str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        raise ValueError(f"not a number of seconds: {value!r}") from None
    if abs(seconds) > 1e12:
        raise OverflowError(f"time out of range: {value} seconds")
    if seconds != seconds:
        raise ValueError("not a number of seconds: nan")
    return seconds


# -- times -----------------------------------------------------------------------------------------


class TimeZone(_Value):
    """A time zone, by its IANA name."""

    __slots__ = ()
    _value: str

    def __new__(cls, name: str | TimeZone) -> TimeZone:
        if isinstance(name, TimeZone):
            return name
        made: TimeZone = cls._of(times.zone(name).key)
        return made

    @property
    def name(self) -> str:
        return self._value

    def __str__(self) -> str:
        return self._value


class LocalTime(NamedTuple):
    """What clocks of some zone show."""

    date: Date
    daytime: Daytime

    def __str__(self) -> str:
        return f"{self.date}T{self.daytime}"

    def __getattr__(self, name: str) -> Any:
        """The parts of both: `year`, `weekday`, `hour` and so on."""
        if name in _OF_DATE:
            return getattr(self.date, name)
        if name in _OF_DAYTIME:
            return getattr(self.daytime, name)
        raise AttributeError(f"a LocalTime has no {name!r}")


_OF_DATE = frozenset(("year", "month", "day", "weekday", "ordinal", "week", "week_year", "ymdi", "datenum"))
_OF_DAYTIME = frozenset(("hour", "minute", "second", "ssm"))


@total_ordering
class Time(_Value):
    """An instant.

    From ISO text with seconds and zone, an aware `datetime`, (year, month, day, hour, minute, second,
    zone) or (date, daytime, zone).
    """

    __slots__ = ()
    _value: float  # seconds since the epoch

    def __new__(cls, *args: Any) -> Time:
        value = args[0] if len(args) == 1 else args
        if isinstance(value, Time):
            return value
        if isinstance(value, tuple | list):
            if len(value) == 2:
                return from_local(*value)
            if len(value) == 3:
                return from_local(value[:2], value[2])
            if len(value) in (7, 8):
                return from_local((Date(*value[:3]), Daytime(*value[3:6])), *value[6:])
        if isinstance(value, str | datetime.datetime):
            return cls._at(times.parse_time(value))
        raise TypeError(f"can't convert to a time: {value!r}")

    @classmethod
    def _at(cls, instant: float) -> Time:
        if not times.FIRST <= instant <= times.LAST:
            raise OverflowError(f"time out of range: {instant}")
        made: Time = cls._of(instant)
        return made

    @property
    def std(self) -> datetime.datetime:
        """In UTC, truncated to microseconds."""
        return _EPOCH + datetime.timedelta(microseconds=int(exact(self._value) * 1_000_000 // 1))

    def __add__(self, seconds: Any) -> Time:
        return (
            self._at(self._value + _seconds(seconds))
            if isinstance(seconds, int | float | str)
            else NotImplemented
        )

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        """Seconds between two times, or the time that many seconds before."""
        if isinstance(other, Time):
            return self._value - other._value
        return self + -_seconds(other) if isinstance(other, int | float | str) else NotImplemented

    def __str__(self) -> str:
        return times.format_instant(self._value)

    def __format__(self, spec: str) -> str:
        """As `spec` says, in UTC; or in the zone that `spec` names after its last `@`."""
        if not spec:
            return str(self)
        pattern, at, zone = spec.rpartition("@")
        local = to_local(self, zone or "UTC" if at else "UTC")
        utc = to_local(self, "UTC")
        offset = (local.date - utc.date) * DAY + int(local.ssm) - int(utc.ssm)
        parts = Parts(local.date, local.daytime, offset)
        return formatted((pattern if at else spec) or "%i", TIME_ESCAPES, "time", parts)


def to_local(time: Any, tz: str | TimeZone) -> LocalTime:
    """The date and daytime that clocks in `tz` show at `time`."""
    day, seconds = times.local(Time(time)._value, times.zone(TimeZone(tz).name))
    return LocalTime(Date(day), Daytime(seconds))


def from_local(local: Any, tz: str | TimeZone, first: bool = True) -> Time:
    """When clocks in `tz` show (date, daytime); of two such instants the first, or the second.

    Raises NonexistentTime where they never do.
    """
    if not isinstance(local, tuple | list) or len(local) != 2:
        raise TypeError(f"not a pair of date and daytime: {local!r}")
    date, daytime, zone = Date(local[0]), Daytime(local[1]), TimeZone(tz)
    fold: times.Fold = "first" if first else "second"
    found = times.at_wall(date.std, daytime.ssm, times.zone(zone.name), "skip", fold)
    if not found:
        raise NonexistentTime(f"local time does not exist: {date}T{daytime} in {zone}")
    return Time._at(found[0])


# -- calendars -------------------------------------------------------------------------------------


class Calendar:
    """A calendar of apsislib.calendars that takes whatever Date takes, and gives a Date."""

    __slots__ = ("_days",)

    def __init__(self, days: Any) -> None:
        self._days = days

    @property
    def name(self) -> str:
        return str(self._days.name)

    @property
    def range(self) -> tuple[Date, Date]:
        first, stop = self._days.range
        return Date(first), Date(stop)

    def contains(self, day: Any) -> bool:
        return bool(self._days.contains(Date(day).std))

    __contains__ = contains

    def shift(self, day: Any, count: int | str) -> Date:
        """The count-th date of the calendar after `day` (before, if negative)."""
        return Date(self._days.shift(Date(day).std, int(count)))

    def before(self, day: Any) -> Date:
        """`day` itself if the calendar has it, else the last date before."""
        return Date(self._days.before(Date(day).std))

    def after(self, day: Any) -> Date:
        """`day` itself if the calendar has it, else the next date."""
        return Date(self._days.after(Date(day).std))

    def __invert__(self) -> Calendar:
        return Calendar(~self._days)

    def __and__(self, other: Calendar) -> Calendar:
        return Calendar(self._days & other._days)

    def __or__(self, other: Calendar) -> Calendar:
        return Calendar(self._days | other._days)

    def __xor__(self, other: Calendar) -> Calendar:
        return Calendar(self._days ^ other._days)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calendar) and self._days is other._days

    def __hash__(self) -> int:
        return hash(id(self._days))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Calendar {self._days.name}>"
