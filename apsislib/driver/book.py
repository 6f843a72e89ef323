"""The jobs: those of the job directory, replaced whole by a reload, and those that came with requests."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from apsislib.driver.guard import Guard
from apsislib.driver.parts import Parts
from apsislib.errors import ApsisError, BadRequest, JobError, JobErrors
from apsislib.feeds import Feed
from apsislib.jobs import Diff, JobSet
from apsislib.reloads import future_runs
from apsislib.runs import Job, Json, Run
from apsislib.scheduler import Settings
from apsislib.store import DropJob, SaveJob
from apsislib.times import format_time

log = logging.getLogger(__name__)

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Book:
    def __init__(
        self,
        guard: Guard,
        jobs: JobSet,
        feed: Feed,
        parts: Parts,
        settings: Settings,
        expected: Callable[[], Iterable[Run]],
    ) -> None:
        """`expected`: runs made ahead from schedules, as readers see them."""
        self.jobs = jobs  # immutable; replaced whole by a reload, under the lock
        self._guard = guard
        self._feed = feed
        self._parts = parts
        self._settings = settings
        self._expected = expected
        self._ad_hoc: dict[str, Job] = {}
        self.last_reload: Json = self._outcome()
        # Held for a whole reload: of two at once, one would be compared with jobs that the other replaced.
        self._reloads = threading.Lock()

    def get(self, job_id: str) -> Job | None:
        """The job of exactly this ID, ad hoc ones included."""
        return self.jobs.get(job_id) or self._ad_hoc.get(job_id)

    def job(self, job_id: str) -> Job:
        """The same. Raises BadRequest."""
        job = self.get(job_id)
        if job is None:
            raise BadRequest(f"unknown job ID: {job_id}")
        return job

    def match(self, job_id: str) -> Job:
        """The job of this ID, or the only one that it abbreviates. Raises NotFound or BadRequest."""
        return self._ad_hoc.get(job_id) or self.jobs.match(job_id)

    # -- jobs of requests ----------------------------------------------------------------------------

    def add_ad_hoc(self, mapping: Mapping[str, Any]) -> Job:
        """A job that came with a request, stored under a new ID."""
        job_id = "adhoc-" + "".join(_LETTERS[b % 52] for b in os.urandom(12))
        job = self._parts.parse_ad_hoc(mapping, job_id)
        if job.schedules:
            raise BadRequest("schedule: an ad hoc job can't have a schedule; give times.schedule instead")
        with self._guard.hold() as kernel:
            self._ad_hoc[job_id] = job
            kernel.outbox.append(SaveJob(job_id, job.json))  # type: ignore[arg-type]
        return job

    def restore_ad_hoc(self, rows: Iterable[tuple[str, Json]]) -> None:
        """Those of earlier processes, as they were stored."""
        for job_id, json in rows:
            try:
                self._ad_hoc[job_id] = self._parts.parse_ad_hoc(json, job_id)
            except ApsisError as error:
                log.warning("ad hoc job %s can't be read: %s", job_id, error)

    def retired(self, job_ids: set[str]) -> None:
        """Finished runs of these jobs have left the database, by archiving say. Any thread."""
        ad_hoc = job_ids & self._ad_hoc.keys()
        with self._guard.store.read() as reader:
            unused = {job_id for job_id in ad_hoc if not reader.runs(job_id=job_id, limit=1)}
        with self._guard.hold() as kernel:
            kernel.retired(job_ids)
            unused -= {run.job_id for run in kernel.runs.values()}
            for job_id in unused:
                del self._ad_hoc[job_id]
                kernel.outbox.append(DropJob(job_id))  # type: ignore[arg-type]

    # -- reload --------------------------------------------------------------------------------------

    def reload(self, dry_run: bool = False) -> dict[str, Any]:
        """Load the job directory again: all of it or, with an error (JobErrors), nothing."""
        with self._reloads:
            try:
                new = self._parts.load_jobs()
            except JobErrors as error:
                if not dry_run:
                    self.last_reload = self._outcome(error.errors)
                raise
            diff = self.jobs.diff(new)
            future = self._future(diff, new)
            if not dry_run:
                with self._guard.hold() as kernel:
                    kernel.change_jobs(
                        diff.removed,
                        [new.jobs[j] for j in (*diff.added, *diff.changed)],
                        [new.jobs[j] for j in diff.metadata],
                    )
                    self.jobs = new
                    self._guard.wake_timer_locked()
                self._feed.publish([new])
                self.last_reload = self._outcome()
        changed = sorted([*diff.changed, *diff.metadata])
        return {
            "removed": diff.removed,
            "added": diff.added,
            "changed": changed,
            "dry_run": dry_run,
            "runs": future,
        }

    def _outcome(self, errors: Iterable[JobError] = ()) -> Json:
        found = [
            {"job_id": e.job_id, "path": str(e.path), "line": e.line, "message": e.message} for e in errors
        ]
        return {
            "time": format_time(self._guard.clock.wall()),
            "jobs": len(self.jobs.jobs),
            "errors": found,
            "warnings": list(self.jobs.warnings),
        }

    def _future(self, diff: Diff, new: JobSet) -> dict[str, Any]:
        with self._guard.hold() as kernel:
            position = kernel.position()
        limits = self._settings.horizon, self._settings.max_expected
        now = self._guard.clock.wall()
        ahead = [run for run in self._expected() if run.run_id not in self._guard.kernel.leaving]
        return future_runs(diff, self.jobs.jobs, new.jobs, ahead, position, now, *limits)
