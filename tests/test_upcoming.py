"""What is to come: computed from schedules, with what is left out and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from installation import PROGRAM, Installation

from apsislib.calendars import Calendars
from apsislib.previews import left_out
from apsislib.schedules import parse
from apsislib.times import format_time, parse_time

JOBS = {
    "often": "schedule: {type: interval, interval: 600}\n" + PROGRAM,
    "often/labelled": "metadata: {labels: [x]}\nparams: [date]\n"
    "schedule: {start: {type: interval, interval: 1h, phase: 60}, stop: {type: duration, duration: 90}}\n"
    + PROGRAM,
    "office": "params: [date, n]\nschedule:\n"
    "- {type: daily, tz: America/New_York, calendar: Mon-Fri,"
    " daytime: ['09:30:00', '17:00:00'], args: {n: 1}}\n"
    "- {type: daily, tz: UTC, daytime: '12:00:00', args: {n: 2}, enabled: false}\n" + PROGRAM,
    "twice": "schedule: [{type: interval, interval: 600}, {type: interval, interval: 600}]\n" + PROGRAM,
    "never": PROGRAM,
}
SINCE = "2031-03-07T00:00:00Z"  # a Friday; clocks in New York are put forward on Sunday


def ask(site: Installation, path: str, **params: Any) -> Any:
    answer = site.get(f"/api/v1{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_job_s_occurrences_are_listed_for_any_span_with_their_args_and_stop(site: Installation) -> None:
    answer = ask(site, "/jobs/often%2Flabelled/upcoming", since=SINCE, until="3h")
    assert answer["since"] == "2031-03-07T00:00:00.000+00:00"
    assert answer["until"] == "2031-03-07T03:00:00.000+00:00"
    assert answer["next"] is None
    assert [entry["time"][11:19] for entry in answer["upcoming"]] == ["00:01:00", "01:01:00", "02:01:00"]
    assert answer["upcoming"][0] == {
        "job_id": "often/labelled",
        "schedule": 0,
        "time": "2031-03-07T00:01:00.000+00:00",
        "args": {"date": "2031-03-07"},
        "stop": "2031-03-07T00:02:30.000+00:00",
        "note": None,
        "skipped": None,
        "run_id": None,
        "state": None,
    }
    past = ask(site, "/jobs/often/upcoming", since="1999-01-01", until="1999-01-02", limit=1000)
    assert len(past["upcoming"]) == 144
    assert ask(site, "/jobs/never/upcoming")["upcoming"] == []


def test_dates_out_of_the_calendar_and_disabled_schedules_say_why(site: Installation) -> None:
    answer = ask(site, "/jobs/office/upcoming", since=SINCE, until="2031-03-11")
    shown = [(e["time"][:16], e["schedule"], e["skipped"]) for e in answer["upcoming"]]
    weekend = "is not in calendar Mon-Fri"
    disabled = "the schedule is disabled"
    assert shown == [
        ("2031-03-07T12:00", 1, disabled),
        ("2031-03-07T14:30", 0, None),
        ("2031-03-07T22:00", 0, None),
        ("2031-03-08T12:00", 1, disabled),
        ("2031-03-08T14:30", 0, f"2031-03-08 {weekend}"),
        ("2031-03-09T12:00", 1, disabled),
        ("2031-03-09T13:30", 0, f"2031-03-09 {weekend}"),
        ("2031-03-10T12:00", 1, disabled),
        ("2031-03-10T13:30", 0, None),
        ("2031-03-10T21:00", 0, None),
    ]
    some = ask(site, "/jobs/office/upcoming", since=SINCE, until="2031-03-11", skipped=False)
    assert some["upcoming"] == [entry for entry in answer["upcoming"] if not entry["skipped"]]


def test_pages_of_what_is_to_come_neither_repeat_nor_leave_out(site: Installation) -> None:
    whole = ask(site, "/upcoming", since=SINCE, until="5h", limit=1000)
    assert whole["next"] is None
    pages, cursor = [], None
    while True:
        page = ask(site, "/upcoming", since=SINCE, until="5h", limit=7, cursor=cursor)
        pages += page["upcoming"]
        cursor = page["next"]
        if cursor is None:
            break
    assert pages == whole["upcoming"]
    assert {entry["job_id"] for entry in pages} == {"often", "often/labelled", "twice"}
    keys = [(entry["time"], entry["job_id"], entry["schedule"]) for entry in pages]
    assert keys == sorted(keys) and len(keys) == len(set(keys)) == 30 * 3 + 5


def test_what_is_to_come_of_all_jobs_can_be_chosen(site: Installation) -> None:
    labelled = ask(site, "/upcoming", label="x", limit=3)["upcoming"]
    assert {entry["job_id"] for entry in labelled} == {"often/labelled"}
    part = ask(site, "/upcoming", q="OFFICE", since=SINCE, until="1 day", skipped=True)["upcoming"]
    assert len(part) == 3


def test_runs_made_already_are_named_and_a_skipped_one_says_so(site: Installation) -> None:
    entries = ask(site, "/jobs/twice/upcoming", until="50 min")["upcoming"]
    first = entries[0]
    assert {entry["state"] for entry in entries[:2]} == {"scheduled"}
    assert entries[0]["run_id"] != entries[1]["run_id"]
    assert site.post(f"/api/v1/runs/{first['run_id']}/skip").status_code == 200
    after = ask(site, "/jobs/twice/upcoming", until="50 min", since=first["time"])["upcoming"][:2]
    by_run = {entry["run_id"]: entry for entry in after}
    assert set(by_run) == {entry["run_id"] for entry in entries[:2]}
    skipped = by_run[first["run_id"]]
    assert skipped["state"] == "skipped" and skipped["skipped"] == f"run {first['run_id']} was skipped"


@pytest.mark.parametrize(
    "query", ["since=x", "until=x", "limit=0", "limit=1001", "cursor=x", "skipped=x", "cursor=1e5~1"]
)
def test_a_span_that_cannot_be_meant_is_400(site: Installation, query: str) -> None:
    for path in ("/upcoming", "/jobs/often/upcoming"):
        answer = site.get(f"/api/v1{path}?{query}")
        assert answer.status_code == 400 and answer.json()["error"]
    assert site.get("/api/v1/jobs/nope/upcoming").status_code == 400


NEW_YORK = {"tz": "America/New_York"}


@pytest.mark.parametrize(
    ("mapping", "since", "until", "expected"),
    [
        (
            {"type": "daily", "daytime": "02:30:00", "dst_gap": "skip", **NEW_YORK},
            "2031-03-01",
            "2031-04-01",
            [("2031-03-09T07:30", "02:30:00 does not exist on 2031-03-09 in America/New_York")],
        ),
        ({"type": "daily", "daytime": "02:30:00", **NEW_YORK}, "2031-03-01", "2031-04-01", []),
        (
            {"type": "daily", "daytime": "09:00:00", "tz": "Pacific/Apia"},
            "2011-12-25",
            "2012-01-05",
            [("2011-12-30T19:00", "09:00:00 does not exist on 2011-12-30 in Pacific/Apia")],
        ),
        (
            {"type": "cron", "cron": "30 2 * * sun", "dst_gap": "skip", "calendar": "all", **NEW_YORK},
            "2031-03-01",
            "2031-04-01",
            [("2031-03-09T07:30", "02:30:00 does not exist")],
        ),
        (
            {"type": "cron", "cron": "0 12 1 * *", "tz": "UTC", "calendar": "Mon-Fri"},
            "2031-01-01",
            "2031-07-01",
            [
                ("2031-02-01T12:00", "2031-02-01 is not in calendar Mon-Fri"),
                ("2031-03-01T12:00", "2031-03-01 is not in calendar Mon-Fri"),
                ("2031-06-01T12:00", "2031-06-01 is not in calendar Mon-Fri"),
            ],
        ),
        ({"type": "cron", "cron": "*/30 * * * *", **NEW_YORK}, "2031-03-01", "2031-04-01", []),
        (
            {
                "type": "daily-interval",
                "start": "09:00:00",
                "stop": "10:00:00",
                "interval": "10m",
                "tz": "UTC",
                "calendar": "Mon,Tue,Wed,Thu,Fri,Sat",
            },
            "2031-03-07",
            "2031-03-14",
            [("2031-03-09T09:00", "2031-03-09 is not in calendar")],
        ),
        (
            {"type": "daily", "daytime": "09:00:00", "tz": "UTC", "calendar": "holidays"},
            "2031-12-23",
            "2032-12-31",
            [
                ("2031-12-25T09:00", "2031-12-25 is not in calendar holidays"),
                ("2032-01-01T09:00", "calendar holidays ends before 2032-01-01"),
            ],
        ),
        ({"type": "interval", "interval": 60}, "2031-01-01", "2031-01-02", []),
    ],
)
def test_what_a_schedule_leaves_out(
    tmp_path: Path, mapping: dict[str, Any], since: str, until: str, expected: list[tuple[str, str]]
) -> None:
    days = [f"2031-12-{day:02}" for day in range(1, 32) if day != 25]
    (tmp_path / "holidays.cal").write_text("\n".join(days) + "\n")
    schedule = parse(mapping, Calendars(tmp_path))
    span = [parse_time(f"{text}T00:00:00Z") for text in (since, until)]
    found = [(format_time(t)[:16], why) for t, why in left_out(schedule, *span)]
    assert [t for t, _ in found] == [t for t, _ in expected]
    for (_, why), (_, text) in zip(found, expected, strict=True):
        assert why.startswith(text)
