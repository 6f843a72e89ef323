"""The records that everything else passes around. None is ever changed: a change is `run.but(state=...)`.

A Run is plain data (strings, numbers, mappings that json can write), so that store, API and kernel
share one record: the bound program, conditions and actions are held in their JSON forms and are
made into objects where they are used (programs.load, conditions.load, actions.load).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import Any, Protocol, TypeVar, dataclass_transform

from apsislib.states import FINISHED, State

Args = Mapping[str, str]
Json = Mapping[str, Any]
T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A frozen dataclass with slots, as the type checker sees it.

    At run time it is not frozen: to set its fields would take three times as long, and a run makes
    some twenty records.
    """
    return dataclass(slots=True)(cls)


quoted = json.encoder.encode_basestring  # a string as JSON, non-ASCII as it is


class GivenArgs(dict[str, str]):
    """Args whose canonical text is worked out once, however often it is asked for. Not to be changed."""

    __slots__ = ("text",)
    text: str


def canonical(args: Args) -> str:
    """The one text of `args`: JSON, sorted by name, no spaces, non-ASCII as it is.

    Equality of this text is equality of args; it is the database's index key.
    """
    if not args:
        return "{}"
    if type(args) is not GivenArgs:
        return _canonical(args)
    try:
        return args.text
    except AttributeError:
        args.text = text = _canonical(args)
        return text


def _canonical(args: Args) -> str:
    # What json.dumps would write, at a tenth of its cost: all keys and values are strings.
    return "{" + ",".join([f"{quoted(k)}:{quoted(args[k])}" for k in sorted(args)]) + "}"


def parse_args(text: str) -> dict[str, str]:
    """The args of their canonical text."""
    args: dict[str, str] = json.loads(text)
    return args


def occurrence_time(identity: str) -> float:
    """The instant in an occurrence's identity."""
    return float(json.loads(identity)[2])


def stamp(instant: float) -> str:
    """An instant as run logs write it: ISO, UTC, to the second."""
    return _stamp(int(instant))


@lru_cache(maxsize=256)  # many runs are due at the same instants
def _stamp(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()


def signal_name(signum: int) -> str:
    """SIGTERM for 15; the number where it has no name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return str(signum)


def instance(job_id: str, args: Args) -> str:
    """`job(a=1 b=2)`, or just `job` without args: how run logs name a job with its args."""
    return f"{job_id}({' '.join(f'{k}={args[k]}' for k in sorted(args))})" if args else job_id


def run_number(run_id: str) -> int | None:
    """The number of `r123`; None where the text is no run ID."""
    digits = run_id[1:]
    ok = run_id[:1] == "r" and digits.isascii() and digits.isdigit() and len(digits) <= 18
    return int(digits) if ok else None


def labels(metadata: Json | None) -> list[str]:
    """The labels in the metadata of a job."""
    found = (metadata or {}).get("labels") or []
    return [str(label) for label in found] if isinstance(found, list | tuple) else [str(found)]


def alarms(meta: Json) -> list[str]:
    """What a run with this metadata is called: late, missed, long; each at most once."""
    found = (*(meta.get("alarms") or ()), *(meta.get("reasons") or ()))
    return list(dict.fromkeys(str(name) for name in found))


def late_verdict(meta: Json) -> str | None:
    """The state in which the program of a run really ended that had been given up before."""
    found = meta.get("late_verdict")
    state = found.get("state") if isinstance(found, Mapping) else None
    return state if isinstance(state, str) and state in FINISHED else None


def marks(meta: Json, state: State) -> list[str]:
    """What is to be seen of a run besides its state: alarms, and a late verdict that is not its state."""
    late = late_verdict(meta)
    return alarms(meta) + ([f"verdict:{late}"] if late not in (None, state.value) else [])


# -- jobs ----------------------------------------------------------------------------------------


@record
class Occurrence:
    """One instant of a schedule, with the args that the schedule provides (not yet cut to params)."""

    time: float  # instant
    args: Args
    stop: float | None = None  # instant at which the run is to be stopped
    note: str | None = None  # said in the run log, e.g. that the wall time was shifted out of a DST gap


Taken = tuple[Occurrence, Args, str]  # with the args cut to the job's params, and its identity


class Schedule(Protocol):
    """When a job runs. Pure: holds no position and no clock."""

    @property
    def enabled(self) -> bool: ...

    def after(self, start: float) -> Iterator[Occurrence]:
        """Occurrences at or after `start`, ascending. Ends where the schedule ends; never loops unbounded."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run in time. Durations in seconds; None: no limit."""

    start_timeout: float | None = None  # starting, without an agent to run on
    reconnect_timeout: float | None = 3600.0  # the agent is away
    timeout: float | None = None  # running, counted from times["running"]
    timeout_signal: int = 15
    stop_signal: int = 15
    grace: float | None = 60.0  # from the stop (or timeout) signal to SIGKILL; None: never


class Program(Protocol):
    """What a run does, as the lower layers see it; programs/base.py has the rest."""

    def bind(self, expand: Any) -> Program:
        """With every template expanded by `expand(text) -> text`. Raises what the template raises."""

    def limits(self) -> Limits: ...
    def to_json(self) -> dict[str, Any]: ...
    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A job file, parsed. The template of runs."""

    job_id: str
    params: tuple[str, ...]  # sorted
    schedules: tuple[Schedule, ...]
    program: Program
    conditions: tuple[Any, ...] = ()  # conditions.Condition, unbound
    actions: tuple[Any, ...] = ()  # actions.Action
    metadata: Json = field(default_factory=dict)  # labels: list of str, always there
    ad_hoc: bool = False
    source: str | None = None  # the file's path
    shared: dict[str, Any] = field(default_factory=dict, repr=False)  # what binding keeps for all its runs
    json: Json = field(default_factory=dict)  # the definition as API and database show it
    expect: Any = None  # expectations.Expectation; None: nothing is expected
    catch_up: Any = None  # catchup.CatchUp; None: as the server's file says


# -- runs ----------------------------------------------------------------------------------------


@record
class Run:
    """One execution of a job with args."""

    run_id: str
    job_id: str
    args: Args
    state: State = State.NEW
    timestamp: float = 0.0  # instant of the latest transition
    times: Mapping[str, float] = field(default_factory=dict)  # "schedule", "stop", and each state entered
    expected: bool = False  # made from a schedule and still scheduled: lives in memory only
    program: Json | None = None  # bound; None where binding failed
    conds: tuple[Json, ...] = ()  # bound
    actions: tuple[Json, ...] = ()
    # "given_up": what a run was whose agent did not come back in time, and what is to end its program
    # ("kill_at": wall instant at which SIGKILL follows), "late_verdict": its real end;
    # "job": {"labels"}, "program": {...}, "elapsed": s, "expect": {alarm: instant or s},
    # "alarms": [raised ones], "reasons": {alarm, raised or not: why}
    meta: Json = field(default_factory=dict)
    run_state: Json | None = None  # what the program needs to find its process again
    occurrence: str | None = None  # identity of the occurrence it was made for; unique
    cause: str | None = None  # identity of the action that made it; unique
    rerun_of: str | None = None  # run ID
    # Transitions so far: names an owed action's transition, and lets readers see which copy is newer.
    rev: int = 0
    # Not stored: worked out from the program when the run is made or read.
    limits: Limits = field(default_factory=Limits, compare=False)
    # Not stored: `conds` as conditions.Bound, where binding has just made them.
    judged: tuple[Any, ...] | None = field(default=None, compare=False, repr=False)

    # (job ID, canonical args): what conditions compare. Not to be given: worked out from the two.
    key: tuple[str, str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.key = self.job_id, canonical(self.args)  # type: ignore[misc]

    def but(self, **changes: Any) -> Run:
        """The same run with other values: replace(), at a third of its cost.

        Never of run_id, job_id and args, which `key` is made of; tests/test_layers.py looks for that.
        """
        new = _copy(self)
        for name, value in changes.items():
            setattr(new, name, value)
        return new

    @property
    def number(self) -> int:
        return int(self.run_id[1:])

    def __str__(self) -> str:
        return f"{self.run_id} {instance(self.job_id, self.args)}"


_new = object.__new__


def moved(
    run: Run, state: State, wall: float, times: Mapping[str, float], meta: Json, run_state: Json | None
) -> Run:
    """The run after a transition. Runs do little else, so it is written out as nothing is faster."""
    new: Any = _new(Run)
    new.run_id = run.run_id
    new.job_id = run.job_id
    new.args = run.args
    new.state = state
    new.timestamp = wall
    new.times = times
    new.expected = False
    new.program = run.program
    new.conds = run.conds
    new.actions = run.actions
    new.meta = meta
    new.run_state = run_state
    new.occurrence = run.occurrence
    new.cause = run.cause
    new.rerun_of = run.rerun_of
    new.rev = run.rev + 1
    new.limits = run.limits
    new.judged = None
    new.key = run.key
    return new  # type: ignore[no-any-return]


def _copy(run: Run) -> Run:
    new: Any = _new(Run)
    new.run_id = run.run_id
    new.job_id = run.job_id
    new.args = run.args
    new.state = run.state
    new.timestamp = run.timestamp
    new.times = run.times
    new.expected = run.expected
    new.program = run.program
    new.conds = run.conds
    new.actions = run.actions
    new.meta = run.meta
    new.run_state = run.run_state
    new.occurrence = run.occurrence
    new.cause = run.cause
    new.rerun_of = run.rerun_of
    new.rev = run.rev
    new.limits = run.limits
    new.judged = run.judged
    new.key = run.key
    return new  # type: ignore[no-any-return]


def adrift(run: Run) -> Json | None:
    """What a run was that was given up, until it is told how its program ended: it may go on. Else None."""
    was = run.meta.get("given_up")
    waits = run.state in FINISHED and "late_verdict" not in run.meta
    return was if waits and isinstance(was, Mapping) else None


# -- alarms --------------------------------------------------------------------------------------


class Alarm(IntEnum):
    """Why a run is woken. A run holds one generation per kind; re-arming one kind leaves the others."""

    DUE = 0  # wall: its schedule time has come
    STOP = 1  # wall: its stop time has come
    WAITING = 2  # boot: waiting.max_time
    START = 3  # boot: start timeout
    TIMEOUT = 4  # boot: program timeout
    GRACE = 5  # boot: SIGKILL follows
    RECONNECT = 6  # boot: the agent has been away for too long
    WAKE = 7  # boot: its program asked for it
    CHECK = 8  # boot: a condition of a user's class is to be asked again
    LATE = 9  # wall: it should have begun by now
    MISSED = 10  # wall: it should have ended by now
    LONG = 11  # boot: it should not run for longer


# -- what programs report ------------------------------------------------------------------------


@record
class Launched:
    """starting: an agent of its own is under way. What finds it again is on disk from here on."""

    run_state: Json
    meta: Json  # replaces meta["program"]


@record
class Placed:
    """starting: the agent is chosen. Committed before a byte leaves; Send follows."""

    run_state: Json


@record
class Unplaced:
    """starting: provably nothing was sent to the chosen agent; it is launched anew."""

    reason: str


@record
class Running:
    """starting -> running. `wake`: seconds from now after which the program wants `wake()`."""

    run_state: Json | None = None
    meta: Json | None = None  # replaces meta["program"]
    wake: float | None = None


@record
class Update:
    """New metadata, no transition."""

    meta: Json


@record
class Finished:
    """The end. `state` is success, failure or error."""

    state: State
    message: str | None = None
    meta: Json | None = None
    # Text of an output to store with the verdict (a traceback, the reason of an error), or None.
    output: bytes | None = None


@record
class Lost:
    """The agent's connection is gone: the reconnect timeout starts."""

    conn_id: str
    heard: float | None = None  # wall; its last sign of life, if there was one since the server started


@record
class Back:
    """The agent is back and has the process: the reconnect timeout ends."""

    conn_id: str


@record
class Remark:
    """A line for the run log."""

    message: str


Report = Launched | Placed | Unplaced | Running | Update | Finished | Lost | Back | Remark


# -- effects: what the kernel decided --------------------------------------------------------------


@record
class Save:
    """Write the run's row. `transition`: its state or alarms changed (else metadata or run_state only)."""

    run: Run
    transition: bool = True


@record
class Note:
    """Write a line of the run's log."""

    run_id: str
    time: float
    message: str


@record
class Output:
    """Write a whole small output with the verdict. (Programs' output goes through store.put_output.)"""

    run_id: str
    data: bytes
    output_id: str = "output"
    name: str = "output"
    content_type: str = "text/plain"


@record
class SetClock:
    """Everything due before this instant has been claimed."""

    time: float


@record
class Owe:
    """An action that a transition owes; durable until Settle."""

    cause: str  # "RUN_ID/INDEX/REV": unique
    run: Run  # the snapshot
    action: Json


@record
class Settle:
    cause: str


@record
class Launch:
    """After the commit: have the program started."""

    run: Run


@record
class Connect:
    """After a restart: have the program look for its process at the agent."""

    run: Run


@record
class Send:
    """After the commit of Placed: send the start to the chosen agent."""

    run: Run


@record
class Signal:
    """After the commit: signal the program. `stop`: this is the program stop."""

    run: Run
    signum: int
    stop: bool = False


@record
class Wake:
    run: Run


@record
class Forget:
    """After the commit of the verdict and the last output: the agent may delete its record.

    `run_state`: where the process was, which a run that has ended has not.
    """

    run: Run
    run_state: Json | None = None


@record
class Expect:
    """Not stored: an expected run was made or changed; tell subscribers."""

    run: Run


@record
class Drop:
    """Not stored: an expected run is no more (reload); tell subscribers."""

    run_id: str


@record
class Raised:
    """Not stored by itself: the run does not keep to what is expected of it."""

    run: Run
    alarm: str


@record
class Lookup:
    """Not stored: ask the database, off the lock, in which states runs of this instance ended."""

    key: tuple[str, str]


@record
class Check:
    """Not stored: ask a condition of a user's class, off the lock. `index`: of the run's conditions."""

    run: Run
    index: int


@record
class Bind:
    """Not stored: make (bind) the expected runs of these occurrences, off the lock."""

    token: int  # to be given back to Scheduler.expect
    job: Job
    occurrences: tuple[Taken, ...]


Effect = (
    Save
    | Note
    | Output
    | SetClock
    | Owe
    | Settle
    | Launch
    | Connect
    | Send
    | Signal
    | Wake
    | Forget
    | Expect
    | Drop
    | Raised
    | Lookup
    | Check
    | Bind
)
