"""Schedules as job files write them: what is read, what is refused, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pytest
from firing import CALENDARS, NEW_YORK, at, fires, interval, refused

from apsislib.calendars import Calendars
from apsislib.schedules import parse, words


@pytest.mark.parametrize(
    "value, enabled",
    [
        (True, True),
        (False, False),
        ("yes", True),
        ("No", False),
        ("on", True),
        ("OFF", False),
        ("false", False),
    ],
)
def test_enabled_is_a_bool_or_a_word_for_one(value, enabled):
    assert interval(60, enabled=value).enabled is enabled
    assert interval(60, enabled=value).to_json()["enabled"] is enabled


def test_args_that_are_null_are_none():
    assert interval(60, args=None).args == {}


def test_a_calendar_that_ran_out_ends_the_schedule(tmp_path):
    (tmp_path / "old.cal").write_text("START 2023-01-01\nSTOP 2024-01-03\n2023-12-29\n2024-01-02\n")
    calendars = Calendars(tmp_path)
    for mapping in (
        {"type": "daily", "daytime": "09:00:00"},
        {"type": "daily-interval", "start": "09:00:00", "stop": "09:30:00", "interval": 1800},
        {"type": "cron", "cron": "0 9 * * *"},
    ):
        schedule = parse({**mapping, "tz": "UTC", "calendar": "old"}, calendars)
        assert fires(schedule, "2024-01-01 00:00", 5) == ["2024-01-02 09:00"]
        assert fires(schedule, "2024-01-03 00:00", 5) == []
        assert schedule.to_json()["calendar"] == "old"
        assert next(schedule.after(at("2024-01-01 00:00"))).args["calendar"] == "old"


DAILY = {"type": "daily", "daytime": "09:30:00", "tz": NEW_YORK}
WINDOW = {"type": "daily-interval", "start": "09:00:00", "stop": "10:00:00", "interval": 60, "tz": "UTC"}
CRON = {"type": "cron", "cron": "0 9 * * *", "tz": "UTC"}


@pytest.mark.parametrize(
    "mapping, said, keys",
    [
        (5, "a schedule must be a mapping with a type: 5", ()),
        ({}, "missing type", ()),
        ({"type": "dayly"}, "bad type: dayly (known: interval, daily,", ("type",)),
        ({"type": None}, "bad type: None", ("type",)),
        ({"type": "interval"}, "missing key: interval", ()),
        ({"type": "interval", "interval": 0, "phase": 0}, "interval shorter than", ("interval",)),
        ({"type": "interval", "interval": 60, "phase": 60}, "phase not between 0 and interval", ("phase",)),
        ({"type": "interval", "interval": 60, "phase": -1}, "phase not between 0 and interval", ("phase",)),
        ({"type": "interval", "interval": "inf"}, "can't parse as duration: inf", ("interval",)),
        ({"type": "interval", "interval": "1 week"}, "unknown unit week", ("interval",)),
        ({"type": "interval", "interval": 1e-9}, "interval shorter than 0.001 s", ("interval",)),
        ({"type": "interval", "interval": 1e300}, "interval schedule never fires", ()),
        ({"type": "interval", "interval": 60, "tz": "UTC", 5: 6}, "unexpected keys: tz 5", ("tz",)),
        ({"type": "interval", "interval": 60, "args": [1]}, "args must be a mapping", ("args",)),
        (
            {"type": "interval", "interval": 60, "enabled": None},
            "enabled must be true or false",
            ("enabled",),
        ),
        ({"type": "interval", "interval": 60, "enabled": "{{ x }}"}, "enabled must be true or", ("enabled",)),
        (
            {"type": "interval", "interval": 60, "enabled": 1},
            "enabled must be true or false: 1",
            ("enabled",),
        ),
        ({**DAILY, "time": "09:30:00"}, "daytime and time mean the same", ("time",)),
        ({**DAILY, "daytime": []}, "an empty list never fires", ("daytime",)),
        (
            {**DAILY, "daytime": ["09:30:00", "25:00:00"]},
            "can't parse as daytime: '25:00:00'",
            ("daytime", 1),
        ),
        ({**DAILY, "daytime": "09:30"}, "seconds are required: 09:30:00", ("daytime",)),
        ({"type": "daily", "daytime": "09:30:00"}, "missing key: tz", ()),
        ({**DAILY, "tz": "New York"}, "unknown time zone: New York", ("tz",)),
        ({**DAILY, "tz": None}, "unknown time zone: None", ("tz",)),
        ({**DAILY, "calendar": "workdays"}, "no such calendar: workdays", ("calendar",)),
        ({**DAILY, "calendar": "none"}, "calendar 'none' has no dates", ("calendar",)),
        ({**DAILY, "date_shift": 1.5}, "not a whole number of days: 1.5", ("date_shift",)),
        ({**DAILY, "cal_shift": True}, "not a whole number of days: True", ("cal_shift",)),
        ({**DAILY, "date_shift": 10**8}, "daily schedule never fires", ()),
        ({**DAILY, "dst_gap": "end"}, "unknown: end (known: shift, skip)", ("dst_gap",)),
        ({**DAILY, "dst_fold": 1}, "unknown: 1 (known: first, second, both)", ("dst_fold",)),
        ({**WINDOW, "stop": "09:00:00"}, "stop 09:00:00 is not after start 09:00:00", ("stop",)),
        ({**WINDOW, "stop": {"daytime": "09:00:00", "x": 1}}, "unexpected keys: x", ("stop", "x")),
        ({**WINDOW, "start": {"date_shift": 1}}, "missing key: daytime", ("start",)),
        ({**WINDOW, "start": {"daytime": "08:00:00", "date_shift": 1}}, "is not after start", ("stop",)),
        ({**WINDOW, "start": {"daytime": "09:00:00", "cal_shift": 1}}, "is never after start", ("stop",)),
        ({**WINDOW, "stop": {"daytime": 0, "date_shift": 9999}}, "more than 366 days from start", ("stop",)),
        ({**WINDOW, "interval": "1 day"}, "interval not between", ("interval",)),
        ({**WINDOW, "interval": 0}, "interval not between", ("interval",)),
        ({**WINDOW, "date_shift": 1}, "unexpected keys: date_shift", ("date_shift",)),
        ({"type": "explicit", "times": []}, "an empty list never fires", ("times",)),
        ({"type": "explicit", "times": "2024-01-05"}, "can't parse as time: '2024-01-05'", ("times",)),
        ({"type": "explicit", "times": [date(2024, 1, 5)]}, "can't parse as time", ("times", 0)),
        ({"type": "explicit", "times": [datetime(2024, 1, 5)]}, "no time zone in 2024-01-05", ("times", 0)),
        ({"type": "explicit", "times": "9999-12-31T00:00:00Z"}, "time out of range", ("times",)),
        ({**CRON, "cron": "0 0 31 2 *"}, "never fires", ("cron",)),
        ({**CRON, "cron": 5}, "can't parse as cron: 5", ("cron",)),
        ({"type": "cron", "cron": "0 9 * * *"}, "missing key: tz", ()),
        ({**CRON, "cron": "* * * * *", "dst_gap": "skip"}, "dst_gap has no effect", ("dst_gap",)),
        (
            {**CRON, "cron": "0 0 */1 * 1", "calendar": "Tue"},
            "calendar 'Tue' has no date on which",
            ("cron",),
        ),
        ({"start": 5}, "not a mapping: 5", ("start",)),
        (
            {"start": {"type": "interval", "interval": "x"}},
            "can't parse as duration: x",
            ("start", "interval"),
        ),
        ({"start": {"start": DAILY}}, "missing type", ("start",)),
        ({"start": DAILY, "stop": {}}, "missing type", ("stop",)),
        ({"start": DAILY, "stop": "1h"}, "not a mapping: '1h'", ("stop",)),
        (
            {"start": DAILY, "stop": {"type": "cron"}},
            "bad type: cron (known: duration, daytime)",
            ("stop", "type"),
        ),
        ({"start": DAILY, "stop": {"type": "daytime", "daytime": 0}}, "missing key: tz", ("stop",)),
        (
            {"start": DAILY, "stop": {"type": "duration", "duration": 1, "tz": 1}},
            "unexpected keys: tz",
            ("stop", "tz"),
        ),
        ({"start": DAILY, "stopp": {}}, "unexpected key: stopp (did you mean stop?)", ("stopp",)),
        (
            {"start": DAILY, "stop": {"type": "duration", "duration": -5}},
            "stops before",
            ("stop", "duration"),
        ),
        ({"type": "cron", "cron": "0 9 * * *", "tz": {}}, "unknown time zone", ("tz",)),
        ({"type": "interval", "intervall": 5}, "unexpected key: intervall (did you mean", ("intervall",)),
        (
            {"start": DAILY, "enabled": True},
            "missing type (beside start and stop nothing may stand",
            ("enabled",),
        ),
    ],
)
def test_what_is_wrong_or_never_fires_is_refused_where_it_stands(mapping, said, keys):
    error = refused(mapping)
    assert said in error.message
    assert error.keys == keys


def test_a_wrong_calendar_file_is_named_with_its_line(tmp_path):
    (tmp_path / "bad.cal").write_text("2024-01-01\nMonday\n")
    error = refused({**DAILY, "calendar": "bad"}, Calendars(tmp_path))
    assert error.message.startswith(f"{tmp_path / 'bad.cal'}:2: 'Monday' is no date")
    assert error.keys == ("calendar",)


# -- users' own classes

OWN = """
from apsislib.errors import FieldError

class Primes:
    def __init__(self, step):
        self.step = step

    @classmethod
    def from_config(cls, config):
        if config["step"] < 0:
            raise FieldError("step is negative", ["step"])
        return cls(config["step"])

    def after(self, start):
        for n in (2, 3, 5, 7, 11):
            if n * self.step >= start:
                yield n * self.step, {"prime": n}

    def __str__(self):
        return f"primes of {self.step} s"

class Outer:
    class Inner(Primes):
        pass

class Plain(Primes):
    def after(self, start):
        yield start + 2
        yield start + 1

    def to_json(self):
        return {"step": self.step, "more": True}

    def words(self):
        return "at odd times"

number = 5
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "our_schedules.py").write_text(OWN)
    (tmp_path / "our_broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    import sys

    sys.modules.pop("our_schedules", None)


@pytest.mark.parametrize("kind", ["our_schedules.Primes", "primes"])
def test_a_schedule_may_be_of_a_users_own_class(own, kind):
    mapping = {"type": kind, "step": 100, "args": {"a": 1}, "enabled": False}
    schedule = parse(mapping, CALENDARS, {"primes": "our_schedules.Primes"})
    assert schedule.enabled is False
    found = list(schedule.after(450.0))
    assert [o.time for o in found] == [500.0, 700.0, 1100.0]
    assert found[0].args == {
        "time": "1970-01-01T00:08:20+00:00",
        "prime": "5",
        "a": "1",
        "schedule_time": "1970-01-01T00:08:20+00:00",
    }
    assert schedule.to_json() == {**mapping, "args": {"a": "1"}, "str": "primes of 100 s"}
    assert words(schedule) == "primes of 100 s"


def test_a_users_own_class_may_stand_in_another(own):
    assert next(parse({"type": "our_schedules.Outer.Inner", "step": 1}, CALENDARS).after(0.0)).time == 2.0


def test_a_users_own_class_may_say_more_and_must_ascend(own):
    schedule = parse({"type": "our_schedules.Plain", "step": 1}, CALENDARS)
    assert schedule.to_json()["more"] is True
    assert words(schedule) == "at odd times"
    occurrences = schedule.after(10.0)
    assert next(occurrences).time == 12.0
    with pytest.raises(ValueError, match="schedule our_schedules.Plain: 11.0 comes after 12.0"):
        next(occurrences)


@pytest.mark.parametrize(
    "kind, said, keys",
    [
        (
            "our_schedules.Missing",
            "bad type: our_schedules.Missing: module 'our_schedules' has no",
            ("type",),
        ),
        ("our_schedules.Outer.Missing", "has no attribute 'Missing'", ("type",)),
        ("nowhere.at.all.Thing", "bad type: nowhere.at.all.Thing: No module named 'nowhere'", ("type",)),
        ("nowhere.Thing", "bad type: nowhere.Thing: No module named 'nowhere'", ("type",)),
        ("our_broken.Thing", "No module named 'nothing_of_this_name'", ("type",)),
        ("our_schedules.number", "type our_schedules.number not a schedule", ("type",)),
        ("our_schedules.Primes", "step is negative", ("step",)),
        ("our_schedules.Plain", "step is negative", ("step",)),
        (".Thing", "bad type: .Thing", ("type",)),
    ],
)
def test_a_users_own_class_that_does_not_work_is_the_job_files_error(own, kind, said, keys):
    error = refused({"type": kind, "step": -1})
    assert said in error.message
    assert error.keys == keys
    assert "KeyError: 'step'" in refused({"type": "our_schedules.Primes"}).message
