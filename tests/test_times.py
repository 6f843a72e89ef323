"""Times: text in and out, and the law that wall times keep in every zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache
from zoneinfo import _zoneinfo, available_timezones  # type: ignore[attr-defined]

import ora
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apsislib import times
from apsislib.times import at_wall, format_instant, format_time, parse_time, zone

NEW_YORK = "America/New_York"


def iso(*instants: float) -> list[str]:
    return [format_instant(t).removesuffix(":00+00:00") for t in instants]


def wall(day: str, clock: str, tz: str = NEW_YORK, **policy: str) -> list[str]:
    return iso(*at_wall(date.fromisoformat(day), times.parse_daytime(clock), zone(tz), **policy))


# -- instants as text


@pytest.mark.parametrize(
    "text, instant",
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2024-01-05T14:30:00+00:00", 1704465000.0),
        ("2024-01-05T09:30:00-05:00", 1704465000.0),
        ("2024-01-05 09:30:00-05:00", 1704465000.0),
        ("20240105T143000Z", 1704465000.0),
        ("20240105T093000-0500", 1704465000.0),
        ("2024-01-05T14:30:00.25Z", 1704465000.25),
        ("2024-01-05T14:30:00.Z", 1704465000.0),
        ("1969-12-31T23:59:59.75Z", -0.25),
        ("0001-01-01T00:00:00Z", -62135596800.0),
    ],
)
def test_a_time_with_seconds_and_a_zone_is_read(text, instant):
    assert parse_time(text) == instant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "0",
        "2024-01-05",
        "2024-01-05T14:30Z",
        "2024-01-05T14:30:00",
        "2024-01-05T14:30:60Z",
        "2024-01-05T24:00:00Z",
        "2024-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2024-01-05T14:30:00+05",
        "2024-01-05T14:30:00+0500",
        "2024-01-05T14:30:00+99:00",
        "2024-01-05t14:30:00z",
        "2024-01-05T14:30:00 Z",
        " 2024-01-05T14:30:00Z",
        "2024-01-05T14:30:00Z\n",
        "٢٠٢٤-01-05T14:30:00Z",
        1704465000,
        None,
        date(2024, 1, 5),
    ],
)
def test_what_is_no_time_is_refused_with_an_example_of_one(text):
    with pytest.raises(ValueError, match="can't parse as time: .*T07:08:09Z"):
        parse_time(text)


def test_a_blank_instead_of_the_t_is_refused_where_the_api_is_strict():
    with pytest.raises(ValueError, match="can't parse as time"):
        parse_time("2024-01-05 14:30:00Z", strict=True)


def test_an_aware_datetime_is_a_time_and_a_naive_one_is_not():
    assert parse_time(datetime(2024, 1, 5, 14, 30, 0, 250000, tzinfo=UTC)) == 1704465000.25
    assert parse_time(datetime(2024, 1, 5, 9, 30, tzinfo=timezone(timedelta(hours=-5)))) == 1704465000
    with pytest.raises(ValueError, match="no time zone in 2024-01-05 09:30:00: add Z"):
        parse_time(datetime(2024, 1, 5, 9, 30))


def test_the_api_shows_milliseconds_always_and_cuts_the_rest():
    assert format_time(0.0) == "1970-01-01T00:00:00.000+00:00"
    assert format_time(1717000000.123) == "2024-05-29T16:26:40.123+00:00"
    assert format_time(1717000000.9999) == "2024-05-29T16:26:40.999+00:00"
    assert format_time(-0.25) == "1969-12-31T23:59:59.750+00:00"


def test_args_show_a_fraction_only_if_there_is_one():
    assert format_instant(1704465000.0) == "2024-01-05T14:30:00+00:00"
    assert format_instant(1704465000.5) == "2024-01-05T14:30:00.5+00:00"
    assert format_instant(1e-7) == "1970-01-01T00:00:00.0000001+00:00"
    assert format_instant(1e-9) == "1970-01-01T00:00:00+00:00"
    assert format_instant(-1e9 - 0.001) == "1938-04-24T22:13:19.999+00:00"


@given(st.integers(-(10**10), 10**11), st.integers(0, 999999))
def test_an_instant_written_to_the_microsecond_is_read_back_as_written(second, micro):
    text = f"{format_instant(float(second))[:-6]}.{micro:06}".rstrip("0").rstrip(".") + "+00:00"
    assert format_instant(parse_time(text)) == text if second > 0 and second < 2**32 else True
    assert parse_time(format_instant(float(second))) == second


@given(st.datetimes(datetime(1700, 1, 1), datetime(2300, 1, 1)))
def test_whole_seconds_are_formatted_and_read_as_ora_does(moment):
    text = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert format_instant(parse_time(text)) == str(ora.Time(text))


@pytest.mark.parametrize("t", [float("nan"), float("inf"), -float("inf"), 1e15, -1e15])
def test_an_instant_beyond_the_calendar_is_a_value_error(t):
    with pytest.raises(ValueError, match="time out of range"):
        format_instant(t)
    with pytest.raises(ValueError):
        times.local(t, zone(NEW_YORK))


# -- durations and daytimes


@pytest.mark.parametrize(
    "given, seconds",
    [
        (300, 300),
        (1.5, 1.5),
        ("300", 300),
        ("1e3", 1000),
        (" 1_000 ", 1000),
        ("-5", -5),
        ("1.5h", 5400),
        ("10 min", 600),
        ("+1s", 1),
        ("-2 days", -172800),
        ("1 day", 86400),
        ("3second", 3),
        ("2hours", 7200),
    ],
)
def test_a_duration_is_a_number_or_a_number_with_a_unit(given, seconds):
    assert times.parse_duration(given) == seconds


@pytest.mark.parametrize(
    "given, said",
    [
        ("3 weeks", "can't parse as duration: 3 weeks: unknown unit weeks"),
        ("3 H", "can't parse as duration: 3 H: unknown unit H"),
        ("1h30m", "can't parse as duration: 1h30m "),
        ("1s ", "can't parse as duration: 1s  "),
        (".5s", "can't parse as duration: .5s"),
        ("5.s", "can't parse as duration: 5.s"),
        ("", "can't parse as duration: "),
        ("s", "can't parse as duration: s"),
        ("inf", "can't parse as duration: inf "),
        ("nan", "can't parse as duration: nan "),
        (float("inf"), "can't parse as duration: inf "),
        ("1e999", "can't parse as duration: 1e999 "),
        (10**400, "can't parse as duration: 1000"),
        ("9" * 400 + " d", "can't parse as duration: 999"),
        (True, "can't parse as duration: True"),
        (None, "can't parse as duration: None"),
        ([], "can't parse as duration: []"),
    ],
)
def test_what_is_no_duration_is_named(given, said):
    with pytest.raises(ValueError) as caught:
        times.parse_duration(given)
    assert str(caught.value).startswith(said)


def test_durations_are_said_in_the_largest_unit_that_fits():
    said = [times.format_duration(x) for x in (0, 1, 90, 300, 5400, 7200, 86400, 604800, 0.5)]
    assert said == ["0 s", "1 s", "90 s", "5 min", "90 min", "2 h", "1 day", "7 days", "0.5 s"]


@pytest.mark.parametrize(
    "given, seconds",
    [("9:30:00", 34200), ("09:30:00.5", 34200.5), ("23:59:59", 86399), (37800, 37800), (0.25, 0.25), (0, 0)],
)
def test_a_daytime_is_text_with_seconds_or_seconds_after_midnight(given, seconds):
    assert times.parse_daytime(given) == seconds


@pytest.mark.parametrize(
    "given",
    [
        "09:30",
        "24:00:00",
        "09:60:00",
        "09:30:60",
        "093000",
        " 9:30:00",
        "-1:00:00",
        -1,
        86400,
        10**400,
        True,
        None,
    ]
    + [float("nan"), float("inf")],
)
def test_what_is_no_daytime_is_refused(given):
    with pytest.raises(ValueError, match="can't parse as daytime"):
        times.parse_daytime(given)


def test_a_daytime_without_seconds_is_told_what_to_write():
    with pytest.raises(ValueError, match=r"seconds are required: 09:30:00"):
        times.parse_daytime("09:30")


@given(st.integers(0, 86399), st.integers(0, 999))
def test_a_daytime_is_shown_as_it_is_read(second, milli):
    seconds = times.parse_daytime(second + milli / 1000)
    text = times.format_daytime(seconds)
    assert times.parse_daytime(text) == pytest.approx(seconds, abs=1e-9)
    assert text[:8] == str(ora.Daytime(second)) and ("." in text) == (seconds % 1 > 0)


# -- zones


@pytest.mark.parametrize("name", ["UTC", "utc", "America/New_York", "Etc/GMT+5", "Asia/Kathmandu"])
def test_a_zone_has_its_iana_name(name):
    assert zone(name).key == ("UTC" if name == "utc" else name)


@pytest.mark.parametrize(
    "name",
    ["", "X", "local", "display", "localtime", "Factory", "right/UTC", "America", "../x", "/etc/localtime"]
    + ["zone.tab", "tzdata.zi", "a\0b", "x" * 5000, "\ud800", None, 5],
)
def test_an_unknown_zone_is_named(name):
    with pytest.raises(ValueError) as caught:
        zone(name)
    assert str(caught.value).startswith(f"unknown time zone: {name}")


# -- gaps and folds


def test_a_wall_time_in_a_gap_is_shifted_by_the_gap():
    assert wall("2026-03-08", "02:30:00") == ["2026-03-08T07:30"]
    assert wall("2026-03-08", "02:00:00") == ["2026-03-08T07:00"]
    assert wall("2026-03-08", "01:59:00") == ["2026-03-08T06:59"]
    assert wall("2026-03-08", "03:00:00") == ["2026-03-08T07:00"]


def test_a_wall_time_in_a_gap_can_be_skipped_or_put_at_the_end_of_the_gap():
    assert wall("2026-03-08", "02:30:00", gap="skip") == []
    assert wall("2026-03-08", "02:30:00", gap="end") == ["2026-03-08T07:00"]
    assert wall("2026-03-08", "02:00:00", gap="end") == ["2026-03-08T07:00"]
    assert wall("2026-03-08", "03:00:00", gap="end") == ["2026-03-08T07:00"]


def test_in_a_fold_the_first_is_meant_or_the_second_or_both():
    assert wall("2026-11-01", "01:30:00") == ["2026-11-01T05:30"]
    assert wall("2026-11-01", "01:30:00", fold="second") == ["2026-11-01T06:30"]
    assert wall("2026-11-01", "01:30:00", fold="both") == ["2026-11-01T05:30", "2026-11-01T06:30"]
    assert wall("2026-11-01", "02:00:00", fold="both") == ["2026-11-01T07:00"]


def test_a_fraction_of_a_second_survives_gap_and_fold():
    new_york = zone(NEW_YORK)
    assert at_wall(date(2026, 3, 8), 9000.25, new_york)[0] % 1 == 0.25
    assert at_wall(date(2026, 11, 1), 5400.25, new_york, fold="second")[0] % 1 == 0.25


def test_a_gap_of_half_an_hour_shifts_by_half_an_hour():
    assert wall("2026-10-04", "02:10:00", "Australia/Lord_Howe") == ["2026-10-03T15:40"]


def test_a_gap_over_midnight_leads_into_the_next_date():
    shown = times.local(at_wall(date(2019, 3, 30), 86399, zone("Asia/Amman"))[0], zone("Asia/Amman"))
    assert shown == (date(2019, 3, 30), 86399)  # Amman's gap begins at midnight itself
    moved = at_wall(date(1919, 3, 30), 23.75 * 3600, zone("America/Toronto"))  # 23:30 to 00:30
    assert times.local(moved[0], zone("America/Toronto")) == (date(1919, 3, 31), 0.75 * 3600)


@pytest.mark.parametrize(
    "tz, day",
    [("Pacific/Apia", "2011-12-30"), ("Pacific/Fakaofo", "2011-12-30"), ("Pacific/Kwajalein", "1993-08-21")],
)
@pytest.mark.parametrize("clock", ["00:00:00", "12:00:00", "23:59:59"])
@pytest.mark.parametrize("gap", ["shift", "skip", "end"])
def test_a_date_that_a_zone_left_out_has_no_instant(tz, day, clock, gap):
    assert wall(day, clock, tz, gap=gap) == []


# -- every zone there is

DAYTIMES = (0.0, 1800.0, 5400.0, 9000.0, 43200.0, 84600.0, 86399.0)


@cache
def zones() -> dict[str, list[float]]:
    """The zones that differ, each with the instants at which it moved its clocks (so far as listed)."""
    found: dict[object, str] = {}
    for name in sorted(available_timezones() - {"Factory", "localtime"}):
        plain = _zoneinfo.ZoneInfo.no_cache(name)
        offsets = tuple(info.utcoff for info in plain._ttinfos)
        later = tuple(plain.utcoffset(datetime(2040, month, 1)) for month in range(1, 13))
        found.setdefault((tuple(plain._trans_utc), offsets, later), name)
    return {name: moves_of(name) for name in found.values()}


def moves_of(name: str) -> list[float]:
    plain = _zoneinfo.ZoneInfo.no_cache(name)
    moves, offset = [], None
    for t, info in zip(plain._trans_utc, plain._ttinfos, strict=False):
        if offset is not None and info.utcoff != offset:
            moves.append(t)
        offset = info.utcoff
    return moves


def test_no_zone_moves_its_clocks_twice_within_three_days():
    """Which is why looking twice a day is enough to know that a day is an ordinary one."""
    for name, moves in zones().items():
        assert all(b - a > 3 * 86400 for a, b in zip(moves, moves[1:], strict=False)), name


def check_law(name: str, days: range, daytimes: tuple[float, ...] = DAYTIMES) -> None:
    """On these dates each wall time comes once, strictly later each day, and shows what was asked for."""
    tz = zone(name)
    for seconds in daytimes:
        previous = -1e18
        for ordinal in days:
            found = times.placed(ordinal, seconds, tz)
            if not found:
                assert not dates_shown(tz, ordinal), (name, date.fromordinal(ordinal))
                continue
            ((t, moved),) = found
            assert t > previous, (name, date.fromordinal(ordinal), seconds)
            previous = t
            if moved or times.steady(tz, ordinal) is None:
                day, shown = times.local(t, tz)
                assert (day.toordinal() - ordinal) * 86400 + shown == seconds + moved, (name, day)


def dates_shown(tz: times.Zone, ordinal: int) -> bool:
    """Whether any clock of the zone shows this date, looking every half hour."""
    midnight = (ordinal - times.EPOCH) * 86400
    return any(
        times.local(float(midnight + half), tz)[0].toordinal() == ordinal
        for half in range(-86400, 2 * 86400, 1800)
    )


def test_in_every_zone_instants_strictly_increase_and_every_date_has_one():
    years = [(date(2010, 12, 1), date(2012, 2, 1)), (date(2025, 1, 1), date(2026, 2, 1))]
    for name in zones():
        for first, last in years:
            check_law(name, range(first.toordinal(), last.toordinal()), DAYTIMES[::3])


def test_in_every_zone_the_law_holds_around_every_move_of_its_clocks():
    for name, moves in zones().items():
        for move in moves:
            if move > times.FIRST:
                near = times.EPOCH + int(move // 86400)
                check_law(name, range(near - 1, near + 3))


def test_around_every_move_policies_agree_with_what_clocks_show():
    for name in (NEW_YORK, "Europe/London", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca"):
        tz = zone(name)
        for move in moves_of(name)[-40:]:
            if move < 0:
                continue  # by odd minutes and seconds, which half hours would miss
            near = times.EPOCH + int(move // 86400)
            shown: dict[tuple[int, float], list[float]] = {}
            for t in range(int(move) - 3 * 86400, int(move) + 3 * 86400, 1800):
                day, seconds = times.local(t, tz)
                shown.setdefault((day.toordinal(), seconds), []).append(float(t))
            for ordinal in (near - 1, near, near + 1):
                day = date.fromordinal(ordinal)
                for seconds in range(0, 86400, 1800):
                    truth = shown.get((ordinal, float(seconds)), [])
                    assert list(at_wall(day, seconds, tz, "skip", "both")) == truth, (name, day, seconds)
                    assert list(at_wall(day, seconds, tz, "skip", "first")) == truth[:1]
                    assert list(at_wall(day, seconds, tz, "skip", "second")) == truth[-1:]


@settings(max_examples=200)
@given(
    st.dates(date(1990, 1, 1), date(2037, 1, 1)),
    st.integers(0, 86399),
    st.sampled_from(
        [NEW_YORK, "Europe/London", "America/Sao_Paulo", "Asia/Tokyo", "Australia/Sydney", "UTC"]
    ),
)
def test_wall_times_outside_gaps_are_those_of_ora(day, seconds, name):
    tz = zone(name)
    for first in (True, False):
        try:
            theirs = ora.from_local((ora.Date(day), ora.Daytime(seconds)), name, first=first)
        except ora.NonexistentDateDaytime:
            assert at_wall(day, seconds, tz, "skip") == ()
        else:
            assert at_wall(day, seconds, tz, "skip", "first" if first else "second") == (
                parse_time(str(theirs)),
            )
