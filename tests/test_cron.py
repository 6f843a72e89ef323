"""Cron's five fields."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import islice

import pytest
from croniter import croniter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apsislib import cron
from apsislib.calendars import ALL, Calendar, get

START = date(2024, 1, 5)  # a Friday


def dates(text: str, count: int = 3, start: date = START, calendar: Calendar = ALL) -> list[str]:
    days = cron.parse(text).days(start.toordinal(), calendar)
    return [date.fromordinal(n).isoformat() for n in islice(days, count)]


def clock(text: str) -> list[str]:
    return [str(timedelta(seconds=s))[:-3] for s in cron.parse(text).daytimes]


@pytest.mark.parametrize(
    "text, daytimes",
    [
        ("30 2 * * *", ["2:30"]),
        ("0,30 9-10 * * *", ["9:00", "9:30", "10:00", "10:30"]),
        ("*/20 23 * * *", ["23:00", "23:20", "23:40"]),
        ("10-30/10 1 * * *", ["1:10", "1:20", "1:30"]),
        ("50/5 1 * * *", ["1:50", "1:55"]),
        ("0 20-23/2,1 * * *", ["1:00", "20:00", "22:00"]),
        ("@daily", ["0:00"]),
        ("@MIDNIGHT", ["0:00"]),
    ],
)
def test_lists_ranges_and_steps_of_minutes_and_hours(text, daytimes):
    assert clock(text) == daytimes


@pytest.mark.parametrize(
    "text, days",
    [
        ("0 0 * * *", ["2024-01-05", "2024-01-06", "2024-01-07"]),
        ("0 0 * * 1", ["2024-01-08", "2024-01-15", "2024-01-22"]),
        ("0 0 * * 0", ["2024-01-07", "2024-01-14", "2024-01-21"]),
        ("0 0 * * 7", ["2024-01-07", "2024-01-14", "2024-01-21"]),
        ("0 0 * * SUN", ["2024-01-07", "2024-01-14", "2024-01-21"]),
        ("0 0 * * sat-sun", ["2024-01-06", "2024-01-07", "2024-01-13"]),
        ("0 0 * * 5-7", ["2024-01-05", "2024-01-06", "2024-01-07"]),
        ("0 0 31 * *", ["2024-01-31", "2024-03-31", "2024-05-31"]),
        ("0 0 29 2 *", ["2024-02-29", "2028-02-29", "2032-02-29"]),
        ("0 0 1 feb,Mar *", ["2024-02-01", "2024-03-01", "2025-02-01"]),
        ("@weekly", ["2024-01-07", "2024-01-14", "2024-01-21"]),
        ("@monthly", ["2024-02-01", "2024-03-01", "2024-04-01"]),
        ("@yearly", ["2025-01-01", "2026-01-01", "2027-01-01"]),
        ("@annually", ["2025-01-01", "2026-01-01", "2027-01-01"]),
    ],
)
def test_dates_by_day_of_month_month_and_weekday(text, days):
    assert dates(text) == days


def test_day_of_month_or_weekday_suffices_if_both_are_given():
    assert dates("0 0 13 * fri", 4) == ["2024-01-05", "2024-01-12", "2024-01-13", "2024-01-19"]
    assert dates("0 0 31 2 mon", 2) == ["2024-02-05", "2024-02-12"]


def test_both_are_needed_if_one_begins_with_a_star():
    assert dates("0 0 */2 * fri") == ["2024-01-05", "2024-01-19", "2024-02-09"]
    assert dates("0 0 13 * */5") == ["2024-09-13", "2024-10-13", "2024-12-13"]  # Sundays and Fridays


def test_a_calendar_narrows_the_dates():
    assert dates("0 0 1 * *", 3, calendar=get("Mon-Fri")) == ["2024-02-01", "2024-03-01", "2024-04-01"]
    assert dates("0 0 29 2 *", 2, calendar=get("Mon")) == ["2044-02-29", "2072-02-29"]
    listed = Calendar("listed", (), {date(2024, 1, d).toordinal() for d in (1, 8, 9, 15)})
    assert dates("0 0 * * mon", 5, calendar=listed) == ["2024-01-08", "2024-01-15"]


def test_dates_end_with_the_calendar():
    short = Calendar("short", range(7), (), START.toordinal(), START.toordinal() + 3)
    assert dates("0 0 * * *", 99, calendar=short) == ["2024-01-05", "2024-01-06", "2024-01-07"]
    assert dates("0 0 * * *", 99, date(2025, 1, 1), short) == []
    assert dates("0 0 31 12 *", 9, date(9998, 12, 31)) == ["9998-12-31"]


def test_a_calendar_without_a_common_date_ends_the_search():
    assert dates("0 0 */1 * mon", calendar=get("Tue-Sun")) == []
    excepted = Calendar("excepted", range(1, 7), {date(2600, 1, 6).toordinal()})  # a Monday, far off
    assert dates("0 0 */1 * mon", calendar=excepted) == ["2600-01-06"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("0 0 31 2 *", "cron '0 0 31 2 *' never fires: no month that it names has day 31"),
        ("0 0 30,31 feb *", "never fires: no month that it names has day 30"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("0 0 31 2 */2", "never fires"),
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields (write minute, hour, day of month, month, day of week)"),
        ("0 * * * * *", "has 6 fields"),
        ("60 * * * *", "'60' is no minute (known: 0 to 59)"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day of month"),
        ("* * * 13 *", "'13' is no month (known: 1 to 12 or jan, feb"),
        ("* * * * 8", "'8' is no day of week"),
        ("* * * * monday", "'monday' is no day of week"),
        ("jan * * * *", "'jan' is no minute"),
        ("*/0 * * * *", "step 0 in minute"),
        ("0 22-2 * * *", "range '22-2' in hour runs backwards (write 22-23,0-2)"),
        ("1,,2 * * * *", "'' in minute"),
        ("-1 * * * *", "'-1' in minute"),
        ("1- * * * *", "'1-' in minute"),
        ("1.5 * * * *", "'1.5' in minute"),
        ("* * L * *", "'L' is no day of month"),
        ("* * ? * *", "'?' in day of month"),
        ("* * * * 5#2", "'5#2' in day of week"),
        ("٣ * * * *", "'٣' in minute"),
        ("@reboot", "(known: @yearly, @annually"),
        (5, "can't parse as cron: 5 (write five fields in quotes)"),
    ],
)
def test_what_never_fires_or_is_no_cron_is_refused_by_name(text, said):
    with pytest.raises(ValueError) as caught:
        cron.parse(text)
    assert said in str(caught.value)


def test_a_wildcard_or_step_in_minute_or_hour_follows_physical_time():
    physical = ["* * * * *", "*/5 2 * * *", "0 * * * *", "0 */2 * * *", "0-30/10 2 * * *", "@hourly"]
    fixed = ["30 2 * * *", "0,30 1-3 * * *", "0 0 */2 * *", "@daily"]
    assert [cron.parse(text).physical for text in physical + fixed] == [True] * 6 + [False] * 4


@pytest.mark.parametrize(
    "text, said",
    [
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("0 * * * *", "every hour"),
        ("15 * * * *", "every hour at minute 15"),
        ("*/15 9-17 * * mon-fri", "every 15 minutes of hours 9-17 on Mon-Fri"),
        ("30 2 * * *", "at 02:30 every day"),
        ("0 2,14 1,15 * *", "at 02:00 and 14:00 on days 1 and 15 of the month"),
        ("0 0 1 1,7 *", "at 00:00 on day 1 of the month in Jan and Jul"),
        ("0 0 13 * fri", "at 00:00 on day 13 of the month and on Fri"),
        ("0 0 13 * */5", "at 00:00 on day 13 of the month if it is Fri and Sun"),
        ("5,10 1-9 * * *", "at minutes 5 and 10 of hours 1-9 every day"),
        ("0 1-9 * * *", "at minute 0 of hours 1-9 every day"),
    ],
)
def test_an_expression_is_said_in_words(text, said):
    assert cron.parse(text).words() == said


def field(low: int, high: int):
    number = st.integers(low, high)
    # Of two numbers that differ: croniter takes 0-0 for a star.
    ranges = st.sets(number, min_size=2, max_size=2).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.integers(1, high)
    item = st.one_of(
        number.map(str),
        ranges,
        st.builds("{}/{}".format, ranges, steps),
        st.builds("*/{}".format, steps),  # but no bare star in a list, which croniter reads otherwise
    )
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


crons = st.builds(
    "{} {} {} {} {}".format, field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6)
)


@settings(max_examples=60)  # croniter searches slowly
@given(crons, st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)))
def test_dates_and_daytimes_are_those_of_croniter(text, start):
    ours = cron.parse(text)
    # croniter takes a field that names every value for a star; to crontab only what begins with one is.
    _, _, days, _, weekdays = text.split()
    assume(days.startswith("*") or len(ours.monthdays) < 31)
    assume(weekdays.startswith("*") or len(ours.weekdays) < 7)
    theirs = croniter(text, start.replace(tzinfo=UTC), ret_type=datetime, implement_cron_bug=True)
    expected = [theirs.get_next().replace(tzinfo=None) for _ in range(3)]
    found: list[datetime] = []
    for n in ours.days(start.toordinal(), ALL):
        midnight = datetime.fromordinal(n)
        moments = (midnight + timedelta(seconds=s) for s in ours.daytimes)
        found += [moment for moment in moments if moment > start]
        if len(found) >= 3:
            break
    assert found[:3] == expected
