"""The times that an operator writes, and those that are shown: in the local zone, or in UTC."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import TypeVar

from apsislib.cli.client import Misuse
from apsislib.times import format_instant, parse_daytime, parse_duration, parse_time

T = TypeVar("T")

FORMS = "write now, +10m, 09:30:00 or 2031-05-06T07:08:09Z"


# -- shown -----------------------------------------------------------------------------------------


def at(t: float, utc: bool) -> datetime:
    """An instant as the reader's clock shows it, to the second."""
    there = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=t // 1)
    return there if utc else there.astimezone()


def show_time(text: str | None, utc: bool) -> str:
    """An API time as `2031-05-06 07:08:09`; empty where there is none."""
    return f"{at(parse_time(text), utc):%Y-%m-%d %H:%M:%S}" if text else ""


def show_iso(text: str, utc: bool) -> str:
    """An API time as `2031-05-06T07:08:09+00:00`."""
    return at(parse_time(text), utc).isoformat()


def show_elapsed(seconds: float) -> str:
    """`M:SS`, `H:MM:SS` or `D:HH:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}:{hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# -- written ---------------------------------------------------------------------------------------


def _on(day: date, seconds: float, utc: bool) -> float:
    """The instant at which the reader's clock shows so many seconds after midnight of `day`."""
    wall = datetime.combine(day, time()) + timedelta(seconds=seconds)
    # Without a zone timestamp() goes by the local one, and shifts what clocks jump over.
    return (wall.replace(tzinfo=UTC) if utc else wall).timestamp()


def next_daytime(text: str, after: float, utc: bool) -> float:
    """The first instant past `after` at which the reader's clock shows HH:MM:SS. Raises ValueError."""
    seconds = parse_daytime(text)
    day = at(after, utc).date()
    while (found := _on(day, seconds, utc)) <= after:
        day += timedelta(days=1)
    return found


def _time(text: str, now: float, utc: bool) -> float:
    """The instant of TIME, but for `now`. Raises ValueError."""
    if text.startswith("+"):
        return now + parse_duration(text)
    if re.match(r"\d{1,2}:", text):
        return next_daytime(text, now, utc)
    return parse_time(text)


def read_time(text: str, now: float, utc: bool) -> float | None:
    """The instant that TIME means; None for `now`. Raises Misuse."""

    def read() -> float:
        t = _time(text, now, utc)
        format_instant(t)  # refuses what no calendar has
        return t

    return None if text == "now" else _meant(f"not a time: {FORMS}", read)


def read_stop(text: str, start: float, utc: bool) -> str:
    """The stop time of a run that starts at `start`, as the API takes it. Raises Misuse."""

    def read() -> str:
        try:
            parse_duration(text)
        except ValueError as error:
            if text.startswith("+") or "unknown unit" in str(error):
                raise
            return format_instant(_time(text, start, utc))
        return text

    return _meant("not a stop time: write 90m, 17:00:00 or 2031-05-06T07:08:09Z", read)


_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}
_SINCE = re.compile(r"(?<!\S)(!?(?:since|until):)([^\s\"]+)")


def as_instant(text: str, now: float, utc: bool) -> str:
    """A day (its beginning) or a daytime of today, which are the reader's, as an instant; else as it is."""
    today = at(now, utc).date()
    try:
        if text in _DAYS:
            found = _on(today + timedelta(days=_DAYS[text]), 0, utc)
        elif re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            found = _on(date.fromisoformat(text), 0, utc)
        elif re.fullmatch(r"\d{1,2}:\d\d:\d\d", text):
            found = _on(today, parse_daytime(text), utc)
        else:
            return text
        return format_instant(found)
    except (ValueError, OverflowError):  # the server says what is wrong with it
        return text


def as_instants(query: str, now: float, utc: bool) -> str:
    """A search, with the days and daytimes of since: and until: as instants."""
    parts = query.split('"')
    parts[::2] = [
        _SINCE.sub(lambda found: found[1] + as_instant(found[2], now, utc), part) for part in parts[::2]
    ]
    return '"'.join(parts)


def read_span(text: str, now: float, utc: bool) -> tuple[float, float]:
    """From when (included) to when (excluded) SPAN lies. Raises Misuse.

    `today` or a date is a day; a DURATION or TIME begins a span without an end; FROM..TO joins two of
    any of these, TO with the whole of its day, and either may be left out.
    """

    def days(text: str) -> tuple[float, float] | None:
        if text == "today":
            day = at(now, utc).date()
        elif re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            day = date.fromisoformat(text)
        else:
            return None
        return _on(day, 0, utc), _on(day + timedelta(days=1), 0, utc)

    def instant(text: str) -> float:
        if text == "now":
            return now
        if text.startswith("+"):
            return now + parse_duration(text)
        if re.match(r"\d{1,2}:", text):
            return _on(at(now, utc).date(), parse_daytime(text), utc)
        if re.match(r"\d{4}-|\d{8}T", text):
            return parse_time(text)
        return now - abs(parse_duration(text))

    def read() -> tuple[float, float]:
        start, dots, stop = text.partition("..")
        if not dots:
            return days(text) or (instant(text), float("inf"))
        low = float("-inf") if not start else (days(start) or (instant(start), 0.0))[0]
        high = float("inf") if not stop else (days(stop) or (0.0, instant(stop)))[1]
        return low, high

    return _meant("not a span: write today, 2031-05-06, 2h, 2031-05-06T07:08:09Z or FROM..TO", read)


def _meant(wrong: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (ValueError, OverflowError) as error:
        what, _, remedy = wrong.partition(": ")
        raise Misuse(f"{what}: {error}; {remedy}") from None
