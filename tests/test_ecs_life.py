"""procstar-ecs from schedule to output: a whole server, real agents, and moto's AWS with what it lacks."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aws import CLUSTER, MISSING_IMAGE, PENDING, REGION, SILENT, Aws, refusal
from olddb import OldDb, brought
from server import ENDS, Server

from programs.ecs.request import started_by

CONFIG = """
job_dir: jobs
database: {{path: apsis.db}}
procstar:
  agent:
    enable: true
    server: {{host: 127.0.0.1, port: {port}, plain: true}}
    connection: {{reconnect_timeout: {reconnect}}}
    ecs:
      cluster_name: main
      container_name: agent
      default_task_definition: agent-{port}
      region: eu-west-1
      aws_account_id: "123456789012"
      ebs_volume_role: volumes
      log_group: /apsis/agent
      log_stream_prefix: ecs
      default_mem_gb: 1
      default_vcpu: 0.5
      default_disk_gb: 10
      launch_type: FARGATE
      network_configuration: {{awsvpcConfiguration: {{subnets: [subnet-1]}}}}
      start_timeout: {start}
      sweep: {sweep}
      retain_ebs: {retain}
"""
READY = "echo ready; "
TRAP = READY + "trap 'echo saving; exit 0' TERM; while true; do sleep 0.1; done"
STUBBORN = READY + "trap '' TERM; while true; do sleep 0.1; done"


GREET = """
params: [name]
program:
    type: procstar-ecs
    argv: [/bin/sh, -c, 'echo Hello $0 from $APSIS_RUN_ID in $PROCSTAR_GROUP_ID', "{{ name }}"]
    mem_gb: "{{ 2 * 2 }}"
    vcpu: 1
    disk_gb: 10.5
    role: loader
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with Aws(tmp_path_factory.mktemp("aws")).running() as aws:
        ours = {
            "AWS_ENDPOINT_URL": aws.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        yield aws
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def make_server(directory: Path, aws: Aws, **config: Any) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    aws.define(f"agent-{port}", PROCSTAR_AGENT_HOST="127.0.0.1", PROCSTAR_AGENT_PORT=str(port))
    values = {"reconnect": "1 h", "start": "15 min", "sweep": "true", "retain": "false"} | config
    (directory / "apsis.yaml").write_text(CONFIG.format(port=port, **values))
    return Server(directory, {"greet": GREET})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, aws: Aws) -> Iterator[Server]:
    """Patient, as servers are by default."""
    with make_server(tmp_path_factory.mktemp("server"), aws).running() as server:
        yield server


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, aws: Aws) -> Iterator[Server]:
    """Another server on the same cluster, which soon gives up agents, and sweeps all the time."""
    other = make_server(tmp_path_factory.mktemp("hasty"), aws, reconnect="3 s", sweep="2 s", retain="true")
    with other.running() as server:
        yield server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, aws: Aws) -> Iterator[Server]:
    """One that does not wait long for agents to come."""
    with make_server(tmp_path_factory.mktemp("impatient"), aws, start="5 s").running() as server:
        yield server


@pytest.fixture(autouse=True)
def no_rules_are_left(aws: Aws) -> Iterator[None]:
    yield
    aws.rules.clear()


def start(server: Server, command: str, **keys: Any) -> str:
    program = {"type": "procstar-ecs", "command": command, **keys}
    return server.schedule({"job": {"program": program}})


def until_ready(server: Server, run_id: str) -> None:
    server.until(run_id, "running")
    server.until_printed(run_id, b"ready\n")


def last(server: Server, run_id: str) -> str:
    return server.messages(run_id)[-1]


def installation(server: Server) -> str:
    with sqlite3.connect(server.directory / "apsis.db") as db:
        return str(db.execute("SELECT value FROM meta WHERE name = 'installation'").fetchone()[0])


def tasks(server: Server, aws: Aws, run_id: str) -> list[dict[str, Any]]:
    """All that were made for a run."""
    return aws.tasks({"apsis-run-id": run_id, "apsis-installation": installation(server)})


def task(server: Server, aws: Aws, run_id: str) -> str:
    """The ARN of the only one."""
    (found,) = tasks(server, aws, run_id)
    return str(found["taskArn"])


# -- how runs go ---------------------------------------------------------------------------------------


def test_a_job_runs_in_a_task_of_its_own_from_schedule_to_output(server: Server, aws: Aws) -> None:
    run_id = server.schedule({"job_id": "greet", "args": {"name": "ECS"}})
    run = server.until(run_id, *ENDS)
    assert run["state"] == "success", server.messages(run_id)
    assert server.output(run_id) == f"Hello ECS from {run_id} in aws-ecs-{run_id}\n".encode()
    shown = run["meta"]["program"]["aws_ecs"]
    arn = task(server, aws, run_id)
    assert shown["task_id"] == arn.rpartition("/")[2] and shown["log_stream"] == f"ecs/{shown['task_id']}"
    assert shown["account"] == "123456789012" and shown["task_url"].startswith("https://eu-west-1.console")
    assert run["meta"]["program"]["procstar_agent"]["pid"] > 0
    (asked,) = [p for p in aws.made("RunTask") if p["clientToken"] == f"{installation(server)}-{run_id}"]
    assert asked["overrides"]["containerOverrides"][0]["memory"] == 3814
    assert asked["overrides"]["taskRoleArn"] == "arn:aws:iam::123456789012:role/loader"
    # Its agent has left by itself, and nothing else had to be done.
    aws.until(lambda: aws.is_stopped(arn))
    assert not [p for p in aws.made("StopTask") if p["task"] == arn]


def asked_for(server: Server, aws: Aws, **keys: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What AWS was asked for by a run that went well: its container, its volume, and all of it."""
    run_id = server.schedule({"job": {"program": {"type": "procstar-ecs", **keys}}})
    assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
    (asked,) = [p for p in aws.made("RunTask") if p["clientToken"] == f"{installation(server)}-{run_id}"]
    (container,) = asked["overrides"]["containerOverrides"]
    (volume,) = asked["volumeConfigurations"]
    assert asked["count"] == 1 and container["name"] == "agent" and "image" not in json.dumps(asked)
    return container, volume["managedEBSVolume"], asked


def test_aws_is_asked_for_what_the_job_and_the_servers_file_say(
    server: Server, hasty: Server, aws: Aws
) -> None:
    true = {"command": "true"}
    container, volume, asked = asked_for(server, aws, argv=["/bin/true"])
    assert (container["memory"], container["cpu"], volume["sizeInGiB"]) == (953, 512, 9)  # the file's
    assert "taskRoleArn" not in asked["overrides"] and volume["terminationPolicy"]["deleteOnTermination"]
    default = asked["taskDefinition"]
    container, volume, _ = asked_for(server, aws, **true, mem_gb=2, vcpu=1, disk_gb=100)
    assert (container["memory"], container["cpu"]) == (1907, 1024)
    assert (volume["sizeInGiB"], volume["iops"], volume["throughput"]) == (93, 16000, 1000)
    assert (volume["volumeType"], volume["encrypted"], volume["filesystemType"]) == ("gp3", True, "ext4")
    for gb, gib, iops, throughput in ((35, 32, 16000, 1000), (11, 10, 5000, 1000)):
        _, volume, _ = asked_for(server, aws, **true, disk_gb=gb)
        assert (volume["sizeInGiB"], volume["iops"], volume["throughput"]) == (gib, iops, throughput)
    other = f"{default}:1"
    _, _, asked = asked_for(server, aws, **true, role="loader", task_definition=other)
    assert asked["overrides"]["taskRoleArn"] == "arn:aws:iam::123456789012:role/loader"
    assert asked["taskDefinition"] == other
    _, volume, _ = asked_for(hasty, aws, **true)
    assert volume["terminationPolicy"] == {"deleteOnTermination": False}


def test_a_program_that_fails_fails_its_run(server: Server) -> None:
    run_id = start(server, "echo no >&2; exit 3")
    assert server.until(run_id, *ENDS)["state"] == "failure"
    assert last(server, run_id) == "failure: exit code 3" and server.output(run_id) == b"no\n"


def test_a_timeout_ends_the_program(server: Server) -> None:
    run_id = start(server, "sleep 600", timeout={"duration": 0.5})
    assert server.until(run_id, *ENDS)["state"] == "failure"
    assert last(server, run_id) == "failure: killed by SIGTERM (timeout after 0.5 s)"


def test_a_stop_reaches_the_program(server: Server) -> None:
    run_id = start(server, TRAP)
    until_ready(server, run_id)
    server.post(f"/runs/{run_id}/stop")
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert server.output(run_id) == b"ready\nsaving\n"


def test_an_image_that_cannot_be_pulled_is_an_error_at_once(server: Server) -> None:
    run_id = start(server, "true", task_definition=MISSING_IMAGE)
    assert server.until(run_id, *ENDS)["state"] == "error"
    told = "stopped before its agent connected: CannotPullContainerError: no such image;"
    assert f"{told} container agent: pull access denied" in last(server, run_id)
    times = server.run(run_id)["times"]
    assert times["error"] and times["starting"]


def test_the_log_of_a_task_whose_agent_never_came_is_kept_with_its_run(server: Server, aws: Aws) -> None:
    run_id = start(server, "true", task_definition=SILENT)
    (made,) = aws.until(lambda: tasks(server, aws, run_id))
    arn = made["taskArn"]
    # As the awslogs driver names it: with the container.
    stream = f"ecs/agent/{arn.rpartition('/')[2]}"
    aws.logs.create_log_group(logGroupName="/apsis/agent")
    aws.logs.create_log_stream(logGroupName="/apsis/agent", logStreamName=stream)
    now = int(time.time() * 1000)
    events = [{"timestamp": now + n, "message": f"line {n}"} for n in range(60)]
    aws.logs.put_log_events(logGroupName="/apsis/agent", logStreamName=stream, logEvents=events)
    aws.end(arn, "Essential container in task exited", 1)
    run = server.until(run_id, *ENDS)
    assert run["state"] == "error" and "container agent: exit code 1" in last(server, run_id)
    lines = server.output(run_id).decode().splitlines()
    assert lines[0] == f"[apsis: last lines of the CloudWatch log stream {stream} of /apsis/agent]"
    assert lines[1:] == [f"line {n}" for n in range(10, 60)]
    assert run["meta"]["program"]["aws_ecs"]["log_stream"] == stream


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            (200, {"tasks": [], "failures": [{"reason": "RESOURCE:MEMORY", "arn": "i"}]}),
            "ECS task failed to start: RunTask: RESOURCE:MEMORY; add capacity to the cluster, or",
        ),
        (
            refusal("ClientException", "Capacity is unavailable at this time."),
            "RunTask: ClientException: Capacity is unavailable at this time.; add capacity to the cluster",
        ),
        (
            refusal("ClusterNotFoundException", "Cluster not found."),
            "RunTask: ClusterNotFoundException: Cluster not found.; procstar.agent.ecs.cluster_name and",
        ),
        (
            refusal("AccessDeniedException", "User: x is not authorized to perform: ecs:RunTask"),
            "RunTask: AccessDeniedException: User: x is not authorized to perform: ecs:RunTask; allow the"
            " server's role ecs:RunTask (see docs/ecs.md)",
        ),
        (
            refusal("AccessDeniedException", "User: x is not authorized to perform: iam:PassRole on role"),
            "allow the server's role iam:PassRole for this role (see docs/ecs.md)",
        ),
        (
            refusal("UnrecognizedClientException", "The security token is invalid."),
            "RunTask: UnrecognizedClientException: The security token is invalid.; give the server's host a",
        ),
        (
            refusal("ClientException", "TaskDefinition not found."),
            "check task_definition, or procstar.agent.ecs.default_task_definition",
        ),
        (
            refusal("InvalidParameterException", "Override for container named x is not a container"),
            "procstar.agent.ecs.container_name must name a container of the task definition",
        ),
    ],
    ids=["failures", "capacity", "cluster", "access", "role", "credentials", "definition", "container"],
)
def test_a_refusal_of_aws_is_an_error_with_the_call_and_the_remedy(
    server: Server, aws: Aws, answer: Any, told: str
) -> None:
    aws.fail("RunTask", answer)
    run_id = start(server, "true")
    assert server.until(run_id, *ENDS)["state"] == "error"
    message = last(server, run_id)
    assert told in message and "\n" not in message
    assert tasks(server, aws, run_id) == []


def test_throttling_and_failing_servers_are_outlasted(server: Server, aws: Aws) -> None:
    aws.fail("RunTask", refusal("ThrottlingException", "Rate exceeded"), times=2)
    aws.fail("RunTask", refusal("ServerException", "Service Unavailable", 500))
    run_id = start(server, "echo done")
    assert server.until(run_id, *ENDS)["state"] == "success"
    tokens = [p["clientToken"] for p in aws.made("RunTask") if p["clientToken"].endswith(f"-{run_id}")]
    assert len(tokens) == 4 and len(tasks(server, aws, run_id)) == 1
    told = [m for m in server.messages(run_id) if "trying again" in m]
    assert "RunTask: ThrottlingException: Rate exceeded; trying again" in told


def test_a_lost_answer_makes_no_second_task(server: Server, aws: Aws) -> None:
    aws.fail("RunTask", "lost")
    run_id = start(server, "echo done")
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert len(tasks(server, aws, run_id)) == 1


def test_a_task_that_dies_while_its_program_runs_is_an_error(server: Server, aws: Aws) -> None:
    run_id = start(server, READY + "sleep 600")
    until_ready(server, run_id)
    aws.kill_agent(task(server, aws, run_id))
    run = server.until(run_id, *ENDS)
    assert run["state"] == "error"
    told = "stopped while the program ran: Essential container in task exited; container agent: exit code"
    assert told in last(server, run_id)
    assert run["meta"]["program"]["aws_ecs"]["task_id"]


def test_a_program_whose_agent_is_gone_is_stopped_with_its_task(server: Server, aws: Aws) -> None:
    run_id = start(server, STUBBORN, stop={"grace_period": "0.5 s"})
    until_ready(server, run_id)
    arn = task(server, aws, run_id)
    aws.frozen.add(arn)
    aws.kill_agent(arn)
    aws.until(lambda: any("is away" in m for m in server.messages(run_id)), "away")
    server.post(f"/runs/{run_id}/stop")
    assert server.until(run_id, *ENDS)["state"] == "failure"
    assert "as the program did not end" in last(server, run_id)
    assert aws.is_stopped(arn)


def test_a_run_that_is_stopped_while_its_task_starts_leaves_no_task(server: Server, aws: Aws) -> None:
    run_id = start(server, "true", task_definition=PENDING)
    aws.until(lambda: any("ECS task is PENDING" in m for m in server.messages(run_id)), "pending")
    server.post(f"/runs/{run_id}/stop")
    assert server.until(run_id, *ENDS)["state"] == "skipped"
    aws.until(lambda: aws.is_stopped(task(server, aws, run_id)))


# -- waiting in vain -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("definition", "told"),
    [
        (SILENT, "is RUNNING; check the agent's host, port and token in the task definition"),
        (PENDING, "is PENDING; the cluster may have no room for it"),
    ],
)
def test_a_task_whose_agent_does_not_come_is_stopped(
    impatient: Server, aws: Aws, definition: str, told: str
) -> None:
    run_id = start(impatient, "true", task_definition=definition)
    assert impatient.until(run_id, *ENDS)["state"] == "error"
    message = last(impatient, run_id)
    assert message.startswith(f"error: start timeout: no agent of group aws-ecs-{run_id} after 5 s: ECS task")
    assert told in message
    aws.until(lambda: aws.is_stopped(task(impatient, aws, run_id)))


def test_a_run_that_aws_takes_too_long_to_accept_says_why(impatient: Server, aws: Aws) -> None:
    aws.fail("RunTask", refusal("ThrottlingException", "Rate exceeded"), times=99)
    run_id = start(impatient, "true")
    assert impatient.until(run_id, *ENDS)["state"] == "error"
    assert "no ECS task could be launched: RunTask: ThrottlingException: Rate exceeded" in last(
        impatient, run_id
    )
    assert tasks(impatient, aws, run_id) == []


def test_the_task_of_an_agent_that_is_lost_for_too_long_is_stopped(hasty: Server, aws: Aws) -> None:
    run_id = start(hasty, READY + "sleep 600")
    until_ready(hasty, run_id)
    arn = task(hasty, aws, run_id)
    aws.frozen.add(arn)
    aws.kill_agent(arn)
    assert hasty.until(run_id, *ENDS)["state"] == "error"
    assert "agent reconnect timeout" in last(hasty, run_id)
    aws.until(lambda: aws.is_stopped(arn))


def test_the_truth_about_a_task_that_was_given_up_is_offered(hasty: Server, aws: Aws, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    run_id = start(hasty, READY + f"until [ -e {gate} ]; do sleep 0.05; done; echo all of it")
    until_ready(hasty, run_id)
    arn = task(hasty, aws, run_id)
    aws.frozen.add(arn)  # StopTask gives an agent half a minute
    agent = aws.agents[arn]
    os.killpg(agent.pid, signal.SIGSTOP)
    hasty.kill()  # sooner than the agent is missed
    gate.touch()
    hasty.start()
    assert hasty.until(run_id, *ENDS)["state"] == "error"
    os.killpg(agent.pid, signal.SIGCONT)
    aws.until(lambda: any("late verdict: success" in m for m in hasty.messages(run_id)), "late verdict")
    assert b"all of it" in hasty.output(run_id)
    assert agent.wait(60) == 0  # it has delivered what it had
    aws.frozen.remove(arn)
    aws.until(lambda: aws.is_stopped(arn))


# -- restarts ------------------------------------------------------------------------------------------


def test_a_killed_server_that_lost_the_answer_of_run_task_finds_its_task(server: Server, aws: Aws) -> None:
    aws.fail("RunTask", "lost", times=99)
    run_id = start(server, "echo once")
    aws.until(lambda: tasks(server, aws, run_id))
    server.kill()
    aws.rules.clear()
    assert "task_arn" not in state_on_disk(server, run_id)
    server.start()
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert len(tasks(server, aws, run_id)) == 1 and server.output(run_id) == b"once\n"


def test_a_change_of_the_servers_file_after_a_lost_answer_makes_no_second_task(
    server: Server, aws: Aws
) -> None:
    aws.fail("RunTask", "lost", times=99)
    run_id = start(server, "echo once")
    aws.until(lambda: tasks(server, aws, run_id))
    server.kill()
    aws.rules.clear()
    server.start("-o", "procstar.agent.ecs.default_mem_gb=3")
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert len(tasks(server, aws, run_id)) == 1


def state_on_disk(server: Server, run_id: str) -> dict[str, Any]:
    with sqlite3.connect(server.directory / "apsis.db") as db:
        query = "SELECT run_state FROM runs WHERE number = ?"
        found: dict[str, Any] = json.loads(db.execute(query, (int(run_id[1:]),)).fetchone()[0])
        return found


def test_runs_in_every_state_are_taken_up_after_a_restart(server: Server, aws: Aws) -> None:
    starting = start(server, "true", task_definition=SILENT)
    running = start(server, TRAP)
    stopping = start(server, READY + "trap 'sleep 5; exit 0' TERM; while true; do sleep 0.1; done")
    until_ready(server, running)
    until_ready(server, stopping)
    server.post(f"/runs/{stopping}/stop")
    (made,) = aws.until(lambda: tasks(server, aws, starting))
    aws.until(lambda: any("launched as" in m for m in server.messages(starting)), "launched")
    server.kill()
    assert state_on_disk(server, starting)["task_arn"] == made["taskArn"]
    assert state_on_disk(server, running)["group_id"] == f"aws-ecs-{running}"
    server.start()
    assert server.run(running)["state"] == "running" and server.run(starting)["state"] == "starting"
    # Its agent comes at last; or rather, it never will.
    aws.end(made["taskArn"], "Host EC2 (instance i-1) terminated.")
    assert server.until(starting, *ENDS)["state"] == "error"
    assert "Host EC2 (instance i-1) terminated" in last(server, starting)
    server.post(f"/runs/{running}/stop")
    for run_id in (running, stopping):
        run = server.until(run_id, *ENDS)
        assert run["state"] == "success" and run["meta"]["program"]["aws_ecs"]["task_id"]
    assert all(len(tasks(server, aws, run_id)) == 1 for run_id in (starting, running, stopping))


# -- from Apsis 2 ----------------------------------------------------------------------------------------


def as_apsis_2_left_it(server: Server, path: Path, states: dict[str, str]) -> None:
    """A database of Apsis 2 with these unfinished runs of `server`: where their tasks and programs are."""
    old = OldDb(path, clock=time.time())
    for run_id, state in states.items():
        found = server.run(run_id)
        known = state_on_disk(server, run_id)
        old.run(
            int(run_id[1:]),
            state,
            at=time.time() - 60,
            job_id=found["job_id"],
            program={
                "type": "apsis.program.procstar.aws.ecs_agent.BoundProcstarECSProgram",
                "argv": ["/usr/bin/bash", "-c", TRAP],
                "stop": {"signal": "SIGTERM", "grace_period": 60.0},
            },
            times={"schedule": time.time() - 60, "running": time.time() - 50, state: time.time() - 40},
            meta={"job": {"labels": []}, "program": {"aws_ecs": found["meta"]["program"]["aws_ecs"]}},
            run_state={
                "start": "2026-01-01T00:00:00+00:00",
                **{name: known[name] for name in ("conn_id", "proc_id", "task_arn", "group_id")},
            },
        )
        old.job(found["job_id"])
    old.close()


def test_tasks_of_an_imported_database_are_taken_up(tmp_path: Path, aws: Aws) -> None:
    server = make_server(tmp_path, aws)
    server.start()
    try:
        running, stopping, lost, ended = run_ids = [start(server, TRAP) for _ in range(4)]
        for run_id in run_ids:
            until_ready(server, run_id)
        arns = {run_id: state_on_disk(server, run_id)["task_arn"] for run_id in run_ids}
        states = dict.fromkeys(run_ids, "running") | {stopping: "stopping"}
        as_apsis_2_left_it(server, tmp_path / "old.db", states)
    finally:
        server.kill()
    for file in tmp_path.glob("apsis.db*"):
        file.unlink()
    # While no server is there, a task dies, and so does an agent with its task.
    aws.end(arns[lost], "Host EC2 (instance i-2) terminated.")
    aws.kill_agent(arns[ended])
    new, _ = brought(tmp_path / "old.db", "--config", str(tmp_path / "apsis.yaml"))
    new.rename(tmp_path / "apsis.db")
    with server.running():
        for run_id, why in ((lost, "Host EC2 (instance i-2) terminated"), (ended, "Essential container")):
            assert server.until(run_id, *ENDS)["state"] == "error"
            assert why in last(server, run_id)
        assert server.until(stopping, *ENDS)["state"] == "success", server.messages(stopping)
        server.until_printed(running, b"ready\n")
        server.post(f"/runs/{running}/stop")
        run = server.until(running, *ENDS)
        assert run["state"] == "success", server.messages(running)
        assert run["meta"]["program"]["aws_ecs"]["task_id"] == arns[running].rpartition("/")[2]
        assert server.output(running) == server.output(stopping) == b"ready\nsaving\n"
        aws.until(lambda: all(map(aws.is_stopped, arns.values())))


# -- what is left behind ---------------------------------------------------------------------------------


def orphan(aws: Aws, uuid: str, run_id: str, tagged: str | None = None) -> str:
    """A task of an installation, as a crash at the worst moment leaves it."""
    tags = [("apsis-run-id", run_id), ("apsis-installation", tagged or uuid)]
    answer = aws.admin.run_task(
        cluster=CLUSTER,
        taskDefinition=SILENT,
        launchType="FARGATE",
        startedBy=started_by(uuid),
        tags=[{"key": key, "value": value} for key, value in tags],
    )
    return str(answer["tasks"][0]["taskArn"])


def test_of_two_servers_on_a_cluster_each_stops_what_itself_has_left_behind(
    server: Server, hasty: Server, aws: Aws
) -> None:
    mine, others = installation(hasty), installation(server)
    run_ids = [start(hasty, TRAP), start(server, TRAP)]
    until_ready(hasty, run_ids[0])
    until_ready(server, run_ids[1])
    # `hasty` sweeps every 2 s; the other one has done so when it was started, and will not for minutes.
    left = orphan(aws, mine, "r999999")
    second = orphan(aws, mine, run_ids[0])  # a second one of a run that goes on
    foreign = [orphan(aws, others, "r999999"), orphan(aws, mine, "r999998", tagged="somebody")]
    aws.until(lambda: aws.is_stopped(left) and aws.is_stopped(second))
    assert f"stopping ECS task {left}, left behind: run r999999 does not need it" in hasty.log()
    swept = len(aws.made("ListTasks"))
    aws.until(lambda: len(aws.made("ListTasks")) >= swept + 2)
    assert not any(aws.is_stopped(arn) for arn in foreign)
    for each, run_id in zip((hasty, server), run_ids, strict=True):
        each.post(f"/runs/{run_id}/stop")
        assert each.until(run_id, *ENDS)["state"] == "success"
    # A start sweeps, too.
    server.kill()
    server.start()
    aws.until(lambda: aws.is_stopped(foreign[0]))
    assert not aws.is_stopped(foreign[1])
    for number, arn in enumerate(foreign):
        aws.is_stopped(arn) or aws.end(arn, f"end of the test {number}")


def test_all_that_was_made_is_gone_at_the_end(
    server: Server, hasty: Server, impatient: Server, aws: Aws
) -> None:
    aws.until(lambda: aws.tasks(desired="RUNNING") == [])
    assert REGION in str(aws.tasks()[0]["taskArn"])
