"""What is done after a commit: programs told, runs bound, actions carried out, subscribers told."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from apsislib import templates
from apsislib.driver.book import Book
from apsislib.driver.guard import Guard
from apsislib.driver.hands import Hands, saying
from apsislib.driver.making import Making, labels
from apsislib.driver.parts import Parts, Program
from apsislib.errors import ApsisError, Unavailable
from apsislib.feeds import Feed
from apsislib.metrics import Tally
from apsislib.runs import (
    Bind,
    Check,
    Connect,
    Drop,
    Effect,
    Expect,
    Forget,
    Launch,
    Lookup,
    Note,
    Output,
    Owe,
    Raised,
    Run,
    Save,
    Send,
    Settle,
    Signal,
    Wake,
    instance,
)
from apsislib.states import FINISHED, State
from apsislib.store import Deleted

log = logging.getLogger(__name__)

_CALLS = (Launch, Connect, Send, Signal, Wake, Forget)
_SHOWN = (Save, Note, Output, Expect, Drop)


class Acting:
    def __init__(
        self, guard: Guard, hands: Hands, book: Book, making: Making, feed: Feed, parts: Parts, host: Any
    ) -> None:
        self._guard = guard
        self._clock = guard.clock
        self._hands = hands
        self._book = book
        self._making = making
        self._feed = feed
        self._parts = parts
        self._host = host
        self.tally = Tally()
        self._bound: dict[str, Program] = {}  # apsis-program only
        self._overtaken: set[int] = set()  # ids of Signal effects already acted on; under the lock
        guard.braked = self._overtake_locked
        guard.overtake = self.overtake

    def committed(self, effects: Sequence[Any], grew: Sequence[Any]) -> None:
        """(apsis-writer) What was decided is on disk: act, then tell."""
        calls = [e for e in effects if isinstance(e, _CALLS)]
        saved = [e for e in effects if isinstance(e, Save)]
        for save in saved:
            self._guard.kernel.leaving.pop(save.run.run_id, None)
        ended = [save.run for save in saved if save.run.state in FINISHED]
        self.tally.saw(save.run for save in saved if save.transition)
        self.tally.heard((e.run.job_id, e.alarm) for e in effects if isinstance(e, Raised))
        hands = self._hands
        if calls or ended:
            hands.submit(hands.programs, self._call, calls, ended)
        for effect in effects:
            match effect:
                case Bind():
                    hands.insist(hands.binders, self._bind, effect)
                case Lookup(key):
                    hands.insist(hands.binders, self._look_up, key)
                case Owe():
                    self.hand_on(effect)
                case Check():
                    hands.submit(hands.outside.checkers, self._check, effect)
        gone = [run_id for e in effects if isinstance(e, Deleted) for run_id in e.run_ids]
        self._making.ended(ended)
        shown: list[Any] = [e for e in effects if isinstance(e, _SHOWN)]
        self._feed.publish([*shown, *(Drop(run_id) for run_id in gone), *grew])

    def unwritable(self, effect: Effect, error: Exception) -> None:
        """(apsis-writer) The database refuses this effect, for what it says: only its run suffers."""
        run_id = getattr(effect, "run_id", None) or getattr(getattr(effect, "run", None), "run_id", None)
        log.error("run %s could not be written: %s", run_id, error)
        if run_id is None:
            return
        message = f"could not be recorded: {error}"
        if isinstance(effect, Save) and "UNIQUE" in str(error):
            # It was made already, for this occurrence or action, by an earlier process: it never was.
            self._hands.submit(self._hands.programs, self._discard, run_id)
        else:
            # What it cannot be told with is left out, or its end would be refused as well.
            self._hands.submit(self._hands.programs, self._fail, run_id, message, isinstance(effect, Save))

    # -- programs ------------------------------------------------------------------------------------

    def _call(self, calls: Iterable[Effect], ended: Sequence[Run]) -> None:
        """(apsis-program) Tell programs what was decided; then let go of runs that have ended."""
        for effect in calls:
            if id(effect) in self._overtaken:
                self._overtaken.discard(id(effect))
                continue
            run: Run = effect.run  # type: ignore[union-attr]
            try:
                self._call_program(effect, run)
            except Exception:
                text = traceback.format_exc()
                log.error("program of run %s failed:\n%s", run.run_id, text)
                self._fail(run.run_id, text)
        if ended:
            with self._guard.hold() as kernel:
                kernel.evict(ended)

    def _call_program(self, effect: Effect, run: Run) -> None:
        program = self._bound.get(run.run_id)
        if program is None:
            program = self._parts.load_program(run.program or {})
            if run.state not in FINISHED:
                self._bound[run.run_id] = program
        match effect:
            case Launch():
                program.launch(run, self._host)
            case Connect():
                program.connect(run, self._host)
            case Send():
                program.send(run, self._host)
            case Signal(signum=signum, stop=stop):
                program.signal(run, self._host, signum, stop)
            case Wake():
                program.wake(run, self._host)
            case Forget(run_state=run_state):
                self._bound.pop(run.run_id, None)
                program.forget(run.but(run_state=run_state), self._host)

    def _overtake_locked(self, effects: Iterable[Effect]) -> None:
        """The disk fails: a stop or kill must not wait for it to be repaired."""
        signals = [e for e in effects if isinstance(e, Signal)]
        self._overtaken.update(id(e) for e in signals)
        if signals:
            self._hands.submit(self._hands.programs, self._overtake, signals)

    def overtake(self) -> None:
        """What was handed over before it was known that the disk fails, or hangs, must not wait either."""
        self._hands.submit(self._hands.programs, self._overtake_waiting)

    def _overtake_waiting(self) -> None:
        """(apsis-program) Should it be written meanwhile, then `_call` follows on this thread, and knows."""
        with self._guard.hold():
            unwritten = self._guard.store.unwritten()
            signals = [e for e in unwritten if isinstance(e, Signal) and id(e) not in self._overtaken]
            self._overtaken.update(id(e) for e in signals)
        self._overtake(signals)

    def failing(self, message: str | None) -> None:
        """(apsis-writer) The disk refuses, or (None) does so no more."""
        if message is not None:
            self.overtake()

    def _overtake(self, signals: Iterable[Signal]) -> None:
        """(apsis-program) Send them now; once committed, they are not sent again."""
        for effect in signals:
            self._hands.guarded(self._call_program, effect, effect.run)

    def _fail(self, run_id: str, message: str, strip: bool = False) -> None:
        with self._guard.hold() as kernel:
            kernel.fail(run_id, message, self._clock.wall(), strip)

    def _discard(self, run_id: str) -> None:
        with self._guard.hold() as kernel:
            kernel.discard(run_id)

    # -- binding and conditions ----------------------------------------------------------------------

    def _look_up(self, key: tuple[str, str]) -> None:
        """(apsis-bind) Answer in which states earlier runs of an instance ended."""
        with self._guard.store.read() as reader:
            states = reader.ended(key)
        with self._guard.hold() as kernel:
            kernel.outcome(key, states)
            self._guard.wake_timer_locked()

    def _bind(self, effect: Bind) -> None:
        """(apsis-bind) Make the expected runs of some occurrences."""
        now = self._clock.wall()
        job = effect.job
        runs: list[Run] = []
        for occurrence, args, identity in effect.occurrences:
            times = {"scheduled": now, "schedule": occurrence.time}
            if occurrence.stop is not None:
                times["stop"] = occurrence.stop
            run = Run(
                self._making.new_id(),
                job.job_id,
                args,
                State.SCHEDULED,
                now,
                times,
                expected=True,
                occurrence=identity,
            )
            try:
                run = self._making.bound(run, job)
            except Exception as error:
                # Visible, and an error when its time comes, unless the job is mended before.
                run = run.but(meta={"job": {"labels": labels(job)}, "unbound": saying(error)})
            runs.append(run)
        with self._guard.hold() as kernel:
            notes = [o.note for o, _, _ in effect.occurrences]
            kernel.expect(effect.token, runs, notes)
            self._guard.wake_timer_locked()

    def _check(self, check: Check) -> None:
        """(apsis-check) Ask a condition of a user's class."""
        verdict, output = self._hands.outside.check(check)
        with self._guard.hold() as kernel:
            now, boot = self._clock.wall(), self._clock.boot()
            kernel.answer(check.run.run_id, check.index, verdict, now, boot, output)
            self._guard.wake_timer_locked()

    # -- actions -------------------------------------------------------------------------------------

    def hand_on(self, owe: Owe) -> None:
        """Have an owed action done by threads that it may block, if it is not one of ours."""
        ours = owe.action.get("type") == "schedule"
        pool = self._hands.actors if ours else self._hands.outside.actors
        self._hands.insist(pool, self._do_action, owe)

    def _do_action(self, owe: Owe) -> None:
        """(apsis-action, apsis-own) Do what a transition owed; in one commit with the note of it."""
        source = owe.run
        said: str | None = None
        run: Run | None = None
        try:
            if owe.action.get("type") == "schedule":
                run = self._scheduled_by(owe)
            else:
                said = self._hands.outside.act(owe)
        except Unavailable:
            raise  # the disk: it stays owed, and is tried again
        except Exception as error:
            if not isinstance(error, ApsisError):
                log.error("action of %s failed:\n%s", source.run_id, traceback.format_exc())
            said = f"error: action: {saying(error)}"
        if run is None:
            with self._guard.hold() as kernel:
                kernel.outbox.append(Settle(owe.cause))
                if said:
                    kernel.outbox.append(Note(source.run_id, self._clock.wall(), said))
            return
        name = instance(run.job_id, run.args)
        with self._guard.hold() as kernel:
            now = self._clock.wall()
            kernel.outbox += [
                Settle(owe.cause),
                Note(source.run_id, now, f"action scheduling {name} as {run.run_id}"),
            ]
            kernel.add(run, [f"scheduled by action of {source.run_id}"], now, self._clock.boot())
            self._guard.wake_timer_locked()

    def _scheduled_by(self, owe: Owe) -> Run:
        source, action = owe.run, owe.action
        job = self._book.job(action["job_id"])
        names = templates.names(source.args, source.run_id, source.job_id, self._parts.get_calendar)
        args = {k: templates.expand(v, names) for k, v in action["args"].items()}
        args |= {p: source.args[p] for p in job.params if p in source.args and p not in args}
        now = self._clock.wall()
        run = Run(
            self._making.new_id(),
            job.job_id,
            args,
            State.SCHEDULED,
            now,
            {"scheduled": now, "schedule": now},
            cause=owe.cause,
        )
        return self._making.bound(run, job)
