"""Programs of another user, by the sudo of this machine: run, stopped, timed out, refused.

The agent runs as a user without rights, who may become another one by sudo. Two rules of sudoers make
two kinds of sudo: one that stays and passes signals on, as usual, and one that becomes the program, so
that the agent may not signal it.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from other_user import OTHER, RUNNER, users
from server import ENDS, Server

RULES = f"""
Defaults env_reset, use_pty
Defaults:%s !use_pty, !pam_session, !pam_setcred, !pam_acct_mgmt
{RUNNER} ALL=({OTHER}) NOPASSWD:SETENV: %s
"""
PROGRAMS = "/usr/bin/whoami, /bin/bash, /usr/bin/bash"
KILL = ", /bin/kill, /usr/bin/kill"
STAYS = RULES % ("nobody", PROGRAMS + KILL)
BECOMES = RULES % (RUNNER, PROGRAMS + KILL)
BECOMES_AND_MAY_NOT_KILL = RULES % (RUNNER, PROGRAMS)

CONFIG = """
job_dir: jobs
database: {path: apsis.db}
runs: {retention: off}
procstar:
  agent:
    enable: true
    server: {host: 127.0.0.1, port: 0, plain: true}
    run: {output_interval: 0.05}
"""
ENDURE = f"""
program:
  type: procstar
  argv: [/usr/bin/bash, -c, "trap '' TERM; echo $$; while :; do sleep 0.1; done"]
  sudo_user: {OTHER}
"""
JOBS = {
    "who": f"program: {{type: procstar, argv: [/usr/bin/whoami], sudo_user: {OTHER}}}\n",
    "root": "program: {type: procstar, argv: [/usr/bin/whoami], sudo_user: root}\n",
    "cat": f"program: {{type: procstar, argv: [/bin/cat, /dev/null], sudo_user: {OTHER}}}\n",
    "obey": f"""
program:
  type: procstar-shell
  command: echo $$; while :; do sleep 0.1; done
  sudo_user: {OTHER}
  stop: {{signal: TERM, grace_period: 60 s}}
""",
    "endure": ENDURE + "  stop: {grace_period: 0.3 s}\n",
    "slow": f"""
program:
  type: procstar-shell
  command: echo $$; while :; do sleep 0.1; done
  sudo_user: {OTHER}
  timeout: {{duration: 0.5 s}}
""",
    "slow-and-deaf": ENDURE + "  timeout: {duration: 0.5 s}\n  stop: {grace_period: 0.3 s}\n",
    "short": f"""
program:
  type: procstar-shell
  command: echo $$; while [ ! -e %s ]; do sleep 0.05; done
  sudo_user: {OTHER}
  stop: {{grace_period: 0.2 s}}
""",
}
PIDS: list[int] = []  # of programs that were started


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    (tmp_path / "apsis.yaml").write_text(CONFIG)
    gate = Path(f"/tmp/apsis-test-{os.getpid()}-{tmp_path.name}")  # where the other user may look
    server = Server(tmp_path, JOBS | {"short": JOBS["short"] % gate})
    with users(tmp_path, request.param) as made, server.running():
        (port,) = re.findall(r"agents may connect: address=\S+ port=(\d+)", server.log())
        try:
            with made.agent("--agent-host", "127.0.0.1", "--agent-port", port):
                yield server
        finally:
            gate.unlink(missing_ok=True)
            for pid in filter(runs, PIDS):  # of a test that has failed
                os.kill(pid, signal.SIGKILL)


def printed_pid(server: Server, run_id: str) -> int:
    """What a program that goes on has printed: its process ID."""
    server.until(run_id, "running", *ENDS)
    while not (text := server.output(run_id)).endswith(b"\n"):
        assert server.run(run_id)["state"] not in ENDS, (server.messages(run_id), text)
        threading.Event().wait(0.02)
    PIDS.append(int(text))
    return PIDS[-1]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


every_sudo = pytest.mark.parametrize("server", [STAYS, BECOMES], indirect=True, ids=["stays", "becomes"])


@every_sudo
def test_a_program_of_another_user_runs_is_stopped_killed_and_times_out(server: Server) -> None:
    run_id = server.schedule({"job_id": "who"})
    assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
    assert server.output(run_id).decode() == OTHER + "\n"

    for job_id, name in (("obey", "SIGTERM"), ("endure", "SIGKILL")):
        run_id = server.schedule({"job_id": job_id})
        pid = printed_pid(server, run_id)
        server.post(f"/runs/{run_id}/stop")
        run = server.until(run_id, *ENDS)
        messages = server.messages(run_id)
        assert run["state"] == "failure" and f"killed by {name}" in messages[-1], messages
        assert not runs(pid), f"the run has ended, and its program goes on: {messages}"

    for job_id in ("slow", "slow-and-deaf"):
        run_id = server.schedule({"job_id": job_id})
        pid = printed_pid(server, run_id)
        assert server.until(run_id, *ENDS)["state"] == "failure"
        messages = server.messages(run_id)
        assert "timeout after 0.5 s" in messages[-1] and not runs(pid), messages


@pytest.mark.parametrize("server", [BECOMES], indirect=True, ids=["becomes"])
def test_a_signal_that_is_refused_goes_through_sudo_and_the_run_log_says_so(server: Server) -> None:
    run_id = server.schedule({"job_id": "slow"})
    assert server.until(run_id, *ENDS)["state"] == "failure"
    messages = server.messages(run_id)
    refused = "SIGTERM was refused (Operation not permitted (os error 1)): trying kill through sudo"
    assert any(refused in message for message in messages), messages
    assert messages[-1].endswith("killed by SIGTERM (timeout after 0.5 s)"), messages


@pytest.mark.parametrize("server", [BECOMES_AND_MAY_NOT_KILL], indirect=True, ids=["becomes"])
def test_what_is_not_permitted_is_said_and_a_program_that_goes_on_keeps_its_run(server: Server) -> None:
    for job_id, user in (("root", "root"), ("cat", OTHER)):
        run_id = server.schedule({"job_id": job_id})
        assert server.until(run_id, *ENDS)["state"] == "failure"
        text = f"exit code 1: sudo may not run it as {user}: a password is required"
        assert server.messages(run_id)[-1].endswith(text), server.messages(run_id)
    run_id = server.schedule({"job_id": "short"})
    pid = printed_pid(server, run_id)
    server.post(f"/runs/{run_id}/stop")
    for name in ("SIGTERM", "SIGKILL"):
        text = f"{name} was not sent: kill through sudo failed: sudo: a password is required"
        while not any(text in message for message in server.messages(run_id)):
            threading.Event().wait(0.05)
    assert server.run(run_id)["state"] == "stopping" and runs(pid)
    gate = re.findall(r"/tmp/apsis-test-\S+", server.jobs.joinpath("short.yaml").read_text())[0]
    Path(gate).touch()
    assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
