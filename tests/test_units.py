"""The units of packaging/, under a real systemd: server and agent from apsis.pyz, as docs/install.md says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from booted import Booted, booted
from server import ENDS, ROOT

CONFIG = """
job_dir: jobs
database: {path: /var/lib/apsis/apsis.db}
runs: {retention: off}
procstar: {agent: {enable: true, server: {host: 127.0.0.1, plain: true}}}
"""
LOCAL = "procstar: {agent: {local: true}}\n"
# Until goes_on() lets it.
SLOW = """
program:
  type: procstar-shell
  command: echo begun; until test -e /run/go; do sleep 0.05; done; id -un
"""
JOBS = {
    "who": "program: {type: procstar-shell, command: 'id -un; pwd; grep NoNewPrivs: /proc/self/status'}\n",
    "slow": SLOW,
    "leaves": "program: {type: procstar-shell, command: 'grep ^0: /proc/self/cgroup; sleep 600 & echo $!'}\n",
    "vacuum": "program: {type: vacuum}\n",
    "allowed": "program: {type: stats, path: /var/log/apsis/stats.json}\n",
    "forbidden": "program: {type: stats, path: /var/tmp/../../etc/apsis/stats.json}\n",
}
SPECS = """
{"specs": {"p": {"argv": ["/bin/echo", "hi"], "fds": [["stdout", {"capture": {"encoding": "utf-8"}}]]}}}
"""
LOG = "[Service]\nStandardOutput=append:/run/{0}.log\nStandardError=append:/run/{0}.log\n"
WATCHDOG = "/etc/systemd/system/apsis.service.d/watchdog.conf"
HASTE = "/etc/systemd/system/apsis.service.d/haste.conf"
UNITS = ("apsis.service", "apsis-agent.service")


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, str(ROOT / "packaging" / "build.py"), str(into)], check=True, timeout=100)
    return into / "apsis.pyz"


class Host:
    """What these tests do on a host with the units."""

    def __init__(self, systemd: Booted) -> None:
        self.systemd = systemd
        self.run = systemd.run

    def apsis(self, *words: str) -> Any:
        """What a command of the client, the checkout's, answers, as soon as there is a server."""
        argv = [sys.executable, str(ROOT / "apsis.py"), *words, "--format", "json"]
        end = time.monotonic() + 60
        while not (answer := self.run(*argv, check=False)):
            assert time.monotonic() < end, self.run(*argv)
            time.sleep(0.05)
        return json.loads(answer)

    def make(self, job_id: str) -> str:
        return str(self.apsis("schedule", "now", job_id)["run_id"])

    def until(self, run_id: str, *states: str) -> str:
        end = time.monotonic() + 60
        while (state := self.apsis("run", run_id)["state"]) not in states:
            assert time.monotonic() < end, f"{run_id}: {state}"
            time.sleep(0.05)
        return str(state)

    def output(self, run_id: str) -> list[str]:
        return self.run(sys.executable, str(ROOT / "apsis.py"), "output", run_id).split("\n")

    def slow(self) -> str:
        self.run("rm", "-f", "/run/go")
        run_id = self.make("slow")
        self.until(run_id, "running")
        return run_id

    def goes_on(self, run_id: str, user: str) -> None:
        """The run has survived whatever has happened, and comes to its end."""
        assert self.until(run_id, "running") == "running"
        self.run("touch", "/run/go")
        assert self.until(run_id, *ENDS) == "success"
        assert self.output(run_id) == ["begun", user, ""]

    def pid(self, unit: str) -> str:
        """Its main process, once it is ready."""
        end = time.monotonic() + 90
        while True:
            # Together, for it may be killed and started again at any time.
            shown = self.run("systemctl", "show", "--property=ActiveState,MainPID", unit).split()
            found = dict(line.split("=") for line in shown)
            if found["ActiveState"] == "active" and int(found["MainPID"]) > 1:
                return found["MainPID"]
            assert time.monotonic() < end, found
            time.sleep(0.05)

    def await_new(self, unit: str, pid: str) -> None:
        """Returns once `unit` runs by another process, and is ready."""
        end = time.monotonic() + 90
        while self.pid(unit) == pid:
            assert time.monotonic() < end, self.systemd.log()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def host(pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    files = {f"systemd/system/{unit}": (ROOT / "packaging" / unit).read_text() for unit in UNITS}
    # There is no journal to log to.
    files |= {f"systemd/system/{unit}.d/log.conf": LOG.format(unit) for unit in UNITS}
    files["apsis/apsis.yaml"] = CONFIG
    files["apsis/specs.json"] = SPECS
    files["apsis/server.env"] = "PROCSTAR_AGENT_TOKEN=secret\n"
    files["apsis/agent.env"] = "PROCSTAR_AGENT_TOKEN=secret\nAPSIS_AGENT_OPTIONS=--plain\n"
    files |= {f"apsis/jobs/{job_id}.yaml": text for job_id, text in JOBS.items()}
    directory = tmp_path_factory.mktemp("host")
    with booted(directory, files, {"apsis": pyz}, ("apsis", "apsis-agent")) as systemd:
        systemd.run("install", "-d", "-o", "apsis-agent", "-g", "apsis-agent", "/var/lib/apsis-agent")
        systemd.run("systemctl", "start", *UNITS)
        yield Host(systemd)
        print(systemd.run("cat", *(f"/run/{unit}.log" for unit in UNITS)))


def test_systemd_finds_nothing_to_complain_of(host: Host) -> None:
    for unit in UNITS:
        assert host.run("systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{unit}") == ""
        assert host.systemd.show(unit, "LoadError").strip('" ') == ""
    assert "Unknown key" not in host.systemd.log()


def test_the_server_is_shut_in(host: Host) -> None:
    """systemd's own measure, from 0.0 to 10.0 (which nothing shuts in)."""
    host.run("systemd-analyze", "security", "--threshold=20", "apsis.service")


def test_a_program_runs_by_the_agents_user_and_may_become_another(host: Host) -> None:
    run_id = host.make("who")
    assert host.until(run_id, *ENDS) == "success"
    assert host.output(run_id) == ["apsis-agent", "/var/lib/apsis-agent", "NoNewPrivs:\t0", ""]
    assert host.run("ps", "-o", "user=", "-p", host.pid("apsis.service")).strip() == "apsis"
    assert host.systemd.show("apsis.service", "StatusText").endswith("running, 0 waiting")


def test_programs_of_the_agent_have_cgroups_of_their_own(host: Host) -> None:
    """Delegate=yes lends the agent its cgroup: accounting, and the end of what a program leaves behind."""
    run_id = host.make("leaves")
    assert host.until(run_id, *ENDS) == "success"
    program = host.apsis("run", run_id)["meta"]["program"]
    assert program["cgroup_accounting"]["cpu_stat"]["usage_usec"] > 0
    cgroup, left, _ = host.output(run_id)
    assert cgroup.startswith("0::/system.slice/apsis-agent.service/procstar"), cgroup
    end = time.monotonic() + 60
    while host.run("ps", "-o", "pid=", "-p", left, check=False).strip():
        assert time.monotonic() < end, "what the program left behind lives on"
        time.sleep(0.05)


def test_an_agent_by_hand_has_them_in_a_scope_as_the_guide_says(host: Host) -> None:
    guide = (ROOT / "docs" / "agents.md").read_text()
    (start,) = re.findall(
        r"^    systemd-run --user (--scope .*) apsis agent --agent \.\.\.$", guide, re.MULTILINE
    )
    words = "/usr/local/bin/apsis agent --print --log-level info /etc/apsis/specs.json"
    # There is no systemd of a user here, so that of the machine is asked to do the same.
    said = host.run("/bin/sh", "-c", f"systemd-run --quiet {start} {words} 2>&1")
    assert '"usage_usec"' in said and '"text": "hi\\n"' in said, said


def test_the_server_writes_where_it_may_and_nowhere_else(host: Host) -> None:
    for job_id, end in {"vacuum": "success", "allowed": "success", "forbidden": "error"}.items():
        assert host.until(host.make(job_id), *ENDS) == end, job_id
    assert host.run("stat", "-c", "%a %U", "/var/lib/apsis/apsis.db") == "640 apsis\n"


@pytest.mark.parametrize("how", ["restart", "kill -s KILL --kill-who=main", "apsisctl"])
def test_runs_survive_the_server(host: Host, how: str) -> None:
    run_id, before = host.slow(), host.pid("apsis.service")
    if how == "apsisctl":
        host.run(sys.executable, str(ROOT / "apsis.py"), "restart")
        assert host.pid("apsis.service") == before
    else:
        host.run("systemctl", *how.split(), "apsis.service")
        host.await_new("apsis.service", before)
    host.goes_on(run_id, "apsis-agent")


def test_a_server_that_hangs_is_ended_by_the_watchdog_and_started_again(host: Host) -> None:
    # A minute is too long for a test.
    host.run("/bin/sh", "-c", f"echo '[Service]\nWatchdogSec=10' > {WATCHDOG}; systemctl daemon-reload")
    host.run("systemctl", "restart", "apsis.service")
    run_id, before = host.slow(), host.pid("apsis.service")
    starts = int(host.systemd.show("apsis.service", "NRestarts"))
    host.run("kill", "-STOP", before)
    host.await_new("apsis.service", before)
    assert int(host.systemd.show("apsis.service", "NRestarts")) > starts
    host.goes_on(run_id, "apsis-agent")
    host.run("/bin/sh", "-c", f"rm {WATCHDOG}; systemctl daemon-reload; systemctl restart apsis.service")


def test_an_agent_that_is_stopped_reports_its_programs_and_leaves_none(host: Host) -> None:
    run_id = host.slow()
    host.run("systemctl", "stop", "apsis-agent.service")
    assert host.until(run_id, *ENDS) == "failure"
    assert host.run("pgrep", "-u", "apsis-agent", check=False) == ""
    host.run("systemctl", "start", "apsis-agent.service")
    assert host.until(host.make("who"), *ENDS) == "success"


def test_programs_of_an_agent_that_is_killed_end_with_it(host: Host) -> None:
    host.slow()
    before = host.pid("apsis-agent.service")
    host.run("systemctl", "kill", "-s", "KILL", "--kill-who=main", "apsis-agent.service")
    host.await_new("apsis-agent.service", before)
    assert host.run("pgrep", "-u", "apsis-agent").split() == [host.pid("apsis-agent.service")]


def test_an_agent_that_drains_is_replaced_when_its_programs_have_ended(host: Host) -> None:
    run_id, before = host.slow(), host.pid("apsis-agent.service")
    host.run("systemctl", "kill", "-s", "USR1", "--kill-who=main", "apsis-agent.service")
    host.goes_on(run_id, "apsis-agent")
    host.await_new("apsis-agent.service", before)
    assert host.until(host.make("who"), *ENDS) == "success"


def test_a_local_agent_lives_on_with_its_programs(host: Host) -> None:
    host.run("systemctl", "stop", "apsis-agent.service")
    host.run(
        "/bin/sh",
        "-c",
        f"sed -i '/^procstar/d' /etc/apsis/apsis.yaml; echo '{LOCAL}' >> /etc/apsis/apsis.yaml",
    )
    host.run("systemctl", "restart", "apsis.service")
    run_id, before = host.slow(), host.pid("apsis.service")
    host.run("systemctl", "restart", "apsis.service")
    assert host.pid("apsis.service") != before
    host.goes_on(run_id, "apsis")


def test_a_server_that_is_started_on_a_full_disk_is_tried_until_there_is_room(host: Host) -> None:
    # By default it would give up at the sixth time in ten seconds.
    assert host.systemd.show("apsis.service", "StartLimitIntervalUSec") == "0"
    ballast = "/var/lib/apsis/ballast"
    host.run("systemctl", "stop", "apsis.service")
    host.run("mount", "-t", "tmpfs", "-o", "size=256k", "apsis-test", "/var/lib/apsis")
    try:
        host.run("/bin/sh", "-c", f"head -c 1m /dev/zero > {ballast}", check=False)
        host.run("/bin/sh", "-c", f"echo '[Service]\nRestartSec=50ms' > {HASTE}; systemctl daemon-reload")
        host.run("systemctl", "start", "--no-block", "apsis.service")
        end = time.monotonic() + 90
        while int(host.systemd.show("apsis.service", "NRestarts")) < 2:
            assert time.monotonic() < end, host.systemd.log()
            time.sleep(0.1)
        said = host.run("tail", "-n", "1", "/run/apsis.service.log")
        assert "error: database /var/lib/apsis/apsis.db: " in said and "make room on" in said
        host.run("mount", "-o", "remount,size=64m", "/var/lib/apsis")
        host.pid("apsis.service")
    finally:
        host.run("systemctl", "stop", "apsis.service")
        host.run("umount", "/var/lib/apsis")
        host.run("/bin/sh", "-c", f"rm -f {HASTE}; systemctl daemon-reload; systemctl start apsis.service")
