"""Starting a program: fork, a new session, descriptors, exec. The one place where code runs in the child.

os.fork, since neither posix_spawn nor subprocess can apply an ordered list of descriptors and report which
one failed. The agent is one thread at the time of a fork but for a connection attempt, and the child calls
nothing but system calls before it execs or exits. What goes wrong in the child comes back through a pipe
that exec closes; the child then exits with 63.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from apsislib.agent.spec import Close, Dup, FdSpec, Inherit, Open

START_FAILED = 63  # the exit status of a child that could not become the program

# Python ignores these at its start; a program must find them as a shell would give them, or
# `yes | head` complains instead of ending.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True)
class Plan:
    """Everything the child does. `ends` gives the agent's descriptor for each captured or piped one."""

    argv: tuple[bytes, ...]
    exe: bytes
    env: Mapping[bytes, bytes]
    fds: Sequence[tuple[int, FdSpec]]
    ends: Mapping[int, int]
    refusal: str | None = None  # why the executable may not be run
    cgroup: int | None = None  # cgroup.procs, open for writing
    nofile: tuple[int, int] | None = None  # the limits that the agent itself was started with
    handled: Collection[int] = ()  # signals that the agent catches


def os_error(error: OSError) -> str:
    """An error as servers know it: `No such file or directory (os error 2)`."""
    if error.errno is None:
        return str(error)
    return f"{os.strerror(error.errno)} (os error {error.errno})"


def fork(plan: Plan) -> tuple[int, int]:
    """The child's pid, and the descriptor on which it reports errors, closed by its exec.

    Raises OSError where the machine has no room for another process or descriptor.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # Blocked until the child has its own dispositions: a signal must not run the agent's handlers there.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _child(plan, writer, mask)
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.set_blocking(reader, False)
    return pid, reader


def read_errors(fd: int) -> list[str]:
    """What the child reported, once its end of the pipe is closed."""
    data = b""
    while True:
        try:
            piece = os.read(fd, 65536)
        except BlockingIOError:
            break
        if not piece:
            break
        data += piece
    return [text.decode("utf-8", "replace") for text in data.split(b"\0") if text]


def _child(plan: Plan, errors: int, mask: set[signal.Signals] | set[int]) -> None:
    """(child only) Become the program, or report and exit. Never returns."""
    failures: list[str] = []
    try:
        for signum in (*_IGNORED_BY_PYTHON, *plan.handled):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if plan.cgroup is not None:
            _tried("cgroup failed", failures, os.write, plan.cgroup, b"0")
        _tried("setsid failed", failures, os.setsid)
        errors = _set_up(plan, errors, failures)
        if plan.nofile is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, plan.nofile)
        if plan.refusal is not None:
            failures.append(plan.refusal)
        if not failures:
            os.execve(plan.exe, plan.argv, plan.env)
    except OSError as error:
        failures.append(f"execve failed: {os.fsdecode(plan.exe)}: {os_error(error)}")
    except BaseException as error:  # whatever it is, two agents must not come out of one
        failures.append(f"start failed: {error!r}")
    finally:
        try:
            os.write(errors, b"\0".join(text.encode("utf-8", "surrogateescape") for text in failures)[:65536])
        finally:
            os._exit(START_FAILED)


def _set_up(plan: Plan, errors: int, failures: list[str]) -> int:
    """(child only) Apply the descriptors in order; where the error pipe is after that."""
    targets = {fd for fd, _ in plan.fds}
    # Ours must not sit where the program's are to go.
    errors = _clear_of(errors, targets)
    ends = {fd: _clear_of(end, targets) for fd, end in plan.ends.items()}
    for fd, what in plan.fds:
        _tried(f"failed to set up fd {fd}", failures, _apply, fd, what, ends.get(fd))
    return errors


def _tried(trouble: str, failures: list[str], call: Callable[..., object], *args: object) -> None:
    try:
        call(*args)
    except OSError as error:
        failures.append(f"{trouble}: {os_error(error)}")


def _apply(fd: int, what: FdSpec, end: int | None) -> None:
    if isinstance(what, Inherit):
        return
    if isinstance(what, Close):
        _check_open(fd)
        os.close(fd)
    elif isinstance(what, Dup):
        _check_open(what.fd)
        _put(what.fd, fd)
    elif isinstance(what, Open):
        # O_NOCTTY: the program leads its session, and would get a terminal that it never asked for.
        opened = os.open(what.path, what.flags | os.O_NOCTTY, what.mode)
        _put(opened, fd)
        if opened != fd:
            os.close(opened)
    else:
        assert end is not None
        _put(end, fd)


def _check_open(fd: int) -> None:
    """The agent's own descriptors, all close-on-exec, do not exist for a program: EBADF, as for none."""
    if fd < 0 or fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _put(source: int, fd: int) -> None:
    if source == fd:
        os.set_inheritable(fd, True)
    else:
        os.dup2(source, fd, inheritable=True)


def _clear_of(fd: int, taken: Collection[int]) -> int:
    """The same file under a number that is not taken."""
    place = fd
    while place in taken:
        higher = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, place + 1)
        if place != fd:
            os.close(place)
        place = higher
    return place
