"""Runs: reading them, making them, and what an operator does to them."""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apsislib import shapes
from apsislib.api.control import parse_bool
from apsislib.api.jobs import find_job_id
from apsislib.api.message import Request, Response, blocks, ok
from apsislib.api.parts import Parts
from apsislib.errors import BadRequest, NotFound
from apsislib.runs import Args, Json, Run, canonical, instance, run_number
from apsislib.states import FINISHED, State
from apsislib.store import Reader
from apsislib.times import format_time, parse_duration, parse_time

# Rows of one answer. More would be megabytes that nobody reads; search has pages.
LIMIT = 10_000
ENDED = 10  # runs, of those that do not satisfy a dependency, that are named
REASON = 1000  # characters
SMALL = 200  # runs of an answer that is made at once, in some 5 ms
# Runs made by one request: each is a row, and an operator who means more can ask again.
MAX_COUNT = 10_000
KEYS = ("job_id", "job", "args", "times")  # of a request for new runs
TIMES = ("schedule", "stop")


# -- lists -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs are asked for. None: all of them."""

    run_ids: tuple[str, ...] | None = None
    job_id: str | None = None
    states: frozenset[State] | None = None
    args: Args = field(default_factory=dict)  # of these names and values; a run may have others
    since: float | None = None  # of the latest transition
    oldest: float | None = None  # the same, but for finished runs only: what goes on is never hidden

    def rows(self) -> list[dict[str, Any]]:
        """The same for the store's reader, but for the run IDs: searches that find a run once."""
        common = {"job_id": self.job_id, "args": self.args or None}
        if self.oldest is None:
            return [{**common, "states": self.states, "since": self.since}]
        states = frozenset(State) if self.states is None else self.states
        since = self.oldest if self.since is None else max(self.since, self.oldest)
        return [
            {**common, "states": states & FINISHED, "since": since},
            {**common, "states": states - FINISHED, "since": self.since},
        ]

    def admits(self, run: Run) -> bool:
        return (
            (self.run_ids is None or run.run_id in self.run_ids)
            and (self.job_id is None or run.job_id == self.job_id)
            and (self.states is None or run.state in self.states)
            and (self.since is None or run.timestamp >= self.since)
            and all(run.args.get(name) == value for name, value in self.args.items())
        )


def select(parts: Parts, chosen: Filter) -> Iterable[Run]:
    """The runs that a filter admits, expected ones first. Raises BadRequest if there are too many."""
    # Expected ones before the database: a run that leaves the one for the other meanwhile is then
    # seen twice, and counted once, instead of not at all.
    found = {run.run_id: run for run in parts.driver.expected(chosen.job_id) if chosen.admits(run)}
    ids = chosen.run_ids
    named = None if ids is None else [run_id for run_id in ids if run_number(run_id) is not None]
    searches = [rows | {"run_ids": named} for rows in chosen.rows()]
    with parts.store.read() as reader:
        if named is None:
            count = len(found) + sum(reader.count(**rows) for rows in searches)
            if count > LIMIT:
                raise BadRequest(
                    f"query would return {count} runs (limit {LIMIT}); add args or state filter to narrow"
                )
        if named is None or named:
            rows = [run for one in searches for run in reader.runs(**one, limit=LIMIT)]
            found |= {run.run_id: run for run in sorted(rows, key=lambda run: run.number)}
    if ids is not None:
        found = {run_id: run for run_id, run in found.items() if run_id in ids}
    return found.values()


def query(parts: Parts, request: Request) -> Response:
    run_ids = tuple(dict.fromkeys(request.all("run_id")))
    job_id, state, since = request.one("job_id"), request.one("state"), request.one("since")
    summary = parse_bool(request.one("summary") or "False", "summary")
    if not run_ids and job_id is None:
        raise BadRequest("either run_id or job_id filter is required")
    if len(run_ids) > LIMIT:
        raise BadRequest(f"{len(run_ids)} run IDs in one query (limit {LIMIT})")
    fixed = ("run_id", "job_id", "state", "since", "summary")
    chosen = Filter(
        run_ids=run_ids or None,
        job_id=None if job_id is None else find_job_id(parts, job_id),
        states=None if state is None else frozenset({parse_state(state)}),
        # A leading _ sets the name of an arg apart from those that mean something here.
        args={name.removeprefix("_"): value for name, value in request.query() if name not in fixed},
        since=instant(since, "since"),
        oldest=parts.oldest(),
    )
    return listed(parts, chosen, summary)


def of_job(parts: Parts, request: Request) -> Response:
    job_id = find_job_id(parts, request.params["job_id"])
    return listed(parts, Filter(job_id=job_id, oldest=parts.oldest()))


def listed(parts: Parts, chosen: Filter, summary: bool = False) -> Response:
    """The runs that a filter admits; where these are many, once no other such answer is being made."""
    with parts.turns.take(is_large(parts, chosen)):
        return blocks(shapes.runs_body(parts.clock.wall(), select(parts, chosen), summary))


def is_large(parts: Parts, chosen: Filter) -> bool:
    if chosen.run_ids is not None:
        return len(chosen.run_ids) > SMALL
    with parts.store.read() as reader:
        found = sum(reader.count(**rows, limit=SMALL + 1) for rows in chosen.rows())
    return found + len(parts.driver.expected(chosen.job_id)) > SMALL


def parse_state(text: str) -> State:
    try:
        return State(text)
    except ValueError:
        raise BadRequest(f"not a state: {text!r}") from None


def instant(text: str | None, name: str) -> float | None:
    if text is None:
        return None
    try:
        return parse_time(text, strict=True)
    except ValueError as error:
        raise BadRequest(f"{name}: {error}") from None


# -- one run ---------------------------------------------------------------------------------------


def find_run(parts: Parts, request: Request) -> Run:
    """The run that the path names. Raises NotFound."""
    run_id = request.params["run_id"]
    run = parts.driver.find_run(run_id)
    if run.run_id != run_id:  # r007
        raise NotFound(f"unknown run {run_id}")
    return run


def one(parts: Parts, request: Request) -> Response:
    run = find_run(parts, request)
    with parts.store.read() as reader:
        record = shapes.run_record(run, reader.reruns(run.run_id))
    return ok({"when": format_time(parts.clock.wall()), "runs": {run.run_id: record}})


def log(parts: Parts, request: Request) -> Response:
    run = find_run(parts, request)
    with parts.store.read() as reader:
        lines = reader.log(run.run_id)
    return ok({"run_log": [{"run_id": run.run_id, **shapes.log_entry(time, text)} for time, text in lines]})


def state(parts: Parts, request: Request) -> Response:
    return ok({"state": find_run(parts, request).state.value})


def dependencies(parts: Parts, request: Request) -> Response:
    run = find_run(parts, request)
    needs = [cond for cond in run.conds if cond.get("type") == "dependency"]
    expected = [parts.driver.expected(cond["job_id"]) for cond in needs]
    with parts.store.read() as reader:
        found = [
            {
                "job_id": cond["job_id"],
                "args": dict(cond["args"]),
                "run_ids": _instances(reader, cond["job_id"], cond["args"], ahead),
            }
            for cond, ahead in zip(needs, expected, strict=True)
        ]
    return ok({run.run_id: found})


def _instances(reader: Reader, job_id: str, args: Args, ahead: Iterable[Run]) -> list[str]:
    rows = reader.runs(job_id=job_id, exact_args=args, limit=LIMIT)
    found = [run.run_id for run in rows]
    made = [run.run_id for run in ahead if dict(run.args) == dict(args)]
    return sorted({*found, *made}, key=lambda run_id: int(run_id[1:]))


def waiting(parts: Parts, request: Request) -> Response:
    run = find_run(parts, request)
    return ok({"run_id": run.run_id, "state": run.state.value, "waiting": waits(parts, run)})


def waits(parts: Parts, run: Run) -> list[dict[str, Any]]:
    """Each condition of a waiting run: what it is, whether it holds, why not, since when."""
    rows = [dict(row) for row in parts.driver.waiting(run.run_id)]
    for row, cond in zip(rows, run.conds, strict=False):
        if isinstance(row.get("since"), float):
            row["since"] = format_time(row["since"])
        if "runs" in row and cond.get("type") == "dependency":
            row["runs"] = _ended(parts, cond) + row["runs"]
        if not row["holds"] and "reason" not in row:
            row |= _not_asked(parts, cond)
    return rows


def _not_asked(parts: Parts, cond: Json) -> dict[str, Any]:
    """How a condition stands that is only asked once those before it hold, as far as that can be seen."""
    if cond.get("type") != "dependency":
        return {"reason": "asked once those above hold"}
    with parts.store.read() as reader:
        ended = reader.ended((cond["job_id"], canonical(cond["args"])))
    if ended & frozenset(map(State, cond.get("states", (State.SUCCESS,)))):
        return {"holds": True}
    name = instance(cond["job_id"], cond["args"])
    found = ", ".join(sorted(ended))
    said = f"{name} is {found}" if found else f"no run of {name} has ended yet"
    return {"reason": said, "runs": _ended(parts, cond)}


def _ended(parts: Parts, cond: Json) -> list[dict[str, str]]:
    """The latest runs that ended otherwise than a dependency wants."""
    with parts.store.read() as reader:
        found = reader.runs(
            job_id=cond["job_id"], exact_args=cond["args"], states=FINISHED, limit=ENDED, newest=True
        )
    return [{"run_id": run.run_id, "state": run.state.value} for run in reversed(found)]


# -- operations ------------------------------------------------------------------------------------


def reason(given: object) -> str:
    """Why somebody does something to a run, as one line for its log; empty: nobody says."""
    if given is None:
        return ""
    if not isinstance(given, str):
        raise BadRequest(f"reason must be a text: {given!r}")
    text = " ".join(given.split())
    if len(text) > REASON:
        raise BadRequest(f"reason is longer than {REASON} characters")
    return text


def _why(request: Request) -> str:
    return reason(request.one("reason"))


def skip(parts: Parts, request: Request) -> Response:
    parts.driver.skip(find_run(parts, request).run_id, _why(request))
    return ok({})


def start(parts: Parts, request: Request) -> Response:
    parts.driver.start_run(find_run(parts, request).run_id, _why(request))
    return ok({})


def stop(parts: Parts, request: Request) -> Response:
    return _runs(parts, [parts.driver.stop_run(find_run(parts, request).run_id, _why(request))])


def rerun(parts: Parts, request: Request) -> Response:
    run = parts.driver.rerun(find_run(parts, request).run_id, _why(request))
    return _runs(parts, [run], show_run_id=run.run_id)


def signal(parts: Parts, request: Request) -> Response:
    run = find_run(parts, request)
    parts.driver.signal(run.run_id, parse_signal(request.params["signal"]), _why(request))
    return ok({})


def parse_signal(text: str) -> int:
    """The number of `15`, `TERM` or `SIGTERM`."""
    if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) in signals.valid_signals():
        return int(text)
    names = signals.Signals.__members__
    number = names.get(text) or names.get(f"SIG{text}")
    if number is None or not text.isalnum():
        raise BadRequest(f"invalid signal: {text}")
    return int(number)


def mark(parts: Parts, request: Request) -> Response:
    run = find_run(parts, request)
    parts.driver.mark(run.run_id, parse_state(request.params["state"]), _why(request))
    return ok({})


def _runs(parts: Parts, runs: Iterable[Run], **more: Any) -> Response:
    return blocks(shapes.runs_body(parts.clock.wall(), runs, **more))


# -- new runs --------------------------------------------------------------------------------------


def create(parts: Parts, request: Request) -> Response:
    count = _count(request.one("count"))
    body = request.json()
    _known(body, KEYS, "unexpected keys")
    args = _args(body.get("args"))
    schedule, stop = _times(parts, body.get("times"))
    if body.get("job") is not None:
        job = body["job"]
        if not isinstance(job, Mapping):
            raise BadRequest("job must be an object, as in a job file")
        made = parts.driver.create_ad_hoc(job, args, schedule, stop, count)
    elif body.get("job_id") is not None:
        if not isinstance(body["job_id"], str):
            raise BadRequest("job_id must be a string")
        made = parts.driver.create(find_job_id(parts, body["job_id"]), args, schedule, stop, count)
    else:
        raise BadRequest("missing job_id or job")
    return _runs(parts, made)


def _known(given: Mapping[str, Any], known: Iterable[str], said: str) -> None:
    """A run for next year, its `schedule` misspelt, must not begin now."""
    surplus = [name for name in given if name not in known]
    if surplus:
        raise BadRequest(f"{said}: {' '.join(surplus)[:200]} (known: {', '.join(known)})")


def _count(text: str | None) -> int:
    if text is None:
        return 1
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) > MAX_COUNT:
        raise BadRequest(f"count must be a whole number from 0 to {MAX_COUNT}: {text}")
    return int(text)


def _args(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest("args must be an object of names and values")
    for name, arg in value.items():
        if arg is None or isinstance(arg, list | dict):
            raise BadRequest(f"args: {name} must be a string")
        if "\0" in name or (isinstance(arg, str) and "\0" in arg):
            raise BadRequest(f"args: {name} holds a NUL character, which no program can be given")
    return {name: str(arg) for name, arg in value.items()}


def _times(parts: Parts, value: Any) -> tuple[float | None, float | None]:
    """(schedule time, None: now; stop time, None: never). Raises BadRequest."""
    times = value or {}
    if not isinstance(times, dict):
        raise BadRequest("times must be an object with schedule and stop")
    _known(times, TIMES, "times: unexpected keys")
    for name in TIMES:
        if not isinstance(times.get(name), str | int | float | None):
            raise BadRequest(f"times.{name} must be a string")
    when = times.get("schedule")
    schedule = None if when in (None, "now") else instant(str(when), "times.schedule")
    stop = times.get("stop")
    if stop is None:
        return schedule, None
    try:
        after = parse_duration(stop.removeprefix("+") if isinstance(stop, str) else stop)
    except ValueError:
        return schedule, instant(str(stop), "times.stop")
    if after < 0:
        raise BadRequest(f"times.stop must not be negative: {stop}")
    return schedule, (parts.clock.wall() if schedule is None else schedule) + after
