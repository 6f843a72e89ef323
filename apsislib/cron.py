"""Cron's five fields: which wall times, on which dates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date

from apsislib.calendars import WEEKDAYS, Calendar

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Days after which the Gregorian calendar, weekdays included, repeats (400 years): dates that do not
# match within one cycle never do.
CYCLE = 146097

_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ITEM = re.compile(r"(?:(\*)|([0-9]+|[a-z]+)(?:-([0-9]+|[a-z]+))?)(?:/([0-9]+))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int  # of `*`
    most: int  # of a number: 7 is Sunday too
    names: dict[str, int]


_FIELDS = (
    _Field("minute", 0, 59, 59, {}),
    _Field("hour", 0, 23, 23, {}),
    _Field("day of month", 1, 31, 31, {}),
    _Field("month", 1, 12, 12, {name.lower(): n for n, name in enumerate(MONTHS, 1)}),
    _Field("day of week", 0, 6, 7, {name.lower(): n % 7 for n, name in enumerate(WEEKDAYS, 1)}),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression, read."""

    text: str  # as written
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    monthdays: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0: Monday, as elsewhere in Apsis
    both: bool  # a date must match day of month and day of week; else one of them is enough
    # Minute or hour has a wildcard or step: fires whenever clocks show a matching time, so twice in
    # a fold and not at all in a gap. Fixed times are moved out of gaps instead.
    physical: bool

    @property
    def daytimes(self) -> tuple[float, ...]:
        """Seconds after midnight, ascending."""
        return tuple(h * 3600.0 + m * 60.0 for h in self.hours for m in self.minutes)

    def days(self, start: int, calendar: Calendar) -> Iterator[int]:
        """The ordinals of the matching dates of `calendar` from `start` on, ascending.

        Ends with the calendar, or where no date can match any more.
        """
        if not calendar.weekdays:
            return (n for n in calendar.days(start) if self._matches(date.fromordinal(n)))
        return self._search(max(start, calendar.first), calendar)

    def _search(self, start: int, calendar: Calendar) -> Iterator[int]:
        if start >= calendar.stop:
            return
        limit = max(start, calendar.last_exception) + CYCLE
        year, month = date.fromordinal(start).year, date.fromordinal(start).month
        while year <= date.max.year:
            first = date(year, month, 1).toordinal()
            if first >= calendar.stop or first > limit:
                return
            month += 1
            if month == 13:
                year, month = year + 1, 1
            after = date(year, month, 1).toordinal() if year <= date.max.year else calendar.stop
            if ((month - 2) % 12 + 1) not in self.months:
                continue
            for n in range(max(first, start), min(after, calendar.stop)):
                if self._on(n - first + 1, (n - 1) % 7) and calendar.has(n):
                    limit = max(limit, n + CYCLE)
                    yield n

    def _matches(self, day: date) -> bool:
        return day.month in self.months and self._on(day.day, day.weekday())

    def _on(self, monthday: int, weekday: int) -> bool:
        if self.both:
            return monthday in self.monthdays and weekday in self.weekdays
        return monthday in self.monthdays or weekday in self.weekdays

    def words(self) -> str:
        """For people: `at 02:30 on Mon-Fri`, `every 5 minutes on day 1 of the month`."""
        times, dates = self._times(), self._dates()
        return times if times.startswith("every") and dates == "every day" else f"{times} {dates}"

    def _times(self) -> str:
        always = len(self.hours) == 24
        step = self.minutes[1] if len(self.minutes) > 1 else 60
        if self.minutes == tuple(range(0, 60, step)) and 60 % step == 0:
            what = {1: "every minute", 60: "every hour"}.get(step, f"every {step} minutes")
            if always:
                return what
            if step < 60:
                return f"{what} of {_plural('hour', _ranges(self.hours))}"
        elif always:
            return f"every hour at {_plural('minute', _ranges(self.minutes))}"
        if len(self.minutes) * len(self.hours) <= 6:
            return f"at {_and([f'{h:02}:{m:02}' for h in self.hours for m in self.minutes])}"
        return f"at {_plural('minute', _ranges(self.minutes))} of {_plural('hour', _ranges(self.hours))}"

    def _dates(self) -> str:
        monthdays = f"{_plural('day', _ranges(self.monthdays))} of the month"
        weekdays = _ranges(self.weekdays, WEEKDAYS)
        any_monthday, any_weekday = len(self.monthdays) == 31, len(self.weekdays) == 7
        if any_monthday and any_weekday or not self.both and (any_monthday or any_weekday):
            text = "every day"
        elif any_weekday:
            text = f"on {monthdays}"
        elif any_monthday:
            text = f"on {weekdays}"
        else:
            text = f"on {monthdays} {'if it is' if self.both else 'and on'} {weekdays}"
        if len(self.months) < 12:
            text += f" in {_ranges((m - 1 for m in self.months), MONTHS)}"
        return text


def parse(text: str) -> Cron:
    """Reads five fields, or `@daily` and its like. Raises ValueError that names the field and the remedy."""
    if not isinstance(text, str):
        raise ValueError(f"can't parse as cron: {text!r} (write five fields in quotes)")
    fields = _NICKNAMES.get(text.strip().lower(), text).split()
    if len(fields) != 5:
        if text.strip().startswith("@"):
            raise ValueError(f"can't parse as cron: {text!r} (known: {', '.join(_NICKNAMES)})")
        raise ValueError(
            f"can't parse as cron: {text!r} has {len(fields)} fields "
            "(write minute, hour, day of month, month, day of week)"
        )
    minutes, hours, monthdays, months, weekdays = (
        _parse(field, kind) for field, kind in zip(fields, _FIELDS, strict=True)
    )
    # Vixie's rule, by the first character: `*/2` counts as a star here although it excludes days.
    both = fields[2].startswith("*") or fields[4].startswith("*")
    if both and all(min(monthdays) > _LONGEST[m - 1] for m in months):
        raise ValueError(f"cron {text!r} never fires: no month that it names has day {min(monthdays)}")
    return Cron(
        text=text.strip(),
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        monthdays=frozenset(monthdays),
        months=frozenset(months),
        weekdays=frozenset((day - 1) % 7 for day in weekdays),
        both=both,
        physical=any(sign in field for field in fields[:2] for sign in "*/"),
    )


def _parse(text: str, field: _Field) -> set[int]:
    numbers: set[int] = set()
    for item in text.split(","):
        found = _ITEM.fullmatch(item)
        if found is None:
            raise ValueError(
                f"can't parse as cron: {item!r} in {field.name} {text!r} "
                "(known: *, 5, 1-5, */2, 1-9/2 and lists of them)"
            )
        star, low, high, step = found.groups()
        if star:
            first, last = field.low, field.high
        else:
            first = _number(low, field)
            last = _number(high, field) if high else field.high if step else first
            if high and last == 0 and field.most == 7:
                last = 7  # fri-sun
        if last < first:
            raise ValueError(
                f"can't parse as cron: range {item!r} in {field.name} runs backwards "
                f"(write {first}-{field.high},{field.low}-{last})"
            )
        if step and int(step) == 0:
            raise ValueError(f"can't parse as cron: step 0 in {field.name} {text!r}")
        numbers.update(range(first, last + 1, int(step or 1)))
    return {n % 7 for n in numbers} if field.most == 7 else numbers


def _number(text: str, field: _Field) -> int:
    number = int(text) if text.isdigit() and len(text) < 4 else field.names.get(text.lower(), -1)
    if not field.low <= number <= field.most:
        names = f" or {', '.join(field.names)}" if field.names else ""
        raise ValueError(
            f"can't parse as cron: {text!r} is no {field.name} (known: {field.low} to {field.most}{names})"
        )
    return number


def day_names(weekdays: Iterable[int]) -> str:
    """`Mon-Fri`, `Tue and Thu`; 0: Monday."""
    return _ranges(weekdays, WEEKDAYS)


def _ranges(numbers: Iterable[int], names: tuple[str, ...] = ()) -> str:
    """`1-5, 7`; with names, `Mon-Fri, Sun`."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    texts: list[str] = []
    for low, high in runs:
        first, last = (names[low], names[high]) if names else (str(low), str(high))
        texts.append(first if low == high else f"{first}-{last}" if high > low + 1 else f"{first}, {last}")
    return _and(", ".join(texts).split(", "))


def _plural(noun: str, numbers: str) -> str:
    return f"{noun} {numbers}" if numbers.isdigit() else f"{noun}s {numbers}"


def _and(texts: list[str]) -> str:
    return " and ".join((", ".join(texts[:-1]), texts[-1])) if len(texts) > 1 else texts[0]
