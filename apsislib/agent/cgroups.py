"""Limits and accounting by cgroup v2, where the agent has been given a subtree of its own.

A subtree is ours if systemd marked it as delegated (`Delegate=yes`), if an unprivileged agent may write
to it, or if it is the root of a container's cgroup namespace. Everywhere else nothing is touched, and
limits are not applied: agents without systemd do the same, but ours says so with each result.

Each program gets a cgroup below it, which it enters before exec, so that no descendant escapes. When the
program has ended its accounting is read and what is left of its descendants is killed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
from pathlib import Path
from typing import Any

from apsislib.agent.loop import URGENT, Loop
from apsislib.agent.spec import Limits

log = logging.getLogger(__name__)

RETRY = 1.0  # seconds until one that could not be ended is tried again
CONTROLLERS = ("memory", "pids")
MAX = 2**64 - 1  # systemd's way to say that there is no limit
FILES = {
    "memory_min": "memory.min",
    "memory_low": "memory.low",
    "memory_high": "memory.high",
    "memory_max": "memory.max",
    "memory_swap_max": "memory.swap.max",
    "tasks_max": "pids.max",
}
CPU_ALWAYS = ("usage_usec", "user_usec", "system_usec")
CPU_MAYBE = ("nr_periods", "nr_throttled", "throttled_usec", "nr_bursts", "burst_usec")


class Cgroup:
    """The cgroup of one program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkdir(path)
        try:
            # Opened by us, so that the child needs no right to it, only the descriptor.
            self.entrance: int | None = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            os.rmdir(path)
            raise

    def limit(self, limits: Limits) -> list[str]:
        """Apply what can be applied; what cannot, in words."""
        problems = []
        for name, amount in limits.slice.items():
            try:
                _write(self.path / FILES[name], "max" if amount == MAX else str(amount))
            except FileNotFoundError:
                if name in limits.worth_a_word:
                    controller = FILES[name].partition(".")[0]
                    problems.append(
                        f"{name}={amount} not applied: no {controller} controller in {self.path.parent}"
                    )
            except OSError as error:
                if name in limits.worth_a_word:
                    problems.append(f"{name}={amount} not applied: {error.strerror}")
        if limits.oom_policy in ("stop", "kill"):
            with contextlib.suppress(OSError):
                _write(self.path / "memory.oom.group", "1")
        for name, amount in limits.scope.items():
            problems.append(f"{name}={amount} not applied: this agent does not know how")
        return problems

    def entered(self) -> None:
        """The child has its copy of the entrance."""
        if self.entrance is not None:
            os.close(self.entrance)
            self.entrance = None

    def accounting(self) -> dict[str, Any] | None:
        """Final figures in the form of `cgroup_accounting`; None where there are none.

        A figure that the kernel does not keep is None: `swap_peak` came with 6.5. Other agents then give
        no figures at all.
        """
        try:
            controllers = (self.path / "cgroup.controllers").read_text().split()
            cpu = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
            return {
                "pids": self._figures("pids.", ("current", "peak")) if "pids" in controllers else None,
                "cpu_stat": {name: int(cpu[name]) for name in CPU_ALWAYS}
                | {name: int(cpu[name]) if name in cpu else None for name in CPU_MAYBE},
                "memory": (
                    self._figures("memory.", ("current", "peak", "swap_current", "swap_peak"))
                    if "memory" in controllers
                    else None
                ),
            }
        except (OSError, KeyError, ValueError) as error:
            log.debug("no accounting: %s", error)
            return None

    def _figures(self, prefix: str, names: tuple[str, ...]) -> dict[str, int | None]:
        figures: dict[str, int | None] = dict.fromkeys(names)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                figures[name] = int((self.path / (prefix + name.replace("_", "."))).read_text())
        return figures

    def end(self, loop: Loop) -> None:
        """Kill what is left in it, and remove it as soon as it is empty."""
        self.entered()
        try:
            _write(self.path / "cgroup.kill", "1")
        except OSError:  # before Linux 5.14
            self._kill_each()
        if self._remove():
            return
        try:
            events = os.open(self.path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:  # no descriptor is left, say
            log.warning("cgroup %s not watched: %s", self.path, error)
            loop.call_after(RETRY, lambda: self.end(loop))
            return

        def changed(_: int) -> None:
            os.pread(events, 4096, 0)  # a read is what arms the next event
            if self._remove():
                loop.unwatch(events)
                os.close(events)

        loop.watch(events, URGENT, changed)
        changed(0)

    def _kill_each(self) -> None:
        with contextlib.suppress(OSError):
            for pid in (self.path / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)

    def _remove(self) -> bool:
        """False while it is still populated."""
        try:
            os.rmdir(self.path)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            log.warning("cgroup %s not removed: %s", self.path, error)
        return True


class Cgroups:
    """The subtree in which programs get their cgroups."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, limits: Limits) -> tuple[Cgroup | None, list[str]]:
        """A cgroup with these limits, None where the kernel refuses one; and what could not be applied."""
        try:
            cgroup = Cgroup(self.root / f"procstar{os.urandom(16).hex()}")
        except OSError as error:
            return None, unapplied(limits, f"no cgroup can be made: {error}")
        return cgroup, cgroup.limit(limits)


def unapplied(limits: Limits, why: str) -> list[str]:
    """That none of these limits could be applied, in words."""
    return [f"{name}={amount} not applied: {why}" for name, amount in limits.worth_a_word.items()]


def find() -> Cgroups | None:
    """The subtree that was given to this process, made ready; None where there is none."""
    root = _own()
    if root is None or not _given(root):
        return None
    # Controllers can be switched on for children only where no process lives beside them.
    leaf = root / f"procstar-agent-{os.getpid()}"
    try:
        os.mkdir(leaf)
        _write(leaf / "cgroup.procs", "0")
    except OSError as error:
        log.info("cgroup %s not usable: %s", root, error)
        with contextlib.suppress(OSError):
            os.rmdir(leaf)
        return None
    for controller in CONTROLLERS:
        try:
            _write(root / "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            log.info("cgroup %s: no %s controller: %s", root, controller, error)
    return Cgroups(root)


def _own() -> Path | None:
    """The directory of this process's cgroup in the v2 hierarchy."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return None
    inside = next((line[3:] for line in lines if line.startswith("0::")), None)
    # mountinfo: id, parent, device, root, mount point, options ..., "-", type, source, options
    place = next((mount[4] for mount in mounts if mount[mount.index("-") + 1] == "cgroup2"), None)
    if inside is None or place is None or "/.." in inside:
        return None
    return Path(place + inside.rstrip("/"))


def _given(root: Path) -> bool:
    needed = (root, root / "cgroup.procs", root / "cgroup.subtree_control")
    if not all(os.access(path, os.W_OK) for path in needed):
        return False
    if os.geteuid() != 0:
        return True
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(root, name) == b"1":
                return True
    # The machine's own root cgroup has no type; the root of a container's namespace has one.
    namespace_root = _own() is not None and Path("/proc/self/cgroup").read_text().splitlines()[-1] == "0::/"
    return namespace_root and (root / "cgroup.type").exists()


def _write(path: Path, text: str) -> None:
    # Not Path.write_text: it would create a missing file, where its absence must be an error.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
