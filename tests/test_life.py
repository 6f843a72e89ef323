"""Actions and operations on a real driver, sentence by sentence; and what a restart makes of each state."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from installation import PROGRAM, SLOW, Installation
from sim import Sim, SimProgram
from test_scheduler import Every

from apsislib.conditions import Const
from apsislib.runs import Limits
from apsislib.scheduler import Settings
from apsislib.states import State
from programs.noop import NoOp

JOBS = {
    "noop": PROGRAM,
    "slow": SLOW,
    "dated": "params: [date, copy]\n" + PROGRAM,
    "feeds": (
        "params: [date, other]\n"
        + PROGRAM
        + "successors:\n- job_id: dated\n"
        + "  args: {copy: \"{{ get_calendar('Mon-Fri').shift(date, 1) }} of {{ job_id }}\"}\n"
    ),
    "always": "action: {type: schedule, job_id: told, args: {state: x}}\n" + PROGRAM,
    "told": "params: [state]\n" + PROGRAM,
    "partly": "action: {type: schedule, job_id: told, args: {state: '{{ nope }}'}, if: {states: [success]}}\n"
    + PROGRAM,
    "waits": "condition: {type: const, value: false}\n" + PROGRAM,
    "gone": PROGRAM,
}


def log(site: Installation, run_id: str) -> list[str]:
    return [entry["message"] for entry in site.get(f"/api/v1/runs/{run_id}/log").json()["run_log"]]


def until(holds: Callable[[], object]) -> None:
    """Of what nobody announces."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def runs(site: Installation, job_id: str, count: int) -> list[Any]:
    """Runs of a job, once there are so many. Nobody is told of the end of an action."""
    end = time.monotonic() + 60
    while True:
        found = list(site.get(f"/api/v1/runs?job_id={job_id}").json()["runs"].values())
        if len(found) >= count:
            return found
        assert time.monotonic() < end, (job_id, found)


def until_logged(site: Installation, run_id: str, text: str) -> None:
    end = time.monotonic() + 60
    while not any(text in line for line in log(site, run_id)):
        assert time.monotonic() < end, log(site, run_id)


def operate(site: Installation, run_id: str, verb: str) -> tuple[int, str]:
    answer = site.post(f"/api/v1/runs/{run_id}/{verb}", {})
    return answer.status_code, str(answer.json().get("error", ""))


# -- actions -------------------------------------------------------------------------------------


def test_a_successor_gets_what_is_missing_from_the_run_and_both_logs_say_so(site: Installation) -> None:
    run = site.make("feeds", args={"date": "2031-05-09", "other": "x"})
    said = "action scheduling dated(copy=2031-05-12 of feeds date=2031-05-09) as "
    until_logged(site, run["run_id"], said)
    (made,) = (line.removeprefix(said) for line in log(site, run["run_id"]) if said in line)
    (successor,) = site.get(f"/api/v1/runs/{made}").json()["runs"].values()
    assert successor["args"] == {"date": "2031-05-09", "copy": "2031-05-12 of feeds"}
    assert f"scheduled by action of {run['run_id']}" in log(site, made)


def test_successors_follow_again_when_a_run_is_marked_a_success_again(site: Installation) -> None:
    run_id = site.make("feeds", args={"date": "2031-06-09", "other": "y"})["run_id"]
    until_logged(site, run_id, "action scheduling dated(copy=2031-06-10")
    assert operate(site, run_id, "mark/failure") == (200, "")
    assert operate(site, run_id, "mark/success") == (200, "")
    end = time.monotonic() + 60
    while sum("action scheduling dated(copy=2031-06-10" in line for line in log(site, run_id)) < 2:
        assert time.monotonic() < end


def test_an_action_without_if_follows_every_transition(site: Installation) -> None:
    run = site.make("always")
    assert run["state"] == "success"
    found = runs(site, "told", 4)  # scheduled, starting, running, success
    assert len(found) == 4


def test_an_action_that_fails_is_in_the_log_and_changes_nothing(site: Installation) -> None:
    run_id = site.make("partly")["run_id"]
    until_logged(site, run_id, "error: action: ")
    assert "error: action: name 'nope' is not defined" in log(site, run_id)
    assert site.state(run_id) == "success"
    with site.store.read() as reader:
        assert reader.owed() == []


def test_an_action_whose_job_was_removed_is_in_the_log(site: Installation) -> None:
    site.write("refers", "successors: gone\n" + SLOW)
    assert site.post("/api/control/reload_jobs").json()["added"] == ["refers"]
    run_id = site.make("refers")["run_id"]
    until_logged(site, run_id, "running")
    for name in ("refers", "gone"):
        (site.job_dir / f"{name}.yaml").unlink()
    assert site.post("/api/control/reload_jobs").json()["removed"] == ["gone", "refers"]
    assert operate(site, run_id, "stop") == (200, "")
    until_logged(site, run_id, "error: action: unknown job ID: gone")
    assert site.state(run_id) == "success"  # nor does it matter that its own job is gone
    again = site.post(f"/api/v1/runs/{run_id}/rerun", {}).json()
    (new,) = again["runs"].values()
    assert new["state"] == "error" and "error: unknown job ID: refers" in log(site, new["run_id"])


# -- operations ----------------------------------------------------------------------------------


def test_each_operation_is_allowed_where_it_makes_sense_and_else_says_why_not(site: Installation) -> None:
    later = {"times": {"schedule": "2099-01-01T00:00:00Z"}}
    scheduled = site.make("waits", **later)["run_id"]
    assert operate(site, scheduled, "stop") == (400, f"can't stop run {scheduled}: run is scheduled")
    assert operate(site, scheduled, "signal/TERM")[0] in (400, 404)
    assert operate(site, scheduled, "mark/success") == (400, f"can't mark {scheduled} in state scheduled")
    # A scheduled run that is started waits for its conditions; a waiting one does not any more.
    assert operate(site, scheduled, "start") == (200, "")
    assert site.state(scheduled) == "waiting"
    assert operate(site, scheduled, "start") == (200, "")
    until_logged(site, scheduled, "success")
    assert [line for line in log(site, scheduled) if "override" in line] == [
        "scheduled run started by override",
        "waiting run started by override",
    ]
    for verb in ("start", "skip"):
        assert operate(site, scheduled, verb) == (400, f"can't {verb} {scheduled} in state success")

    waiting = site.make("waits")["run_id"]
    assert operate(site, waiting, "skip") == (200, "")
    assert site.state(waiting) == "skipped" and log(site, waiting)[-1] == "skipped"
    assert operate(site, waiting, "mark/skipped") == (400, f"run {waiting} already in state skipped")

    running = site.make("slow")["run_id"]
    until_logged(site, running, "running")
    assert operate(site, running, "skip") == (400, f"can't skip {running} in state running")
    assert operate(site, running, "mark/success") == (400, f"can't mark {running} in state running")
    assert operate(site, running, "stop") == (200, "")
    until_logged(site, running, "success")
    assert operate(site, running, "stop") == (400, f"can't stop run {running}: run is success")
    assert operate(site, "r999999999", "skip") == (404, "unknown run r999999999")


def test_a_rerun_of_any_state_is_a_run_of_its_own_and_its_stop_time_keeps_its_distance(
    site: Installation,
) -> None:
    run = site.make("slow", times={"schedule": "2099-01-01T00:00:00Z", "stop": "+1h"})
    again = site.post(f"/api/v1/runs/{run['run_id']}/rerun", {}).json()
    (new,) = again["runs"].values()
    assert new["rerun_of"] == run["run_id"] and f"scheduled as rerun of {run['run_id']}" in log(
        site, new["run_id"]
    )
    with site.store.read() as reader:
        found = reader.run(new["run_id"])
    assert found is not None and found.times["stop"] - found.times["schedule"] == pytest.approx(3600)
    assert site.state(run["run_id"]) == "scheduled"
    for run_id in (run["run_id"], new["run_id"]):
        operate(site, run_id, "skip")
        operate(site, run_id, "stop")


# -- restart -------------------------------------------------------------------------------------


def test_a_run_that_was_never_scheduled_is_an_error_after_a_restart(sim: Sim) -> None:
    sim.add_job("job")
    run_id = sim.schedule("job", at=sim.clock.wall() + 60)
    sim.rows[run_id] = sim.rows[run_id].but(state=State.NEW)
    sim.crash()
    assert sim.state(run_id) is State.ERROR
    assert sim.log[run_id][-1] == "error: the server stopped before it was scheduled"


def test_an_overdue_run_by_hand_begins_at_the_restart_and_is_no_error(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None))
    sim.add_job("waits", conditions=(Const(False),))
    plain, waits = (sim.schedule(job_id, at=sim.clock.wall() + 60) for job_id in ("job", "waits"))
    sim.clock.advance(120)
    sim.crash()
    assert sim.state(plain) is State.RUNNING and sim.state(waits) is State.WAITING
    assert [line for line in sim.log[plain] if line in ("restored", "starting")] == ["restored", "starting"]


def test_finished_runs_are_not_touched_by_a_restart(sim: Sim) -> None:
    sim.add_job("job")
    run_id = sim.schedule("job")
    before = sim.rows[run_id], list(sim.log[run_id])
    sim.crash()
    assert (sim.rows[run_id], sim.log[run_id]) == before and run_id not in sim.kernel.runs


def test_a_run_whose_stop_time_passed_meanwhile_is_stopped_when_its_program_is_found(sim: Sim) -> None:
    sim.add_job("job", program=SimProgram(None, limits=Limits(grace=30.0)))
    run_id = sim.schedule("job", stop=sim.clock.wall() + 60)
    sim.clock.advance(120)
    sim.crash()
    assert sim.rows[run_id].times["stopping"] == sim.clock.wall()


@pytest.mark.parametrize("horizon", [1.0, 30.0, 7200.0])
def test_however_short_the_horizon_runs_begin_in_time(horizon: float) -> None:
    sim = Sim(settings=Settings(horizon=horizon))
    sim.add_job("tick", Every(20))
    sim.run_for(100)
    assert [when % 20 for _, when in sim.launched] == pytest.approx([0.0] * 6)


def test_one_row_that_cannot_be_read_keeps_no_server_from_starting(tmp_path: Path) -> None:
    site = Installation(tmp_path, {"waits": JOBS["waits"]}).start()
    good, bad, worse = (site.make("waits")["run_id"] for _ in range(3))
    site.stop()
    with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
        db.execute("UPDATE runs SET times = 'damaged' WHERE number = ?", (int(bad[1:]),))
        db.execute(
            "UPDATE runs SET conds = ? WHERE number = ?", (json.dumps([{"type": "?"}]), int(worse[1:]))
        )
    (tmp_path / "jobs" / "waits.yaml").unlink()
    (tmp_path / "jobs").rmdir()
    site = Installation(tmp_path, {"waits": JOBS["waits"]}).start()
    try:
        assert site.state(good) == "waiting"
        assert site.state(worse) == "error"
        assert site.get("/api/v1/health").status_code == 200
    finally:
        site.stop()


def test_a_signal_that_overtakes_a_failing_disk_is_sent_once_though_it_recovers_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(NoOp, "signal", lambda self, run, host, signum, stop: sent.append(run.run_id))
    site = Installation(tmp_path, {"slow": SLOW}).start()
    run_id = site.make("slow")["run_id"]
    database, aside = tmp_path / "apsis.db", tmp_path / "aside.db"
    overtake, guard = site.driver._acting._overtake_locked, site.driver._guard

    def recovering(effects: Any) -> None:
        """The disk is whole again just as what it was to keep waiting is about to be done at once."""
        aside.rename(database)
        until(lambda: not site.store.braked)
        site.driver._hands.programs.submit(lambda: None).result(60)
        overtake(effects)

    try:
        database.rename(aside)
        site.driver.note(run_id, "to be written")
        until(lambda: site.store.braked)
        guard.braked = recovering
        site.post(f"/api/v1/runs/{run_id}/signal/USR1")
        until(lambda: "sending SIGUSR1" in log(site, run_id))
        site.driver._hands.programs.submit(lambda: None).result(60)
        assert sent == [run_id]
        # Else another effect, by and by at the same place in memory, would never be acted on.
        assert not site.driver._acting._overtaken
    finally:
        site.stop()


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
def test_the_first_thing_that_a_failing_disk_is_given_is_passed_on_if_it_is_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(NoOp, "signal", lambda self, run, host, signum, stop: sent.append(signum))
    monkeypatch.setattr("apsislib.driver.guard.COMMIT", 0.5 if hangs else 60.0)
    site = Installation(tmp_path, {"slow": SLOW}).start()
    run_id = site.make("slow")["run_id"]
    database, aside = tmp_path / "apsis.db", tmp_path / "aside.db"
    whole = threading.Event()
    try:
        until(lambda: site.state(run_id) == "running")
        if hangs:
            threading.Thread(target=lambda: site.store._between(whole.wait), daemon=True).start()
            until(lambda: not site.store._chores)
        else:
            database.rename(aside)
        answer = site.post(f"/api/v1/runs/{run_id}/stop")
        assert answer.status_code == 503 and "passed on" in answer.json()["error"]
        until(lambda: sent)
        assert site.state(run_id) == "running"  # on disk
    finally:
        whole.set()
        if aside.exists():
            aside.rename(database)
        until(lambda: site.state(run_id) == "stopping")
        site.driver._hands.programs.submit(lambda: None).result(60)
        site.stop()
    assert sent == [15] and not site.driver._acting._overtaken


def test_who_is_told_that_the_disk_refuses_is_told_what_becomes_of_the_request(tmp_path: Path) -> None:
    site = Installation(tmp_path, {"noop": PROGRAM, "waits": JOBS["waits"]}).start()
    waits = site.make("waits")["run_id"]
    database, aside = tmp_path / "apsis.db", tmp_path / "aside.db"

    def refused(path: str, body: Any = None) -> str:
        """What it is told; then the disk is whole again."""
        database.rename(aside)
        answer = site.post(path, body)
        aside.rename(database)
        assert answer.status_code == 503
        until(lambda: not site.store.braked)
        return str(answer.json()["error"])

    try:
        found = re.search(r"; (r\d+) will be there when", refused("/api/v1/runs", {"job_id": "noop"}))
        assert found is not None
        until(lambda: site.state(found[1]) == "success")
        assert "; the skip counts when that is over" in refused(f"/api/v1/runs/{waits}/skip")
        until(lambda: site.state(waits) == "skipped")
    finally:
        site.stop()
