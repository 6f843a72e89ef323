"""Rows of a database of Apsis 2 as runs of ours.

What can't be read of a finished run, and is not needed to know how it ended, is left out, and said. Of
a run that is to go on nothing is left out: it ends in error instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from apsislib import actions, conditions
from apsislib.errors import ApsisError
from apsislib.runs import Alarm, Json, Limits, Run, canonical, quoted, run_number, signal_name
from apsislib.states import FINISHED, State
from apsislib.times import parse_time

Row = tuple[Any, ...]  # of a table, its row ID first; texts are bytes

# Programs that can't have done anything before they were running: they are simply started again.
HARMLESS = ("apsis.program.noop.", "apsis.program.internal.")
DOUBT = (
    "may have been started by the Apsis that it was imported from, which stopped before it heard: look"
    " whether it ran, then mark it, or run it again"
)
FOUND_AT = ("proc_id", "conn_id", "task_arn", "group_id")  # what of a run_state finds the process again
OWN = ("expect", "alarms")  # what our server alone puts into metadata, and relies on
BEGUN = frozenset({State.NEW, State.STARTING, State.RUNNING, State.STOPPING})


class Unreadable(Exception):
    """Why a row stays behind."""


class Program(Protocol):
    def limits(self) -> Limits: ...
    def __str__(self) -> str: ...


@dataclass(slots=True)
class Moved:
    run: Run
    remarks: list[str] = field(default_factory=list)  # what became other than it was
    log: str | None = None  # a line for its log


@dataclass(frozen=True, slots=True)
class Movers:
    """What runs are made with."""

    load_program: Callable[[Json], Program]
    is_ours: Callable[[str], bool]  # a type of program; else a class of somebody's has to be imported
    began: float  # the import, an instant
    clock: float | None  # from where schedules will go on
    stale_before: float | None  # unfinished runs that have not changed since then are errors


def text(value: Any, name: str) -> str:
    """Raises Unreadable."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Unreadable(f"its {name} is not UTF-8") from None
    if value is None or isinstance(value, bytes | bytearray):
        raise Unreadable(f"it has no {name}")
    return str(value)


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e12 else None


def name_of(value: Any, rowid: int) -> str:
    """What to call a row in a report."""
    try:
        return text(value, "ID")
    except Unreadable:
        return f"row {rowid}"


_decode = json.JSONDecoder(parse_constant=lambda _: None).decode


def read_json(value: Any, name: str) -> Any:
    """The JSON of a column; None for null, NaN and infinities. Raises Unreadable."""
    if value is None:
        return None
    try:
        return _decode(text(value, name))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"its {name} is not JSON ({error})") from None


def run_of(row: Row, movers: Movers) -> Moved:
    """Raises Unreadable."""
    (rowid, run_id, timestamp, job_id, args, state, times, meta) = row[:8]
    (program, run_state, rerun, expected, conds, acts) = row[8:]
    run_id = text(run_id, "run ID")
    if not run_number(run_id):
        raise Unreadable("this is not a run ID")
    moved = Moved(
        Run(run_id, text(job_id, "job ID"), _args(args)),
    )
    state = _state(state)
    if expected and state in (State.NEW, State.SCHEDULED):
        raise Unreadable("it is only expected: its schedule makes it again")
    at = _times(times, moved)
    entered = number(timestamp)
    if entered is None:
        entered = max((t for name, t in at.items() if name not in ("schedule", "stop")), default=None)
    if entered is None:
        raise Unreadable("it has no time")
    at.setdefault(state.value, entered)
    live = state not in FINISHED
    moved.run = run = moved.run.but(
        state=state,
        timestamp=entered,
        times=at,
        rev=len(at.keys() - {"schedule", "stop"}),
        meta=_meta(meta, moved),
        program=_part(program, "program", dict, moved, live),
        conds=tuple(_conds(conds, moved, live)),
        actions=tuple(_actions(acts, moved)),
        rerun_of=_rerun_of(rerun),
    )
    if run.program is not None:
        said, limits = _looked_into(run.program, live, movers)
        moved.run = run = run.but(program={**run.program, "str": said}, limits=limits)
    if live:
        _go_on(run_state, moved, movers)
    due = at.get("schedule")
    if due is not None and movers.clock is not None and due >= movers.clock and run.state not in _UNTOUCHED:
        # Started or skipped ahead of its time: its schedule must not make another.
        identity = f"[{quoted(run.job_id)},{quoted(canonical(run.args))},{due:.6f},0]"
        moved.run = moved.run.but(occurrence=identity)
    return moved


def _looked_into(program: Json, live: bool, movers: Movers) -> tuple[str, Limits]:
    """What a program is called, and what bounds it in time."""
    kind = str(program.get("type"))
    if live or movers.is_ours(kind):
        with suppress(ApsisError):
            loaded = movers.load_program(program)
            return str(loaded), loaded.limits()
    # A class of somebody's, say: of hundreds of thousands of runs that have ended, none needs it.
    return kind, Limits()


_UNTOUCHED = (State.NEW, State.SCHEDULED)  # of these Apsis 2 stored those that were made by hand


def _state(value: Any) -> State:
    name = text(value, "state")
    try:
        return State(name)
    except ValueError:
        raise Unreadable(f"{name!r} is not a state") from None


def _args(value: Any) -> dict[str, str]:
    args = read_json(value, "args")
    if not isinstance(args, dict):
        raise Unreadable("its args are not a mapping")
    return {name: arg if isinstance(arg, str) else json.dumps(arg) for name, arg in sorted(args.items())}


def _times(value: Any, moved: Moved) -> dict[str, float]:
    found: dict[str, float] = {}
    times = read_json(value, "times")
    if not isinstance(times, dict):
        raise Unreadable("its times are not a mapping")
    for name, written in times.items():
        try:
            found[name] = parse_time(written)
        except ValueError:
            moved.remarks.append(f"without its time {name}, which is {written!r}")
    return found


def _part(value: Any, name: str, kind: type, moved: Moved, live: bool) -> Any:
    """A column without which a finished run is still a run."""
    try:
        found = read_json(value, name)
        if found is None or isinstance(found, kind):
            return found
        raise Unreadable(f"its {name} is not a {'mapping' if kind is dict else 'list'}")
    except Unreadable as error:
        moved.remarks.append(f"without its {name}: {error}" + (", so it will be an error" if live else ""))
        return None


def _meta(value: Any, moved: Moved) -> dict[str, Any]:
    meta: dict[str, Any] = _part(value, "metadata", dict, moved, False) or {}
    if not isinstance(meta.get("job", {}), dict):
        del meta["job"]
    return {name: value for name, value in meta.items() if name not in OWN}


def _conds(value: Any, moved: Moved, live: bool) -> list[Json]:
    before = len(moved.remarks)
    found = _part(value, "conditions", list, moved, live) or []
    if len(moved.remarks) > before and live:
        return [{"type": "unreadable", "str": "a condition that can't be read"}]  # which is an error, too
    return [_cond(cond) for cond in found]


def _cond(cond: Any) -> Json:
    """As ours stores it. One of which nothing can be made is an error of a run that comes to it."""
    try:
        found = conditions.load(cond).to_json()
        job_id, args = found.get("instance") or (found.get("job_id", ""), found.get("args", {}))
        canonical(args)  # of texts, or it raises
        if isinstance(job_id, str):
            return found
    except (ApsisError, LookupError, TypeError, ValueError, AttributeError):
        pass
    kind = str(cond.get("type")) if isinstance(cond, dict) else ""
    if "." not in kind or kind.startswith("apsis."):
        return {"type": "unreadable", "was": cond, "str": "a condition that can't be read"}
    # A class of the user's.
    config = {name: value for name, value in cond.items() if name not in ("type", "enabled", "str")}
    return conditions.BoundOwn(kind, config, 1.0).to_json()


def _actions(value: Any, moved: Moved) -> list[Json]:
    try:
        return list(_parsed_actions(text(value, "actions"))) if value is not None else []
    except Unreadable as error:
        moved.remarks.append(f"without its actions: {error}")
        return []


@lru_cache(256)  # runs of a job have the same
def _parsed_actions(written: str) -> tuple[Json, ...]:
    try:
        found = json.loads(written) or []
    except (ValueError, RecursionError):
        raise Unreadable("they are not JSON") from None
    if not isinstance(found, list) or not all(isinstance(action, dict) for action in found):
        raise Unreadable("they are not a list of mappings")
    return tuple(map(_action, found))


def _action(action: Mapping[str, Any]) -> Json:
    plain = {name: value for name, value in action.items() if name != "if" or value is not None}
    try:
        return actions.parse(plain).to_json()
    except ApsisError:  # of a class that is not here, say: kept as it is
        when = plain.get("if", {})
        if not isinstance(when, dict) or not isinstance(when.get("states", []), list | None):
            raise Unreadable("it does not say on which states one follows") from None
        return {**plain, "str": str(plain.get("type"))}


def _rerun_of(value: Any) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and run_number(value) else None


# -- runs that go on -------------------------------------------------------------------------------


def _go_on(run_state: Any, moved: Moved, movers: Movers) -> None:
    """What the new server needs to take an unfinished run up."""
    run = moved.run
    if run.state in BEGUN and movers.stale_before is not None and run.timestamp < movers.stale_before:
        said = f"it was still {run.state} when it was imported, long after anything was heard of it"
        moved.log = f"error: {said}"
        moved.remarks.append(f"was {run.state}, and for too long: it is an error now")
        moved.run = run.but(
            state=State.ERROR,
            timestamp=movers.began,
            times={**run.times, State.ERROR.value: movers.began},
            rev=run.rev + 1,
        )
        return
    kind = str((run.program or {}).get("type"))
    if run.state is State.STARTING and not kind.startswith(HARMLESS):
        moved.remarks.append("was starting, and may have been started: it will be an error")
        moved.run = run.but(run_state={"doubt": DOUBT})
    elif run.state in (State.RUNNING, State.STOPPING):
        moved.run = run.but(run_state=_run_state(run, run_state, moved))


def _run_state(run: Run, value: Any, moved: Moved) -> Json:
    old = _part(value, "state of its program", dict, moved, True) or {}
    found: dict[str, Any] = {name: old[name] for name in FOUND_AT if old.get(name) is not None}
    limits = run.limits
    timers: dict[str, float] = {}
    if run.state is State.STOPPING:
        # Whether the signal was sent before the server stopped nobody knows: it is sent again.
        found["signals"] = [signal_name(limits.stop_signal)]
        if limits.grace is not None:
            timers[Alarm.GRACE.name] = run.times.get("stopping", run.timestamp) + limits.grace
    elif limits.timeout is not None:
        timers[Alarm.TIMEOUT.name] = run.times.get("running", run.timestamp) + limits.timeout
    return {**found, "timers": timers} if timers else found
