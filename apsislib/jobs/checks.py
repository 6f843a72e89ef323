"""What only shows between jobs, or when their templates are expanded: check_jobs, start and reload.

Nothing here raises: whatever a check runs into is that job's error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

from apsislib import binding, templates
from apsislib.conditions import Binding, BoundDependency, Condition, Dependency
from apsislib.errors import ApsisError, BadRequest, FieldError, JobError
from apsislib.jobs.parsing import described
from apsislib.jobs.sets import JobSet, Keys
from apsislib.runs import Args, Job, Occurrence, Schedule, canonical, instance
from apsislib.stops import Stopped
from apsislib.times import DAY, format_duration, format_instant

GetCalendar = Callable[[str], Any]
Key = tuple[str, str]  # (job ID, canonical args)

MADE_UP = "2024-01-02"  # the likeliest arg of all is a date, and whatever is no date fails early
NAMING = ("dependency", "max_running", "schedule")  # kinds of conditions and actions whose job_id is a job
MAX_INSTANCES = 100_000  # occurrences of one schedule that are looked at: one a second for a day


def check(
    jobs: JobSet, now: float, get_calendar: GetCalendar, unread: Collection[str | None] = ()
) -> list[JobError]:
    """What would go wrong with these jobs from `now` on, by job: an empty list if nothing is seen.

    Each schedule's first occurrence is bound, as a run would be. Jobs that are named outright are
    looked for, and args compared with their params. Templates that no schedule reaches are tried with
    made-up args: only names that nothing defines, and bad syntax, are held against them.

    `unread`: IDs of jobs whose files are wrong. That is said of them, so that nobody who names them is.
    """
    found = (error for job in jobs.jobs.values() for error in _Checked(jobs, job, get_calendar).errors(now))
    missed = {f"unknown job ID in {kind}: {job_id}" for job_id in unread for kind in ("action", "condition")}
    return [error for error in found if error.message not in missed]


class _Checked:
    """The checks of one job."""

    def __init__(self, jobs: JobSet, job: Job, get_calendar: GetCalendar) -> None:
        self.jobs = jobs
        self.job = job
        self.get_calendar = get_calendar
        self.found: dict[str, JobError] = {}  # message -> error: what several schedules run into is said once

    def errors(self, now: float) -> list[JobError]:
        self.references("action", [a.to_json() for a in self.job.actions])
        self.references("condition", [c.to_json() for c in self.job.conditions])
        bound = [self.bind(i, schedule, now) for i, schedule in enumerate(self.job.schedules)]
        tried: list[tuple[Any, Keys]] = [
            (action.to_json(), ("action", i)) for i, action in enumerate(self.job.actions)
        ]
        if not any(bound):
            tried.append((self.job.program.to_json(), ("program",)))
            tried += [(c.to_json(), ("condition", i)) for i, c in enumerate(self.job.conditions)]
        for json, keys in tried:
            for path, text in _texts(json, keys):
                self.try_template(text, path)
        return list(self.found.values())

    def error(self, message: str, *keys: str | int) -> None:
        if message not in self.found:
            path, line = self.jobs.place(self.job.job_id, *keys)
            self.found[message] = JobError(path, line, message, self.job.job_id)

    def find_job(self, job_id: str) -> Job:
        job = self.jobs.get(job_id)
        if job is None:
            raise BadRequest(f"unknown job ID in condition: {job_id}")
        return job

    def bind(self, index: int, schedule: Schedule, now: float) -> bool:
        """Bind the first run of a schedule; whether there is one."""
        keys = ("schedule", index)
        try:
            first = next(iter(schedule.after(now)), None)
        except Exception as error:
            self.error(_said(error), *keys)
            return False
        if first is None:
            return False
        try:
            args = scheduled_args(self.job, first)
            binding.check_args(self.job, args)
        except Exception as error:
            of = (*keys, "start") if isinstance(schedule, Stopped) else keys
            self.error(_said(error), *of, "args")
            return True
        try:
            binding.bind(self.job, args, None, self.find_job, self.get_calendar)
        except Exception as error:
            place = self.culprit(args)
            self.error(self.named(error, place) if place else _said(error), *(place or keys))
        return True

    def culprit(self, args: Args) -> Keys | None:
        """The part of the job that cannot be bound with these args, as closely as can be told."""
        names = templates.names(args, None, self.job.job_id, self.get_calendar)

        def expand(text: str) -> str:
            return templates.expand(text, names)

        to = Binding(self.job, args, "r0", expand, self.find_job)
        parts: list[tuple[Keys, Any, Callable[[], Any]]] = [
            (("program",), self.job.program, lambda: self.job.program.bind(expand))
        ]
        for i, condition in enumerate(self.job.conditions):
            parts.append((("condition", i), condition, partial(_bound, condition, expand, to)))
        for keys, part, bind in parts:
            try:
                bind()
            except Exception as error:
                for path, text in _texts(part.to_json(), keys):
                    try:
                        expand(text)
                    except Exception as cause:
                        if str(cause) == str(error):
                            return path
                return keys + (error.keys if isinstance(error, FieldError) else ())
        return None

    def named(self, error: Exception, keys: Keys) -> str:
        """What to say of a part of the job: which one, what is wrong, and what could stand there."""
        said = _said(error)
        if isinstance(error, ApsisError) and said.endswith("is not defined"):
            params = ", ".join(self.job.params)
            said += f" (the job's params: {params})" if params else " (the job has no params)"
        return said if said.startswith("unknown job ID") else described(FieldError(said, keys))

    def references(self, kind: str, parts: list[dict[str, Any]]) -> None:
        """Jobs that actions or conditions name without a template: they exist, and take these args."""
        for i, json in enumerate(parts):
            job_id = json.get("job_id") if json.get("type") in NAMING else None
            if not isinstance(job_id, str) or templates.has_template(job_id) or json.get("enabled") is False:
                continue
            target = self.jobs.get(job_id)
            if target is None:
                self.error(f"unknown job ID in {kind}: {job_id}", kind, i, "job_id")
            elif (args := json.get("args")) is not None:  # max_running has none, and counts this job's
                for param in sorted(set(target.params) - set(self.job.params) - set(args)):
                    self.error(f"missing arg in {kind}: param {param} of job {job_id}", kind, i)
                for param in sorted(set(args) - set(target.params)):
                    text = f"extraneous arg in {kind}: param {param} of job {job_id}"
                    self.error(text, kind, i, "args", param)

    def try_template(self, text: str, keys: Keys) -> None:
        args = dict.fromkeys(self.job.params, MADE_UP)
        try:
            templates.check_syntax(text)
        except ApsisError as error:
            self.error(self.named(error, keys), *keys)
            return
        try:
            templates.expand(text, templates.names(args, None, self.job.job_id, self.get_calendar))
        except Exception as error:
            said = _said(error)
            unknown = re.match(r"name '(\w+)' is not defined|no such calendar", said)
            if unknown and unknown[1] not in args and MADE_UP not in said:
                self.error(self.named(error, keys), *keys)


def _bound(condition: Condition, expand: Callable[[str], str], to: Binding) -> Any:
    return condition.bind(to) if condition.enabled(expand) else None


def scheduled_args(job: Job, occurrence: Occurrence) -> dict[str, str]:
    """The args of the run of an occurrence: what the schedule provides, cut to the job's params."""
    provided = {"schedule_time": format_instant(occurrence.time), **occurrence.args}
    return {param: str(provided[param]) for param in job.params if param in provided}


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ApsisError | ValueError) else f"{type(error).__name__}: {error}"


def _texts(json: Any, keys: Keys) -> Iterator[tuple[Keys, str]]:
    """(path, text) of the texts with templates in the part of a job at `keys`.

    `str` only repeats them for people.
    """
    if isinstance(json, str):
        if templates.has_template(json):
            yield keys, json
    elif isinstance(json, Mapping):
        for key, value in json.items():
            if key != "str":
                yield from _texts(value, (*keys, key))
    elif isinstance(json, list | tuple):
        for i, value in enumerate(json):
            yield from _texts(value, (*keys, i))


class _Dependencies:
    """What runs depend on, as bound for their args."""

    def __init__(self, jobs: JobSet, get_calendar: GetCalendar) -> None:
        self.jobs = jobs
        self.get_calendar = get_calendar

    def dependencies(self, job: Job, args: Args) -> list[tuple[BoundDependency, int]]:
        """What a run waits for, each with its index among the job's conditions."""
        if not any(isinstance(c, Dependency) for c in job.conditions):
            return []
        names = templates.names(args, None, job.job_id, self.get_calendar)

        def expand(text: str) -> str:
            return templates.expand(text, names)

        found = []
        for i, condition in enumerate(job.conditions):
            if isinstance(condition, Dependency):
                try:
                    if condition.enabled(expand):
                        to = Binding(job, args, "r0", expand, self.find_job)
                        found.append((condition.bind(to), i))
                except Exception:  # check() has said so
                    continue
        return found

    def find_job(self, job_id: str) -> Job:
        job = self.jobs.get(job_id)
        if job is None:
            raise BadRequest(f"unknown job ID in condition: {job_id}")
        return job


# -- dependencies on runs that have left the database ---------------------------------------------------


def check_retention(jobs: JobSet, now: float, get_calendar: GetCalendar, age: float | None) -> list[JobError]:
    """Dependencies on runs so old that they will have been archived or deleted, `age` seconds after
    their end; None: they never are. Seen is only what an arg with a date says, of the next run."""
    if age is None:
        return []
    found: list[JobError] = []
    plan = _Dependencies(jobs, get_calendar)
    for job in jobs.jobs.values():
        told: set[int] = set()
        for occurrence in _firsts(job, now):
            for dependency, i in plan.dependencies(job, scheduled_args(job, occurrence)):
                days = [day for day in map(_day, dependency.args.values()) if day is not None]
                old = (occurrence.time - max(days)) if days else 0.0
                if old > age + DAY and i not in told:
                    told.add(i)
                    path, line = jobs.place(job.job_id, "condition", i)
                    name = instance(dependency.job_id, dependency.args)
                    text = (
                        f"the run {name} that it depends on, of {old / DAY:.0f} days before, will have left"
                    )
                    text += f" the database: runs.retention is {format_duration(age)}"
                    found.append(JobError(path, line, text, job.job_id))
    return found


def _firsts(job: Job, now: float) -> Iterator[Occurrence]:
    for schedule in job.schedules:
        if schedule.enabled:
            try:
                yield from islice(schedule.after(now), 1)
            except Exception:  # check() has said so
                continue


def _day(text: str) -> float | None:
    """The instant of a date that an arg is, or begins with."""
    try:
        return datetime.fromisoformat(text[:10]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


# -- dependencies between schedules --------------------------------------------------------------------


def check_scheduled(
    jobs: JobSet, now: float, get_calendar: GetCalendar, max_wait: float | None = None
) -> list[JobError]:
    """Dependencies that no schedule fulfils, for the runs of the next 24 hours; and cycles of them.

    A guess: runs made by actions or by hand may fulfil them, too. What is scheduled within 24 hours
    before or after `now` counts. With `max_wait` (seconds), also the runs that will wait longer, if
    every run starts as soon as what it depends on has started.
    """
    plan = _Plan(jobs, now, get_calendar)
    return [*plan.missing(), *plan.cycles(), *(plan.late(max_wait) if max_wait is not None else ())]


class _Plan(_Dependencies):
    """Two days of schedules: which instances there are, when, and what each depends on."""

    def __init__(self, jobs: JobSet, now: float, get_calendar: GetCalendar) -> None:
        super().__init__(jobs, get_calendar)
        self.args: dict[Key, dict[str, str]] = {}
        self.times: dict[Key, float] = {}  # the latest, where an instance comes twice
        upcoming: list[Key] = []
        for job in jobs.jobs.values():
            for time, args in self.scheduled(job, now - DAY, now + DAY):
                key = job.job_id, canonical(args)
                self.args[key] = args
                self.times[key] = max(time, self.times.get(key, time))
                if time >= now:
                    upcoming.append(key)
        self.failed: list[JobError] = []
        # In order of jobs and times, each once.
        self.depends: dict[Key, list[tuple[BoundDependency, int]]] = {
            key: self.dependencies(jobs.jobs[key[0]], self.args[key]) for key in dict.fromkeys(upcoming)
        }

    def scheduled(self, job: Job, start: float, stop: float) -> Iterator[tuple[float, dict[str, str]]]:
        for schedule in job.schedules:
            if schedule.enabled:
                try:
                    for occurrence in islice(schedule.after(start), MAX_INSTANCES):
                        if occurrence.time >= stop:
                            break
                        yield occurrence.time, scheduled_args(job, occurrence)
                except Exception:  # check() has said so
                    continue

    def error(self, key: Key, message: str, *keys: str | int) -> JobError:
        path, line = self.jobs.place(key[0], *keys)
        return JobError(path, line, message, key[0])

    def name(self, key: Key) -> str:
        return instance(key[0], self.args.get(key, {}))

    def missing(self) -> Iterator[JobError]:
        for key, depends in self.depends.items():
            for dependency, i in depends:
                if _key(dependency) not in self.args:
                    name = instance(dependency.job_id, dependency.args)
                    message = f"scheduled run {self.name(key)}: dependency {name} not scheduled"
                    yield self.error(key, message, "condition", i)

    def cycles(self) -> Iterator[JobError]:
        """One error for each job on a cycle, with the shortest way from it back to itself."""
        reported: set[str] = set()
        for key in self.entangled():
            if key[0] not in reported and (cycle := self.cycle(key)):
                reported.add(key[0])
                path = " → ".join(map(self.name, cycle))
                yield self.error(key, f"dependency cycle detected: {path}", "condition")

    def entangled(self) -> list[Key]:
        """Every instance on a cycle, and those that lead to one, in order."""
        dependents: dict[Key, list[Key]] = {}
        left: dict[Key, int] = {}  # how many of its dependencies are not known to be free of cycles
        for key in self.depends:
            following = [k for k in self.next(key) if k in self.depends]
            left[key] = len(following)
            for k in following:
                dependents.setdefault(k, []).append(key)
        free = [key for key, count in left.items() if count == 0]
        while free:
            for key in dependents.get(free.pop(), ()):
                left[key] -= 1
                if left[key] == 0:
                    free.append(key)
        return [key for key, count in left.items() if count]

    def cycle(self, start: Key) -> list[Key]:
        """The shortest way along dependencies from `start` to itself; empty if there is none."""
        came: dict[Key, Key] = {}
        layer = [start]
        while layer and start not in came:
            found = []
            for key in layer:
                for after in self.next(key):
                    if after not in came:
                        came[after] = key
                        found.append(after)
            layer = found
        if start not in came:
            return []
        path = [start, came[start]]
        while path[-1] != start:
            path.append(came[path[-1]])
        return path[::-1]

    def next(self, key: Key) -> Iterator[Key]:
        return (_key(dependency) for dependency, _ in self.depends.get(key, ()))

    def late(self, max_wait: float) -> Iterator[JobError]:
        """For each job, its first run that is expected to start too late, with what it waits for."""
        starts = self.starts()
        reported: set[str] = set()
        for key in self.depends:
            wait = starts[key] - self.times[key]
            if wait > max_wait and key[0] not in reported:
                reported.add(key[0])
                message = (
                    f"scheduled run {self.name(key)}: not expected to start until "
                    f"{format_instant(starts[key])}, {format_duration(wait)} after scheduled time "
                    f"{format_instant(self.times[key])}"
                )
                yield self.error(key, "\n".join([message, *self.because(key, starts)]), "condition")

    def starts(self) -> dict[Key, float]:
        """When each instance starts: at its time, and not before what it depends on."""
        starts = dict(self.times)
        # As often as the longest chain is long; on a cycle nothing grows beyond its latest time.
        while True:
            later = {
                key: time
                for key in self.depends
                if (time := max([starts[key], *(starts[k] for k in self.next(key) if k in starts)]))
                > starts[key]
            }
            if not later:
                return starts
            starts.update(later)

    def because(self, key: Key, starts: Mapping[Key, float]) -> Iterator[str]:
        """The chain of dependencies that a late run waits for, each line deeper than the one before."""
        indent = "  "
        seen = {key}
        while True:
            after = max((k for k in self.next(key) if k in starts), key=lambda k: starts[k], default=None)
            if after is None or after in seen:
                return
            yield f"{indent}dependency: {self.name(after)} scheduled at {format_instant(self.times[after])}"
            seen.add(after)
            key, indent = after, indent + "  "


def _key(dependency: BoundDependency) -> Key:
    return dependency.job_id, canonical(dependency.args)
