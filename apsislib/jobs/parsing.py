"""A mapping -> a Job record, or everything that is wrong with it.

What a job's parts mean is decided by their own modules; programs, which this layer may not see, are
parsed by a function that the caller gives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from math import isfinite
from typing import Any

from apsislib import actions, catchup, expectations, extensions, schedules
from apsislib.calendars import Calendars
from apsislib.errors import FieldError, missing
from apsislib.runs import Job, Program

_KEYS = (
    "program",
    "params",
    "schedule",
    "condition",
    "action",
    "successors",
    "expect",
    "catch_up",
    "metadata",
    "ad_hoc",
    "job_id",
)
# What manuals and other schedulers call them.
_MEANT = {
    "conditions": "condition",
    "actions": "action",
    "schedules": "schedule",
    "successor": "successors",
    "programs": "program",
    "param": "params",
    "labels": "metadata.labels",
    "description": "metadata.description",
}
# Program types of older releases, which the table of programs still knows.
_OLD_TYPES = frozenset({"program", "shell"})
_OLD_MODULES = ("apsis.program.process.", "apsis.program.agent.")


@dataclass(frozen=True, slots=True)
class Kinds:
    """The parsers and names that come from above: from the programs and the server's file."""

    program: Callable[[Mapping[str, Any]], Program]  # raises FieldError
    calendars: Calendars = field(default_factory=Calendars)
    schedule_types: Mapping[str, str] = field(default_factory=dict)  # short name -> dotted class path
    condition_types: Mapping[str, str] = field(default_factory=dict)
    action_types: Mapping[str, str] = field(default_factory=dict)


def parse_job(mapping: Any, job_id: str, kinds: Kinds, ad_hoc: bool = False) -> Job:
    """The job that a mapping means, which came in a request or from the database. Raises FieldError."""
    if not isinstance(mapping, Mapping):
        raise FieldError("job must be a mapping")
    reading = Reading(job_id, kinds, None, ad_hoc)
    job = reading.job(mapping)
    if job is None:
        first, *more = reading.errors
        raise FieldError("; ".join([first.message, *map(described, more)]), first.keys)
    return job


class Reading:
    """One reading of one mapping: goes on after an error, to report all of them."""

    def __init__(self, job_id: str, kinds: Kinds, source: str | None, ad_hoc: bool = False) -> None:
        self.job_id = job_id
        self.kinds = kinds
        self.source = source
        self.ad_hoc = ad_hoc
        self.errors: list[FieldError] = []
        self.doubts: list[FieldError] = []
        self.places: dict[tuple[str | int, ...], tuple[str | int, ...]] = {}

    def job(self, mapping: Mapping[Any, Any]) -> Job | None:
        self.check_keys(mapping)
        params = self.attempt(_params, mapping.get("params"), "params") or ()
        program = None
        if mapping.get("program") is None:
            self.errors.append(
                FieldError("missing key: program", ["program"] if "program" in mapping else [])
            )
        else:
            program = self.attempt(self.program, mapping["program"], "program")
        parsed_schedules = self.each(mapping, "schedule", self.schedule)
        parsed_conditions = self.each(mapping, "condition", self.condition)
        parsed_actions = self.each(mapping, "action", self.action)
        parsed_actions += self.each(mapping, "successors", actions.successor, "action", len(parsed_actions))
        self.check_schedule_args(mapping.get("schedule"), params)
        metadata = self.attempt(_metadata, mapping.get("metadata"), "metadata") or {}
        expect = self.attempt(
            lambda value: expectations.parse(value, tuple(parsed_schedules)), mapping.get("expect"), "expect"
        )
        catch_up = self.attempt(catchup.parse, mapping.get("catch_up"), "catch_up")
        if catch_up is not None and mapping.get("schedule") in (None, []):
            self.doubts.append(FieldError("has no meaning without a schedule; remove it", ["catch_up"]))
        if self.errors or program is None:
            return None
        return Job(
            job_id=self.job_id,
            params=params,
            schedules=tuple(parsed_schedules),
            program=program,
            conditions=tuple(parsed_conditions),
            actions=tuple(parsed_actions),
            metadata=metadata,
            ad_hoc=self.ad_hoc,
            source=self.source,
            json={
                "job_id": self.job_id,
                "params": list(params),
                "schedule": [_definition(s.to_json()) for s in parsed_schedules],
                "program": _definition(program.to_json()),
                "condition": [_definition(c.to_json()) for c in parsed_conditions],
                "action": [_definition(a.to_json()) for a in parsed_actions],
                "metadata": metadata,
                "ad_hoc": self.ad_hoc,
                **({} if expect is None else {"expect": expect.to_json()}),
                **({} if catch_up is None else {"catch_up": catch_up.to_json()}),
            },
            expect=expect,
            catch_up=catch_up,
        )

    def check_keys(self, mapping: Mapping[Any, Any]) -> None:
        surplus = [str(key) for key in mapping if key not in _KEYS]
        if surplus:
            meant = [_MEANT[key] for key in surplus if key in _MEANT]
            hint = f" (did you mean {', '.join(meant)}?)" if meant else f" (known: {', '.join(_KEYS)})"
            self.errors.append(FieldError(f"unexpected keys: {' '.join(surplus)}{hint}", [surplus[0]]))
        own = mapping.get("job_id")
        if own is not None and own != self.job_id:
            self.errors.append(
                FieldError(f"mismatch: {own!r} is not {self.job_id!r}; remove the key", ["job_id"])
            )
        ad_hoc = mapping.get("ad_hoc")
        if ad_hoc is not None and not isinstance(ad_hoc, bool):
            self.errors.append(FieldError(f"must be true or false: {ad_hoc!r}", ["ad_hoc"]))
        elif ad_hoc and not self.ad_hoc:
            self.doubts.append(FieldError("has no meaning in a job file; remove it", ["ad_hoc"]))

    def check_schedule_args(self, value: Any, params: Collection[str]) -> None:
        """Args that a schedule gives to no param: they may be misspelt, and are dropped in silence."""
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            keys: tuple[str | int, ...] = ("schedule", i) if isinstance(value, list) else ("schedule",)
            if isinstance(item, Mapping) and isinstance(item.get("start"), Mapping) and "type" not in item:
                keys, item = (*keys, "start"), item["start"]
            args = item.get("args") if isinstance(item, Mapping) else None
            for name in args if isinstance(args, Mapping) else ():
                if str(name) not in params:
                    said = f"the job has no such param ({', '.join(params) or 'none'}); remove it"
                    self.doubts.append(FieldError(said, [*keys, "args", str(name)]))

    def attempt(self, parse: Callable[[Any], Any], value: Any, *keys: str | int) -> Any:
        """parse(value); None, and the error is noted, if that fails."""
        try:
            return parse(value)
        except FieldError as error:
            self.errors.append(error.under(*keys))
        except Exception as error:  # users' own classes may raise anything; it costs only this job
            self.errors.append(FieldError(f"{type(error).__name__}: {error}", keys))
        return None

    def each(
        self,
        mapping: Mapping[Any, Any],
        key: str,
        parse: Callable[[Any], Any],
        name: str | None = None,
        first: int = 0,
    ) -> list[Any]:
        """What parse makes of the value, or of each of its items if it is a list.

        Where the i-th stands is noted as the place (name or key, first + i).
        """
        value = mapping.get(key)
        if value is None:
            return []
        many = isinstance(value, list)
        parsed = []
        for i, item in enumerate(value if many else [value]):
            keys = (key, i) if many else (key,)
            self.places[name or key, first + i] = keys
            if (found := self.attempt(parse, item, *keys)) is not None:
                parsed.append(found)
        return parsed

    def schedule(self, value: Any) -> Any:
        return schedules.parse(value, self.kinds.calendars, self.kinds.schedule_types)

    def condition(self, value: Any) -> Any:
        return extensions.parse_condition(value, self.kinds.condition_types)

    def action(self, value: Any) -> Any:
        return actions.parse(value, self.kinds.action_types)

    def program(self, value: Any) -> Program:
        form = None
        if isinstance(value, str):
            form, value = "a string", {"type": "procstar-shell", "command": value}
        elif isinstance(value, list):
            form, value = "a list", {"type": "procstar", "argv": value}
        elif not isinstance(value, Mapping):
            raise FieldError(f"a program must be a mapping with a type: {value!r}")
        elif value.get("type") is None:
            raise missing("type", value, what="missing type")
        program = self.kinds.program(value)
        now = program.to_json().get("type")
        kind = str(value["type"])
        # Users may have a kind of their own by an old name: then it is not made into another.
        if kind != now and (kind in _OLD_TYPES or kind.startswith(_OLD_MODULES)):
            form = f"type {kind}"
        if form:
            self.doubts.append(
                FieldError(f"{form} is an old form; write a mapping of type {now}", ["program"])
            )
        return program


def _definition(json: dict[str, Any]) -> dict[str, Any]:
    """A typed object without what is only for people to read, so that parse_job takes it again."""
    if isinstance(json.get("start"), dict) and "type" not in json:
        return {key: _definition(json[key]) for key in ("start", "stop") if json.get(key) is not None}
    return {key: value for key, value in json.items() if key != "str"}


def _params(value: Any) -> tuple[str, ...]:
    names = [] if value is None else list(value) if isinstance(value, list | Mapping) else [value]
    for i, name in enumerate(names):
        if name is None or isinstance(name, list | Mapping):
            raise FieldError(f"a param must be a name: {name!r}", [i] if isinstance(value, list) else [])
    return tuple(sorted({str(name) for name in names}))


def _metadata(value: Any) -> dict[str, Any]:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise FieldError("metadata must be a mapping")
    metadata: dict[str, Any] = _jsonable(value)
    labels = metadata.get("labels")
    labels = [] if labels is None else labels if isinstance(labels, list) else [labels]
    for i, label in enumerate(labels):
        if isinstance(label, list | dict):
            raise FieldError(f"a label must be a text: {label!r}", ["labels", i])
    metadata["labels"] = [str(label) for label in labels]
    return metadata


def _jsonable(value: Any) -> Any:
    """`value` as JSON can have it: a date, which YAML makes of any text like one, is a text again."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, date) or (isinstance(value, float) and not isfinite(value)):
        return str(value)
    return value


def described(error: FieldError) -> str:
    """The error's message after the keys that lead to it: `schedule[1].tz: unknown time zone: X`."""
    keys = error.keys[:-1] if error.message.startswith("unexpected keys") else error.keys
    path = ""
    for key in keys:
        path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
    return f"{path}: {error.message}" if path else error.message
