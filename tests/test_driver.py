"""The driver: what becomes of work that hands could not do at once, on the real store and kernel."""

from __future__ import annotations

import math
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import installation
import pytest
from installation import PROGRAM, SLOW, Installation, every

from apsislib.clock import Deadline, WallClock
from apsislib.driver import health
from apsislib.errors import Unavailable
from apsislib.runs import Lost, Running, Update
from apsislib.states import State
from apsislib.store import Reader
from apsislib.times import format_time
from programs import noop

JOBS = {
    "noop": PROGRAM,
    "slow": SLOW,
    "tick": "schedule: {type: interval, interval: 1}\n" + PROGRAM,
    "after": "condition: {type: dependency, job_id: noop}\n" + PROGRAM,
}


class Fault:
    """Makes a function fail for the first `times` calls."""

    def __init__(self, times: int, call: Callable[..., Any], error: Exception) -> None:
        self.left, self._call, self._error = times, call, error

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            raise self._error
        return self._call(*args, **options)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Installation]:
    site = Installation(tmp_path, JOBS)
    yield site
    site.stop()


def until(site: Installation, job_id: str, state: str, count: int = 1) -> list[str]:
    """IDs of runs of a job in a state, once there are so many. Waits for what the feed tells."""
    with site.feed.subscribe() as events:
        while True:
            with site.store.read() as reader:
                found = [r.run_id for r in reader.runs(job_id=job_id, states=[State(state)])]
            if len(found) >= count:
                return found
            assert events.get(60), f"no {count} runs of {job_id} in {state}"


def test_scheduled_runs_are_made_although_the_disk_refused_run_ids_at_first(site: Installation) -> None:
    fault = Fault(2, site.store.reserve, Unavailable("no space left"))
    site.store.reserve = fault  # type: ignore[method-assign]
    site.start()
    until(site, "tick", "success")
    assert fault.left == 0


def test_an_action_is_done_although_the_disk_refused_a_run_id_at_first(tmp_path: Path) -> None:
    site = Installation(tmp_path, {"noop": PROGRAM, "first": PROGRAM + "successors: noop\n"})
    try:
        site.start()
        site.make("noop")  # takes a block of IDs
        ids = site.driver._making._ids
        ids[:] = ids[-1:]  # one left, for `first` itself
        fault = Fault(2, site.store.reserve, Unavailable("no space left"))
        site.store.reserve = fault  # type: ignore[method-assign]
        site.make("first")
        until(site, "noop", "success", 2)
        assert fault.left == 0
        with site.store.read() as reader:
            assert reader.owed() == []
    finally:
        site.stop()


def test_a_waiting_run_goes_on_although_the_database_could_not_be_asked_at_first(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.start()
    run_id = site.make("noop")["run_id"]
    end = time.monotonic() + 30
    while site.driver.live_run(run_id) is not None:  # while it is in memory, the database is not asked
        assert time.monotonic() < end
        time.sleep(0.001)  # nobody is told that it is forgotten
    fault = Fault(2, Reader.ended, OSError("I/O error"))
    monkeypatch.setattr(Reader, "ended", lambda reader, key: fault(reader, key))
    site.make("after")
    until(site, "after", "success")
    assert fault.left == 0


def test_a_run_whose_metadata_can_not_be_stored_ends_in_error_on_disk_too(site: Installation) -> None:
    site.start()
    run_id = site.make("slow")["run_id"]
    until(site, "slow", "running")
    site.driver.report(run_id, Update({"name": "\ud800", "load": math.nan}))
    until(site, "slow", "error")
    assert site.state(run_id) == "error"


def test_a_lost_connection_that_the_run_is_not_on_means_nothing(site: Installation) -> None:
    site.start()
    run_id = site.make("slow")["run_id"]
    until(site, "slow", "running")
    site.driver.report(run_id, Running({"conn_id": "new"}))
    site.driver.report(run_id, Lost("old"))
    messages = [e["message"] for e in site.get(f"/api/v1/runs/{run_id}/log").json()["run_log"]]
    assert not [m for m in messages if "away" in m]


def test_a_run_that_leaves_the_expected_ones_is_listed_as_such_until_it_is_on_disk(
    site: Installation, tmp_path: Path
) -> None:
    site.start()
    with closing(sqlite3.connect(tmp_path / "apsis.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # no commit of ours before it ends
        leaving = site.driver._guard.kernel.leaving
        deadline = Deadline(30, site.clock)
        while not leaving and deadline.left():
            time.sleep(0.01)  # nobody is told of it
        run_id = next(iter(leaving))
        try:
            assert site.get("/api/v1/runs?job_id=tick").json()["runs"][run_id]["state"] == "scheduled"
            assert site.state(run_id) == "scheduled"
        finally:
            other.execute("ROLLBACK")
    with site.feed.subscribe() as events:
        while site.state(run_id) != "success":
            assert events.get(60)
    assert run_id not in leaving


def test_the_timer_is_as_late_as_it_is_and_not_by_what_is_made_ahead(tmp_path: Path) -> None:
    site = Installation(tmp_path, {"every": every(600) + PROGRAM, "noop": PROGRAM}).start()
    try:
        stats, lead = site.driver.stats(), 0.2
        while not stats["timer"]["count"]:
            # What is due already when a slow machine comes to it is begun without the timer.
            made = site.make("noop", times={"schedule": format_time(site.clock.wall() + lead)})["run_id"]
            while made not in until(site, "noop", "success"):
                pass
            stats, lead = site.driver.stats(), lead * 4
        assert stats["runs"]["expected"] > 3
        assert stats["timer"]["max"] < 20
        assert stats["lock_hold"]["count"] > 1 and 0 < stats["lock_hold"]["max"] < 20
    finally:
        site.stop()


def test_a_commit_that_hangs_is_an_ailment(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LATE", 0.05)
    site.start()
    entered, go = threading.Event(), threading.Event()
    commit = site.store._commit

    def hang(batch: Any) -> Any:
        entered.set()
        go.wait(60)
        return commit(batch)

    site.store._commit = hang  # type: ignore[method-assign]
    try:
        assert entered.wait(60)  # `tick` is due every second
        while not (found := site.driver.ailments()):
            pass
        assert re.fullmatch(r"a commit has been under way for \d+ s: the disk or a lock", found[0]), found
        assert site.get("/api/v1/health").status_code == 503
    finally:
        go.set()
    until(site, "tick", "success")


def test_a_timer_that_is_late_is_an_ailment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LATE", 0.05)
    site = Installation(tmp_path, {"noop": PROGRAM})
    try:
        site.driver.recover()
        site.driver.is_running.set()  # but its timer is never started
        site.server.start()
        assert site.get("/api/v1/health").json() == {"reasons": []}
        site.make("noop", times={"schedule": format_time(site.clock.wall() + 0.2)})
        while (ill := site.get("/api/v1/health")).status_code == 200:
            pass
        assert ill.status_code == 503 and ill.json()["reasons"] == ["the timer is 0 s late"]
    finally:
        site.stop()


class Suspended(WallClock):
    """Can be made to have slept: the monotonic clock does not count that."""

    slept = 0.0

    def wall(self) -> float:
        return super().wall() + self.slept

    def boot(self) -> float:
        return super().boot() + self.slept


def test_a_host_that_was_suspended_is_the_reason_of_what_is_begun_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Suspended()
    monkeypatch.setattr(installation, "WallClock", lambda: clock)
    site = Installation(tmp_path, {"rare": every(600) + PROGRAM}).start()
    try:
        clock.slept = 1800.0
        site.make("rare")  # wakes the timer
        until(site, "rare", "success", 4)
        with site.store.read() as reader:
            runs = [run for run in reader.runs(job_id="rare") if run.occurrence]
        assert len(runs) == 3
        assert all(run.meta["reasons"]["late"].startswith("the host was suspended from ") for run in runs), (
            runs
        )
    finally:
        site.stop()


def test_nobody_waits_while_the_database_is_asked_why_a_run_can_not_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Installation(tmp_path, {"noop": PROGRAM}).start()
    try:
        run_id = site.make("noop")["run_id"]
        until(site, "noop", "success")
        read, guard = site.store.read, site.driver._guard
        held: list[bool] = []

        def reading(*args: Any) -> Any:
            held.append(guard._owner == threading.get_ident())
            return read(*args)

        monkeypatch.setattr(site.store, "read", reading)
        answer = site.post(f"/api/v1/runs/{run_id}/stop")
        assert answer.status_code == 400 and "run is success" in answer.json()["error"]
        assert held and not any(held)
    finally:
        site.stop()


def test_agents_are_let_in_only_once_programs_look_for_their_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that nobody looks for is deleted at its agent: the program would be started again."""
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    before = Installation(tmp_path / "before", {"slow": SLOW}).start()
    run_id = before.make("slow")["run_id"]
    before.stop()
    shutil.copy(tmp_path / "before" / "apsis.db", tmp_path / "after" / "apsis.db")
    looked: list[str] = []
    monkeypatch.setattr(noop.NoOp, "connect", lambda self, run, host: looked.append(run.run_id))
    site = Installation(tmp_path / "after", {"slow": SLOW})
    committed = site.store.committed

    def slowly(*args: Any) -> None:
        threading.Event().wait(0.5)
        committed(*args)

    site.store.committed = slowly
    site.driver.recover()
    assert looked == [run_id]
    site.server.start()
    site.stop()


@pytest.mark.parametrize("many", [False, True])
def test_a_mark_keeps_the_late_verdict_that_comes_while_the_run_is_read(
    site: Installation, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    site.start()
    run_id = site.make("noop")["run_id"]
    name = "runs" if many else "run"
    read = getattr(Reader, name)

    def overtaken(self: Reader, *args: Any, **options: Any) -> Any:
        found = read(self, *args, **options)
        monkeypatch.setattr(Reader, name, read)
        site.driver.offer(run_id, State.ERROR, "it was lost", None)
        site.store.told()  # it is on disk, and out of memory again
        return found

    until(site, "noop", "success")
    monkeypatch.setattr(Reader, name, overtaken)
    if many:
        assert site.driver.bulk("mark", [run_id], state=State.FAILURE) == ({run_id: run_id}, {})
    else:
        assert site.driver.mark(run_id, State.FAILURE).state is State.FAILURE
    run = site.driver.find_run(run_id)
    assert run.state is State.FAILURE and run.meta["late_verdict"]["message"] == "it was lost"
