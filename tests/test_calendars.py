"""Calendars: names, files, and what they answer."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import islice

import ora
import ora.calendar
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apsislib.calendars import ALL, NONE, Calendar, Calendars, OutOfRange, get, read

MONDAY = date(2024, 1, 8)
WEEK = [MONDAY + timedelta(n) for n in range(7)]
WORKDAYS = """\
# New Year's week
START 2024-01-01
STOP 2024-02-01

2024-01-02
20240103  a comment
  2024-01-05
2024-01-02
"""


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "workdays.cal").write_text(WORKDAYS)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "v1.2.cal").write_text("2024-03-01\r\n2024-03-05\r\n")
    return tmp_path


def members(calendar: Calendar) -> str:
    return "".join("x" if day in calendar else "." for day in WEEK)


@pytest.mark.parametrize(
    "name, week, shown",
    [
        ("all", "xxxxxxx", "all days"),
        ("none", ".......", "no days"),
        ("Mon", "x......", "Mon"),
        ("Mon-Fri", "xxxxx..", "Mon-Fri"),
        ("Fri-Mon", "x...xxx", "Fri-Mon"),
        ("Tue,Thu", ".x.x...", "Tue,Thu"),
        ("0-4", "xxxxx..", "0-4"),
        ("6", "......x", "6"),
        ("Mon-2,Sun", "xxx...x", "Mon-2,Sun"),
        ("Mon,", "x......", "Mon,"),
        ("", ".......", ""),
    ],
)
def test_weekdays_are_said_by_name_number_and_range(name, week, shown):
    calendar = get(name)
    assert members(calendar) == week
    assert repr(calendar) == f"<Calendar {shown}>"
    assert calendar.name == shown


@pytest.mark.parametrize("name", ["mon-fri", "Mon, Wed", "Mon - Fri", "7", "Monday", "workdays"])
def test_a_name_that_is_no_expression_is_looked_for_among_the_files(name, directory):
    if name == "workdays":
        assert get(name, directory).name == "workdays"
    else:
        with pytest.raises(ValueError, match=f"no such calendar: {name} .put {name}.cal in the calendar dir"):
            get(name, directory)


def test_an_unknown_calendar_says_where_to_put_it_and_what_there_is(directory):
    with pytest.raises(ValueError) as caught:
        get("holidays", directory)
    assert str(caught.value) == (
        "no such calendar: holidays "
        f"(put holidays.cal in the calendar directory {directory}; it has: workdays)"
    )
    with pytest.raises(ValueError, match="no such calendar: workdays .no calendar directory is configured"):
        get("workdays")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\0b", ".", ".."])
def test_a_name_does_not_lead_out_of_the_directory(name, directory):
    with pytest.raises(ValueError, match="must stay within the calendar directory"):
        get(name, directory)


def test_a_file_lists_dates_within_its_range(directory):
    calendar = get("workdays", directory)
    assert calendar.range == (date(2024, 1, 1), date(2024, 2, 1))
    assert [day.day for day in map(date.fromordinal, calendar.days(1))] == [2, 3, 5]
    with pytest.raises(OutOfRange, match="calendar workdays says nothing about 2024-02-01"):
        calendar.contains(date(2024, 2, 1))
    with pytest.raises(OutOfRange):
        calendar.shift(date(2024, 1, 2), 3)
    with pytest.raises(OutOfRange):
        calendar.after(date(2024, 1, 6))


def test_a_file_in_a_sub_directory_with_a_dot_in_its_name_is_found(directory):
    calendar = get("site/v1.2", directory)
    assert calendar.name == "v1.2"
    assert calendar.range == (date(2024, 3, 1), date(2024, 3, 6))


def test_an_empty_file_is_an_empty_calendar_over_all_dates(tmp_path):
    (tmp_path / "never.cal").write_text("# nothing\n")
    calendar = get("never", tmp_path)
    assert calendar.range == NONE.range
    assert not any(day in calendar for day in WEEK)


@pytest.mark.parametrize(
    "text, said",
    [
        ("2024-01-01\nhello\n", ":2: 'hello' is no date"),
        ("2024-02-30\n", ":1: '2024-02-30' is no date"),
        ("\n\n2024-1-1\n", ":3: '2024-1-1' is no date"),
        ("start 2024-01-01\n", ":1: 'start' is no date"),
        ("START\n", ":1: START must stand once and with a date"),
        ("START 2024-01-01\nSTART 2024-01-01\n", ":2: START must stand once"),
        ("STOP x\n", ":1: 'x' is no date"),
        ("2024-01-01\nSTOP 2024-01-01\n", ":1: 2024-01-01 lies outside START and STOP"),
        ("START 2025-01-01\nSTOP 2024-01-01\n", ": STOP 2024-01-01 lies before START 2025-01-01"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_line(tmp_path, text, said):
    path = tmp_path / "bad.cal"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{said}")


def test_a_file_that_is_no_calendar_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.cal"
    with path.open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(ValueError, match="larger than"):
        read(path)


def test_a_file_is_read_once(directory):
    calendars = Calendars(directory)
    first = calendars.get("workdays")
    (directory / "workdays.cal").unlink()
    assert calendars.get("workdays") is first
    assert Calendars().get("all days") is ALL and Calendars().get("no days") is NONE


def test_before_and_after_keep_a_member_and_shift_does_not():
    weekdays = get("Mon-Fri")
    friday, saturday = date(2024, 1, 5), date(2024, 1, 6)
    assert weekdays.before(MONDAY) == weekdays.after(MONDAY) == MONDAY
    assert (weekdays.before(saturday), weekdays.after(saturday)) == (friday, MONDAY)
    assert (weekdays.shift(MONDAY, -1), weekdays.shift(friday, 1)) == (friday, MONDAY)
    assert (weekdays.shift(saturday, 0), weekdays.shift(saturday, 1)) == (saturday, MONDAY)


def test_a_search_that_leaves_the_range_says_so():
    with pytest.raises(OutOfRange, match="calendar Mon"):
        get("Mon").shift(MONDAY, 10**12)
    with pytest.raises(OutOfRange):
        NONE.after(MONDAY)


# -- by definition, and by ora

items = ("Mon", "Thu", "Sat", "Sun", "0", "3", "6", "Mon-Fri", "Fri-Mon", "Sat-Sun", "2-5")
expressions = st.lists(st.sampled_from(items), max_size=3).map(",".join)
some_days = st.dates(date(2000, 1, 1), date(2003, 1, 1))
calendars = st.builds(
    lambda weekdays, exceptions, first, length: Calendar(
        "some",
        weekdays,
        {n for n in exceptions if first <= n < first + length},
        first,
        first + length,
    ),
    st.frozensets(st.integers(0, 6)),
    st.frozensets(st.integers(730120, 730160), max_size=12),
    st.integers(730110, 730130),
    st.integers(20, 60),
)


@given(expressions.filter(bool), some_days, st.integers(-40, 40))
def test_weekday_calendars_answer_as_those_of_ora(expression, day, count):
    ours, theirs = get(expression), ora.get_calendar(expression)
    assert (day in ours) == (ora.Date(day) in theirs)
    assert ours.shift(day, count) == theirs.shift(day, count).std
    assert ours.before(day) == theirs.before(day).std
    assert ours.after(day) == theirs.after(day).std


@settings(max_examples=50)
@given(st.sets(some_days, min_size=5, max_size=40), some_days, st.integers(-6, 6))
def test_files_answer_as_those_of_ora(tmp_path_factory, listed, day, count):
    path = tmp_path_factory.mktemp("calendars") / "some.cal"
    path.write_text("START 1999-01-01\nSTOP 2004-01-01\n" + "".join(f"{d}\n" for d in listed))
    ours, theirs = read(path), ora.calendar.load_calendar_file(path)
    assert (day in ours) == (ora.Date(day) in theirs)
    for answer in (lambda c, d: c.shift(d, count), lambda c, d: c.before(d), lambda c, d: c.after(d)):
        try:
            expected = answer(theirs, ora.Date(day)).std
        except ora.CalendarRangeError:
            with pytest.raises(OutOfRange):
                answer(ours, day)
        else:
            assert answer(ours, day) == expected


@given(calendars, st.integers(-20, 20))
def test_ranks_members_and_shifts_are_what_counting_gives(calendar, count):
    days = [n for n in range(calendar.first, calendar.stop) if calendar.has(n)]
    assert list(calendar.days(0)) == days
    assert [calendar.member(k) for k in range(len(days))] == days
    for n in range(calendar.first, calendar.stop):
        assert calendar.rank(n) == sum(day < n for day in days)
        later, earlier = [d for d in days if d > n], [d for d in reversed(days) if d < n]
        found = [n] if count == 0 else (later if count > 0 else earlier)[abs(count) - 1 : abs(count)]
        if found:
            assert calendar.shifted(n, count) == found[0]
        else:
            with pytest.raises(OutOfRange):
                calendar.shifted(n, count)


@given(calendars, calendars)
def test_set_operators_are_those_of_sets_where_both_say_something(a, b):
    for combined, truth in (
        (a & b, lambda n: a.has(n) and b.has(n)),
        (a | b, lambda n: a.has(n) or b.has(n)),
        (a ^ b, lambda n: a.has(n) != b.has(n)),
    ):
        assert combined.first == max(a.first, b.first)
        assert combined.stop == max(combined.first, min(a.stop, b.stop))
        expected = [n for n in range(combined.first, combined.stop) if truth(n)]
        assert list(combined.days(1)) == expected
        assert combined.rank(combined.stop) == len(expected)
    assert list((~a).days(1)) == [n for n in range(a.first, a.stop) if not a.has(n)]


def test_holidays_taken_out_of_weekdays(tmp_path):
    (tmp_path / "holidays.cal").write_text("START 2024-01-01\nSTOP 2025-01-01\n2024-01-01\n2024-01-15\n")
    working = get("Mon-Fri") & ~get("holidays", tmp_path)
    assert working.shift(date(2024, 1, 12), 1) == date(2024, 1, 16)
    assert working.name == "(Mon-Fri & ~holidays)"
    assert [date.fromordinal(n).day for n in islice(working.days(working.first), 3)] == [2, 3, 4]
    with pytest.raises(TypeError):
        working & "Mon"
