"""What runs wait for, sentence by sentence: as job files say it, and as the kernel judges it."""

from __future__ import annotations

from typing import Any

import pytest
from sim import Sim, SimProgram
from test_scheduler import Every

from apsislib.conditions import Const, Dependency, MaxRunning, SkipDuplicate, parse
from apsislib.errors import FieldError
from apsislib.states import State, reachable

SUCCESS = frozenset({State.SUCCESS})
FOREVER = SimProgram(None)


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"type": "dependency", "job_id": "a"}, "dependency a is success"),
        (
            {
                "type": "dependency",
                "job_id": "a",
                "args": {"y": "b", "x": 1},
                "states": ["failure", "success"],
            },
            "dependency a(x=1 y=b) is success|failure",
        ),
        (
            {"type": "dependency", "job_id": "a", "exist": True},
            "dependency a is success, must exist as new|scheduled|waiting|starting|running|stopping|success",
        ),
        (
            {"type": "dependency", "job_id": "a", "exist": "success"},
            "dependency a is success, must exist as success",
        ),
        ({"type": "dependency", "job_id": "a", "exist": False}, "dependency a is success"),
        ({"type": "max_running"}, "fewer than 1 runs running"),
        ({"type": "max_running", "count": "{{ n }}", "job_id": "b"}, "fewer than {{ n }} runs running"),
        ({"type": "skip_duplicate"}, "transition to skipped if another run is waiting|starting|running"),
        (
            {"type": "skip_duplicate", "check_states": "stopping", "target_state": "failure"},
            "transition to failure if another run is stopping",
        ),
        ({"type": "const", "value": False}, "const false"),
    ],
)
def test_a_condition_means_what_its_text_says(mapping: dict[str, Any], text: str) -> None:
    condition = parse(mapping)
    assert condition.to_json()["str"] == text
    again = {key: value for key, value in condition.to_json().items() if key != "str"}
    assert parse(again).to_json() == condition.to_json()


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"job_id": "a"}, "missing type"),
        ({"type": "dependency"}, "missing key: job_id"),
        ({"type": "dependency", "job_id": 7}, "job_id must be a string; put quotes around it: 7"),
        ({"type": "dependency", "job_id": "a", "states": "done"}, "not a state: 'done'"),
        ({"type": "dependency", "job_id": "a", "exist": "failure"}, "exist must include all of states"),
        ({"type": "dependency", "job_id": "a", "args": "x"}, "args must be a mapping"),
        ({"type": "dependency", "job_id": "a", "state": "error"}, "unexpected keys: state"),
        ({"type": "max_running", "count": 0}, "count must be at least 1, or nothing ever runs: 0"),
        ({"type": "max_running", "count": "many"}, "count must be a whole number or a template: 'many'"),
        ({"type": "max_running", "args": {"x": 1}}, "args is not supported"),
        ({"type": "skip_duplicate", "target_state": "waiting"}, "invalid target state: waiting"),
        ({"type": "const", "value": "false"}, "value must be true or false, without quotes: 'false'"),
        ({"type": "const"}, "missing key: value"),
        ({"type": "const", "value": True, "enabled": 1}, "enabled must be a bool or a quoted string"),
        ({"type": "nope"}, "unknown condition type: nope"),
        ("const", "a condition must be a mapping with a type"),
    ],
)
def test_a_condition_that_means_nothing_is_refused(mapping: Any, said: str) -> None:
    with pytest.raises(FieldError) as error:
        parse(mapping)
    assert said in error.value.message


# -- order -------------------------------------------------------------------------------------------


def test_a_run_without_conditions_never_waits(sim: Sim) -> None:
    sim.add_job("job", conditions=(Const(False, enabled=type(Const(True).enabled)(False)),))
    run_id = sim.schedule("job")
    assert "waiting" not in sim.rows[run_id].times and sim.state(run_id) is State.SUCCESS


def test_conditions_are_met_one_after_the_other_and_what_held_may_not_fail_again(sim: Sim) -> None:
    sim.add_job("a", program=FOREVER)
    sim.add_job("b", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("a"), Dependency("b")))
    run_id = sim.schedule("job")
    a, b = sim.schedule("a"), sim.schedule("b")
    sim.finish(b)
    assert sim.log[run_id][2:] == ["waiting until: dependency a is success"]
    sim.finish(a)
    assert sim.log[run_id][2:] == [
        "waiting until: dependency a is success",
        "waiting until: dependency b is success",
        "starting",
        "running",
        "success",
    ]


def test_what_was_met_is_not_looked_at_again_though_it_holds_no_more(sim: Sim) -> None:
    sim.add_job("a", program=FOREVER)
    sim.add_job("b", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("a"), Dependency("b")))
    run_id, a = sim.schedule("job"), sim.schedule("a")
    sim.finish(a)
    sim.kernel.mark(sim.rows[a], State.FAILURE, sim.clock.wall())
    sim.commit()
    sim.ended[sim.rows[a].key].clear()
    sim.finish(sim.schedule("b"))
    assert sim.state(run_id) is State.SUCCESS


# -- dependency --------------------------------------------------------------------------------------


def test_a_dependency_means_exactly_one_instance_and_any_of_its_runs(sim: Sim) -> None:
    sim.add_job("up", params=("date", "x"), program=FOREVER)
    sim.add_job("job", params=("date",), conditions=(Dependency("up", {"x": "1"}),))
    run_id = sim.schedule("job", date="d")
    for args in ({"date": "d", "x": "2"}, {"date": "e", "x": "1"}):
        sim.finish(sim.schedule("up", **args))
    assert sim.state(run_id) is State.WAITING
    failed, other = sim.schedule("up", date="d", x="1"), sim.schedule("up", date="d", x="1")
    sim.finish(failed, State.FAILURE)
    assert sim.state(run_id) is State.WAITING  # without `exist` a failure changes nothing
    sim.finish(other)
    assert sim.state(run_id) is State.SUCCESS


@pytest.mark.parametrize("state", [State.FAILURE, State.ERROR])
def test_a_dependency_that_must_exist_and_fails_is_an_error_at_once(sim: Sim, state: State) -> None:
    sim.add_job("up", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("up", exist=reachable(SUCCESS)),))
    up = sim.schedule("up")
    run_id = sim.schedule("job")
    assert sim.state(run_id) is State.WAITING
    sim.finish(up, state)
    assert sim.state(run_id) is State.ERROR
    states = "new|scheduled|waiting|starting|running|stopping|success"
    assert sim.log[run_id][-1] == f"error: no dependency up exists in {states}"


def test_a_dependency_that_must_have_succeeded_decides_at_once(sim: Sim) -> None:
    sim.add_job("up", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("up", exist=SUCCESS),))
    up = sim.schedule("up")
    early = sim.schedule("job")
    sim.settle()
    assert sim.state(early) is State.ERROR
    sim.finish(up)
    late = sim.schedule("job")
    sim.settle()
    assert sim.state(late) is State.SUCCESS


def test_a_run_that_is_merely_scheduled_exists(sim: Sim) -> None:
    sim.add_job("up", Every(3600), params=("time",))
    sim.settle()
    upcoming = sim.expected("up")[0]
    sim.add_job("job", conditions=(Dependency("up", dict(upcoming.args), exist=reachable(SUCCESS)),))
    run_id = sim.schedule("job")
    assert sim.state(run_id) is State.WAITING
    sim.run_for(3600)
    assert sim.state(run_id) is State.SUCCESS


# -- max_running -------------------------------------------------------------------------------------


def test_a_limit_counts_runs_of_the_job_with_the_same_args(sim: Sim) -> None:
    sim.add_job("job", params=("x",), conditions=(MaxRunning(),), program=FOREVER)
    first, other, second = sim.schedule("job", x="1"), sim.schedule("job", x="2"), sim.schedule("job", x="1")
    assert [sim.state(i) for i in (first, other, second)] == [State.RUNNING, State.RUNNING, State.WAITING]


def test_a_limit_may_count_another_job_with_this_runs_args(sim: Sim) -> None:
    sim.add_job("other", params=("x",), program=FOREVER)
    sim.add_job("job", params=("x",), conditions=(MaxRunning("2", "other"),), program=FOREVER)
    busy = [sim.schedule("other", x="1") for _ in range(2)]
    runs = [sim.schedule("job", x=x) for x in "12"]
    assert [sim.state(i) for i in runs] == [State.WAITING, State.RUNNING]
    sim.finish(busy[0])
    assert sim.state(runs[0]) is State.RUNNING


def test_slots_go_to_those_that_began_to_wait_first_also_after_a_restart(sim: Sim) -> None:
    sim.add_job("job", conditions=(MaxRunning(),), program=FOREVER)
    running = sim.schedule("job")
    # Numbered when they are made, up to a day before they begin to wait.
    waiting = [sim.schedule("job", at=sim.clock.wall() + after) for after in (30, 20, 10)]
    sim.run_for(60)
    sim.crash()
    order = []
    for _ in waiting:
        sim.finish(running)
        (running,) = [r.run_id for r in sim.kernel.live(("job", "{}")) if r.state is State.RUNNING]
        order.append(running)
    assert order == waiting[::-1]


# -- skip_duplicate ----------------------------------------------------------------------------------


def test_of_runs_that_wait_alike_the_older_survives(sim: Sim) -> None:
    sim.add_job("gate", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("gate"), SkipDuplicate()), program=FOREVER)
    runs = [sim.schedule("job") for _ in range(3)]
    sim.finish(sim.schedule("gate"))
    assert [sim.state(i) for i in runs] == [State.RUNNING, State.SKIPPED, State.SKIPPED]
    assert sim.log[runs[2]][-1].startswith(f"transitioning to skipped because {runs[0]} ")


@pytest.mark.parametrize("restart", [False, True])
def test_what_waits_longest_survives_although_others_were_made_before_it(sim: Sim, restart: bool) -> None:
    sim.add_job("gate", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("gate"), SkipDuplicate()), program=FOREVER)
    now = sim.clock.wall()
    tonight, evening, by_hand = (sim.schedule("job", at=now + after) for after in (60, 30, 0))
    sim.run_for(90)
    assert {sim.state(i) for i in (tonight, evening, by_hand)} == {State.WAITING}
    if restart:
        sim.crash()
    sim.finish(sim.schedule("gate"))
    assert [sim.state(i) for i in (tonight, evening, by_hand)] == [
        State.SKIPPED,
        State.SKIPPED,
        State.RUNNING,
    ]
    assert sim.log[tonight][-1] == f"transitioning to skipped because {by_hand} starting"


def test_of_runs_that_begin_to_wait_at_once_that_of_the_earliest_time_survives(sim: Sim) -> None:
    sim.add_job("gate", program=FOREVER)
    sim.add_job("job", conditions=(Dependency("gate"), SkipDuplicate()), program=FOREVER)
    now = sim.clock.wall()
    later, earlier = sim.schedule("job", at=now + 60), sim.schedule("job", at=now + 30)
    sim.clock.advance(90)
    sim.crash()
    assert sim.kernel.runs[later].times["waiting"] == sim.kernel.runs[earlier].times["waiting"]
    sim.finish(sim.schedule("gate"))
    assert [sim.state(i) for i in (later, earlier)] == [State.SKIPPED, State.RUNNING]


def test_scheduled_and_stopping_runs_are_no_duplicates_unless_named(sim: Sim) -> None:
    sim.add_job("job", conditions=(SkipDuplicate(),), program=SimProgram(None, State.ERROR))
    sim.add_job("strict", conditions=(SkipDuplicate(frozenset({State.SCHEDULED})),))
    stopping = sim.schedule("job")
    sim.kernel.stop(stopping, sim.clock.wall(), sim.clock.boot())
    sim.commit()
    assert sim.state(stopping) is State.STOPPING
    assert sim.state(sim.schedule("job")) is State.RUNNING
    sim.schedule("strict", at=sim.clock.wall() + 60)
    assert sim.state(sim.schedule("strict")) is State.SKIPPED
