"""The agent on the server's own host: what becomes of it, and of its programs, when either ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from server import ENDS, Server

from apsislib.errors import BadRequest
from apsislib.localagent import Identity, LocalAgent

JOBS = {
    "long": (
        "program:\n  type: procstar-shell\n"
        '  command: echo begun; until test -e "$GO"; do sleep 0.05; done; echo done\n'
    ),
    "echo": "program: {type: procstar, argv: [/bin/echo, here]}\n",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    with Server(tmp_path, JOBS).running() as server:
        yield server


def identity(server: Server) -> dict[str, str | int]:
    found: dict[str, str | int] = json.loads((server.directory / "apsis.db.agent.json").read_text())
    return found


def pid(server: Server) -> int:
    return int(identity(server)["pid"])


def begin(server: Server) -> str:
    run_id = server.schedule({"job_id": "long"})
    server.until(run_id, "running")
    server.until_printed(run_id, b"begun\n")
    return run_id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_started_again_finds_agent_and_programs(server: Server, number: int) -> None:
    run_id, agent = begin(server), pid(server)
    server.end(number)
    (server.directory / "go").touch()  # it ends while no server is there
    server.start()
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert server.output(run_id) == b"begun\ndone\n"
    assert pid(server) == agent
    echo = server.schedule({"job_id": "echo"})
    assert server.until(echo, *ENDS)["state"] == "success"


def test_a_server_has_room_for_many_agents_and_programs_have_the_limits_of_before(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    try:
        with Server(
            tmp_path, {"limit": "program: {type: procstar-shell, command: ulimit -Sn}\n"}
        ).running() as server:
            assert server.process is not None
            soft, _ = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
            assert soft == min(65536, before[1])
            run_id = server.schedule({"job_id": "limit"})
            assert server.until(run_id, *ENDS)["state"] == "success"
            assert server.output(run_id) == b"300\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_agent_that_dies_is_replaced_and_its_runs_are_errors_at_once(server: Server) -> None:
    server.write("sleeps", "program: {type: procstar, argv: [/bin/sleep, '600']}\n")
    assert server.command("reload-jobs").returncode == 0
    run_id = server.schedule({"job_id": "sleeps"})
    program = server.until(run_id, "running")["meta"]["program"]["proc_stat"]["pid"]
    before = identity(server)
    os.kill(int(before["pid"]), signal.SIGKILL)
    try:
        server.until(run_id, "error")  # the reconnect timeout is an hour
        assert "the agent was restarted" in server.messages(run_id)[-1]
    finally:
        os.kill(program, signal.SIGKILL)
    after = identity(server)
    assert after["pid"] != before["pid"]
    assert (after["conn_id"], after["port"]) == (before["conn_id"], before["port"])
    assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"


def test_an_agent_is_replaced_by_a_server_that_holds_thousands_of_descriptors(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    local = LocalAgent(tmp_path / "agent.json")
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]  # as many as 400 agents take
    try:
        with socket.create_server(("127.0.0.1", 0)) as door:
            local.start(door.getsockname()[1])
            for _ in range(2):
                first = local.identity.pid
                os.kill(first, signal.SIGKILL)
                end = time.monotonic() + 60
                while local.identity.pid == first:
                    assert time.monotonic() < end
                    time.sleep(0.01)
    finally:
        local.stop()
        os.kill(local.identity.pid, signal.SIGKILL)
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_agent_that_ends_after_a_restart_leaves_no_zombie(server: Server) -> None:
    first = pid(server)
    assert server.process is not None
    requests.post(f"{server.url[:-3]}/control/shut_down?restart", timeout=60).raise_for_status()
    end = time.monotonic() + 60
    while "serving http" not in server.log().partition(" restarting\n")[2]:
        assert time.monotonic() < end and server.process.poll() is None, server.process.poll()
        time.sleep(0.02)
    os.kill(first, signal.SIGKILL)
    while pid(server) == first:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not Path(f"/proc/{first}").exists()


def test_the_secret_of_the_agent_is_for_its_owner_only(server: Server) -> None:
    assert (server.directory / "apsis.db.agent.json").stat().st_mode & 0o777 == 0o600
    token = str(identity(server)["token"])
    assert len(token) > 30 and token not in server.log()
    assert token.encode() not in Path(f"/proc/{pid(server)}/cmdline").read_bytes()


def test_an_agent_that_died_while_no_server_was_there_is_replaced_at_the_start(server: Server) -> None:
    before = pid(server)
    assert server.end() == 0
    server.end_agent()
    server.start()
    assert pid(server) != before
    assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"


def test_an_agent_whose_pid_was_not_written_any_more_is_found_and_stays_the_only_one(server: Server) -> None:
    """Two of one conn_id would drive each other away, and each end the runs of the other."""
    agent = pid(server)
    run_id = begin(server)
    server.end(signal.SIGKILL)
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    text = json.dumps(identity(server) | {"pid": ended.pid})
    (server.directory / "apsis.db.agent.json").write_text(text)
    server.start()
    (server.directory / "go").touch()
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert server.output(run_id) == b"begun\ndone\n"
    assert pid(server) == agent


def test_the_port_of_an_agent_that_died_may_be_anothers(server: Server) -> None:
    before = identity(server)
    assert server.end() == 0
    server.end_agent()
    with socket.create_server(("127.0.0.1", int(before["port"]))):
        server.start()
        assert identity(server)["port"] != before["port"]
        assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"


def test_another_process_with_the_pid_is_not_taken_for_the_agent() -> None:
    mine = Identity(1234, "token", "some-conn-id", os.getpid())
    assert not mine.alive()
    assert not Identity(1234, "token", "some-conn-id", 0).alive()


def test_a_file_that_is_no_identity_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    assert Identity.read(path) is None
    for text in ("{", "[]", '{"port": 1}'):
        path.write_text(text)
        with pytest.raises(BadRequest, match=r"agent\.json: can't be read: .*; remove it if no program"):
            Identity.read(path)


def test_a_server_that_is_to_end_while_it_restarts_ends(server: Server) -> None:
    """However the two orders come together: a service manager does not wait for ever."""
    base = server.url.removesuffix("/v1")
    for pause in (0.0, 0.02, 0.1):
        requests.post(f"{base}/control/shut_down", params={"restart": "true"}, timeout=60).raise_for_status()
        time.sleep(pause)  # somewhere in the midst of it
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        server.start()


def test_no_signal_that_a_server_knows_ends_it_while_it_restarts(server: Server) -> None:
    """A service manager reloads and a log rotator asks whenever they like; unheeded, either signal kills."""
    requests.post(f"{server.url[:-3]}/control/shut_down?restart", timeout=60).raise_for_status()
    assert server.process is not None
    end = time.monotonic() + 60
    while "serving http" not in server.log().partition(" restarting\n")[2]:
        assert time.monotonic() < end and server.process.poll() is None, server.process.poll()
        for number in (signal.SIGHUP, signal.SIGUSR1):
            server.process.send_signal(number)
        time.sleep(0.001)
    for _ in range(200):
        server.process.send_signal(signal.SIGUSR1)
        server.get("/alive")
    assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"
    assert "apsislib/driver/timer.py" in server.log()  # where each thread is


def test_an_agent_that_could_not_be_replaced_is_tried_again(server: Server) -> None:
    before, log = identity(server), server.directory / "apsis.db.agent.log"
    log.rename(log.with_suffix(".old"))
    log.mkdir()  # so that no process can be given it
    os.kill(int(before["pid"]), signal.SIGKILL)
    end = time.monotonic() + 60
    while "can't start the local agent" not in server.log():
        assert time.monotonic() < end
        time.sleep(0.05)
    log.rmdir()
    assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"
