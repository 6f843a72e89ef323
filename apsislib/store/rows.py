"""Runs as rows, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from apsislib.runs import Alarm, Run, labels, marks, quoted, run_number
from apsislib.states import State

# What a run keeps from its making to its end, and what its transitions change. An update leaves the
# first alone, and with them most of the indexes.
FIXED = ("number", "job_id", "args", "rerun_of", "schedule", "occurrence", "cause")
CHANGING = ("state", "timestamp", "rev", "times", "meta", "program", "conds", "actions", "run_state")

COLUMNS = ", ".join(FIXED + CHANGING)

# `labels` and `alarms`, which has all marks, are for searches alone, and never read.
SAVE = (
    f"INSERT INTO runs ({COLUMNS}, labels, alarms) VALUES ({', '.join('?' * len(FIXED + CHANGING))}, ?, ?)"
    " ON CONFLICT (number) DO UPDATE SET"
    f" {', '.join(f'{name} = excluded.{name}' for name in (*CHANGING, 'alarms'))}"
)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):  # a frozen mapping, which json does not know
        return dict(value)
    raise TypeError(f"can't store a {type(value).__name__}")


# Made once: json.dumps() with options makes an encoder a call, half of the time of writing a run. What
# contains itself is not looked for; it ends as a RecursionError.
_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False, default=_plain
).encode


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if value - value == 0 else _no_number(text)


_decode = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number).decode

_TEXT, _NUMBER, _MAPPING = frozenset({str}), frozenset({float, int}), frozenset({dict})
_NONE = type(None)
_NUMBER_OR_NONE = _NUMBER | {_NONE}
_ALARMS = frozenset(kind.name for kind in Alarm)
# Of metadata: name, what stands for it where it is not there, and what it may be.
_META: list[tuple[str, Any, tuple[type, ...]]] = [
    ("job", None, (_NONE, dict)),
    ("alarms", [], (list,)),
    ("reasons", {}, (dict,)),
]
_MARKED = {"alarms", "reasons", "late_verdict"}  # of metadata: without these there are no marks
_FIRST, _END = -62_135_596_800.0, 253_402_300_800.0  # years 1 to 9999


def dump(value: Any) -> str:
    """JSON text. ValueError: a NaN or infinity, which no client could read back."""
    return _encode(value)


def number_of(run_id: str) -> int:
    number = run_number(run_id)
    if number is None:
        raise ValueError(f"not a run ID: {run_id!r}")
    return number


def to_row(run: Run) -> tuple[Any, ...]:
    """The values of COLUMNS. ValueError, TypeError: the run holds what cannot be stored."""
    return (
        number_of(run.run_id),
        run.job_id,
        run.key[1],
        run.rerun_of,
        run.times.get("schedule"),
        run.occurrence,
        run.cause,
        run.state.value,
        run.timestamp,
        run.rev,
        dump(run.times),
        dump(run.meta),
        None if run.program is None else dump(run.program),
        dump(run.conds) if run.conds else None,
        dump(run.actions) if run.actions else None,
        None if run.run_state is None else dump(run.run_state),
    )


def to_saved(run: Run) -> tuple[Any, ...]:
    """The values of SAVE."""
    job = run.meta.get("job")
    found = marks(run.meta, run.state) if _MARKED & run.meta.keys() else ()
    return (*to_row(run), pack_labels(labels(job)) if job else None, pack_labels(found))


def pack_labels(names: Iterable[str]) -> str | None:
    """Labels, or marks, as one text, in which each stands quoted between commas; None: there are none."""
    packed = ",".join([quoted(name) for name in sorted(names)])
    return f",{packed}," if packed else None


def from_row(row: tuple[Any, ...]) -> Run:
    """The run in a row of COLUMNS. ValueError, TypeError, KeyError: it is damaged."""
    number, job_id, args, rerun_of, _, occurrence, cause, state, timestamp, rev, *texts = row
    # As one text: a parser call a column was half of the time of reading a run.
    joined = ",".join("null" if text is None else text for text in (args, *texts))
    args, times, meta, program, conds, actions, run_state = _decode(f"[{joined}]")
    run = Run(
        run_id=f"r{number}",
        job_id=job_id,
        args=args,
        state=State(state),
        timestamp=timestamp,
        times=times,
        program=program,
        conds=tuple(conds or ()),
        actions=tuple(actions or ()),
        meta=meta,
        run_state=run_state,
        occurrence=occurrence,
        cause=cause,
        rerun_of=rerun_of,
        rev=rev,
    )
    # json reads more than we write: a row that was damaged into other JSON must not travel on.
    if wrong := _misshapen(run, conds, actions):
        raise ValueError(f"{wrong} is not what a run has there")
    return run


def _misshapen(run: Run, conds: Any, actions: Any) -> str | None:
    """The column whose JSON is no part of a run; None: all are. (In few calls: every run that is read.)"""
    args, times, meta, program, run_state = run.args, run.times, run.meta, run.program, run.run_state
    if type(args) is not dict or not _TEXT.issuperset(map(type, args.values())):
        return "args"
    if type(times) is not dict or not is_instant(run.timestamp, *times.values()):
        return "times"
    if type(meta) is not dict or not all(
        [type(meta.get(name, blank)) in kinds for name, blank, kinds in _META]
    ):
        return "meta"
    if "expect" in meta and not _is_numbers(meta["expect"]):
        return "meta"
    if program is not None and type(program) is not dict:
        return "program"
    if run_state is not None and (type(run_state) is not dict or not _is_state(run_state)):
        return "run_state"
    for name, values in (("conds", conds), ("actions", actions)):
        if values and (type(values) is not list or not _MAPPING.issuperset(map(type, values))):
            return name
    for action in run.actions:
        when = action.get("if")
        if when is not None and not (type(when) is dict and type(when.get("states") or []) is list):
            return "actions"
    for cond in run.conds:
        if cond.get("type") == "dependency" and not (
            type(cond.get("job_id")) is str and type(cond.get("args")) is dict
        ):
            return "conds"
    return None


def _is_state(run_state: dict[str, Any]) -> bool:
    """Whether what the kernel keeps in a run_state is what it put there: it reckons with it."""
    timers, signals = run_state.get("timers"), run_state.get("signals")
    return (
        (timers is None or (_is_numbers(timers) and _ALARMS.issuperset(timers)))
        and (signals is None or (type(signals) is list and _TEXT.issuperset(map(type, signals))))
        and _NUMBER_OR_NONE.issuperset([type(run_state.get(name)) for name in ("timed_out", "heard")])
        and type(run_state.get("stepped", 0.0)) in _NUMBER
    )


def _is_numbers(value: Any) -> bool:
    return type(value) is dict and _NUMBER.issuperset(map(type, value.values()))


def is_instant(*values: Any) -> bool:
    """Whether all are seconds that can be shown as dates."""
    return _NUMBER.issuperset(map(type, values)) and min(values) >= _FIRST and max(values) < _END


def to_text(run: Run) -> str:
    """A run as one JSON text: the snapshot of an owed action."""
    return dump(to_row(run))


def from_text(text: str) -> Run:
    return from_row(tuple(_decode(text)))
