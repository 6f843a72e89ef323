"""The parameters of RunTask for a run, and what is shown of the task that it makes."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import quote

from apsislib.config.keys import Ecs as Config
from programs.ecs import sizes

RUN_TAG = "apsis-run-id"
INSTALLATION_TAG = "apsis-installation"
VOLUME = "procstar-data"  # the name that task definitions give to the volume


class Wanted(Protocol):
    """What a bound program asks for; None: the default of the server's file."""

    @property
    def mem_gb(self) -> float | None: ...
    @property
    def vcpu(self) -> float | None: ...
    @property
    def disk_gb(self) -> float | None: ...
    @property
    def role(self) -> str | None: ...
    @property
    def task_definition(self) -> str | None: ...


def group_id(run_id: str) -> str:
    """The group of the one agent that runs the program of this run."""
    return f"aws-ecs-{run_id}"


def started_by(installation: str) -> str:
    """What tasks of this installation are listed by. At most 128 letters, digits, `-`, `_` and `/`."""
    return f"apsis-{installation}"


def is_fargate(config: Config) -> bool:
    providers = [str(item.get("capacityProvider")) for item in config.capacity_provider_strategy or ()]
    return config.launch_type == "FARGATE" or any(p in ("FARGATE", "FARGATE_SPOT") for p in providers)


def excess(config: Config, mem_gb: float | None, vcpu: float | None, disk_gb: float | None) -> str | None:
    """Why so much can't be had; None: it can. What is not given is the default."""
    mem_gb = config.default_mem_gb if mem_gb is None else mem_gb
    vcpu = config.default_vcpu if vcpu is None else vcpu
    disk_gb = config.default_disk_gb if disk_gb is None else disk_gb
    if config.max_mem_gb is not None and mem_gb > config.max_mem_gb:
        return f"Requested memory {mem_gb:g} GB exceeds cluster maximum {config.max_mem_gb:g} GB"
    if config.max_vcpu is not None and vcpu > config.max_vcpu:
        return f"Requested vCPU {vcpu:g} exceeds cluster maximum {config.max_vcpu:g}"
    try:
        sizes.size(mem_gb, vcpu, is_fargate(config))
        sizes.volume(disk_gb)
    except sizes.TooLarge as error:
        return f"Requested {mem_gb:g} GB, {vcpu:g} vCPU and {disk_gb:g} GB of disk: {error}"
    return None


def run_task(config: Config, installation: str, run_id: str, program: Wanted) -> dict[str, Any]:
    """The parameters of RunTask. Equal for equal arguments: a repetition must not look like another."""
    size = sizes.size(
        config.default_mem_gb if program.mem_gb is None else program.mem_gb,
        config.default_vcpu if program.vcpu is None else program.vcpu,
        is_fargate(config),
    )
    overrides: dict[str, Any] = {
        "containerOverrides": [
            {
                "name": config.container_name,
                "memory": size.memory,
                "cpu": size.cpu,
                "environment": [
                    {"name": "APSIS_RUN_ID", "value": run_id},
                    {"name": "PROCSTAR_GROUP_ID", "value": group_id(run_id)},
                ],
            }
        ],
        "memory": str(size.task_memory),
        "cpu": str(size.task_cpu),
    }
    if program.role:
        overrides["taskRoleArn"] = role_arn(config, program.role)
    request: dict[str, Any] = {
        "cluster": config.cluster_name,
        "taskDefinition": program.task_definition or config.default_task_definition,
        "count": 1,
        "clientToken": f"{installation}-{run_id}",
        "startedBy": started_by(installation),
        "overrides": overrides,
        "tags": [
            {"key": RUN_TAG, "value": run_id},
            {"key": INSTALLATION_TAG, "value": installation},
        ],
    }
    if config.launch_type != "EXTERNAL":  # such instances have no EBS volumes
        disk = sizes.volume(config.default_disk_gb if program.disk_gb is None else program.disk_gb)
        volume = {
            "sizeInGiB": disk.gib,
            "volumeType": "gp3",
            "iops": disk.iops,
            "throughput": disk.throughput,
            "encrypted": True,
            "filesystemType": "ext4",
            "roleArn": role_arn(config, config.ebs_volume_role),
            "terminationPolicy": {"deleteOnTermination": not config.retain_ebs},
        }
        request["volumeConfigurations"] = [{"name": VOLUME, "managedEBSVolume": volume}]
    if config.launch_type is not None:
        request["launchType"] = config.launch_type
    if config.capacity_provider_strategy:
        request["capacityProviderStrategy"] = [dict(item) for item in config.capacity_provider_strategy]
    if config.network_configuration is not None:
        request["networkConfiguration"] = dict(config.network_configuration)
    return request


def role_arn(config: Config, role: str) -> str:
    return f"arn:{_partition(config.region)}:iam::{config.aws_account_id}:role/{role}"


def _partition(region: str) -> str:
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


_CONSOLES = {
    "aws": "{}.console.aws.amazon.com",
    "aws-us-gov": "{}.console.amazonaws-us-gov.com",
    "aws-cn": "{}.console.amazonaws.cn",
}


def task_id(arn: str) -> str:
    return arn.rpartition("/")[2]


def log_streams(config: Config, arn: str) -> tuple[str, str]:
    """Where the container's log is: as configured, else as the awslogs driver names it."""
    prefix, task = config.log_stream_prefix.rstrip("/"), task_id(arn)
    return f"{prefix}/{task}", f"{prefix}/{config.container_name}/{task}"


def shown(config: Config, program: Wanted, arn: str, stream: str | None = None) -> dict[str, Any]:
    """meta.program.aws_ecs of a run. `stream`: its log stream, where that is known better."""
    task = task_id(arn)
    stream = stream or log_streams(config, arn)[0]
    region = config.region
    console = f"https://{_CONSOLES[_partition(region)].format(region)}"
    at = f"log-groups/log-group/{_twice(config.log_group)}/log-events/{_twice(stream)}"
    return {
        "account": config.aws_account_id,
        "region": region,
        "cluster_name": config.cluster_name,
        "task_definition": program.task_definition or config.default_task_definition,
        "task_id": task,
        "container_name": config.container_name,
        "log_group": config.log_group,
        "log_stream": stream,
        "task_url": f"{console}/ecs/v2/clusters/{quote(config.cluster_name)}/tasks/{task}?region={region}",
        "log_url": f"{console}/cloudwatch/home?region={region}#logsV2:{at}",
    }


def _twice(text: str) -> str:
    """As the CloudWatch console writes a name in its fragment: quoted twice, `$` for the second `%`."""
    return quote(quote(text, safe=""), safe="").replace("%", "$")
