"""From what jobs say, in 10^9 bytes and vCPUs, to what ECS is asked for, in MiB, GiB and CPU units.

Sources: the tables of "task size" and "Amazon EBS volumes" in the ECS developer guide, and the limits
in botocore's description of TaskManagedEBSVolumeConfiguration.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

UNITS = 1024  # CPU units of a vCPU
OVERHEAD_MEMORY = 512  # MiB of a task beside its container
OVERHEAD_CPU = 256
LEAST_MEMORY = 2048  # MiB of a task
LEAST_CPU = 1024
# Below these, Docker refuses a container.
LEAST_CONTAINER_MEMORY = 6  # MiB
LEAST_CONTAINER_CPU = 2

# gp3 volumes
GIB = (1, 16384)
IOPS = (3000, 16000)
IOPS_PER_GIB = 500
THROUGHPUT = (125, 1000)  # MiB/s
THROUGHPUT_PER_IOPS = 0.25

# Fargate takes these only: CPU units -> MiB.
FARGATE: dict[int, Iterable[int]] = {
    256: (512, 1024, 2048),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}
FARGATE_CPU = max(FARGATE)
FARGATE_MEMORY = max(max(sizes) for sizes in FARGATE.values())


class TooLarge(Exception):
    """More than AWS has; the text says of what."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a container and of the task around it: CPU units, and MiB."""

    cpu: int
    memory: int
    task_cpu: int
    task_memory: int


@dataclass(frozen=True, slots=True)
class Volume:
    gib: int
    iops: int
    throughput: int  # MiB/s


def size(mem_gb: float, vcpu: float, fargate: bool = False) -> Size:
    """Raises TooLarge if it is to run on Fargate, which has nothing so large."""
    memory = max(LEAST_CONTAINER_MEMORY, int(mem_gb * 1e9 / 2**20))
    cpu = max(LEAST_CONTAINER_CPU, int(vcpu * UNITS))
    task_memory = max(memory + OVERHEAD_MEMORY, LEAST_MEMORY)
    task_cpu = max(cpu + OVERHEAD_CPU, LEAST_CPU)
    if fargate:
        task_cpu, task_memory = _fargate(cpu, memory, task_cpu, task_memory)
    return Size(cpu, memory, task_cpu, task_memory)


def _fargate(cpu: int, memory: int, task_cpu: int, task_memory: int) -> tuple[int, int]:
    """The smallest size of Fargate's that holds a task; the overhead gives way at the top."""
    if cpu > FARGATE_CPU or memory > FARGATE_MEMORY:
        most = f"{FARGATE_CPU // UNITS} vCPU and {FARGATE_MEMORY * 2**20 / 1e9:.1f} GB"
        raise TooLarge(f"Fargate has no tasks of more than {most}")
    task_cpu = min(task_cpu, FARGATE_CPU)
    task_memory = min(task_memory, FARGATE_MEMORY)
    return min(
        (units, mib)
        for units, sizes in FARGATE.items()
        for mib in sizes
        if units >= task_cpu and mib >= task_memory
    )


def volume(disk_gb: float) -> Volume:
    """Raises TooLarge."""
    gib = max(GIB[0], int(disk_gb * 1e9 / 2**30))
    if gib > GIB[1]:
        raise TooLarge(f"a gp3 volume has at most {GIB[1]} GiB, {GIB[1] * 2**30 / 1e9:.0f} GB")
    iops = max(IOPS[0], min(IOPS_PER_GIB * gib, IOPS[1]))
    throughput = max(THROUGHPUT[0], min(int(iops * THROUGHPUT_PER_IOPS), THROUGHPUT[1]))
    return Volume(gib, iops, throughput)
