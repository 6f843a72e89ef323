"""What a run can do: what a program is asked, and what it is given to answer with.

A program is parsed from a job (unbound: its texts are templates), bound when a run is made, stored
with the run as JSON, and loaded again whenever something has to be done. So a bound program holds no
state: what must outlive the server is in `run.run_state`, what is live belongs to whom it is given.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from apsislib import templates
from apsislib.clock import Clock
from apsislib.errors import BadRequest, FieldError
from apsislib.runs import Finished, Json, Limits, Remark, Report, Run
from apsislib.states import State
from apsislib.times import parse_duration
from apsislib.upkeep import Upkeep
from apsislib.wire import FdHead

OUTPUT = "output"  # the ID of the one output that programs have
OUTPUT_NAME = "combined stdout & stderr"
OUTPUT_TYPE = "application/octet-stream"

Expand = Callable[[str], str]


# -- what programs are given -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OutputLimit:
    """How much output of a run is kept, and what happens to a program that writes more."""

    max_size: int | None = None  # bytes; None: no limit
    kill: bool = False  # it is killed; else it goes on, its further output unseen


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server's file says about all programs. Durations in seconds."""

    timeout: float | None = None
    timeout_signal: int = signal.SIGTERM
    start_timeout: float | None = None
    reconnect_timeout: float | None = 3600.0
    update_interval: float | None = None
    output_interval: float | None = 1.0
    sudo_argv: tuple[str, ...] = ("/usr/bin/sudo", "--preserve-env", "--set-home")
    mem_max_gb: float | None = None
    output: OutputLimit = field(default_factory=OutputLimit)
    ecs: Any = None  # programs.ecs.tasks.Tasks; None: the server's file has no procstar.agent.ecs


class Watcher(Protocol):
    """Who is told what an agent says about one process.

    All but `lost` come on the thread of the agent's connection, one at a time; none may block.
    """

    def registered(self, listed: bool) -> None:
        """The agent has connected (again). `listed`: it holds a record of the process."""

    def lost(self) -> None:
        """The connection is gone. The process may go on."""

    def gone(self) -> None:
        """The agent has said that it is done, and will not come back."""

    def result(self, res: Json) -> None: ...

    def head(self, head: FdHead) -> None:
        """Bytes of output follow, from `head.start` on."""

    def data(self, piece: bytes) -> None: ...

    def end(self) -> None:
        """All bytes that `head` announced have come."""

    def error(self, msg: Json, err: str) -> None:
        """The agent refused the request `msg`."""

    def unknown(self) -> None: ...
    def deleted(self) -> None: ...

    def poll(self, now: float) -> float | None:
        """Do what is due at `now` (monotonic); answers when to be asked again. None: not by itself."""


class Agents(Protocol):
    """The agent server, as programs see it. Nothing here blocks; all of it may be called from any thread."""

    def choose(self, group_id: str) -> str | None:
        """The conn_id of an agent of the group that takes work now."""

    def when_available(
        self, group_id: str, callback: Callable[[], None], wanted: Callable[[], bool] | None = None
    ) -> None:
        """Call back once, from some thread, when choose(group_id) has an answer, if still wanted."""

    def watch(
        self,
        proc_id: str,
        conn_id: str,
        watcher: Watcher,
        message: Json | None = None,
        fate: Callable[[bool], None] | None = None,
        *,
        rejoin: bool = False,
    ) -> bool:
        """Tell `watcher` all about a process from now on, and send a first message, as send() does.

        False: the agent is not connected, and nothing is sent or watched. With `rejoin` the process
        may exist already: it is watched in any case, and `registered` follows when the agent is here.
        """

    def unwatch(self, proc_id: str) -> None: ...

    def watcher(self, proc_id: str) -> Watcher | None:
        """Who is told about a process now."""

    def send(self, conn_id: str, message: Json, fate: Callable[[bool], None] | None = None) -> bool:
        """Queue a message. False: provably nothing of it will be written.

        If True, `fate` is called once on the agent's thread: True as its first byte may be written,
        False once it is clear that none was.
        """

    def forget(self, proc_id: str, conn_id: str) -> None:
        """The process is of no more interest: have the agent delete its record, now or when it is back."""

    def abandon(self, proc_id: str, conn_id: str) -> None:
        """Watch the process no more, but leave the agent its record."""

    def dismiss(self, proc_id: str, conn_id: str, res: Json) -> None:
        """Nobody has anything to do with a process that was claimed: delete its record, if it has ended."""

    def instance(self, conn_id: str) -> str | None:
        """Which process the agent is: another one has nothing of what this one was sent."""

    def heard(self, conn_id: str) -> float | None:
        """The wall instant of the last sign of life of an agent that was lost."""

    def poll(self, proc_id: str) -> None:
        """Have the watcher's `poll` called soon."""

    def drain(self, conn_id: str) -> None:
        """Choose this agent no more, for it has refused new work."""

    def record(self, conn_id: str) -> Json | None:
        """What is known of a connection: `info` with `conn` and `proc`, as the API shows it."""


class Host(Protocol):
    """The server, as programs see it. Nothing here blocks."""

    @property
    def clock(self) -> Clock: ...
    @property
    def agents(self) -> Agents | None: ...

    def report(self, run_id: str, report: Report) -> None:
        """Tell what happened to a run. Harmless if the run is gone or beyond it."""

    def run(self, run_id: str) -> Run | None:
        """The run as it is now; None once it is finished and out of memory."""

    def stored(self, run_id: str) -> Run | None:
        """The run as it is on disk, for threads that may wait. Raises Unavailable."""

    def note(self, run_id: str, text: str) -> None:
        """A line for the log of a run that may have ended."""

    def offer(self, run_id: str, state: State, message: str | None, meta: Json | None) -> None:
        """Tell how a run really ended that was given up. For threads that may wait. Raises Unavailable."""

    def put_output(
        self,
        run_id: str,
        output_id: str,
        offset: int,
        data: bytes,
        *,
        name: str = ...,
        content_type: str = ...,
    ) -> Any: ...

    def output_length(self, run_id: str, output_id: str) -> int:
        """Bytes stored so far; 0 if there is no such output."""

    def output_full(self) -> bool:
        """More output than is good waits to be written: ask for no more."""

    def output_waiting(self, run_id: str) -> int:
        """Bytes of the run's output that wait to be written. Its verdict is written with all of them."""

    def spawn(self, work: Callable[[], None]) -> None:
        """Have blocking work done by a hand."""

    def insist(self, work: Callable[[], None]) -> None:
        """As spawn, for what must be done: again until it raises nothing. Till then it changes nothing."""

    @property
    def upkeep(self) -> Upkeep:
        """Chores on the database. They take long: for threads of programs only."""

    def stats(self) -> Json:
        """The server's statistics."""


# -- programs --------------------------------------------------------------------------------------


class Bound:
    """A program of a run, every template expanded. Each method but the first five is called after the
    commit of what it follows from; none may block. What a kind has no use for does nothing."""

    def limits(self) -> Limits:
        return Limits(None, None, None, grace=None)

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    def bind(self, expand: Expand) -> Bound:
        return self

    def prepare(self, run: Run) -> dict[str, Any] | None:
        """What the run's first commit in *starting* must already hold, as its run_state."""
        return None

    def at_agent(self, run: Run) -> Bound | None:
        """What an agent is told to run for it; None of what runs without one."""
        return None

    def launch(self, run: Run, host: Host) -> None:
        """The run is starting: start, or choose where (Placed)."""
        raise NotImplementedError

    def send(self, run: Run, host: Host) -> None:
        """Placed is on disk: have it started there."""

    def signal(self, run: Run, host: Host, signum: int, stop: bool) -> None:
        """Deliver a signal. `stop`: the kernel wants an end (stop, timeout or their escalation)."""

    def wake(self, run: Run, host: Host) -> None:
        """The time that Running(wake=...) asked for has passed."""

    def forget(self, run: Run, host: Host) -> None:
        """Verdict and output are on disk: nothing more is wanted from the process."""

    def connect(self, run: Run, host: Host) -> None:
        """The server was restarted and found this run starting (already placed), running or stopping."""


def new_proc_id(run_id: str) -> str:
    """An ID for a process of the run. It names the run, so that who finds the process can ask for it."""
    return f"{run_id}.{uuid4()}"


def run_of_proc(proc_id: str) -> str:
    """The run ID in the ID of a process; something that is none if the process is not ours."""
    return proc_id.partition(".")[0]


def lasting(run: Run) -> dict[str, Any]:
    """What of a run's run_state says who has its process: the program's own, not the kernel's."""
    state = run.run_state or {}
    return {key: state[key] for key in ("proc_id", "group_id", "task_arn") if key in state}


class Unavailable(Bound):
    """A stored program of a kind that this server does not have: kept as it is, an error when run."""

    def __init__(self, json: Json, reason: str | None = None) -> None:
        self._json = dict(json)
        self._reason = reason

    def __str__(self) -> str:
        return str(self._json.get("str") or f"unavailable program {self._json.get('type')}")

    def to_json(self) -> dict[str, Any]:
        return dict(self._json)

    def _fail(self, run: Run, host: Host) -> None:
        text = f"cannot run unavailable program type: {self._json.get('type')}"
        host.report(run.run_id, Finished(State.ERROR, text + (f" ({self._reason})" if self._reason else "")))

    def launch(self, run: Run, host: Host) -> None:
        self._fail(run, host)

    def send(self, run: Run, host: Host) -> None:
        self._fail(run, host)

    def connect(self, run: Run, host: Host) -> None:
        self._fail(run, host)

    def signal(self, run: Run, host: Host, signum: int, stop: bool) -> None:
        host.report(
            run.run_id, Remark(f"{signal_name(signum)} was not sent: the program type is unavailable")
        )


# -- parsing ---------------------------------------------------------------------------------------


def check_keys(mapping: Mapping[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> None:
    """Raises FieldError at a key that means nothing here, and where one is missing.

    `type` and `str` (the description that the API adds) are always known.
    """
    surplus = [str(key) for key in mapping if key not in {*known, "type", "str"}]
    if surplus:
        text = f"unexpected keys: {' '.join(surplus)}"
        raise FieldError(f"{text} (known: {', '.join(sorted(known)) or 'none'})", [surplus[0]])
    for key in required:
        if key not in mapping:
            raise FieldError(f"missing key: {key}")


def sub_mapping(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """The mapping at `key`; None where it is absent or null."""
    value = mapping.get(key)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise FieldError(f"{key} must be a mapping, not {show(value)}", [key])
    return value


def template(value: Any, key: str) -> str:
    """A scalar as template text, its syntax checked; numbers become text. Raises FieldError at `key`."""
    if value is None or isinstance(value, Mapping | list | tuple | set | bytes):
        raise FieldError(f"{key} must be a string, not {show(value)}", [key])
    text = value if isinstance(value, str) else _scalar(value)
    try:
        templates.check_syntax(text)
    except FieldError as error:
        raise error.under(key) from None
    except BadRequest as error:
        raise FieldError(str(error), [key]) from None
    return text


def _scalar(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def optional(mapping: Mapping[str, Any], key: str) -> str | None:
    """template() of the value at `key`; None where it is absent or null."""
    value = mapping.get(key)
    return None if value is None else template(value, key)


def is_static(text: str | None) -> bool:
    """Whether `text` says already at load what it will be in a run."""
    return text is not None and not templates.has_template(text)


def plain(text: str, *keys: str | int) -> str:
    """`text` if it can be an argument, a name or a database value. Raises FieldError."""
    if "\0" in text:
        raise FieldError(f"{keys[0]} holds a NUL character, which no process can be given", keys)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FieldError(f"{keys[0]} holds a lone surrogate, which UTF-8 cannot express", keys) from None
    return text


def duration(text: Any, key: str) -> float:
    """Seconds, at least 0. Raises FieldError at `key`."""
    try:
        seconds = float(parse_duration(text))
    except (ValueError, TypeError) as error:
        raise FieldError(f"{key}: {error}", [key]) from None
    if not 0 <= seconds < math.inf:
        raise FieldError(f"{key} must not be negative: {text}", [key])
    return seconds


def signal_number(text: Any, key: str = "signal") -> int:
    """The number of SIGTERM, TERM or 15. Raises FieldError at `key`.

    16 and the real-time signals are refused: an agent whose process dies of one dies itself.
    """
    name = str(text).strip()
    number = 0
    if name.isascii() and name.isdigit():
        number = int(name) if len(name) < 4 else 0
    elif name.isupper() and "_" not in name:
        number = int(signal.Signals.__members__.get("SIG" + name.removeprefix("SIG"), 0))
    if not deliverable(number):
        raise FieldError(f"not a signal: {text} (a name such as SIGTERM, or a number from 1 to 31)", [key])
    return number


def deliverable(signum: int) -> bool:
    return 1 <= signum <= 31 and signum != 16


def signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def number(seconds: float) -> str:
    """300 and 1.5, not 300.0."""
    return str(int(seconds)) if float(seconds).is_integer() else repr(float(seconds))


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size(value: Any, key: str) -> int:
    """Bytes: 1000000, "10 MB", "64 KiB". Raises FieldError at `key`."""
    text = str(value).strip()
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = _UNITS.get(text[len(digits) :].lower())
    try:
        amount = float(digits)
    except ValueError:
        amount = -1.0
    if isinstance(value, bool) or unit is None or not 0 < amount < 2**50:
        raise FieldError(f"{key} must be a size above 0, such as 10 MB, not {show(value)}", [key])
    return max(1, int(amount * unit))


def output_limit(mapping: Mapping[str, Any] | None, default: OutputLimit) -> OutputLimit:
    """`output: {max_size, on_max_size}`; what is not given is as in the server's file."""
    if mapping is None:
        return default
    check_keys(mapping, ("max_size", "on_max_size"))
    limit, kill = default.max_size, default.kill
    if "max_size" in mapping:
        limit = None if mapping["max_size"] is None else size(mapping["max_size"], "max_size")
    if mapping.get("on_max_size") is not None:
        if mapping["on_max_size"] not in ("truncate", "kill"):
            raise FieldError("on_max_size must be truncate or kill", ["on_max_size"])
        kill = mapping["on_max_size"] == "kill"
    return OutputLimit(limit, kill)


def show(value: Any) -> str:
    """A value in an error message."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
