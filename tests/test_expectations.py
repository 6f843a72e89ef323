"""What is expected of runs, and the alarms where they do not keep to it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from server import ENDS, Server
from sim import Sim, SimProgram, instant

from apsislib import actions, expectations
from apsislib.actions import ScheduleAction
from apsislib.calendars import Calendars
from apsislib.conditions import Const
from apsislib.errors import FieldError
from apsislib.expectations import Expectation
from apsislib.runs import Limits, Raised, Schedule
from apsislib.schedules import parse
from apsislib.states import State
from apsislib.times import zone

NOON = instant("2026-01-05T12:00:00Z")
DAILY = parse({"type": "daily", "daytime": "12:00:00", "tz": "UTC"}, Calendars(None))
WAITS = (Const(False),)


def raised(sim: Sim) -> list[tuple[str, str]]:
    return [(effect.run.run_id, effect.alarm) for effect in sim.effects if isinstance(effect, Raised)]


def simulated(expect: Expectation, program: SimProgram | None = None, **rest: Any) -> Sim:
    sim = Sim("2026-01-05T11:00:00Z")
    sim.keep_effects = True
    sim.add_job("job", DAILY, expect=expect, program=program, **rest)
    return sim


def test_a_run_that_keeps_to_it_raises_nothing() -> None:
    sim = simulated(Expectation(60, 14 * 3600, zone("UTC"), 600), SimProgram(599))
    sim.run_until("2026-01-06T11:00:00Z")
    assert [run.state for run in sim.runs("job")] == [State.SUCCESS]
    assert raised(sim) == []


def test_a_run_that_waits_is_late_once() -> None:
    sim = simulated(Expectation(within=60), conditions=WAITS)
    sim.run_until(NOON + 59)
    assert raised(sim) == []
    sim.run_until("2026-01-06T11:00:00Z")
    (run,) = sim.runs("job")
    assert raised(sim) == [(run.run_id, "late")]
    assert run.meta["alarms"] == ["late"] and run.state is State.WAITING
    assert sim.log[run.run_id][-1] == "late: has not begun by 2026-01-05T12:01:00+00:00"


def test_a_run_that_has_not_ended_by_its_time_is_missed() -> None:
    sim = simulated(Expectation(by=14 * 3600, tz=zone("UTC")), SimProgram(None))
    sim.run_until("2026-01-06T11:00:00Z")
    (run,) = sim.runs("job")
    assert raised(sim) == [(run.run_id, "missed")]
    assert sim.log[run.run_id][-1] == "missed: has not ended by 2026-01-05T14:00:00+00:00"


def test_a_run_that_runs_for_too_long_is_long_and_goes_on() -> None:
    sim = simulated(Expectation(max_duration=600), SimProgram(601))
    sim.run_until(NOON + 600)
    (run,) = sim.runs("job")
    assert raised(sim) == [(run.run_id, "long")] and sim.state(run.run_id) is State.RUNNING
    sim.run_until(NOON + 700)
    (run,) = sim.runs("job")
    assert run.state is State.SUCCESS and run.meta["alarms"] == ["long"]


def test_no_alarm_is_lost_or_raised_twice_by_crashes() -> None:
    expect = Expectation(60, 14 * 3600, zone("UTC"), 600)
    sim = simulated(expect, SimProgram(None, limits=Limits(reconnect_timeout=None)))
    sim.add_job("waits", DAILY, expect=expect, conditions=WAITS)
    for at in (-1, 0, 30, 60, 61, 599, 600, 601, 7199, 7200, 7201):
        sim.run_until(NOON + at)
        sim.crash()
    sim.run_until(NOON + 7300)
    (runs,), (waits,) = sim.runs("job"), sim.runs("waits")
    assert sorted(raised(sim)) == sorted(
        [(runs.run_id, "long"), (runs.run_id, "missed"), (waits.run_id, "late"), (waits.run_id, "missed")]
    )


def test_a_run_begun_late_by_a_server_that_was_down_is_late() -> None:
    sim = simulated(Expectation(within=60), SimProgram(5))
    sim.run_until(NOON - 10)
    sim.clock.advance(1000)  # nobody ticks
    sim.run_until(NOON + 2000)
    (run,) = sim.runs("job")
    assert run.state is State.SUCCESS and run.meta["alarms"] == ["late"]


def test_actions_follow_alarms_and_nothing_else() -> None:
    alarm = ScheduleAction("told", {}, None, frozenset({"late", "long"}))
    ends = ScheduleAction("ended", {}, frozenset({State.SUCCESS}))
    sim = simulated(Expectation(60, None, None, 600), SimProgram(700), actions=(alarm, ends))
    sim.add_job("told")
    sim.add_job("ended")
    sim.run_until("2026-01-06T11:00:00Z")
    assert (len(sim.runs("told")), len(sim.runs("ended"))) == (1, 1)
    assert sim.owed == {}


@pytest.mark.parametrize(
    ("schedule", "by", "tz", "expected"),
    [
        ("2026-01-05T12:00:00Z", "14:00:00", "UTC", "2026-01-05T14:00:00Z"),
        ("2026-01-05T23:00:00Z", "02:00:00", "UTC", "2026-01-06T02:00:00Z"),
        ("2026-01-05T02:00:00Z", "02:00:00", "UTC", "2026-01-06T02:00:00Z"),
        ("2026-01-05T23:00:00-05:00", "02:00:00", "America/New_York", "2026-01-06T02:00:00-05:00"),
        # Clocks jump from 02:00 to 03:00.
        ("2026-03-07T23:00:00-05:00", "02:30:00", "America/New_York", "2026-03-08T03:30:00-04:00"),
    ],
)
def test_by_is_the_next_such_time_of_day(schedule: str, by: str, tz: str, expected: str) -> None:
    parsed = expectations.parse({"by": by, "tz": tz}, ())
    assert parsed is not None and parsed.of(instant(schedule)) == {"missed": instant(expected)}


def test_the_zone_is_that_of_the_schedules() -> None:
    tokyo = parse({"type": "cron", "cron": "0 1 * * *", "tz": "Asia/Tokyo"}, Calendars(None))
    parsed = expectations.parse({"by": "02:00"}, (tokyo,))
    assert parsed is not None and parsed.to_json() == {"by": "02:00:00", "tz": "Asia/Tokyo"}
    assert str(parsed) == "ended by 02:00:00 Asia/Tokyo"


@pytest.mark.parametrize(
    ("value", "schedules", "said", "keys"),
    [
        ("soon", (), "expect must be a mapping with within, by, tz, max_duration: 'soon'", []),
        ({}, (), "expect says nothing: give within, by or max_duration", []),
        ({"before": 1}, (), "unexpected keys: before", ["before"]),
        ({"within": "soon"}, (), "soon", ["within"]),
        ({"max_duration": 0}, (), "must be more than 0: 0", ["max_duration"]),
        ({"by": "25:00", "tz": "UTC"}, (), "25:00", ["by"]),
        ({"by": "02:00"}, (), "missing key: tz, the time zone of by (its schedules have none)", ["by"]),
        ({"by": "02:00", "tz": "Mars"}, (), "Mars", ["tz"]),
        ({"within": 5, "tz": "UTC"}, (), "tz has a meaning only with by", ["tz"]),
    ],
)
def test_a_mistake_is_named(value: Any, schedules: tuple[Schedule, ...], said: str, keys: list[str]) -> None:
    with pytest.raises(FieldError) as caught:
        expectations.parse(value, schedules)
    assert said in str(caught.value) and list(caught.value.keys) == keys


def test_an_unknown_alarm_of_an_action_is_named() -> None:
    with pytest.raises(FieldError, match=r"unknown alarm: slow \(known: late, missed, long\)") as caught:
        actions.parse({"type": "schedule", "job_id": "a", "if": {"alarm": ["late", "slow"]}})
    assert list(caught.value.keys) == ["if", "alarm"]


def test_an_empty_list_of_alarms_is_refused() -> None:
    with pytest.raises(FieldError, match=r"alarm names none \(known: late, missed, long\)"):
        actions.parse({"type": "schedule", "job_id": "a", "if": {"alarm": []}})


JOBS = {
    "slow": (
        "expect: {within: 10 min, max_duration: 0.2}\n"
        "action: {type: schedule, job_id: told, args: {alarm: long}, if: {alarm: long}}\n"
        "program: {type: procstar-shell, command: 'read x < go'}\n"
    ),
    "told": "params: [alarm]\nprogram: {type: no-op}\n",
    "down": ("schedule: {type: interval, interval: 1h}\nexpect: {within: 10 min}\nprogram: {type: no-op}\n"),
}


def test_alarms_are_in_api_command_line_and_metrics_and_trigger_actions(
    tmp_path: Path,
) -> None:
    jobs = {**JOBS, "slow": JOBS["slow"].replace("go'", f"{tmp_path}/go'")}
    os.mkfifo(tmp_path / "go")
    server = Server(tmp_path, jobs)
    with server.running():
        metrics = f"http://127.0.0.1:{server.port}/metrics"
        assert 'apsis_alarms_total{job="slow",alarm="long"} 0' in requests.get(metrics, timeout=30).text
        run_id = server.schedule({"job_id": "slow"})
        while not (told := server.get("/runs", job_id="told")["runs"]):
            pass
        (followed,) = told.values()
        assert followed["args"] == {"alarm": "long"}
        assert server.run(run_id)["alarms"] == ["long"] and server.run(run_id)["state"] == "running"
        assert server.run(run_id)["reasons"] == {"long": "has been running for more than 0.2 s"}
        assert server.get("/search/runs", q="alarm:long")["runs"].keys() == {run_id}
        assert "long: has been running for more than 0.2 s" in server.messages(run_id)
        (line,) = [
            text for text in server.command("runs", "--job", "slow").stdout.splitlines() if run_id in text
        ]
        assert line.rstrip().endswith("long")
        assert 'apsis_alarms_total{job="slow",alarm="long"} 1' in requests.get(metrics, timeout=30).text
        server.kill()
        server.start()
        assert server.run(run_id)["alarms"] == ["long"]
        (tmp_path / "go").write_text("\n")
        assert server.until(run_id, *ENDS)["alarms"] == ["long"]
        assert len(server.get("/runs", job_id="told")["runs"]) == 1
        assert server.get("/jobs/slow")["expect"]["str"] == "begun within 10 min, running for 0.2 s at most"
        server.end()
        with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
            db.execute("UPDATE meta SET value = value - 7200 WHERE name = 'clock'")
        server.start()
        late: list[Any] = []
        while not late:  # from two hours ago; they are made up for in a moment
            made_up = server.get("/search/runs", q="down state:success")["runs"].values()
            late = [run for run in made_up if run.get("alarms") == ["late"]]
        assert any("the server was down from" in line for line in server.messages(late[0]["run_id"]))
