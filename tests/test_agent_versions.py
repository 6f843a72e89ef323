"""A whole server, over TLS, under agents that are not ours, of versions 0.4.3 to 0.7.5 at once."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from agent_peer import ROOT, Agent
from certificates import certificate
from foreign_agent import ForeignAgent
from server import ENDS, Server

# Those whose habits differ; what lies between behaves like the one before.
VERSIONS = {"0.4.3": (0, 4, 3), "0.4.4": (0, 4, 4), "0.5.0": (0, 5, 0), "0.7.5": (0, 7, 5)}
# `serve`, but a start without a word is asked about at once, and pings are frequent.
SERVE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import agent_server, apsis, programs.process
agent_server.AgentServer.__init__.__kwdefaults__.update(ping=0.2)
programs.process.PROBE = 0.5
sys.exit(apsis.main(sys.argv[1:]))
"""
CONFIG = """
job_dir: jobs
database: {path: apsis.db}
runs: {retention: off}
procstar:
  agent:
    enable: true
    server: {host: 127.0.0.1, port: 0, access_token: s3cret, tls: {cert_path: tls/server.pem}}
    connection: {reconnect_timeout: 2 min}
    run: {output_interval: 0.05, update_interval: 0.1}
"""
LINES = 300_000
SHELL = {
    "echo": "echo here",
    "fail": "exit 3",
    "killed": "kill -9 $$",
    "much": f"seq {LINES}",
    "count": "for i in `seq 20`; do echo $i; sleep 0.05; done",
    "stopped": "echo ready; exec sleep 60",
    "deaf": "trap '' TERM; echo ready; while :; do sleep 0.1; done",
    "slow": "exec sleep 60",
    "limited": "true",
}
MORE = {
    "deaf": "stop: {grace_period: 0.2 s}",
    "slow": "timeout: {duration: 0.3 s}",
    "limited": "resources: {mem_max_gb: 1}",
}
JOBS = {
    name: "params: [group]\nprogram:\n  type: procstar-shell\n  group_id: '{{ group }}'\n"
    f"  command: {command!r}\n  {MORE.get(name, '')}\n"
    for name, command in SHELL.items()
}
JOBS["missing"] = "params: [group]\nprogram: {type: procstar, argv: [/no/such], group_id: '{{ group }}'}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("versions")
    certificate(directory / "tls", rsa=True)
    (directory / "apsis.yaml").write_text(CONFIG)
    server = Server(directory, JOBS)
    argv = [sys.executable, "-c", SERVE, "serve", "--config", str(directory / "apsis.yaml")]
    with open(directory / "server.log", "ab") as log:
        server.process = subprocess.Popen(
            [*argv, "--port", str(server.port)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        server.await_running()
        yield server
        assert server.end() == 0, server.log()
        assert "Traceback" not in server.log(), server.log()
    finally:
        if server.process.poll() is None:
            server.kill()


def address(server: Server) -> tuple[str, int]:
    (found,) = re.findall(r"agents may connect: address=(\S+) port=(\d+)", server.log())
    return found[0], int(found[1])


def trust(server: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(server.directory / "tls" / "server.pem"))


@pytest.fixture(params=VERSIONS)
def agent(server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[str, ForeignAgent]]:
    agent = ForeignAgent(
        address(server), VERSIONS[request.param], request.param, trust(server), "s3cret", seed=7
    )
    yield request.param, agent
    agent.close()
    assert agent.damage == []


def connections(server: Server) -> dict[str, Any]:
    url = server.url.replace("/api/v1", "/api/procstar/connections")
    found: dict[str, Any] = requests.get(url, timeout=30).json()
    return found


def test_programs_run_and_end_as_they_should(server: Server, agent: tuple[str, ForeignAgent]) -> None:
    group, foreign = agent

    def schedule(job_id: str) -> str:
        return server.schedule({"job_id": job_id, "args": {"group": group}})

    def ended(run_id: str) -> tuple[str, str]:
        state = server.until(run_id, *ENDS)["state"]
        return state, server.messages(run_id)[-1]

    def ready(run_id: str) -> str:
        server.until(run_id, "running")
        while server.output(run_id) != b"ready\n":
            time.sleep(0.02)
        return run_id

    started = {job_id: schedule(job_id) for job_id in ("echo", "fail", "killed", "missing", "much", "slow")}
    many = [schedule("echo") for _ in range(20)]
    stopped, deaf = ready(schedule("stopped")), ready(schedule("deaf"))
    for run_id in (stopped, deaf):
        server.post(f"/runs/{run_id}/stop")

    assert ended(started["echo"])[0] == "success" and server.output(started["echo"]) == b"here\n"
    assert ended(started["fail"]) == ("failure", "failure: exit code 3")
    assert ended(started["killed"]) == ("failure", "failure: killed by SIGKILL")
    state, message = ended(started["missing"])
    assert state == "error" and "execve failed: /no/such: No such file or directory" in message
    assert ended(started["slow"]) == ("failure", "failure: killed by SIGTERM (timeout after 0.3 s)")
    assert ended(stopped) == ("failure", "failure: killed by SIGTERM")
    assert ended(deaf) == ("failure", "failure: killed by SIGKILL")
    assert all(ended(run_id)[0] == "success" for run_id in many)
    assert ended(started["much"])[0] == "success"
    assert server.output(started["much"]) == b"".join(b"%d\n" % i for i in range(1, LINES + 1))

    # A connection cut while a program runs costs nothing.
    run_id = schedule("count")
    server.until(run_id, "running")
    foreign.cut()
    assert foreign.registered.wait(30)
    assert ended(run_id)[0] == "success"
    assert server.output(run_id) == b"".join(b"%d\n" % i for i in range(1, 21))
    assert foreign.connections == 2 and not foreign.dropped

    # Agents before 0.5.0 say nothing at all to a start with a limit.
    run_id = schedule("limited")
    state, message = ended(run_id)
    log = "\n".join(server.messages(run_id))
    if foreign.version < (0, 5, 0):
        assert state == "error" and "too old or refused the specification" in message
        assert "0.5.0 or later" in message
        assert [message["type"] for message in foreign.dropped] == ["ProcStartRequest"]
    else:
        assert state == "success" and not foreign.dropped
        assert "gave no account of memory: whether its limit was applied can't be told" in log

    # It takes no more work, and leaves once its records are deleted, without confirming the last one.
    foreign.drain()
    assert foreign.done.wait(30), "its records are not deleted"
    while f"foreign-{group}" in connections(server):
        time.sleep(0.02)


# -- TLS -------------------------------------------------------------------------------------------


def upgrade_and_register() -> bytes:
    """What a client sends, by hand: the upgrade, and a Register in a masked frame."""
    text = (
        "85 a474797065 a85265676973746572"
        "a4636f6e6e 83 a7636f6e6e5f6964 a362796f a867726f75705f6964 a362796f"
        "ae726573747269637465645f657865 c0"
        "a470726f63 89 a3706964 01 a470706964 01 a3756964 00 a465756964 00 a8757365726e616d65 c0"
        "a3676964 00 a465676964 00 a967726f75706e616d65 c0 a8686f73746e616d65 a178"
        "ac6163636573735f746f6b656e a6733363726574 ae73687574646f776e5f7374617465 a6616374697665"
    )
    payload = bytes.fromhex(text)
    mask = b"\x12\x34\x56\x78"
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    head = b"\x82" + bytes([0x80 | 126]) + len(payload).to_bytes(2, "big") + mask
    request = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    return request + head + masked


def test_openssl_s_client_is_served_and_sees_a_certificate_renewed_by_sighup(server: Server) -> None:
    """Old agents may leave proc_ids out, as this one does."""
    cert = server.directory / "tls" / "server.pem"

    def register(ca: Path) -> tuple[bytes, str]:
        host, port = address(server)
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", "localhost", "-quiet"]
            + ["-verify_return_error", "-verify_hostname", "localhost", "-CAfile", str(ca)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert client.stdin is not None and client.stdout is not None and client.stderr is not None
        try:
            client.stdin.write(upgrade_and_register())
            client.stdin.flush()
            got = b""
            while piece := client.stdout.read1(65536):
                got += piece
                if b"Registered" in got:
                    break
        except BrokenPipeError:
            got = b""
        finally:
            client.kill()
            said = client.communicate()[1].decode()
        return got, said

    got, said = register(cert)
    assert got.startswith(b"HTTP/1.1 101 "), (got, said)
    assert got.endswith(b"\r\n\r\n\x82\x11" + bytes.fromhex("81a474797065aa52656769737465726564")), got
    old = cert.with_name("old.pem")
    cert.rename(old)
    certificate(cert.parent, rsa=True)
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    while "was loaded again" not in server.log():
        threading.Event().wait(0.02)
    got, said = register(old)
    assert got == b"" and "verify error" in said, said
    assert register(cert)[0].startswith(b"HTTP/1.1 101 ")
    # A pair that does not fit is refused, and the one in use stays.
    cert.with_suffix(".key").write_text("no key")
    server.process.send_signal(signal.SIGHUP)
    while "can't use the certificate" not in server.log():
        threading.Event().wait(0.02)
    assert register(cert)[0].startswith(b"HTTP/1.1 101 ")


def test_our_agent_finds_certificate_and_token_in_its_environment(server: Server) -> None:
    host, port = address(server)
    env = {
        "PROCSTAR_AGENT_HOST": "localhost",
        "PROCSTAR_AGENT_CERT": str(server.directory / "tls" / "server.pem"),
        "PROCSTAR_AGENT_TOKEN": "s3cret",
        "PROCSTAR_GROUP_ID": "ours",
    }
    agent = Agent("--agent", "--agent-port", str(port), plain=False, env=env)
    try:
        run_id = server.schedule({"job_id": "echo", "args": {"group": "ours"}})
        assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
    finally:
        agent.process.kill()
        print(agent.end()[2])


def test_an_agent_that_comes_back_without_its_programs_ends_their_runs_at_once(server: Server) -> None:
    """A process of its own may go on; its output is lost, and nobody looks after it any more."""
    _, port = address(server)
    env = {
        "PROCSTAR_AGENT_CERT": str(server.directory / "tls" / "server.pem"),
        "PROCSTAR_AGENT_TOKEN": "s3cret",
    }
    argv = ("--agent", "--agent-host", "localhost", "--agent-port", str(port), "--group-id", "back")
    first = Agent(*argv, "--conn-id", "same", plain=False, env=env)
    run_id = server.schedule({"job_id": "stopped", "args": {"group": "back"}})
    server.until(run_id, "running")
    pid = server.run(run_id)["meta"]["program"]["proc_stat"]["pid"]
    try:
        first.process.kill()
        first.end()
        second = Agent(*argv, "--conn-id", "same", plain=False, env=env)
        try:
            assert server.until(run_id, *ENDS)["state"] == "error"
            message = server.messages(run_id)[-1]
            assert "no longer has the process: the agent was restarted, or the record deleted" in message
            # And it takes work.
            after = server.schedule({"job_id": "echo", "args": {"group": "back"}})
            assert server.until(after, *ENDS)["state"] == "success"
        finally:
            second.kill()
    finally:
        os.kill(pid, signal.SIGKILL)
