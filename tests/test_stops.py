"""Stop times."""

from __future__ import annotations

import pytest
from firing import CALENDARS, NEW_YORK, first, interval, short

from apsislib import times
from apsislib.schedules import parse, words
from apsislib.stops import StopDaytime


def stopped(stop, start="2024-01-05 11:00", **schedule):
    inner = schedule or {"type": "interval", "interval": 1}
    (occurrence,) = first(parse({"start": inner, "stop": stop}, CALENDARS), start, 1)
    return occurrence.stop and short(occurrence.stop)


def test_a_stop_time_is_a_duration_after_the_schedule_time():
    assert stopped({"type": "duration", "duration": "90m"}) == "2024-01-05 12:30"
    assert stopped(None) is None
    assert (
        first(parse({"start": {"type": "interval", "interval": 60}}, CALENDARS), "2024-01-05 11:00", 1)[
            0
        ].stop
        is None
    )


@pytest.mark.parametrize(
    "start, daytime, tz, expected",
    [
        ("2024-01-05 11:00", "11:00:00", "UTC", "2024-01-06 11:00"),
        ("2024-01-05 10:59:59", "11:00:00", "UTC", "2024-01-05 11:00"),
        ("2024-03-10 06:50", "02:30:00", NEW_YORK, "2024-03-10 07:00"),  # in the gap: its end
        ("2024-03-10 07:00", "02:30:00", NEW_YORK, "2024-03-11 06:30"),
        ("2024-11-03 04:30", "01:30:00", NEW_YORK, "2024-11-03 05:30"),
        ("2024-11-03 05:30", "01:30:00", NEW_YORK, "2024-11-04 06:30"),
        ("2024-11-03 06:15", "01:30:00", NEW_YORK, "2024-11-03 06:30"),  # clocks show 01:15 again
        ("2011-12-29 22:00", "11:00:00", "Pacific/Apia", "2011-12-30 21:00"),  # 31 December there
    ],
)
def test_a_daytime_stop_is_the_next_time_that_clocks_show_it(start, daytime, tz, expected):
    assert stopped({"type": "daytime", "daytime": daytime, "tz": tz}, start) == expected


def test_beyond_the_range_of_dates_there_is_no_stop():
    last = {"type": "explicit", "times": "9999-12-29T00:00:00Z"}
    stop = {"type": "daytime", "daytime": "00:00:00", "tz": "UTC"}
    assert stopped(stop, "9999-01-01 00:00", **last) == "9999-12-30 00:00"
    occurrence = StopDaytime(0.0, times.zone("UTC")).at(times.LAST + 86400)
    assert occurrence is None


def test_a_schedule_without_stop_is_shown_as_its_start():
    schedule = parse({"start": {"type": "interval", "interval": 60}}, CALENDARS)
    assert schedule.to_json() == {
        "start": interval(60).to_json(),
        "str": "every 60.0 sec",
        "enabled": True,
    }
    assert words(schedule) == "every 1 min"


def test_a_start_stop_schedule_is_shown_as_start_and_stop():
    mapping = {
        "start": {"type": "interval", "interval": 7200, "args": {"a": 1}, "enabled": False},
        "stop": {"type": "daytime", "daytime": "16:00:00", "tz": "UTC"},
    }
    schedule = parse(mapping, CALENDARS)
    assert schedule.to_json() == {
        "start": {
            "type": "interval",
            "enabled": False,
            "interval": 7200.0,
            "phase": 0.0,
            "args": {"a": "1"},
            "str": "(a=1) every 7200.0 sec",
        },
        "stop": {"type": "daytime", "daytime": "16:00:00", "tz": "UTC"},
        "str": "(a=1) every 7200.0 sec, stop at 16:00:00 UTC after schedule time",
        "enabled": False,
    }
    assert words(schedule) == "every 2 h, stopped at the next 16:00:00 UTC"
    shorter = parse({**mapping, "stop": {"type": "duration", "duration": "30 min"}}, CALENDARS)
    assert shorter.to_json()["stop"] == {"type": "duration", "duration": 1800.0}
    assert shorter.to_json()["str"].endswith(", stop 1800.0 s after schedule time")
    assert words(shorter) == "every 2 h, stopped 30 min later"
