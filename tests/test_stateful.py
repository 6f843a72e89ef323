"""The kernel under whatever may happen to it, beside a small model of what must be true.

Operators, agents, clocks, reloads, a failing disk and crashes at any point come in any order, as
hypothesis draws them. The model sees nothing but what is written to the database and what reaches the
agent; it knows the states, the schedules and the conditions, and none of the kernel's code.

A few seconds in the suite. `make stateful EXAMPLES=5000` looks for longer.
"""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sim import Sim, SimProgram
from test_scheduler import Every

from apsislib.actions import ScheduleAction
from apsislib.catchup import DEFAULT, CatchUp
from apsislib.conditions import Const, Dependency, MaxRunning, SkipDuplicate
from apsislib.errors import RunError
from apsislib.runs import (
    Back,
    Connect,
    Finished,
    Job,
    Launch,
    Limits,
    Lost,
    Note,
    Placed,
    Run,
    Running,
    Save,
    Send,
    Signal,
)
from apsislib.scheduler import Settings
from apsislib.states import State

EXAMPLES = int(os.environ.get("EXAMPLES", "30"))
# To make a failure smaller takes minutes: not within the suite.
PHASES = tuple(Phase) if "SHRINK" in os.environ else (Phase.explicit, Phase.reuse, Phase.generate)
STEPS = 40
START = "2026-01-01T00:00:00Z"
HORIZON = 400.0

# Written down here once more, by hand: what the tests of the kernel take from it would prove nothing.
LEGAL = {
    "new": {"scheduled", "error", "skipped"},
    "scheduled": {"waiting", "starting", "error", "skipped"},
    "waiting": {"starting", "error", "skipped"},
    "starting": {"running", "error", "skipped"},  # skipped: it was stopped before it was sent
    "running": {"stopping", "success", "failure", "error"},
    "stopping": {"success", "failure", "error"},
}
ENDED = {"success", "failure", "error", "skipped"}
BUSY = {"starting", "running", "stopping"}

SCHEDULES = {
    "tick": (Every(60),),
    "twin": (Every(90), Every(120)),
    "latest": (Every(40),),
    "slow": (Every(100),),
    "load": (Every(120),),
    "report": (Every(120),),
}
# How many runs of one instance may be busy at a time.
MOST = {"slow": 1, "pair": 2, "both": 1}
# Whose success, with the same args, comes first.
NEEDS = {"report": "load", "both": "gate"}
BY_HAND = ("pair", "dup", "both", "gate", "first", "load", "tick")
CONDITIONS: dict[str, tuple[Any, ...]] = {
    "slow": (MaxRunning(),),
    "pair": (MaxRunning("2"),),
    "report": (Dependency("load"),),
    "both": (MaxRunning(), Dependency("gate")),
    "dup": (SkipDuplicate(),),
    "never": (Const(False),),
}
PARAMS = {"pair": ("x",), "load": ("time",), "report": ("time",), "dup": ("x",)}
# Their programs end at once.
INSTANT = ("tick", "twin", "latest", "follow")


class Crash(Exception):
    """The server is killed here."""


@dataclass
class Model:
    """What the database has been told, and whether that may be."""

    states: dict[str, str] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    succeeded: set[tuple[str, str]] = field(default_factory=set)  # instances, ever
    overridden: set[str] = field(default_factory=set)  # started by hand, whatever they wait for
    forced: set[str] = field(default_factory=set)  # marked, by the operation that is under way
    starts: Counter[str] = field(default_factory=Counter)  # what has reached the agent
    occurrences: dict[str, Counter[float]] = field(default_factory=lambda: defaultdict(Counter))
    arrived: dict[str, tuple[float, int]] = field(default_factory=dict)  # waiting runs: their place
    successes: int = 0  # of `first`: each is followed by a run of `follow`

    def saw(self, run: Run) -> None:
        run_id, old, new = run.run_id, self.states.get(run.run_id), run.state.value
        if old is None and run.occurrence is not None:
            self.occurrences[run.job_id][run.times["schedule"]] += 1
        if old != new:
            came = old or "scheduled"
            if came in ENDED:
                assert run_id in self.forced and new in ENDED, f"{run_id} was {came} and is {new}"
            elif old is not None or new != "scheduled":
                duplicate = run.job_id == "dup" and came == "waiting"
                assert new in LEGAL[came] or duplicate, f"{run_id} was {came} and is {new}"
            if new == "starting":
                self.may_start(run)
            if new == "waiting":
                self.arrived[run_id] = float("inf"), len(self.arrived)
            if new == "success":
                self.succeeded.add(run.key)
                self.successes += run.job_id == "first"
        self.states[run_id], self.runs[run_id] = new, run

    def busy(self, key: tuple[str, str]) -> int:
        return sum(1 for i, state in self.states.items() if state in BUSY and self.runs[i].key == key)

    def holds(self, run: Run) -> bool:
        """Whether nothing keeps a waiting run from starting."""
        if run.job_id == "never":
            return False
        if run.job_id in MOST and self.busy(run.key) >= MOST[run.job_id]:
            return False
        return run.job_id not in NEEDS or (NEEDS[run.job_id], run.key[1]) in self.succeeded

    def may_start(self, run: Run) -> None:
        if run.run_id in self.overridden:
            return
        assert self.holds(run), f"{run} starts, but must wait"
        if run.job_id in MOST and run.job_id not in NEEDS:
            mine = self.arrived.get(run.run_id, (float("inf"), len(self.arrived)))
            before = [
                i
                for i, state in self.states.items()
                if state == "waiting" and self.runs[i].key == run.key and self.arrived[i] < mine
            ]
            assert not before, f"{run} starts before {before}"

    def restarted(self) -> None:
        """Who waits does so in the order in which it began to, by the clocks of then."""
        for run_id, state in self.states.items():
            if state == "waiting":
                run = self.runs[run_id]
                self.arrived[run_id] = run.times["waiting"], run.number


class Site(Sim):
    """A server that can be killed between any two things that it does, and two agents that live on."""

    def __init__(self, model: Model, rnd: random.Random) -> None:
        super().__init__(START, Settings(HORIZON, max_expected=9, catch_up=CatchUp(pace=2.0).over(DEFAULT)))
        self.model = model
        self.rnd = rnd
        self.fuse: int | None = None  # things still done before it is killed
        self.agent_is_there = True
        self.procs: dict[str, State | None] = {}  # at the agents: None: it runs; else how it ended
        self.where: dict[str, str] = {}  # run ID: the agent that has it
        self.untold: dict[str, None] = {}  # runs that have begun, of which the agent has not told yet
        self.asked: list[Run] = []  # to be placed once an agent is there
        self._writes[Save] = self._write_save
        self._writes[Note] = lambda note: self.log[note.run_id].append(note.message)
        self._acts[Save] = self._do_save
        self._acts[Send] = self._do_send
        self._acts[Connect] = self._do_connect

    def burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise Crash

    def commit(self) -> None:
        kernel = self.kernel
        while effects := kernel.outbox:
            kernel.outbox = []
            self.burn()
            for effect in effects:  # a transaction
                if (write := self._writes.get(type(effect))) is not None:
                    write(effect)
            for effect in effects:
                if (act := self._acts.get(type(effect))) is not None:
                    self.burn()
                    act(effect)

    def settle(self) -> tuple[float | None, float | None]:
        kernel, clock = self.kernel, self.clock
        while True:
            kernel.tick(clock.wall(), clock.boot(), limit=self.rnd.choice([1, 3, 100]))
            self.commit()
            wall, boot = kernel.next_wake()
            if (wall is None or wall > clock.wall()) and (boot is None or boot > clock.boot()):
                return wall, boot

    def _write_save(self, save: Save) -> None:
        run = save.run
        self.model.saw(run)
        self.rows[run.run_id] = run
        if run.state.value in ENDED:
            self.ended[run.key].add(run.state)

    def _do_save(self, save: Save) -> None:
        self.kernel.leaving.pop(save.run.run_id, None)
        if save.run.state.value in ENDED:
            self.kernel.evict([save.run])

    # -- the agent -----------------------------------------------------------------------------------

    def _do_launch(self, launch: Launch) -> None:
        if self.agent_is_there:
            self.place(launch.run)
        else:
            self.asked.append(launch.run)

    def place(self, run: Run) -> None:
        self.report(run.run_id, Placed({"conn_id": self.rnd.choice(["c1", "c2"])}))

    def _do_send(self, send: Send) -> None:
        if self.agent_is_there:  # else it is sent when the agent is back
            self.begin(send.run)

    def begin(self, run: Run) -> None:
        """The agent that the run was placed on gets it, perhaps once more."""
        run_id = run.run_id
        conn_id = (run.run_state or {})["conn_id"]
        if self.where.setdefault(run_id, conn_id) != conn_id:
            self.model.starts[run_id] += 1  # another agent, which knows nothing of the first
        if run_id not in self.procs:
            self.model.starts[run_id] += 1
            self.procs[run_id] = None
            if run.job_id not in INSTANT and self.rnd.random() < 0.1:
                self.procs[run_id] = State.FAILURE
                self.report(run_id, Finished(State.FAILURE, "could not be executed"))
                return
            if run.job_id in INSTANT or self.rnd.random() < 0.4:
                failed = run.job_id not in INSTANT and self.rnd.random() < 0.2
                self.procs[run_id] = State.FAILURE if failed else State.SUCCESS
            if self.rnd.random() < 0.2:
                self.untold[run_id] = None
                return
        self.tell(run_id)

    def tell(self, run_id: str) -> None:
        """The agent says what it knows of a run."""
        self.untold.pop(run_id, None)
        self.report(run_id, Running({"conn_id": self.where[run_id]}))
        ended = self.procs[run_id]
        if ended is not None:
            self.report(run_id, Finished(ended))

    def _do_connect(self, connect: Connect) -> None:
        run = connect.run
        if not self.agent_is_there:
            return
        if run.run_id in self.procs or run.state is State.STARTING:
            self.begin(run)
            self.report(run.run_id, Back(self.where[run.run_id]))
        else:
            self.report(run.run_id, Finished(State.ERROR, "unknown to the agent"))

    def _do_signal(self, signal: Signal) -> None:
        run_id = signal.run.run_id
        runs = self.agent_is_there and self.procs.get(run_id, State.ERROR) is None
        if runs and (signal.signum == 9 or self.rnd.random() < 0.5):
            self.procs[run_id] = State.FAILURE
            self.tell(run_id)

    def report(self, run_id: str, report: Any) -> None:
        self.kernel.report(run_id, report, self.clock.wall(), self.clock.boot())


class Machine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.model = Model()
        self.site = Site(self.model, random.Random(seed))
        self.began = self.furthest = self.site.clock.wall()
        self.braked = False
        self.marked: set[str] = set()
        # From when to when (None: still) a job had a schedule, for certain.
        self.regimes: dict[str, list[tuple[float, float | None, tuple[Every, ...]]]] = {}
        for job_id in (*SCHEDULES, "pair", "dup", "both", "gate", "first", "follow", "never"):
            self.add(job_id, SCHEDULES.get(job_id, ()))
        self.guarded(self.site.settle)

    def add(self, job_id: str, schedules: tuple[Every, ...]) -> Job:
        actions = ()
        if job_id == "first":
            actions = (ScheduleAction("follow", states=frozenset({State.SUCCESS})),)
        limits = Limits(reconnect_timeout=500.0, timeout=700.0, grace=20.0)
        job = self.site.add_job(
            job_id,
            *schedules,
            params=PARAMS.get(job_id, ()),
            conditions=CONDITIONS.get(job_id, ()),
            actions=actions,
            program=SimProgram(None, limits=limits),
        )
        if job_id == "latest":
            self.site.jobs[job_id] = job = replace(job, catch_up=CatchUp("latest"))
            self.site.kernel.change_jobs((), (), [job])
        self.regimes[job_id] = [(self.began - 1, None, schedules)]
        return job

    def guarded(self, work: Callable[[], object]) -> None:
        """Do it; if it is killed in the middle, start again."""
        try:
            work()
            if not self.braked:
                self.site.settle()
        except Crash:
            self.restart()
        self.site.fuse = None
        self.furthest = max(self.furthest, self.site.clock.wall())

    def restart(self) -> None:
        self.braked = False
        while True:
            self.site.asked.clear()
            self.model.restarted()
            try:
                self.site.crash()
                return
            except Crash:
                continue

    # -- time ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.3, 1, 7, 30, 59, 61, 250]))
    @precondition(lambda self: not self.braked)
    def time_passes(self, seconds: float) -> None:
        self.guarded(lambda: self.site.run_for(seconds))

    @rule(seconds=st.sampled_from([1, 30, 250]), fuse=st.integers(0, 60))
    @precondition(lambda self: not self.braked)
    def it_is_killed_while_time_passes(self, seconds: float, fuse: int) -> None:
        self.site.fuse = fuse
        self.guarded(lambda: self.site.run_for(seconds))

    @rule(away=st.sampled_from([0.2, 5, 100, 700]), fuse=st.none() | st.integers(0, 30))
    def it_is_down(self, away: float, fuse: int | None) -> None:
        self.site.clock.advance(away)
        self.furthest = max(self.furthest, self.site.clock.wall())
        self.site.fuse = fuse
        self.restart()
        self.site.fuse = None

    @rule(delta=st.sampled_from([-3600, -45, -2, 2, 45, 3600]))
    @precondition(lambda self: not self.braked)
    def the_clock_is_set(self, delta: float) -> None:
        def work() -> None:
            self.site.clock.step(delta)
            wall = self.site.clock.wall()
            self.site.kernel.stepped(delta, wall)
            self.site.kernel.lost(wall - delta, wall, "the clock was set forward")

        self.guarded(work)

    @rule(seconds=st.sampled_from([5, 130]), fuse=st.none() | st.integers(0, 30))
    @precondition(lambda self: not self.braked)
    def the_host_is_suspended(self, seconds: float, fuse: int | None) -> None:
        def work() -> None:
            since = self.site.clock.wall()
            self.site.clock.advance(seconds)
            self.site.kernel.lost(since, self.site.clock.wall(), "the host was suspended")

        self.site.fuse = fuse
        self.guarded(work)

    @rule()
    def the_disk_fails_or_works_again(self) -> None:
        self.braked = not self.braked
        if self.braked:
            self.tick_braked()
        else:
            self.guarded(lambda: None)

    def tick_braked(self) -> None:
        kernel = self.site.kernel
        kernel.tick(self.site.clock.wall(), self.site.clock.boot(), brake=True)
        assert not [e for e in kernel.outbox if isinstance(e, Launch)]

    @rule(seconds=st.sampled_from([3, 90, 600]))
    @precondition(lambda self: self.braked)
    def time_passes_while_the_disk_fails(self, seconds: float) -> None:
        self.site.clock.advance(seconds)
        self.tick_braked()

    # -- operators -------------------------------------------------------------------------------------

    @rule(
        job_id=st.sampled_from(BY_HAND),
        x=st.sampled_from("ab"),
        after=st.sampled_from([0, 0, -50, 3, 100]),
        count=st.sampled_from([1, 1, 3]),
    )
    @precondition(lambda self: not self.braked)
    def runs_are_made(self, job_id: str, x: str, after: float, count: int) -> None:
        def work() -> None:
            if job_id in self.site.jobs:
                for _ in range(count):
                    args = {name: x for name in PARAMS.get(job_id, ())}
                    self.site.schedule(job_id, at=self.site.clock.wall() + after, **args)

        self.guarded(work)

    def chosen(self, where: Callable[[Run], bool], data: Any) -> Run | None:
        found = sorted((r for r in self.site.kernel.runs.values() if where(r)), key=lambda r: r.number)
        return data.draw(st.sampled_from(found), label="run") if found else None

    @rule(
        data=st.data(),
        verb=st.sampled_from(["skip", "start", "stop", "signal"]),
        fuse=st.none() | st.integers(0, 9),
    )
    @precondition(lambda self: not self.braked)
    def an_operator_does_something(self, data: Any, verb: str, fuse: int | None) -> None:
        fit = {"skip": "scheduled waiting", "start": "scheduled waiting", "stop": "starting running stopping"}
        run = self.chosen(lambda r: r.state.value in fit.get(verb, "running stopping").split(), data)
        if run is None:
            return
        kernel, wall, boot = self.site.kernel, self.site.clock.wall(), self.site.clock.boot()
        if verb == "start" and run.state is State.WAITING:
            self.model.overridden.add(run.run_id)

        def work() -> None:
            match verb:
                case "skip":
                    kernel.skip(run.run_id, wall)
                case "start":
                    kernel.start(run.run_id, wall, boot)
                case "stop":
                    kernel.stop(run.run_id, wall, boot)
                case "signal":
                    kernel.signal(run.run_id, 15, wall)

        self.site.fuse = fuse
        self.guarded(work)
        if run.run_id in self.model.overridden and self.model.states[run.run_id] == "waiting":
            self.model.overridden.discard(run.run_id)  # it was killed before that was on disk

    @rule(data=st.data(), state=st.sampled_from(["success", "failure", "error", "skipped"]))
    @precondition(lambda self: not self.braked)
    def an_ended_run_is_marked(self, data: Any, state: str) -> None:
        ended = sorted(
            (i for i, s in self.model.states.items() if s in ENDED and s != state), key=lambda i: int(i[1:])
        )
        if ended:
            run_id = data.draw(st.sampled_from(ended[-20:]), label="run")
            self.model.forced.add(run_id)
            self.marked.add(run_id)
            row = self.site.rows[run_id]
            self.guarded(lambda: self.site.kernel.mark(row, State(state), self.site.clock.wall()))
            self.model.forced.discard(run_id)

    @rule(data=st.data(), verb=st.sampled_from(["skip", "start", "stop", "mark"]))
    def what_makes_no_sense_is_refused(self, data: Any, verb: str) -> None:
        run = self.chosen(lambda r: r.state is State.STOPPING or r.state is State.STARTING, data)
        if run is None or verb == "stop":
            return
        kernel, wall = self.site.kernel, self.site.clock.wall()
        before = list(kernel.outbox)
        try:
            if verb == "mark":
                kernel.mark(run, State.SUCCESS, wall)
            elif verb == "skip":
                kernel.skip(run.run_id, wall)
            else:
                kernel.start(run.run_id, wall, self.site.clock.boot())
        except RunError:
            assert kernel.outbox == before
        else:
            raise AssertionError(f"{verb} of {run} in state {run.state} was not refused")

    # -- agents ----------------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: not self.braked)
    def the_agent_goes_or_returns(self) -> None:
        site = self.site
        site.agent_is_there = not site.agent_is_there

        def work() -> None:
            if not site.agent_is_there:
                for run_id in [
                    r.run_id for r in site.kernel.runs.values() if (r.run_state or {}).get("conn_id")
                ]:
                    for conn_id in ("c1", "c2"):
                        site.report(run_id, Lost(conn_id))
                return
            asked, site.asked = site.asked, []
            for run in asked:
                site.place(run)
            for run in list(site.kernel.runs.values()):
                if (run.run_state or {}).get("conn_id"):
                    site._do_connect(Connect(run))

        self.guarded(work)

    @rule(
        data=st.data(),
        state=st.sampled_from([State.SUCCESS, State.SUCCESS, State.FAILURE, State.ERROR]),
        down=st.booleans(),
    )
    @precondition(lambda self: not self.braked)
    def a_program_ends(self, data: Any, state: State, down: bool) -> None:
        going = sorted((i for i, ended in self.site.procs.items() if ended is None), key=lambda i: int(i[1:]))
        if not going:
            return
        run_id = data.draw(st.sampled_from(going), label="run")
        self.site.procs[run_id] = state
        if down:
            self.restart()
        elif self.site.agent_is_there:
            self.guarded(lambda: self.site.tell(run_id))

    @rule()
    @precondition(lambda self: not self.braked and self.site.agent_is_there and self.site.untold)
    def the_agent_tells_what_it_has_begun(self) -> None:
        for run_id in list(self.site.untold):
            self.guarded(lambda run_id=run_id: self.site.tell(run_id))

    # -- reloads ---------------------------------------------------------------------------------------

    @rule(
        job_id=st.sampled_from(["tick", "twin", "load", "slow"]),
        seconds=st.sampled_from([45, 60, 75]),
        fuse=st.none() | st.integers(0, 9),
    )
    @precondition(lambda self: not self.braked)
    def a_job_gets_another_schedule(self, job_id: str, seconds: float, fuse: int | None) -> None:
        def work() -> None:
            now = max(self.site.clock.wall(), self.site.kernel.position()[0], self.furthest)
            new = (Every(seconds),)
            begin, _, old = self.regimes[job_id][-1]
            self.regimes[job_id][-1] = begin, min(self.site.clock.wall(), self.site.kernel.position()[0]), old
            self.regimes[job_id].append((now, None, new))
            job = replace(self.site.jobs[job_id], schedules=new)
            self.site.jobs[job_id] = job  # the files are there, also if the server is killed now
            self.site.kernel.change_jobs((), [job])

        self.site.fuse = fuse
        self.guarded(work)

    @rule(job_id=st.sampled_from([*SCHEDULES, "pair"]))
    @precondition(lambda self: not self.braked)
    def a_job_gets_another_description(self, job_id: str) -> None:
        def work() -> None:
            job = replace(self.site.jobs[job_id], metadata={"labels": [], "description": "new"})
            self.site.jobs[job_id] = job
            self.site.kernel.change_jobs((), (), [job])

        self.guarded(work)

    # -- what must be true -------------------------------------------------------------------------------

    @invariant()
    def no_program_is_started_twice(self) -> None:
        assert all(count == 1 for count in self.model.starts.values()), self.model.starts

    @invariant()
    def no_program_runs_behind_the_back_of_its_run(self) -> None:
        """But for one whose agent was given up, whatever it is marked as then."""
        for run_id, ended in self.site.procs.items():
            state = "error" if run_id in self.marked else self.model.states[run_id]
            assert ended is not None or state not in ENDED - {"error"}, f"{run_id} is {state}, and runs"

    @invariant()
    def no_run_waits_for_nothing(self) -> None:
        if self.braked:
            return
        for run_id, state in self.model.states.items():
            if state == "waiting":
                assert not self.model.holds(self.model.runs[run_id]), f"{run_id} has nothing to wait for"
            if state == "scheduled":  # put off, or by hand
                assert run_id in self.site.kernel.runs

    @invariant()
    def memory_is_as_the_database(self) -> None:
        if self.braked:
            return
        kernel = self.site.kernel
        live = {i: s for i, s in self.model.states.items() if s not in ENDED}
        held = {i: r.state.value for i, r in kernel.runs.items() if not r.expected}
        assert held == live
        assert not kernel.leaving and not self.site.owed
        occupied: Counter[Any] = Counter(self.model.runs[i].key for i, s in live.items() if s in BUSY)
        for key in {self.model.runs[i].key for i in live}:
            assert kernel.occupied(key) == occupied[key]

    @invariant()
    def every_occurrence_is_there_once(self) -> None:
        if self.braked:
            return
        for job_id, regimes in self.regimes.items():
            made = self.model.occurrences[job_id]
            most = max(
                (max(Counter(s.seconds for s in r[2]).values(), default=0) for r in regimes), default=0
            )
            expected: Counter[float] = Counter()
            for begin, end, schedules in regimes:
                until = self.furthest if end is None else end
                for schedule in schedules:
                    for occurrence in schedule.after(begin):
                        if occurrence.time > until or (end is not None and occurrence.time >= end):
                            break
                        if occurrence.time > begin:
                            expected[occurrence.time] += 1
            lost = expected - made
            assert not lost, f"{job_id}: lost {sorted(lost)}"
            for instant, count in made.items():
                several = sum(instant % s.seconds == 0 for s in regimes[0][2]) if len(regimes) == 1 else 2
                assert count <= max(most, several), f"{job_id}: {count} for {instant}"

    @invariant()
    def what_follows_follows_once(self) -> None:
        if self.braked:
            return
        causes = Counter(run.cause for run in self.model.runs.values() if run.cause)
        assert all(count == 1 for count in causes.values())
        assert len(causes) == self.model.successes

    def teardown(self) -> None:
        """In the end, whatever can end ends."""
        if not hasattr(self, "site"):
            return
        site = self.site
        self.braked, site.agent_is_there = False, True
        self.restart()
        while True:
            going = {run_id for run_id, ended in site.procs.items() if ended is None} | site.untold.keys()
            if not going:
                break
            for run_id in sorted(going):
                site.procs[run_id] = site.procs[run_id] or State.SUCCESS
                site.tell(run_id)
            site.settle()
        self.no_run_waits_for_nothing()
        self.memory_is_as_the_database()
        self.no_program_is_started_twice()
        stuck = [r for r in site.kernel.runs.values() if r.state.value in BUSY]
        assert not stuck, stuck


def test_whatever_happens_runs_are_neither_lost_nor_doubled_nor_begun_too_soon() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
