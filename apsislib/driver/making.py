"""Runs are made: by hand, as reruns, by actions, and ahead of time from schedules."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from apsislib import binding
from apsislib.clock import Deadline
from apsislib.driver.book import Book
from apsislib.driver.guard import Guard
from apsislib.driver.hands import saying
from apsislib.driver.looking import Looking
from apsislib.driver.parts import Parts
from apsislib.driver.timer import SLICE
from apsislib.errors import BadRequest, Unavailable
from apsislib.runs import Job, Run
from apsislib.states import State

INSTANT = 0.25  # s; how long a POST waits for runs that end at once
ID_BLOCK = 256  # run IDs reserved at a time: a crash skips as many at most


class _Watch:
    """Somebody waits for a run to end."""

    __slots__ = ("event", "run")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.run: Run | None = None


class Making:
    def __init__(self, guard: Guard, book: Book, looking: Looking, parts: Parts) -> None:
        self._guard = guard
        self._book = book
        self._looking = looking
        self._parts = parts
        self._ids_lock = threading.Lock()  # protects _ids; a block is reserved on disk under it
        self._ids: list[int] = []
        self._watches: dict[str, _Watch] = {}  # dict operations are atomic; no lock

    def create(
        self,
        job_id: str,
        args: Mapping[str, str],
        schedule: float | None = None,
        stop: float | None = None,
        count: int = 1,
    ) -> list[Run]:
        """Schedule `count` runs, at once or for the instant `schedule`; `stop`: when to stop them.

        Answers them as they are after the commit, or finished if they ended at once. Args that do not
        fit the job make runs in state error. Raises NotFound, BadRequest, Unavailable.
        """
        job = self._book.match(job_id)
        return self._create(job.job_id, job, args, schedule, stop, count)

    def create_ad_hoc(
        self,
        mapping: Mapping[str, Any],
        args: Mapping[str, str],
        schedule: float | None = None,
        stop: float | None = None,
        count: int = 1,
    ) -> list[Run]:
        """The same for a job that comes with the request. It is stored under a new ID."""
        job = self._book.add_ad_hoc(mapping)
        return self._create(job.job_id, job, args, schedule, stop, count)

    def rerun(self, run_id: str, reason: str = "") -> Run:
        """A new run of the same job and args, now; its stop time keeps its distance from the start.

        `reason`: for the new run's log.
        """
        run = self._looking.find_run(run_id)
        now = self._guard.clock.wall()
        stop = None
        if "stop" in run.times and "schedule" in run.times:
            stop = now + run.times["stop"] - run.times["schedule"]
        job = self._book.get(run.job_id)
        said = [f"scheduled as rerun of {run_id}", *([f"reason: {reason}"] if reason else ())]
        return self._create(run.job_id, job, run.args, None, stop, 1, said, run_id)[0]

    def _create(
        self,
        job_id: str,
        job: Job | None,
        args: Mapping[str, str],
        schedule: float | None,
        stop: float | None,
        count: int,
        log_lines: Sequence[str] = (),
        rerun_of: str | None = None,
    ) -> list[Run]:
        self._guard.check_disk()
        _check_texts(args)
        clock = self._guard.clock
        now = clock.wall()
        times = {"scheduled": now, "schedule": now if schedule is None else schedule}
        if stop is not None:
            times["stop"] = stop
        runs: list[Run] = []
        failures: dict[str, str] = {}
        for _ in range(count):
            run = Run(
                self.new_id(),
                job_id,
                dict(sorted(args.items())),
                State.SCHEDULED,
                now,
                times,
                rerun_of=rerun_of,
            )
            try:
                run = self.bound(run, job or self._book.job(job_id))
            except Exception as error:
                failures[run.run_id] = saying(error)
                run = run.but(state=State.NEW, times={"schedule": times["schedule"]})
            runs.append(run)
        ends = [r.run_id for r in runs if r.run_id in failures or self._ends_at_once(r, now)]
        watches = {run_id: self._watches.setdefault(run_id, _Watch()) for run_id in ends}
        try:
            for at in range(0, len(runs), SLICE):
                with self._guard.hold() as kernel:
                    for run in runs[at : at + SLICE]:
                        if run.run_id in failures:
                            kernel.add_failed(run, failures[run.run_id], log_lines, clock.wall())
                        else:
                            kernel.add(run, log_lines, clock.wall(), clock.boot())
                    self._guard.flush_locked()
                    ticket = self._guard.ticket
                    self._guard.wake_timer_locked()
            if runs:
                self._wait(ticket, runs)
            deadline = Deadline(INSTANT, clock)
            for watch in watches.values():
                watch.event.wait(deadline.left())
        finally:
            for run_id in ends:
                self._watches.pop(run_id, None)
        return [self._latest(run, watches.get(run.run_id)) for run in runs]

    def _wait(self, ticket: int, runs: Sequence[Run]) -> None:
        try:
            self._guard.wait(ticket)
        except Unavailable as error:
            # Who only hears of a failure asks again, and has it done twice.
            names = runs[0].run_id if len(runs) == 1 else f"{runs[0].run_id} to {runs[-1].run_id}"
            raise Unavailable(
                f"{error}; {names} will be there when that is over, unless the server ends before:"
                " look before you ask again"
            ) from error

    def ended(self, runs: Sequence[Run]) -> None:
        """(apsis-writer) Tell who waits for these runs that they have ended."""
        for run in runs:
            watch = self._watches.get(run.run_id)
            if watch is not None:
                watch.run = run
                watch.event.set()

    def _latest(self, run: Run, watch: _Watch | None) -> Run:
        if watch is not None and watch.run is not None:
            return watch.run
        return self._looking.live_run(run.run_id) or self._looking.find_run(run.run_id)

    @staticmethod
    def _ends_at_once(run: Run, now: float) -> bool:
        program = run.program or {}
        no_op = str(program.get("type", "")).endswith("NoOpProgram") and not program.get("duration")
        return no_op and run.times["schedule"] <= now

    def bound(self, run: Run, job: Job) -> Run:
        """The run, bound. Raises what binding raises."""
        bound = binding.bind(job, run.args, run.run_id, self._book.job, self._parts.get_calendar)
        run = run.but(
            program=bound.program,
            conds=bound.conds,
            actions=bound.actions,
            limits=bound.limits,
            judged=bound.judged,
            meta={"job": {"labels": labels(job)}},
        )
        if job.expect is not None:
            run = run.but(meta={**run.meta, "expect": job.expect.of(run.times["schedule"])})
        return run.but(run_state=self._parts.load_program(bound.program).prepare(run))

    def new_id(self) -> str:
        with self._ids_lock:
            if not self._ids:
                first = self._guard.store.reserve(ID_BLOCK)
                self._ids = list(range(first + ID_BLOCK - 1, first - 1, -1))
            return f"r{self._ids.pop()}"


def labels(job: Job) -> list[str]:
    return list(job.metadata.get("labels", ()))


def _check_texts(args: Mapping[str, str]) -> None:
    for name, value in args.items():
        for text in (name, value):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise BadRequest(f"arg {name!r} holds a lone surrogate, which UTF-8 cannot express") from None
