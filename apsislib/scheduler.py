"""THE KERNEL: what happens to runs, decided without a lock, thread, clock or I/O of its own.

Every method is given the instants it needs (`wall` since the epoch, `boot` on CLOCK_BOOTTIME) and
appends what it decided to `outbox`; the driver, which guards the kernel with the one lock, hands
the outbox to the writer in the same hold. Nothing acts before the writer has committed.

A run that has finished stays here until its last row is on disk (`evict`), so that at every moment
it can be found either here or in the database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from apsislib import actions, conditions
from apsislib.alarms import Alarms
from apsislib.conditions import OCCUPYING, BoundMaxRunning, BoundOwn, RunKey, Verdict, ended_key, slots_key
from apsislib.cursors import Cursor, Cursors
from apsislib.errors import ApsisError, RunError
from apsislib.operations import refusal
from apsislib.runs import (
    Alarm,
    Args,
    Back,
    Bind,
    Check,
    Connect,
    Drop,
    Effect,
    Expect,
    Finished,
    Forget,
    Job,
    Json,
    Launch,
    Launched,
    Lookup,
    Lost,
    Note,
    Output,
    Owe,
    Placed,
    Raised,
    Remark,
    Report,
    Run,
    Running,
    Save,
    Send,
    SetClock,
    Signal,
    Unplaced,
    Update,
    Wake,
    canonical,
    occurrence_time,
    parse_args,
    signal_name,
    stamp,
)
from apsislib.states import ACTIVE, FINISHED, TRANSITIONS, State
from apsislib.waits import Outcomes, Wait, Waits

CLOCK_STEP = 1.0  # s; the stored clock moves at least so far, unless runs are claimed
LAST_WORD = 10.0  # s; how long an answer that is under way is waited for when waiting.max_time is over
HELD = 1.0  # s; after which a waiting run's alarm is looked at again, while nothing may be started
NAMED = 100  # runs that a waiting run is said to wait for
SIGKILL = 9
OWN = ("timers", "timed_out", "signals", "stop_asked")  # what the kernel itself keeps in a run_state


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server's file says about scheduling. Durations in seconds."""

    horizon: float = 86400.0
    max_expected: int = 2000  # per schedule: an every-second job must not fill the memory
    max_waiting: float | None = None
    actions: tuple[Json, ...] = ()  # owed by every run, besides its job's
    max_age: float | None = None  # occurrences that are later than this are recorded as missed, not run


class Scheduler:
    def __init__(self, settings: Settings, clock: float, claimed: Iterable[str] = ()) -> None:
        """`clock`: everything due before it was claimed by an earlier process.
        `claimed`: identities of stored runs that were made for occurrences at or after `clock`."""
        self.outbox: list[Effect] = []
        self.jobs: dict[str, Job] = {}
        self.clock = clock
        self.down: tuple[float, float] | None = None  # since when and until when there was no server
        # Read without the lock by GETs (C-level copies of a dict are atomic); written only under it.
        self.runs: dict[str, Run] = {}
        self.expected: dict[str, dict[str, Run]] = {}  # by job ID
        # Expected till a moment ago, their first rows not on disk yet: shown as they were until then, or
        # they would be nowhere. The writer's thread takes them out, too.
        self.leaving: dict[str, Run] = {}
        self._settings = settings
        self._alarms = Alarms()
        self._cursors = Cursors(settings.horizon, settings.max_expected)
        self._waits = Waits()
        self._outcomes = Outcomes()
        self._keys: dict[str, RunKey] = {}
        self._by_key: dict[RunKey, dict[str, Run]] = {}
        self._occupied: Counter[RunKey] = Counter()
        self._cursor_of: dict[str, Cursor] = {}
        self._claimed = {identity: occurrence_time(identity) for identity in claimed}
        # By token, what is being bound: the earliest instant, of which schedule, and all of it.
        self._binding: dict[int, tuple[float, Cursor, Sequence[tuple[Any, Args, str]]]] = {}
        self._prune_at = 1000  # claimed identities; those before the clock can't be made again
        self._notes: dict[str, str] = {}  # run ID: what to say of an expected run's time
        self._token = 0
        self._held = False  # waiting runs are not judged yet: expected ones are not all made
        self._braked = False  # the disk is failing: nothing is started

    # -- time ------------------------------------------------------------------------------------

    def tick(self, wall: float, boot: float, limit: int = 100, brake: bool = False) -> None:
        """Do what is due, at most about `limit` steps of it, so that no hold of the lock is long.

        `brake`: the disk is failing. Nothing new is started; what runs is still timed out and killed.
        """
        self._braked = brake
        if brake:
            while limit > 0 and (due := self._alarms.pop(float("-inf"), boot)) is not None:
                limit -= 1
                self._ring(*due, wall, boot)
            return
        while limit > 0 and (taken := self._cursors.take(wall, limit)) is not None:
            limit -= self._bind(*taken) + 1
        while limit > 0 and (due := self._alarms.pop(wall, boot)) is not None:
            limit -= 1
            self._ring(*due, wall, boot)
        while limit > 0 and not self._held and (run_id := self._waits.next_ready()) is not None:
            limit -= 1
            self._judge(run_id, wall, boot)
        self._move_clock(wall)

    def next_wake(self) -> tuple[float | None, float | None]:
        """The wall and the boot instant at which `tick` has work; the wall instant 0.0 means now."""
        if self._waits.ready and not self._held:
            return 0.0, None
        wall, boot = self._alarms.next()
        due = self._cursors.due()
        return (due if wall is None or (due is not None and due < wall) else wall), boot

    def next_due(self) -> float | None:
        """The wall instant of the next schedule or stop time of a run that is there."""
        return self._alarms.next()[0]

    def stepped(self, delta: float, wall: float) -> None:
        """The wall clock was set by `delta` seconds: ends of durations, stored by it, move along."""
        for run in list(self.runs.values()):
            timers = (run.run_state or {}).get("timers")
            if timers:
                moved = {name: end + delta for name, end in timers.items()}
                self._put(run.but(run_state={**(run.run_state or {}), "timers": moved}))
                self.outbox.append(Save(self.runs[run.run_id], transition=False))

    def _move_clock(self, wall: float) -> None:
        # Not past what is claimed by nobody yet: a due alarm, an occurrence not made or being bound.
        bounds = [wall, *(earliest for earliest, _, _ in self._binding.values())]
        due = self._alarms.next()[0]
        unmade = self._cursors.unmade()
        bounds += [t for t in (due, unmade) if t is not None]
        to = min(bounds)
        claimed = any(isinstance(e, Save) for e in self.outbox)
        if to > self.clock and (claimed or to >= self.clock + CLOCK_STEP):
            self.clock = to
            self.outbox.append(SetClock(to))
            if len(self._claimed) > self._prune_at:
                self._claimed = {i: t for i, t in self._claimed.items() if t >= to}
                self._prune_at = 2 * len(self._claimed) + 1000
                self._cursors.forget_before(to)

    # -- jobs ------------------------------------------------------------------------------------

    def set_jobs(self, jobs: Iterable[Job]) -> None:
        """The jobs at start, before the first tick: their schedules go on from the stored clock."""
        for job in jobs:
            self.jobs[job.job_id] = job
            self._cursors.add(job, self.clock)

    def change_jobs(
        self, removed: Iterable[str], changed: Iterable[Job], touched: Iterable[Job] = ()
    ) -> None:
        """After a reload. Expected runs of removed and changed jobs vanish and are made anew from the
        stored clock; those of `touched` jobs (metadata only) stay."""
        changed = list(changed)
        for job_id in [*removed, *(j.job_id for j in changed)]:
            self.jobs.pop(job_id, None)
            self._cursors.remove(job_id)
            for run in list(self.expected.get(job_id, {}).values()):
                self._discard(run)
                self.outbox.append(Drop(run.run_id))
        for job in changed:
            self.jobs[job.job_id] = job
            self._cursors.add(job, self.clock)
        for job in touched:
            self.jobs[job.job_id] = job
            self._cursors.touch(job)

    def _bind(self, cursor: Cursor, taken: Sequence[tuple[Any, Args, str]]) -> int:
        fresh = [t for t in taken if t[2] not in self._claimed]
        for _ in range(len(taken) - len(fresh)):
            self._cursors.left(cursor)
        if fresh:
            self._token += 1
            self._binding[self._token] = (fresh[0][0].time, cursor, fresh)
            self.outbox.append(Bind(self._token, cursor.job, tuple(fresh)))
        return len(taken)

    def expect(
        self, token: int, runs: Sequence[Run], notes: Sequence[str | None], wall: float, boot: float
    ) -> None:
        """The runs of a Bind effect, in state scheduled. A job that was changed meanwhile takes none."""
        _, cursor, _ = self._binding.pop(token)
        if not self._cursors.goes_on(cursor):
            return
        for run, note in zip(runs, notes, strict=True):
            self._cursor_of[run.run_id] = cursor
            if note:
                self._notes[run.run_id] = note
            self.expected.setdefault(run.job_id, {})[run.run_id] = run
            self._put(run)
            self._alarms.arm(run.run_id, Alarm.DUE, run.times["schedule"])
            self._watch(run)
            self.outbox.append(Expect(run))
            self._touch(run, None)

    def _claim(self, run: Run) -> Run:
        """An expected run leaves *scheduled*, for whatever state: it is stored from its next move on."""
        if not run.expected:
            return run
        self.leaving[run.run_id] = run
        self._unexpect(run)
        if run.occurrence is not None and run.times["schedule"] >= self.clock:
            self._claimed[run.occurrence] = run.times["schedule"]
        self._note_schedule(run)
        if run.actions or self._settings.actions:
            self._owe(run.but(expected=False))
        return run

    def _unexpect(self, run: Run) -> None:
        mine = self.expected[run.job_id]
        del mine[run.run_id]
        if not mine:
            del self.expected[run.job_id]
        self._cursors.left(self._cursor_of.pop(run.run_id))

    def _discard(self, run: Run) -> None:
        self._unexpect(run)
        self._notes.pop(run.run_id, None)
        self._remove(run.run_id)
        self._waits.touch(ended_key(run.key, run.state))  # who waits for it, provided that it exists

    # -- making runs -----------------------------------------------------------------------------

    def add(self, run: Run, log: Sequence[str], wall: float, boot: float) -> None:
        """A run made by hand, by an action or as a rerun: bound, in state scheduled, with times."""
        self._put(run)
        self.outbox.append(Save(run))
        self._note_schedule(run)
        for line in log:
            self._note(run, run.timestamp, line)
        self._owe(run)
        self._touch(run, None)
        self._watch(run)
        if run.times["schedule"] <= wall:
            self._due(run, wall, boot)
        else:
            self._alarms.arm(run.run_id, Alarm.DUE, run.times["schedule"])

    def add_failed(self, run: Run, message: str, log: Sequence[str], wall: float) -> None:
        """A run that could not be bound: new -> error, with the message as its output."""
        self._put(run)
        for line in log:
            self._note(run, wall, line)
        self.outbox.append(Output(run.run_id, message.encode("utf-8", "replace")))
        self._move(run, State.ERROR, wall, f"error: {message}")

    def restore(self, runs: Iterable[Run], wall: float, boot: float) -> None:
        """Unfinished runs of an earlier process, all at once. Waiting ones are judged after `restored`."""
        self._held = True
        runs = list(runs)
        for run in runs:
            self._put(run)
        for run in runs:
            try:
                self._restore(run, wall, boot)
            except (ApsisError, LookupError, TypeError, ValueError) as error:
                self._move(run, State.ERROR, wall, f"error: could not be restored: {error}", force=True)

    def _restore(self, run: Run, wall: float, boot: float) -> None:
        self._watch(run)
        for name, end in ((run.run_state or {}).get("timers") or {}).items():
            kind = Alarm[name]
            # Of RECONNECT: it was us who was away. WAITING is as the server's file says now.
            if kind not in (Alarm.RECONNECT, Alarm.WAITING):
                self._alarms.arm(run.run_id, kind, boot + max(0.0, end - wall))
        match run.state:
            case State.SCHEDULED:
                self._note(run, wall, "restored")
                self._alarms.arm(run.run_id, Alarm.DUE, run.times["schedule"])
            case State.WAITING:
                self._note(run, wall, "restored")
                conds = tuple(conditions.load(c) for c in run.conds)
                self._waits.enter(run.run_id, Wait(run.number, conds, since=run.times.get("waiting", wall)))
                self._restore_limit(run, wall, boot)
            case State.STARTING if doubt := (run.run_state or {}).get("doubt"):
                # Brought along from a server that did not say beforehand what it would send.
                self._move(run, State.ERROR, wall, f"error: {doubt}")
            case State.STARTING if not (run.run_state or {}).get("conn_id"):
                # Nothing can have been sent: the connection is stored before the first byte leaves.
                self._note(run, wall, "restored: not sent to an agent before the restart")
                self.outbox.append(Launch(run))
            case State.STARTING | State.RUNNING | State.STOPPING:
                self._note(run, wall, "reconnecting")
                if run.state is State.RUNNING:
                    self._watch_long(run, boot - (wall - run.times.get("running", wall)))
                if run.state is State.RUNNING and "stop" in run.times:
                    self._alarms.arm(run.run_id, Alarm.STOP, run.times["stop"])
                # Agents are let in later: that this one is away now is no news.
                run = self._arm(run, Alarm.RECONNECT, run.limits.reconnect_timeout, wall, boot)
                self.outbox.append(Connect(run))
            case State.NEW:
                self._move(run, State.ERROR, wall, "error: the server stopped before it was scheduled")

    def _restore_limit(self, run: Run, wall: float, boot: float) -> None:
        limit = self._settings.max_waiting
        if limit is not None:
            stored = ((run.run_state or {}).get("timers") or {}).get(Alarm.WAITING.name)
            end = run.times.get("waiting", wall) + limit if stored is None else stored
            self._alarms.arm(run.run_id, Alarm.WAITING, boot + max(0.0, end - wall))

    def restored(self) -> None:
        """Expected runs have been made: waiting runs may be judged."""
        self._held = False

    def position(self) -> tuple[float, frozenset[str]]:
        """From where occurrences are made anew, and the identities of those that are not made again."""
        return self.clock, frozenset(self._claimed)

    def failures(self) -> list[str]:
        """What went wrong in schedules since the last call, for the log."""
        found, self._cursors.failures = self._cursors.failures, []
        return found

    @property
    def binding(self) -> bool:
        """Some occurrences are being bound."""
        return bool(self._binding)

    def due(self) -> float | None:
        """The wall instant at which more expected runs are to be made."""
        return self._cursors.due()

    def discard(self, run_id: str) -> None:
        """The run's row was refused: it was made before, by an earlier process. It never was here."""
        run = self.runs.get(run_id)
        if run is not None:
            self._waits.leave(run_id)
            if run.state in OCCUPYING:
                self._touch(run.but(state=State.SKIPPED), run.state)
            self._remove(run_id)
            self._waits.touch(ended_key(run.key, run.state))

    # -- what alarms mean ------------------------------------------------------------------------

    def _ring(self, run_id: str, kind: Alarm, when: float, wall: float, boot: float) -> None:
        run = self.runs.get(run_id)
        if run is None:
            return
        match kind:
            case Alarm.DUE if run.state is State.SCHEDULED:
                self._due(run, wall, boot)
            case Alarm.STOP if run.state is State.RUNNING:
                self._stop(run, wall, boot)
            case Alarm.WAITING if run.state is State.WAITING:
                self._time_is_up(run_id, wall, boot)
            case Alarm.CHECK if run.state is State.WAITING:
                self._check_again(run, wall, boot)
            case Alarm.START if run.state is State.STARTING:
                group = (run.program or {}).get("group_id", "default")
                self._move(
                    run, State.ERROR, wall, f"error: start failed: no connected agent in group: {group}"
                )
            case Alarm.TIMEOUT if run.state is State.RUNNING:
                self._time_out(run, wall, boot)
            case Alarm.GRACE if run.state in (State.RUNNING, State.STOPPING):
                self._signal(run, SIGKILL, wall, stop=True)
            case Alarm.RECONNECT if run.state in (State.STARTING, State.RUNNING, State.STOPPING):
                conn_id = (run.run_state or {}).get("conn_id")
                told = ": may have started" if run.state is State.STARTING else ""
                self._move(
                    run,
                    State.ERROR,
                    wall,
                    f"error: procstar: agent reconnect timeout: conn_id {conn_id}{told}",
                )
                self.outbox.append(Forget(run))
            case Alarm.WAKE:
                self.outbox.append(Wake(run))
            case Alarm.LATE if not run.expected and not run.times.get("starting", wall + 1) <= when:
                self._raise(run, "late", wall, f"has not begun by {stamp(when)}")
            case Alarm.MISSED if not run.expected:
                self._raise(run, "missed", wall, f"has not ended by {stamp(when)}")
            case Alarm.LONG if run.state is State.RUNNING:
                self._raise(
                    run, "long", wall, f"has been running for more than {run.meta['expect']['long']:g} s"
                )

    def _due(self, run: Run, wall: float, boot: float) -> None:
        run = self._claim(run)
        late = wall - run.times["schedule"]
        if self.down is not None and self.down[0] <= run.times["schedule"] < self.down[1]:
            since, until = map(stamp, self.down)
            self._note(run, wall, f"{late:.0f} s late: the server was down from {since} to {until}")
        if run.occurrence and self._settings.max_age is not None and late > self._settings.max_age:
            text = f"skipped: missed: due {late:.0f} s ago, schedule.max_age is {self._settings.max_age:g} s"
            self._move(run, State.SKIPPED, wall, text)
        elif run.program is None:  # an expected run that could not be bound
            message = str(run.meta.get("unbound", "not bound"))
            self.outbox.append(Output(run.run_id, message.encode("utf-8", "replace")))
            self._move(run, State.ERROR, wall, f"error: {message}")
        elif not run.conds:
            self._begin(run, wall, boot)
        else:
            self._wait(run, wall, boot)

    def _wait(self, run: Run, wall: float, boot: float) -> None:
        try:
            conds = tuple(conditions.load(c) for c in run.conds)
        except (ApsisError, LookupError, TypeError, ValueError) as error:  # as another release stored them
            self._move(run, State.ERROR, wall, f"error: a condition can't be read: {error}")
            return
        run = self._move(run, State.WAITING, wall)
        self._note(run, wall, f"waiting until: {run.conds[0].get('str', '')}")
        self._waits.enter(run.run_id, Wait(run.number, conds, since=wall))
        self._arm(run, Alarm.WAITING, self._settings.max_waiting, wall, boot)
        if not self._held:
            self._judge(run.run_id, wall, boot)

    def _begin(self, run: Run, wall: float, boot: float, message: str | None = None) -> None:
        run = self._move(run, State.STARTING, wall, message)
        run = self._arm(run, Alarm.START, run.limits.start_timeout, wall, boot)
        self.outbox.append(Launch(run))

    # -- waiting ---------------------------------------------------------------------------------

    def _judge(self, run_id: str, wall: float, boot: float, last: bool = False) -> None:
        """Look at a waiting run's conditions in order; start it, move it, or file it again.

        `last`: its time to wait is over, so what does not hold now is an error.
        """
        run = self.runs[run_id]
        wait, keys = self._waits.take(run_id)
        verdict, index = self._verdict(run, wait, wall)
        if verdict.holds:
            self._waits.leave(run_id)
            self._begin(run, wall, boot)
        elif verdict.move is not None:
            self._waits.leave(run_id)
            text = f"error: {verdict.reason}" if verdict.move is State.ERROR else verdict.reason
            self._move(run, verdict.move, wall, text, force=True)
        elif last or (wait.over and verdict.lookup is None and index not in wait.asked):
            self._waits.leave(run_id)
            text = run.conds[index].get("str", "")
            limit = self._settings.max_waiting or 0.0
            self._move(run, State.ERROR, wall, f"error: waiting for {text}: timeout after {limit:g} s")
        else:
            if wait.blocked != index:
                wait.since = wall
            wait.blocked, wait.reason = index, verdict.reason
            self._waits.file(run_id, verdict.keys)
            if verdict.lookup is not None and self._outcomes.ask(verdict.lookup):
                self.outbox.append(Lookup(verdict.lookup))
        self._waits.passed(keys, self._waits.get(run_id))

    def _time_is_up(self, run_id: str, wall: float, boot: float) -> None:
        """waiting.max_time is over. An answer that is under way, as after a restart, may still come."""
        wait = self._waits.get(run_id)
        if wait is None:
            return
        if self._held or self._braked:
            self._alarms.arm(run_id, Alarm.WAITING, boot + HELD)
        elif wait.over:
            self._judge(run_id, wall, boot, last=True)
        else:
            wait.over = True
            wait.answers = {i: v for i, v in wait.answers.items() if v.holds}
            self._alarms.arm(run_id, Alarm.WAITING, boot + LAST_WORD)
            self._judge(run_id, wall, boot)

    # -- conditions of users' own ------------------------------------------------------------------

    def answer(
        self, run_id: str, index: int, verdict: Verdict, wall: float, boot: float, output: str | None = None
    ) -> None:
        """The answer to a Check. `output`: a traceback to store with the error that it makes."""
        run, wait = self.runs.get(run_id), self._waits.get(run_id)
        if run is None or wait is None or index not in wait.asked:
            return
        wait.asked.discard(index)
        wait.answers[index] = verdict
        cond = wait.conds[index]
        assert isinstance(cond, BoundOwn)
        if output is not None:
            self.outbox.append(Output(run_id, output.encode("utf-8", "replace"), "traceback", "traceback"))
        if not (verdict.holds and cond.monotonic) and self._alarms.armed(run_id, Alarm.CHECK) is None:
            self._alarms.arm(run_id, Alarm.CHECK, boot + cond.interval)
        self._waits.wake(run_id)

    def _check_again(self, run: Run, wall: float, boot: float) -> None:
        """Answers that may have changed are too old."""
        wait = self._waits.get(run.run_id)
        if wait is None:
            return
        conds = wait.conds
        if self._braked:
            self._alarms.arm(run.run_id, Alarm.CHECK, boot + HELD)
            return
        if wait.asked:
            # Those that came stay good until the last has: or two slow ones would never hold at once.
            slowest = max(c.interval for c in conds if isinstance(c, BoundOwn))
            self._alarms.arm(run.run_id, Alarm.CHECK, boot + slowest)
            return
        wait.answers = {i: v for i, v in wait.answers.items() if v.holds and conds[i].monotonic}
        self._judge(run.run_id, wall, boot)

    def _asked(self, run: Run, wait: Wait, index: int, cond: BoundOwn) -> Verdict:
        verdict = wait.answers.get(index)
        if verdict is not None:
            return verdict
        if index not in wait.asked:
            wait.asked.add(index)
            self.outbox.append(Check(run, index))
        return cond.judge(run, self)

    def _verdict(self, run: Run, wait: Wait, wall: float) -> tuple[Verdict, int]:
        for index in range(wait.at, len(wait.conds)):
            verdict = self._ask(run, wait, index)
            if not verdict.holds:
                return verdict, index
            wait.at = index + 1
            if wait.at < len(wait.conds):
                self._note(run, wall, f"waiting until: {run.conds[wait.at].get('str', '')}")
        # What held before may not hold now, save for monotonic ones; nobody comes between this and the start.
        for index, cond in enumerate(wait.conds[:-1]):
            if not cond.monotonic:
                verdict = self._ask(run, wait, index)
                if not verdict.holds:
                    return verdict, index
        if wait.conds and not wait.conds[-1].monotonic:
            index = len(wait.conds) - 1
            return self._ask(run, wait, index), index
        return conditions.HOLDS, 0

    def _ask(self, run: Run, wait: Wait, index: int) -> Verdict:
        cond = wait.conds[index]
        if isinstance(cond, BoundOwn):
            return self._asked(run, wait, index, cond)
        verdict = cond.judge(run, self)
        if verdict.holds and isinstance(cond, BoundMaxRunning):
            # First come, first served: a free slot belongs to the head of the queue.
            key = slots_key((cond.job_id, canonical(cond.args)))
            head = self._waits.head(key)
            if head is not None and int(head[1:]) < run.number:
                self._waits.wake(head)
                return Verdict(False, f"{head} is first in the queue", (key,))
        return verdict

    def waiting(self, run_id: str) -> list[dict[str, Any]]:
        """Why a run waits: its conditions in order, what is known of each, and since when."""
        run, wait = self.runs.get(run_id), self._waits.get(run_id)
        if run is None or wait is None:
            return []
        rows: list[dict[str, Any]] = []
        for index, cond in enumerate(run.conds):
            row: dict[str, Any] = {"condition": cond.get("str", ""), "holds": index < wait.at}
            if index == wait.blocked:
                row |= {"holds": False, "reason": self._reason(run, wait), "since": wait.since}
                row["runs"] = self._concerned(wait.conds[index])
            rows.append(row)
        return rows

    def _reason(self, run: Run, wait: Wait) -> str:
        """As of now: much may have changed since the run was judged, for which it was not to be woken."""
        cond = wait.conds[wait.blocked]
        verdict = conditions.HOLDS if isinstance(cond, BoundOwn) else cond.judge(run, self)
        return verdict.reason or wait.reason

    def _concerned(self, cond: conditions.Bound) -> list[dict[str, str]]:
        about = conditions.about(cond)
        if about is None:
            return []
        key, states = about
        mine = (r for r in self.live(key) if r.state in states)
        return [{"run_id": r.run_id, "state": r.state.value} for r in islice(mine, NAMED)]

    def outcome(self, key: RunKey, states: Iterable[State]) -> None:
        """The answer to a Lookup."""
        self._outcomes.answer(key, states)
        for state in State:
            self._waits.touch(ended_key(key, state))

    def retired(self, job_ids: Collection[str]) -> None:
        """Finished runs of these jobs have left the database."""
        self._outcomes.forget_jobs(job_ids)

    # -- View: what conditions may know ------------------------------------------------------------

    def live(self, key: RunKey) -> Iterable[Run]:
        return self._by_key.get(key, {}).values()

    def occupied(self, key: RunKey) -> int:
        return self._occupied[key]

    def ended(self, key: RunKey) -> frozenset[State] | None:
        return self._outcomes.get(key)

    def planned(self, key: RunKey) -> bool:
        job = self.jobs.get(key[0])
        if job is None:
            return False
        args = next((r.args for r in self.live(key)), None) or parse_args(key[1])
        made = (a for _, cursor, taken in self._binding.values() if cursor.job is job for _, a, _ in taken)
        return any(a == args for a in made) or self._cursors.plans(job.job_id, args)

    # -- what programs report ----------------------------------------------------------------------

    def report(self, run_id: str, report: Report, wall: float, boot: float) -> None:
        """A program's word on its run. Ignored where the run has ended: its first end is its end."""
        run = self.runs.get(run_id)
        if run is None or run.state in FINISHED:
            return
        match report:
            case Launched(run_state, meta) if run.state is State.STARTING:
                self._store_state(run.but(meta={**run.meta, "program": meta}), run_state)
            case Placed(run_state) if run.state is State.STARTING:
                self._alarms.disarm(run_id, (Alarm.START,))
                run = self._store_state(run, run_state)
                self.outbox.append(Send(run))
            case Unplaced(reason) if run.state is State.STARTING:
                self._alarms.disarm(run_id, (Alarm.RECONNECT,))
                rest = {k: v for k, v in (run.run_state or {}).items() if k != "conn_id"}
                run = self._store_state(run, rest)
                run = self._arm(run, Alarm.START, run.limits.start_timeout, wall, boot)
                self._note(run, wall, reason)
                self.outbox.append(Launch(run))
            case Running() if run.state is State.STARTING:
                self._run(run, report, wall, boot)
            case Running(wake=wake) if wake is not None:  # reconnected after a restart
                self._alarms.arm(run_id, Alarm.WAKE, boot + wake)
            case Update(meta):
                self._put(run.but(meta={**run.meta, "program": meta}))
                self.outbox.append(Save(self.runs[run_id], transition=False))
            case Finished():
                self._finish(run, report, wall)
            case Lost(conn_id) if conn_id == (run.run_state or {}).get("conn_id"):
                if self._alarms.armed(run_id, Alarm.RECONNECT) is None:
                    self._note(run, wall, f"agent {conn_id} is away")
                    self._arm(run, Alarm.RECONNECT, run.limits.reconnect_timeout, wall, boot)
            case Back(conn_id):
                if self._alarms.armed(run_id, Alarm.RECONNECT) is not None:
                    self._note(run, wall, f"agent {conn_id} is back")
                    self._alarms.disarm(run_id, (Alarm.RECONNECT,))
            case Remark(message):
                self._note(run, wall, message)
            case _:
                pass  # e.g. a second Running

    def _run(self, run: Run, report: Running, wall: float, boot: float) -> None:
        asked = (run.run_state or {}).get("stop_asked")
        meta = run.meta if report.meta is None else {**run.meta, "program": report.meta}
        run_state = self._keep(run, report.run_state or run.run_state)
        run = self._move(run, State.RUNNING, wall, meta=meta, run_state=run_state)
        self._alarms.disarm(run.run_id, (Alarm.START, Alarm.RECONNECT))
        run = self._arm(run, Alarm.TIMEOUT, run.limits.timeout, wall, boot)
        self._watch_long(run, boot)
        if report.wake is not None:
            self._alarms.arm(run.run_id, Alarm.WAKE, boot + report.wake)
        stop = run.times.get("stop")
        if asked or (stop is not None and stop <= wall):
            self._stop(run, wall, boot)
        elif stop is not None:
            self._alarms.arm(run.run_id, Alarm.STOP, stop)

    def _finish(self, run: Run, report: Finished, wall: float) -> None:
        state = report.state
        if run.state is State.STARTING and state is not State.ERROR:
            state = State.ERROR  # it never ran
        meta = run.meta if report.meta is None else {**run.meta, "program": report.meta}
        if report.output is not None:
            self.outbox.append(Output(run.run_id, report.output))
        text = f"{state}: {report.message}" if report.message else state.value
        ended = self._move(run, state, wall, text, meta=meta)
        self.outbox.append(Forget(ended.but(run_state=run.run_state)))

    def _time_out(self, run: Run, wall: float, boot: float) -> None:
        limits = run.limits
        seconds = limits.timeout or 0.0
        run = self._store_state(run, {**(run.run_state or {}), "timed_out": seconds}, save=False)
        self._note(run, wall, f"timeout after {seconds:g} s")
        run = self._signal(run, limits.timeout_signal, wall, stop=True)
        self._arm(run, Alarm.GRACE, limits.grace, wall, boot)

    def _stop(self, run: Run, wall: float, boot: float) -> Run:
        run = self._move(run, State.STOPPING, wall)
        # A timeout that comes up during a stop is void: the grace period ends the run sooner or later.
        self._alarms.disarm(run.run_id, (Alarm.STOP, Alarm.TIMEOUT))
        run = self._signal(run, run.limits.stop_signal, wall, stop=True)
        return self._arm(run, Alarm.GRACE, run.limits.grace, wall, boot)

    def _signal(self, run: Run, signum: int, wall: float, stop: bool) -> Run:
        name = signal_name(signum)
        sent = [*((run.run_state or {}).get("signals") or ()), name] if stop else None
        if sent is not None:
            run = self._store_state(run, {**(run.run_state or {}), "signals": sent})
        self._note(run, wall, f"sending {name}")
        self.outbox.append(Signal(run, signum, stop))
        return run

    # -- what is expected of runs ------------------------------------------------------------------

    def _watch(self, run: Run) -> None:
        expect = run.meta.get("expect")
        if expect:
            raised = run.meta.get("alarms", ())
            for kind, name in ((Alarm.LATE, "late"), (Alarm.MISSED, "missed")):
                if name in expect and name not in raised:
                    self._alarms.arm(run.run_id, kind, expect[name])

    def _watch_long(self, run: Run, since: float) -> None:
        """`since`: the boot instant at which it began to run."""
        expect = run.meta.get("expect")
        if expect and "long" in expect and "long" not in run.meta.get("alarms", ()):
            self._alarms.arm(run.run_id, Alarm.LONG, since + expect["long"])

    def _raise(self, run: Run, alarm: str, wall: float, message: str) -> None:
        """Once in the life of a run."""
        raised = [*run.meta.get("alarms", ()), alarm]
        reasons = {alarm: message, **run.meta.get("reasons", {})}
        run = run.but(meta={**run.meta, "alarms": raised, "reasons": reasons}, rev=run.rev + 1)
        self._put(run)
        self.outbox.append(Save(run))
        self._note(run, wall, f"{alarm}: {message}")
        for index, action in enumerate((*run.actions, *self._settings.actions)):
            if actions.owed_by_alarm(action, alarm, run.state):
                self.outbox.append(Owe(f"{run.run_id}/{index}/{alarm}", run, action))
        self.outbox.append(Raised(run, alarm))

    # -- operations --------------------------------------------------------------------------------

    def skip(self, run_id: str, wall: float) -> None:
        run = self._operand("skip", run_id)
        self._move(self._claim(run), State.SKIPPED, wall)

    def start(self, run_id: str, wall: float, boot: float) -> None:
        run = self._operand("start", run_id)
        if run.state is State.SCHEDULED:
            run = self._claim(run).but(expected=False)
            self._note(run, wall, "scheduled run started by override")
            self._due(run, wall, boot)
        else:
            self._note(run, wall, "waiting run started by override")
            self._begin(run, wall, boot)

    def stop(self, run_id: str, wall: float, boot: float) -> None:
        run = self._operand("stop", run_id)
        if run.state is State.RUNNING:
            self._stop(run, wall, boot)
        elif run.state is State.STARTING:
            if (run.run_state or {}).get("conn_id"):
                # It may be running by now: it is stopped as soon as the agent says so.
                self._store_state(run, {**(run.run_state or {}), "stop_asked": True})
                self._note(run, wall, "to be stopped as soon as it runs")
            else:
                self._move(run, State.SKIPPED, wall, "skipped: stopped before it was sent to an agent")
                self.outbox.append(Forget(run))

    def signal(self, run_id: str, signum: int, wall: float) -> None:
        run = self._operand("signal", run_id)
        self._signal(run, signum, wall, stop=False)

    def mark(self, run: Run, state: State, wall: float) -> None:
        """`run`: as stored, if it is not in memory any more."""
        run = self.runs.get(run.run_id, run)
        said = refusal("mark", run, state)
        if said is not None:
            raise RunError(said)
        self._outcomes.forget(run.key)
        self._move(run, state, wall, f"marked as {state}", force=True)

    def _operand(self, verb: str, run_id: str) -> Run:
        run = self.runs.get(run_id)
        if run is None:
            raise KeyError(run_id)
        said = refusal(verb, run)
        if said is not None:
            raise RunError(said)
        return run

    # -- the record --------------------------------------------------------------------------------

    def _move(
        self,
        run: Run,
        state: State,
        wall: float,
        message: str | None = None,
        force: bool = False,
        meta: Json | None = None,
        run_state: Json | None = None,
    ) -> Run:
        """A transition: the record, its row, its log line, what it owes, and whom it may wake.

        `meta`, `run_state`: new ones, unless they stay as they are.
        """
        old = run.state
        if state not in TRANSITIONS[old] and not force:
            raise RunError(f"cannot transition {run.run_id} from {old} to {state}")
        meta = run.meta if meta is None else meta
        run_state = run.run_state if run_state is None else run_state
        if state in FINISHED:
            self._alarms.disarm(run.run_id)
            self._waits.leave(run.run_id)
            if "running" in run.times and old not in FINISHED:
                meta = {**meta, "elapsed": round(max(0.0, wall - run.times["running"]), 6)}
            run_state = None
        elif old is State.WAITING:
            self._alarms.disarm(run.run_id, (Alarm.WAITING,))
            self._waits.leave(run.run_id)
        run = run.but(
            state=state,
            timestamp=wall,
            times={**run.times, state.value: wall},
            meta=meta,
            run_state=run_state,
            rev=run.rev + 1,
            expected=False,
        )
        self._put(run)
        self.outbox.append(Save(run))
        self._note(run, wall, message or state.value)
        self._owe(run)
        self._touch(run, old)
        return run

    def _owe(self, run: Run) -> None:
        for index, action in enumerate((*run.actions, *self._settings.actions)):
            if actions.owed(action, run.state):
                self.outbox.append(Owe(f"{run.run_id}/{index}/{run.rev}", run, action))

    def _touch(self, run: Run, old: State | None) -> None:
        key, state = self._keys[run.run_id], run.state
        if self._waits:
            self._waits.touch(ended_key(key, state))
        if state in FINISHED:
            self._outcomes.ended(key, state)
        before, after = old in OCCUPYING, state in OCCUPYING
        if before != after:
            self._occupied[key] += 1 if after else -1
            if not self._occupied[key]:
                del self._occupied[key]
            if before and self._waits:
                self._waits.touch(slots_key(key))

    def _put(self, run: Run) -> None:
        run_id = run.run_id
        if run_id in self.runs:
            self._by_key[self._keys[run_id]][run_id] = run
        else:
            key = self._keys[run_id] = run.key
            self._by_key.setdefault(key, {})[run_id] = run
            if run.state in OCCUPYING:  # restored
                self._occupied[key] += 1
        self.runs[run_id] = run

    def _remove(self, run_id: str) -> None:
        self._alarms.disarm(run_id)
        self.leaving.pop(run_id, None)
        del self.runs[run_id]
        key = self._keys.pop(run_id)
        mine = self._by_key[key]
        del mine[run_id]
        if not mine:
            del self._by_key[key]

    def evict(self, committed: Iterable[Run]) -> None:
        """Finished runs whose rows are on disk. One that was marked since stays for its newer row."""
        for run in committed:
            held = self.runs.get(run.run_id)
            if held is not None and held.rev == run.rev and held.state in FINISHED:
                self._remove(run.run_id)

    def fail(self, run_id: str, message: str, wall: float, strip: bool = False) -> None:
        """An error of ours: whatever its state, the run ends in error. `strip`: without what its program
        said of it, which the database refuses."""
        run = self.runs.get(run_id)
        if run is not None and run.state not in FINISHED:
            run = self._claim(run)
            if run.state in OCCUPYING:
                self.outbox.append(Forget(run))
            if strip:
                run = run.but(meta={k: v for k, v in run.meta.items() if k != "program"})
            self.outbox.append(Output(run_id, message.encode("utf-8", "replace"), "traceback", "traceback"))
            last = message.strip().splitlines()[-1] if message.strip() else "internal error"
            self._move(run, State.ERROR, wall, f"error: {last}", force=True)

    def _store_state(self, run: Run, run_state: Json, save: bool = True) -> Run:
        run = run.but(run_state=self._keep(run, run_state))
        self._put(run)
        if save:
            self.outbox.append(Save(run, transition=False))
        return run

    @staticmethod
    def _keep(run: Run, run_state: Json | None) -> Json:
        """A program's new run_state, with what the kernel keeps in it."""
        if not run.run_state:
            return run_state or {}
        return {**{k: v for k, v in run.run_state.items() if k in OWN}, **(run_state or {})}

    def _arm(self, run: Run, kind: Alarm, seconds: float | None, wall: float, boot: float) -> Run:
        """Arm an alarm for a duration, and store by the wall clock when it ends, for a restart."""
        if seconds is None or self.runs.get(run.run_id) is None:
            return run
        run = self.runs[run.run_id]
        self._alarms.arm(run.run_id, kind, boot + seconds)
        timers = (run.run_state or {}).get("timers") or {}
        live = {n: end for n, end in timers.items() if self._alarms.armed(run.run_id, Alarm[n]) is not None}
        return self._store_state(
            run, {**(run.run_state or {}), "timers": {**live, kind.name: wall + seconds}}
        )

    def _note_schedule(self, run: Run) -> None:
        at = run.timestamp
        schedule = run.times["schedule"]
        text = "now" if schedule <= at and not run.occurrence else stamp(schedule)
        self._note(run, at, f"scheduled: {text}")
        if "stop" in run.times:
            self._note(run, at, f"stop time: {stamp(run.times['stop'])}")
        note = self._notes.pop(run.run_id, None)
        if note:
            self._note(run, at, note)

    def _note(self, run: Run, wall: float, message: str) -> None:
        self.outbox.append(Note(run.run_id, wall, message))

    def counts(self) -> dict[str, int]:
        """How much there is of everything, for the stats."""
        states = Counter(r.state for r in self.runs.values())
        return {
            "expected": sum(len(m) for m in self.expected.values()),
            "scheduled": states[State.SCHEDULED] - sum(len(m) for m in self.expected.values()),
            "active": sum(states[s] for s in ACTIVE),
            "waiting": states[State.WAITING],
            "starting": states[State.STARTING],
            "running": states[State.RUNNING],
            "stopping": states[State.STOPPING],
            "alarms": len(self._alarms),
            "heap": self._alarms.heaped,
        }
