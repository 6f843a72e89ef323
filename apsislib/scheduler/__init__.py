"""THE KERNEL: what happens to runs, decided without a lock, thread, clock or I/O of its own.

Every method is given the instants it needs (`wall` since the epoch, `boot` on CLOCK_BOOTTIME) and
appends what it decided to `outbox`; the driver, which guards the kernel with the one lock, hands
the outbox to the writer in the same hold. Nothing acts before the writer has committed.

The life of a run is told by the rooms, in this order:

    ledger       the runs in memory, and the one way to change one
    alarms       what wakes a run, and when
    waits        who waits for what, and how runs ended
    cursors      where each schedule has got to
    ahead        from schedules to scheduled runs; the stored clock
    waiting      from waiting on: conditions
    executing    from starting to the end: programs, stops, timeouts
    lateness     what is expected of runs, and who does not keep to it
    gaps         when nothing could be started, and what of it is made up for
    restoring    at start: runs of an earlier process

and the Scheduler below is the door to them: the rest of the server sees nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from apsislib.conditions import OCCUPYING, Verdict
from apsislib.errors import RunError
from apsislib.operations import refusal
from apsislib.runs import Alarm, Effect, Forget, Job, Json, Run, Wake, adrift
from apsislib.scheduler import lateness, restoring
from apsislib.scheduler.ahead import Ahead
from apsislib.scheduler.executing import Executing, given_up
from apsislib.scheduler.gaps import SHORT, Gaps
from apsislib.scheduler.ledger import Ledger, Settings
from apsislib.scheduler.waiting import Waiting
from apsislib.states import FINISHED, SCHEDULED, State

__all__ = ["SHORT", "Scheduler", "Settings"]

DUE, WAKE = Alarm.DUE, Alarm.WAKE


class Scheduler:
    """The kernel, as the driver sees it. It is also the View that conditions are given."""

    def __init__(self, settings: Settings, clock: float, claimed: Iterable[str] = ()) -> None:
        """`clock`: everything due before it was claimed by an earlier process.
        `claimed`: identities of stored runs that were made for occurrences at or after `clock`."""
        self._ledger = ledger = Ledger(settings)
        self._alarms = ledger.alarms
        self._ahead = Ahead(ledger, clock, claimed)
        self._gaps = Gaps(ledger, self._ahead)
        self._executing = Executing(ledger, self._gaps)
        self._waiting = Waiting(ledger, self, self._executing.begin)
        self._braked_since: float | None = None  # wall
        # Ended runs were changed so often: who reads one without the lock sees that somebody came between.
        self.amended = 0
        self.runs, self.expected, self.leaving = ledger.runs, ledger.expected, ledger.leaving
        self.live, self.occupied, self.ended = ledger.live, ledger.occupied, ledger.ended
        self.planned, self.expect = self._ahead.planned, self._ahead.expect
        self.report = self._executing.report
        self.evict, self.counts = ledger.evict, ledger.counts
        self.position, self.failures = self._ahead.position, self._ahead.cursors.take_failures
        self.outcome, self.waiting = self._waiting.outcome, self._waiting.rows

    @property
    def outbox(self) -> list[Effect]:
        """What was decided since the driver took the last list away and put an empty one here."""
        return self._ledger.outbox

    @outbox.setter
    def outbox(self, effects: list[Effect]) -> None:
        self._ledger.outbox = effects

    # -- time ------------------------------------------------------------------------------------

    def tick(self, wall: float, boot: float, limit: int = 100, brake: bool = False) -> None:
        """Do what is due, at most about `limit` steps of it, so that no hold of the lock is long.

        `brake`: the disk is failing. Nothing new is started; what runs still has its ends and timeouts.
        """
        ledger, alarms = self._ledger, self._alarms
        ledger.braked = brake
        if not brake and self._braked_since is not None:
            self.lost(self._braked_since, wall, "the database could not be written")
            self._braked_since = None
        if brake:
            self._braked_since = wall if self._braked_since is None else self._braked_since
            for run_id, kind, when in islice(alarms.due(wall, boot, only_ends=True), limit):
                self._ring(run_id, kind, when, wall, boot)
            return
        limit -= self._ahead.take(wall, limit)
        if limit > 0:
            for run_id, kind, when in alarms.due(wall, boot):
                self._ring(run_id, kind, when, wall, boot)
                limit -= 1
                if limit <= 0:
                    break
        waits = ledger.waits
        while limit > 0 and not ledger.held and (ready := waits.next_ready()) is not None:
            limit -= 1
            self._waiting.judge(ready, wall, boot)
        self._ahead.move_clock(wall)

    def next_wake(self) -> tuple[float | None, float | None]:
        """The wall and the boot instant at which `tick` has work; the wall instant 0.0 means now."""
        if self._ledger.waits.ready and not self._ledger.held:
            return 0.0, None
        wall, boot = self._alarms.next()
        due = self._ahead.cursors.due()
        return (due if wall is None or (due is not None and due < wall) else wall), boot

    def next_due(self) -> float | None:
        """The wall instant of the next schedule or stop time of a run that is there."""
        return self._alarms.next_wall()

    def lost(self, start: float, end: float, reason: str) -> None:
        """Between these wall instants nothing was started that was due: `reason` is a sentence."""
        self._gaps.add(start, end, reason)

    def stepped(self, delta: float, wall: float) -> None:
        """The wall clock was set by `delta` seconds: ends of durations, stored by it, move along.

        What has been going on since before is not longer or shorter by that.
        """
        self._gaps.stepped(delta)
        for run in list(self.runs.values()):
            state = dict(run.run_state or {})
            if timers := state.get("timers"):
                state["timers"] = {name: end + delta for name, end in timers.items()}
            if run.state in (State.RUNNING, State.STOPPING):
                state["stepped"] = state.get("stepped", 0.0) + delta
            if state != (run.run_state or {}):
                self._ledger.alter(run.but(run_state=state))

    def _ring(self, run_id: str, kind: Alarm, when: float, wall: float, boot: float) -> None:
        run = self.runs.get(run_id)
        if run is None:
            return
        state = run.state
        if kind is DUE:  # these two first: no others come as often
            if state is SCHEDULED:
                self._due(run, wall, boot)
            return
        if kind is WAKE:
            self._ledger.outbox.append(Wake(run))
            return
        match kind:
            case Alarm.STOP if state is State.RUNNING:
                self._executing.stop(run, wall, boot)
            case Alarm.WAITING if state is State.WAITING:
                self._waiting.time_is_up(run_id, wall, boot)
            case Alarm.CHECK if state is State.WAITING:
                self._waiting.check_again(run_id, wall, boot)
            case Alarm.START if state is State.STARTING:
                self._executing.start_timed_out(run, wall)
            case Alarm.TIMEOUT if state is State.RUNNING:
                self._executing.time_out(run, wall, boot)
            case Alarm.GRACE if state in (State.RUNNING, State.STOPPING):
                self._executing.kill(run, wall)
            case Alarm.RECONNECT if state in OCCUPYING:
                self._executing.reconnect_timed_out(run, wall)
            case Alarm.LATE | Alarm.MISSED | Alarm.LONG:
                lateness.ring(self._ledger, run, kind, when, wall)

    def _due(self, run: Run, wall: float, boot: float) -> None:
        """Its schedule time has come, or somebody started it by hand."""
        cursor = self._ahead.cursor_of(run)
        found = self._gaps.sift(self._ahead.claim(run), cursor, wall)
        if found is None:
            return
        run = found
        if run.program is None:  # an expected run that could not be bound
            message = str(run.meta.get("unbound", "not bound"))
            self._ledger.output(run, message)
            self._ledger.move(run, State.ERROR, wall, f"error: {message}")
        elif not run.conds:
            self._executing.begin(run, wall, boot)
        else:
            self._waiting.enter(run, wall, boot)

    # -- jobs ------------------------------------------------------------------------------------

    def set_jobs(self, jobs: Iterable[Job]) -> None:
        """The jobs at start, before the first tick: their schedules go on from the stored clock."""
        self._ahead.set_jobs(jobs)

    def change_jobs(
        self, removed: Iterable[str], changed: Iterable[Job], touched: Iterable[Job] = ()
    ) -> None:
        """After a reload. Expected runs of removed and changed jobs vanish and are made anew from the
        stored clock; those of `touched` jobs (metadata only) stay."""
        self._ahead.change_jobs(removed, changed, touched)

    @property
    def binding(self) -> bool:
        """Some occurrences are being bound."""
        return self._ahead.binding

    def due(self) -> float | None:
        """The wall instant at which more expected runs are to be made."""
        return self._ahead.cursors.due()

    # -- what hands answer -----------------------------------------------------------------------

    def answer(
        self, run_id: str, index: int, verdict: Verdict, wall: float, boot: float, output: str | None = None
    ) -> None:
        """The answer to a Check. `output`: a traceback to store with the error that it makes."""
        self._waiting.answer(run_id, index, verdict, boot, output)

    def offer(self, run: Run, state: State, message: str | None, program: Json | None, wall: float) -> None:
        """How a run that was given up really ended; `run` as stored, if it is not in memory any more."""
        self.amended += 1
        self._executing.offer(self.runs.get(run.run_id, run), state, message, program, wall)

    def retired(self, job_ids: Collection[str]) -> None:
        """Finished runs of these jobs have left the database."""
        self._ledger.outcomes.forget_jobs(job_ids)

    def discard(self, run_id: str) -> None:
        """The run's row was refused: it was made before, by an earlier process. It never was here."""
        run, ledger = self.runs.get(run_id), self._ledger
        if run is not None:
            ledger.waits.leave(run_id)
            if run.state in OCCUPYING:
                ledger.touch(run.but(state=State.SKIPPED), run.state)
            self._alarms.forget(run_id)
            ledger.remove(run_id)
            ledger.waits.touch(run.key, run.state)

    def fail(self, run_id: str, message: str, wall: float, strip: bool = False) -> None:
        """An error of ours: whatever its state, the run ends in error. `strip`: without what its program
        said of it, which the database refuses."""
        run = self.runs.get(run_id)
        if run is None or run.state in FINISHED:
            return
        run = self._ahead.claim(run)
        if run.state in OCCUPYING:
            run = run.but(meta=given_up(run))
            self._ledger.outbox.append(Forget(run, run.run_state))
        if strip:
            run = run.but(meta={k: v for k, v in run.meta.items() if k != "program"})
        self._ledger.output(run, message, "traceback")
        last = message.strip().splitlines()[-1] if message.strip() else "internal error"
        self._ledger.move(run, State.ERROR, wall, f"error: {last}", force=True)

    # -- making runs -----------------------------------------------------------------------------

    def add(self, run: Run, log: Sequence[str], wall: float, boot: float) -> None:
        """A run made by hand, by an action or as a rerun: bound, in state scheduled, with times."""
        ledger = self._ledger
        ledger.enter(run)
        ledger.alter(run, transition=True)
        self._ahead.note_schedule(run)
        for line in log:
            ledger.note(run, run.timestamp, line)
        ledger.owe(run)
        ledger.touch(run, None)
        lateness.watch(self._alarms, run)
        if run.times["schedule"] <= wall:
            self._due(run, wall, boot)
        else:
            self._alarms.arm(run.run_id, Alarm.DUE, run.times["schedule"])

    def add_failed(self, run: Run, message: str, log: Sequence[str], wall: float) -> None:
        """A run that could not be bound: new -> error, with the message as its output."""
        self._ledger.enter(run)
        for line in log:
            self._ledger.note(run, wall, line)
        self._ledger.output(run, message)
        self._ledger.move(run, State.ERROR, wall, f"error: {message}")

    def restore(self, runs: Iterable[Run], wall: float, boot: float) -> None:
        """Unfinished runs of an earlier process, all at once. Waiting ones are judged after `restored`."""
        self._ledger.held, self._ledger.restored = True, wall
        restoring.restore(self._ledger, self._waiting, self._gaps, runs, wall, boot)

    def restored(self) -> None:
        """Expected runs have been made: waiting runs may be judged."""
        self._ledger.held = False

    # -- what operators do -----------------------------------------------------------------------

    def skip(self, run_id: str, wall: float) -> None:
        run = self._operand("skip", run_id)
        self._ledger.move(self._ahead.claim(run), State.SKIPPED, wall)

    def start(self, run_id: str, wall: float, boot: float) -> None:
        run = self._operand("start", run_id)
        if run.state is State.SCHEDULED:
            run = self._ahead.claim(run).but(expected=False)
            self._ledger.note(run, wall, "scheduled run started by override")
            self._due(run, wall, boot)
        else:
            self._ledger.note(run, wall, "waiting run started by override")
            self._executing.begin(run, wall, boot)

    def stop(self, run_id: str, wall: float, boot: float) -> None:
        run = self._operand("stop", run_id)
        if run.state is State.RUNNING:
            self._executing.stop(run, wall, boot)
        elif run.state is State.STARTING:
            self._executing.stop_start(run, wall)
        elif run.state in FINISHED:
            self.stop_adrift(run, wall)

    def stop_adrift(self, run: Run, wall: float) -> None:
        """Have the program of a run stopped that was given up; `run` as for mark()."""
        run = self._adrift("stop", run)
        self.amended += 1
        self._executing.stop_adrift(run, wall)

    def signal(self, run_id: str, signum: int, wall: float) -> None:
        run = self._operand("signal", run_id)
        if run.state in FINISHED:
            self.signal_adrift(run, signum, wall)
        else:
            self._executing.signal(run, signum, wall, stop=False)

    def signal_adrift(self, run: Run, signum: int, wall: float) -> None:
        """Signal the program of a run that was given up; `run` as for mark()."""
        run = self._adrift("signal", run)
        self._executing.signal(run.but(run_state=adrift(run)), signum, wall, stop=False)

    def _adrift(self, verb: str, run: Run) -> Run:
        run = self.runs.get(run.run_id, run)
        said = refusal(verb, run)
        if said is not None:
            raise RunError(said)
        return run

    def mark(self, run: Run, state: State, wall: float) -> None:
        """`run`: as stored, if it is not in memory any more."""
        run = self.runs.get(run.run_id, run)
        said = refusal("mark", run, state)
        if said is not None:
            raise RunError(said)
        if run.run_id not in self.runs:
            self._ledger.enter(run)
        self.amended += 1
        self._ledger.outcomes.forget(run.key)
        self._ledger.move(run, state, wall, f"marked as {state}", force=True)

    def _operand(self, verb: str, run_id: str) -> Run:
        run = self.runs.get(run_id)
        if run is None:
            raise KeyError(run_id)
        said = refusal(verb, run)
        if said is not None:
            raise RunError(said)
        return run
