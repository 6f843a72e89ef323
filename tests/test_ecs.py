"""procstar-ecs: what jobs may say, what AWS is asked for, when, and what is said of its refusals."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.session import Session
from botocore.validate import validate_parameters
from doubles import FakeAgents, FakeHost

from apsislib.clock import SimClock
from apsislib.config import Config, load
from apsislib.config.keys import Ecs as EcsConfig
from apsislib.errors import FieldError
from apsislib.runs import Finished, Run
from apsislib.states import State
from apsislib.yamlio import load as yaml_load
from programs import Table
from programs.ecs import request, sizes
from programs.ecs.aws import Aws, AwsError, refused
from programs.ecs.calls import BURST, HANDS, RATE, Call, Calls
from programs.ecs.told import outcome

CONFIG = EcsConfig(
    cluster_name="main",
    container_name="agent",
    default_task_definition="apsis-agent",
    region="eu-west-1",
    aws_account_id="012345678901",
    ebs_volume_role="volumes",
    log_group="/apsis/agent",
    log_stream_prefix="ecs/agent",
    default_mem_gb=2,
    default_vcpu=1,
    default_disk_gb=20,
    max_mem_gb=64,
    max_vcpu=16,
)
UUID = "5f0c9c1e-9b1e-4a57-9d3a-0c8a6d5f2b11"
MODEL = Session().get_service_model("ecs")


def table(**ecs: Any) -> Table:
    agent = Config().procstar.agent
    agent = replace(agent, enable=True, ecs=replace(CONFIG, **ecs))
    return Table(replace(Config(), procstar=replace(Config().procstar, agent=agent)))


TABLE = table()


def parse(table: Table = TABLE, **keys: Any) -> Any:
    return table.parse({"type": "procstar-ecs", **({"command": "true"} | keys)})


def bound(table: Table = TABLE, expand: Callable[[str], str] = lambda text: text, **keys: Any) -> Any:
    return parse(table, **keys).bind(expand)


def wrong(table: Table = TABLE, **keys: Any) -> str:
    with pytest.raises(FieldError) as caught:
        bound(table, **keys)
    return str(caught.value)


def run_task(config: EcsConfig = CONFIG, run_id: str = "r7", **keys: Any) -> dict[str, Any]:
    """The request for a program, which AWS's own description of RunTask allows."""
    made = request.run_task(config, UUID, run_id, bound(**keys))
    validate_parameters(made, MODEL.operation_model("RunTask").input_shape)
    return made


# -- what jobs may say -------------------------------------------------------------------------------


def test_a_program_is_bound_stored_and_loaded_without_a_change() -> None:
    keys = {"mem_gb": "{{ gb }}", "vcpu": 0.5, "disk_gb": 10.5, "role": "{{ r }}", "task_definition": "t:3"}
    program = parse(**keys, stop={"signal": "SIGUSR2"}, timeout={"duration": "1 h"})
    assert program.to_json()["mem_gb"] == "{{ gb }}"
    values = {"{{ gb }}": "4", "{{ r }}": "loader"}
    program = program.bind(lambda text: values.get(text, text))
    json = program.to_json()
    assert json["type"] == "apsis.program.procstar.aws.ecs_agent.BoundProcstarECSProgram"
    assert json["argv"] == ["/usr/bin/bash", "-c", "true"]
    assert [json[k] for k in keys] == [4.0, 0.5, 10.5, "loader", "t:3"]
    assert TABLE.load(json) == program
    assert program.limits().timeout == 3600 and program.limits().stop_signal == 12


def test_an_argument_vector_is_run_without_a_shell() -> None:
    program = TABLE.parse({"type": "procstar-ecs", "argv": ["/bin/echo", "a b"]}).bind(lambda text: text)
    assert program.to_json()["argv"] == ["/bin/echo", "a b"]
    spec = program.at_agent(Run("r7", "job", {})).spec(Run("r7", "job", {}), "p")
    assert spec["argv"] == ["/bin/echo", "a b"] and "systemd_properties" not in spec


def test_programs_stored_by_apsis_2_are_read() -> None:
    json = {"type": "apsis.program.procstar.aws.ecs_agent.BoundProcstarECSProgram", "argv": ["/bin/true"]}
    assert TABLE.load({**json, "mem_gb": 0, "role": "", "task_definition": None}).to_json()["argv"] == [
        "/bin/true"
    ]


def test_what_a_template_leaves_empty_is_the_default() -> None:
    keys = {"mem_gb": "{{ x }}", "vcpu": "{{ x }}", "disk_gb": "{{ x }}", "role": "{{ x }}"}
    program = parse(**keys, task_definition="{{ x }}").bind(lambda text: "" if "x" in text else text)
    assert (program.mem_gb, program.vcpu, program.disk_gb) == (None, None, None)
    assert (program.role, program.task_definition) == (None, None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"group_id": "a"}, "unexpected keys: group_id (each run of procstar-ecs has a group of its own"),
        ({"sudo_user": "a"}, "unexpected keys: sudo_user"),
        ({"resources": {}}, "unexpected keys: resources"),
        ({"argv": ["/bin/true"]}, "specify either command or argv, not both"),
        ({"command": ""}, "command is empty"),
        ({"mem_gb": 0}, "mem_gb must be a number above 0, not 0"),
        ({"vcpu": -1}, "vcpu must be a number above 0, not -1"),
        ({"disk_gb": "much"}, "disk_gb must be a number above 0, not much"),
        ({"mem_gb": "nan"}, "mem_gb must be a number above 0, not nan"),
        ({"vcpu": True}, "vcpu must be a number above 0, not True"),
        ({"mem_gb": [1]}, "mem_gb must be a string, not a list"),
        ({"mem_gb": 65}, "Requested memory 65 GB exceeds cluster maximum 64 GB"),
        ({"vcpu": 17}, "Requested vCPU 17 exceeds cluster maximum 16"),
        ({"disk_gb": 18000}, "a gp3 volume has at most 16384 GiB, 17592 GB"),
        ({"role": "arn:aws:iam::1:role/x"}, "role must be the name of the role, not its ARN: x"),
        ({"role": "a b"}, "role is not the name of an IAM role: 'a b'"),
        ({"task_definition": "a b"}, "task_definition is not a name, name:revision or ARN: 'a b'"),
        ({"timeout": 5}, "timeout must be a mapping"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_named_when_the_job_is_read(keys: dict[str, Any], message: str) -> None:
    assert message in wrong(**keys)


def test_either_command_or_argv_must_be_given() -> None:
    with pytest.raises(FieldError, match="must specify either command or argv"):
        TABLE.parse({"type": "procstar-ecs"})


def test_amounts_from_templates_are_checked_when_a_run_is_made() -> None:
    program = parse(mem_gb="{{ x }}")
    for value, message in (("-3", "above 0, not -3"), ("65", "exceeds cluster maximum 64 GB")):
        with pytest.raises(FieldError, match=message) as caught:
            program.bind(lambda text, value=value: value if "x" in text else text)
        assert caught.value.keys == ("mem_gb",)


ECS = """
procstar:
  agent:
    enable: true
    server: {plain: true}
    ecs:
      cluster_name: main
      region: eu-west-1
"""


def check_jobs(directory: Path, config: str | None, **jobs: str) -> str:
    (directory / "jobs").mkdir()
    for name, text in jobs.items():
        (directory / "jobs" / f"{name}.yaml").write_text(text)
    argv = [sys.executable, "-m", "apsis", "check-jobs", str(directory / "jobs")]
    if config is not None:
        (directory / "apsis.yaml").write_text(config)
        argv += ["--config", str(directory / "apsis.yaml")]
    root = Path(__file__).parent.parent
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 1
    return done.stdout + done.stderr


def test_check_jobs_names_all_missing_keys_of_the_servers_file_together(tmp_path: Path) -> None:
    told = check_jobs(tmp_path, ECS)
    missing = "container_name, default_task_definition, aws_account_id, ebs_volume_role, log_group,"
    missing += " log_stream_prefix, default_mem_gb, default_vcpu, default_disk_gb"
    assert f"procstar.agent.ecs config is missing required keys: {missing}" in told


def test_check_jobs_says_where_ecs_is_to_be_configured(tmp_path: Path) -> None:
    told = check_jobs(tmp_path, None, a="program: {type: procstar-ecs, command: 'true'}\n")
    assert "a.yaml:1: program.type: procstar-ecs needs procstar.agent.ecs in the server's file" in told


def test_a_run_of_a_server_that_lost_its_configuration_ends_in_error() -> None:
    host = FakeHost(FakeAgents())
    program = Table(Config()).load(bound().to_json())
    program.launch(host.add(Run("r7", "job", {}, State.STARTING)), host)
    assert "procstar.agent.ecs" in str(host.wait(Finished).message)


def test_more_than_the_cluster_has_is_refused_at_the_launch_too() -> None:
    host = FakeHost(FakeAgents())
    program = table(max_mem_gb=4).load(bound(mem_gb=8).to_json())
    program.launch(host.add(Run("r7", "job", {}, State.STARTING)), host)
    told = Finished(State.ERROR, "Requested memory 8 GB exceeds cluster maximum 4 GB")
    assert host.wait(Finished) == told


def test_jobs_come_from_another_process_without_what_runs_in_it() -> None:
    program = pickle.loads(pickle.dumps(parse(mem_gb=3)))
    assert program.bind(lambda text: text).to_json() == bound(mem_gb=3).to_json()


def test_no_part_of_boto3_is_loaded_before_a_call_is_made() -> None:
    code = "import sys, apsis, programs.ecs.spec; assert not {'boto3', 'botocore'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, timeout=60)


# -- what the documents say --------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```yaml (\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(kind: str) -> list[str]:
    return [text for what, text in FENCE.findall((ROOT / "docs" / "ecs.md").read_text()) if what == kind]


def document(name: str) -> Any:
    return json.loads((ROOT / "docs" / "ecs" / name).read_text())


def actions(policy: Any) -> set[str]:
    found = [s["Action"] for s in policy["Statement"]]
    return {action for actions in found for action in ([actions] if isinstance(actions, str) else actions)}


def test_the_examples_of_jobs_and_of_the_servers_file_are_right(tmp_path: Path) -> None:
    (text,) = examples("config")
    (tmp_path / "apsis.yaml").write_text(text.replace("tls: {cert_path: server.pem}", "plain: true"))
    config = load(tmp_path / "apsis.yaml", environ={})
    assert len(examples("program")) == 2 and not config.warnings
    for example in examples("program"):
        assert Table(config).parse(yaml_load(example, "ecs.md")).tasks.config.max_vcpu == 16


def test_the_documented_task_definition_fits_the_image_and_what_we_ask_for() -> None:
    definition = document("task-definition.json")
    validate_parameters(definition, MODEL.operation_model("RegisterTaskDefinition").input_shape)
    (container,) = definition["containerDefinitions"]
    assert container["name"] == "agent" and container["command"] == ["--wait", "--wait-timeout", "900"]
    assert definition["volumes"] == [{"name": request.VOLUME, "configuredAtLaunch": True}]
    image = (ROOT / "packaging" / "ecs" / "Dockerfile").read_text()
    assert f"CMD {json.dumps(container['command'])}\n" in image
    for line in re.findall(r"^COPY (.*)$", image, re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()[:-1])


def test_the_documented_rights_are_those_that_are_needed() -> None:
    source = (ROOT / "programs" / "ecs" / "aws.py").read_text()
    calls = {f"{service}:{call}" for service, call in re.findall(r'_call\("(\w+)", "(\w+)"', source)}
    needed = calls | {"ecs:TagResource", "iam:PassRole"}
    assert actions(document("server-policy.json")) == needed
    page = (ROOT / "docs" / "ecs.md").read_text()
    assert all(f"`{right}`" in page for right in needed)
    assert "secretsmanager:GetSecretValue" in actions(document("execution-policy.json"))


def test_the_entry_point_names_what_is_missing() -> None:
    entry_point = ROOT / "packaging" / "ecs" / "entrypoint.sh"
    done = subprocess.run(["/bin/sh", str(entry_point)], env={}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "PROCSTAR_AGENT_HOST: set it in the task definition" in done.stderr


# -- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gb", "container", "task"),
    [
        (0.001, 6, 2048),  # Docker's least
        (0.5, 476, 2048),
        (1, 953, 2048),
        (2, 1907, 2419),
        (4, 3814, 4326),
        (8, 7629, 8141),
        (16, 15258, 15770),
        (64, 61035, 61547),
    ],
)
def test_memory_is_decimal_for_us_and_binary_for_aws(gb: float, container: int, task: int) -> None:
    size = sizes.size(gb, 1)
    assert (size.memory, size.task_memory) == (container, task)


@pytest.mark.parametrize(
    ("vcpu", "container", "task"),
    [(0.001, 2, 1024), (0.25, 256, 1024), (0.5, 512, 1024), (1, 1024, 1280), (2, 2048, 2304)]
    + [(4, 4096, 4352), (8, 8192, 8448), (16, 16384, 16640)],
)
def test_a_vcpu_is_1024_units_and_a_task_has_some_more(vcpu: float, container: int, task: int) -> None:
    size = sizes.size(1, vcpu)
    assert (size.cpu, size.task_cpu) == (container, task)


@pytest.mark.parametrize(
    ("gb", "gib", "iops", "throughput"),
    [
        (0.5, 1, 3000, 750),  # AWS has no volume below 1 GiB and 3000 IOPS
        (1, 1, 3000, 750),
        (6, 5, 3000, 750),
        (7, 6, 3000, 750),
        (10, 9, 4500, 1000),
        (11, 10, 5000, 1000),
        (20, 18, 9000, 1000),
        (35, 32, 16000, 1000),
        (100, 93, 16000, 1000),
        (17592, 16383, 16000, 1000),
    ],
)
def test_volumes_get_all_that_their_size_allows(gb: float, gib: int, iops: int, throughput: int) -> None:
    assert sizes.volume(gb) == sizes.Volume(gib, iops, throughput)


def test_no_volume_is_outside_of_what_aws_allows() -> None:
    for tenths in range(1, 5000):
        volume = sizes.volume(tenths / 10)
        assert 1 <= volume.gib <= 16384 and 3000 <= volume.iops <= 16000
        assert volume.iops <= max(3000, 500 * volume.gib)
        assert 125 <= volume.throughput <= min(1000, volume.iops * 0.25)


@pytest.mark.parametrize(
    ("mem_gb", "vcpu", "cpu", "memory"),
    [
        (0.5, 0.25, 1024, 2048),
        (2, 1, 2048, 4096),
        (4, 1, 2048, 5120),
        (8, 2, 4096, 8192),
        (60, 4, 8192, 61440),
        (100, 4, 16384, 98304),
        (128, 16, 16384, 122880),  # the overhead gives way
    ],
)
def test_fargate_gets_one_of_its_own_sizes(mem_gb: float, vcpu: float, cpu: int, memory: int) -> None:
    size = sizes.size(mem_gb, vcpu, fargate=True)
    assert (size.task_cpu, size.task_memory) == (cpu, memory)
    assert size.task_memory in sizes.FARGATE[size.task_cpu]
    assert size.memory <= memory and size.cpu <= cpu


def test_more_than_fargate_has_is_a_mistake_of_the_job() -> None:
    fargate = table(launch_type="FARGATE", max_mem_gb=None, max_vcpu=None)
    assert "Fargate has no tasks of more than 16 vCPU and 128.8 GB" in wrong(fargate, mem_gb=200)


# -- what AWS is asked for -----------------------------------------------------------------------------


def test_run_task_is_asked_for_exactly_this() -> None:
    assert run_task(mem_gb=8, vcpu=4, disk_gb=100, role="loader") == {
        "cluster": "main",
        "taskDefinition": "apsis-agent",
        "count": 1,
        "clientToken": f"{UUID}-r7",
        "startedBy": f"apsis-{UUID}",
        "overrides": {
            "containerOverrides": [
                {
                    "name": "agent",
                    "memory": 7629,
                    "cpu": 4096,
                    "environment": [
                        {"name": "APSIS_RUN_ID", "value": "r7"},
                        {"name": "PROCSTAR_GROUP_ID", "value": "aws-ecs-r7"},
                    ],
                }
            ],
            "memory": "8141",
            "cpu": "4352",
            "taskRoleArn": "arn:aws:iam::012345678901:role/loader",
        },
        "tags": [
            {"key": "apsis-run-id", "value": "r7"},
            {"key": "apsis-installation", "value": UUID},
        ],
        "volumeConfigurations": [
            {
                "name": "procstar-data",
                "managedEBSVolume": {
                    "sizeInGiB": 93,
                    "volumeType": "gp3",
                    "iops": 16000,
                    "throughput": 1000,
                    "encrypted": True,
                    "filesystemType": "ext4",
                    "roleArn": "arn:aws:iam::012345678901:role/volumes",
                    "terminationPolicy": {"deleteOnTermination": True},
                },
            }
        ],
    }


def test_what_a_job_does_not_say_is_the_default_of_the_servers_file() -> None:
    made = run_task()
    override = made["overrides"]["containerOverrides"][0]
    assert (override["memory"], override["cpu"]) == (1907, 1024)
    assert made["volumeConfigurations"][0]["managedEBSVolume"]["sizeInGiB"] == 18
    assert "taskRoleArn" not in made["overrides"]
    assert run_task(task_definition="other:4")["taskDefinition"] == "other:4"


def test_where_tasks_run_is_passed_on() -> None:
    network = {"awsvpcConfiguration": {"subnets": ["subnet-1"], "assignPublicIp": "ENABLED"}}
    made = run_task(replace(CONFIG, launch_type="FARGATE", network_configuration=network))
    assert (made["launchType"], made["networkConfiguration"]) == ("FARGATE", network)
    assert (made["overrides"]["cpu"], made["overrides"]["memory"]) == ("2048", "4096")
    spot = ({"capacityProvider": "FARGATE_SPOT", "weight": 1},)
    made = run_task(replace(CONFIG, capacity_provider_strategy=spot))
    assert made["capacityProviderStrategy"] == list(spot) and made["overrides"]["cpu"] == "2048"
    assert "volumeConfigurations" not in run_task(replace(CONFIG, launch_type="EXTERNAL"))


def test_volumes_can_be_kept() -> None:
    made = run_task(replace(CONFIG, retain_ebs=True))["volumeConfigurations"][0]["managedEBSVolume"]
    assert made["terminationPolicy"] == {"deleteOnTermination": False}


def test_names_keep_within_the_limits_of_aws_for_any_run() -> None:
    made = run_task(run_id="r" + "9" * 18)
    assert len(made["clientToken"]) <= 64 and len(made["startedBy"]) <= 128


def test_a_task_is_shown_with_links_to_the_console() -> None:
    arn = "arn:aws:ecs:eu-west-1:012345678901:task/main/0f3c"
    shown = request.shown(CONFIG, bound(), arn)
    console = "https://eu-west-1.console.aws.amazon.com"
    assert shown == {
        "account": "012345678901",
        "region": "eu-west-1",
        "cluster_name": "main",
        "task_definition": "apsis-agent",
        "task_id": "0f3c",
        "container_name": "agent",
        "log_group": "/apsis/agent",
        "log_stream": "ecs/agent/0f3c",
        "task_url": f"{console}/ecs/v2/clusters/main/tasks/0f3c?region=eu-west-1",
        "log_url": f"{console}/cloudwatch/home?region=eu-west-1#logsV2:log-groups/log-group/"
        "$252Fapsis$252Fagent/log-events/ecs$252Fagent$252F0f3c",
    }


# -- when it is asked ----------------------------------------------------------------------------------


class Hands:
    """Calls on a clock of the test's: what the thread does, step by step, each call at once."""

    def __init__(self) -> None:
        self.clock = SimClock()
        self.calls = Calls(self.clock, lambda work: work(), lambda: 3600.0)
        self.made: list[tuple[float, str]] = []
        self.failed: list[str] = []

    def put(self, name: str, fails: list[AwsError] | None = None, **more: Any) -> Call:
        errors = list(fails or ())

        def do() -> None:
            self.made.append((self.clock.monotonic(), name))
            if errors:
                raise errors.pop(0)

        call = Call(name, do, lambda answer: None, lambda error: self.failed.append(str(error)), **more)
        self.calls.put(call)
        return call

    def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while (now := self.clock.monotonic()) < end:
            calls, nap = self.calls._take(end - now)
            for call in calls:
                self.calls._attempt(call)
            if not calls:
                self.clock.advance(max(nap, 1e-6))


@pytest.fixture
def hands() -> Hands:
    return Hands()


def test_a_hundred_calls_at_once_keep_within_the_rate(hands: Hands) -> None:
    for number in range(100):
        hands.put(f"call {number}")
    hands.pass_time(60)
    assert [name for _, name in hands.made] == [f"call {number}" for number in range(100)]
    at = [instant for instant, _ in hands.made]
    for second in range(12):
        assert sum(second <= instant - at[0] < second + 1 for instant in at) <= BURST + RATE
    assert 8.5 <= at[-1] - at[0] <= 10


THROTTLED = AwsError("RunTask", "Rate exceeded", code="ThrottlingException", later=True)


def test_a_throttled_call_is_made_again_after_growing_delays(hands: Hands) -> None:
    told: list[int] = []
    hands.put("RunTask", [THROTTLED] * 5, retrying=lambda error, attempt: told.append(attempt))
    hands.pass_time(120)
    at = [instant for instant, _ in hands.made]
    assert len(at) == 6 and told == [1, 2, 3, 4, 5] and hands.failed == []
    for number, (one, next_one) in enumerate(zip(at, at[1:], strict=False)):
        assert 0.5 + 2**number / 4 <= next_one - one <= 0.9 + 2**number


def test_calls_that_are_refused_together_do_not_come_back_together(hands: Hands) -> None:
    for number in range(9):
        hands.put(f"{number}", [THROTTLED])
    hands.pass_time(30)
    again = [instant for instant, _ in hands.made[9:]]
    assert len(set(again)) == 9 and max(again) - min(again) > 0.1


def test_calls_that_wait_keep_no_hand() -> None:
    waiting: list[Callable[[], None]] = []
    calls = Calls(SimClock(), waiting.append, lambda: 3600.0)
    for number in range(100):
        calls.put(Call(f"call {number}", lambda: None, lambda answer: None, lambda error: None))
    taken, _ = calls._take(0.0)
    assert len(taken) == HANDS and calls._take(0.0)[0] == []
    calls._attempt(taken[0])
    assert len(calls._take(0.0)[0]) == 1


def test_a_stop_does_not_wait_for_a_hundred_launches(hands: Hands) -> None:
    for _ in range(100):
        hands.put("RunTask", launch=True)
    hands.pass_time(2)
    hands.put("StopTask")
    hands.pass_time(0.2)
    assert hands.made[-1][1] == "StopTask" or hands.made[-2][1] == "StopTask"


def test_an_error_may_be_worth_few_attempts(hands: Hands) -> None:
    hands.put("RunTask", [AwsError("RunTask", "who?", later=True, attempts=3)] * 9, attempts=math.inf)
    hands.pass_time(300)
    assert len(hands.made) == 3 and hands.failed == ["RunTask: who?"]


def test_what_would_fail_again_is_not_tried_again(hands: Hands) -> None:
    hands.put("RunTask", [AwsError("RunTask", "no such cluster")])
    hands.pass_time(60)
    assert len(hands.made) == 1 and hands.failed == ["RunTask: no such cluster"]


def test_a_call_gives_up_after_its_attempts(hands: Hands) -> None:
    hands.put("StopTask", [THROTTLED] * 3, attempts=3)
    hands.pass_time(60)
    assert len(hands.made) == 3 and hands.failed == ["RunTask: Rate exceeded"]


def test_a_call_that_nobody_wants_any_more_is_not_made(hands: Hands) -> None:
    wanted = [True, False]
    hands.put("RunTask", [THROTTLED], wanted=lambda: wanted.pop(0))
    hands.pass_time(60)
    assert len(hands.made) == 1 and hands.failed == []


# -- what is said of refusals --------------------------------------------------------------------------


def test_without_credentials_the_error_says_how_to_give_some(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AwsError) as caught:
        Aws("eu-west-1", "main").started_by("me")
    assert caught.value.attempts == 3  # seconds, not minutes
    assert str(caught.value).startswith(
        "ListTasks: Unable to locate credentials; give the server's host a role"
    )


def test_an_endpoint_that_cannot_be_reached_may_be_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(AwsError, match="RunTask: Could not connect") as caught:
        Aws("eu-west-1", "main").run_task(run_task())
    assert caught.value.later


def test_a_refusal_for_want_of_room_says_what_to_do() -> None:
    told = refused("RunTask", [{"arn": "i", "reason": "RESOURCE:MEMORY"}, {"reason": "AGENT", "detail": "d"}])
    assert told.startswith("ECS task failed to start: RunTask: RESOURCE:MEMORY; AGENT: d; add capacity")


STOPPED = {
    "lastStatus": "STOPPED",
    "stoppedReason": "Essential container in task exited",
    "containers": [{"name": "agent", "exitCode": 137, "reason": "OutOfMemoryError: container killed"}],
}


@pytest.mark.parametrize(
    ("state", "run_state", "killed", "ends", "told"),
    [
        (State.STARTING, {}, False, State.ERROR, "before its agent connected: Essential container in task"),
        (State.STARTING, {"conn_id": "c"}, False, State.ERROR, "the program may have started"),
        (State.RUNNING, {"conn_id": "c"}, False, State.ERROR, "while the program ran"),
        (State.STOPPING, {"conn_id": "c"}, True, State.FAILURE, "as the program did not end: "),
        (State.RUNNING, {"timed_out": 9.0}, True, State.FAILURE, "did not end (timeout after 9 s)"),
    ],
)
def test_a_stopped_task_ends_its_run_with_its_own_reason(
    state: State, run_state: dict[str, Any], killed: bool, ends: State, told: str
) -> None:
    found, text = outcome(STOPPED, Run("r7", "job", {}, state, run_state=run_state), "arn:x/main/t1", killed)
    assert found is ends and told in text
    assert text.endswith("container agent: OutOfMemoryError: container killed, exit code 137")


class Story:
    """Tasks of a server whose calls are not made, only noted."""

    def __init__(self) -> None:
        self.host = FakeHost(FakeAgents())
        self.program = table(sweep=None).parse({"type": "procstar-ecs", "command": "x"})
        self.tasks = self.program.tasks
        self.tasks._host, self.tasks._calls = self.host, self
        self.calls: list[str] = []

    def put(self, call: Call, delay: float = 0.0) -> None:
        self.calls.append(call.name)

    def wake(self) -> None: ...

    def run(self, state: State, **run_state: Any) -> Run:
        now = self.host.clock.wall()
        return self.host.add(Run("r7", "job", {}, state, times={"starting": now}, run_state=run_state))

    def pass_time(self, seconds: float) -> list[str]:
        """The calls that are then to be made, other than looks."""
        self.host.clock.advance(seconds)
        self.calls.clear()
        self.tasks._tick()
        return [name for name in self.calls if name != "DescribeTasks"]


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_task_that_stays_after_its_run_has_ended_is_stopped(story: Story) -> None:
    run = story.run(State.RUNNING, conn_id="A", task_arn="arn:x/main/t1")
    story.tasks.adopt(run, story.program, story.host)
    story.tasks.release(replace(run, state=State.SUCCESS), story.host)
    assert story.pass_time(119) == []
    assert story.pass_time(1) == ["StopTask"]


def test_a_task_that_is_leaving_is_left_alone(story: Story) -> None:
    run = story.run(State.RUNNING, conn_id="A", task_arn="arn:x/main/t1")
    story.tasks.adopt(run, story.program, story.host)
    story.tasks.release(replace(run, state=State.SUCCESS), story.host)
    leaving = {"taskArn": "arn:x/main/t1", "lastStatus": "RUNNING", "desiredStatus": "STOPPED"}
    story.tasks._seen(story.tasks._tasks["r7"], leaving)
    assert story.pass_time(1000) == [] and story.tasks._tasks == {}


def test_the_task_of_a_run_that_ended_badly_is_stopped_at_once(story: Story) -> None:
    run = story.run(State.STARTING, task_arn="arn:x/main/t1")
    story.tasks.release(run, story.host)  # not known before, as after a restart
    assert story.pass_time(0) == ["StopTask"]


def test_an_agent_has_time_to_come_back_after_a_long_restart(story: Story) -> None:
    run = story.run(State.STARTING, task_arn="arn:x/main/t1")
    story.host.agents.here = False
    story.host.clock.advance(3600)
    story.tasks.launch(run, story.program.bind(lambda text: text), story.host)
    assert story.pass_time(89) == []
    assert story.pass_time(1) == ["GetLogEvents"]  # it is over


def test_an_intent_older_than_its_token_is_looked_for_first(story: Story) -> None:
    run = story.run(State.STARTING)
    story.tasks.launch(run, story.program, story.host)
    assert story.pass_time(0) == ["RunTask"]
    story.tasks._tasks.clear()
    story.host.clock.advance(13 * 3600)
    story.tasks.launch(run, story.program, story.host)
    assert story.pass_time(0) == ["ListTasks"]


def test_a_task_that_aws_does_not_know_yet_is_awaited_and_at_last_given_up(story: Story) -> None:
    host, tasks = story.host, story.tasks
    tasks.adopt(story.run(State.RUNNING, conn_id="A", task_arn="arn:x/main/t1"), None, host)
    task = tasks._tasks["r7"]
    for described in (None, {"taskArn": task.arn, "lastStatus": "RUNNING"}, None):
        tasks._seen(task, described)
        host.clock.advance(59)
    assert host.of(Finished) == []
    host.clock.advance(1)
    host.agents = None  # its agent is not connected either
    tasks._seen(task, None)
    told = "ECS task t1 stopped while the program ran: ECS knows it no more"
    assert host.wait(Finished) == Finished(State.ERROR, told)


def test_the_servers_file_is_enough_for_a_table(tmp_path: Path) -> None:
    keys = "container_name: a, default_task_definition: t, aws_account_id: 1, ebs_volume_role: v"
    keys += ", log_group: g, log_stream_prefix: p, default_mem_gb: 1, default_vcpu: 1, default_disk_gb: 9"
    (tmp_path / "apsis.yaml").write_text(
        ECS + keys.replace(", ", "\n").replace("\n", "\n      ").join(["      ", "\n"])
    )
    program = Table(load(tmp_path / "apsis.yaml", environ={})).parse({"type": "procstar-ecs", "command": "x"})
    assert program.tasks.config.aws_account_id == "000000000001"
