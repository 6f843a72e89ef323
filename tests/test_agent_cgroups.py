"""Limits and accounting by cgroup v2, in a real one where this machine lets us make it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_peer import Agent, Peer

from apsislib.agent.cgroups import Cgroup
from apsislib.agent.loop import Loop
from apsislib.agent.spec import Limits
from apsislib.clock import WallClock


def mount() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    return Path("/no/cgroup2")


@pytest.fixture
def subtree() -> Iterator[Path]:
    """A cgroup of our own, marked as delegated; without the right to one, there is nothing to test."""
    path = mount() / f"apsis-test-{os.getpid()}"
    try:
        path.mkdir()
        os.setxattr(path, "user.delegate", b"1")
    except OSError as error:
        with contextlib.suppress(OSError):
            path.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}")
    yield path
    for child in [*path.iterdir(), path]:
        if child.is_dir():
            with contextlib.suppress(OSError):
                (child / "cgroup.kill").write_text("1")
    while path.exists():
        for child in [*(c for c in path.iterdir() if c.is_dir()), path]:
            with contextlib.suppress(OSError):
                child.rmdir()


def test_what_is_left_of_a_program_is_killed_and_its_cgroup_removed(subtree: Path) -> None:
    loop = Loop(WallClock())
    cgroup = Cgroup(subtree / "one")
    assert cgroup.entrance is not None
    child = subprocess.Popen(["/bin/sleep", "60"])
    os.write(cgroup.entrance, str(child.pid).encode())
    cgroup.entered()
    accounting = cgroup.accounting()
    assert accounting is not None and list(accounting) == ["pids", "cpu_stat", "memory"]
    assert list(accounting["cpu_stat"])[:3] == ["usage_usec", "user_usec", "system_usec"]
    cgroup.end(loop)
    assert child.wait(10) == -signal.SIGKILL

    def stop_when_gone() -> None:
        if cgroup.path.exists():
            loop.soon(stop_when_gone)
        else:
            loop.stop()

    loop.soon(stop_when_gone)
    loop.run()
    loop.close()


def test_a_limit_that_the_kernel_does_not_offer_is_said_and_not_fatal(
    subtree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cgroup = Cgroup(subtree / "one")
    available = (cgroup.path / "memory.max").exists()
    cgroup.limit(Limits({"memory_max": 10**9}, {"runtime_max_usec": 1}))
    assert ("memory_max" in caplog.text) is not available and "runtime_max_usec" in caplog.text
    cgroup.entered()
    cgroup.path.rmdir()


def test_an_agent_in_a_delegated_cgroup_accounts_for_programs_and_ends_their_descendants(
    subtree: Path,
) -> None:
    peer = Peer()
    agent = Agent.of(peer, within=subtree)
    try:
        link = peer.link()
        res = link.run("p", ["/bin/sh", "-c", "sleep 60 & echo $!"])
        assert res["cgroup_accounting"]["cpu_stat"]["usage_usec"] > 0
        left = int(link.output("p"))
        while Path(f"/proc/{left}/cmdline").exists() and Path(f"/proc/{left}/cmdline").read_bytes():
            pass  # killed, if this loop ends
    finally:
        agent.kill()
        peer.close()
