"""What a reload of the jobs would do, or has done, to the runs that schedules make ahead of time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from apsislib.jobs import Diff
from apsislib.runs import Args, Job, Occurrence, Run, canonical
from apsislib.scheduler.cursors import Cursors
from apsislib.times import format_time

SHOWN = 1000  # runs of each list; the counts tell of all
SLICE = 1000  # occurrences taken at a time

Key = tuple[str, str, float]  # job ID, canonical args, instant
Full = tuple[Key, float | None]  # with the instant at which it is to be stopped


def future_runs(
    diff: Diff,
    before: Mapping[str, Job],
    after: Mapping[str, Job],
    expected: Iterable[Run],
    position: tuple[float, Collection[str]],
    now: float,
    horizon: float,
    most: int,
) -> dict[str, Any]:
    """Which expected runs appear, disappear or change: at the same time, but what they do.

    `expected`: the runs of now; `position`: where schedules stand, and the identities of occurrences
    that were claimed at or after it. `most`: expected runs of a schedule.
    """
    touched = {*diff.removed, *diff.changed}
    altered = {j for j in diff.changed if _deed(before[j]) != _deed(after[j])}
    old: Counter[Full] = Counter()
    args: dict[Key, Args] = {}
    for run in expected:
        if run.job_id in touched:
            key = (*run.key, run.times["schedule"])
            old[key, run.times.get("stop")] += 1
            args[key] = run.args
    new: Counter[Full] = Counter()
    for job_id in (*diff.added, *diff.changed):
        for occurrence, given in _occurrences(after[job_id], position, now, horizon, most):
            key = (job_id, canonical(given), occurrence.time)
            new[key, occurrence.stop] += 1
            args[key] = given
    gone, come = _keys(old - new), _keys(new - old)
    change = (gone & come) + _keys(
        Counter({full: n for full, n in (old & new).items() if full[0][0] in altered})
    )
    lists = {"appear": come - gone, "disappear": gone - come, "change": change}
    return {name: _shown(found, args) for name, found in lists.items()}


def _deed(job: Job) -> dict[str, Any]:
    """What its runs do, whenever they do it."""
    return {key: value for key, value in job.json.items() if key not in ("schedule", "metadata", "catch_up")}


def _keys(found: Counter[Full]) -> Counter[Key]:
    keys: Counter[Key] = Counter()
    for (key, _), count in found.items():
        keys[key] += count
    return keys


def _occurrences(
    job: Job, position: tuple[float, Collection[str]], now: float, horizon: float, most: int
) -> Iterator[tuple[Occurrence, Args]]:
    start, claimed = position
    cursors = Cursors(horizon, most)
    cursors.add(job, start)
    while (due := cursors.due()) is not None and due <= now:
        for occurrence, args, identity in cursors.take(now, SLICE)[1]:
            if identity not in claimed:
                yield occurrence, args


def _shown(found: Counter[Key], args: Mapping[Key, Args]) -> dict[str, Any]:
    first = sorted(found.elements(), key=lambda key: (key[2], key[0], key[1]))[:SHOWN]
    runs = [{"job_id": key[0], "args": dict(args[key]), "schedule": format_time(key[2])} for key in first]
    return {"count": found.total(), "runs": runs}
