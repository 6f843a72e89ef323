"""The checker is checked: of each defect that is planted into a real server it has to find the trace.

Each campaign plays only the faults that show the defect; without one, all of them find nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import campaign, ledger
from chaos.nemesis import Fault, History
from chaos.world import World

RECONNECT = 8.0  # seconds, where a plant makes them pass; elsewhere long enough for a slow machine
SLOW = 0.25  # seconds that a commit takes: the window between decision and disk is wide open
SLOWEST = 0.4  # seconds: for as long as a program may take to begin
PATIENCE = 100.0  # seconds; only a failure takes so long
KILLS = [Fault("kill server", "server", at, 0.1) for at in (2.1, 4.9, 7.7)]
LOSS = [Fault("kill agent", "a1", 3.0, 0.2), Fault("kill agent", "a2", 3.4, 0.2)]


def play(
    directory: Path,
    faults: list[Fault] | Callable[[World], History],
    only: tuple[str, ...],
    plant: str | None,
    slow: float = 0.0,
) -> campaign.Verdict:
    launch = {"plant": plant, "slow_commit": slow}
    seconds = 0.0 if callable(faults) else faults[-1].at + 3
    outcome = campaign.run(
        directory,
        faults,
        seconds,
        every_busy=3,
        only=only,
        launch=launch,
        reconnect=RECONNECT if plant else 40.0,
        patience=8 if plant else 90,
    )
    print(outcome)
    return outcome.verdict


def kill_when(holds: Callable[[World], object]) -> Callable[[World], History]:
    """Kills the server once something holds, and still does when it is dead; and starts it again."""

    def kill(world: World) -> History:
        end = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < end, "what the server was to be killed at did not come"
            if holds(world):
                world.kill_server()
                there = holds(world)
                world.start_server()
                world.await_serving()
                if there:
                    return History()
            time.sleep(0.01)  # neither ledger nor database tells anybody that it has changed

    return kill


def kill_agents_at_work(world: World) -> History:
    """Kills both agents while a run is running, and waits for its error and for the next one to wait."""
    history = History()
    await_run(world, "running")
    for agent in world.agents:
        history.killed.add(agent.name)
        agent.kill()
    for agent in world.agents:
        agent.start()
    await_run(world, "error")
    await_run(world, "waiting")
    return history


def await_run(world: World, state: str) -> None:
    end = time.monotonic() + PATIENCE
    while not world.query("SELECT 1 FROM runs WHERE state = ?", state):
        assert time.monotonic() < end, f"no run is {state}"
        time.sleep(0.05)  # the database tells nobody that it has changed


def a_program_runs_that_is_not_on_disk(world: World) -> bool:
    begun = set(ledger.read(world.ledger))
    return bool(begun - {f"r{number}" for (number,) in world.query("SELECT number FROM runs")})


def a_part_of_an_output_is_on_disk(world: World) -> bool:
    going = "SELECT 1 FROM outputs JOIN runs USING (number) WHERE state = 'running' AND length > 0"
    return bool(world.query(going))


def a_verdict_is_on_disk(world: World) -> bool:
    return bool(world.query("SELECT 1 FROM runs WHERE state = 'success'"))


@pytest.mark.timeout(300)
def test_launch_before_commit(tmp_path: Path) -> None:
    kill = kill_when(a_program_runs_that_is_not_on_disk)
    verdict = play(tmp_path, kill, ("quick", "fails"), "launch_before_commit", SLOWEST)
    assert any("the database does not know it" in text for text in verdict.untrue) or verdict.doubled


@pytest.mark.timeout(300)
def test_clock_stored_before_the_claims(tmp_path: Path) -> None:
    verdict = play(tmp_path, KILLS, ("quick",), "clock_before_claims")
    assert any("has no run" in text for text in verdict.lost)


@pytest.mark.timeout(300)
def test_reconciliation_skipped(tmp_path: Path) -> None:
    verdict = play(tmp_path, KILLS[:1], ("slow",), "reconciliation_skipped")
    assert any("no fault excuses" in t for t in verdict.lost) or any(
        "runs any more" in t for t in verdict.untrue
    )


@pytest.mark.timeout(300)
def test_slot_kept(tmp_path: Path) -> None:
    verdict = play(tmp_path, kill_agents_at_work, ("busy",), "slot_kept")
    assert any("nothing to wait for" in text for text in verdict.untrue)


@pytest.mark.timeout(300)
def test_output_offset_reset(tmp_path: Path) -> None:
    verdict = play(tmp_path, kill_when(a_part_of_an_output_is_on_disk), ("slow",), "offset_reset")
    assert any("its output is" in text for text in verdict.untrue)


@pytest.mark.timeout(300)
def test_verdict_before_output(tmp_path: Path) -> None:
    verdict = play(tmp_path, kill_when(a_verdict_is_on_disk), ("loud",), "verdict_before_output", SLOW)
    assert any("its output is" in text for text in verdict.untrue)


@pytest.mark.timeout(300)
def test_without_a_plant_the_same_faults_find_nothing(tmp_path: Path) -> None:
    faults = sorted([*KILLS, *LOSS], key=lambda fault: fault.at)
    verdict = play(tmp_path, faults, ("quick", "fails", "slow", "busy"), None, SLOW)
    assert verdict.clean, str(verdict)
