"""Ten thousand runs that wait: what they cost, counted in judgements of conditions, not in time.

benchmarks/waiters.py has the times, on a real server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from sim import Sim, SimProgram

from apsislib.conditions import BoundDependency, BoundMaxRunning, Dependency, MaxRunning
from apsislib.runs import Finished
from apsislib.scheduler.waiting import Waiting
from apsislib.states import State

MANY = 10_000
SLICE = 100  # steps of a hold of the lock, as in driver/timer.py


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts judgements: of runs, by run ID, and of conditions, by their class."""
    counts: Counter[str] = Counter()
    judge = Waiting.judge

    def recorded(self: Waiting, run_id: str, wall: float, boot: float, last: bool = False) -> None:
        counts[run_id] += 1
        judge(self, run_id, wall, boot, last)

    monkeypatch.setattr(Waiting, "judge", recorded)
    for kind in (BoundDependency, BoundMaxRunning):
        real = kind.judge

        def asked(self: object, *args: object, real: object = real, name: str = kind.__name__) -> object:
            counts[name] += 1
            return real(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(kind, "judge", asked)
    yield counts


def test_ten_thousand_that_wait_for_one_run_are_judged_once_each_and_nobody_else(
    sim: Sim, judged: Counter[str]
) -> None:
    sim.add_job("gate", program=SimProgram(None))
    sim.add_job("other", program=SimProgram(None))
    sim.add_job("after", conditions=(Dependency("gate"),))
    sim.add_job("never", conditions=(Dependency("other"),))
    gate = sim.schedule("gate")
    waiting = [sim.schedule("after") for _ in range(MANY)]
    others = [sim.schedule("never") for _ in range(100)]
    sim.settle()
    judged.clear()
    ticks = 0
    sim.kernel.report(gate, Finished(State.SUCCESS), sim.clock.wall(), sim.clock.boot())
    sim.commit()
    while sim.kernel.next_wake()[0] == 0.0:
        sim.kernel.tick(sim.clock.wall(), sim.clock.boot(), SLICE)
        sim.commit()
        ticks += 1
    assert {sim.state(run_id) for run_id in waiting} == {State.SUCCESS}
    assert judged.pop("BoundDependency") == MANY
    assert judged == dict.fromkeys(waiting, 1)
    assert ticks <= MANY / SLICE + 1  # in slices: commands get in between
    assert {sim.state(run_id) for run_id in others} == {State.WAITING}


def test_what_does_not_concern_them_wakes_none_of_them(sim: Sim, judged: Counter[str]) -> None:
    sim.add_job("gate", params=("n",), program=SimProgram(None))
    sim.add_job("after", params=("n",), conditions=(Dependency("gate"),))
    gates = [sim.schedule("gate", n=n) for n in "12"]
    for _ in range(MANY):
        sim.schedule("after", n="1")
    sim.settle()
    judged.clear()
    sim.finish(gates[0], State.FAILURE)
    sim.finish(gates[1])
    sim.run_for(86400)
    assert not judged


def costs(waiters: int, completions: int, judged: Counter[str]) -> list[int]:
    """How many judgements of conditions each completion leads to."""
    sim = Sim()
    sim.add_job("job", program=SimProgram(None), conditions=(MaxRunning(),))
    running = [sim.schedule("job") for _ in range(waiters)][0]
    sim.settle()
    found = []
    for _ in range(completions):
        judged.clear()
        sim.finish(running)
        (running,) = [run.run_id for run in sim.kernel.live(("job", "{}")) if run.state is State.RUNNING]
        found.append(judged["BoundMaxRunning"])
    return found


def test_with_ten_thousand_waiting_for_a_slot_a_completion_costs_no_more_than_with_ten(
    judged: Counter[str],
) -> None:
    few = costs(10, 5, judged)
    many = costs(MANY, 50, judged)
    assert set(few) == set(many) and max(many) <= 2, (few, many)


def test_those_that_wait_for_a_slot_get_it_in_turn_and_all_get_it(sim: Sim, judged: Counter[str]) -> None:
    sim.add_job("job", program=SimProgram(1.0), conditions=(MaxRunning("3"),))
    runs = [sim.schedule("job") for _ in range(300)]
    sim.run_for(101)
    assert [run_id for run_id, _ in sim.launched] == runs
    assert judged["BoundMaxRunning"] <= 4 * len(runs)
