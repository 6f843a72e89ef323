"""Instants, durations and daytimes, and which instant a wall clock means. The only importer of `zoneinfo`.

An instant is a float, seconds since the epoch, UTC. A duration and a daytime are floats, in seconds.
Text appears only at the edges, through parse_* and format_*. What happens where a zone's clocks jump
forward (a gap) or back (a fold) is decided here, in `placed`, and nowhere else.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from zoneinfo import TZPATH, ZoneInfo

Zone = ZoneInfo
Gap = Literal["shift", "skip", "end"]
Fold = Literal["first", "second", "both"]

DAY = 86400
EPOCH = date(1970, 1, 1).toordinal()
# Two days inside what `datetime` can hold, so that no zone's offset leads out of it.
FIRST = float((date.min.toordinal() + 2 - EPOCH) * DAY)
LAST = float((date.max.toordinal() - 2 - EPOCH) * DAY)

_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), DAY),
}
_DURATION = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)\s*([^\W\d_]+)")
_DAYTIME = re.compile(r"([0-9]{1,2}):([0-9]{2}):([0-9]{2}(?:\.[0-9]*)?)")
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})([T ])([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]*))?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
_COMPACT = re.compile(
    r"([0-9]{4})([0-9]{2})([0-9]{2})(T)([0-9]{2})([0-9]{2})([0-9]{2})(?:\.([0-9]*))?"
    r"(?:Z|([+-])([0-9]{2})([0-9]{2}))"
)
NO_ZONES = "this host has no time zones: install its package tzdata"
# In the zoneinfo directory, but no place: the machine's own choice, and clocks that count leap seconds.
_NO_ZONE = re.compile(r"localtime|posixrules|Factory|right/.*")


# -- text ----------------------------------------------------------------------------------------


def parse_time(value: str | datetime, strict: bool = False) -> float:
    """The instant of ISO 8601 text with seconds and a zone, or of an aware `datetime`.

    `2031-05-06T07:08:09Z`, `...09.25-05:00` and `20310506T070809Z`; a blank may stand for the T
    unless `strict` (as the HTTP API is). Raises ValueError.
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError(f"no time zone in {value}: add Z or an offset such as -05:00")
        since = value - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * DAY + since.seconds) + since.microseconds / 1e6
    wrong = f"can't parse as time: {value!r} (write it like 2031-05-06T07:08:09Z)"
    found = (_TIME.fullmatch(value) or _COMPACT.fullmatch(value)) if isinstance(value, str) else None
    if found is None or (strict and found[4] == " "):
        raise ValueError(wrong)
    hour, minute, second = int(found[5]), int(found[6]), int(found[7])
    off_hour, off_minute = int(found[10] or 0), int(found[11] or 0)
    if hour > 23 or minute > 59 or second > 59 or off_hour > 23 or off_minute > 59:
        raise ValueError(wrong)
    try:
        day = date(int(found[1]), int(found[2]), int(found[3])).toordinal() - EPOCH
    except ValueError:
        raise ValueError(wrong) from None
    offset = (off_hour * 60 + off_minute) * (-60 if found[9] == "-" else 60)
    whole = day * DAY + hour * 3600 + minute * 60 + second - offset
    # Decimal: the float nearest to what was written, so that formatting gives the same text again.
    return float(whole + Decimal(f"0.{found[8][:15]}")) if found[8] else float(whole)


def _split(t: float) -> tuple[str, str]:
    """`2031-05-06T07:08:09` and the digits of the fraction (the shortest that mean this float)."""
    if 1 <= t < 1e15:  # repr() needs no exponent: by far the usual case, at a tenth of the cost
        whole_text, _, fraction = repr(t).partition(".")
        return _second(int(whole_text)), "" if fraction == "0" else fraction
    if t - t != 0:
        raise ValueError(f"time out of range: {t!r}")
    whole = int(t // 1)
    return _second(whole), "" if t == whole else f"{Decimal(repr(t)) - whole:f}"[2:]


@lru_cache(maxsize=1024)  # what happens now happens within the same few seconds
def _second(whole: int) -> str:
    try:
        day = date.fromordinal(EPOCH + whole // DAY)
    except (ValueError, OverflowError):
        raise ValueError(f"time out of range: {whole!r}") from None
    seconds = whole % DAY
    return f"{day}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def format_time(t: float) -> str:
    """As the API shows it: `2031-05-06T07:08:09.123+00:00`, truncated to milliseconds."""
    text, fraction = _split(t)
    return f"{text}.{fraction[:3]:0<3}+00:00"


def format_instant(t: float) -> str:
    """As args and texts show it: `2031-05-06T07:08:09+00:00`; with a fraction (to 8 digits) if any."""
    text, fraction = _split(t)
    fraction = fraction[:8].rstrip("0")
    return f"{text}.{fraction}+00:00" if fraction else f"{text}+00:00"


def parse_duration(value: Any) -> float:
    """Seconds of a number, or of text such as `90`, `1.5h`, `10 min`, `-1 day`. Raises ValueError."""
    wrong = f"can't parse as duration: {value}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(wrong)
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError(wrong) from None
    except ValueError:
        found = _DURATION.match(str(value))
        if found is None:
            raise ValueError(wrong) from None
        if found.end() != len(str(value)):
            raise ValueError(f"{wrong} (write one number and one unit: s, min, h or day)") from None
        if found[2] not in _UNITS:
            raise ValueError(f"{wrong}: unknown unit {found[2]}") from None
        seconds = float(found[1]) * _UNITS[found[2]]
    if seconds - seconds != 0:  # not a number, or infinite
        raise ValueError(f"{wrong} (a duration must be finite)")
    return seconds


def parse_daytime(value: Any) -> float:
    """Seconds after midnight of `9:30:00` or `09:30:00.5`; a number is taken as such. Raises ValueError."""
    wrong = f"can't parse as daytime: {value!r}"
    if isinstance(value, str):
        found = _DAYTIME.fullmatch(value)
        if found is None:
            short = re.fullmatch(r"[0-9]{1,2}:[0-9]{2}", value)
            raise ValueError(f"{wrong} (seconds are required: {value}:00)" if short else wrong)
        seconds = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
        if int(found[2]) > 59 or float(found[3]) >= 60:
            raise ValueError(wrong)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= DAY else DAY
    else:
        raise ValueError(wrong)
    if not 0 <= seconds < DAY:
        raise ValueError(f"{wrong} (a daytime is from 00:00:00 up to 24:00:00)")
    return float(seconds)


def format_daytime(seconds: float) -> str:
    """`HH:MM:SS`, with a fraction only if there is one."""
    whole = int(seconds)
    text = f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    return text if seconds == whole else text + f"{Decimal(repr(seconds)) % 1:f}"[1:]


def format_duration(seconds: float) -> str:
    """For people: `90 s`, `5 min`, `2 h`, `1 day`, in the largest unit that leaves a whole number."""
    for name, size in (("day", DAY), ("h", 3600), ("min", 60)):
        if seconds and seconds % size == 0:
            count = int(seconds // size)
            return f"{count} {name}{'s' if name == 'day' and count != 1 else ''}"
    return f"{seconds:g} s"


# -- zones ---------------------------------------------------------------------------------------


def zone(name: str) -> Zone:
    """The zone of an IANA name, or `utc`.

    Raises ValueError, also for `local`: a job must mean the same on every machine.
    """
    if isinstance(name, str) and not _NO_ZONE.fullmatch(name):
        with suppress(ValueError, OSError, LookupError):
            return _zone("UTC" if name == "utc" else name)
    remedy = "write an IANA name such as America/New_York, or UTC"
    raise ValueError(f"unknown time zone: {name} ({remedy if _has_zones() else NO_ZONES})")


def zones_doubt() -> str | None:
    """What to warn of where the host has no zones of its own, which its updates would keep right."""
    if any(Path(directory, "UTC").exists() for directory in TZPATH):
        return None
    spare = "those of Python's package tzdata are used, as old as that is"
    return f"{NO_ZONES}; until then {spare}" if _has_zones() else NO_ZONES


def _has_zones() -> bool:
    with suppress(LookupError):
        return bool(_zone("UTC"))
    return False


@lru_cache(maxsize=2048)  # there are 600; ZoneInfo's own cache forgets zones that nobody holds
def _zone(name: str) -> Zone:
    return ZoneInfo(name)


def local(t: float, zone: Zone) -> tuple[date, float]:
    """The date that clocks in `zone` show at `t`, and the seconds after midnight. Raises ValueError."""
    whole = t // 1
    try:
        moment = datetime.fromtimestamp(whole, zone)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"time out of range: {t!r}") from None
    return moment.date(), moment.hour * 3600 + moment.minute * 60 + moment.second + (t - whole)


def at_wall(
    day: date, seconds: float, zone: Zone, gap: Gap = "shift", fold: Fold = "first"
) -> tuple[float, ...]:
    """The instants at which clocks in `zone` show `seconds` after midnight on `day`; see `placed`."""
    return tuple(t for t, _ in placed(day.toordinal(), seconds, zone, gap, fold))


Placed = tuple[tuple[float, float], ...]


def placed(ordinal: int, seconds: float, zone: Zone, gap: Gap = "shift", fold: Fold = "first") -> Placed:
    """The instants of a wall time, each with how far it was moved out of a gap (0: it was not).

    In a gap (02:30 on the day clocks jump from 02:00 to 03:00): `shift` gives the instant shifted
    by the gap, 03:30; `end` the first instant after the gap, 03:00; `skip` none.
    In a fold (01:30 on the day clocks go back): the `first` of the two, the `second`, or `both`.
    None where the zone left the whole day out (Pacific/Apia, 30 December 2011), whatever the policy.
    `ordinal` is the date's, `seconds` are after midnight.
    Source: PEP 495. Checked for every zone by tests/test_times.py.
    """
    offset = steady(zone, ordinal)
    if offset is not None:
        return (((ordinal - EPOCH) * DAY - offset + seconds, 0.0),)
    early, late = _readings(zone, ordinal, seconds)
    if early == late:
        return ((early, 0.0),)
    if early < late:
        return ((early, 0.0), (late, 0.0)) if fold == "both" else ((early if fold == "first" else late, 0.0),)
    # In a gap the offset of before it gives the later instant.
    if gap == "skip" or (early - late >= DAY and _left_out(zone, ordinal)):
        return ()
    if gap == "end":
        end = _end_of_gap(zone, ordinal, seconds, late, early)
        return ((end, end - late),)
    return ((early, early - late),)


def _readings(zone: Zone, ordinal: int, seconds: float) -> tuple[float, float]:
    """The wall time read with the offset of before and of after the transition near it, if there is one."""
    midnight = datetime.fromordinal(ordinal)
    wall = midnight + timedelta(seconds=int(seconds))
    utc = (ordinal - EPOCH) * DAY
    first, second = zone.utcoffset(wall), zone.utcoffset(wall.replace(fold=1))
    assert first is not None and second is not None
    return utc - first.total_seconds() + seconds, utc - second.total_seconds() + seconds


# A pure function, cached because all schedules of a zone ask for the same days: 2 MB when full.
@lru_cache(maxsize=16384)
def steady(zone: Zone, ordinal: int) -> float | None:
    """The offset in force on the whole of a day, in seconds.

    None where clocks are moved, and at the ends of the range. Looks twice a day: no zone has
    moved its clocks and moved them back within a day (see tests/test_times.py).
    """
    if not 1 < ordinal < date.max.toordinal() - 1:
        return None
    midnight = datetime.fromordinal(ordinal)
    offset = zone.utcoffset(midnight)
    for hour in (0, 12, 24):
        wall = midnight + timedelta(hours=hour)
        if zone.utcoffset(wall) != offset or zone.utcoffset(wall.replace(fold=1)) != offset:
            return None
    assert offset is not None
    return offset.total_seconds()


def _left_out(zone: Zone, ordinal: int) -> bool:
    """Whether no clock in `zone` ever showed this day: its first and last moment lie in one gap."""
    opening, closing = _readings(zone, ordinal, 0), _readings(zone, ordinal, DAY - 1)
    return opening[0] > opening[1] and closing[0] > closing[1]


def _end_of_gap(zone: Zone, ordinal: int, seconds: float, before: float, after: float) -> float:
    """The first instant at which clocks show `seconds` on the day or later, between two that enclose it."""
    low, high = int(before // 1), int(after // 1) + 1
    wall = (ordinal, seconds)
    while high - low > 1:
        middle = (low + high) // 2
        day, shown = local(middle, zone)
        low, high = (low, middle) if (day.toordinal(), shown) >= wall else (middle, high)
    return float(high)
