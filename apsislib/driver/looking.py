"""Runs as readers see them: those made ahead in memory, the others in the database."""

from __future__ import annotations

from typing import Any

from apsislib.driver.guard import Guard
from apsislib.errors import NotFound
from apsislib.runs import Run, run_number


class Looking:
    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._kernel = guard.kernel

    def live_run(self, run_id: str) -> Run | None:
        """The run as the kernel has it; None once it is finished and out of memory. Takes no lock."""
        return self._kernel.runs.get(run_id)

    def expected(self, job_id: str | None = None) -> list[Run]:
        """Runs made ahead from schedules, not in the database. Of one job, or all. Takes no lock.

        To miss none of them, look into the database afterwards: of a run in both, what it says is newer.
        """
        # list() of a dict's values is one step of the interpreter, so it sees a consistent dict.
        groups = (
            list(self._kernel.expected.values())
            if job_id is None
            else [self._kernel.expected.get(job_id, {})]
        )
        runs = {run.run_id: run for group in groups for run in list(group.values())}
        for run in list(self._kernel.leaving.values()):
            if job_id is None or run.job_id == job_id:
                runs[run.run_id] = run
        return list(runs.values())

    def next_runs(self) -> dict[str, Run]:
        """Of each job that has any, the expected run that is due first. Takes no lock."""
        groups = [(job_id, list(group.values())) for job_id, group in list(self._kernel.expected.items())]
        return {job_id: min(runs, key=_due) for job_id, runs in groups if runs}

    def expected_run(self, run_id: str) -> Run | None:
        run = self._kernel.runs.get(run_id)
        return run if run is not None and run.expected else self._kernel.leaving.get(run_id)

    def find_run(self, run_id: str) -> Run:
        """The run as the database has it, or an expected one. Raises NotFound."""
        run = self.expected_run(run_id)
        if run is None and run_number(run_id) is not None:
            with self._guard.store.read() as reader:
                run = reader.run(run_id)
            run = run or self.expected_run(run_id)
        if run is None:
            raise NotFound(f"unknown run {run_id}")
        return run

    def waiting(self, run_id: str) -> list[dict[str, Any]]:
        """Why a run waits: each condition with whether it holds, why not, and since when."""
        with self._guard.hold() as kernel:
            return kernel.waiting(run_id)


def _due(run: Run) -> tuple[float, int]:
    return run.times.get("schedule", 0.0), run.number
