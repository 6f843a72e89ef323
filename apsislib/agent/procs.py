"""The records: one a program, from its start until it is deleted, with all that it wrote."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apsislib.agent import children, results
from apsislib.agent.captures import Capture, temporary_directory
from apsislib.agent.cgroups import Cgroup, Cgroups, unapplied
from apsislib.agent.loop import READ, Loop
from apsislib.agent.spec import Captured, PipeRead, Spec, check, fd_name
from apsislib.errors import BadRequest, NotFound

log = logging.getLogger(__name__)

PIPEFULS = 17  # reads that empty the largest pipe (1 MiB) at a program's end, and no more than that


@dataclass
class Proc:
    """One program. `status` and `rusage` are None until it is reaped; times are wall and boot seconds."""

    proc_id: str
    spec: Spec
    captures: dict[int, Capture]
    pid: int = 0
    start: float = 0.0
    start_boot: float = 0.0
    stop: float | None = None
    elapsed: float | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # limits that could not be applied
    error_pipe: int | None = None
    status: int | None = None
    rusage: resource.struct_rusage | None = None
    last_stat: dict[str, Any] | None = None
    cgroup: Cgroup | None = None
    accounting: dict[str, Any] | None = None

    @property
    def state(self) -> str:
        """running, error or terminated."""
        if self.errors:
            return "error"
        return "running" if self.status is None else "terminated"


# Told of each change: "started", "stopped" or "deleted", and the record.
Observer = Callable[[str, Proc], None]


class Procs:
    """All records of this agent, and the children behind them. Everything is called from the loop."""

    def __init__(
        self,
        loop: Loop,
        env: Mapping[bytes, bytes],
        restrict_exe: str | None = None,
        nofile: tuple[int, int] | None = None,
        cgroups: Cgroups | None = None,
        directory: Path | None = None,
    ) -> None:
        self.held: dict[str, Proc] = {}
        self.observers: list[Observer] = []
        self.handled: Collection[int] = ()  # signals that the agent catches, which a child resets
        self._loop = loop
        self._clock = loop.clock
        self._env = env
        self._restrict_exe = None if restrict_exe is None else os.fsencode(restrict_exe)
        self._nofile = nofile
        self._cgroups = cgroups
        self._directory = directory or temporary_directory()
        self._by_pid: dict[int, Proc] = {}

    @property
    def running(self) -> list[Proc]:
        """Those whose process has not been reaped."""
        return list(self._by_pid.values())

    def ids(self) -> list[str]:
        return sorted(self.held)

    def get(self, proc_id: str) -> Proc:
        try:
            return self.held[proc_id]
        except KeyError:
            raise NotFound(f"unknown proc id: {proc_id}") from None

    def start(self, specs: Mapping[str, Spec], shutdown_state: str) -> None:
        """Start all of them, or none and raise BadRequest.

        Whatever can fail is done before the first fork. Should the machine refuse a later fork of the same
        request, that program alone gets a record with the error and the exit status of a failed start.
        """
        check(specs, self.held, shutdown_state)
        ends: dict[tuple[str, int], int] = {}
        procs: list[Proc] = []
        try:
            try:
                _open_pipes(specs, ends)
                for proc_id, spec in specs.items():
                    procs.append(proc := Proc(proc_id, spec, {}))
                    self._prepare(proc, ends)
                if procs:
                    self._fork(procs[0], ends)
            except OSError as error:
                for proc in procs:
                    self._discard(proc)
                raise BadRequest(children.os_error(error)) from None
            for proc in procs[1:]:
                try:
                    self._fork(proc, ends)
                except OSError as error:
                    self._unstarted(proc, f"fork failed: {children.os_error(error)}")
        finally:
            for end in ends.values():
                os.close(end)
        for proc in procs:
            self._tell("started", proc)
            if proc.status is not None:
                self._tell("stopped", proc)

    def signal(self, proc_id: str, signum: int) -> None:
        """Send a signal to the program's own process, and to no other of its session."""
        proc = self.get(proc_id)
        if proc.status is not None:
            raise BadRequest("no process")
        try:
            os.kill(proc.pid, signum)  # not reaped, so the pid is still this program's
        except OSError as error:
            raise BadRequest(children.os_error(error)) from None
        log.info("proc %s signal=%d", proc_id, signum)

    def signal_all(self, signum: int) -> None:
        """To every program that runs, as far as we may."""
        for proc in self.running:
            with contextlib.suppress(OSError):
                os.kill(proc.pid, signum)

    def delete(self, proc_id: str) -> Proc:
        """Forget a program that runs no more, and its output. The record that was."""
        proc = self.get(proc_id)
        if proc.state == "running":
            raise BadRequest(f"process running: {proc_id}")
        del self.held[proc_id]
        for capture in proc.captures.values():
            capture.close()
        log.info("proc %s deleted", proc_id)
        self._tell("deleted", proc)
        return proc

    def capture(self, proc_id: str, fd: int) -> Capture:
        """What a descriptor has written."""
        proc = self.get(proc_id)
        if fd not in dict(proc.spec.fds):
            raise BadRequest(f"no fd: {fd}")
        if fd not in proc.captures:
            raise BadRequest("no fd data")
        return proc.captures[fd]

    def result(self, proc: Proc) -> dict[str, Any]:
        """The `res` map, as of now."""
        alive = proc.status is None
        if alive:
            proc.last_stat = results.proc_stat(proc.pid, self._clock) or proc.last_stat
        elapsed = self._clock.boot() - proc.start_boot if proc.elapsed is None else proc.elapsed
        fds = {}
        for fd, _ in proc.spec.fds:
            capture = proc.captures.get(fd)
            fds[fd_name(fd)] = None if capture is None else capture.result()
        return {
            "state": proc.state,
            "errors": list(proc.errors),
            "pid": proc.pid,
            "proc_stat": proc.last_stat,
            "proc_statm": results.proc_statm(proc.pid) if alive else None,
            "cgroup_accounting": proc.accounting,
            "times": results.times_map(self._clock, proc.start, proc.stop, elapsed),
            "status": None if proc.status is None else results.status_map(proc.status),
            "rusage": None if proc.rusage is None else results.rusage_map(proc.rusage),
            "fds": dict(sorted(fds.items())),
            # Not known to other agents; servers keep what they know of a result, and pass over the rest.
            **({"warnings": list(proc.warnings)} if proc.warnings else {}),
        }

    def reap(self) -> None:
        """Take note of every child that has ended: after SIGCHLD.

        Also of children that are not ours but were left to us, as to the first process of a container.
        """
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            proc = self._by_pid.pop(ended.si_pid, None)
            if proc is not None:
                proc.last_stat = results.proc_stat(proc.pid, self._clock) or proc.last_stat
            _, status, rusage = os.wait4(ended.si_pid, 0)
            if proc is None:
                continue
            try:
                self._ended(proc, status, rusage)
            except Exception:  # the others have ended too, and no signal will say so again
                log.error("proc %s: its end was not dealt with", proc.proc_id, exc_info=True)

    # -- a start, step by step

    def _prepare(self, proc: Proc, ends: Mapping[tuple[str, int], int]) -> None:
        for fd, what in proc.spec.fds:
            if isinstance(what, Captured):
                proc.captures[fd] = capture = Capture(what, self._directory)
                if capture.pipe is not None:
                    self._watch(capture, capture.pipe)
        if self._cgroups is not None:
            proc.cgroup, proc.warnings = self._cgroups.make(proc.spec.limits)
        else:
            proc.warnings = unapplied(proc.spec.limits, "the agent has no cgroup delegated to it")
        for warning in proc.warnings:
            log.warning("proc %s: %s", proc.proc_id, warning)

    def _fork(self, proc: Proc, ends: Mapping[tuple[str, int], int]) -> None:
        spec = proc.spec
        own = {fd: ends[proc.proc_id, fd] for fd, _ in spec.fds if (proc.proc_id, fd) in ends}
        own.update((fd, capture.child_fd) for fd, capture in proc.captures.items())
        refused = self._restrict_exe is not None and spec.exe != self._restrict_exe
        plan = children.Plan(
            argv=spec.argv,
            exe=spec.exe,
            env=spec.environment(self._env),
            fds=spec.fds,
            ends=own,
            refusal=f"restricted executable: {os.fsdecode(spec.exe)}" if refused else None,
            cgroup=None if proc.cgroup is None else proc.cgroup.entrance,
            nofile=self._nofile,
            handled=self.handled,
        )
        proc.start, proc.start_boot = self._clock.wall(), self._clock.boot()
        proc.pid, proc.error_pipe = children.fork(plan)
        self.held[proc.proc_id] = self._by_pid[proc.pid] = proc
        # Nothing may fail from here on: it runs. Where the kernel will not watch, its end is early enough.
        with contextlib.suppress(OSError):
            self._loop.watch(proc.error_pipe, READ, lambda events: self._settle(proc))
        for capture in proc.captures.values():
            capture.started()
        if proc.cgroup is not None:
            proc.cgroup.entered()
        log.info("proc %s started pid=%d exe=%s", proc.proc_id, proc.pid, os.fsdecode(spec.exe))

    def _unstarted(self, proc: Proc, why: str) -> None:
        now = self._clock.wall()
        proc.errors, proc.start, proc.stop, proc.elapsed = [why], now, now, 0.0
        proc.status = children.START_FAILED << 8
        for capture in proc.captures.values():
            capture.started()
            self._close_pipe(capture)
        if proc.cgroup is not None:
            proc.cgroup.end(self._loop)
        self.held[proc.proc_id] = proc

    def _discard(self, proc: Proc) -> None:
        for capture in proc.captures.values():
            self._close_pipe(capture)
            capture.close()
        if proc.cgroup is not None:
            proc.cgroup.end(self._loop)

    # -- and its end

    def _settle(self, proc: Proc) -> None:
        """The child has closed its error pipe: it has become the program, or has said why not."""
        if proc.error_pipe is None:
            return
        proc.errors = children.read_errors(proc.error_pipe)
        self._loop.unwatch(proc.error_pipe)
        os.close(proc.error_pipe)
        proc.error_pipe = None
        for text in proc.errors:
            log.warning("proc %s: %s", proc.proc_id, text)

    def _ended(self, proc: Proc, status: int, rusage: resource.struct_rusage) -> None:
        self._settle(proc)
        proc.stop = self._clock.wall()
        proc.elapsed = self._clock.boot() - proc.start_boot
        proc.status, proc.rusage = status, rusage
        for capture in proc.captures.values():
            # What it wrote before its end belongs into its final result.
            for _ in range(PIPEFULS):
                if not self._drain(capture):
                    break
        if proc.cgroup is not None:
            proc.accounting = proc.cgroup.accounting()
            proc.cgroup.end(self._loop)
            proc.cgroup = None
        log.info("proc %s ended status=%d", proc.proc_id, status)
        if self.held.get(proc.proc_id) is proc:
            self._tell("stopped", proc)

    def _watch(self, capture: Capture, pipe: int) -> None:
        def readable(events: int) -> None:
            self._drain(capture)

        self._loop.watch(pipe, READ, readable)

    def _drain(self, capture: Capture) -> int:
        """Empty a capture's pipe into its store; the bytes taken."""
        taken = capture.drain()
        if taken is None:
            self._close_pipe(capture)
        return taken or 0

    def _close_pipe(self, capture: Capture) -> None:
        if capture.pipe is not None:
            self._loop.unwatch(capture.pipe)
            os.close(capture.pipe)
            capture.pipe = None

    def _tell(self, event: str, proc: Proc) -> None:
        for observer in tuple(self.observers):
            observer(event, proc)


def _open_pipes(specs: Mapping[str, Spec], ends: dict[tuple[str, int], int]) -> None:
    """Both ends of each pipe, filed under the program and descriptor that get them."""
    for proc_id, spec in specs.items():
        for fd, what in spec.fds:
            if isinstance(what, PipeRead):
                ends[proc_id, fd], ends[what.proc_id, what.fd] = os.pipe2(os.O_CLOEXEC)
