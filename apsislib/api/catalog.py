"""What is kept of jobs between two requests: entries of the list of all jobs, and when the rare ones run."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

from apsislib.jobs import JobSet
from apsislib.runs import Job
from apsislib.schedules import words
from apsislib.shapes import encode, join, labels

SHORT = 240  # characters of a description or program that are listed


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that many ask for, ready to be sent."""

    tag: str
    body: bytes
    packed: bytes  # in gzip


def listed(entries: Iterable[bytes]) -> list[bytes]:
    return join(entries, b'{"jobs":[', b"]}")


class Catalog:
    """Entries of the jobs in force, made once for each reload."""

    def __init__(self) -> None:
        self._lock = Lock()  # protects what follows; held while entries are made, so that one thread does it
        self._jobs: JobSet | None = None
        self._entries: list[tuple[str, bytes]] = []  # (text that is searched, JSON)
        self._whole = Whole("", b"", b"")

    def entries(self, jobs: JobSet) -> list[tuple[str, bytes]]:
        with self._lock:
            self._make_locked(jobs)
            return self._entries

    def whole(self, jobs: JobSet) -> Whole:
        """The list of all jobs."""
        with self._lock:
            self._make_locked(jobs)
            return self._whole

    def _make_locked(self, jobs: JobSet) -> None:
        if jobs is self._jobs:
            return
        self._entries = [(_text(job), encode(_entry(job))) for job in jobs.jobs.values() if not job.ad_hoc]
        body = b"".join(listed(entry for _, entry in self._entries))
        self._whole = Whole(hashlib.sha256(body).hexdigest()[:20], body, gzip.compress(body, 6, mtime=0))
        self._jobs = jobs


def _entry(job: Job) -> dict[str, Any]:
    program = str(job.program)
    return {
        "job_id": job.job_id,
        "params": sorted(job.params),
        "labels": labels(job.metadata),
        "description": _first_paragraph(str(job.metadata.get("description") or "")),
        "schedule": [{"words": words(s), "enabled": s.enabled} for s in job.schedules],
        "program": {
            "type": str(job.program.to_json().get("type", "")),
            "str": program if len(program) <= SHORT else program[: SHORT - 1] + "…",
        },
    }


def _first_paragraph(text: str) -> str:
    first = " ".join(re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].split())
    return first if len(first) <= SHORT else first[: SHORT - 1] + "…"


def _text(job: Job) -> str:
    found = [job.job_id, *job.params, *labels(job.metadata), str(job.metadata.get("description") or "")]
    found += [str(job.program), *map(words, job.schedules)]
    return "\n".join(found).casefold()


class Later:
    """When jobs will run whose next run lies beyond the horizon: worked out once until it has passed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Job, float | None]] = {}  # single operations are atomic; no lock

    def of(self, job: Job, now: float) -> float | None:
        held = self._known.get(job.job_id)
        if held is not None and held[0] is job and (held[1] is None or held[1] >= now):
            return held[1]
        firsts = (next(schedule.after(now), None) for schedule in job.schedules if schedule.enabled)
        time = min((found.time for found in firsts if found is not None), default=None)
        self._known[job.job_id] = job, time
        return time
