"""Named sets of dates: `all`, `none`, weekdays such as `Mon-Fri`, and files that list dates."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path, PurePosixPath

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_FIRST = date.min.toordinal()
_STOP = date.max.toordinal()  # not a member: `range` must be able to name it
_ITEM = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|[0-6])"
_EXPRESSION = re.compile(rf"(?:{_ITEM}(?:-{_ITEM})?)?(?:,(?:{_ITEM}(?:-{_ITEM})?)?)*")
_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})|([0-9]{4})([0-9]{2})([0-9]{2})")
_TOO_LARGE = 16 * 2**20  # bytes; a list of every day of a century has 400 kB


class OutOfRange(ValueError):
    """A date lies outside the calendar, or the search for one led outside."""


class Calendar:
    """A set of dates within [first, stop): some weekdays, save for listed exceptions.

    One form serves every calendar, and is closed under `~ & | ^`: a file is an exception list over
    no weekday. Immutable. Equality is identity. Dates only; the ordinals of `date.toordinal` are
    what schedules compute with, through `days`.
    """

    def __init__(
        self,
        name: str,
        weekdays: Iterable[int] = (),
        exceptions: Iterable[int] = (),
        first: int = _FIRST,
        stop: int = _STOP,
    ) -> None:
        self.name = name
        self.weekdays = frozenset(weekdays)  # 0: Monday
        flipped = sorted(exceptions)  # ordinals whose membership is not what the weekday says
        self._flipped = frozenset(flipped)
        self._added = tuple(n for n in flipped if (n - 1) % 7 not in self.weekdays)
        self._removed = tuple(n for n in flipped if (n - 1) % 7 in self.weekdays)
        # How many of the first k days of a week (Monday first) are members.
        self._upto = tuple(sum(day in self.weekdays for day in range(k)) for k in range(8))
        self.first = first
        self.stop = stop

    def __repr__(self) -> str:
        return f"<Calendar {self.name}>"

    @property
    def range(self) -> tuple[date, date]:
        """First date, and the date after the last: the calendar says nothing outside."""
        return date.fromordinal(self.first), date.fromordinal(self.stop)

    @property
    def last_exception(self) -> int:
        """The ordinal after which only weekdays decide."""
        return max((*self._added[-1:], *self._removed[-1:]), default=self.first)

    def contains(self, day: date) -> bool:
        """Raises OutOfRange."""
        return self.has(self._within(day))

    __contains__ = contains

    def shift(self, day: date, count: int) -> date:
        """The count-th member after `day` (before it, if negative); `day` itself for 0. Raises OutOfRange."""
        return day if count == 0 else date.fromordinal(self.shifted(self._within(day), count))

    def before(self, day: date) -> date:
        """`day` if it is a member, else the last member before it. Raises OutOfRange."""
        n = self._within(day)
        return day if self.has(n) else date.fromordinal(self.shifted(n, -1))

    def after(self, day: date) -> date:
        """`day` if it is a member, else the next member. Raises OutOfRange."""
        n = self._within(day)
        return day if self.has(n) else date.fromordinal(self.shifted(n, 1))

    # -- on ordinals, for schedules

    def days(self, start: int) -> Iterator[int]:
        """The ordinals of the members from `start` on, ascending; ends with the calendar."""
        start = max(start, self.first)
        if not self.weekdays:
            return iter(self._added[bisect_left(self._added, start) :])
        if not self._flipped and len(self.weekdays) == 7:
            return iter(range(start, self.stop))
        return (n for n in range(start, self.stop) if self.has(n))

    def has(self, n: int) -> bool:
        """`contains` on ordinals, for n in the range."""
        return ((n - 1) % 7 in self.weekdays) != (n in self._flipped)

    def rank(self, n: int) -> int:
        """How many members come before ordinal n, for n in the range or at its end."""
        days = self._weekday_rank(n) - self._weekday_rank(self.first)
        return days + bisect_left(self._added, n) - bisect_left(self._removed, n)

    def member(self, rank: int) -> int:
        """The ordinal of the member that has `rank` members before it. Raises OutOfRange."""
        low, high = self.first, self.stop
        if not 0 <= rank < self.rank(high):
            raise OutOfRange(
                f"calendar {self.name} has no such date within {self.range[0]} to {self.range[1]}"
            )
        if not self.weekdays:
            return self._added[rank]
        while high - low > 1:  # rank(low) <= rank < rank(high)
            middle = (low + high) // 2
            low, high = (middle, high) if self.rank(middle) <= rank else (low, middle)
        return low

    def shifted(self, n: int, count: int) -> int:
        """`shift` on ordinals, for n in the range."""
        if count == 0:
            return n
        return self.member(self.rank(n) + count - (count > 0 and not self.has(n)))

    def _within(self, day: date) -> int:
        n = day.toordinal()
        if not self.first <= n < self.stop:
            raise OutOfRange(f"calendar {self.name} says nothing about {day}")
        return n

    def _weekday_rank(self, n: int) -> int:
        return (n - 1) // 7 * self._upto[7] + self._upto[(n - 1) % 7]

    # -- sets

    def __invert__(self) -> Calendar:
        return Calendar(f"~{self.name}", set(range(7)) - self.weekdays, self._flipped, self.first, self.stop)

    def __and__(self, other: Calendar) -> Calendar:
        return self._with(other, "&", lambda a, b: a and b)

    def __or__(self, other: Calendar) -> Calendar:
        return self._with(other, "|", lambda a, b: a or b)

    def __xor__(self, other: Calendar) -> Calendar:
        return self._with(other, "^", lambda a, b: a != b)

    def _with(self, other: Calendar, sign: str, both: Callable[[bool, bool], bool]) -> Calendar:
        if not isinstance(other, Calendar):
            return NotImplemented
        weekdays = {day for day in range(7) if both(day in self.weekdays, day in other.weekdays)}
        # Where either says nothing the two together say nothing.
        first = max(self.first, other.first)
        stop = max(first, min(self.stop, other.stop))
        exceptions = {
            n
            for n in self._flipped | other._flipped
            if first <= n < stop and both(self.has(n), other.has(n)) != ((n - 1) % 7 in weekdays)
        }
        return Calendar(f"({self.name} {sign} {other.name})", weekdays, exceptions, first, stop)


def _text(n: int) -> str:
    return date.fromordinal(n).isoformat()


ALL = Calendar("all days", range(7))
NONE = Calendar("no days")
# The second names are what the API shows for the first, so that what it shows can be given back.
_BUILT_IN = {"all": ALL, "none": NONE, "all days": ALL, "no days": NONE}


def weekdays(expression: str) -> Calendar | None:
    """The calendar of `Mon`, `Mon-Fri`, `Tue,Thu`, `0-4` (0: Monday), `Fri-Mon`; None for other text."""
    if not _EXPRESSION.fullmatch(expression):
        return None
    days: set[int] = set()
    for item in filter(None, expression.split(",")):
        low, _, high = item.partition("-")
        start, stop = _weekday(low), _weekday(high or low)
        days.update((start + k) % 7 for k in range((stop - start) % 7 + 1))
    return Calendar(expression, days)


def _weekday(text: str) -> int:
    return int(text) if text.isdigit() else WEEKDAYS.index(text)


def read(path: Path) -> Calendar:
    """The calendar of a file: a date a line, `#` comments, `START date` and `STOP date`.

    The range is [START, STOP); without START it begins with the first date, without STOP it ends
    after the last one, and a file without any line says that no date belongs. Raises ValueError
    with path and line, and OSError.
    """
    days: dict[int, int] = {}  # ordinal -> line, for the message
    bounds: dict[str, int] = {}
    if path.stat().st_size > _TOO_LARGE:
        raise ValueError(f"{path}: larger than {_TOO_LARGE} bytes, so no calendar")
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        line = raw.decode("utf-8", "replace").strip().lstrip("\ufeff")
        if not line or line.startswith("#"):
            continue
        words = line.split()
        if words[0] in ("START", "STOP"):
            if len(words) < 2 or words[0] in bounds:
                raise ValueError(f"{path}:{number}: {words[0]} must stand once and with a date")
            bounds[words[0]] = _ordinal(words[1], path, number)
        else:
            days.setdefault(_ordinal(words[0], path, number), number)
    first = bounds.get("START", min(days, default=_FIRST))
    stop = bounds.get("STOP", max(days) + 1 if days else max(first, _STOP))
    if stop < first:
        raise ValueError(f"{path}: STOP {_text(stop)} lies before START {_text(first)}")
    for n, number in days.items():
        if not first <= n < stop:
            raise ValueError(f"{path}:{number}: {_text(n)} lies outside START and STOP")
    return Calendar(path.name.removesuffix(".cal"), (), days, first, stop)


def _ordinal(word: str, path: Path, number: int) -> int:
    found = _DATE.match(word)
    try:
        if found:
            year, month, day = (int(part) for part in found.groups() if part)
            return date(year, month, day).toordinal()
    except ValueError:
        pass
    raise ValueError(
        f"{path}:{number}: {word[:40]!r} is no date (write 2031-05-06, START or STOP, or # first)"
    )


class Calendars:
    """Calendars by name, with the files of one directory; a file is read once."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self._files: dict[str, Calendar] = {}

    def get(self, name: str) -> Calendar:
        """Resolves `all`, `none`, weekdays, then NAME.cal in the directory. Raises ValueError."""
        found = _BUILT_IN.get(name) or weekdays(name) or self._files.get(name)
        if found is None:
            found = self._files[name] = self._read(name)
        return found

    def _read(self, name: str) -> Calendar:
        where = PurePosixPath(name)
        # Names come from job files and templates: they must not lead out of the directory.
        if where.is_absolute() or ".." in where.parts or "\0" in name or not where.name:
            raise ValueError(f"no such calendar: {name!r} (a name must stay within the calendar directory)")
        if self.directory is None:
            raise ValueError(f"no such calendar: {name} (no calendar directory is configured)")
        try:
            return read(self.directory / f"{name}.cal")
        except OSError:
            known = sorted(p.name.removesuffix(".cal") for p in self.directory.glob("*.cal"))
            hint = f"put {name}.cal in the calendar directory {self.directory}"
            also = f"; it has: {', '.join(known[:20])}" if known else ""
            raise ValueError(f"no such calendar: {name} ({hint}{also})") from None


def get(name: str, directory: Path | None = None) -> Calendar:
    """One calendar, not cached: as Calendars.get."""
    return Calendars(directory).get(name)
