"""Runs that could not be begun in time: what is made up for, what is missed, and that each says why."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sim import Sim, SimProgram
from test_scheduler import Every

from apsislib import expectations
from apsislib.catchup import CAP, DEFAULT, CatchUp, newest, parse, parse_server
from apsislib.conditions import Const, MaxRunning
from apsislib.errors import FieldError
from apsislib.runs import Limits, Placed, Running
from apsislib.scheduler import Settings, gaps
from apsislib.states import State

HOUR = 3600
BEGAN = "2026-01-01T00:00:01+00:00"  # when the server was last there


def site(horizon: float = 7200.0, **catch_up: Any) -> Sim:
    return Sim(settings=Settings(horizon, catch_up=CatchUp(**catch_up).over(DEFAULT)))


def away(sim: Sim, seconds: float, crash: bool = True) -> None:
    """No server for so long."""
    sim.clock.advance(seconds)
    sim.crash()
    sim.run_for(120)  # what is paced


def told(sim: Sim, job_id: str) -> list[tuple[float, str, str | None]]:
    """Of each run of a job but those on time: minutes of its time, state, and why it is late or missed."""
    return [
        (run.times["schedule"] % 86400 / 60, run.state.value, next(iter(reasons.values())))
        for run in sorted(sim.runs(job_id), key=lambda run: run.times["schedule"])
        if (reasons := run.meta.get("reasons"))
    ]


def down(until: int) -> str:
    return f"the server was down from {BEGAN} to 2026-01-01T00:{until:02}:00+00:00"


# -- policies ----------------------------------------------------------------------------------------


def test_all_that_was_due_is_made_up_for_and_called_late() -> None:
    sim = site()
    sim.add_job("tick", Every(600))
    sim.run_for(1)
    away(sim, 1859)
    assert told(sim, "tick") == [
        (10.0, "success", down(31)),
        (20.0, "success", down(31)),
        (30.0, "success", down(31)),
    ]
    (run_id,) = [run.run_id for run in sim.runs("tick") if run.times["schedule"] % HOUR == 600]
    assert sim.log[run_id][1] == f"1260 s late: {down(31)}"


def test_of_each_schedule_the_latest_is_made_up_for_and_the_others_are_missed() -> None:
    sim = site(policy="latest")
    sim.add_job("tick", Every(600), Every(900), params=("time",))
    sim.run_for(1)
    away(sim, 1859)
    missed = f"{down(31)}; catch_up is latest"
    assert told(sim, "tick") == [
        (10.0, "skipped", missed),
        (15.0, "skipped", missed),
        (20.0, "skipped", missed),
        (30.0, "success", down(31)),
        (30.0, "success", down(31)),
    ]


def test_where_nothing_is_made_up_for_all_of_it_is_recorded() -> None:
    sim = site(policy="none")
    sim.add_job("tick", Every(600))
    sim.run_for(1)
    away(sim, 1859)
    assert told(sim, "tick") == [(m, "skipped", f"{down(31)}; catch_up is none") for m in (10.0, 20.0, 30.0)]
    assert sim.started("tick") == ["2026-01-01T00:00:00Z"]
    sim.run_for(600)
    assert sim.started("tick")[1:] == ["2026-01-01T00:40:00Z"]


def test_a_job_says_for_itself_key_by_key() -> None:
    sim = site(policy="none", cap=2)
    job = sim.add_job("tick", Every(600))
    job = replace(job, catch_up=CatchUp("all"))
    sim.jobs["tick"] = job
    sim.kernel.change_jobs((), [job])
    sim.add_job("other", Every(600))
    sim.run_for(1)
    away(sim, 1859)
    assert [state for _, state, _ in told(sim, "tick")] == ["skipped", "success", "success"]
    assert [state for _, state, _ in told(sim, "other")] == ["skipped"] * 3


@pytest.mark.parametrize("policy", ["all", "latest"])
def test_a_window_says_how_far_back(policy: str) -> None:
    sim = site(policy=policy, window=900.0)
    sim.add_job("tick", Every(600))
    sim.add_job("rare", Every(HOUR / 2))
    sim.run_for(1)
    away(sim, 50 * 60 - 1)
    ran = [minute for minute, state, _ in told(sim, "tick") if state == "success"]
    assert ran == ([40.0] if policy == "all" else [40.0])
    assert len(told(sim, "tick")) == 4
    why = "catch_up.window is 900 s" if policy == "all" else "catch_up is latest"
    assert told(sim, "rare") == [(30.0, "skipped", f"{down(50)}; {why}")]


def test_a_cap_leaves_the_newest_also_where_several_are_due_at_once() -> None:
    sim = site(cap=3)
    sim.add_job("tick", Every(600, copies=2), Every(1200), params=("time",))
    sim.run_for(1)
    away(sim, 1859)
    states = Counter((minute, state) for minute, state, _ in told(sim, "tick"))
    assert states == {
        (10.0, "skipped"): 2,
        (20.0, "skipped"): 2,  # three are due then, and there is room for one
        (20.0, "success"): 1,
        (30.0, "success"): 2,
    }
    assert f"{down(31)}; catch_up.cap is 3 runs of a job" in {why for _, _, why in told(sim, "tick")}


def test_of_a_long_backlog_the_oldest_are_not_recorded_one_by_one_but_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gaps, "RECORDED", 50)
    sim = site(cap=50, pace="off")
    sim.add_job("second", Every(1), params=("time",))
    sim.run_for(1)
    before = len(sim.rows)
    sim.clock.advance(30 * 86400)
    sim.crash()
    late = [run for run in sim.runs("second")[before:] if run.times["schedule"] < sim.clock.wall()]
    assert Counter(run.state for run in late) == {State.SKIPPED: 50, State.SUCCESS: 50}
    said = f"what else was due before, from {BEGAN} on, was missed, too"
    assert said in sim.log[late[0].run_id]
    assert sum("was missed, too" in line for run in late for line in sim.log[run.run_id]) == 1
    assert sim.stored_clock >= sim.clock.wall() - 1


@pytest.mark.parametrize("ticks", range(0, 12, 2))
def test_a_crash_while_a_long_backlog_is_taken_up_loses_nothing_of_it(
    ticks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "RECORDED", 30)
    sim = site(cap=20, pace="off")
    sim.add_job("second", Every(1, until=1767225600 + 86400), params=("time",))
    sim.run_for(1)
    sim.clock.advance(86400 + 60)
    settle, sim.settle = sim.settle, lambda: None  # type: ignore[method-assign]
    sim.crash()
    for _ in range(ticks):
        sim.kernel.tick(sim.clock.wall(), sim.clock.boot(), limit=10)
        sim.commit()
    sim.settle = settle  # type: ignore[method-assign]
    sim.crash()
    late = [run for run in sim.runs("second") if run.meta.get("reasons")]
    assert sum("late" in run.meta["reasons"] for run in late) == 20
    assert sum("missed" in run.meta["reasons"] for run in late) == 30
    said = [line for run in late for line in sim.log[run.run_id] if "was missed, too" in line]
    assert said == [f"what else was due before, from {BEGAN} on, was missed, too"]


def test_a_hiccup_is_made_up_for_whatever_the_policy() -> None:
    sim = site(policy="none")
    sim.add_job("tick", Every(2))
    sim.run_for(1)
    sim.clock.advance(6)
    sim.crash()
    assert {run.state for run in sim.runs("tick")} == {State.SUCCESS}
    assert {why for _, _, why in told(sim, "tick")} == {
        f"the server was down from {BEGAN} to 2026-01-01T00:00:07+00:00"
    }


# -- pace ----------------------------------------------------------------------------------------------


def test_late_runs_are_paced_and_those_on_time_are_not() -> None:
    sim = site(pace=0.5)
    sim.add_job("tick", Every(600))
    sim.run_for(1)
    sim.clock.advance(3659)
    sim.crash()
    sim.add_job("now")
    assert [r.state for r in sim.runs("tick")[-6:]] == [State.SUCCESS] + 5 * [State.SCHEDULED]
    now = sim.schedule("now")
    sim.settle()
    assert sim.state(now) is State.SUCCESS
    sim.run_for(4.5)
    assert sim.started("tick")[1:] == [f"2026-01-01T01:01:0{second}Z" for second in (0, 2, 4)]
    assert sim.log[sim.runs("tick")[2].run_id][1].endswith("; to be begun at 2026-01-01T01:01:02+00:00")
    assert not sim.kernel.expected.get("tick", {}).keys() & sim.rows.keys()


def test_where_there_is_one_run_of_each_schedule_to_make_up_for_nothing_is_paced() -> None:
    sim = site(pace=0.01)
    for number in range(50):
        sim.add_job(
            f"job{number}", Every(3600, until=1767225600 + 7200), Every(7000, until=1767225600 + 10_000)
        )
    sim.run_for(3500)
    sim.clock.advance(700)
    sim.crash()
    assert sum(run.state is State.SUCCESS for run in sim.rows.values()) == len(sim.rows)
    assert sum("late" in run.meta.get("reasons", ()) for run in sim.rows.values()) == 50


def test_a_crash_while_late_runs_are_paced_neither_loses_nor_doubles_one() -> None:
    sim = site(pace=0.5)
    sim.add_job("tick", Every(60))
    sim.run_for(1)
    sim.clock.advance(3600)
    for _ in range(10):
        sim.crash()
        sim.run_for(7)
    sim.run_for(600)
    starts = Counter(run.times["schedule"] for run in sim.runs("tick"))
    assert len(starts) == 72 and set(starts.values()) == {1}
    assert {run.state for run in sim.runs("tick")} == {State.SUCCESS}
    launched = [when for _, when in sim.launched]
    # Where it was paced it stayed so after a crash: 0.5 a second, and those due meanwhile.
    assert sum(t < sim.clock.wall() - 600 for t in launched) <= 1 + 45


@pytest.mark.parametrize("delta", [-3600, 3600])
def test_a_clock_that_is_set_changes_nothing_of_the_pace(delta: float) -> None:
    sim = site(pace=0.5)
    sim.add_job("tick", Every(600, until=1767225600 + 3000))
    sim.run_for(1)
    sim.clock.advance(3659)
    sim.crash()
    sim.clock.step(delta)
    sim.kernel.stepped(delta, sim.clock.wall())
    begun = sim.clock.boot()
    while len(sim.launched) < 5:
        before = len(sim.launched)
        sim.run_for(0.5)
        assert len(sim.launched) <= before + 1
    assert sim.clock.boot() - begun == pytest.approx(6, abs=1)


def test_of_many_gaps_the_long_ones_are_remembered_longer() -> None:
    sim = site(policy="none")
    sim.add_job("tick", Every(600))
    sim.run_for(1)
    sim.clock.advance(1859)
    sim.kernel.lost(sim.clock.wall() - 1859, sim.clock.wall(), "the server was down")
    for after in range(100):
        sim.kernel.lost(
            sim.clock.wall() - 2 - after / 100, sim.clock.wall() - after / 100, "the server stood still"
        )
    sim.settle()
    assert [state for _, state, _ in told(sim, "tick")] == ["skipped"] * 3


def test_a_run_that_does_not_say_when_it_was_made_is_late_from_its_time_on() -> None:
    sim = site()
    sim.add_job("job")
    run_id = sim.schedule("job", at=sim.clock.wall() + 60)  # as an import may have left it
    sim.rows[run_id] = sim.rows[run_id].but(times={"schedule": sim.clock.wall() + 60})
    sim.clock.advance(100)
    sim.crash()
    assert sim.state(run_id) is State.SUCCESS and "late" in sim.rows[run_id].meta["reasons"]


def test_a_run_put_off_can_be_skipped_and_started() -> None:
    sim = site(pace=0.01)
    sim.add_job("tick", Every(600))
    sim.run_for(1)
    sim.clock.advance(1859)
    sim.crash()
    _, first, second, third = sim.runs("tick")
    assert (first.state, second.state, third.state) == (State.SUCCESS, State.SCHEDULED, State.SCHEDULED)
    sim.kernel.skip(second.run_id, sim.clock.wall())
    sim.kernel.start(third.run_id, sim.clock.wall(), sim.clock.boot())
    sim.settle()
    assert sim.state(second.run_id) is State.SKIPPED and sim.state(third.run_id) is State.SUCCESS
    sim.run_for(400)
    assert len(sim.launched) == 3


def test_a_run_that_is_made_up_for_is_not_too_old_while_it_is_put_off() -> None:
    sim = Sim(settings=Settings(max_age=1000, catch_up=CatchUp(pace=0.001).over(DEFAULT)))
    sim.add_job("tick", Every(600, until=1767225601 + 1800))
    sim.run_for(1)
    sim.clock.advance(1859)
    sim.crash()
    sim.run_for(5000)
    assert [run.state for run in sim.runs("tick")] == [
        State.SUCCESS,
        State.SKIPPED,
        State.SUCCESS,
        State.SUCCESS,
    ]


# -- reasons ---------------------------------------------------------------------------------------------


def test_a_disk_that_failed_is_a_reason_and_falls_under_the_policy() -> None:
    sim = site(policy="latest")
    sim.add_job("tick", Every(600))
    sim.run_for(1)
    sim.kernel.tick(sim.clock.wall(), sim.clock.boot(), brake=True)
    sim.clock.advance(1859)
    sim.kernel.tick(sim.clock.wall(), sim.clock.boot(), brake=True)
    sim.commit()
    assert len(sim.rows) == 1
    sim.settle()
    why = "the database could not be written from 2026-01-01T00:00:01+00:00 to 2026-01-01T00:31:00+00:00"
    assert told(sim, "tick") == [
        (10.0, "skipped", f"{why}; catch_up is latest"),
        (20.0, "skipped", f"{why}; catch_up is latest"),
        (30.0, "success", why),
    ]


def test_a_start_that_was_held_up_by_the_disk_says_so_too() -> None:
    sim = site()
    sim.add_job("job", program=SimProgram(None))
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.clock.advance(60)
    sim.kernel.lost(sim.clock.wall() - 59, sim.clock.wall(), "the database could not be written")
    sim.kernel.report(run_id, Running({"conn_id": "c"}), sim.clock.wall(), sim.clock.boot())
    sim.commit()
    assert sim.rows[run_id].meta["reasons"] == {
        "late": f"the database could not be written from {BEGAN} to 2026-01-01T00:01:00+00:00"
    }


def test_a_run_that_no_agent_took_says_so() -> None:
    sim = site()
    sim.add_job("job", program=SimProgram(None, limits=Limits()))
    sim.programs["job"]._json = {"type": "sim", "group_id": "etl"}
    sim.on_launch = lambda run: None
    slow, quick = sim.schedule("job"), sim.schedule("job", at=sim.clock.wall() + 58)
    sim.run_for(60)
    for run_id in (slow, quick):
        sim.kernel.report(run_id, Placed({"conn_id": "c"}), sim.clock.wall(), sim.clock.boot())
        sim.kernel.report(run_id, Running({"conn_id": "c"}), sim.clock.wall(), sim.clock.boot())
    sim.commit()
    why = "no agent of group etl took it before 2026-01-01T00:01:00+00:00"
    assert sim.rows[slow].meta["reasons"] == {"late": why}
    assert f"60 s late: {why}" in sim.log[slow]
    assert "reasons" not in sim.rows[quick].meta


def test_a_run_by_hand_is_late_from_its_time_or_its_making_on() -> None:
    sim = site()
    sim.add_job("job")
    overdue = sim.schedule("job", at=sim.clock.wall() + 60)
    ancient = sim.schedule("job", at=sim.clock.wall() - 9999)
    sim.settle()
    sim.clock.advance(100)
    sim.crash()
    assert sim.rows[overdue].meta["reasons"] == {
        "late": "the server was down from 2026-01-01T00:00:00+00:00 to 2026-01-01T00:01:40+00:00"
    }
    assert "40 s late: the server was down from 2026" in sim.log[overdue][2]
    assert "reasons" not in sim.rows[ancient].meta


def test_without_any_gap_too_a_run_that_is_late_says_by_how_much_the_server_was_behind() -> None:
    sim = site()
    sim.add_job("tick", Every(600))
    sim.run_for(1)
    for seconds in (600, 600.5, 602):  # 1.0, 1.5 and 3.5 s after its time
        sim.clock.advance(seconds)
        sim.settle()
    assert told(sim, "tick") == [
        (20.0, "success", "the server was 1.5 s behind"),
        (30.0, "success", "the server was 3.5 s behind"),
    ]
    (run_id,) = [run.run_id for run in sim.runs("tick") if run.times["schedule"] % HOUR == 1800]
    assert "4 s late: the server was 3.5 s behind" in sim.log[run_id]


def held_up(program: dict[str, str], waits: float, placed: float, running: float) -> Any:
    """Why a run is called late that its agent was found for, and that ran, so many seconds after its time."""
    sim = site()
    sim.add_job("job", program=SimProgram(None, limits=Limits()), conditions=(Const(waits == 0),))
    sim.programs["job"]._json = {"type": "sim", **program}
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job", at=sim.clock.wall())
    sim.settle()
    if waits:
        sim.run_for(waits)
        sim.kernel.start(run_id, sim.clock.wall(), sim.clock.boot())
        sim.settle()
    for seconds, report in ((placed, Placed({"conn_id": "{c}"})), (running, Running({"conn_id": "{c}"}))):
        sim.clock.advance(seconds - sim.clock.wall() % 3600)
        sim.kernel.report(run_id, report, sim.clock.wall(), sim.clock.boot())
    sim.commit()
    return sim.rows[run_id].meta.get("reasons", {}).get("late")


def test_a_run_that_does_not_run_five_seconds_after_its_time_is_late() -> None:
    group = {"group_id": "{etl}"}
    assert held_up(group, waits=0, placed=4, running=5) is None
    assert held_up(group, 0, 6, 6) == "no agent of group {etl} took it before 2026-01-01T00:00:06+00:00"
    # Neither took long for itself.
    assert held_up(group, 0, 4, 8) == "agent {c} did not start it before 2026-01-01T00:00:08+00:00"
    # What it has waited for by its own conditions does not count.
    assert held_up(group, waits=60, placed=62, running=64) is None
    assert held_up(group, 60, 62, 66) == "agent {c} did not start it before 2026-01-01T00:01:06+00:00"
    # Tasks of ECS and users' classes begin when they do.
    assert held_up({}, waits=0, placed=40, running=50) is None


def test_a_late_run_with_conditions_waits_and_is_called_late() -> None:
    sim = site()
    sim.add_job("tick", Every(600), conditions=(MaxRunning(),), program=SimProgram(100.0))
    sim.add_job("never", Every(600), conditions=(Const(False),))
    sim.run_for(200)
    away(sim, 1060)
    sim.run_for(600)
    down = "the server was down from 2026-01-01T00:03:20+00:00 to 2026-01-01T00:21:00+00:00"
    assert told(sim, "tick") == [(10.0, "success", down), (20.0, "success", down)]
    assert [state for _, state, _ in told(sim, "never")] == ["waiting", "waiting"]


def test_what_is_missed_is_an_alarm_where_something_is_expected() -> None:
    sim = site(policy="none")
    sim.add_job("plain", Every(600))
    sim.add_job("prompt", Every(600), expect=expectations.parse({"within": "5 min"}, ()))
    sim.run_for(1)
    sim.keep_effects = True
    away(sim, 659)
    (plain,) = [run for run in sim.runs("plain") if run.state is State.SKIPPED]
    (prompt,) = [run for run in sim.runs("prompt") if run.state is State.SKIPPED]
    assert "alarms" not in plain.meta and prompt.meta["alarms"] == ["missed"]
    raised = [e for e in sim.effects if type(e).__name__ == "Raised"]
    assert [(e.run.job_id, e.alarm) for e in raised] == [("prompt", "missed")]


def test_whatever_happens_each_occurrence_is_run_or_recorded_once() -> None:
    for seed in range(20):
        rnd = random.Random(seed)
        sim = site(
            horizon=600.0,
            policy=rnd.choice(["all", "latest", "none"]),
            cap=rnd.choice([3, 1000]),
            pace=rnd.choice([0.1, "off"]),
        )
        steps = sorted(rnd.sample([60, 90, 600], 2))
        sim.add_job("tick", *(Every(s) for s in steps), params=("time",))
        start = sim.clock.wall()
        due: Counter[float] = Counter()
        for _ in range(5):
            sim.run_for(rnd.choice([10, 100, 300]))
            sim.clock.advance(rnd.choice([3, 60, 500]))
            sim.crash()
        sim.run_for(3600)
        end = sim.clock.wall()
        for step in steps:
            due.update(o.time for o in Every(step, until=end - 0.5).after(start))
        found = Counter(
            run.times["schedule"] for run in sim.runs("tick") if run.times["schedule"] < end - 0.5
        )
        assert found == due, seed
        for run in sim.runs("tick"):
            assert run.state is State.SUCCESS or run.meta["reasons"]["missed"], run


# -- words and numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_newest_instants_are_found_by_looking_back(seed: int) -> None:
    rnd = random.Random(seed)
    schedule = Every(rnd.choice([1, 7, 60, 4000]), copies=rnd.choice([1, 2]))
    start = rnd.uniform(0, 1e6)
    end = start + rnd.choice([5, 500, 20_000])
    every = [o.time for o in Every(schedule.seconds, until=end, copies=schedule.copies).after(start)]
    for count in (1, 3, 50):
        assert newest(schedule, start, end, count) == every[-count:]


@pytest.mark.parametrize(
    ("value", "said", "keys"),
    [
        ("some", "must be one of all, latest, none: 'some'", []),
        (["all"], "must be one of all, latest, none: ['all']", []),
        ({"policy": True}, "must be one of all, latest, none: True", ["policy"]),
        ({"windows": 5}, "unexpected keys: windows (known: policy, window, cap)", ["windows"]),
        ({"window": "soon"}, "can't parse as duration: soon", ["window"]),
        ({"window": 0}, "must be more than 0: 0", ["window"]),
        ({"cap": 0}, "must be a whole number from 1 to 1000000: 0", ["cap"]),
        ({"cap": True}, "must be a whole number from 1 to 1000000: True", ["cap"]),
        (
            {"pace": 5},
            "unexpected keys: pace: it is for all jobs together, and set in the server's file",
            ["pace"],
        ),
    ],
)
def test_a_mistake_is_named(value: Any, said: str, keys: list[str]) -> None:
    with pytest.raises(FieldError) as error:
        parse(value)
    assert said in error.value.message and list(error.value.keys) == keys


def test_what_a_file_says_is_completed_by_the_other() -> None:
    assert parse(None) is None
    assert parse_server("latest") == CatchUp("latest", "off", CAP, 20.0)
    server = parse_server({"window": "2h", "cap": 5, "pace": 3})
    assert server == CatchUp("all", 7200.0, 5, 3.0)
    job = parse({"policy": "latest", "window": "off"})
    assert job is not None and job.over(server) == CatchUp("latest", "off", 5, 3.0)
    assert job.to_json() == {"policy": "latest", "window": "off"} and parse(job.to_json()) == job
    assert parse_server({"pace": "off"}).pace == "off"
    with pytest.raises(FieldError, match="must be a number of runs a second, or off: 0"):
        parse_server({"pace": 0})
