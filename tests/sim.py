"""A simulated installation: the kernel, with no thread, no sleep and no disk.

Sim plays driver, writer and programs at once. Time stands still while anything is left to do, then
jumps to the next alarm. What would be on disk is in `rows`, `log`, `owed` and `clock`, so that a
crash is `sim.crash()`: a new kernel over what was committed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from math import inf
from typing import Any

from apsislib import binding
from apsislib.clock import SimClock
from apsislib.conditions import Condition
from apsislib.errors import BadRequest
from apsislib.runs import (
    Bind,
    Check,
    Effect,
    Finished,
    Job,
    Launch,
    Limits,
    Lookup,
    Note,
    Owe,
    Run,
    Running,
    Save,
    Schedule,
    SetClock,
    Settle,
    Signal,
    Wake,
    instance,
    stamp,
)
from apsislib.scheduler import Scheduler, Settings
from apsislib.states import FINISHED, State

_LABELS: dict[str, Any] = {"labels": []}
_META = {"job": _LABELS}  # one mapping for all runs, as the driver shares it


class SimProgram:
    """Runs for `seconds` (None: until it is ended from outside), then ends in `state`."""

    def __init__(
        self, seconds: float | None = 0.0, state: State = State.SUCCESS, limits: Limits | None = None
    ) -> None:
        self.seconds = seconds
        self.state = state
        self._limits = limits or Limits()
        self._json = {"type": "sim"}  # one mapping for all runs, as the driver shares it

    def bind(self, expand: Any) -> SimProgram:
        return self

    def limits(self) -> Limits:
        return self._limits

    def to_json(self) -> dict[str, Any]:
        return self._json


class Sim:
    def __init__(self, start: str = "2026-01-01T00:00:00Z", settings: Settings | None = None) -> None:
        self.clock = SimClock(instant(start))
        self.settings = settings or Settings()
        self.programs: dict[str, SimProgram] = {}
        self.jobs: dict[str, Job] = {}
        self.rows: dict[str, Run] = {}
        self.log: dict[str, list[str]] = defaultdict(list)
        self.owed: dict[str, Owe] = {}
        self.ended: dict[tuple[str, str], set[State]] = defaultdict(set)
        self.stored_clock = self.clock.wall()
        self.effects: list[Effect] = []  # all since the last `forget`
        self.keep_effects = False
        self.launched: list[tuple[str, float]] = []
        self.on_launch: Callable[[Run], None] | None = None
        self.checks: list[Check] = []
        self._number = 0
        self._writes: dict[type, Callable[[Any], None]] = {
            SetClock: self._write_clock,
            Owe: self._write_owe,
            Settle: self._write_settle,
        }
        self._acts: dict[type, Callable[[Any], None]] = {
            Bind: self._do_bind,
            Lookup: self._do_lookup,
            Owe: lambda owe: self._do_action(owe),  # which tests replace
            Launch: self._do_launch,
            Signal: self._do_signal,
            Wake: self._do_wake,
            Check: lambda check: self.checks.append(check),  # tests answer them
        }
        self.kernel = Scheduler(self.settings, self.stored_clock)

    # -- setting up ------------------------------------------------------------------------------

    def add_job(
        self,
        job_id: str,
        *schedules: Schedule,
        params: tuple[str, ...] = (),
        conditions: tuple[Condition, ...] = (),
        actions: tuple[Any, ...] = (),
        program: SimProgram | None = None,
        expect: Any = None,
    ) -> Job:
        program = program or SimProgram()
        job = Job(
            job_id,
            tuple(sorted(params)),
            schedules,
            program,
            conditions,
            actions,
            {"labels": []},
            expect=expect,
        )
        self.programs[job_id] = program
        self.jobs[job_id] = job
        self.kernel.set_jobs([job])
        return job

    # -- time ------------------------------------------------------------------------------------

    def run_for(self, seconds: float) -> None:
        self.run_until(self.clock.wall() + seconds)

    def run_until(self, end: float | str) -> None:
        end = instant(end) if isinstance(end, str) else end
        clock = self.clock
        while True:
            wall, boot = self.settle()
            now = clock.wall()
            then = inf if wall is None else wall
            if boot is not None:
                then = min(then, now + boot - clock.boot())
            if then > end:
                break
            # Due by the boot clock, but for what rounding has eaten: a little later.
            clock.advance(then - now if then > now else 1e-6)
        if end > clock.wall():
            clock.advance(end - clock.wall())
            self.settle()

    def settle(self) -> tuple[float | None, float | None]:
        """Do everything that is due at this instant; when more will be."""
        kernel, now, up = self.kernel, self.clock.wall(), self.clock.boot()
        while True:
            kernel.tick(now, up)
            self.commit()
            wall, boot = kernel.next_wake()
            if (wall is None or wall > now) and (boot is None or boot > up):
                return wall, boot

    def commit(self) -> None:
        """The writer and, after it, the hands: until nothing more follows."""
        kernel, rows, log, acts = self.kernel, self.rows, self.log, self._acts
        while effects := kernel.outbox:
            kernel.outbox = []
            if self.keep_effects:
                self.effects += effects
            ended: list[Run] = []
            rest: list[Effect] = []
            for effect in effects:
                kind = type(effect)
                if kind is Note:
                    log[effect.run_id].append(effect.message)
                elif kind is Save:
                    run = effect.run
                    rows[run.run_id] = run
                    kernel.leaving.pop(run.run_id, None)
                    if run.state in FINISHED:
                        self.ended[run.key].add(run.state)
                        ended.append(run)
                else:
                    if kind in self._writes:
                        self._writes[kind](effect)
                    if kind in acts:
                        rest.append(effect)
            for effect in rest:
                acts[type(effect)](effect)
            if ended:
                kernel.evict(ended)

    def _write_clock(self, clock: SetClock) -> None:
        assert clock.time >= self.stored_clock, "the stored clock went back"
        self.stored_clock = clock.time

    def _write_owe(self, owe: Owe) -> None:
        assert owe.cause not in self.owed
        self.owed[owe.cause] = owe

    def _write_settle(self, settle: Settle) -> None:
        del self.owed[settle.cause]

    def _do_bind(self, bind: Bind) -> None:
        runs = [
            self._made(
                bind.job,
                args,
                occurrence.time,
                stop=occurrence.stop,
                expected=True,
                occurrence=identity,
            )
            for occurrence, args, identity in bind.occurrences
        ]
        notes = [occurrence.note for occurrence, _, _ in bind.occurrences]
        self.kernel.expect(bind.token, runs, notes)

    def _do_lookup(self, lookup: Lookup) -> None:
        self.kernel.outcome(lookup.key, self.ended[lookup.key])

    def _do_launch(self, launch: Launch) -> None:
        run, wall = launch.run, self.clock.wall()
        self.launched.append((run.run_id, wall))
        if self.on_launch is not None:
            self.on_launch(run)
        else:
            self._launch(run, wall, self.clock.boot())

    def _do_signal(self, signal: Signal) -> None:
        run_id, signum = signal.run.run_id, signal.signum
        if signum == 9 or self.programs[signal.run.job_id].state is not State.ERROR:
            ended = Finished(State.FAILURE, f"killed by {'SIGKILL' if signum == 9 else 'SIGTERM'}")
            self.kernel.report(run_id, ended, self.clock.wall(), self.clock.boot())

    def _do_wake(self, wake: Wake) -> None:
        ended = Finished(self.programs[wake.run.job_id].state)
        self.kernel.report(wake.run.run_id, ended, self.clock.wall(), self.clock.boot())

    def _launch(self, run: Run, wall: float, boot: float) -> None:
        program, report = self.programs[run.job_id], self.kernel.report
        report(run.run_id, Running({"conn_id": "c"}, wake=program.seconds or None), wall, boot)
        if program.seconds == 0:
            report(run.run_id, Finished(program.state), wall, boot)

    def _do_action(self, owe: Owe) -> None:
        job = self.jobs[owe.action["job_id"]]
        args = {p: owe.action["args"].get(p, owe.run.args.get(p, "")) for p in job.params}
        self.kernel.outbox.append(Settle(owe.cause))
        run = self._made(job, args, self.clock.wall(), cause=owe.cause)
        self.kernel.add(
            run, [f"scheduled by action of {owe.run.run_id}"], self.clock.wall(), self.clock.boot()
        )

    # -- what an operator does -------------------------------------------------------------------

    def schedule(self, job_id: str, at: float | None = None, stop: float | None = None, **args: str) -> str:
        now = self.clock.wall()
        run = self._made(self.jobs[job_id], args, now if at is None else at, stop=stop)
        self.kernel.add(run, [], now, self.clock.boot())
        self.commit()
        return run.run_id

    def finish(self, run_id: str, state: State = State.SUCCESS, message: str | None = None) -> None:
        self.kernel.report(run_id, Finished(state, message), self.clock.wall(), self.clock.boot())
        self.commit()
        self.settle()

    def crash(self, restored: bool = True) -> None:
        """Kill the server and start it again over what was committed. `restored`: until it is all there."""
        claimed = {
            r.occurrence
            for r in self.rows.values()
            if r.occurrence is not None and r.times["schedule"] >= self.stored_clock
        }
        self.kernel = Scheduler(self.settings, self.stored_clock, claimed)
        self.kernel.set_jobs(self.jobs.values())
        self.kernel.lost(self.stored_clock, self.clock.wall(), "the server was down")
        live = [r for r in self.rows.values() if r.state not in FINISHED]
        limits = {j: self.programs[j].limits() for j in self.jobs}
        self.kernel.restore(
            [r.but(limits=limits[r.job_id], judged=None) for r in live], self.clock.wall(), self.clock.boot()
        )
        for owe in list(self.owed.values()):
            self._do_action(owe)
        self.settle()
        if not restored:
            return
        self.kernel.restored()
        self.settle()

    # -- what came of it -------------------------------------------------------------------------

    def state(self, run_id: str) -> State:
        return (self.kernel.runs.get(run_id) or self.rows[run_id]).state

    def runs(self, job_id: str) -> list[Run]:
        """Stored runs of a job, by number."""
        mine = [r for r in self.rows.values() if r.job_id == job_id]
        return sorted(mine, key=lambda r: r.number)

    def started(self, job_id: str) -> list[str]:
        """When runs of a job were started, to the second, UTC."""
        mine = {r.run_id for r in self.rows.values() if r.job_id == job_id}
        return [stamp(when).replace("+00:00", "Z") for run_id, when in self.launched if run_id in mine]

    def expected(self, job_id: str) -> list[Run]:
        mine = self.kernel.expected.get(job_id, {}).values()
        return sorted(mine, key=lambda r: r.times["schedule"])

    def _made(
        self,
        job: Job,
        args: Mapping[str, str],
        at: float,
        stop: float | None = None,
        expected: bool = False,
        occurrence: str | None = None,
        cause: str | None = None,
    ) -> Run:
        self._number += 1
        now = self.clock.wall()
        times = {"scheduled": now, "schedule": at}
        if stop is not None:
            times["stop"] = stop
        run_id = f"r{self._number}"
        bound = binding.bind(job, args, run_id, self._find_job, _no_calendar)
        return Run(
            run_id,
            job.job_id,
            args,
            State.SCHEDULED,
            now,
            times,
            expected,
            bound.program,
            bound.conds,
            bound.actions,
            {"job": _LABELS, "expect": job.expect.of(at)} if job.expect else _META,
            None,
            occurrence,
            cause,
            limits=bound.limits,
            judged=bound.judged,
        )

    def _find_job(self, job_id: str) -> Job:
        if job_id not in self.jobs:
            raise BadRequest(f"unknown job ID: {job_id}")
        return self.jobs[job_id]


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def name(run: Run) -> str:
    return instance(run.job_id, run.args)


def _no_calendar(text: str) -> Any:
    raise BadRequest(f"no such calendar: {text}")
