"""The kernel: what happens to runs. Time is moved, never waited for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from sim import Sim, SimProgram, instant

from apsislib.actions import ScheduleAction
from apsislib.catchup import DEFAULT, CatchUp
from apsislib.conditions import Const, Dependency, MaxRunning, SkipDuplicate
from apsislib.errors import RunError
from apsislib.runs import (
    Back,
    Finished,
    Forget,
    Launched,
    Limits,
    Lookup,
    Lost,
    Occurrence,
    Placed,
    Run,
    Running,
    Save,
    Signal,
    Unplaced,
    stamp,
)
from apsislib.scheduler import Settings
from apsislib.states import FINISHED, TRANSITIONS, State, reachable


@dataclass(frozen=True)
class Every:
    """An interval schedule, as plain as can be."""

    seconds: float
    stop: float | None = None
    until: float = float("inf")
    copies: int = 1
    enabled: bool = True

    def after(self, start: float) -> Iterator[Occurrence]:
        n = -(-start // self.seconds)
        while n * self.seconds < self.until:
            time = n * self.seconds
            for _ in range(self.copies):
                yield Occurrence(time, {"time": str(time)}, None if self.stop is None else time + self.stop)
            n += 1

    def to_json(self) -> dict[str, object]:
        return {}


FOREVER = SimProgram(None)
AT_ONCE = CatchUp(pace="off").over(DEFAULT)


# -- schedules ---------------------------------------------------------------------------------------


def test_an_hourly_job_runs_on_the_hour(sim: Sim) -> None:
    sim.add_job("tick", Every(3600))
    sim.run_for(3 * 3600)
    assert sim.started("tick") == [f"2026-01-01T0{h}:00:00Z" for h in range(4)]
    assert {r.state for r in sim.runs("tick")} == {State.SUCCESS}


def test_expected_runs_exist_for_the_horizon_and_not_beyond() -> None:
    sim = Sim(settings=Settings(horizon=7200))
    sim.add_job("tick", Every(3600))
    sim.settle()
    assert [r.times["schedule"] - sim.clock.wall() for r in sim.expected("tick")] == [3600, 7200]


def test_a_schedule_has_at_most_so_many_expected_runs_and_still_misses_none() -> None:
    sim = Sim(settings=Settings(max_expected=5))
    sim.add_job("tick", Every(60), params=("time",))
    sim.settle()
    assert len(sim.expected("tick")) == 5
    sim.run_for(3600)
    assert len(sim.started("tick")) == 61


def test_an_expected_run_is_not_stored_before_it_is_due(sim: Sim) -> None:
    sim.add_job("tick", Every(3600))
    sim.run_for(10)
    assert len(sim.rows) == 1
    assert len(sim.expected("tick")) == 24


def test_equal_occurrences_are_separate_runs(sim: Sim) -> None:
    sim.add_job("twice", Every(3600, copies=2))
    sim.run_for(0)
    assert len(sim.runs("twice")) == 2
    assert len({r.occurrence for r in sim.runs("twice")}) == 2


def test_a_run_made_by_hand_for_later_starts_then(sim: Sim) -> None:
    sim.add_job("job")
    run_id = sim.schedule("job", at=sim.clock.wall() + 90)
    assert sim.rows[run_id].state is State.SCHEDULED
    sim.run_for(89)
    assert sim.started("job") == []
    sim.run_for(1)
    assert sim.started("job") == ["2026-01-01T00:01:30Z"]


def test_log_of_a_plain_run(sim: Sim) -> None:
    sim.add_job("job")
    run_id = sim.schedule("job")
    sim.settle()
    assert sim.log[run_id] == ["scheduled: now", "starting", "running", "success"]


def test_times_and_elapsed_of_a_run(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(30))
    run_id = sim.schedule("job")
    t0 = sim.clock.wall()
    sim.run_for(60)
    run = sim.rows[run_id]
    assert run.times == {
        "schedule": t0,
        "scheduled": t0,
        "starting": t0,
        "running": t0,
        "success": t0 + 30,
    }
    assert run.meta["elapsed"] == 30


def test_a_run_is_launched_only_after_its_record_is_committed(sim: Sim) -> None:
    sim.add_job("job")
    states = []
    sim.on_launch = lambda run: states.append(sim.rows[run.run_id].state)
    sim.schedule("job")
    sim.settle()
    assert states == [State.STARTING]


def test_a_finished_run_leaves_memory(sim: Sim) -> None:
    sim.add_job("tick", Every(60, until=instant("2026-01-01T00:10:00Z")))
    sim.run_for(3600)
    assert sim.kernel.runs == {}
    assert len(sim.rows) == 10


# -- crashes -----------------------------------------------------------------------------------------


def test_a_crash_neither_loses_nor_doubles_an_occurrence(sim: Sim) -> None:
    sim.add_job("tick", Every(60))
    for _ in range(50):
        sim.run_for(47)
        sim.crash()
    sim.run_until(instant("2026-01-01T01:00:00Z"))
    times = [r.times["schedule"] for r in sim.runs("tick")]
    assert times == [instant("2026-01-01T00:00:00Z") + 60 * n for n in range(61)]


def test_occurrences_missed_while_down_run_at_start(sim: Sim) -> None:
    sim.add_job("tick", Every(60))
    sim.run_for(0)
    sim.clock.advance(600)
    sim.crash()
    assert len(sim.runs("tick")) == 11


def test_what_is_older_than_max_age_is_recorded_as_missed_and_not_run() -> None:
    sim = Sim(settings=Settings(max_age=150, catch_up=AT_ONCE))
    sim.add_job("tick", Every(60))
    sim.run_for(0)
    sim.clock.advance(600)
    sim.crash()
    runs = sim.runs("tick")
    missed = runs[1:8]  # due 540 to 180 s ago
    assert len(runs) == 11
    assert [r.state for r in runs] == [State.SUCCESS] + 7 * [State.SKIPPED] + 3 * [State.SUCCESS]
    down = "the server was down from 2026-01-01T00:00:00+00:00 to 2026-01-01T00:10:00+00:00"
    said = [f"skipped: missed: {down}; due {540 - 60 * n} s ago, schedule.max_age is 150 s" for n in range(7)]
    assert [sim.log[r.run_id][-1] for r in missed] == said
    sim.crash()
    assert len(sim.runs("tick")) == 11


def test_max_age_is_about_schedules_and_not_about_runs_made_by_hand() -> None:
    sim = Sim(settings=Settings(max_age=60))
    sim.add_job("job")
    run_id = sim.schedule("job", at=sim.clock.wall() + 10)
    sim.clock.advance(600)
    sim.crash()
    assert sim.state(run_id) is State.SUCCESS


def test_a_skipped_run_does_not_come_back_after_a_crash_or_a_reload(sim: Sim) -> None:
    job = sim.add_job("tick", Every(3600))
    sim.run_for(10)
    skipped = sim.expected("tick")[0]
    sim.kernel.skip(skipped.run_id, sim.clock.wall())
    sim.settle()
    sim.crash()
    sim.jobs["tick"] = replace(job)
    sim.kernel.change_jobs([], [sim.jobs["tick"]])
    sim.run_for(3600)
    at_one = [r for r in sim.runs("tick") if r.times["schedule"] == skipped.times["schedule"]]
    assert [r.state for r in at_one] == [State.SKIPPED]


def test_a_run_started_early_does_not_come_back(sim: Sim) -> None:
    sim.add_job("tick", Every(3600))
    sim.run_for(10)
    early = sim.expected("tick")[0]
    sim.kernel.start(early.run_id, sim.clock.wall(), sim.clock.boot())
    sim.crash()
    sim.run_for(3600)
    assert len([r for r in sim.runs("tick") if r.times["schedule"] == early.times["schedule"]]) == 1


def test_a_run_by_hand_survives_a_crash(sim: Sim) -> None:
    sim.add_job("job")
    run_id = sim.schedule("job", at=sim.clock.wall() + 60)
    sim.crash()
    sim.run_for(61)
    assert sim.state(run_id) is State.SUCCESS
    assert sim.log[run_id][-4:] == ["restored", "starting", "running", "success"]


def test_a_starting_run_that_was_not_placed_is_launched_again(sim: Sim) -> None:
    sim.add_job("job")
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.settle()
    sim.on_launch = None
    sim.crash()
    assert sim.state(run_id) is State.SUCCESS


def test_a_placed_run_is_never_launched_again(sim: Sim) -> None:
    sim.add_job("job")
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.settle()
    sim.kernel.report(run_id, Placed({"proc_id": "p", "conn_id": "c"}), sim.clock.wall(), sim.clock.boot())
    sim.settle()
    launched = len(sim.launched)
    sim.crash()
    assert sim.state(run_id) is State.STARTING
    assert len(sim.launched) == launched


def test_what_a_launch_has_made_is_kept_through_a_crash(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, State.ERROR, Limits(start_timeout=100)))
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.settle()
    launched = Launched({"task_arn": "a"}, {"aws_ecs": {}})
    sim.kernel.report(run_id, launched, sim.clock.wall(), sim.clock.boot())
    sim.settle()
    sim.crash()
    run = sim.kernel.runs[run_id]
    assert run.state is State.STARTING and run.meta["program"] == {"aws_ecs": {}}
    assert run.run_state["task_arn"] == "a" and "START" in run.run_state["timers"]
    sim.run_for(100)
    assert sim.state(run_id) is State.ERROR


def test_an_unplaced_run_is_launched_again(sim: Sim) -> None:
    sim.add_job("job")
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.settle()
    sim.kernel.report(run_id, Placed({"proc_id": "p", "conn_id": "c"}), sim.clock.wall(), sim.clock.boot())
    sim.on_launch = None
    sim.kernel.report(run_id, Unplaced("agent c is shutting down"), sim.clock.wall(), sim.clock.boot())
    sim.settle()
    assert sim.state(run_id) is State.SUCCESS


def test_a_timeout_counts_from_the_original_start_across_a_crash(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, State.ERROR, Limits(timeout=100, grace=None)))
    run_id = sim.schedule("job")
    sim.run_for(60)
    sim.crash()
    sim.keep_effects = True
    sim.run_for(39)
    assert not [e for e in sim.effects if isinstance(e, Signal)]
    sim.run_for(2)
    assert [e.signum for e in sim.effects if isinstance(e, Signal)] == [15]
    assert "timeout after 100 s" in sim.log[run_id]


def test_a_stopping_run_gets_the_rest_of_its_grace_period_after_a_crash(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, State.ERROR, Limits(grace=60)))
    run_id = sim.schedule("job")
    sim.run_for(5)
    sim.kernel.stop(run_id, sim.clock.wall(), sim.clock.boot())
    sim.run_for(50)
    sim.crash()
    sim.run_for(9)
    assert sim.state(run_id) is State.STOPPING
    sim.run_for(2)
    assert sim.rows[run_id].state is State.FAILURE
    assert sim.log[run_id][-2:] == ["sending SIGKILL", "failure: killed by SIGKILL"]


# -- time limits ---------------------------------------------------------------------------------------


def test_a_stop_time_stops_the_run(sim: Sim) -> None:
    sim.add_job("job", Every(86400, stop=600), program=FOREVER)
    sim.run_for(599)
    (run,) = sim.runs("job")
    assert run.state is State.RUNNING
    sim.run_for(2)
    assert sim.log[run.run_id][-4:] == [
        "running",
        "stopping",
        "sending SIGTERM",
        "failure: killed by SIGTERM",
    ]


def test_a_stop_time_is_kept_though_the_disk_fails_and_nothing_is_begun(sim: Sim) -> None:
    sim.add_job("job", program=FOREVER)
    sim.add_job("later")
    run_id = sim.schedule("job", stop=sim.clock.wall() + 100)
    later = sim.schedule("later", at=sim.clock.wall() + 50)
    sim.settle()
    sim.clock.advance(101)
    sim.kernel.tick(sim.clock.wall(), sim.clock.boot(), brake=True)
    assert [e.signum for e in sim.kernel.outbox if isinstance(e, Signal)] == [15]
    assert sim.state(run_id) is State.STOPPING and sim.state(later) is State.SCHEDULED
    sim.settle()
    assert sim.state(later) is State.SUCCESS


def test_a_stop_time_that_has_passed_stops_the_run_as_soon_as_it_runs(sim: Sim) -> None:
    sim.add_job("job", program=FOREVER)
    run_id = sim.schedule("job", stop=sim.clock.wall() - 1)
    sim.settle()
    assert sim.state(run_id) is State.FAILURE


def test_a_timeout_that_is_ignored_escalates_after_the_grace_period(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, State.ERROR, Limits(timeout=10, grace=5)))
    run_id = sim.schedule("job")
    sim.run_for(14)
    assert sim.state(run_id) is State.RUNNING
    sim.run_for(2)
    assert sim.log[run_id][-4:] == [
        "timeout after 10 s",
        "sending SIGTERM",
        "sending SIGKILL",
        "failure: killed by SIGKILL",
    ]


def test_no_agent_within_the_start_timeout_is_an_error(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(limits=Limits(start_timeout=30)))
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.run_for(29)
    assert sim.state(run_id) is State.STARTING
    sim.run_for(2)
    assert sim.log[run_id][-1] == "error: start failed: no connected agent in group: default"


def test_whose_start_timed_out_is_forgotten(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(limits=Limits(start_timeout=30)))
    sim.on_launch, sim.keep_effects = lambda run: None, True
    run_id = sim.schedule("job")
    sim.run_for(31)
    assert [e.run.run_id for e in sim.effects if isinstance(e, Forget)] == [run_id]


def test_an_agent_away_for_too_long_is_an_error_and_one_that_returns_is_not(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, limits=Limits(reconnect_timeout=100)))
    run_id = sim.schedule("job")
    sim.settle()
    now = sim.clock.wall, sim.clock.boot
    sim.kernel.report(run_id, Lost("c"), now[0](), now[1]())
    sim.run_for(99)
    sim.kernel.report(run_id, Back("c"), now[0](), now[1]())
    sim.run_for(1000)
    assert sim.state(run_id) is State.RUNNING
    sim.kernel.report(run_id, Lost("c"), now[0](), now[1]())
    sim.run_for(101)
    assert sim.state(run_id) is State.ERROR


def test_a_start_whose_agent_stays_away_is_an_error_that_does_not_deny_it(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, limits=Limits(reconnect_timeout=100)))
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.settle()
    now = sim.clock.wall(), sim.clock.boot()
    sim.kernel.report(run_id, Placed({"proc_id": "p", "conn_id": "c"}), *now)
    sim.kernel.report(run_id, Lost("c", now[0] - 5), *now)
    sim.run_for(99)
    assert sim.state(run_id) is State.STARTING
    sim.run_for(2)
    assert sim.state(run_id) is State.ERROR
    heard = stamp(now[0] - 5)
    assert sim.log[run_id][-1].endswith(f"conn_id c, last heard of at {heard}: may have started")


def test_a_run_that_was_given_up_frees_its_slot_and_is_offered_its_late_verdict(sim: Sim) -> None:
    limits = Limits(reconnect_timeout=100)
    one = MaxRunning("1")
    sim.add_job("job", program=SimProgram(None, limits=limits), conditions=(one,))
    first, second = sim.schedule("job"), sim.schedule("job")
    sim.settle()
    assert (sim.state(first), sim.state(second)) == (State.RUNNING, State.WAITING)
    now = sim.clock.wall(), sim.clock.boot()
    sim.kernel.runs[first] = sim.kernel.runs[first].but(run_state={"proc_id": "p", "conn_id": "c"})
    sim.kernel.report(first, Lost("c"), *now)
    sim.run_for(101)
    assert (sim.state(first), sim.state(second)) == (State.ERROR, State.RUNNING)
    given_up = sim.rows[first].meta["given_up"]
    assert given_up == {"proc_id": "p", "conn_id": "c", "state": "running"}
    sim.kernel.offer(sim.rows[first], State.SUCCESS, None, {"pid": 7}, sim.clock.wall())
    sim.commit()
    row = sim.rows[first]
    assert row.state is State.ERROR and row.meta["program"] == {"pid": 7}
    assert row.meta["late_verdict"] == {"state": "success", "message": None, "time": sim.clock.wall()}
    assert sim.log[first][-2:] == [
        "late verdict: success",
        f"it stays error; to accept the late verdict: apsis mark success {first}",
    ]
    sim.kernel.offer(row, State.FAILURE, None, None, sim.clock.wall())
    sim.commit()
    assert sim.rows[first] == row


def test_what_was_to_end_a_run_is_kept_when_it_is_given_up(sim: Sim) -> None:
    limits = Limits(reconnect_timeout=100, grace=300.0)
    sim.add_job("job", program=SimProgram(None, State.ERROR, limits))  # deaf to SIGTERM
    running = sim.schedule("job")
    sim.settle()
    sim.on_launch = lambda run: None
    starting = sim.schedule("job")
    sim.settle()
    now = sim.clock.wall(), sim.clock.boot()
    for run_id in (running, starting):
        sim.kernel.runs[run_id] = sim.kernel.runs[run_id].but(run_state={"proc_id": run_id, "conn_id": "c"})
        sim.kernel.report(run_id, Lost("c"), *now)
        sim.kernel.stop(run_id, *now)
    sim.run_for(101)
    kept = sim.rows[running].meta["given_up"]
    assert (kept["state"], kept["signals"], kept["kill_at"]) == ("stopping", ["SIGTERM"], now[0] + 300)
    kept = sim.rows[starting].meta["given_up"]
    assert kept == {"proc_id": starting, "conn_id": "c", "state": "starting", "stop_asked": True}


def test_the_program_of_a_run_that_was_given_up_is_stopped_where_it_is(sim: Sim) -> None:
    limits = Limits(reconnect_timeout=100, stop_signal=2, grace=30.0)
    sim.add_job("job", program=SimProgram(None, limits=limits))
    run_id = sim.schedule("job")
    sim.settle()
    sim.kernel.runs[run_id] = sim.kernel.runs[run_id].but(run_state={"proc_id": "p", "conn_id": "c"})
    sim.kernel.report(run_id, Lost("c"), sim.clock.wall(), sim.clock.boot())
    sim.run_for(101)
    row, wall, told = sim.rows[run_id], sim.clock.wall(), len(sim.log[run_id])
    sim.keep_effects = True
    sim.kernel.stop_adrift(row, wall)
    assert sim.kernel.runs[run_id].state is State.ERROR  # so that nobody reads an older one
    sim.kernel.stop(run_id, wall + 5, sim.clock.boot())  # once more, before that is on disk
    sim.commit()
    order = {"proc_id": "p", "conn_id": "c", "state": "stopping", "signals": ["SIGINT"], "kill_at": wall + 30}
    assert sim.rows[run_id].meta["given_up"] == order and run_id not in sim.kernel.runs
    assert sim.rows[run_id].state is State.ERROR and sim.rows[run_id].rev > row.rev
    where = "at once if agent c is connected, else when it is back"
    assert sim.log[run_id][told:] == [f"SIGINT is to end its program, {where}"]
    # Then it is found again, with the order.
    assert [e.run_state for e in sim.effects if isinstance(e, Forget)] == [order]
    sim.kernel.signal_adrift(sim.rows[run_id], 10, wall)
    (signal,) = [e for e in sim.kernel.outbox if isinstance(e, Signal)]
    assert (signal.signum, signal.stop, signal.run.run_state) == (10, False, order)
    sim.kernel.offer(sim.rows[run_id], State.FAILURE, "killed by SIGINT", None, wall)
    sim.commit()
    with pytest.raises(RunError, match=f"can't stop run {run_id}: run is error"):
        sim.kernel.stop_adrift(sim.rows[run_id], wall)
    with pytest.raises(RunError, match="invalid run state for signal: error"):
        sim.kernel.signal_adrift(sim.rows[run_id], 10, wall)


def test_who_comes_after_a_restart_queues_up_behind_who_was_waiting_before(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None), conditions=(MaxRunning("1"),))
    first, second = sim.schedule("job"), sim.schedule("job")
    newcomer = sim.schedule("job", at=sim.clock.wall() + 100)
    sim.settle()
    sim.crash(restored=False)
    sim.finish(first)
    sim.clock.advance(100)
    sim.kernel.restored()
    sim.settle()
    assert (sim.state(second), sim.state(newcomer)) == (State.RUNNING, State.WAITING)


def test_a_stepped_wall_clock_does_not_touch_durations(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, State.ERROR, Limits(timeout=100, grace=None)))
    run_id = sim.schedule("job")
    sim.run_for(50)
    sim.clock.step(3600)
    sim.kernel.stepped(3600, sim.clock.wall())
    sim.run_for(40)
    assert "timeout after 100 s" not in sim.log[run_id]
    sim.crash()  # what was stored by the wall clock moved along
    sim.run_for(9)
    assert "timeout after 100 s" not in sim.log[run_id]
    sim.run_for(2)
    assert "timeout after 100 s" in sim.log[run_id]
    sim.clock.step(-86400)
    sim.kernel.stepped(-86400, sim.clock.wall())
    sim.kernel.report(run_id, Finished(State.SUCCESS), sim.clock.wall(), sim.clock.boot())
    sim.commit()
    assert sim.rows[run_id].meta["elapsed"] == pytest.approx(101)


def test_a_clock_set_back_makes_nothing_run_twice(sim: Sim) -> None:
    sim.add_job("tick", Every(60))
    sim.run_for(600)
    sim.clock.step(-300)
    sim.run_for(600)
    times = [r.times["schedule"] for r in sim.runs("tick")]
    assert len(times) == len(set(times)) == 16


# -- conditions ----------------------------------------------------------------------------------------


def test_a_dependency_holds_the_run_until_it_succeeds(sim: Sim) -> None:
    sim.add_job("up", params=("date",), program=FOREVER)
    sim.add_job("down", params=("date",), conditions=(Dependency("up"),))
    down = sim.schedule("down", date="1")
    sim.settle()
    assert sim.state(down) is State.WAITING
    other, up = sim.schedule("up", date="2"), sim.schedule("up", date="1")
    sim.settle()
    sim.finish(other)
    assert sim.state(down) is State.WAITING
    sim.finish(up)
    assert sim.state(down) is State.SUCCESS
    assert sim.log[down][:4] == [
        "scheduled: now",
        "waiting",
        "waiting until: dependency up(date=1) is success",
        "starting",
    ]


def test_a_dependency_is_satisfied_by_a_run_that_only_the_database_knows(sim: Sim) -> None:
    sim.add_job("up")
    sim.add_job("down", conditions=(Dependency("up"),))
    sim.schedule("up")
    sim.settle()
    sim.crash()
    down = sim.schedule("down")
    sim.settle()
    assert sim.state(down) is State.SUCCESS


def test_a_dependency_that_must_exist_and_does_not_is_an_error(sim: Sim) -> None:
    sim.add_job("up", program=FOREVER)
    exist = frozenset({State.RUNNING, State.SUCCESS})
    sim.add_job("down", conditions=(Dependency("up", exist=exist),))
    early = sim.schedule("down")
    sim.settle()
    assert sim.log[early][-1] == "error: no dependency up exists in running|success"
    up = sim.schedule("up")
    sim.settle()
    late = sim.schedule("down")
    sim.settle()
    assert sim.state(late) is State.WAITING
    sim.finish(up, State.FAILURE)
    assert sim.state(late) is State.ERROR


def test_a_run_waiting_for_a_scheduled_dependency_survives_a_crash(sim: Sim) -> None:
    sim.add_job("up", Every(86400))
    exist = frozenset({State.SCHEDULED, State.STARTING, State.RUNNING, State.SUCCESS})
    sim.run_for(10)
    sim.rows.clear()  # the first one was archived
    sim.ended.clear()
    sim.add_job("down", conditions=(Dependency("up", exist=exist),))
    down = sim.schedule("down")
    sim.settle()
    assert sim.state(down) is State.WAITING
    sim.crash()
    assert sim.state(down) is State.WAITING
    sim.run_for(86400)
    assert sim.state(down) is State.SUCCESS


def test_max_running_is_never_exceeded_and_is_first_come_first_served(sim: Sim) -> None:
    sim.add_job("job", program=FOREVER, conditions=(MaxRunning("2"),))
    ids = [sim.schedule("job") for _ in range(10)]
    sim.settle()
    for n in range(8):
        running = [i for i in ids if sim.state(i) is State.RUNNING]
        assert running == ids[n : n + 2]
        sim.finish(running[0])


def test_a_stopping_run_still_occupies_its_slot(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, State.ERROR), conditions=(MaxRunning("1"),))
    first, second = sim.schedule("job"), sim.schedule("job")
    sim.settle()
    sim.kernel.stop(first, sim.clock.wall(), sim.clock.boot())
    sim.settle()
    assert (sim.state(first), sim.state(second)) == (State.STOPPING, State.WAITING)


def test_a_limit_that_is_not_the_last_condition_is_looked_at_again_before_the_start(sim: Sim) -> None:
    sim.add_job("up", program=FOREVER)
    sim.add_job("job", program=FOREVER, conditions=(MaxRunning("1"), Dependency("up")))
    ids = [sim.schedule("job") for _ in range(5)]
    up = sim.schedule("up")
    sim.settle()
    sim.finish(up)
    for n in range(5):
        assert [i for i in ids if sim.state(i) is State.RUNNING] == [ids[n]]
        sim.finish(ids[n])


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_a_run_with_200_dependencies_starts_when_the_last_of_them_is_there(sim: Sim, order: str) -> None:
    needed = [f"up{n}" for n in range(200)]
    for job_id in needed:
        sim.add_job(job_id)
    sim.add_job("down", conditions=tuple(Dependency(job_id) for job_id in needed))
    run_id = sim.schedule("down")
    sim.settle()
    if order == "backwards":
        needed.reverse()
    elif order == "shuffled":
        random.Random(200).shuffle(needed)
    for job_id in needed:
        assert sim.state(run_id) is State.WAITING
        sim.schedule(job_id)
        sim.settle()
    assert sim.state(run_id) is State.SUCCESS


@pytest.mark.parametrize("count", [2, 16, 128])
def test_of_duplicates_behind_a_dependency_exactly_one_runs(sim: Sim, count: int) -> None:
    sim.add_job("up", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("up"), SkipDuplicate()), program=FOREVER)
    ids = [sim.schedule("job") for _ in range(count)]
    up = sim.schedule("up")
    sim.settle()
    sim.finish(up)
    assert sim.state(ids[0]) is State.RUNNING
    assert {sim.state(i) for i in ids[1:]} == {State.SKIPPED}


def test_skip_duplicate_may_target_success(sim: Sim) -> None:
    sim.add_job("job", conditions=(SkipDuplicate(target=State.SUCCESS),), program=FOREVER)
    first, second = sim.schedule("job"), sim.schedule("job")
    sim.settle()
    assert (sim.state(first), sim.state(second)) == (State.RUNNING, State.SUCCESS)
    assert sim.log[second][-1] == f"transitioning to success because {first} running"


def test_waiting_for_too_long_is_an_error() -> None:
    sim = Sim(settings=Settings(max_waiting=60))
    sim.add_job("job", conditions=(Const(False),))
    run_id = sim.schedule("job")
    sim.run_for(61)
    assert sim.log[run_id][-1] == "error: waiting for const false: timeout after 60 s"


@pytest.mark.parametrize("limit", [None, 60.0, 600.0])
def test_after_a_restart_the_limit_of_waiting_is_as_the_configuration_says_now(limit: float | None) -> None:
    sim = Sim(settings=Settings(max_waiting=300))
    sim.add_job("job", conditions=(Const(False),))
    old = sim.schedule("job")
    sim.settings = Settings(max_waiting=None)
    sim.crash()
    new = sim.schedule("job")
    sim.run_for(400)
    assert sim.state(old) is sim.state(new) is State.WAITING
    sim.settings = Settings(max_waiting=limit)
    sim.crash()
    sim.run_for(1)
    # What began to wait under a limit keeps it; what began without gets the new one.
    assert sim.state(old) is (State.WAITING if limit is None else State.ERROR)
    assert sim.state(new) is (State.ERROR if limit == 60.0 else State.WAITING)
    if limit is not None:
        sim.run_for(limit)
        assert sim.state(new) is State.ERROR
        assert sim.log[new][-1].endswith(f"timeout after {limit:g} s")


def test_after_a_restart_a_run_is_judged_once_more_although_its_time_to_wait_is_over() -> None:
    sim = Sim(settings=Settings(max_waiting=60))
    sim.add_job("up", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("up"),))
    up, run_id = sim.schedule("up"), sim.schedule("job")
    # The server dies with the dependency's end on disk, and comes back late.
    sim.rows[up] = replace(sim.rows[up], state=State.SUCCESS)
    sim.ended[sim.rows[up].key].add(State.SUCCESS)
    sim.clock.advance(3600)
    sim.crash()
    assert sim.state(run_id) is State.SUCCESS


def test_a_restored_run_waits_since_it_began_to() -> None:
    sim = Sim()
    sim.add_job("job", conditions=(Const(False),))
    run_id = sim.schedule("job")
    since = sim.clock.wall()
    sim.run_for(60)
    sim.crash()
    assert sim.kernel.waiting(run_id)[0]["since"] == since


def test_a_condition_that_can_not_be_read_is_an_error_of_its_run_alone(sim: Sim) -> None:
    sim.add_job("job", conditions=(Const(False),))
    first, later = sim.schedule("job"), sim.schedule("job", at=sim.clock.wall() + 60)
    for run_id in (first, later):
        sim.rows[run_id] = replace(sim.rows[run_id], conds=({"type": "of another release"},))
    sim.crash()
    sim.run_for(60)
    assert sim.state(first) is sim.state(later) is State.ERROR
    assert "unknown condition type in the database" in sim.log[later][-1]


def reload(sim: Sim, *removed: str, **changed: Every) -> None:
    """Change the schedules of jobs, as a reload does."""
    for job_id in removed:
        del sim.jobs[job_id]
    jobs = [replace(sim.jobs[job_id], schedules=(schedule,)) for job_id, schedule in changed.items()]
    sim.jobs |= {job.job_id: job for job in jobs}
    sim.kernel.change_jobs(removed, jobs)


def test_a_dependency_that_must_exist_survives_a_reload_that_makes_it_anew(sim: Sim) -> None:
    sim.add_job("up", Every(3600))
    sim.add_job("job", conditions=(Dependency("up", exist=reachable(frozenset({State.SUCCESS}))),))
    sim.settle()
    sim.clock.advance(60)
    sim.settle()
    sim.ended.clear()
    run_id = sim.schedule("job")
    reload(sim, up=Every(1800))
    # Judged while the new runs are being bound.
    sim.kernel.tick(sim.clock.wall(), sim.clock.boot())
    assert sim.state(run_id) is State.WAITING
    sim.run_for(1800)
    assert sim.state(run_id) is State.SUCCESS


def test_a_dependency_that_must_exist_and_is_removed_by_a_reload_is_an_error(sim: Sim) -> None:
    sim.run_for(60)
    sim.add_job("up", Every(3600))
    sim.add_job("job", conditions=(Dependency("up", exist=reachable(frozenset({State.SUCCESS}))),))
    sim.settle()
    run_id = sim.schedule("job")
    assert sim.state(run_id) is State.WAITING
    reload(sim, "up")
    sim.settle()
    assert sim.state(run_id) is State.ERROR
    assert "no dependency up exists in" in sim.log[run_id][-1]


def test_a_dependency_that_must_exist_and_was_skipped_before_its_time_is_an_error(sim: Sim) -> None:
    sim.run_for(60)
    sim.add_job("up", Every(3600), params=("time",))
    sim.settle()
    first = sim.expected("up")[0]
    sim.kernel.skip(first.run_id, sim.clock.wall())
    sim.settle()
    must = Dependency("up", dict(first.args), exist=reachable(frozenset({State.SUCCESS})))
    sim.add_job("job", conditions=(must,))
    run_id = sim.schedule("job")
    sim.settle()
    assert sim.state(run_id) is State.ERROR


def test_a_dependency_beyond_what_is_made_ahead_exists() -> None:
    sim = Sim(settings=Settings(max_expected=10))
    sim.add_job("up", Every(60), params=("time",))
    sim.settle()
    for ahead, state in ((15, State.WAITING), (-15, State.ERROR)):
        time = str(sim.clock.wall() + ahead * 60)
        must = Dependency("up", {"time": time}, exist=reachable(frozenset({State.SUCCESS})))
        sim.add_job(f"job{ahead}", conditions=(must,))
        run_id = sim.schedule(f"job{ahead}")
        sim.settle()
        assert sim.state(run_id) is state
    sim.run_for(15 * 60)
    assert [r.state for r in sim.runs("job15")] == [State.SUCCESS]


@dataclass(frozen=True)
class Raising(Every):
    """A user's schedule that goes wrong after three occurrences."""

    def after(self, start: float) -> Iterator[Occurrence]:
        for n, occurrence in enumerate(Every.after(self, start)):
            if n == 3:
                raise RuntimeError("out of luck")
            yield occurrence


def test_a_users_schedule_that_raises_ends_and_says_so(sim: Sim) -> None:
    sim.add_job("job", Raising(60))
    sim.add_job("other", Every(60))
    sim.run_for(600)
    assert len(sim.runs("job")) == 3 and len(sim.runs("other")) == 11
    assert sim.kernel.failures() == ["a schedule of job job ends, as it failed: RuntimeError: out of luck"]
    assert sim.kernel.failures() == []


def test_ten_thousand_waiting_runs_cost_nothing_while_nothing_happens(sim: Sim) -> None:
    sim.add_job("up", program=FOREVER)
    sim.add_job("job", params=("n",), conditions=(Dependency("up"),))
    for n in range(10_000):
        sim.schedule("job", n=str(n))
    sim.settle()
    assert sim.kernel.next_wake() == (None, None)
    up = sim.schedule("up")
    sim.settle()
    sim.finish(up)
    assert {r.state for r in sim.runs("job")} == {State.SUCCESS}


def test_why_a_run_waits(sim: Sim) -> None:
    sim.add_job("up", program=FOREVER)
    sim.add_job("job", conditions=(MaxRunning("1"), Dependency("up")))
    sim.schedule("up")
    run_id = sim.schedule("job")
    sim.settle()
    assert sim.kernel.waiting(run_id) == [
        {"condition": "fewer than 1 runs of job running", "holds": True},
        {
            "condition": "dependency up is success",
            "holds": False,
            "reason": "up is running",
            "since": sim.clock.wall(),
            "runs": [{"run_id": "r1", "state": "running"}],
        },
    ]


# -- operations ------------------------------------------------------------------------------------------


def test_starting_a_waiting_run_ignores_its_conditions(sim: Sim) -> None:
    sim.add_job("job", conditions=(Const(False),))
    run_id = sim.schedule("job")
    sim.settle()
    sim.kernel.start(run_id, sim.clock.wall(), sim.clock.boot())
    sim.settle()
    assert sim.state(run_id) is State.SUCCESS
    assert "waiting run started by override" in sim.log[run_id]


def test_a_start_that_was_not_sent_can_be_stopped(sim: Sim) -> None:
    sim.add_job("job")
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.settle()
    sim.kernel.stop(run_id, sim.clock.wall(), sim.clock.boot())
    sim.settle()
    assert sim.state(run_id) is State.SKIPPED


def stopped_on_its_way(sim: Sim) -> tuple[str, tuple[float, float]]:
    """A run that was stopped when agent c had been chosen and nothing heard of it; wall and boot of that."""
    sim.add_job("job", program=FOREVER)
    sim.on_launch = lambda run: None
    run_id = sim.schedule("job")
    sim.settle()
    now = sim.clock.wall(), sim.clock.boot()
    sim.kernel.report(run_id, Placed({"proc_id": "p", "conn_id": "c"}), *now)
    sim.kernel.stop(run_id, *now)
    return run_id, now


def test_a_start_that_may_have_been_sent_is_stopped_as_soon_as_it_runs(sim: Sim) -> None:
    run_id, now = stopped_on_its_way(sim)
    sim.settle()
    assert sim.state(run_id) is State.STARTING
    sim.kernel.report(run_id, Running({"proc_id": "p", "conn_id": "c"}), *now)
    sim.settle()
    assert sim.state(run_id) is State.FAILURE
    assert "stopping" in sim.log[run_id]


def test_a_start_that_was_stopped_and_then_proves_not_sent_is_begun_nowhere_else(sim: Sim) -> None:
    run_id, now = stopped_on_its_way(sim)
    sim.on_launch = None  # there is another agent
    sim.kernel.report(run_id, Unplaced("agent c was lost before the start was sent to it"), *now)
    sim.settle()
    assert sim.state(run_id) is State.SKIPPED and "running" not in sim.log[run_id]
    assert sim.log[run_id][-1] == "skipped: stopped before it was sent to an agent"


@pytest.mark.parametrize(
    ("verb", "state", "message"),
    [
        ("skip", State.RUNNING, "can't skip r1 in state running"),
        ("start", State.RUNNING, "can't start r1 in state running"),
        ("stop", State.WAITING, "can't stop run r1: run is waiting"),
    ],
)
def test_an_operation_in_a_wrong_state_is_refused(verb: str, state: State, message: str) -> None:
    sim = Sim()
    conditions = (Const(False),) if state is State.WAITING else ()
    sim.add_job("job", program=FOREVER, conditions=conditions)
    run_id = sim.schedule("job")
    sim.settle()
    times = (sim.clock.wall(), sim.clock.boot())
    with pytest.raises(RunError, match=message.replace("(", r"\(")):
        getattr(sim.kernel, verb)(run_id, *(times[:1] if verb == "skip" else times))


def test_marking_a_run_satisfies_dependencies_fires_actions_and_leaves_elapsed_alone(sim: Sim) -> None:
    sim.add_job("next")
    sim.add_job(
        "up", actions=(ScheduleAction("next", {}, frozenset({State.SUCCESS})),), program=SimProgram(10)
    )
    sim.programs["up"].state = State.FAILURE
    sim.add_job("down", conditions=(Dependency("up"),))
    up, down = sim.schedule("up"), sim.schedule("down")
    sim.run_for(20)
    assert sim.state(down) is State.WAITING
    sim.run_for(1000)
    sim.kernel.mark(sim.rows[up], State.SUCCESS, sim.clock.wall())
    sim.settle()
    assert sim.state(down) is State.SUCCESS
    assert len(sim.runs("next")) == 1
    assert sim.rows[up].meta["elapsed"] == 10
    assert sim.log[up][-1] == "action scheduling" or "marked as success" in sim.log[up]


@pytest.mark.parametrize("change", ["mark", "retire"])
def test_what_was_asked_of_the_past_before_it_was_changed_is_asked_again(sim: Sim, change: str) -> None:
    sim.add_job("up")
    sim.add_job("down", conditions=(Dependency("up"),))
    up = sim.schedule("up")
    sim.settle()
    sim.crash()  # what became of it is in the database alone
    answers: list[Callable[[], None]] = []
    look_up = sim._acts[Lookup]

    def slow(lookup: Lookup) -> None:
        states = set(sim.ended[lookup.key])
        answers.append(lambda: sim.kernel.outcome(lookup.key, states))

    sim._acts[Lookup] = slow
    down = sim.schedule("down")
    sim.settle()
    sim._acts[Lookup] = look_up
    if change == "mark":
        sim.kernel.mark(sim.rows[up], State.FAILURE, sim.clock.wall())
    else:
        sim.kernel.retired({"up"})
    sim.settle()
    sim.ended.clear()  # as the database is now
    [answer] = answers
    answer()
    sim.settle()
    assert sim.state(down) is State.WAITING
    later = sim.schedule("down")
    sim.settle()
    assert sim.state(later) is State.WAITING
    sim.schedule("up")
    sim.settle()
    assert (sim.state(down), sim.state(later)) == (State.SUCCESS, State.SUCCESS)


@pytest.mark.parametrize(
    ("state", "message"),
    [(State.RUNNING, "can't mark r1 to state running"), (State.SUCCESS, "run r1 already in state success")],
)
def test_a_mark_that_means_nothing_is_refused(sim: Sim, state: State, message: str) -> None:
    sim.add_job("job")
    sim.schedule("job")
    sim.settle()
    with pytest.raises(RunError, match=message):
        sim.kernel.mark(sim.rows["r1"], state, sim.clock.wall())


def test_an_action_is_owed_once_and_survives_a_crash(sim: Sim) -> None:
    sim.add_job("next")
    sim.add_job("job", actions=(ScheduleAction("next", {}, frozenset({State.SUCCESS})),))
    done = sim._do_action
    sim._do_action = lambda owe: None  # type: ignore[method-assign]  # the server dies before a hand gets to it
    sim.schedule("job")
    sim.settle()
    assert len(sim.owed) == 1
    sim._do_action = done  # type: ignore[method-assign]
    sim.crash()
    assert sim.owed == {}
    assert len(sim.runs("next")) == 1


def test_the_first_end_of_a_run_is_its_end(sim: Sim) -> None:
    sim.add_job("job", program=FOREVER)
    run_id = sim.schedule("job")
    sim.settle()
    sim.finish(run_id, State.FAILURE, "exit code 1")
    sim.finish(run_id, State.SUCCESS)
    assert sim.state(run_id) is State.FAILURE
    assert sim.log[run_id][-1] == "failure: exit code 1"


def test_a_reload_drops_the_expected_runs_of_a_removed_job_and_keeps_those_made_by_hand(sim: Sim) -> None:
    sim.add_job("tick", Every(3600))
    by_hand = sim.schedule("tick", at=sim.clock.wall() + 60)
    sim.run_for(10)
    sim.kernel.change_jobs(["tick"], [])
    sim.run_for(7200)
    assert sim.expected("tick") == []
    assert sim.state(by_hand) is State.SUCCESS
    assert len(sim.runs("tick")) == 2


def test_every_transition_of_a_busy_day_is_legal(sim: Sim) -> None:
    sim.keep_effects = True
    sim.add_job("up", Every(300), params=("time",), program=SimProgram(40))
    sim.add_job(
        "down",
        Every(300),
        params=("time",),
        conditions=(Dependency("up"), MaxRunning("1")),
        program=SimProgram(20),
    )
    sim.run_for(86400)
    last: dict[str, Run] = {}
    for effect in sim.effects:
        if isinstance(effect, Save) and effect.transition:
            old = last.get(effect.run.run_id)
            if old is not None:
                assert effect.run.state in TRANSITIONS[old.state]
            last[effect.run.run_id] = effect.run
    assert {r.state for r in last.values() if r.times["schedule"] < sim.clock.wall() - 100} == {State.SUCCESS}
    assert len(last) == 2 * 289


def test_reports_of_unknown_runs_are_ignored(sim: Sim) -> None:
    sim.kernel.report("r99", Finished(State.SUCCESS), 0.0, 0.0)
    assert sim.kernel.outbox == []


def test_finished_states_are_those_without_a_way_out() -> None:
    assert {s for s, nexts in TRANSITIONS.items() if not nexts} == FINISHED


def test_after_a_reload_of_metadata_alone_the_schedule_goes_on(sim: Sim) -> None:
    job = sim.add_job("tick", Every(3600))
    sim.run_for(60)
    new = replace(job, metadata={"labels": ["new"]})
    sim.jobs["tick"] = new
    sim.kernel.change_jobs((), (), [new])
    assert len(sim.expected("tick")) == 24  # those stay
    sim.run_for(30 * 3600)
    assert len(sim.started("tick")) == 31
