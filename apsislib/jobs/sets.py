"""The jobs of a directory, as one value: looked up, abbreviated, compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from apsislib.errors import BadRequest, NotFound
from apsislib.runs import Job

# Where the parts of one job stand in its file: ("condition", 1) -> line.
Keys = tuple[str | int, ...]  # the way to a part of a job: ("condition", 1, "job_id")
Lines = Mapping[Keys, int]


class NoMatch(NotFound):
    """No job is meant. 400, as clients expect; where a path names the job, the API makes it 404."""

    status = 400


@dataclass(frozen=True, slots=True)
class Diff:
    """From one set of jobs to another: sorted job IDs. Each is in one of the lists."""

    removed: list[str]
    added: list[str]
    changed: list[str]  # runs made of the old definition are out of date
    metadata: list[str]  # only its metadata or what is caught up with changed: they are not


class JobSet:
    """The jobs of a directory, by ID, in order of ID. Never changed: a reload makes a new one."""

    def __init__(
        self,
        jobs: Iterable[Job] = (),
        lines: Mapping[str, Lines] | None = None,
        warnings: Iterable[str] = (),
    ) -> None:
        self._jobs = {job.job_id: job for job in sorted(jobs, key=lambda job: job.job_id)}
        self._lines = dict(lines or {})
        self.warnings = tuple(warnings)  # for the log

    def with_jobs(self, jobs: Iterable[Job]) -> JobSet:
        """These jobs too, which came without a file; a file's job of the same ID stays."""
        more = {job.job_id: job for job in jobs}
        return JobSet({**more, **self._jobs}.values(), self._lines, self.warnings)

    def with_warnings(self, warnings: Iterable[str]) -> JobSet:
        """The same, and more to be said in the log."""
        return JobSet(self._jobs.values(), self._lines, (*self.warnings, *warnings))

    @property
    def jobs(self) -> Mapping[str, Job]:
        return MappingProxyType(self._jobs)

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def place(self, job_id: str, *keys: str | int) -> tuple[str, int | None]:
        """(file, line) of a part of a job: of ("condition", 1), say."""
        lines = self._lines.get(job_id, {})
        while keys and keys not in lines:
            keys = keys[:-1]
        return self._jobs[job_id].source or job_id, lines.get(keys)

    def match(self, job_id: str) -> Job:
        """The job of this ID, or the only one that the words in `job_id` abbreviate, in any order.

        `night load` means load/nightly, if nothing else. Raises NoMatch, or BadRequest if several match.
        """
        if job_id in self._jobs:
            return self._jobs[job_id]
        wanted = _words(job_id)
        found = [
            name
            for name, words in self._abbreviable
            if all(any(word.startswith(w) for word in words) for w in wanted)
        ]
        if not found:
            raise NoMatch(f"no job id match: {job_id}")
        if len(found) > 1:
            raise BadRequest(f"ambiguous job id: {', '.join(found[:8])}{' …' if len(found) > 8 else ''}")
        return self._jobs[found[0]]

    @cached_property
    def _abbreviable(self) -> list[tuple[str, frozenset[str]]]:
        return [(job_id, _words(job_id)) for job_id, job in self._jobs.items() if not job.ad_hoc]

    def diff(self, other: JobSet) -> Diff:
        """What is different in `other`. Compared is what the files mean, not how they are written."""
        both = [
            (job_id, job, other._jobs[job_id]) for job_id, job in self._jobs.items() if job_id in other._jobs
        ]
        changed = {job_id for job_id, old, new in both if _meaning(old) != _meaning(new)}
        return Diff(
            removed=sorted(self._jobs.keys() - other._jobs.keys()),
            added=sorted(other._jobs.keys() - self._jobs.keys()),
            changed=sorted(changed),
            metadata=[job_id for job_id, old, new in both if job_id not in changed and old.json != new.json],
        )


def _words(job_id: str) -> frozenset[str]:
    return frozenset(re.findall("[A-Za-z0-9]+", job_id))


def _meaning(job: Job) -> dict[str, Any]:
    return {key: value for key, value in job.json.items() if key not in ("metadata", "catch_up")}
