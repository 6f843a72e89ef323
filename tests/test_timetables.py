"""When each kind of schedule fires, and how it is shown."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise, takewhile

import ora
import pytest
from firing import (
    CALENDARS,
    NEW_YORK,
    at,
    cron,
    daily,
    daily_interval,
    dated,
    fires,
    first,
    interval,
    read,
    refused,
    short,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from apsislib import times
from apsislib.calendars import Calendars, get
from apsislib.schedules import parse, words
from apsislib.times import parse_time

# -- interval


@pytest.mark.parametrize(
    "schedule, start, expected",
    [
        (interval(3600), "2024-01-05 14:00", ["2024-01-05 14:00", "2024-01-05 15:00"]),
        (interval("1h"), "2024-01-05 14:00:00.5", ["2024-01-05 15:00", "2024-01-05 16:00"]),
        (interval(3600, phase=600), "2024-01-05 14:05", ["2024-01-05 14:10", "2024-01-05 15:10"]),
        (interval(3600, phase=600), "2024-01-05 14:10", ["2024-01-05 14:10", "2024-01-05 15:10"]),
        (interval(3600, phase="10m"), "2024-01-05 14:30", ["2024-01-05 15:10", "2024-01-05 16:10"]),
        (interval("1d"), "2024-01-05 14:10", ["2024-01-06 00:00", "2024-01-07 00:00"]),
        (interval(604800), "2024-01-05 14:10", ["2024-01-08 00:00", "2024-01-15 00:00"]),
        (interval(86401), "2024-01-05 14:10", ["2024-01-06 13:14:42", "2024-01-07 13:14:43"]),
        (interval(0.5), "2024-01-05 14:10:00.3", ["2024-01-05 14:10:00.5", "2024-01-05 14:10:01"]),
    ],
)
def test_an_interval_is_counted_from_year_one(schedule, start, expected):
    assert fires(schedule, start) == expected


def test_an_interval_of_seven_tenths_does_not_drift():
    found = [o.time for o in first(interval(0.7), "2024-01-05 00:00", 1001)]
    assert found[1000] - found[0] == pytest.approx(700, abs=5e-7)
    assert all(b > a for a, b in pairwise(found))


def test_an_interval_offers_date_and_daytime_in_utc():
    (occurrence,) = first(interval(3600, args={"region": "eu", "n": 5}), "2024-01-05 14:00", 1)
    assert occurrence.args == {
        "time": "2024-01-05T14:00:00+00:00",
        "date": "2024-01-05",
        "daytime": "14:00:00",
        "region": "eu",
        "n": "5",
        "schedule_time": "2024-01-05T14:00:00+00:00",
    }


# -- daily


def test_a_daily_schedule_includes_its_start():
    assert fires(daily(), "2024-01-05 14:30", 1) == ["2024-01-05 14:30"]
    assert fires(daily(), "2024-01-05 14:30:00.5", 1) == ["2024-01-06 14:30"]


def test_a_daily_schedule_offers_these_args():
    (occurrence,) = first(daily(), "2024-01-05 14:30", 1)
    assert occurrence.args == {
        "date": "2024-01-05",
        "time": "2024-01-05T14:30:00+00:00",
        "daytime": "09:30:00",
        "calendar": "all days",
        "tz": NEW_YORK,
        "schedule_time": "2024-01-05T14:30:00+00:00",
    }
    assert occurrence.note is None


def test_explicit_args_go_over_provided_ones_but_not_over_the_schedule_time():
    schedule = daily(args={"date": "never", "schedule_time": "never", "flag": True, "none": None})
    (occurrence,) = first(schedule, "2024-01-05 14:30", 1)
    assert occurrence.args["date"] == "never"
    assert occurrence.args["schedule_time"] == "2024-01-05T14:30:00+00:00"
    assert (occurrence.args["flag"], occurrence.args["none"]) == ("True", "None")


@pytest.mark.parametrize(
    "shift, start, expected",
    [
        ({}, "2024-01-05 15:00", [("08", "08")]),
        (
            {"date_shift": -1},
            "2024-01-05 15:00",
            [("07", "08"), ("08", "09"), ("09", "10"), ("10", "11"), ("11", "12"), ("14", "15")],
        ),
        ({"cal_shift": 1}, "2024-01-05 15:00", [("08", "05"), ("09", "08")]),
        (
            {"cal_shift": 1, "date_shift": -1},
            "2024-01-05 15:00",
            [("07", "05"), ("08", "08"), ("09", "09"), ("10", "10"), ("11", "11"), ("14", "12")],
        ),
        ({"cal_shift": -1}, "2024-01-06 15:00", [("08", "09"), ("09", "10")]),
    ],
)
def test_shifts_go_along_the_calendar_first_and_date_stays_nominal(shift, start, expected):
    expected = [(f"2024-01-{time} 14:30", f"2024-01-{day}") for time, day in expected]
    assert dated(daily(calendar="Mon-Fri", **shift), start, len(expected)) == expected


def test_the_day_before_a_holiday_is_asked_for_with_shifts():
    assert dated(daily(calendar="Mon", date_shift=-1), "2024-01-05 00:00", 2) == [
        ("2024-01-07 14:30", "2024-01-08"),
        ("2024-01-14 14:30", "2024-01-15"),
    ]
    schedule = daily(calendar="Mon-Fri", cal_shift=-1)
    assert ("2024-01-12 14:30", "2024-01-15") in dated(schedule, "2024-01-06 15:00", 6)


def test_daytimes_are_sorted_and_one_given_twice_fires_twice():
    schedule = daily(["17:00:00", 34200, "17:00:00"], "UTC")
    assert fires(schedule, "2024-01-05 00:00", 4) == [
        "2024-01-05 09:30",
        "2024-01-05 17:00",
        "2024-01-05 17:00",
        "2024-01-06 09:30",
    ]


def test_time_is_another_name_of_daytime():
    schedule = read({"type": "daily", "time": "01:30:00", "tz": "UTC"})
    assert fires(schedule, "2024-01-05 00:00", 1) == ["2024-01-05 01:30"]


# -- gaps and folds


def test_a_0230_job_runs_at_0330_on_the_day_that_has_no_0230_and_says_so():
    found = first(daily("02:30:00"), "2024-03-09 00:00", 3)
    assert [short(o.time) for o in found] == ["2024-03-09 07:30", "2024-03-10 07:30", "2024-03-11 06:30"]
    assert [o.note for o in found] == [
        None,
        "02:30:00 does not exist on 2024-03-10 in America/New_York, "
        "where clocks are put forward: moved to 03:30:00",
        None,
    ]
    assert (found[1].args["daytime"], found[1].args["date"]) == ("02:30:00", "2024-03-10")


def test_with_dst_gap_skip_it_does_not_run_that_day():
    found = fires(daily("02:30:00", dst_gap="skip"), "2024-03-09 00:00")
    assert found == ["2024-03-09 07:30", "2024-03-11 06:30"]


def test_times_shifted_out_of_a_gap_are_sorted_and_two_that_coincide_stay_two():
    found = first(daily(["02:30:00", "03:00:00", "03:30:00", "03:45:00"]), "2024-03-10 06:00", 5)
    assert [(short(o.time)[11:], o.args["daytime"][:5]) for o in found] == [
        ("07:00", "03:00"),
        ("07:30", "02:30"),
        ("07:30", "03:30"),
        ("07:45", "03:45"),
        ("06:30", "02:30"),
    ]


def test_a_time_shifted_past_midnight_is_found_from_the_next_day_on():
    schedule = daily(["00:10:00", "00:35:00", "23:45:00"], "America/Toronto")  # 23:30 to 00:30 in 1919
    moved = times.at_wall(date(1919, 3, 30), 85500, times.zone("America/Toronto"))[0]
    local = times.local(moved, times.zone("America/Toronto"))
    assert local == (date(1919, 3, 31), 2700)
    found = [o.args["date"] + " " + o.args["daytime"] for o in islice(schedule.after(moved - 7200), 5)]
    assert found == [
        "1919-03-31 00:35:00",
        "1919-03-30 23:45:00",
        "1919-03-31 00:10:00",
        "1919-03-31 23:45:00",
        "1919-04-01 00:10:00",
    ]
    assert next(schedule.after(moved)).args["date"] == "1919-03-30"


@pytest.mark.parametrize("start", ["2024-11-03 05:45", "2024-11-03 06:15"])
def test_a_0130_job_runs_in_the_first_of_two_hours_alone(start):
    assert fires(daily("01:30:00"), start, 1) == ["2024-11-04 06:30"]
    assert fires(daily("01:30:00"), "2024-11-03 05:30", 1) == ["2024-11-03 05:30"]


def test_a_0130_job_can_run_in_the_second_hour_or_in_both():
    second, both = (daily("01:30:00", dst_fold=fold) for fold in ("second", "both"))
    assert fires(second, "2024-11-02 05:45") == ["2024-11-03 06:30", "2024-11-04 06:30"]
    assert fires(both, "2024-11-02 05:45") == ["2024-11-03 05:30", "2024-11-03 06:30"]


def test_a_date_that_a_zone_left_out_has_no_run():
    found = dated(daily("12:00:00", "Pacific/Apia"), "2011-12-29 00:00", 3)
    assert [day for _, day in found] == ["2011-12-29", "2011-12-31", "2012-01-01"]


# -- daily-interval


@pytest.mark.parametrize(
    "schedule, start, expected",
    [
        (daily_interval("12:00:00", "13:00:00", 1800), "2024-01-05 17:10", "01-05 17:30, 01-06 17:00"),
        (daily_interval("01:00:00", "04:00:00"), "2024-03-10 00:00", "03-10 06:00, 03-10 07:00, 03-11 05:00"),
        (
            daily_interval("00:00:00", "03:00:00"),
            "2024-11-03 00:00",
            "11-03 04:00, 11-03 05:00, 11-03 06:00, 11-03 07:00, 11-04 05:00",
        ),
        (
            daily_interval("02:00:00", "04:00:00"),
            "2024-03-09 12:00",
            "03-10 07:00, 03-11 06:00",  # start shifted to 03:00; one hour is left of two
        ),
        (
            daily_interval("02:00:00", "04:00:00", dst_gap="skip"),
            "2024-03-09 12:00",
            "03-11 06:00, 03-11 07:00",
        ),
        (
            daily_interval("01:30:00", "02:30:00", 1800),
            "2024-11-03 05:30",
            "11-03 05:30, 11-03 06:00, 11-03 06:30, 11-03 07:00",
        ),
        (
            daily_interval("01:30:00", "02:30:00", 1800, dst_fold="second"),
            "2024-11-03 05:30",
            "11-03 06:30, 11-03 07:00",
        ),
        (
            daily_interval("00:30:00", "01:30:00", 1800),
            "2024-11-03 04:30",
            "11-03 04:30, 11-03 05:00, 11-04 05:30",
        ),
        (
            daily_interval("00:30:00", "01:30:00", 1800, dst_fold="both"),
            "2024-11-03 04:30",
            "11-03 04:30, 11-03 05:00, 11-03 05:30, 11-03 06:00, 11-04 05:30",
        ),
    ],
)
def test_a_daily_interval_steps_physically_from_start_up_to_stop(schedule, start, expected):
    found = fires(schedule, start, len(expected.split(", ")))
    assert [text[5:] for text in found] == expected.split(", ")


def test_a_daily_interval_over_midnight_keeps_the_nominal_date():
    schedule = daily_interval("22:00:00", {"daytime": "02:00:00", "date_shift": 1})
    (occurrence,) = first(schedule, "2024-01-06 05:10", 1)
    assert short(occurrence.time) == "2024-01-06 06:00"
    args = {key: occurrence.args[key] for key in ("date", "sched_date", "daytime", "calendar", "tz")}
    assert args == {
        "date": "2024-01-05",
        "sched_date": "2024-01-06",
        "daytime": "01:00:00",
        "calendar": "all days",
        "tz": NEW_YORK,
    }


def test_a_window_whose_start_was_shifted_says_so_once():
    found = first(daily_interval("02:30:00", "05:30:00", 3600), "2024-03-10 05:00", 3)
    assert [short(o.time)[11:] for o in found] == ["07:30", "08:30", "06:30"]
    assert found[0].note and "02:30:00 does not exist on 2024-03-10" in found[0].note
    assert found[1].note is None and found[2].note is None


def test_windows_that_overlap_are_merged_in_order():
    schedule = daily_interval("12:00:00", {"daytime": "12:30:00", "date_shift": 2}, 36000, "UTC")
    found = first(schedule, "2024-01-05 13:00", 40)
    assert all(a.time <= b.time for a, b in pairwise(found))
    truth = sorted(
        (at(f"{date(2024, 1, 1) + timedelta(n)} 12:00") + 36000 * k, str(date(2024, 1, 1) + timedelta(n)))
        for n in range(30)
        for k in range(5)
    )
    expected = [pair for pair in truth if pair[0] >= at("2024-01-05 13:00")][:40]
    assert [(o.time, o.args["date"]) for o in found] == expected


def test_a_window_may_reach_from_one_working_day_to_the_next():
    schedule = daily_interval(
        "22:00:00", {"daytime": "02:00:00", "cal_shift": 1}, "12h", "UTC", calendar="Mon-Fri"
    )
    assert dated(schedule, "2024-01-05 12:00", 9)[:8] == [
        ("2024-01-05 22:00", "2024-01-05"),
        ("2024-01-06 10:00", "2024-01-05"),
        ("2024-01-06 22:00", "2024-01-05"),
        ("2024-01-07 10:00", "2024-01-05"),
        ("2024-01-07 22:00", "2024-01-05"),
        ("2024-01-08 22:00", "2024-01-08"),
        ("2024-01-09 22:00", "2024-01-09"),
        ("2024-01-10 22:00", "2024-01-10"),
    ]


# -- explicit and cron


def test_explicit_times_are_sorted_and_may_be_unquoted_in_yaml():
    given_ = ["2024-01-05T14:30:00Z", datetime(2024, 1, 5, 9, tzinfo=UTC), "2024-01-05T05:00:00-05:00"]
    schedule = read({"type": "explicit", "times": given_})
    assert fires(schedule, "2024-01-01 00:00", 9) == [
        "2024-01-05 09:00",
        "2024-01-05 10:00",
        "2024-01-05 14:30",
    ]
    assert fires(schedule, "2024-01-05 10:00", 9) == ["2024-01-05 10:00", "2024-01-05 14:30"]
    assert fires(schedule, "2025-01-05 10:00", 9) == []
    assert fires(read({"type": "explicit", "times": "2024-01-05T14:30:00Z"}), "2024-01-01 00:00", 9) == [
        "2024-01-05 14:30"
    ]


def test_fixed_times_of_cron_obey_gap_and_fold():
    found = first(cron("30 2 * * *"), "2024-03-09 00:00", 3)
    assert [short(o.time) for o in found] == ["2024-03-09 07:30", "2024-03-10 07:30", "2024-03-11 06:30"]
    assert found[1].note and "02:30:00 does not exist" in found[1].note
    skipping = cron("30 2 * * *", dst_gap="skip")
    assert fires(skipping, "2024-03-09 00:00") == ["2024-03-09 07:30", "2024-03-11 06:30"]
    assert fires(cron("30 1 * * *"), "2024-11-03 05:00") == ["2024-11-03 05:30", "2024-11-04 06:30"]
    both = cron("30 1 * * *", dst_fold="both")
    assert fires(both, "2024-11-03 05:00") == ["2024-11-03 05:30", "2024-11-03 06:30"]


def test_a_wildcard_of_cron_follows_physical_time():
    hourly = cron("30 * * * *")
    assert fires(hourly, "2024-03-10 06:00", 3) == [
        "2024-03-10 06:30",
        "2024-03-10 07:30",
        "2024-03-10 08:30",
    ]
    assert fires(hourly, "2024-11-03 05:00", 3) == [
        "2024-11-03 05:30",
        "2024-11-03 06:30",
        "2024-11-03 07:30",
    ]
    assert [o.args["daytime"] for o in first(hourly, "2024-11-03 05:00", 3)] == ["01:30:00"] * 2 + [
        "02:30:00"
    ]
    assert fires(cron("*/30 2 * * *"), "2024-03-10 00:00", 1) == ["2024-03-11 06:00"]


def test_cron_offers_these_args():
    (occurrence,) = first(cron("@daily", calendar="Mon-Fri"), "2024-01-06 00:00", 1)
    assert occurrence.args == {
        "date": "2024-01-08",
        "time": "2024-01-08T05:00:00+00:00",
        "daytime": "00:00:00",
        "calendar": "Mon-Fri",
        "tz": NEW_YORK,
        "schedule_time": "2024-01-08T05:00:00+00:00",
    }


@pytest.mark.parametrize("tz", [NEW_YORK, "Australia/Lord_Howe", "Europe/London"])
@pytest.mark.parametrize("text", ["*/10 * * * *", "7,37 */2 * * *", "0 * 10 3 *", "*/15 1-3 * * sun"])
def test_physical_cron_fires_whenever_clocks_show_a_matching_time(tz, text):
    minutes, hours = {
        "*/10 * * * *": (range(0, 60, 10), range(24)),
        "7,37 */2 * * *": ((7, 37), range(0, 24, 2)),
        "0 * 10 3 *": ((0,), range(24)),
        "*/15 1-3 * * sun": (range(0, 60, 15), (1, 2, 3)),
    }[text]
    zone = times.zone(tz)
    for middle in ("2024-03-10", "2024-03-31", "2024-04-07", "2024-10-06", "2024-10-27", "2024-11-03"):
        start, stop = at(f"{middle} 00:00") - 86400, at(f"{middle} 00:00") + 2 * 86400
        truth = []
        for t in range(int(start), int(stop), 60):
            shown = datetime.fromtimestamp(t, zone)
            day = (
                (shown.month, shown.day) == (3, 10)
                if "10 3" in text
                else "sun" not in text or shown.weekday() == 6
            )
            if shown.minute in minutes and shown.hour in hours and day:
                truth.append(float(t))
        found = takewhile(lambda t, stop=stop: t < stop, (o.time for o in cron(text, tz).after(start)))
        assert list(found) == truth


# -- the definition, by brute force and by ora

MEMBERS = {name: get(name) for name in ("all", "Mon-Fri", "Tue,Fri", "Sun", "Fri-Mon")}


def shifted(calendar, day: date, count: int) -> date:
    step = timedelta(1 if count > 0 else -1)
    while count:
        day += step
        if day in calendar:
            count -= 1 if count > 0 else -1
    return day


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("cal_shift", [-7, -2, -1, 0, 1, 3])
@pytest.mark.parametrize("date_shift", [-9, -1, 0, 2])
def test_shifts_are_what_their_definition_gives(name, cal_shift, date_shift):
    calendar, begin = MEMBERS[name], date(2024, 2, 1)
    truth = []
    for n in range(200):
        day = begin + timedelta(n)
        if day in calendar:
            meant = shifted(calendar, day, cal_shift) + timedelta(date_shift)
            for seconds in (9000, 43200):
                truth += [(t, str(day)) for t in times.at_wall(meant, seconds, times.zone(NEW_YORK))]
    schedule = daily(["02:30:00", "12:00:00"], calendar=name, cal_shift=cal_shift, date_shift=date_shift)
    start = at("2024-03-08 16:00")
    found = [(o.time, o.args["date"]) for o in islice(schedule.after(start), 12)]
    assert found == sorted(pair for pair in truth if pair[0] >= start)[:12]


ZONES = [NEW_YORK, "Europe/London", "America/Sao_Paulo", "Asia/Tokyo", "Australia/Lord_Howe", "UTC"]
moments = st.datetimes(datetime(1995, 1, 1), datetime(2030, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC).timestamp()
)


def by_ora(day: date, seconds: int, tz: str) -> float | None:
    try:
        return parse_time(str(ora.from_local((ora.Date(day), ora.Daytime(seconds)), tz)))
    except ora.NonexistentDateDaytime:
        return None


@settings(max_examples=100)
@given(
    moments,
    st.lists(st.integers(0, 86399), min_size=1, max_size=4),
    st.sampled_from(ZONES),
    st.sampled_from(list(MEMBERS)),
)
def test_daily_with_dst_gap_skip_is_what_ora_gives(start, daytimes, tz, name):
    begin = datetime.fromtimestamp(start, UTC).date() - timedelta(2)
    calendar = ora.get_calendar(name)
    truth = [
        by_ora(day, seconds, tz)
        for day in (begin + timedelta(n) for n in range(12))
        if ora.Date(day) in calendar
        for seconds in daytimes
    ]
    expected = sorted(t for t in truth if t is not None and t >= start)
    schedule = daily(daytimes, tz, calendar=name, dst_gap="skip")
    found = (
        list(takewhile(lambda t: t <= expected[-1], (o.time for o in schedule.after(start))))
        if expected
        else []
    )
    assert found[: len(expected)] == expected


@settings(max_examples=100)
@given(
    moments,
    st.integers(0, 86399),
    st.integers(1, 2 * 86400),
    st.integers(600, 86399),
    st.sampled_from(ZONES),
    st.sampled_from(list(MEMBERS)),
)
def test_daily_interval_with_dst_gap_skip_is_what_ora_gives(start, from_, length, step, tz, name):
    begin = datetime.fromtimestamp(start, UTC).date() - timedelta(4)
    calendar, truth = ora.get_calendar(name), []
    days, to = divmod(from_ + length, 86400)
    for day in (begin + timedelta(n) for n in range(14)):
        if ora.Date(day) in calendar:
            a, b = by_ora(day, from_, tz), by_ora(day + timedelta(days), to, tz)
            if a is not None and b is not None:
                truth += [(a + k * step, str(day)) for k in range(-(-int(b - a) // step))]
    limit = start + 7 * 86400
    expected = sorted(pair for pair in truth if start <= pair[0] < limit)
    schedule = daily_interval(
        from_, {"daytime": to, "date_shift": days}, step, tz, calendar=name, dst_gap="skip"
    )
    found = takewhile(lambda pair: pair[0] < limit, ((o.time, o.args["date"]) for o in schedule.after(start)))
    assert list(found) == expected


policies = st.fixed_dictionaries(
    {
        "dst_gap": st.sampled_from(["shift", "skip"]),
        "dst_fold": st.sampled_from(["first", "second", "both"]),
        "tz": st.sampled_from([*ZONES, "America/Toronto", "Africa/Casablanca", "Pacific/Apia"]),
        "calendar": st.sampled_from(list(MEMBERS)),
    }
)
quarters = st.integers(0, 95).map(lambda n: n * 900)
schedules = st.one_of(
    st.builds(
        lambda daytimes, policy, shift: daily(daytimes, date_shift=shift, **policy),
        st.lists(quarters, min_size=1, max_size=5),
        policies,
        st.integers(-2, 2),
    ),
    st.builds(
        lambda start, stop, days, step, policy: daily_interval(
            start, {"daytime": stop, "date_shift": days}, step, **policy
        ),
        quarters,
        quarters,
        st.integers(1, 3),
        st.sampled_from([900, 5400, 36000]),
        policies,
    ),
    st.builds(
        lambda minute, hour, policy: cron(f"{minute} {hour} * * *", **policy),
        st.sampled_from(["0", "15,45"]),
        st.sampled_from(["0", "1,2", "0-3", "23,0"]),
        policies,
    ),
    st.builds(
        lambda text, tz: cron(text, tz),
        st.sampled_from(["*/20 * * * *", "0 */3 * * *", "30 * * * mon"]),
        st.sampled_from(ZONES),
    ),
    st.builds(lambda seconds: interval(seconds), st.sampled_from([0.7, 1800, 86401])),
)
# Where clocks are moved: New York, London, São Paulo, Lord Howe, Toronto, Casablanca, Apia.
eventful = st.sampled_from(
    ["2024-03-10", "2024-11-03", "2024-03-31", "2024-10-27", "2018-11-04", "2018-02-18", "2024-04-07"]
    + ["2024-10-06", "1919-03-31", "2019-05-05", "2019-06-09", "2011-12-30"]
)


@settings(max_examples=200)
@given(schedules, eventful, st.integers(-48, 24), st.integers(0, 96))
def test_a_later_start_gives_the_rest_of_the_same_sequence_in_order(schedule, day, hours, quarters_later):
    start = at(f"{day} 00:00") + hours * 3600
    later = start + quarters_later * 900
    stop = later + 2 * 86400
    whole = list(takewhile(lambda o: o.time < stop, islice(schedule.after(start), 3000)))
    rest = list(takewhile(lambda o: o.time < stop, islice(schedule.after(later), 3000)))
    if len(whole) < 3000:
        assert rest == [o for o in whole if o.time >= later]
    assert all(start <= a.time <= b.time for a, b in pairwise(whole))


# -- as the API shows them


@pytest.mark.parametrize(
    "schedule, shown, said",
    [
        (interval(3600), "every 3600.0 sec", "every 1 h"),
        (
            interval(3600, phase=60, args={"a": 1, "b": 2}),
            "(a=1, b=2) every 3600.0 sec",
            "every 1 h, 1 min later",
        ),
        (daily(), "all days at 09:30:00 America/New_York", "every day at 09:30 New York time"),
        (
            daily(
                ["09:00:00", "17:00:05"], "America/Chicago", calendar="Mon-Fri", cal_shift=-1, date_shift=2
            ),
            "Mon-Fri at 09:00:00, 17:00:05 America/Chicago -1 cal days +2 days",
            "weekdays at 09:00 and 17:00:05 Chicago time, moved by -1 cal days +2 days",
        ),
        (
            daily_interval("09:30:00", {"daytime": "02:00:00", "date_shift": 1}, 600, "UTC", calendar="Mon"),
            "Mon every 600.0 sec from 09:30:00 to 02:00:00 +1 days UTC",
            "Mon, every 10 min from 09:30 to 02:00 the next day UTC",
        ),
        (
            read({"type": "explicit", "times": ["2024-01-06T00:00:00Z", "2024-01-05T14:30:00.5Z"]}),
            "2024-01-05T14:30:00.5+00:00, 2024-01-06T00:00:00+00:00",
            "at 2024-01-05T14:30:00.5+00:00, 2024-01-06T00:00:00+00:00",
        ),
        (
            cron("*/5 9-17 * * mon-fri", calendar="Tue-Sun"),
            "cron */5 9-17 * * mon-fri America/New_York, Tue-Sun",
            "every 5 minutes of hours 9-17 on Mon-Fri, New York time, only Tue-Sun",
        ),
        (
            cron("30 2 * * *", dst_gap="skip"),
            "cron 30 2 * * * America/New_York",
            "at 02:30 every day, New York time",
        ),
    ],
)
def test_a_schedule_is_said_shortly_and_in_words(schedule, shown, said):
    assert schedule.to_json()["str"] == shown
    assert words(schedule) == said


def test_the_json_of_each_type_has_the_documented_fields():
    assert daily(calendar="Mon-Fri", args={"a": 1}).to_json() == {
        "type": "daily",
        "enabled": True,
        "tz": NEW_YORK,
        "calendar": "Mon-Fri",
        "daytime": ["09:30:00"],
        "date_shift": 0,
        "cal_shift": 0,
        "args": {"a": "1"},
        "str": "Mon-Fri at 09:30:00 America/New_York",
    }
    assert daily_interval(
        "22:00:00", {"daytime": "02:00:00", "date_shift": 1}, dst_fold="both"
    ).to_json() == {
        "type": "daily-interval",
        "enabled": True,
        "tz": NEW_YORK,
        "calendar": "all days",
        "start": "22:00:00",
        "stop": {"daytime": "02:00:00", "date_shift": 1, "cal_shift": 0},
        "interval": 3600.0,
        "dst_fold": "both",
        "args": {},
        "str": "all days every 3600.0 sec from 22:00:00 to 02:00:00 +1 days America/New_York",
    }
    assert read({"type": "explicit", "times": "2024-01-05T14:30:00Z"}).to_json() == {
        "type": "explicit",
        "enabled": True,
        "times": ["2024-01-05T14:30:00+00:00"],
        "args": {},
        "str": "2024-01-05T14:30:00+00:00",
    }
    assert cron("30 2 * * *", dst_gap="skip").to_json() == {
        "type": "cron",
        "enabled": True,
        "cron": "30 2 * * *",
        "tz": NEW_YORK,
        "calendar": "all days",
        "dst_gap": "skip",
        "args": {},
        "str": "cron 30 2 * * * America/New_York",
    }


@given(schedules)
def test_what_is_shown_without_str_is_the_same_schedule_again(schedule):
    shown = json.loads(json.dumps(schedule.to_json()))
    del shown["str"]
    again = parse(shown, CALENDARS)
    start = at("2024-03-09 12:00")
    assert list(islice(again.after(start), 20)) == list(islice(schedule.after(start), 20))


# -- ends


def test_dates_that_a_shift_leads_out_of_the_calendar_have_no_run(tmp_path):
    (tmp_path / "two.cal").write_text("2023-12-29\n2024-03-10\n")
    calendars = Calendars(tmp_path)
    common = {"tz": NEW_YORK, "calendar": "two"}
    later = parse({"type": "daily", "daytime": "02:30:00", "cal_shift": 1, **common}, calendars)
    assert dated(later, "2020-01-01 00:00", 9) == [("2024-03-10 07:30", "2023-12-29")]
    assert dated(later, "2024-03-10 07:30:01", 9) == []
    error = refused({"type": "daily", "daytime": 0, "cal_shift": 2, **common}, calendars)
    assert error.message == "daily schedule never fires"
    edges = {"start": {"daytime": "22:00:00", "cal_shift": -1}, "stop": "02:00:00"}
    window = parse({"type": "daily-interval", **edges, "interval": "12h", **common}, calendars)
    assert dated(window, "2023-12-30 00:00", 2) == [
        ("2023-12-30 03:00", "2024-03-10"),
        ("2023-12-30 15:00", "2024-03-10"),
    ]
    assert window.to_json()["start"] == {"daytime": "22:00:00", "date_shift": 0, "cal_shift": -1}


@pytest.mark.parametrize(
    "schedule", [daily(), cron("* * * * *"), daily_interval("09:00:00", "10:00:00"), interval(60)]
)
def test_every_schedule_ends_with_the_range_of_dates(schedule):
    assert list(schedule.after(float("inf"))) == []
    assert list(schedule.after(float("nan"))) == []
    assert next(schedule.after(-float("inf"))).time >= times.FIRST
    near = list(schedule.after(times.LAST - 3 * 86400))
    assert near and all(a.time < b.time for a, b in pairwise(near))
