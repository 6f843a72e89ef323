"""Conditions and actions of users' own: classes importable from PYTHONPATH.

A job names one by `type: package.module.Class`, or by a short name from `condition_types` or
`action_types`; the keys beside `type`, `enabled` and `if` are its own. Templates in their texts are
expanded for each run. Both kinds of class need

    from_config(mapping) -> object    a class method, given the expanded keys. What it raises is an error
                                      of the job where no key has a template, else of the run.

and may have

    bind(names) -> object             called next, with the run's args, run_id and job_id

A condition needs

    check(runs) -> True               it holds
                   False, or a text   not yet; the text says why, or what is waited for
                   (state, reason)    it never will: the run ends in `state`, say "skipped"

It may block: it is called from a thread kept for checks, by a new object each time, and again some
`interval` seconds (an attribute; 1 by default) after each answer. Once it holds it is not asked again,
unless it has `monotonic = False`: then its answer counts for `interval` seconds, and is asked for again
if other conditions held the run up for longer. `runs(job_id, args=None, states=None)` gives the runs of
a job as mappings: run_id, job_id, args, state, times (seconds since the epoch). An exception is an
error of the run, with its traceback.

An action needs

    run(snapshot) -> None             does the work; a text it returns goes into the run's log

in a thread kept for actions, which it may block. `snapshot` is the run as the transition left it.
An action is done at least once: after a crash that came between the work and the note of it, twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from apsislib import classes, conditions, templates
from apsislib.conditions import Binding, BoundOwn, Condition, Enabled, Expand, Verdict
from apsislib.errors import BadRequest
from apsislib.runs import Args, Json, Run, labels
from apsislib.states import FINISHED, State

INTERVAL = 1.0  # s between two checks of a condition that does not say
SHORTEST = 0.1  # s; more often would keep a thread busy for one run

_CONDITION = ("from_config", "check")
_ACTION = ("from_config", "run")


# -- conditions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnCondition:
    path: str
    config: Mapping[str, Any]
    enabled: Enabled = Enabled()

    def bind(self, to: Binding) -> BoundOwn:
        config = expanded(self.config, to.expand)
        made = _make(self.path, "condition", _CONDITION, config)
        interval = float(getattr(made, "interval", INTERVAL))
        monotonic = bool(getattr(made, "monotonic", True))
        return BoundOwn(self.path, config, max(SHORTEST, interval), monotonic)

    def to_json(self) -> dict[str, Any]:
        return {"type": self.path, **self.config, "str": _text(self.path, self.config)} | self.enabled.json()


def parse_condition(mapping: Any, types: Mapping[str, str]) -> Condition:
    """The condition that a job file's mapping means. `types`: short names of users' classes.

    Raises FieldError with the key path.
    """
    path = _path(mapping, types, conditions.KINDS)
    if path is None:
        return conditions.parse(mapping, types)
    enabled = conditions.parse_enabled(mapping)
    config = _config(mapping, ("type", "enabled", "str"))
    _try(path, "condition", _CONDITION, config)
    return OwnCondition(path, config, enabled)


class FindRuns(Protocol):
    """What conditions can ask about other runs."""

    def __call__(
        self, job_id: str, args: Args | None = None, states: Iterable[str] | None = None
    ) -> Sequence[Json]: ...


def check(cond: BoundOwn, names: Args, runs: FindRuns) -> Verdict:
    """Ask a user's condition; it may block. Raises what it raises."""
    made = _make(cond.path, "condition", _CONDITION, cond.config)
    with classes.unleaving():
        if hasattr(made, "bind"):
            made = made.bind(dict(names)) or made
        answer = made.check(runs)
    match answer:
        case True:
            return conditions.HOLDS
        case False | None:
            return Verdict(False, f"{cond.path} says not yet")
        case str():
            return Verdict(False, answer)
        case (state, reason) if state in FINISHED:
            return Verdict(False, str(reason), move=State(state))
    raise BadRequest(
        f"{cond.path}.check() answered {answer!r}; it can be True, False, a text, or a finished state"
        " and a reason"
    )


# -- actions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnAction:
    path: str
    config: Mapping[str, Any]
    states: frozenset[State] | None = None
    alarms: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        json = {"type": self.path, **self.config, **if_json(self.states, self.alarms)}
        return json | {"str": _text(self.path, self.config) + on_text(self.states, self.alarms)}


def if_json(states: frozenset[State] | None, alarms: frozenset[str]) -> dict[str, Any]:
    """The `if` of an action, as JSON: on every transition without one."""
    when: dict[str, Any] = {}
    if states is not None:
        when["states"] = [s.value for s in conditions.ORDER if s in states]
    if alarms:
        when["alarm"] = sorted(alarms)
    return {"if": when} if when else {}


def on_text(states: frozenset[State] | None, alarms: frozenset[str]) -> str:
    text = f" when {'|'.join(sorted(alarms))}" if alarms else ""
    return text if states is None else f"{text} on {'|'.join(s for s in conditions.ORDER if s in states)}"


def parse_action(
    mapping: Mapping[str, Any], path: str, states: frozenset[State] | None, alarms: frozenset[str]
) -> OwnAction:
    """Raises FieldError with the key path."""
    config = _config(mapping, ("type", "if", "str"))
    _try(path, "action", _ACTION, config)
    return OwnAction(path, config, states, alarms)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run as one of its transitions left it; what came later does not show. Times: seconds, UTC."""

    run_id: str
    job_id: str
    args: Mapping[str, str]
    state: str
    times: Mapping[str, float]  # "schedule", "stop", and each state entered
    labels: Sequence[str]
    meta: Mapping[str, Any]
    program: Mapping[str, Any] | None
    conditions: Sequence[Mapping[str, Any]]
    job: Mapping[str, Any] | None  # as in its file; None if there is no such job any more
    # What the program has printed, or the last so many bytes of it; read from the database when asked.
    output: Callable[..., bytes]
    log: Callable[[], Sequence[tuple[float, str]]]  # the run's log: (time, text), read when asked


def snapshot(
    run: Run,
    job: Json | None,
    output: Callable[..., bytes],
    log: Callable[[], Sequence[tuple[float, str]]],
) -> Snapshot:
    return Snapshot(
        run.run_id,
        run.job_id,
        dict(run.args),
        run.state.value,
        dict(run.times),
        tuple(labels(run.meta.get("job"))),
        dict(run.meta),
        run.program,
        run.conds,
        job,
        output,
        log,
    )


def act(action: Json, run: Snapshot, expand: Expand) -> str | None:
    """Do a user's action; it may block. Answers a line for the run's log. Raises what it raises."""
    path = str(action["type"])
    made = _make(path, "action", _ACTION, expanded(_config(action, ("type", "if", "str")), expand))
    with classes.unleaving():
        if hasattr(made, "bind"):
            made = made.bind({**run.args, "run_id": run.run_id, "job_id": run.job_id}) or made
        answer = made.run(run)
    return answer if isinstance(answer, str) else None


# -- both ------------------------------------------------------------------------------------------


def path_of(kind: Any, types: Mapping[str, str], known: Iterable[str]) -> str | None:
    """The dotted path that a type means; None if it is one of the built-in kinds, or nothing."""
    if not isinstance(kind, str) or (kind in known and kind not in types):
        return None
    path = types.get(kind, kind)
    return path if "." in path.strip(".") else None


def _path(mapping: Any, types: Mapping[str, str], known: Iterable[str]) -> str | None:
    return path_of(mapping.get("type"), types, known) if isinstance(mapping, Mapping) else None


def _make(path: str, what: str, needs: Sequence[str], config: Mapping[str, Any]) -> Any:
    found: Any = classes.find(path, what, needs)
    return classes.called(path, found.from_config, dict(config))


def _try(path: str, what: str, needs: Sequence[str], config: Mapping[str, Any]) -> None:
    """What can be said of it before there is a run. Raises FieldError."""
    classes.find(path, what, needs)
    if not has_template(config):
        _make(path, what, needs, config)


def _config(mapping: Mapping[str, Any], without: Iterable[str]) -> dict[str, Any]:
    return {str(key): _jsonable(value) for key, value in mapping.items() if key not in without}


def _jsonable(value: Any) -> Any:
    """A value as json can write it: dates, which YAML makes of any text like one, are texts again."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def expanded(value: Any, expand: Expand) -> Any:
    """`value` with the templates in its texts expanded."""
    if isinstance(value, Mapping):
        return {key: expanded(item, expand) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item, expand) for item in value]
    return expand(value) if isinstance(value, str) and templates.has_template(value) else value


def has_template(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(has_template, value.values()))
    if isinstance(value, list):
        return any(map(has_template, value))
    return isinstance(value, str) and templates.has_template(value)


def _text(path: str, config: Mapping[str, Any]) -> str:
    return " ".join([path, *(f"{key}={value}" for key, value in config.items())])
