"""A server in use for a while: 20 agents, 20 runs a second, and what it takes must not grow.

`python -m chaos.soak --seconds 900`, in tests/. Every minute a line: runs that have ended, and threads,
descriptors and memory (RSS) of the server, and descriptors and memory of all agents together. At the end
the last quarter is compared with the second: what is higher by more than its allowance is a leak.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import mean

from chaos.campaign import every
from chaos.world import PATIENCE, World

AGENTS = 20
JOBS = 20  # each runs every second
# By how much the mean of the last quarter may be above that of the second.
ALLOWED = {
    "threads": 2.0,
    "descriptors": 4.0,
    "memory": 8.0,
    "agents_descriptors": 40.0,
    "agents_memory": 40.0,
}


@dataclass(frozen=True, slots=True)
class Sample:
    threads: float
    descriptors: float
    memory: float  # MB
    agents_descriptors: float
    agents_memory: float  # MB

    def __str__(self) -> str:
        return " ".join(f"{f.name}={value:.1f}" for f, value in zip(fields(self), astuple(self), strict=True))


def of_process(pid: int) -> tuple[int, int, float]:
    """Threads, descriptors, MB of memory."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    memory = int(status["VmRSS"].split()[0]) * 1024 / 1e6
    return int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd")), memory


def sample(world: World) -> Sample:
    assert world.server is not None
    agents = [of_process(agent.process.pid) for agent in world.agents if agent.process is not None]
    return Sample(*of_process(world.server.pid), sum(a[1] for a in agents), sum(a[2] for a in agents))


def quarter(samples: list[Sample], number: int) -> Sample:
    size = len(samples) // 4
    part = samples[number * size : (number + 1) * size]
    return Sample(*(mean(values) for values in zip(*map(astuple, part), strict=True)))


def soak(directory: Path, seconds: float) -> bool:
    """Whether nothing has grown, and nothing failed."""
    job = f"schedule: {every(1)}\nprogram: {{type: procstar, argv: [/bin/echo, here]}}\n"
    world = World(directory, {f"job{n}": job for n in range(JOBS)}, 60.0, agents=AGENTS)
    world.clock.environment.clear()  # its own clock
    samples: list[Sample] = []
    with world:
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < seconds:
            time.sleep(5.0)
            samples.append(sample(world))
            if len(samples) % 12 == 0:
                ((ended,),) = world.query("SELECT count(*) FROM runs WHERE state = 'success'")
                print(f"{passed:6.0f} s runs={ended} {samples[-1]}", flush=True)
        end = time.monotonic() + PATIENCE
        states: dict[str, int] = {}
        now = time.time()
        while time.monotonic() < end:
            sql = "SELECT state, count(*) FROM runs WHERE schedule < ? GROUP BY state"
            states = dict(world.query(sql, now))
            if set(states) == {"success"}:
                break
            time.sleep(0.5)
        stats = world.get("/stats")
    before, after = quarter(samples, 1), quarter(samples, 3)
    grown = {
        name: getattr(after, name) - getattr(before, name)
        for name, allowed in ALLOWED.items()
        if getattr(after, name) - getattr(before, name) > allowed
    }
    rate = states.get("success", 0) / seconds
    print(f"soak: {seconds:.0f} s, {AGENTS} agents, {rate:.1f} runs/s, states {states}")
    print(f"  second quarter: {before}\n  last quarter:   {after}\n  timer lateness: {stats['timer']}")
    print(f"  grown: {grown or 'nothing'}")
    return not grown and set(states) == {"success"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=900.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apsis-soak-") as directory:
        return 0 if soak(Path(directory), given.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
