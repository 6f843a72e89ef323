"""The `%` language: each documented escape and modifier, then all of them against `ora`."""

from __future__ import annotations

import datetime

import ora  # type: ignore[import-untyped]
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apsislib.dates import Date, Daytime, Time

DAY = Date("2024-01-09")
DAYTIME = Daytime("21:05:07.25")
TIME = Time("2024-01-09T21:05:07.25Z")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("%Y%m%d", "20240109"),
        ("%Y %y %m %d %j", "2024 24 01 09 009"),
        ("%a %A %b %B", "Tue Tuesday Jan January"),
        ("%u %w %G %g %V", "2 2 2024 24 02"),
        ("%D %~D", "2024-01-09 20240109"),
        ("%~A %~B", "Tue Jan"),
        ("%^a %^B %_A", "TUE JANUARY tuesday"),
        ("%6d %3m %6Y %1d", "000009 001 002024 9"),
        ("%#x6d %10A %6a", "xxxxx9    Tuesday    Tue"),
        ("100%% of %d", "100% of 09"),
        ("no escape", "no escape"),
        ("", "2024-01-09"),
    ],
)
def test_a_date_is_written_as_the_format_says(spec: str, text: str) -> None:
    assert format(DAY, spec) == text


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("%H:%M:%S", "21:05:07"),
        ("%I:%M %p", "09:05 PM"),
        ("%_p", "pm"),
        ("%f", "250000"),
        ("%C %~C %.3C", "21:05:07 210507 21:05:07.250"),
        ("%.3S %.1S %5.2S %3H", "07.250 07.2 00007.25 021"),
        ("", "21:05:07.25"),
    ],
)
def test_a_daytime_is_written_as_the_format_says(spec: str, text: str) -> None:
    assert format(DAYTIME, spec) == text


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("%Y-%m-%d %H:%M", "2024-01-09 21:05"),
        ("%i", "2024-01-09T21:05:07+00:00"),
        ("%.3i", "2024-01-09T21:05:07.250+00:00"),
        ("%~i", "20240109T210507+0000"),
        ("%T", "2024-01-09T21:05:07Z"),
        ("%z %E %e", "+0000 +00:00 Z"),
        ("%H:%M@Asia/Tokyo", "06:05"),
        ("%D@Asia/Tokyo", "2024-01-10"),
        ("%T %z %E %e@America/New_York", "2024-01-09T16:05:07R -0500 -05:00 R"),
        ("@America/New_York", "2024-01-09T16:05:07-05:00"),
        ("%E %e@Asia/Kolkata", "+05:30 ?"),
        ("%E %e@America/St_Johns", "-03:30 ?"),
        ("%e@Pacific/Kiritimati", "?"),
        ("%H@", "21"),
        ("", "2024-01-09T21:05:07.25+00:00"),
    ],
)
def test_a_time_is_written_as_the_format_says(spec: str, text: str) -> None:
    assert format(TIME, spec) == text


@pytest.mark.parametrize(
    ("value", "spec", "message"),
    [
        (DAY, "%H", "unknown date escape '%H'"),
        (DAYTIME, "%d", "unknown daytime escape '%d'"),
        (TIME, "%q", "unknown time escape '%q'"),
        (DAY, "%", "unknown date escape '%'"),
        (DAY, "%Y-%3", "unknown date escape '%3'"),
        (TIME, "%H@Nowhere/Town", "unknown time zone: Nowhere/Town"),
        (DAY, "%1000000000d", "too wide an escape"),
        (DAYTIME, "%.1000000000S", "too wide an escape"),
    ],
)
def test_a_format_that_can_not_be_meant_is_an_error(value: object, spec: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        format(value, spec)
    assert str(error.value).startswith(message)


def test_a_fraction_is_cut_and_never_rounds_up_a_minute() -> None:
    time = Daytime("09:59:59.9999")
    assert format(time, "%C|%.3C|%.2S|%f") == "09:59:59|09:59:59.999|59.99|999900"


@settings(max_examples=200)
@given(
    st.integers(0, 4_000_000_000 * 16).map(lambda n: n / 16),
    st.sampled_from("YymdjaAbBuwGgVDHIMSfpCiTzEe"),
    st.sampled_from(["", "~", "^", "_", "6", "12", ".0", ".3", "5.2", "~.3", "#x6"]),
    st.sampled_from(["", "@UTC", "@Asia/Tokyo", "@America/New_York", "@Asia/Kolkata"]),
)
def test_formats_agree_with_ora(instant: float, letter: str, modifiers: str, zone: str) -> None:
    assume(modifiers != "_" or letter not in "Te")  # ora leaves the zone's letter as it is
    assume(modifiers != "#x6" or letter != "f")  # ora fills the digits of a fraction, sometimes
    ours = Time(datetime.datetime.fromtimestamp(instant, datetime.UTC))
    spec = f"[%{modifiers}{letter}]{zone}"
    assert format(ours, spec) == format(ora.Time(str(ours)), spec)
