"""Limits and accounting by cgroup v2. Run by test_agent_cgroups.py, as root of a Linux of its own."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_peer import Agent, Peer
from server import ENDS, Server

from apsislib.agent.cgroups import Cgroup
from apsislib.agent.loop import Loop
from apsislib.agent.spec import Limits
from apsislib.clock import WallClock

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def subtree() -> Iterator[Path]:
    """A cgroup of our own, marked as delegated, as systemd marks those of units with Delegate=yes."""
    for controller in ("memory", "pids", "cpu"):
        (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
    path = CGROUPS / f"apsis-test-{os.getpid()}"
    path.mkdir()
    os.setxattr(path, "trusted.delegate", b"1")
    yield path
    for child in [*path.iterdir(), path]:
        if child.is_dir():
            with contextlib.suppress(OSError):
                (child / "cgroup.kill").write_text("1")
    while path.exists():
        for child in [*(c for c in path.iterdir() if c.is_dir()), path]:
            with contextlib.suppress(OSError):
                child.rmdir()


def sleeper(cgroup: Cgroup) -> subprocess.Popen[bytes]:
    """A program in it."""
    assert cgroup.entrance is not None
    child = subprocess.Popen(["/bin/sleep", "60"])
    os.write(cgroup.entrance, str(child.pid).encode())
    cgroup.entered()
    return child


def test_what_is_left_of_a_program_is_killed_and_its_cgroup_removed(subtree: Path) -> None:
    loop = Loop(WallClock())
    cgroup = Cgroup(subtree / "one")
    child = sleeper(cgroup)
    accounting = cgroup.accounting()
    assert accounting is not None and list(accounting) == ["pids", "cpu_stat", "memory"]
    assert list(accounting["cpu_stat"])[:3] == ["usage_usec", "user_usec", "system_usec"]
    cgroup.end(loop)
    assert child.wait(60) == -signal.SIGKILL

    def stop_when_gone() -> None:
        if cgroup.path.exists():
            loop.soon(stop_when_gone)
        else:
            loop.stop()

    loop.soon(stop_when_gone)
    loop.run()
    loop.close()


def test_a_cgroup_is_ended_and_none_left_where_no_descriptor_is(subtree: Path) -> None:
    loop = Loop(WallClock())
    cgroup = Cgroup(subtree / "one")
    child = sleeper(cgroup)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        cgroup.end(loop)
        with pytest.raises(OSError, match="Too many open files"):
            Cgroup(subtree / "two")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not (subtree / "two").exists() and cgroup.path.exists()
    assert child.poll() is None

    def stop_when_gone() -> None:
        if cgroup.path.exists():
            loop.call_after(0.01, stop_when_gone)
        else:
            loop.stop()

    loop.soon(stop_when_gone)
    loop.run()
    loop.close()
    assert child.wait(60) == -signal.SIGKILL


def test_a_limit_that_the_kernel_does_not_offer_is_said_and_not_fatal(subtree: Path) -> None:
    cgroup = Cgroup(subtree / "one")  # whose parent passes no controller on
    assert not (cgroup.path / "memory.max").exists()
    assert cgroup.limit(Limits({"memory_max": 10**9, "memory_swap_max": 0}, {"runtime_max_usec": 1})) == [
        f"memory_max=1000000000 not applied: no memory controller in {subtree}",
        f"memory_swap_max=0 not applied: no memory controller in {subtree}",
        "runtime_max_usec=1 not applied: this agent does not know how",
    ]
    # Servers forbid swap to every program.
    assert cgroup.limit(Limits({"memory_swap_max": 0})) == []
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
        assert res["cgroup_accounting"]["pids"]["current"] >= 0 and "warnings" not in res
        assert res["cgroup_accounting"]["memory"]["peak"] > 0
        with contextlib.suppress(OSError):
            while Path(f"/proc/{left}/cmdline").read_bytes():
                pass  # killed, if this loop ends
    finally:
        agent.kill()
        peer.close()


CONFIG = """
job_dir: jobs
database: {path: apsis.db}
runs: {retention: off}
procstar:
  agent: {enable: true, server: {host: 127.0.0.1, port: 0, plain: true}}
"""
# Fills so many megabytes of memory, and says so.
FILL = "argv: [/usr/bin/python3, -c, 'x = bytearray(%d << 20); print(len(x))']"
PROGRAMS = {
    "little": f"{FILL % 1}, resources: {{mem_max_gb: 0.1}}",
    "much": f"{FILL % 300}, resources: {{mem_max_gb: 0.1}}",
    "free": FILL % 150,
}
JOBS = {
    f"{name}-{group}": f"program: {{type: procstar, group_id: {group}, {program}}}\n"
    for name, program in PROGRAMS.items()
    for group in ("lent", "bare")
}


def test_a_memory_limit_ends_who_exceeds_it_or_the_run_log_says_that_it_cannot(
    subtree: Path, tmp_path: Path
) -> None:
    (tmp_path / "apsis.yaml").write_text(CONFIG)
    server = Server(tmp_path, JOBS)
    ends = {}
    with server.running():
        (port,) = re.findall(r"agents may connect: address=\S+ port=(\d+)", server.log())
        there = ("--agent", "--agent-host", "127.0.0.1", "--agent-port", port)
        agents = [Agent(*there, "--group-id", "lent", within=subtree), Agent(*there, "--group-id", "bare")]
        try:
            for job_id, run_id in [(job_id, server.schedule({"job_id": job_id})) for job_id in JOBS]:
                run = server.until(run_id, *ENDS)
                ends[job_id] = (run["state"], "\n".join(server.messages(run_id)))
                assert ("cgroup_accounting" in run["meta"]["program"]) is job_id.endswith("lent")
        finally:
            for agent in agents:
                agent.kill()
    for job_id, (state, log) in ends.items():
        assert state == ("failure" if job_id == "much-lent" else "success"), (job_id, log)
        # Said once, in the log of the run, where there is a limit and no way to apply it.
        unapplied = "memory_max=100000000 not applied: the agent has no cgroup delegated to it"
        assert log.count(unapplied) == (1 if job_id in ("little-bare", "much-bare") else 0), (job_id, log)
    assert ends["much-lent"][1].endswith("killed by SIGKILL (it needed more memory than its limit)")
