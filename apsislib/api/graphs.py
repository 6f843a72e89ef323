"""What hangs on what, as small graphs: runs around a run, jobs around a job.

    GET /api/v1/runs/r12/graph
    GET /api/v1/graph?job_id=etl/load

Nodes are instances (a job with args) and what is known of their runs, or jobs. An edge [a, b] says that b
waits for a; a kind beside it, that a run of a makes one of b. Both are bounded: who hangs on a thousand
others sees the nearest, and `more` says that there are others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from apsislib.api.message import Request, Response, ok
from apsislib.api.parts import Parts
from apsislib.api.runs import find_run
from apsislib.errors import BadRequest
from apsislib.jobs import JobSet
from apsislib.runs import Args, Job, Json, Run, canonical
from apsislib.shapes import run_summary
from apsislib.store import Reader
from apsislib.templates import has_template

NODES = 40  # of one graph: more is a hairball
DEPTH = 3  # edges away from the middle
RUNS = 3  # newest runs of an instance
NEAR = 200  # runs of a job among which those that wait for an instance are looked for
WAITERS = 20  # jobs that wait for one job, of which the runs are looked at


@dataclass(slots=True)
class _Graph:
    nodes: dict[Any, dict[str, Any]] = field(default_factory=dict)
    edges: dict[tuple[str, str, str], None] = field(default_factory=dict)  # (from, to, kind), in order
    more: bool = False

    def link(self, source: str, target: str, kind: str) -> None:
        self.edges.setdefault((source, target, kind))

    def json(self, middle: str) -> dict[str, Any]:
        keys = {node["key"] for node in self.nodes.values()}
        edges = [list(edge) for edge in self.edges if edge[0] in keys and edge[1] in keys]
        return {"middle": middle, "nodes": list(self.nodes.values()), "edges": edges, "more": self.more}


# -- jobs ------------------------------------------------------------------------------------------


def of_job(parts: Parts, request: Request) -> Response:
    job_id = request.one("job_id")
    if job_id is None:
        raise BadRequest("job_id is missing")
    jobs = parts.driver.jobs
    away, to = _edges(jobs)
    graph = _Graph()

    def near(name: str, down: bool) -> Iterable[Edge]:
        return (away if down else to).get(name, ())

    def add(name: str) -> str:
        job = jobs.get(name)
        graph.nodes[name] = {"key": name, "job_id": name, "exists": job is not None}
        return name

    _spread(graph, job_id, add, near)
    return ok(graph.json(job_id))


def _needs(job: Job) -> Iterator[tuple[str, str]]:
    """(job ID, kind) of what a job waits for. IDs that are templates depend on the run: they stay away."""
    for condition in job.conditions:
        json = condition.to_json()
        if json.get("type") == "dependency" and condition.enabled.value is not False:
            name = str(json.get("job_id") or "")
            if name and not has_template(name):
                yield name, "dependency"


def _makes(job: Job) -> Iterator[str]:
    for action in job.actions:
        json = action.to_json()
        if json.get("job_id") and not has_template(str(json["job_id"])):
            yield str(json["job_id"])


Edge = tuple[str, str, str]  # from, to, kind


@lru_cache(maxsize=1)  # a set of jobs never changes; the next one comes with a reload
def _edges(jobs: JobSet) -> tuple[Mapping[str, list[Edge]], Mapping[str, list[Edge]]]:
    """(edges by the job that they lead away from, by the job that they lead to)."""
    away: dict[str, list[Edge]] = {}
    to: dict[str, list[Edge]] = {}
    for job in jobs.jobs.values():
        edges = [(name, job.job_id, kind) for name, kind in _needs(job)]
        edges += [(job.job_id, name, "action") for name in _makes(job)]
        for edge in edges:
            away.setdefault(edge[0], []).append(edge)
            to.setdefault(edge[1], []).append(edge)
    return away, to


def _spread(graph: _Graph, middle: Any, add: Any, near: Any) -> None:
    """Nodes by their distance from the middle, first those that it hangs on, then those that hang on it."""
    key_of = {middle: add(middle)}
    for down in (False, True):
        most = NODES // 2 if not down else NODES
        todo = deque([(middle, 0)])
        seen = {middle}
        while todo:
            here, distance = todo.popleft()
            for source, target, kind in near(here, down):
                other = target if down else source
                if other not in key_of:
                    if len(graph.nodes) >= most or distance >= DEPTH:
                        graph.more = True
                        continue
                    key_of[other] = add(other)
                graph.link(key_of[source], key_of[target], kind)
                if other not in seen:
                    seen.add(other)
                    todo.append((other, distance + 1))


# -- runs ------------------------------------------------------------------------------------------

Instance = tuple[str, str]  # job ID, canonical args


def of_run(parts: Parts, request: Request) -> Response:
    run = find_run(parts, request)
    jobs = parts.driver.jobs
    away, _ = _edges(jobs)
    graph = _Graph()
    args_of: dict[Instance, Args] = {run.key: run.args}
    runs_of: dict[Instance, list[Run]] = {}

    with parts.store.read() as reader:

        def runs(key: Instance) -> list[Run]:
            if key not in runs_of:
                runs_of[key] = _newest(parts, reader, key[0], args_of[key])
            return runs_of[key]

        def near(key: Instance, down: bool) -> Iterator[tuple[Instance, Instance, str]]:
            if not down:
                mine = [run] if key == run.key else runs(key)[:1]
                for one in mine:
                    for job_id, args in _instances(one.conds):
                        other = job_id, canonical(args)
                        args_of.setdefault(other, args)
                        yield other, key, "dependency"
                return
            for _, job_id, kind in islice(away.get(key[0], ()), WAITERS):
                if kind != "dependency":
                    continue
                for waiter in _waiting_for(parts, reader, jobs, job_id, key, args_of[key]):
                    args_of.setdefault(waiter.key, waiter.args)
                    yield key, waiter.key, kind

        def add(key: Instance) -> str:
            found = runs(key)
            if key == run.key and all(one.run_id != run.run_id for one in found):
                found = [run, *found][:RUNS]
            name = f"{key[0]}\n{key[1]}"
            graph.nodes[key] = {
                "key": name,
                "job_id": key[0],
                "args": dict(args_of[key]),
                "runs": [run_summary(one) for one in found],
            }
            return name

        _spread(graph, run.key, add, near)
        made = _made(reader, run)
    return ok({**graph.json(f"{run.key[0]}\n{run.key[1]}"), "made_by": _maker(run), "made": made})


def _instances(conds: Iterable[Json]) -> Iterator[tuple[str, Args]]:
    for cond in conds:
        if cond.get("type") == "dependency":
            yield str(cond["job_id"]), cond["args"]


def _newest(parts: Parts, reader: Reader, job_id: str, args: Args) -> list[Run]:
    """The newest runs of an instance: those that go on or have ended first, then the next expected one."""
    ahead = [run for run in parts.driver.expected(job_id) if dict(run.args) == dict(args)]
    found = reader.runs(job_id=job_id, exact_args=args, limit=RUNS, newest=True)
    return found or sorted(ahead, key=lambda run: run.times.get("schedule", 0.0))[:1]


def _waiting_for(
    parts: Parts, reader: Reader, jobs: JobSet, job_id: str, key: Instance, args: Args
) -> Iterator[Run]:
    """The runs of a job that wait for an instance, or did: one of each instance."""
    job = jobs.get(job_id)
    exact: list[Run] = []
    if job is not None and set(job.params) <= set(args):
        # As most chains go: what waits has the same date, say. An index finds it however old it is.
        mine = {name: args[name] for name in job.params}
        exact = reader.runs(job_id=job_id, exact_args=mine, limit=RUNS, newest=True)
    recent = reader.runs(job_id=job_id, limit=NEAR, newest=True)
    seen: set[Instance] = set()
    for run in chain(exact, parts.driver.expected(job_id), recent):
        wanted = ((other, canonical(given)) for other, given in _instances(run.conds))
        if run.key not in seen and key in wanted:
            seen.add(run.key)
            yield run


def _maker(run: Run) -> str | None:
    """The run whose action made this one."""
    return None if run.cause is None else run.cause.partition("/")[0]


def _made(reader: Reader, run: Run) -> list[Mapping[str, Any]]:
    """The runs that actions of this one made."""
    return [run_summary(made) for made in reader.made_by(run.run_id)]
