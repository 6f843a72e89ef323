"""A server whose wall clock is set while it runs: schedules follow the clock, durations do not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from server import ENDS, Server

LIBRARIES = [
    path / "faketime" / "libfaketime.so.1"
    for path in (*Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib"), Path("/usr/lib64"))
]
JOBS = {
    "yearly": "schedule: {type: cron, cron: '@yearly', tz: UTC}\nprogram: {type: no-op}\n",
    "slow": "program: {type: no-op, duration: 2}\n",
    "limited": "program: {type: procstar-shell, command: sleep 60, timeout: {duration: 3}}\n",
    "echo": "program: {type: procstar, argv: [/bin/echo, here]}\n",
}


class Clock:
    """The wall clock of the processes that begin while it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shift(0)

    def shift(self, seconds: int) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(f"{seconds:+d}s\n")
        draft.rename(self.path)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = [path for path in LIBRARIES if path.exists()]
    assert found, "libfaketime is missing: install Debian's package faketime"
    clock = Clock(tmp_path / "clock")
    monkeypatch.setenv("LD_PRELOAD", str(found[0]))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock.path))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    return clock


@pytest.fixture
def server(clock: Clock, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, JOBS).running() as server:
        yield server


def until_logged(server: Server, text: str) -> None:
    end = time.monotonic() + 60
    while text not in server.log():
        assert time.monotonic() < end, server.log()
        time.sleep(0.05)  # a log file tells nobody that it grew


@pytest.mark.parametrize("step", [3600, -3600, 86400])
def test_a_step_is_said_and_changes_no_duration(server: Server, clock: Clock, step: int) -> None:
    slow = server.schedule({"job_id": "slow"})
    limited = server.schedule({"job_id": "limited"})
    server.until(limited, "running")
    clock.shift(step)
    begun = time.monotonic()
    until_logged(server, "the wall clock was set by")
    assert server.until(slow, *ENDS)["state"] == "success"
    assert server.until(limited, *ENDS)["state"] == "failure"
    assert time.monotonic() - begun < 30
    assert all(0 < server.run(run_id)["meta"]["elapsed"] < 60 for run_id in (slow, limited))
    assert any("timeout after 3 s" in message for message in server.messages(limited))
    assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"


def test_a_run_that_a_step_made_due_is_run_once(server: Server, clock: Clock) -> None:
    due = datetime.fromtimestamp(time.time() + 1800, UTC).isoformat()
    run_id = server.schedule({"job_id": "echo", "times": {"schedule": due}})
    assert server.run(run_id)["state"] == "scheduled"
    clock.shift(3600)
    assert server.until(run_id, *ENDS)["state"] == "success"
    clock.shift(0)
    until_logged(server, "the wall clock was set by -")
    assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"
    assert server.messages(run_id).count("starting") == 1
