"""The calculus of dates that templates use: the documented examples, then the laws, then `ora` itself."""

from __future__ import annotations

import copy
import datetime
import pickle
from typing import Any

import ora  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apsislib import calendars, dates
from apsislib.dates import Date, Daytime, LocalTime, Month, Time, TimeZone, Weekday, from_local, to_local

NEW_YORK = "America/New_York"
ZONES = ("UTC", NEW_YORK, "Asia/Tokyo", "Asia/Kolkata", "Europe/London", "Australia/Lord_Howe")

days = st.dates(datetime.date(2, 1, 1), datetime.date(9998, 12, 31))
# Fractions that floats and ora's own ticks hold exactly.
seconds = st.integers(0, 86_400 * 16 - 1).map(lambda n: n / 16)
instants = st.integers(-2_000_000_000 * 16, 4_000_000_000 * 16).map(lambda n: n / 16)
zones = st.sampled_from(ZONES)


def weekdays(expression: str) -> dates.Calendar:
    return dates.Calendar(calendars.Calendars(None).get(expression))


def at(instant: float) -> Time:
    return Time(datetime.datetime.fromtimestamp(instant, datetime.UTC))


# -- dates


@pytest.mark.parametrize(
    "given_as",
    [
        ("2024-01-31",),
        ("20240131",),
        (20240131,),
        (2024, 1, 31),
        ((2024, 1, 31),),
        (datetime.date(2024, 1, 31),),
        (datetime.datetime(2024, 1, 31, 23, 59),),
        (Date("2024-01-31"),),
        ((Date("2024-01-31"), Daytime("09:30:00")),),
        (LocalTime(Date("2024-01-31"), Daytime("09:30:00")),),
    ],
)
def test_a_date_is_made_from_each_documented_form(given_as: tuple[Any, ...]) -> None:
    assert str(Date(*given_as)) == "2024-01-31"


@pytest.mark.parametrize(
    "text", ["2024-1-31", "2024/01/31", " 2024-01-31", "2024-01-31 ", "2024-02-30", "", "0000-01-01", "today"]
)
def test_a_text_that_is_no_date_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="can't parse as date") as error:
        Date(text)
    assert str(error.value) == f"can't parse as date: {text!r}"


@pytest.mark.parametrize("number", [5, 99999999, 20240230, -20240131, 10**30])
def test_a_number_that_is_no_date_is_named_in_the_error(number: int) -> None:
    with pytest.raises(ValueError, match=f"can't convert to a date: {number}"):
        Date(number)


@pytest.mark.parametrize("thing", [None, 3.5, True, (), (1,), Daytime("09:30:00"), b"2024-01-31"])
def test_what_is_no_date_at_all_is_a_type_error(thing: Any) -> None:
    with pytest.raises(TypeError, match="can't convert to a date"):
        Date(thing)


def test_days_are_added_and_taken_away() -> None:
    assert str(Date("2024-01-31") + 1) == "2024-02-01"
    assert str(1 + Date("2024-01-31")) == "2024-02-01"
    assert str(Date("2024-03-01") - 1) == "2024-02-29"
    assert Date("2024-03-01") - Date("2024-02-28") == 2
    # Args are texts: `Date(date) + days` works without a conversion.
    assert str(Date("2024-01-31") + "1") == "2024-02-01"
    assert str(Date("2024-01-31") - "1") == "2024-01-30"
    with pytest.raises(ValueError, match="not a number of days: 'a week'"):
        Date("2024-01-31") + "a week"
    with pytest.raises(OverflowError, match="date not in range"):
        Date("9999-12-31") + 1


def test_a_date_equals_and_orders_with_dates_only() -> None:
    assert Date("2024-01-31") == Date(20240131)
    assert Date("2024-01-31") != "2024-01-31"
    assert Date("2024-01-31") != Daytime("09:30:00")
    assert Date("2024-01-31") < Date("2024-02-01") <= Date("2024-02-01")
    assert Date("2024-02-01") > Date("2024-01-31") >= Date("2024-01-31")
    with pytest.raises(TypeError):
        assert Date("2024-01-31") < "2024-02-01"  # type: ignore[operator]
    assert len({Date("2024-01-31"), Date("20240131"), Date("2024-02-01")}) == 2


def test_a_date_has_the_documented_attributes() -> None:
    day = Date("2024-01-31")
    assert (day.year, day.month, day.day) == (2024, 1, 31)
    assert (str(day.month), int(day.month), f"{day.month}", f"{day.month:02d}") == ("Jan", 1, "Jan", "01")
    assert (str(day.weekday), day.weekday) == ("Wed", 2)
    assert (day.ordinal, day.week, day.week_year, day.ymdi, day.datenum) == (31, 5, 2024, 20240131, 738915)
    assert day.std == datetime.date(2024, 1, 31)
    assert " ".join(map(str, Month)) == "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"
    assert " ".join(map(str, Weekday)) == "Mon Tue Wed Thu Fri Sat Sun"
    assert int(Weekday.Mon) == 0


def test_a_date_has_the_documented_constructors() -> None:
    expected = Date("2024-01-31")
    assert Date.from_ymd(2024, 1, 31) == Date.from_ymd((2024, 1, 31)) == expected
    assert Date.from_ymdi(20240131) == expected
    assert Date.from_ordinal_date(2024, 31) == expected
    assert Date.from_week_date(2024, 5, 2) == expected
    with pytest.raises(ValueError, match="invalid date: day 366 of 2023"):
        Date.from_ordinal_date(2023, 366)
    with pytest.raises(ValueError, match="invalid date: week 53 of 2024, weekday 0"):
        Date.from_week_date(2024, 53, 0)


@settings(max_examples=150)
@given(days, st.integers(-400, 400))
def test_dates_agree_with_ora(day: datetime.date, count: int) -> None:
    ours, theirs = Date(day), ora.Date(day)
    assert str(ours) == str(theirs)
    for name in ("year", "month", "day", "weekday", "ordinal", "week", "week_year", "ymdi", "datenum"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert str(getattr(ours, name)) == str(getattr(theirs, name))
    assert Date.from_ordinal_date(ours.year, ours.ordinal) == ours
    assert Date.from_week_date(ours.week_year, ours.week, ours.weekday) == ours
    assert Date(ours.ymdi) == ours
    if 1 < ours.year < 9998:
        assert str(ours + count) == str(theirs + count)
        assert (ours + count) - ours == count


# -- daytimes


@pytest.mark.parametrize(
    ("given_as", "text"),
    [
        (("9:30:00",), "09:30:00"),
        (("09:30:00",), "09:30:00"),
        (("09:30:00.25",), "09:30:00.25"),
        ((37800,), "10:30:00"),
        ((37800.5,), "10:30:00.5"),
        ((9, 30, 0), "09:30:00"),
        ((9, 30), "09:30:00"),
        (((9, 30, 15.5),), "09:30:15.5"),
        ((datetime.time(9, 30, 15, 500_000),), "09:30:15.5"),
        ((Daytime("09:30:00"),), "09:30:00"),
        (((Date("2024-01-31"), Daytime("09:30:00")),), "09:30:00"),
    ],
)
def test_a_daytime_is_made_from_each_documented_form(given_as: tuple[Any, ...], text: str) -> None:
    assert str(Daytime(*given_as)) == text


@pytest.mark.parametrize(
    "thing", ["09:30", "24:00:00", "09:30:60", "093000", "", 86400, -1, (24, 0), (1, 60)]
)
def test_what_is_no_daytime_is_a_value_error(thing: Any) -> None:
    with pytest.raises(ValueError, match="daytime"):
        Daytime(thing)


def test_seconds_are_added_around_midnight() -> None:
    assert str(Daytime("09:30:00") + 3600) == "10:30:00"
    assert str(Daytime("23:30:00") + 3600) == "00:30:00"
    assert str(Daytime("00:30:00") - 3600) == "23:30:00"
    assert str(Daytime("09:30:00") + 86400) == "09:30:00"
    assert str(Daytime("09:30:00.1") + 0.2) == "09:30:00.3"
    assert str(Daytime("09:30:00") + "60") == "09:31:00"
    for wrong in ("soon", "nan"):
        with pytest.raises(ValueError, match="not a number of seconds"):
            Daytime("09:30:00") + wrong
    for huge in (1e300, "1e999999999", float("inf")):
        with pytest.raises(OverflowError):
            Daytime("09:30:00") + huge


def test_a_daytime_has_the_documented_attributes() -> None:
    time = Daytime("09:30:15.5")
    assert (time.hour, time.minute, time.second, time.ssm) == (9, 30, 15.5, 34215.5)
    assert isinstance(time.second, float)
    assert Daytime.from_hms(9, 30, 15.5) == Daytime.from_ssm(34215.5) == time
    assert Daytime("09:30:00") < time < Daytime("09:30:16")
    assert time != "09:30:15.5"


@settings(max_examples=150)
@given(seconds, st.integers(-200_000, 200_000))
def test_daytimes_agree_with_ora(ssm: float, more: int) -> None:
    ours, theirs = Daytime(ssm), ora.Daytime(ssm)
    assert str(ours) == str(theirs)
    assert str(ours + more) == str(theirs + more)
    assert str(ours - more) == str(theirs - more)
    assert (ours.hour, ours.minute, ours.second) == (theirs.hour, theirs.minute, theirs.second)
    assert Daytime(str(ours)) == ours


# -- times


@pytest.mark.parametrize(
    "given_as",
    [
        ("2024-01-31T09:30:00Z",),
        ("2024-01-31T09:30:00+00:00",),
        ("2024-01-31T04:30:00-05:00",),
        ("2024-01-31 09:30:00Z",),
        ("20240131T093000Z",),
        (datetime.datetime(2024, 1, 31, 9, 30, tzinfo=datetime.UTC),),
        (2024, 1, 31, 4, 30, 0, NEW_YORK),
        (Date("2024-01-31"), Daytime("04:30:00"), NEW_YORK),
        ("2024-01-31", "04:30:00", TimeZone(NEW_YORK)),
        (("2024-01-31", "04:30:00", NEW_YORK),),
        (Time("2024-01-31T09:30:00Z"),),
    ],
)
def test_a_time_is_made_from_each_documented_form(given_as: tuple[Any, ...]) -> None:
    assert str(Time(*given_as)) == "2024-01-31T09:30:00+00:00"


def test_fractions_of_a_time_are_kept() -> None:
    assert str(Time("2024-01-31T09:30:00.25Z")) == "2024-01-31T09:30:00.25+00:00"


@pytest.mark.parametrize(
    "thing", ["2024-01-31", "now", 0, 1.5, "2024-01-31T09:30Z", "2024-01-31T09:30:00", None]
)
def test_what_names_no_instant_is_no_time(thing: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="time"):
        Time(thing)


def test_times_and_seconds_are_added() -> None:
    time = Time("2024-01-31T09:30:00Z")
    assert str(time + 60) == "2024-01-31T09:31:00+00:00"
    assert str(time - 0.5) == "2024-01-31T09:29:59.5+00:00"
    assert str(time + "60") == "2024-01-31T09:31:00+00:00"
    difference = time - Time("2024-01-31T09:00:00Z")
    assert (difference, type(difference)) == (1800.0, float)
    assert time < time + 1 and time == Time(str(time)) and hash(time) == hash(Time(str(time)))
    assert time != str(time)
    with pytest.raises(TypeError):
        assert time < "2024-01-31T09:31:00Z"  # type: ignore[operator]
    with pytest.raises(OverflowError):
        time + 1e11 * 4
    assert time.std == datetime.datetime(2024, 1, 31, 9, 30, tzinfo=datetime.UTC)
    assert Time("1969-12-31T23:59:59.999Z").std.microsecond == 999_000


def test_a_zone_is_known_by_its_name() -> None:
    assert (TimeZone(NEW_YORK).name, str(TimeZone(NEW_YORK))) == (NEW_YORK, NEW_YORK)
    assert TimeZone("utc") == TimeZone("UTC") == TimeZone(TimeZone("UTC"))
    assert TimeZone("UTC") != "UTC"
    for wrong in ("Nope", "local", "../etc/passwd", ""):
        with pytest.raises(ValueError, match="unknown time zone"):
            TimeZone(wrong)


# -- local times


def test_a_local_time_is_a_pair_with_the_parts_of_both() -> None:
    local = to_local("2024-01-31T09:30:00Z", NEW_YORK)
    day, time = local
    assert (local[0], local[1], local.date, local.daytime) == (day, time, day, time)
    assert (str(local), str(day), str(time)) == ("2024-01-31T04:30:00", "2024-01-31", "04:30:00")
    assert (local.year, local.month, local.day, local.weekday, local.ymdi) == (2024, 1, 31, 2, 20240131)
    assert (local.hour, local.minute, local.second, local.ssm) == (4, 30, 0.0, 16200.0)
    assert Date(local) == day and Daytime(local) == time
    assert not hasattr(local, "nonsense")


def test_the_documented_conversions() -> None:
    assert str(to_local("2024-01-08T12:00:00Z", NEW_YORK).daytime) == "07:00:00"
    assert str(from_local(("2024-01-08", "09:30:00"), NEW_YORK)) == "2024-01-08T14:30:00+00:00"


def test_in_a_fold_the_first_of_two_instants_is_meant_unless_the_second_is_asked_for() -> None:
    local = ("2024-11-03", "01:30:00")
    assert str(from_local(local, NEW_YORK)) == "2024-11-03T05:30:00+00:00"
    assert str(from_local(local, NEW_YORK, first=False)) == "2024-11-03T06:30:00+00:00"
    assert str(from_local(("2024-01-08", "09:30:00"), NEW_YORK, first=False)) == "2024-01-08T14:30:00+00:00"


def test_a_local_time_in_a_gap_does_not_exist() -> None:
    with pytest.raises(
        RuntimeError, match="local time does not exist: 2024-03-10T02:30:00 in America/New_York"
    ):
        from_local(("2024-03-10", "02:30:00"), NEW_YORK)


def test_a_local_time_must_be_a_pair() -> None:
    with pytest.raises(TypeError, match="not a pair"):
        from_local("2024-01-31T09:30:00", NEW_YORK)


@settings(max_examples=150)
@given(instants, zones)
def test_times_agree_with_ora(instant: float, zone: str) -> None:
    ours = at(instant)
    theirs = ora.Time(str(ours))
    assert str(ours) == str(theirs)
    local = to_local(ours, zone)
    assert str(local) == str(ora.to_local(theirs, zone))
    for first in (True, False):
        back = from_local(local, zone, first=first)
        assert str(back) == str(ora.from_local(ora.to_local(theirs, zone), zone, first=first))
    assert to_local(back, zone) == local


# -- calendars


def test_a_calendar_takes_texts_and_gives_dates() -> None:
    work = weekdays("Mon-Fri")
    assert str(work.shift("2024-01-08", -1)) == "2024-01-05"
    assert str(work.shift("2024-01-05", "1")) == "2024-01-08"
    assert str(work.shift("2024-01-06", 0)) == "2024-01-06"
    assert str(work.before("2024-01-08")) == "2024-01-08"  # a member is its own `before`
    assert str(work.before(Date("2024-01-08") - 1)) == "2024-01-05"
    assert str(work.after("2024-01-06")) == "2024-01-08"
    assert (
        "2024-01-08" in work and Date("2024-01-06") not in work and work.contains(datetime.date(2024, 1, 8))
    )
    assert (work.name, str(work)) == ("Mon-Fri", "Mon-Fri")
    assert all(isinstance(end, Date) for end in work.range)


def test_calendars_are_sets_of_dates() -> None:
    work, monday = weekdays("Mon-Fri"), weekdays("Mon")
    assert "2024-01-06" in ~work and "2024-01-08" not in ~work
    assert "2024-01-08" in work & monday and "2024-01-09" not in work & monday
    assert "2024-01-06" in (work | ~work) and "2024-01-09" in (work ^ monday)


def test_a_calendar_equals_only_itself() -> None:
    one = calendars.Calendars(None).get("Mon-Fri")
    assert dates.Calendar(one) == dates.Calendar(one) and hash(dates.Calendar(one)) == hash(
        dates.Calendar(one)
    )
    assert weekdays("Mon-Fri") != weekdays("Mon-Fri")


@settings(max_examples=100)
@given(
    st.sampled_from(["Mon-Fri", "all", "Tue,Thu", "Fri-Mon", "6"]),
    st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1)),
    st.integers(-30, 30),
)
def test_calendars_agree_with_ora(name: str, day: datetime.date, count: int) -> None:
    ours, theirs = weekdays(name), ora.get_calendar(name)
    assert (day in ours) == (day in theirs)
    assert str(ours.shift(day, count)) == str(theirs.shift(day, count))
    assert str(ours.before(day)) == str(theirs.before(day))
    assert str(ours.after(day)) == str(theirs.after(day))
    assert ours.name == theirs.name


# -- all of them

VALUES = (
    Date("2024-01-31"),
    Daytime("09:30:15.25"),
    Time("2024-01-31T09:30:00.5Z"),
    TimeZone(NEW_YORK),
    to_local("2024-01-31T09:30:00Z", NEW_YORK),
)


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_are_hashable_and_copied_as_themselves(value: Any) -> None:
    assert {value: 1}[value] == 1
    assert copy.copy(value) == copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("value", VALUES[:4], ids=str)
def test_values_can_not_be_changed(value: Any) -> None:
    with pytest.raises(AttributeError, match="can't be changed"):
        value._value = 1
    with pytest.raises(AttributeError, match="can't be changed"):
        del value._value
    assert repr(value) == f"{type(value).__name__}({str(value)!r})"
