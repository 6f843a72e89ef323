"""The operator's board and the timeline, as the API answers them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from installation import AGENT, PROGRAM, SLOW, Installation

from apsislib.api import board
from apsislib.runs import Run, Save
from apsislib.states import State
from apsislib.times import format_time

DAY, HOUR = 86400.0, 3600.0
JOBS = {
    "etl/load": "params: [date]\n" + PROGRAM,
    "etl/fails": "params: [date]\nprogram: {type: no-op, success: false}\n",
    "slow": SLOW,
    "longer": "expect: {max_duration: 0.001}\n" + SLOW,
    "waits": "condition: {type: dependency, job_id: etl/load, args: {date: never}}\n" + PROGRAM,
    "often": "schedule: {type: interval, interval: 600}\n" + PROGRAM,
    "yearly": "schedule: {type: cron, cron: '0 7 6 5 *', tz: UTC}\n" + PROGRAM,
    "off": "schedule: {type: interval, interval: 600, enabled: false}\n" + PROGRAM,
    "dense": PROGRAM,
}
LOST = {
    "shutdown_state": "active",
    "info": {
        **AGENT["info"],  # type: ignore[dict-item]
        "stats": {
            **AGENT["info"]["stats"],  # type: ignore[index]
            "connected": False,
            "last_disconnect_time": "2031-05-06T08:00:00.123456+00:00",
        },
    },
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    site = Installation(tmp_path_factory.mktemp("site"), JOBS, connections=lambda: {"a": AGENT, "b": LOST})
    site.start()
    yield site
    site.stop()


numbers = iter(range(1_000_000, 9_000_000))


def past(
    site: Installation, job_id: str, begun: float, took: float, state: str = "success", **args: str
) -> str:
    """A finished run on disk."""
    run_id, end = f"r{next(numbers)}", begun + took
    times = {"schedule": begun, "scheduled": begun, "running": begun, state: end}
    site.store.wait(site.store.put([Save(Run(run_id, job_id, args, State(state), end, times))]), 20)
    return run_id


def ask(site: Installation, path: str, status: int = 200, **query: Any) -> Any:
    answer = site.get(f"/api/v1/{path}", params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def timeline(site: Installation, since: float, until: float, **query: Any) -> Any:
    return ask(site, "timeline", since=format_time(since), until=format_time(until), **query)


def row(answer: Any, job_id: str) -> Any:
    return next(row for row in answer["rows"] if row["job_id"] == job_id)


def test_a_failure_stands_until_a_later_run_of_the_same_args_succeeds(site: Installation) -> None:
    first = site.make("etl/fails", args={"date": "1"})["run_id"]
    other = site.make("etl/fails", args={"date": "2"})["run_id"]
    found = ask(site, "board")
    assert [run["run_id"] for run in found["failing"]] == [other, first]
    assert found["counts"]["failing"] == 2
    again = site.make("etl/fails", args={"date": "1"})["run_id"]
    assert [run["run_id"] for run in ask(site, "board")["failing"]] == [again, other]
    site.post(f"/api/v1/runs/{again}/mark/success")
    site.post(f"/api/v1/runs/{other}/mark/skipped")
    assert ask(site, "board")["failing"] == []


def test_a_failure_of_yesterday_is_not_todays(site: Installation) -> None:
    now = site.clock.wall()
    past(site, "etl/load", now - 25 * HOUR, 60, "failure", date="old")
    recent = past(site, "etl/load", now - 23 * HOUR, 60, "error", date="new")
    assert [run["run_id"] for run in ask(site, "board")["failing"]] == [recent]
    past(site, "etl/load", now - HOUR, 60, date="new")
    assert ask(site, "board")["failing"] == []


def test_what_runs_and_waits_is_listed_with_reasons_alarms_and_usual_durations(site: Installation) -> None:
    now = site.clock.wall()
    for minute, took in enumerate((90.0, 100.0, 500.0)):
        past(site, "longer", now - DAY + minute * 60, took)
    running, waiting = site.make("longer")["run_id"], site.make("waits")["run_id"]
    found = ask(site, "board")
    while not found["alarmed"]:  # the alarm is raised by the timer
        found = ask(site, "board")
    assert [run["run_id"] for run in found["running"]] == [running]
    assert [run["run_id"] for run in found["alarmed"]] == [running]
    assert found["alarmed"][0]["alarms"] == ["long"]
    assert found["typical"]["longer"] == pytest.approx(100, abs=0.01)
    assert [run["run_id"] for run in found["waiting"]] == [waiting]
    (why,) = found["why"][waiting]
    assert "etl/load" in why["condition"] and why["reason"]
    assert found["counts"] == {"running": 1, "waiting": 1, "failing": 0}
    site.post(f"/api/v1/runs/{running}/stop")
    site.post(f"/api/v1/runs/{waiting}/skip")


def test_the_next_starts_are_those_of_runs_made_ahead_then_of_schedules(site: Installation) -> None:
    by_hand = site.make("slow", times={"schedule": format_time(site.clock.wall() + 30)})["run_id"]
    starts = ask(site, "board")["next"]
    assert [start["time"] for start in starts] == sorted(start["time"] for start in starts)
    assert by_hand in {start["run_id"] for start in starts[:2]}
    often = [start for start in starts if start["job_id"] == "often"]
    assert len(starts) == 20 and len({start["time"] for start in often}) == len(often) == 19
    made = [bool(start["run_id"]) for start in often]
    assert made == [True] * 6 + [False] * 13  # the horizon of the test is an hour
    site.post(f"/api/v1/runs/{by_hand}/skip")


def test_agents_that_are_lost_are_named(site: Installation) -> None:
    agents = ask(site, "board")["agents"]
    assert (agents["live"], agents["draining"]) == (1, 0)
    assert [agent["hostname"] for agent in agents["lost"]] == ["w3"]


def test_the_timeline_has_what_ended_runs_and_comes_in_the_span(site: Installation) -> None:
    now = site.clock.wall()
    since, until = now - 2 * HOUR, now + 2 * HOUR
    inside = past(site, "span", now - HOUR, 60)
    past(site, "span", now - 4 * HOUR, 60)
    across = past(site, "span", since - 60, 120)
    running = site.make("slow")["run_id"]
    found = timeline(site, since, until)
    load = row(found, "span")
    assert [run[0] for run in load["runs"]] == [across, inside]
    assert load["count"] == 2 and load["slots"] == []
    assert [run[0] for run in row(found, "slow")["active"]] == [running]
    ahead = row(found, "often")["ahead"]
    assert 11 <= len(ahead) <= 13 and [run_id for _, run_id in ahead][-1] is None and ahead[0][1]
    assert ahead == sorted(ahead, key=lambda start: start[0])
    assert "yearly" not in {row["job_id"] for row in found["rows"]}
    while site.state(running) != "running":
        pass
    site.post(f"/api/v1/runs/{running}/stop")
    while site.state(running) != "success":
        pass


def test_what_began_in_a_past_span_and_ended_after_it_is_in_it(site: Installation) -> None:
    now = site.clock.wall()
    since = now - 20 * DAY
    begun = past(site, "etl/load", since + HOUR - 60, 120, date="over")
    past(site, "etl/load", since + HOUR + 60, 120, date="after")
    found = timeline(site, since, since + HOUR)
    assert [run[0] for run in row(found, "etl/load")["runs"]] == [begun]
    assert [row["job_id"] for row in found["rows"]] == ["etl/load"]


def test_jobs_that_failed_come_first_and_words_and_pages_narrow_them(site: Installation) -> None:
    since = site.clock.wall() - 40 * DAY
    for job_id, state in (("a/x", "success"), ("b/x", "failure"), ("C/X", "success"), ("d/y", "error")):
        past(site, job_id, since + 60, 10, state)
    found = timeline(site, since, since + HOUR)
    assert [row["job_id"] for row in found["rows"]] == ["b/x", "d/y", "C/X", "a/x"]
    assert (found["jobs"], found["complete"]) == (4, None)
    first = timeline(site, since, since + HOUR, limit=3)
    rest = timeline(site, since, since + HOUR, limit=3, offset=3)
    assert [row["job_id"] for row in first["rows"] + rest["rows"]] == ["b/x", "d/y", "C/X", "a/x"]
    assert rest["jobs"] == 4
    named = timeline(site, since, since + HOUR, q="X c")
    assert [row["job_id"] for row in named["rows"]] == ["C/X"]


def test_many_runs_of_a_job_come_as_counts(site: Installation) -> None:
    since = site.clock.wall() - 60 * DAY
    saves = []
    for n in range(board.BARS + 40):
        state = State.FAILURE if n % 100 == 50 else State.SUCCESS
        when = since + n * HOUR / 240
        times = {"schedule": when, "running": when, state.value: when}
        saves.append(Save(Run(f"r{next(numbers)}", "dense", {}, state, when, times)))
    site.store.wait(site.store.put(saves), 20)
    (found,) = timeline(site, since, since + HOUR)["rows"]
    assert found["runs"] == [] and (found["count"], found["failures"]) == (240, 2)
    assert found["slots"] == [[n, 2, 1 if n in (25, 75) else 0] for n in range(board.SLOTS)]


def test_of_more_runs_than_are_looked_at_the_newest_are_counted(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.store.timeline.MOST", 3)
    since = site.clock.wall() - 80 * DAY
    for minute in range(5):
        past(site, "etl/load", since + minute * 60, 0)
    found = timeline(site, since, since + HOUR)
    assert found["complete"] == format_time(since + 120)
    assert row(found, "etl/load")["count"] == 3


def test_a_span_that_lies_ahead_is_made_of_schedules(site: Installation) -> None:
    since = site.clock.wall() + 3 * DAY
    found = timeline(site, since, since + HOUR)
    assert [row["job_id"] for row in found["rows"]] == ["often"]
    assert [run_id for _, run_id in found["rows"][0]["ahead"]] == [None] * 6


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({}, "since and until are needed"),
        ({"since": "2031-05-06T07:00:00Z", "until": "2031-05-06T07:00:30Z"}, "from a minute to 32 days"),
        ({"since": "2031-05-06T07:00:00Z", "until": "2031-06-30T07:00:00Z"}, "from a minute to 32 days"),
        ({"since": "yesterday", "until": "2031-06-30T07:00:00Z"}, "since: "),
        ({"since": "2031-05-06T07:00:00Z", "until": "2031-05-07T07:00:00Z", "limit": "101"}, "limit must be"),
        (
            {"since": "2031-05-06T07:00:00Z", "until": "2031-05-07T07:00:00Z", "offset": "-1"},
            "offset must be",
        ),
    ],
)
def test_what_cannot_be_meant_is_said(site: Installation, query: dict[str, str], words: str) -> None:
    assert words in ask(site, "timeline", 400, **query)["error"]


def test_the_next_start_may_be_a_year_away(tmp_path: Path) -> None:
    site = Installation(tmp_path, {"yearly": JOBS["yearly"], "off": JOBS["off"]})
    site.driver.recover()
    site.server.start()
    with closing(site):
        start = ask(site, "board")["next"][0]
        assert start["job_id"] == "yearly" and start["run_id"] is None
        assert start["time"].endswith("-05-06T07:00:00.000+00:00")


def test_damaged_rows_do_not_take_the_board_with_them(tmp_path: Path) -> None:
    site = Installation(tmp_path, {"etl/fails": JOBS["etl/fails"]}).start()
    try:
        run_id = site.make("etl/fails", args={"date": "1"})["run_id"]
        now = site.clock.wall()
        past(site, "etl/fails", now - HOUR, 60, "failure", date="2")
        with closing(sqlite3.connect(tmp_path / "apsis.db", isolation_level=None)) as db:
            db.execute("UPDATE runs SET times = '{' WHERE number = ?", (int(run_id[1:]),))
        assert ask(site, "board")["counts"]["failing"] == 1
        assert row(timeline(site, now - DAY, now + HOUR), "etl/fails")["failures"] == 2
    finally:
        site.stop()
