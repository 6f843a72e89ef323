"""What a run waits for before it starts.

A condition is parsed from a job file, bound for a run (its templates expanded), and judged over a
View of the other runs. Judging is pure. A verdict that says "not yet" names the keys that could
change it; the kernel files the run under them and judges again only when one is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Protocol

from apsislib.errors import BadRequest, FieldError, missing
from apsislib.runs import Args, Job, Json, Run, canonical, instance, record
from apsislib.states import FINISHED, TRANSITIONS, State, reachable

RunKey = tuple[str, str]  # job ID, canonical args
# What may change a verdict: a run of the instance enters one of these states; None: one of its slots is
# free. Those that wait for a slot are a queue.
Key = tuple[RunKey, frozenset[State] | None]
Expand = Callable[[str], str]
FindJob = Callable[[str], Job]

ORDER = tuple(State)  # lifecycle order, for texts
OCCUPYING = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
ANY = frozenset(State)
_SUCCESS = frozenset({State.SUCCESS})


class View(Protocol):
    """What a condition may know of the other runs."""

    def live(self, key: RunKey) -> Iterable[Run]:
        """Unfinished runs of this job and these args, expected ones included, by run number."""

    def occupied(self, key: RunKey) -> int:
        """How many of them are starting, running or stopping."""

    def ended(self, key: RunKey) -> frozenset[State] | None:
        """In which states earlier runs ended, however long ago; None: not known yet, being looked up."""

    def planned(self, key: RunKey) -> bool:
        """A schedule of the job will make such a run beyond the horizon."""


@record
class Verdict:
    holds: bool
    reason: str = ""  # said if it moves the run; else Bound.why is asked, when somebody looks
    keys: tuple[Key, ...] = ()
    move: State | None = None  # the run is to go there instead of waiting
    lookup: RunKey | None = None  # its outcomes have to be looked up first


HOLDS = Verdict(True)


# -- bound ---------------------------------------------------------------------------------------


class Bound(Protocol):
    """A condition of one run."""

    @property
    def monotonic(self) -> bool:
        """Once it holds it holds for ever."""

    def judge(self, run: Run, view: View) -> Verdict: ...

    def why(self, view: View) -> str:
        """Why it does not hold, as things are; empty if that is known from elsewhere, or it does hold."""

    def to_json(self) -> dict[str, Any]: ...


@record
class _About:
    """A condition about the runs of an instance."""

    job_id: str
    args: Args
    # Worked out once for all of a run's judgements.
    key: RunKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.key = self.job_id, canonical(self.args)  # type: ignore[misc]


@record
class BoundDependency(_About):
    """Holds once any run of exactly this instance is in one of `states`, however old."""

    states: frozenset[State]
    exist: frozenset[State] | None = None
    monotonic: ClassVar[bool] = True

    def judge(self, run: Run, view: View) -> Verdict:
        key, states, exist = self.key, self.states, self.exist
        live = [r.state for r in view.live(key)]
        for state in live:
            if state in states:
                return HOLDS
        keys = ((key, states if exist is None else ANY),)
        ended = view.ended(key)
        if ended is None:
            return Verdict(False, "", keys, None, key)
        if not states.isdisjoint(ended):
            return HOLDS
        if exist is not None and exist.isdisjoint(live) and exist.isdisjoint(ended):
            planned = State.SCHEDULED in exist and view.planned(key)
            if not planned:
                text = f"no dependency {instance(self.job_id, self.args)} exists in {_among(exist)}"
                return Verdict(False, text, keys, State.ERROR)
        return Verdict(False, "", keys)

    def why(self, view: View) -> str:
        name, ended = instance(self.job_id, self.args), view.ended(self.key)
        found = {r.state for r in view.live(self.key)} | (ended or set())
        if found & self.states:
            return ""
        if ended is None:
            return f"looking up runs of {name}"
        said = ", ".join(state for state in ORDER if state in found)
        return f"{name} is {said}" if said else f"no run of {name} yet"

    def to_json(self) -> dict[str, Any]:
        return _dependency_json(self.job_id, self.args, self.states, self.exist)


@record
class BoundMaxRunning(_About):
    """Holds while fewer than `count` runs of the job with these args occupy a slot.

    `stopping` counts: the program is still there. Upstream does not count it.
    """

    count: int
    monotonic: ClassVar[bool] = False

    def judge(self, run: Run, view: View) -> Verdict:
        return HOLDS if view.occupied(self.key) < self.count else Verdict(False, "", ((self.key, None),))

    def why(self, view: View) -> str:
        taken = view.occupied(self.key)
        name = instance(self.job_id, self.args)
        return f"{taken} of {self.count} running: {name}" if taken >= self.count else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "apsis.cond.max_running.BoundMaxRunning",
            "count": self.count,
            "job_id": self.job_id,
            "args": self.args,
            "str": f"fewer than {self.count} runs of {instance(self.job_id, self.args)} running",
        }


def seniority(run: Run) -> tuple[float, float, int]:
    """Of two runs that wait, the one of the lesser was there first.

    Numbers do not tell: scheduled runs have theirs up to a day before they are due.
    """
    schedule = run.times.get("schedule", 0.0)
    return run.times.get("waiting", schedule), schedule, run.number


@record
class BoundSkipDuplicate(_About):
    """Never blocks: moves the run to `target` if another run of the instance is in a check state.

    Of runs that wait alike the one that has waited longest goes on: one that waits is a duplicate only of
    those before it in the queue, and of scheduled ones that were made before it.
    """

    check_states: frozenset[State]
    target: State
    run_id: str
    monotonic: ClassVar[bool] = False

    def judge(self, run: Run, view: View) -> Verdict:
        for other in view.live(self.key):
            if other.run_id == run.run_id or other.state not in self.check_states:
                continue
            if other.state is State.WAITING and seniority(other) > seniority(run):
                continue
            if other.state is State.SCHEDULED and other.number > run.number:
                continue
            reason = f"transitioning to {self.target} because {other.run_id} {other.state}"
            return Verdict(False, reason, move=self.target)
        return HOLDS

    def why(self, view: View) -> str:
        return ""

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "apsis.cond.skip_duplicate.BoundSkipDuplicate",
            "check_states": _listed(self.check_states),
            "target_state": self.target.value,
            "instance": [self.job_id, self.args],
            "run_id": self.run_id,
            "str": _skip_text(self.target, self.check_states),
        }


@record
class BoundConst:
    value: bool
    monotonic: ClassVar[bool] = True

    def judge(self, run: Run, view: View) -> Verdict:
        return HOLDS if self.value else Verdict(False)

    def why(self, view: View) -> str:
        return "" if self.value else "constant false: waits until started by hand"

    def to_json(self) -> dict[str, Any]:
        return {"type": "const", "value": self.value, "str": f"const {str(self.value).lower()}"}


@record
class BoundOwn:
    """A condition of a user's class, which is asked off the lock: extensions.py says how."""

    path: str  # of the class
    config: Json
    interval: float  # seconds from an answer to the next question
    monotonic: bool = True

    def judge(self, run: Run, view: View) -> Verdict:
        return Verdict(False, f"asking {self.path}")

    def why(self, view: View) -> str:
        return ""

    def to_json(self) -> dict[str, Any]:
        keys = "".join(f" {key}={value}" for key, value in self.config.items())
        return {
            "type": self.path,
            "config": dict(self.config),
            "interval": self.interval,
            "monotonic": self.monotonic,
            "str": self.path + keys,
        }


def about(cond: Bound) -> tuple[RunKey, frozenset[State]] | None:
    """Which unfinished runs a condition that does not hold waits for: of what instance, in what states."""
    match cond:
        case BoundDependency():
            return cond.key, ANY - FINISHED
        case BoundMaxRunning():
            return cond.key, OCCUPYING
    return None


def load(json: Json) -> Bound:
    """The bound condition of its stored JSON. Raises BadRequest for a kind that is not known."""
    match json.get("type"):
        case "dependency":
            exist = json.get("exist")
            return BoundDependency(
                json["job_id"],
                json["args"],
                _states(json.get("states", ["success"]), "states"),
                None if exist is None else _states(exist, "exist"),
            )
        case "apsis.cond.max_running.BoundMaxRunning":
            return BoundMaxRunning(json["job_id"], json["args"], int(json["count"]))
        case "apsis.cond.skip_duplicate.BoundSkipDuplicate":
            job_id, args = json["instance"]
            check = _states(json["check_states"], "check_states")
            return BoundSkipDuplicate(job_id, args, check, State(json["target_state"]), json["run_id"])
        case "const":
            return BoundConst(bool(json["value"]))
        case str(kind) if "config" in json:
            return BoundOwn(kind, json["config"], float(json["interval"]), bool(json["monotonic"]))
        case kind:
            raise BadRequest(f"unknown condition type in the database: {kind}")


# -- as job files have them ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enabled:
    """`enabled`: absent, a bool, or a template whose text decides (only true/false/empty have meaning)."""

    value: bool | str | None = None

    def __call__(self, expand: Expand) -> bool:
        if not isinstance(self.value, str):
            return self.value is not False
        text = expand(self.value)
        return text not in ("false", "False", "")

    def json(self) -> dict[str, Any]:
        return {} if self.value is None else {"enabled": self.value}


@record
class Binding:
    """What a condition is bound with."""

    job: Job
    args: Args
    run_id: str
    expand: Expand
    find_job: FindJob


class Condition(Protocol):
    """A condition of a job."""

    @property
    def enabled(self) -> Enabled: ...

    def bind(self, to: Binding) -> Bound: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Dependency:
    job_id: str
    args: Mapping[str, str] = field(default_factory=dict)
    states: frozenset[State] = _SUCCESS
    exist: frozenset[State] | None = None
    enabled: Enabled = Enabled()

    def bind(self, to: Binding) -> BoundDependency:
        target = to.find_job(to.expand(self.job_id))
        if not self.args and to.args.keys() == set(target.params):
            return BoundDependency(target.job_id, to.args, self.states, self.exist)
        args: dict[str, str] = {}
        for param in sorted(target.params):
            if param in self.args:
                args[param] = to.expand(self.args[param])
            elif param in to.args:
                args[param] = to.args[param]
            else:
                raise BadRequest(f"no value for param {param} of job {target.job_id}")
        return BoundDependency(target.job_id, args, self.states, self.exist)

    def to_json(self) -> dict[str, Any]:
        return _dependency_json(self.job_id, self.args, self.states, self.exist) | self.enabled.json()


@dataclass(frozen=True, slots=True)
class MaxRunning:
    count: str = "1"
    job_id: str | None = None
    enabled: Enabled = Enabled()

    def bind(self, to: Binding) -> BoundMaxRunning:
        text = to.expand(self.count)
        try:
            count = int(text)
        except ValueError:
            raise BadRequest(f"max_running: count is not a whole number: {text!r}") from None
        if count < 1:
            raise BadRequest(f"max_running: count must be at least 1, or nothing ever runs: {count}")
        return BoundMaxRunning(self.job_id or to.job.job_id, to.args, count)

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "max_running",
            "count": self.count,
            "job_id": self.job_id,
            "args": None,
            "str": f"fewer than {self.count} runs running",
        } | self.enabled.json()


@dataclass(frozen=True, slots=True)
class SkipDuplicate:
    check_states: frozenset[State] = frozenset({State.WAITING, State.STARTING, State.RUNNING})
    target: State = State.SKIPPED
    enabled: Enabled = Enabled()

    def bind(self, to: Binding) -> BoundSkipDuplicate:
        return BoundSkipDuplicate(to.job.job_id, to.args, self.check_states, self.target, to.run_id)

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "skip_duplicate",
            "check_states": _listed(self.check_states),
            "target_state": self.target.value,
            "str": _skip_text(self.target, self.check_states),
        } | self.enabled.json()


@dataclass(frozen=True, slots=True)
class Const:
    value: bool
    enabled: Enabled = Enabled()

    def bind(self, to: Binding) -> BoundConst:
        return BoundConst(self.value)

    def to_json(self) -> dict[str, Any]:
        return BoundConst(self.value).to_json() | self.enabled.json()


# -- parsing ---------------------------------------------------------------------------------------


def parse(mapping: Any, more: Iterable[str] = ()) -> Condition:
    """The condition that a job file's mapping means. `more`: other types, that users have made.

    Raises FieldError with the key path.
    """
    known_types = ", ".join([*_PARSERS, *more])
    if not isinstance(mapping, Mapping):
        raise FieldError("a condition must be a mapping with a type")
    if "type" not in mapping:
        raise missing("type", mapping, what=f"missing type (known: {known_types})")
    kind = mapping["type"]
    if not isinstance(kind, str) or kind not in _PARSERS:
        raise FieldError(
            f"unknown condition type: {kind} (known: {known_types}, or a class: package.module.Class)",
            ["type"],
        )
    known, parser = _PARSERS[kind]
    surplus = [str(k) for k in mapping if k not in known and k not in ("type", "enabled")]
    if surplus:
        raise FieldError(f"unexpected keys: {' '.join(surplus)}", [surplus[0]])
    return parser(mapping, parse_enabled(mapping))


def parse_enabled(mapping: Mapping[str, Any]) -> Enabled:
    enabled = mapping.get("enabled")
    if enabled is not None and not isinstance(enabled, bool | str):
        raise FieldError("enabled must be a bool or a quoted string", ["enabled"])
    return Enabled(enabled)


def parse_states(value: Any, key: str) -> frozenset[State]:
    """The set of states that a state name or a list of them means."""
    try:
        return _states(value, key)
    except FieldError as error:
        raise error.under(key) from None


def _parse_dependency(m: Mapping[str, Any], enabled: Enabled) -> Dependency:
    if "job_id" not in m:
        raise FieldError("missing key: job_id")
    job_id = m["job_id"]
    if not isinstance(job_id, str):
        raise FieldError(f"job_id must be a string; put quotes around it: {job_id!r}", ["job_id"])
    args = m.get("args") or {}
    if not isinstance(args, Mapping):
        raise FieldError("args must be a mapping of names to values", ["args"])
    states = parse_states(m.get("states", "success"), "states")
    exist: frozenset[State] | None
    match m.get("exist"):
        case None | False:
            exist = None
        case True:
            exist = reachable(states)
        case value:
            exist = parse_states(value, "exist")
            if not states <= exist:
                raise FieldError("exist must include all of states, or use exist: true", ["exist"])
    return Dependency(job_id, {str(k): str(v) for k, v in args.items()}, states, exist, enabled)


def _parse_max_running(m: Mapping[str, Any], enabled: Enabled) -> MaxRunning:
    if m.get("args") is not None:
        raise FieldError("args is not supported: runs with the same args are counted; remove it", ["args"])
    count = m.get("count", 1)
    template = isinstance(count, str) and "{" in count  # which may come to anything
    if not template and (isinstance(count, bool) or not re.fullmatch("-?[0-9]+", str(count))):
        raise FieldError(f"count must be a whole number or a template: {count!r}", ["count"])
    if not template and int(count) < 1:
        raise FieldError(f"count must be at least 1, or nothing ever runs: {count}", ["count"])
    job_id = m.get("job_id")
    if job_id is not None and not isinstance(job_id, str):
        raise FieldError(f"job_id must be a string; put quotes around it: {job_id!r}", ["job_id"])
    return MaxRunning(str(count), job_id, enabled)


def _parse_skip_duplicate(m: Mapping[str, Any], enabled: Enabled) -> SkipDuplicate:
    plain = SkipDuplicate()
    check = parse_states(m["check_states"], "check_states") if "check_states" in m else plain.check_states
    target = next(iter(parse_states(m.get("target_state", "skipped"), "target_state")), None)
    if target not in FINISHED:
        known = ", ".join(s for s in ORDER if s in FINISHED)
        raise FieldError(
            f"invalid target state: {m['target_state']} (finished states: {known})", ["target_state"]
        )
    return SkipDuplicate(check, target, enabled)


def _parse_const(m: Mapping[str, Any], enabled: Enabled) -> Const:
    if "value" not in m:
        raise FieldError("missing key: value")
    if not isinstance(m["value"], bool):
        raise FieldError(f"value must be true or false, without quotes: {m['value']!r}", ["value"])
    return Const(m["value"], enabled)


_PARSERS: dict[str, tuple[frozenset[str], Callable[[Mapping[str, Any], Enabled], Condition]]] = {
    "dependency": (frozenset({"job_id", "args", "states", "exist"}), _parse_dependency),
    "max_running": (frozenset({"count", "job_id", "args"}), _parse_max_running),
    "skip_duplicate": (frozenset({"check_states", "target_state"}), _parse_skip_duplicate),
    "const": (frozenset({"value"}), _parse_const),
}

KINDS = frozenset(_PARSERS)


def _states(value: Any, key: str) -> frozenset[State]:
    names: Sequence[Any] = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise FieldError(f"{key} must be a state or a list of states (known: {', '.join(TRANSITIONS)})")
    for i, name in enumerate(names):
        if not isinstance(name, str) or name not in TRANSITIONS:
            where = [] if names is not value else [i]
            raise FieldError(f"not a state: {name!r} (known: {', '.join(TRANSITIONS)})", where)
    return frozenset(State(n) for n in names)


def _dependency_json(
    job_id: str, args: Args, states: frozenset[State], exist: frozenset[State] | None
) -> dict[str, Any]:
    json: dict[str, Any] = {"type": "dependency", "job_id": job_id, "args": args}
    text = f"dependency {instance(job_id, args)} is {_among(states)}"
    if states != _SUCCESS:
        json["states"] = _listed(states)
    if exist is not None:
        json["exist"] = _listed(exist)
        text += f", must exist as {_among(exist)}"
    json["str"] = text
    return json


def _listed(states: frozenset[State]) -> list[str]:
    return _among(states).split("|") if states else []


@lru_cache(maxsize=256)  # of 1024 sets, few are in use
def _among(states: frozenset[State]) -> str:
    """The states in the order of a run's life: `success|failure`."""
    return "|".join(s.value for s in ORDER if s in states)


def _skip_text(target: State, check_states: frozenset[State]) -> str:
    return f"transition to {target.value} if another run is {_among(check_states)}"
