"""The server's file, key by key: what each does to a running server.

TABLE has a row for every key, with the tests that show its effect, here or where the server that it
takes is at hand. A key without a row fails, and so does a row whose test is not.
"""

from __future__ import annotations

import ast
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import requests
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from raw_agent import RawAgent
from server import ENDS, PROGRAM, ROOT, Server, environment

from apsislib.config import Config

REFUSED = "test_downtime.test_with_on_max_age_fail_the_server_does_not_start_and_says_how_to"
TABLE = {
    "job_dir": "test_jobs_calendars_and_the_database_are_where_the_file_says",
    "calendars": "test_jobs_calendars_and_the_database_are_where_the_file_says",
    "database.path": "test_jobs_calendars_and_the_database_are_where_the_file_says",
    "database.timeout": "test_a_lock_of_somebody_else_is_waited_for_so_long",
    "runs.lookback": "test_runs_older_than_the_lookback_are_not_listed_but_there",
    "runs.retention": "test_internal.test_with_retention_a_job_of_the_servers_own_keeps_the_database_small",
    "runs.on_retention": "test_internal.test_retention_may_delete_or_have_another_archive",
    "runs.archive": "test_internal.test_retention_may_delete_or_have_another_archive",
    "schedule.horizon": "test_scheduled_runs_reach_to_the_horizon_and_to_a_number",
    "schedule.max_expected": "test_scheduled_runs_reach_to_the_horizon_and_to_a_number",
    "schedule.since": REFUSED,
    "schedule.catch_up": "test_downtime.test_what_is_made_up_for_is_as_the_servers_file_and_the_job_say",
    "schedule.max_age": "test_downtime.test_what_is_older_than_max_age_is_shown_as_missed",
    "schedule.on_max_age": REFUSED,
    "waiting.max_time": "test_a_run_that_waits_for_too_long_is_an_error",
    "program.timeout.duration": "test_a_program_without_a_timeout_of_its_own_gets_the_one_of_the_file",
    "program.timeout.signal": "test_a_program_without_a_timeout_of_its_own_gets_the_one_of_the_file",
    "output.max_size": "test_output_is_stored_up_to_a_size",
    "output.on_max_size": "test_output_is_stored_up_to_a_size",
    "http.host": "test_http_is_served_at_the_address_of_the_file",
    "http.port": "test_http_is_served_at_the_address_of_the_file",
    "http.allowed_hosts": "test_a_name_of_the_file_is_served_and_no_other",
    "reload.watch": "test_reload.test_a_server_that_watches_reloads_changed_files_and_says_so",
    "action": "test_extensions.test_an_action_of_the_servers_file_follows_every_run",
    "program_types": "test_pythons_collector_is_set",
    "schedule_types": "test_extensions.test_classes_by_short_names_from_the_config_wait_and_run",
    "condition_types": "test_extensions.test_classes_by_short_names_from_the_config_wait_and_run",
    "action_types": "test_extensions.test_an_action_is_given_the_run_as_the_transition_left_it",
    "python.gc.enabled": "test_pythons_collector_is_set",
    "python.gc.threshold": "test_pythons_collector_is_set",
    "smtp.host": "test_extensions.test_email_says_what_an_operator_asks_first",
    "smtp.port": "test_extensions.test_email_says_what_an_operator_asks_first",
    "smtp.ssl": "test_mail_goes_by_tls_and_with_a_password",
    "smtp.auth.username": "test_mail_goes_by_tls_and_with_a_password",
    "smtp.auth.password": "test_mail_goes_by_tls_and_with_a_password",
    "procstar.agent.enable": "test_an_agent_of_elsewhere_connects_by_address_and_token",
    "procstar.agent.local": "test_a_program_without_a_timeout_of_its_own_gets_the_one_of_the_file",
    "procstar.agent.server.host": "test_an_agent_of_elsewhere_connects_by_address_and_token",
    "procstar.agent.server.port": "test_an_agent_of_elsewhere_connects_by_address_and_token",
    "procstar.agent.server.access_token": "test_an_agent_of_elsewhere_connects_by_address_and_token",
    "procstar.agent.server.plain": "test_an_agent_of_elsewhere_connects_by_address_and_token",
    "procstar.agent.server.tls.cert_path": "test_agents_connect_by_tls_with_the_certificate_of_the_file",
    "procstar.agent.server.tls.key_path": "test_agents_connect_by_tls_with_the_certificate_of_the_file",
    "procstar.agent.connection.start_timeout": "test_a_run_without_an_agent_is_an_error_in_time",
    "procstar.agent.connection.reconnect_timeout": "test_a_run_whose_agent_stays_away_is_an_error",
    "procstar.agent.run.update_interval": "test_figures_and_output_come_at_their_intervals",
    "procstar.agent.run.output_interval": "test_figures_and_output_come_at_their_intervals",
    "procstar.agent.sudo.argv": "test_a_sudo_user_is_reached_by_the_words_of_the_file",
    "procstar.agent.resource_defaults.mem_max_gb": "test_a_program_without_a_limit_gets_that_of_the_file",
}
ECS = {
    **dict.fromkeys(
        (
            *("cluster_name", "container_name", "default_task_definition", "region", "aws_account_id"),
            *("ebs_volume_role", "log_group", "log_stream_prefix", "launch_type", "network_configuration"),
            *("default_mem_gb", "default_vcpu", "default_disk_gb"),
        ),
        "test_a_job_runs_in_a_task_of_its_own_from_schedule_to_output",
    ),
    "start_timeout": "test_a_task_whose_agent_does_not_come_is_stopped",
    "sweep": "test_of_two_servers_on_a_cluster_each_stops_what_itself_has_left_behind",
}
TABLE |= {f"procstar.agent.ecs.{key}": f"test_ecs_life.{test}" for key, test in ECS.items()}
# Shown by what is asked of AWS, or said to the mail server, or refused: no server need run for it.
TABLE |= {
    "procstar.agent.ecs.max_mem_gb": "test_ecs.test_more_than_the_cluster_has_is_refused_at_the_launch_too",
    "procstar.agent.ecs.max_vcpu": "test_ecs.test_more_than_the_cluster_has_is_refused_at_the_launch_too",
    "procstar.agent.ecs.retain_ebs": "test_ecs.test_volumes_can_be_kept",
    "procstar.agent.ecs.capacity_provider_strategy": "test_ecs.test_where_tasks_run_is_passed_on",
}
HERE = Path(__file__)


def keys(cls: Any = Config, path: tuple[str, ...] = ()) -> Iterator[str]:
    for field in fields(cls):
        if "section" in field.metadata:
            yield from keys(field.metadata["section"], (*path, field.name))
        elif field.metadata:
            yield ".".join((*path, field.name))


def functions_of(name: str) -> set[str]:
    tree = ast.parse((HERE.parent / f"{name}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_key_has_a_test_that_shows_what_it_does() -> None:
    assert set(keys()) == set(TABLE)
    for key, place in TABLE.items():
        module, _, test = place.rpartition(".")
        assert test in functions_of(module or HERE.stem), key


# -- servers ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


Make = Callable[..., Server]
OUTPUT = 'program: {type: procstar-shell, command: "%s"}\n'
JOBS = {
    "noop": "program: {type: no-op}\n",
    "locked-out": "program: {type: no-op}\n",
    "slow": OUTPUT % "echo ready; sleep 600",
    "loud": OUTPUT % "yes | head -c 100000; sleep 0.1",
    "stuck": "condition: {type: const, value: false}\nprogram: {type: no-op}\n",
    "hourly": "schedule: {type: interval, interval: 30m}\nprogram: {type: no-op}\n",
    "often": "schedule: {type: interval, interval: 20s, phase: 10}\nprogram: {type: no-op}\n",
    "holidays": "schedule: {type: daily, calendar: holidays, daytime: '12:00:00', tz: UTC}\n"
    "program: {type: no-op}\n",
    "nobody": "program: {type: procstar, argv: [/bin/true], group_id: nobody}\n",
    "sudo": "program: {type: procstar, argv: [/bin/true], sudo_user: worker}\n",
    "collector": "program: {type: collector}\n",
    "remote": "program: {type: procstar, argv: [/bin/true], group_id: remote}\n",
}


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, ports: tuple[int, int]) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("effects")
    sudo = directory / "fake-sudo"
    sudo.write_text('#!/bin/sh\necho "$@"\n')
    sudo.chmod(0o755)
    (directory / "collecting.py").write_text(COLLECTOR)
    (directory / "cal").mkdir()
    (directory / "cal" / "holidays.cal").write_text("2031-12-25\n2031-12-26\n")
    (directory / "apsis.yaml").write_text(f"""
job_dir: jobs
calendars: cal
database: {{path: other.db, timeout: 0.2 s}}
runs: {{lookback: 3 s}}
schedule: {{horizon: 2 h, max_expected: 6}}
waiting: {{max_time: 0.5 s}}
program: {{timeout: {{duration: 1.5 s, signal: INT}}}}
output: {{max_size: 1000, on_max_size: truncate}}
http: {{host: 127.0.0.2, port: {ports[0]}, allowed_hosts: [apsis.example]}}
python: {{gc: {{enabled: false, threshold: [700, 7, 3]}}}}
program_types: {{collector: collecting.Collector}}
procstar:
  agent:
    enable: true
    local: true
    server: {{host: 127.0.0.3, port: {ports[1]}, access_token: s3cret, plain: true}}
    connection: {{start_timeout: 1 s, reconnect_timeout: 0.5 s}}
    run: {{update_interval: 0.2 s, output_interval: 0.1 s}}
    sudo: {{argv: ["{sudo}", --preserve-env]}}
    resource_defaults: {{mem_max_gb: 1.5}}
""")
    server = Server(directory, JOBS)
    server.port = ports[0]
    server.url = f"http://127.0.0.2:{ports[0]}/api/v1"
    log = open(directory / "server.log", "ab")  # noqa: SIM115
    with log:
        server.process = subprocess.Popen(
            [sys.executable, PROGRAM, "serve", "--config", str(directory / "apsis.yaml")],
            stderr=log,
            stdout=log,
            stdin=subprocess.DEVNULL,
            env=environment(PYTHONPATH=f"{ROOT}:{directory}"),
        )
    try:
        server.await_running()
        yield server
        assert server.end() == 0, server.log()
    finally:
        if server.process.poll() is None:
            server.kill()
        (directory / "apsis.db.agent.json").symlink_to(directory / "other.db.agent.json")
        server.end_agent()


COLLECTOR = """
import gc


class Collector:
    @classmethod
    def from_config(cls, mapping):
        return cls()

    def run(self, run_id, cfg, report):
        report.output(f"{gc.isenabled()} {gc.get_threshold()}")
"""


# -- effects ---------------------------------------------------------------------------------------


def test_jobs_calendars_and_the_database_are_where_the_file_says(server: Server) -> None:
    assert {job["job_id"] for job in server.get("/jobs")} == {*JOBS, "apsis-retention"}
    assert (server.directory / "other.db").exists() and not (server.directory / "apsis.db").exists()
    days = server.get("/jobs/holidays/upcoming", since="2031-01-01", skipped="false")["upcoming"]
    assert [entry["time"][:10] for entry in days] == ["2031-12-25", "2031-12-26"]


def test_a_lock_of_somebody_else_is_waited_for_so_long(server: Server) -> None:
    with closing(sqlite3.connect(server.directory / "other.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        # By default it would be five seconds until the writer gives up for the time being.
        answer = requests.post(f"{server.url}/runs", json={"job_id": "locked-out"}, timeout=30)
        other.execute("ROLLBACK")
    assert answer.status_code == 503 and "database is locked" in answer.json()["error"]
    while "can be written again" not in server.log():
        threading.Event().wait(0.05)
    (run_id,) = server.get("/search/runs", q="locked-out")["runs"]
    assert server.until(run_id, *ENDS)["state"] == "success"


def test_runs_older_than_the_lookback_are_not_listed_but_there(server: Server) -> None:
    run_id = server.schedule({"job_id": "noop"})
    later = server.schedule({"job_id": "noop", "times": {"schedule": "2101-01-01T00:00:00Z"}})
    assert run_id in server.get("/runs", job_id="noop")["runs"]
    while run_id in server.get("/runs", job_id="noop")["runs"]:
        threading.Event().wait(0.05)
    assert server.run(run_id)["state"] == "success"
    # What has not ended is never too old.
    assert list(server.get("/jobs/noop/runs")["runs"]) == [later]


def test_scheduled_runs_reach_to_the_horizon_and_to_a_number(server: Server) -> None:
    def expected(job_id: str) -> int:
        return len(server.get("/runs", job_id=job_id, state="scheduled")["runs"])

    while expected("often") < 6:
        threading.Event().wait(0.05)
    assert expected("often") == 6
    assert expected("hourly") in (4, 5)


def test_a_run_that_waits_for_too_long_is_an_error(server: Server) -> None:
    run_id = server.schedule({"job_id": "stuck"})
    assert server.until(run_id, *ENDS)["state"] == "error"
    assert "timeout after 0.5 s" in server.messages(run_id)[-1]


def test_a_program_without_a_timeout_of_its_own_gets_the_one_of_the_file(server: Server) -> None:
    run_id = server.schedule({"job_id": "slow"})
    run = server.until(run_id, *ENDS)
    assert run["state"] == "failure"
    assert server.messages(run_id)[-1].endswith("(timeout after 1.5 s)")
    assert "sending SIGINT" in " ".join(server.messages(run_id))


def test_output_is_stored_up_to_a_size(server: Server, tmp_path: Path) -> None:
    run_id = server.schedule({"job_id": "loud"})
    assert server.until(run_id, *ENDS)["state"] == "success"
    # (with a line that says so)
    assert 1000 <= len(server.output(run_id)) < 1200
    config = "output: {max_size: 1000, on_max_size: kill}\n"
    endless = {"loud": OUTPUT % "yes | head -c 100000; sleep 600"}
    with Server(tmp_path, endless, config).running() as killing:
        run_id = killing.schedule({"job_id": "loud"})
        assert killing.until(run_id, *ENDS)["state"] == "failure"


def test_http_is_served_at_the_address_of_the_file(server: Server, ports: tuple[int, int]) -> None:
    assert requests.get(f"http://127.0.0.2:{ports[0]}/api/v1/alive", timeout=30).json() == {}
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{ports[0]}/api/v1/alive", timeout=30)


def test_a_name_of_the_file_is_served_and_no_other(server: Server) -> None:
    for host, status in (("apsis.example", 200), ("other.example", 403)):
        assert requests.get(f"{server.url}/alive", headers={"host": host}, timeout=30).status_code == status


def test_pythons_collector_is_set(server: Server) -> None:
    run_id = server.schedule({"job_id": "collector"})
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert server.output(run_id) == b"False (700, 7, 3)"


def agent(port: int, token: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, PROGRAM, "agent", "--agent", "--plain", "--agent-host", "127.0.0.3"]
        + ["--agent-port", str(port), "--group-id", "remote"],
        env=environment(PROCSTAR_AGENT_TOKEN=token),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def test_an_agent_of_elsewhere_connects_by_address_and_token(server: Server, ports: tuple[int, int]) -> None:
    wrong, right = agent(ports[1], "guess"), agent(ports[1], "s3cret")
    try:
        # Within the start timeout of a second it may not have come yet.
        while True:
            run_id = server.schedule({"job_id": "remote"})
            if server.until(run_id, *ENDS)["state"] == "success":
                break
            assert "no connected agent" in server.messages(run_id)[-1]
        groups = requests.get(server.url.replace("/api/v1", "/api/procstar/groups"), timeout=30).json()
        (connection,) = groups["remote"]
        assert connection["info"]["proc"]["pid"] == right.pid
    finally:
        for process in (wrong, right):
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_a_run_without_an_agent_is_an_error_in_time(server: Server) -> None:
    run_id = server.schedule({"job_id": "nobody"})
    run = server.until(run_id, *ENDS)
    assert run["state"] == "error"
    assert "no connected agent in group: nobody" in server.messages(run_id)[-1]


def raw(server: Server, port: int, **fields: Any) -> RawAgent:
    fields = {"group_id": "remote", "access_token": "s3cret", **fields}
    return RawAgent(("127.0.0.3", port), **fields)


def test_a_program_without_a_limit_gets_that_of_the_file(server: Server, ports: tuple[int, int]) -> None:
    peer = raw(server, ports[1])
    run_id = server.schedule({"job_id": "remote"})
    message = peer.wait("ProcStartRequest")
    (spec,) = message["specs"].values()
    assert spec["systemd_properties"]["slice"]["memory_max"] == 1_500_000_000
    peer.close()
    server.until(run_id, *ENDS)


def test_a_run_whose_agent_stays_away_is_an_error(server: Server, ports: tuple[int, int]) -> None:
    peer = raw(server, ports[1], conn_id="B")
    run_id = server.schedule({"job_id": "remote"})
    peer.wait("ProcStartRequest")
    peer.cut()
    run = server.until(run_id, *ENDS)
    assert run["state"] == "error" and "B" in " ".join(server.messages(run_id))


def test_figures_and_output_come_at_their_intervals(server: Server, tmp_path: Path) -> None:
    run_id = server.schedule({"job_id": "slow"})
    server.until_printed(run_id, b"ready\n")
    assert server.run(run_id)["state"] == "running"
    while "proc_stat" not in server.run(run_id)["meta"].get("program", {}):
        assert server.run(run_id)["state"] == "running"
    config = "procstar: {agent: {local: true, run: {output_interval: off, update_interval: off}}}\n"
    (tmp_path / "apsis.yaml").write_text(config)
    pause = {"pause": "params: [fifo]\n" + OUTPUT % "echo ready; cat < {{ fifo }}"}
    os.mkfifo(tmp_path / "fifo")
    with Server(tmp_path, pause).running() as silent:
        run_id = silent.schedule({"job_id": "pause", "args": {"fifo": str(tmp_path / "fifo")}})
        with open(tmp_path / "fifo", "w"):  # opened once the program reads, so it has printed
            assert silent.output(run_id) != b"ready\n"
        silent.until(run_id, *ENDS)
        assert silent.output(run_id) == b"ready\n"


def test_a_sudo_user_is_reached_by_the_words_of_the_file(server: Server) -> None:
    run_id = server.schedule({"job_id": "sudo"})
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert server.output(run_id) == b"--preserve-env --non-interactive --user worker -- /bin/true\n"


def certificate(directory: Path) -> tuple[Path, Path]:
    """For localhost, signed by itself."""
    cert, key = directory / "x.crt", directory / "the.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
        + ["-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_agents_connect_by_tls_with_the_certificate_of_the_file(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path)
    port = free_port()
    (tmp_path / "apsis.yaml").write_text(
        f"procstar: {{agent: {{enable: true, server: {{host: localhost, port: {port}, access_token: t,"
        " tls: {cert_path: x.crt, key_path: the.key}}}}\n"
    )
    with Server(tmp_path, {}).running():
        trusting = ssl.create_default_context(cafile=str(cert))
        RawAgent(("localhost", port), context=trusting, access_token="t").close()


class Inbox:
    def __init__(self) -> None:
        self.mails: SimpleQueue[tuple[bytes, bool, Any]] = SimpleQueue()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.mails.put((envelope.content, session.ssl is not None, session.auth_data))
        return "250 OK"


def test_mail_goes_by_tls_and_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    inbox = Inbox()

    def judge(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        known = (data.login, data.password) == (b"robot", b"hush")
        return AuthResult(success=known, auth_data=data.login)

    post = Controller(
        inbox,
        "localhost",
        free_port(),
        tls_context=context,
        require_starttls=True,
        auth_required=True,
        authenticator=judge,
    )
    post.start()
    mail = "action: {type: email, to: ops@example.org, from: apsis@example.org}\n"
    auth = "auth: {username: robot, password: hush}"
    config = f"smtp: {{host: localhost, port: {post.port}, ssl: starttls, {auth}}}\n"
    try:
        with Server(tmp_path, {"noop": JOBS["noop"] + mail}, config).running() as server:
            server.schedule({"job_id": "noop"})
            content, by_tls, who = inbox.mails.get(timeout=60)
        assert by_tls and who == b"robot" and b"noop" in content
    finally:
        post.stop()
