"""What follows a transition.

An action is parsed from a job file (or the server's file, for all runs). Whether it is owed is
decided by the kernel in the transition itself; it is done later, by a hand, and settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from apsislib import extensions
from apsislib.conditions import parse_states
from apsislib.errors import FieldError, missing
from apsislib.expectations import ALARMS
from apsislib.extensions import if_json, on_text
from apsislib.runs import Json, instance
from apsislib.states import State

_NO_TYPES: Mapping[str, str] = MappingProxyType({})
_KEYS = {
    "schedule": frozenset({"type", "job_id", "args", "if"}),
    "email": frozenset({"type", "to", "from", "subject", "if"}),
}


class Action(Protocol):
    @property
    def states(self) -> frozenset[State] | None:
        """Owed on entering one of these; None: on every transition."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class ScheduleAction:
    """Schedules a run of `job_id`, now. Values of args are templates; what is missing comes from the run."""

    job_id: str
    args: Mapping[str, str] = field(default_factory=dict)
    states: frozenset[State] | None = None
    alarms: frozenset[str] = frozenset()  # owed on these instead

    def to_json(self) -> dict[str, Any]:
        json: dict[str, Any] = {"type": "schedule", "job_id": self.job_id, "args": dict(self.args)}
        text = f"schedule {instance(self.job_id, self.args)}{on_text(self.states, self.alarms)}"
        return json | if_json(self.states, self.alarms) | {"str": text}


@dataclass(frozen=True, slots=True)
class EmailAction:
    """Sends an e-mail about the run. Texts are templates."""

    to: tuple[str, ...]
    sender: str
    subject: str | None = None  # None: job, args and state
    states: frozenset[State] | None = None
    alarms: frozenset[str] = frozenset()  # owed on these instead

    def to_json(self) -> dict[str, Any]:
        json: dict[str, Any] = {"type": "email", "to": list(self.to), "from": self.sender}
        if self.subject is not None:
            json["subject"] = self.subject
        text = f"e-mail to {', '.join(self.to)}{on_text(self.states, self.alarms)}"
        return json | if_json(self.states, self.alarms) | {"str": text}


def owed(action: Json, state: State) -> bool:
    """Whether an action, in its JSON form, follows a transition into `state`."""
    when = action.get("if")
    if not when:
        return True
    states = when.get("states")
    return "alarm" not in when and (states is None or state.value in states)


def owed_by_alarm(action: Json, alarm: str, state: State) -> bool:
    """Whether an action follows this alarm of a run that is in `state`."""
    when = action.get("if") or {}
    states = when.get("states")
    return alarm in when.get("alarm", ()) and (states is None or state.value in states)


def parse(mapping: Any, types: Mapping[str, str] = _NO_TYPES) -> Action:
    """The action that a mapping means. `types`: short names of users' classes.

    Raises FieldError with the key path.
    """
    known = ", ".join([*_KEYS, *types])
    if not isinstance(mapping, Mapping):
        raise FieldError("an action must be a mapping with a type")
    if "type" not in mapping:
        raise missing("type", mapping, what=f"missing type (known: {known})")
    kind = mapping["type"]
    states, alarms = _if_states(mapping.get("if")), _if_alarms(mapping.get("if"))
    path = extensions.path_of(kind, types, _KEYS)
    if path is not None:
        return extensions.parse_action(mapping, path, states, alarms)
    if not isinstance(kind, str) or kind not in _KEYS:
        raise FieldError(
            f"unknown action type: {kind} (known: {known}, or a class: package.module.Class)", ["type"]
        )
    surplus = [str(k) for k in mapping if k not in _KEYS[kind]]
    if surplus:
        raise FieldError(f"unexpected keys: {' '.join(surplus)}", [surplus[0]])
    if kind == "schedule":
        return ScheduleAction(*_target(mapping), states, alarms)
    return _email(mapping, states, alarms)


def _email(
    mapping: Mapping[str, Any], states: frozenset[State] | None, alarms: frozenset[str]
) -> EmailAction:
    for key in ("to", "from"):
        if mapping.get(key) is None:
            raise FieldError(f"missing key: {key}", [key] if key in mapping else [])
    to = mapping["to"] if isinstance(mapping["to"], list) else [mapping["to"]]
    texts = {"from": mapping["from"], "subject": mapping.get("subject", "")}
    for key, value in [*(("to", address) for address in to), *texts.items()]:
        if not isinstance(value, str) or (key != "subject" and not value.strip()):
            raise FieldError(f"{key} must be a text: {value!r}", [key])
    if not to:
        raise FieldError("to must be an address, or a list of them", ["to"])
    return EmailAction(tuple(to), mapping["from"], mapping.get("subject"), states, alarms)


def successor(value: Any) -> Action:
    """One entry of `successors`: a job ID or {job_id, args}; a schedule action on success."""
    if isinstance(value, str):
        value = {"job_id": value}
    if not isinstance(value, Mapping):
        raise FieldError("a successor must be a job ID or a mapping with job_id and args")
    surplus = [str(k) for k in value if k not in ("job_id", "args")]
    if surplus:
        raise FieldError(f"unexpected keys: {' '.join(surplus)}", [surplus[0]])
    return ScheduleAction(*_target(value), frozenset({State.SUCCESS}))


def _target(mapping: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    if "job_id" not in mapping:
        raise FieldError("missing key: job_id")
    if not isinstance(mapping["job_id"], str):
        raise FieldError(f"job_id must be a string; put quotes around it: {mapping['job_id']!r}", ["job_id"])
    args = mapping.get("args") or {}
    if not isinstance(args, Mapping):
        raise FieldError("args must be a mapping of names to values", ["args"])
    return mapping["job_id"], {str(k): str(v) for k, v in args.items()}


def _if_alarms(value: Any) -> frozenset[str]:
    named = value.get("alarm") if isinstance(value, Mapping) else None
    found = named if isinstance(named, list) else [] if named is None else [named]
    if named is not None and not found:  # it would follow every transition, as without an `if`
        raise FieldError(f"alarm names none (known: {', '.join(ALARMS)})", ["if", "alarm"])
    for name in found:
        if name not in ALARMS:
            raise FieldError(f"unknown alarm: {name} (known: {', '.join(ALARMS)})", ["if", "alarm"])
    return frozenset(found)


def _if_states(value: Any) -> frozenset[State] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise FieldError("if must be a mapping with states or alarm", ["if"])
    surplus = [str(k) for k in value if k not in ("states", "alarm")]
    if surplus:
        raise FieldError(f"unexpected keys: {' '.join(surplus)}", ["if", surplus[0]])
    if value.get("states") is None:
        return None
    try:
        return parse_states(value["states"], "states")
    except FieldError as error:
        raise error.under("if") from None
