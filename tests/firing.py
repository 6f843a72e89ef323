"""Schedules in few words, and when they fire, for the tests of schedules."""

from __future__ import annotations

from itertools import islice

import pytest

from apsislib.calendars import Calendars
from apsislib.errors import FieldError
from apsislib.runs import Occurrence
from apsislib.schedules import parse
from apsislib.times import format_instant, parse_time

NEW_YORK = "America/New_York"
CALENDARS = Calendars()


def read(mapping, **more):
    return parse({**mapping, **more}, CALENDARS)


def daily(daytime="09:30:00", tz=NEW_YORK, **more):
    return read({"type": "daily", "daytime": daytime, "tz": tz}, **more)


def daily_interval(start, stop, interval=3600, tz=NEW_YORK, **more):
    return read(
        {"type": "daily-interval", "start": start, "stop": stop, "interval": interval, "tz": tz}, **more
    )


def cron(text, tz=NEW_YORK, **more):
    return read({"type": "cron", "cron": text, "tz": tz}, **more)


def interval(seconds, **more):
    return read({"type": "interval", "interval": seconds}, **more)


def at(text: str) -> float:
    """`2024-01-05 14:30`, `...:00` or `...:00.5`, in UTC."""
    return parse_time((text if text.count(":") == 2 else f"{text}:00") + "Z")


def first(schedule, start: str, count: int) -> list[Occurrence]:
    return list(islice(schedule.after(at(start)), count))


def fires(schedule, start: str, count: int = 2) -> list[str]:
    return [short(o.time) for o in first(schedule, start, count)]


def short(t: float) -> str:
    return format_instant(t).removesuffix("+00:00").removesuffix(":00").replace("T", " ")


def dated(schedule, start: str, count: int) -> list[tuple[str, str]]:
    return [(short(o.time), o.args["date"]) for o in first(schedule, start, count)]


def refused(mapping, calendars=CALENDARS, **types) -> FieldError:
    with pytest.raises(FieldError) as caught:
        parse(mapping, calendars, **types)
    return caught.value
