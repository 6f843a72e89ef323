"""Agents that are lost, and servers that are killed meanwhile: what becomes of runs, stops and slots.

Real processes; agents keep their conn_id when they are started again, and may be away for RECONNECT seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.world import World
from server import ENDS, PROGRAM

from apsislib.cli.show import run_block, runs_table
from apsislib.cli.terminal import Terminal
from apsislib.times import parse_time

RECONNECT = 10.0  # seconds
LAUNCH = {"ping": 0.5, "silence": 1.5}  # seconds
GATED = 'until test -e "$GO"; do sleep 0.05; done'
JOBS = {
    # It is killed, and would leave a child of its session, and one that has left that.
    "parent": (
        "program:\n  type: procstar-shell\n"
        '  command: "sleep 601 & setsid sleep 602 & echo begun; sleep 603"\n'
    ),
    "gated": (
        f"program:\n  type: procstar-shell\n  command: 'echo begun; {GATED}; echo done'\n"
        "condition: {type: max_running, count: 1}\n"
    ),
    "deaf": (
        "program:\n  type: procstar-shell\n"
        "  command: \"trap 'echo asked' TERM; echo begun; while true; do sleep 0.05; done\"\n"
        "  stop: {grace_period: 6}\n"
    ),
    "obedient": (
        "program:\n  type: procstar-shell\n"
        "  command: \"trap 'echo bye; exit 0' TERM; echo begun; while true; do sleep 0.05; done\"\n"
    ),
    "brief": (
        "program:\n  type: procstar-shell\n"
        f"  command: 'echo begun; {GATED}; echo done'\n  timeout: {{duration: 3}}\n"
    ),
    "limited": (
        "program: {type: procstar-shell, command: 'echo begun; sleep 600', timeout: {duration: 8}}\n"
    ),
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    with World(tmp_path, JOBS, RECONNECT, LAUNCH, agents=1) as world:
        yield world
        for agent in world.agents:
            agent.end()  # at once, while there is a server that fetches what it has


def begin(world: World, job_id: str) -> str:
    run_id = world.schedule({"job_id": job_id})
    world.until(run_id, "running")
    world.until_printed(run_id, b"begun\n")
    return run_id


def until_said(world: World, run_id: str, text: str) -> list[str]:
    end = time.monotonic() + 60
    while not any(text in message for message in world.messages(run_id)):
        assert time.monotonic() < end, world.messages(run_id)
        time.sleep(0.05)  # a log tells nobody that it grew
    return world.messages(run_id)


def test_the_truth_about_a_run_that_was_given_up_is_noted_offered_and_not_imposed(world: World) -> None:
    (agent,) = world.agents
    run_id = begin(world, "gated")
    waiting = world.schedule({"job_id": "gated"})
    assert world.run(waiting)["state"] == "waiting"
    agent.signal(signal.SIGSTOP)
    assert world.until(run_id, *ENDS)["state"] == "error"
    last = world.messages(run_id)[-1]
    assert last.startswith("error: procstar: agent reconnect timeout: conn_id a1, last heard of at 20")
    world.until(waiting, "starting")  # the slot is free at that moment
    world.kill_server()  # nothing of what follows is kept in memory
    world.start_server()
    world.await_serving()
    agent.signal(signal.SIGCONT)
    until_said(world, run_id, "agent a1 is back and still runs the program (pid ")
    (world.directory / "go").touch()
    said = until_said(world, run_id, "to accept")
    assert said[-2:] == [
        "late verdict: success",
        f"it stays error; to accept the late verdict: apsis mark success {run_id}",
    ]
    found = world.run(run_id)
    assert found["state"] == "error" and found["meta"]["late_verdict"]["state"] == "success"
    assert world.output(run_id) == b"begun\ndone\n"
    shown = run_block(found, found["times"]["error"], Terminal(), utc=True)
    assert f"late verdict: success (apsis mark success {run_id} accepts it)" in shown
    row = runs_table([found], found["times"]["error"], Terminal(), utc=True)[-2]
    assert row.rstrip().endswith("verdict:success")
    assert list(world.get("/search/runs", q="verdict:any")["runs"]) == [run_id]
    world.post(f"/runs/{run_id}/mark/success")
    assert world.run(run_id)["state"] == "success"
    assert world.get("/search/runs", q="verdict:any")["runs"] == {}
    assert world.until(waiting, *ENDS)["state"] == "success"


def test_a_stop_is_not_forgotten_by_a_dead_server_and_an_agent_that_is_away(world: World) -> None:
    (agent,) = world.agents
    run_id = begin(world, "obedient")
    agent.proxy.hang()
    world.post(f"/runs/{run_id}/stop")
    world.kill_server()
    world.start_server()
    agent.proxy.heal()
    world.await_serving()
    assert world.until(run_id, *ENDS)["state"] == "success"
    assert world.output(run_id) == b"begun\nbye\n"


def test_a_program_that_ended_in_time_is_no_timeout_though_the_server_hears_of_it_late(world: World) -> None:
    run_id = begin(world, "brief")
    world.kill_server()
    (world.directory / "go").touch()
    time.sleep(3.5)  # its timeout passes
    world.start_server()
    world.await_serving()
    assert world.until(run_id, *ENDS)["state"] == "success"
    said = world.messages(run_id)
    assert "timeout after 3 s" in said and any("it had ended within its time" in text for text in said)


def test_what_was_to_end_is_ended_though_its_run_was_given_up_meanwhile(tmp_path: Path) -> None:
    jobs = {"deaf": JOBS["deaf"].replace("grace_period: 6", "grace_period: 3")}
    with World(tmp_path, jobs, 1.0, LAUNCH, agents=1) as world:
        (agent,) = world.agents
        run_id = begin(world, "deaf")
        agent.signal(signal.SIGSTOP)
        world.post(f"/runs/{run_id}/stop")
        world.until(run_id, "error")
        agent.signal(signal.SIGCONT)
        assert "late verdict: failure: killed by SIGKILL" in until_said(world, run_id, "to accept")


def test_programs_of_runs_that_were_given_up_can_be_stopped_and_time_out(tmp_path: Path) -> None:
    sleeping = "program: {type: procstar-shell, command: 'echo begun; exec sleep 600'"
    jobs = {"endless": sleeping + "}\n", "limited": sleeping + ", timeout: {duration: 8}}\n"}
    with World(tmp_path, jobs, 1.0, LAUNCH, agents=1) as world:
        (agent,) = world.agents
        runs = [begin(world, job_id) for job_id in ("endless", "endless", "endless", "limited")]
        away, back, told, limited = runs
        agent.signal(signal.SIGSTOP)
        pids = [world.run(run_id)["meta"]["program"]["proc_stat"]["pid"] for run_id in runs]
        for run_id in runs:
            assert world.until(run_id, *ENDS)["state"] == "error"
        world.post(f"/runs/{told}/signal/USR1")
        until_said(world, told, "SIGUSR1: agent a1 is not connected, it was not sent")
        world.post(f"/runs/{away}/stop")
        assert world.run(away)["state"] == "error"
        for run_id, what in ((back, f"until apsis stop {back} ends it"), (away, "and is to end")):
            found = world.run(run_id)
            shown = run_block(found, found["times"]["error"], Terminal(), utc=True)
            assert f"given up: its program may still run, {what}" in shown
        world.kill_server()
        world.start_server()
        world.await_serving()
        agent.signal(signal.SIGCONT)
        assert "late verdict: failure: killed by SIGTERM" in until_said(world, away, "to accept")
        until_said(world, back, "agent a1 is back and still runs the program (pid ")
        until_said(world, told, "agent a1 is back and still runs the program (pid ")
        signalled = {"operation": "signal", "signal": "USR1", "runs": [told]}
        assert world.post("/bulk", signalled)["done"] == [told]
        assert "late verdict: failure: killed by SIGUSR1" in until_said(world, told, "to accept")
        stop = {"operation": "stop", "runs": [away, back], "reason": "hangs"}
        answer = world.post("/bulk", stop)
        assert (answer["done"], list(answer["refused"])) == ([back], [away])
        assert away in world.post("/bulk", stop)["refused"]  # a second one does no harm
        said = until_said(world, back, "to accept")
        assert "late verdict: failure: killed by SIGTERM" in said and "reason: hangs" in said
        verdict = "late verdict: failure: killed by SIGTERM (timeout after 8 s)"
        assert verdict in until_said(world, limited, "to accept")
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_stop_goes_on_with_the_rest_of_its_grace_and_sigkill_is_sent_again(world: World) -> None:
    (agent,) = world.agents
    run_id = begin(world, "deaf")
    world.post(f"/runs/{run_id}/stop")
    asked = time.monotonic()
    world.until_printed(run_id, b"begun\nasked\n")
    world.kill_server()
    world.start_server()
    world.await_serving()
    time.sleep(max(0.0, asked + 5 - time.monotonic()))  # shortly before the grace is over
    agent.proxy.hang()
    said = until_said(world, run_id, "sending SIGKILL")
    assert 5.5 < time.monotonic() - asked < 30
    assert world.run(run_id)["state"] == "stopping", said
    agent.proxy.heal()
    world.until(run_id, *ENDS)
    assert "failure: killed by SIGKILL" in world.messages(
        run_id
    )  # what it leaves behind may be told after it


def test_a_timeout_counts_from_the_original_start(world: World) -> None:
    run_id = begin(world, "limited")
    begun = time.monotonic()
    time.sleep(3)  # of the eight
    world.kill_server()
    world.start_server()
    world.await_serving()
    served = time.monotonic() - begun
    assert world.until(run_id, *ENDS)["state"] == "failure"
    assert 6 < time.monotonic() - begun < 60
    entries = world.get(f"/runs/{run_id}/log")["run_log"]
    times = {entry["message"]: entry["timestamp"] for entry in entries}
    took = [at for message, at in times.items() if message.startswith("timeout after 8 s")]
    seconds = parse_time(took[0]) - parse_time(times["running"])
    assert 7.9 < seconds < served + 7, (served, times)  # from the restart it would be served + 8


def test_an_agent_that_was_killed_is_named_by_the_errors_of_its_runs(world: World) -> None:
    (agent,) = world.agents
    run_id = begin(world, "gated")
    agent.kill()
    agent.start()
    assert world.until(run_id, *ENDS)["state"] == "error"
    assert world.messages(run_id)[-1].startswith("error: agent a1 (") and "its program may go on" in str(
        world.messages(run_id)[-1]
    )
    argv = [sys.executable, PROGRAM, "--port", str(world.port), "output", run_id]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "begun\n")
    text = f"its output may lack its end; apsis log {run_id} says why"
    assert done.stderr == f"{run_id} ended in error: {text}\n"
    (world.directory / "go").touch()  # its program has outlived the agent


def sleepers(seconds: int) -> list[int]:
    """Processes of ours that sleep for so long."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[:2] == [b"sleep", b"%d" % seconds]:
                found.append(int(path.parent.name))
        except OSError:
            pass  # it has ended
    return found


def test_children_of_a_program_that_was_stopped_are_killed_or_told_of(world: World) -> None:
    others = {number: set(sleepers(number)) for number in (601, 602, 603)}
    run_id = begin(world, "parent")

    def mine(seconds: int) -> list[int]:
        return [pid for pid in sleepers(seconds) if pid not in others[seconds]]

    assert [len(mine(number)) for number in others] == [1, 1, 1]
    (daemon,) = mine(602)
    world.post(f"/runs/{run_id}/stop")
    assert world.until(run_id, *ENDS)["state"] == "failure"
    said = until_said(world, run_id, "has outlived it")
    assert any(line.startswith("the program left processes behind, which were killed: ") for line in said)
    assert f"a process of the run has outlived it: pid {daemon} (sleep)" in said
    assert mine(601) == mine(603) == [] and mine(602) == [daemon]
    os.kill(daemon, signal.SIGKILL)
