"""THE LOCK, and the threads around the kernel.

A command takes the lock, lets the kernel decide, and hands what was decided to the writer before it
lets go: so the database sees decisions in the order they were made. What has to be *done* (a program
started, an action, a template expanded) is done by hands, after the writer has said that it is on disk.

    apsis-timer      ticks the kernel when something is due
    apsis-program    tells programs what was decided about their runs, in order
    apsis-bind-N     expands templates of expected runs, asks the database for outcomes
    apsis-action-N   schedules what actions schedule
    apsis-own-N, apsis-check-N    users' own actions and conditions, and e-mail: see outside.py
    apsis-remote-N   blocking work of programs (ECS, users' classes)
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from apsislib import binding, figures, templates
from apsislib.clock import Clock, Deadline
from apsislib.config.keys import Smtp
from apsislib.errors import ApsisError, BadRequest, NotFound, RunError, Unavailable
from apsislib.feeds import Feed
from apsislib.figures import Extent
from apsislib.jobs import Diff, JobSet
from apsislib.metrics import Tally
from apsislib.operations import refusal
from apsislib.outside import Outside
from apsislib.reloads import future_runs
from apsislib.runs import (
    Bind,
    Check,
    Connect,
    Drop,
    Effect,
    Expect,
    Forget,
    Job,
    Json,
    Launch,
    Lookup,
    Note,
    Output,
    Owe,
    Raised,
    Report,
    Run,
    Save,
    Send,
    SetClock,
    Settle,
    Signal,
    Wake,
    instance,
    run_number,
    stamp,
)
from apsislib.scheduler import Scheduler, Settings
from apsislib.states import FINISHED, State
from apsislib.store import Deleted, DropJob, SaveJob, Store
from apsislib.times import format_time

log = logging.getLogger(__name__)

NAP = 5.0  # s; a wall clock set forward by an operator must not be slept through
SLICE = 100  # steps of one hold of the lock: a few ms
INSTANT = 0.25  # s; how long a POST waits for runs that end at once
STEP = 1.0  # s; a wall clock that moved so far against the boot clock was set, not slewed
LATE = 5.0  # s; a timer that is behind by more is an ailment, and so is a commit that takes longer
DOWN = 5.0  # s; without a server, before that is a reason for a late start
STALLED = 30.0  # s; without a round of the timer, which naps for NAP at most
UNPLACED = 5.0  # s; and so is a run that finds no agent for longer
COMMIT = 30.0  # s; how long a command waits for its commit before it answers 503
RETRY = 1.0  # s; after which work that a failing disk refused is tried again
ID_BLOCK = 256  # run IDs reserved at a time: a crash skips as many at most

_CALLS = (Launch, Connect, Send, Signal, Wake, Forget)
_SHOWN = (Save, Note, Output, Expect, Drop)


class Program(Protocol):
    """A bound program, as the driver calls it (programs/base.py says what each call means)."""

    def limits(self) -> Any: ...
    def prepare(self, run: Run) -> Json | None: ...
    def launch(self, run: Run, host: Any) -> None: ...
    def connect(self, run: Run, host: Any) -> None: ...
    def send(self, run: Run, host: Any) -> None: ...
    def signal(self, run: Run, host: Any, signum: int, stop: bool) -> None: ...
    def wake(self, run: Run, host: Any) -> None: ...
    def forget(self, run: Run, host: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the driver is given from above, where its layer may not look."""

    load_program: Callable[[Json], Program]
    parse_ad_hoc: Callable[[Mapping[str, Any], str], Job]
    load_jobs: Callable[[], JobSet]  # reads and checks the job directory; raises JobErrors
    get_calendar: Callable[[str], Any]
    host: Callable[[Driver], Any]  # makes the Host that programs are given
    die: Callable[[str], None]  # the process cannot go on: exits with status 70
    smtp: Smtp = field(default_factory=Smtp)  # how e-mail actions send


class _Watch:
    """Somebody waits for a run to end."""

    __slots__ = ("event", "run")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.run: Run | None = None


class Driver:
    def __init__(
        self,
        settings: Settings,
        jobs: JobSet,
        store: Store,
        feed: Feed,
        clock: Clock,
        parts: Parts,
        *,
        since: float | str | None = None,
        refuse_older: float | None = None,
    ) -> None:
        """`store` is open, its writer not started; give it `committed` and `unwritable` as callbacks.

        `since`: schedules go on from there ("now", or an instant) if that is later than the stored
        clock. `refuse_older`: seconds; raises BadRequest if the stored clock is older than that.
        """
        self.jobs = jobs  # immutable; replaced whole by a reload, under the lock
        self.is_running = threading.Event()
        self.clock = clock
        self.tally = Tally()
        self._store = store
        self._feed = feed
        self._parts = parts
        self._settings = settings
        self._started = clock.wall()
        self._host = parts.host(self)
        with store.read() as reader:
            now = clock.wall()
            stored = reader.clock()
            start = now if stored is None else stored
            if since is not None:
                start = max(start, now if isinstance(since, str) else since)
            if refuse_older is not None and start < now - refuse_older:
                raise BadRequest(
                    f"schedule.max_age: the server was last running at {stamp(start)}; to go on without"
                    " what was missed since, serve with -o schedule.since=now"
                )
            self._kernel = Scheduler(settings, start, reader.occurrences(start))
            if stored is not None and now - stored > DOWN:
                self._kernel.down = stored, now
            if start != stored:  # else a server that ends at once would forget when it began
                self._kernel.outbox.append(SetClock(start))
            self._ad_hoc: dict[str, Job] = self._read_ad_hoc(reader.ad_hoc())
        # Protects the kernel. Nothing but leaf locks is taken under it, and no I/O is done.
        self._lock = threading.Lock()
        self._owner = 0  # ident of the thread that holds it
        self._since = 0.0  # monotonic; since when it does
        self._due = threading.Condition(self._lock)  # the timer sleeps on it until something may be due
        # Held for a whole reload: of two at once, one would be compared with jobs that the other replaced.
        self._reloads = threading.Lock()
        self._stopping = False
        self._offset = clock.wall() - clock.boot()
        self._ids_lock = threading.Lock()  # protects _ids; a block is reserved on disk under it
        self._ids: list[int] = []
        self._watches: dict[str, _Watch] = {}  # dict operations are atomic; no lock
        self._bound: dict[str, Program] = {}  # apsis-program only
        self._overtaken: set[int] = set()  # ids of Signal effects already acted on; under the lock
        self._again: list[tuple[float, ThreadPoolExecutor, Callable[..., None], tuple[Any, ...]]] = []
        self._complaints: list[str] = []  # apsis-timer only: to be logged when the lock is let go
        self._lateness = Extent()
        self._holds = Extent()
        self._lock_waits = Extent()
        self._ticked = clock.monotonic()  # when the timer last had the lock
        self._timer = threading.Thread(target=self._tick_for_ever, name="apsis-timer")
        self._programs = ThreadPoolExecutor(1, "apsis-program")
        self._binders = ThreadPoolExecutor(2, "apsis-bind")
        self._actors = ThreadPoolExecutor(2, "apsis-action")
        self._outside = Outside(store, parts.smtp, parts.get_calendar, self._find_job, self.expected)
        self._remote = ThreadPoolExecutor(8, "apsis-remote")

    # -- life ------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up what an earlier process left. The store's writer must run.

        Returns once every program of a live run has been told to look for its process, so that agents
        may be let in.
        """
        with self._store.read() as reader:
            active = [run.but(limits=self._limits(run)) for run in reader.active()]
            owed = reader.owed()
        with self._hold() as kernel:
            kernel.set_jobs(self.jobs.jobs.values())
            kernel.restore(active, self.clock.wall(), self.clock.boot())
        self._store.wait(self._flushed, COMMIT)
        self._programs.submit(lambda: None).result()  # Connect effects have been acted on
        for owe in owed:
            self._hand_on(owe)
        log.info("restored %d runs, %d owed actions", len(active), len(owed))

    def start(self) -> None:
        """Start the timer: from here on, what is due is started."""
        self._timer.start()

    def stop(self, deadline: Deadline) -> list[str]:
        """Stop the timer and the hands; runs go on. Answers the names of threads still alive."""
        with self._lock:
            self._stopping = True
            self._due.notify_all()
        if self._timer.ident is not None:
            self._timer.join(deadline.left())
        threads = [self._timer]
        for pool in (self._actors, self._binders, self._programs, self._remote, *self._outside.pools):
            threads += list(pool._threads)
            pool.shutdown(wait=False, cancel_futures=True)
        for thread in threads[1:]:
            thread.join(deadline.left())
        return [t.name for t in threads if t.is_alive()]

    def _tick_for_ever(self) -> None:
        """(apsis-timer) Ends when stop() was called; an exception is the end of the process."""
        try:
            while self._tick():
                while self._complaints:
                    log.error("%s", self._complaints.pop(0))
        except BaseException:
            log.critical("the timer died:\n%s", traceback.format_exc())
            self._parts.die("timer")

    def _tick(self) -> bool:
        with self._hold() as kernel:
            if self._stopping:
                return False
            self._ticked = self.clock.monotonic()
            wall, boot = self.clock.wall(), self.clock.boot()
            stepped = self._notice_step(wall, boot)
            due = kernel.next_due()
            # What the clock jumped over, or fell due while no server was there, is not the timer's doing.
            if due is not None and due <= wall and self.is_running.is_set() and not stepped:
                self._lateness.add(wall - due)
            kernel.tick(wall, boot, SLICE, brake=self._store.braked)
            if not self.is_running.is_set() and not kernel.binding and (kernel.due() or wall + 1) > wall:
                kernel.restored()
                self.is_running.set()
            self._complaints += kernel.failures()
            self._flush_locked()
            retry = self._retry_locked(boot)
            next_wall, next_boot = kernel.next_wake()
            nap = NAP if retry is None else max(0.0, retry - boot)
            if not self._store.braked:
                if next_wall is not None:
                    nap = min(nap, next_wall - self.clock.wall())
                if next_boot is not None:
                    nap = min(nap, next_boot - self.clock.boot())
            # Between slices of a burst the lock is let go for an instant: commands must get in.
            self._leaves_lock()
            self._due.wait(max(nap, 0.0002))
            self._has_lock()
            return not self._stopping

    def _notice_step(self, wall: float, boot: float) -> bool:
        """Whether the wall clock was set since the last time, of which the kernel is told."""
        delta = wall - boot - self._offset
        self._offset += delta
        if abs(delta) <= STEP:
            return False
        log.warning("the wall clock was set by %+.3f s; schedules follow it, durations do not", delta)
        self._kernel.stepped(delta, wall)
        return True

    # -- the lock ----------------------------------------------------------------------------------

    def _hold(self) -> _Hold:
        return _Hold(self)

    def _has_lock(self) -> None:
        self._owner = threading.get_ident()
        self._since = self.clock.monotonic()

    def _leaves_lock(self) -> None:
        self._holds.add(self.clock.monotonic() - self._since)
        self._owner = 0

    def _flush_locked(self) -> None:
        """Hand what was decided to the writer, in order, and note the ticket of its commit."""
        assert self._owner == threading.get_ident()
        effects = self._kernel.outbox
        if effects:
            self._kernel.outbox = []
            self._flushed = self._store.put(effects)
            if self._store.braked:
                self._overtake_locked(effects)

    _flushed = 0  # ticket of the latest hand-over; read by the thread that made it, under the lock

    def _overtake_locked(self, effects: Iterable[Effect]) -> None:
        """The disk fails: a stop or kill must not wait for it to be repaired."""
        signals = [e for e in effects if isinstance(e, Signal)]
        self._overtaken.update(id(e) for e in signals)
        if signals:
            self._submit(self._programs, self._overtake, signals)

    def _overtake(self, signals: Iterable[Signal]) -> None:
        """(apsis-program) Send them now; once committed, they are not sent again."""
        for effect in signals:
            self._guarded(self._call_program, effect, effect.run)

    # -- after the commit --------------------------------------------------------------------------

    def committed(self, effects: Sequence[Any], grew: Sequence[Any]) -> None:
        """(apsis-writer) What was decided is on disk: act, then tell."""
        calls = [e for e in effects if isinstance(e, _CALLS)]
        saved = [e for e in effects if isinstance(e, Save)]
        for save in saved:
            self._kernel.leaving.pop(save.run.run_id, None)
        ended = [save.run for save in saved if save.run.state in FINISHED]
        self.tally.saw(save.run for save in saved if save.transition)
        self.tally.heard((e.run.job_id, e.alarm) for e in effects if isinstance(e, Raised))
        if calls or ended:
            self._submit(self._programs, self._call, calls, ended)
        for effect in effects:
            match effect:
                case Bind():
                    self._submit(self._binders, self._insist, self._binders, self._bind, effect)
                case Lookup(key):
                    self._submit(self._binders, self._insist, self._binders, self._look_up, key)
                case Owe():
                    self._hand_on(effect)
                case Check():
                    self._submit(self._outside.checkers, self._check, effect)
        gone = [run_id for e in effects if isinstance(e, Deleted) for run_id in e.run_ids]
        for run in ended:
            watch = self._watches.get(run.run_id)
            if watch is not None:
                watch.run = run
                watch.event.set()
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
            self._submit(self._programs, self._discard, run_id)
        else:
            # What it cannot be told with is left out, or its end would be refused as well.
            self._submit(self._programs, self._fail, run_id, message, isinstance(effect, Save))

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[..., None], *args: Any) -> None:
        try:
            pool.submit(self._guarded, work, *args)
        except RuntimeError:  # the pool is shut down: what is owed on disk is taken up at the next start
            assert self._stopping

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except Exception:
            log.error("%s failed:\n%s", work.__name__, traceback.format_exc())

    def _insist(self, pool: ThreadPoolExecutor, work: Callable[..., None], *args: Any) -> None:
        """Work that must be done sooner or later, and changes nothing unless it succeeds: try it again.

        Later, by the timer: hands that waited for a disk would be missed by everybody else.
        """
        try:
            work(*args)
        except Exception as error:
            log.warning("%s: %s; trying again in %g s", work.__name__, _text(error), RETRY)
            with self._lock:
                self._again.append((self.clock.boot() + RETRY, pool, work, args))
                self._due.notify()

    def _retry_locked(self, boot: float) -> float | None:
        """Hand out again what is due; the boot instant at which more is."""
        due = [entry for entry in self._again if entry[0] <= boot]
        self._again = [entry for entry in self._again if entry[0] > boot]
        for _, pool, work, args in due:
            self._submit(pool, self._insist, pool, work, *args)
        return min((entry[0] for entry in self._again), default=None)

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
            with self._hold() as kernel:
                kernel.evict(ended)

    def _call_program(self, effect: Effect, run: Run) -> None:
        program = self._bound.get(run.run_id)
        if program is None:
            program = self._bound[run.run_id] = self._parts.load_program(run.program or {})
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
            case Forget():
                del self._bound[run.run_id]
                program.forget(run, self._host)

    def _fail(self, run_id: str, message: str, strip: bool = False) -> None:
        with self._hold() as kernel:
            kernel.fail(run_id, message, self.clock.wall(), strip)

    def _discard(self, run_id: str) -> None:
        with self._hold() as kernel:
            kernel.discard(run_id)

    def _look_up(self, key: tuple[str, str]) -> None:
        """(apsis-bind) Answer in which states earlier runs of an instance ended."""
        with self._store.read() as reader:
            states = reader.ended(key)
        with self._hold() as kernel:
            kernel.outcome(key, states)
            self._due.notify()

    def _bind(self, effect: Bind) -> None:
        """(apsis-bind) Make the expected runs of some occurrences."""
        now = self.clock.wall()
        job = effect.job
        program: Json | None = None
        runs: list[Run] = []
        for occurrence, args, identity in effect.occurrences:
            times = {"scheduled": now, "schedule": occurrence.time}
            if occurrence.stop is not None:
                times["stop"] = occurrence.stop
            run = Run(
                self._new_id(),
                job.job_id,
                args,
                State.SCHEDULED,
                now,
                times,
                expected=True,
                occurrence=identity,
            )
            try:
                run = self._made(run, job)
            except Exception as error:
                # Visible, and an error when its time comes, unless the job is mended before.
                run = run.but(meta={"job": {"labels": labels(job)}, "unbound": _text(error)})
            if program is not None and run.program == program:
                run = run.but(program=program)  # most jobs have no templates: share one mapping
            program = run.program
            runs.append(run)
        with self._hold() as kernel:
            notes = [o.note for o, _, _ in effect.occurrences]
            kernel.expect(effect.token, runs, notes, self.clock.wall(), self.clock.boot())
            self._due.notify()

    def _check(self, check: Check) -> None:
        """(apsis-check) Ask a condition of a user's class."""
        verdict, output = self._outside.check(check)
        with self._hold() as kernel:
            now, boot = self.clock.wall(), self.clock.boot()
            kernel.answer(check.run.run_id, check.index, verdict, now, boot, output)
            self._due.notify()

    def _hand_on(self, owe: Owe) -> None:
        """Have an owed action done by threads that it may block, if it is not one of ours."""
        pool = self._actors if owe.action.get("type") == "schedule" else self._outside.actors
        self._submit(pool, self._insist, pool, self._do_action, owe)

    def _do_action(self, owe: Owe) -> None:
        """(apsis-action, apsis-own) Do what a transition owed; in one commit with the note of it."""
        source = owe.run
        said: str | None = None
        run: Run | None = None
        try:
            if owe.action.get("type") == "schedule":
                run = self._scheduled_by(owe)
            else:
                said = self._outside.act(owe)
        except Unavailable:
            raise  # the disk: it stays owed, and is tried again
        except Exception as error:
            if not isinstance(error, ApsisError):
                log.error("action of %s failed:\n%s", source.run_id, traceback.format_exc())
            said = f"error: action: {_text(error)}"
        if run is None:
            with self._hold() as kernel:
                kernel.outbox.append(Settle(owe.cause))
                if said:
                    kernel.outbox.append(Note(source.run_id, self.clock.wall(), said))
            return
        name = instance(run.job_id, run.args)
        with self._hold() as kernel:
            now = self.clock.wall()
            kernel.outbox += [
                Settle(owe.cause),
                Note(source.run_id, now, f"action scheduling {name} as {run.run_id}"),
            ]
            kernel.add(run, [f"scheduled by action of {source.run_id}"], now, self.clock.boot())
            self._due.notify()

    def _scheduled_by(self, owe: Owe) -> Run:
        source, action = owe.run, owe.action
        job = self.job(action["job_id"])
        names = templates.names(source.args, source.run_id, source.job_id, self._parts.get_calendar)
        args = {k: templates.expand(v, names) for k, v in action["args"].items()}
        args |= {p: source.args[p] for p in job.params if p in source.args and p not in args}
        now = self.clock.wall()
        run = Run(
            self._new_id(),
            job.job_id,
            args,
            State.SCHEDULED,
            now,
            {"scheduled": now, "schedule": now},
            cause=owe.cause,
        )
        return self._made(run, job)

    # -- making runs -------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        """The job of exactly this ID, ad hoc ones included. Raises BadRequest."""
        job = self._find_job(job_id)
        if job is None:
            raise BadRequest(f"unknown job ID: {job_id}")
        return job

    def _find_job(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id) or self._ad_hoc.get(job_id)

    def match(self, job_id: str) -> Job:
        """The job of this ID, or the only one that it abbreviates. Raises NotFound or BadRequest."""
        return self._ad_hoc.get(job_id) or self.jobs.match(job_id)

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
        job = self.match(job_id)
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
        job_id = "adhoc-" + "".join(_LETTERS[b % 52] for b in os.urandom(12))
        job = self._parts.parse_ad_hoc(mapping, job_id)
        if job.schedules:
            raise BadRequest("schedule: an ad hoc job can't have a schedule; give times.schedule instead")
        with self._hold() as kernel:
            self._ad_hoc[job_id] = job
            kernel.outbox.append(SaveJob(job_id, job.json))  # type: ignore[arg-type]
        return self._create(job_id, job, args, schedule, stop, count)

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
        self._check_disk()
        _check_texts(args)
        now = self.clock.wall()
        times = {"scheduled": now, "schedule": now if schedule is None else schedule}
        if stop is not None:
            times["stop"] = stop
        runs: list[Run] = []
        failures: dict[str, str] = {}
        for _ in range(count):
            run = Run(
                self._new_id(),
                job_id,
                dict(sorted(args.items())),
                State.SCHEDULED,
                now,
                times,
                rerun_of=rerun_of,
            )
            try:
                run = self._made(run, job or self.job(job_id))
            except Exception as error:
                failures[run.run_id] = _text(error)
                run = run.but(state=State.NEW, times={"schedule": times["schedule"]})
            runs.append(run)
        ends = [r.run_id for r in runs if r.run_id in failures or self._ends_at_once(r, now)]
        watches = {run_id: self._watches.setdefault(run_id, _Watch()) for run_id in ends}
        try:
            for at in range(0, len(runs), SLICE):
                with self._hold() as kernel:
                    for run in runs[at : at + SLICE]:
                        if run.run_id in failures:
                            kernel.add_failed(run, failures[run.run_id], log_lines, self.clock.wall())
                        else:
                            kernel.add(run, log_lines, self.clock.wall(), self.clock.boot())
                    self._flush_locked()
                    ticket = self._flushed
                    self._due.notify()
            if runs:
                self._store.wait(ticket, COMMIT)
            deadline = Deadline(INSTANT, self.clock)
            for watch in watches.values():
                watch.event.wait(deadline.left())
        finally:
            for run_id in ends:
                self._watches.pop(run_id, None)
        return [self._latest(run, watches.get(run.run_id)) for run in runs]

    def _latest(self, run: Run, watch: _Watch | None) -> Run:
        if watch is not None and watch.run is not None:
            return watch.run
        return self._kernel.runs.get(run.run_id) or self.find_run(run.run_id)

    @staticmethod
    def _ends_at_once(run: Run, now: float) -> bool:
        program = run.program or {}
        no_op = str(program.get("type", "")).endswith("NoOpProgram") and not program.get("duration")
        return no_op and run.times["schedule"] <= now

    def _made(self, run: Run, job: Job) -> Run:
        """The run, bound. Raises what binding raises."""
        bound = binding.bind(job, run.args, run.run_id, self.job, self._parts.get_calendar)
        run = run.but(
            program=bound.program,
            conds=bound.conds,
            actions=bound.actions,
            limits=bound.limits,
            meta={"job": {"labels": labels(job)}},
        )
        if job.expect is not None:
            run = run.but(meta={**run.meta, "expect": job.expect.of(run.times["schedule"])})
        return run.but(run_state=self._parts.load_program(bound.program).prepare(run))

    def _new_id(self) -> str:
        with self._ids_lock:
            if not self._ids:
                first = self._store.reserve(ID_BLOCK)
                self._ids = list(range(first + ID_BLOCK - 1, first - 1, -1))
            return f"r{self._ids.pop()}"

    def _check_disk(self) -> None:
        if self._store.braked:
            raise Unavailable("nothing new is started: the database can't be written (see the server's log)")

    # -- operations --------------------------------------------------------------------------------

    def skip(self, run_id: str) -> Run:
        """Raises NotFound, RunError, Unavailable; so do the others here."""
        return self._operate(run_id, "skip", lambda k: k.skip(run_id, self.clock.wall()))

    def start_run(self, run_id: str) -> Run:
        return self._operate(run_id, "start", lambda k: k.start(run_id, self.clock.wall(), self.clock.boot()))

    def stop_run(self, run_id: str) -> Run:
        return self._operate(run_id, "stop", lambda k: k.stop(run_id, self.clock.wall(), self.clock.boot()))

    def signal(self, run_id: str, signum: int) -> Run:
        return self._operate(run_id, "signal", lambda k: k.signal(run_id, signum, self.clock.wall()))

    def mark(self, run_id: str, state: State) -> Run:
        run = self.find_run(run_id)
        return self._operate(run_id, "mark", lambda k: k.mark(run, state, self.clock.wall()))

    def rerun(self, run_id: str) -> Run:
        """A new run of the same job and args, now; its stop time keeps its distance from the start."""
        run = self.find_run(run_id)
        now = self.clock.wall()
        stop = None
        if "stop" in run.times and "schedule" in run.times:
            stop = now + run.times["stop"] - run.times["schedule"]
        job = self.jobs.get(run.job_id) or self._ad_hoc.get(run.job_id)
        return self._create(
            run.job_id, job, run.args, None, stop, 1, [f"scheduled as rerun of {run_id}"], run_id
        )[0]

    def bulk(
        self,
        verb: str,
        run_ids: Sequence[str],
        *,
        signum: int = 0,
        state: State | None = None,
        dry_run: bool = False,
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The same operation on many runs, each by itself: (run ID -> run ID, or of its rerun; refusals).

        `dry_run`: only say what would come of it, as things are now. Raises Unavailable.
        """
        done: dict[str, str] = {}
        refused: dict[str, str] = {}
        if not dry_run:
            self._check_disk_for(verb)
        ticket = 0
        for at in range(0, len(run_ids), SLICE):
            some = run_ids[at : at + SLICE]
            with self._store.read() as reader:
                stored = {run.run_id: run for run in reader.runs(run_ids=some)}
            if verb == "rerun" or dry_run:
                self._bulk_rest(verb, some, stored, state, dry_run, done, refused)
                continue
            with self._hold() as kernel:
                for run_id in some:
                    try:
                        self._bulk_one(kernel, verb, run_id, stored, signum, state)
                        done[run_id] = run_id
                    except ApsisError as error:
                        refused[run_id] = str(error)
                self._flush_locked()
                ticket = self._flushed
                self._due.notify()
        if ticket:
            try:
                self._store.wait(ticket, COMMIT)
            except Unavailable:
                if verb not in ("stop", "signal"):
                    raise
        return done, refused

    def _bulk_one(
        self,
        kernel: Scheduler,
        verb: str,
        run_id: str,
        stored: Mapping[str, Run],
        signum: int,
        state: State | None,
    ) -> None:
        run = kernel.runs.get(run_id) or stored.get(run_id)
        if run is None:
            raise NotFound(f"unknown run {run_id}")
        wall, boot = self.clock.wall(), self.clock.boot()
        if verb == "mark":
            assert state is not None
            kernel.mark(run, state, wall)
            return
        if run_id not in kernel.runs:
            raise RunError(refusal(verb, run) or f"can't {verb} {run_id}: it has just ended")
        match verb:
            case "skip":
                kernel.skip(run_id, wall)
            case "start":
                kernel.start(run_id, wall, boot)
            case "stop":
                kernel.stop(run_id, wall, boot)
            case "signal":
                kernel.signal(run_id, signum, wall)

    def _bulk_rest(
        self,
        verb: str,
        run_ids: Sequence[str],
        stored: Mapping[str, Run],
        state: State | None,
        dry_run: bool,
        done: dict[str, str],
        refused: dict[str, str],
    ) -> None:
        for run_id in run_ids:
            run = self.live_run(run_id) or stored.get(run_id)
            said = f"unknown run {run_id}" if run is None else refusal(verb, run, state)
            if said is not None:
                refused[run_id] = said
            else:
                done[run_id] = run_id if dry_run else self.rerun(run_id).run_id

    def _operate(self, run_id: str, verb: str, operation: Callable[[Scheduler], None]) -> Run:
        self._check_disk_for(verb)
        with self._hold() as kernel:
            try:
                operation(kernel)
            except KeyError:
                raise self._not_live(run_id, verb) from None
            self._flush_locked()
            ticket = self._flushed
            run = kernel.runs.get(run_id)
            self._due.notify()
        try:
            self._store.wait(ticket, COMMIT)
        except Unavailable:
            if verb not in ("stop", "signal"):  # those overtake a failing disk
                raise
        return run or self.find_run(run_id)

    def _check_disk_for(self, verb: str) -> None:
        if verb not in ("stop", "signal"):
            self._check_disk()

    def _not_live(self, run_id: str, verb: str) -> ApsisError:
        """Why an operation on a run that is not in memory is refused: it has ended, or never was."""
        with self._store.read() as reader:
            run = reader.run(run_id)
        if run is None:
            return NotFound(f"unknown run {run_id}")
        return RunError(refusal(verb, run) or f"can't {verb} {run_id}: it has just ended")

    # -- what programs tell ------------------------------------------------------------------------

    def report(self, run_id: str, report: Report) -> None:
        with self._hold() as kernel:
            kernel.report(run_id, report, self.clock.wall(), self.clock.boot())
            self._due.notify()

    def live_run(self, run_id: str) -> Run | None:
        """The run as the kernel has it; None once it is finished and out of memory. Takes no lock."""
        return self._kernel.runs.get(run_id)

    def spawn(self, work: Callable[[], None]) -> None:
        self._submit(self._remote, work)

    # -- reading, without the lock -----------------------------------------------------------------

    def expected(self, job_id: str | None = None) -> list[Run]:
        """Runs made ahead from schedules, not in the database. Of one job, or all.

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

    def expected_run(self, run_id: str) -> Run | None:
        run = self._kernel.runs.get(run_id)
        return run if run is not None and run.expected else self._kernel.leaving.get(run_id)

    def find_run(self, run_id: str) -> Run:
        """The run as the database has it, or an expected one. Raises NotFound."""
        run = self.expected_run(run_id)
        if run is None and run_number(run_id) is not None:
            with self._store.read() as reader:
                run = reader.run(run_id)
            run = run or self.expected_run(run_id)
        if run is None:
            raise NotFound(f"unknown run {run_id}")
        return run

    def waiting(self, run_id: str) -> list[dict[str, Any]]:
        """Why a run waits: each condition with whether it holds, why not, and since when."""
        with self._hold() as kernel:
            return kernel.waiting(run_id)

    def retired(self, job_ids: set[str]) -> None:
        """Finished runs of these jobs have left the database, by archiving say. Any thread."""
        ad_hoc = job_ids & self._ad_hoc.keys()
        with self._store.read() as reader:
            unused = {job_id for job_id in ad_hoc if not reader.runs(job_id=job_id, limit=1)}
        with self._hold() as kernel:
            kernel.retired(job_ids)
            unused -= {run.job_id for run in kernel.runs.values()}
            for job_id in unused:
                del self._ad_hoc[job_id]
                kernel.outbox.append(DropJob(job_id))  # type: ignore[arg-type]

    def stats(self) -> dict[str, Any]:
        """Figures about the server: sizes in bytes, times in seconds, instants as ISO texts.

        `tasks`, `scheduled` and `run_store` have the names that readers of them have always known.
        """
        with self._hold() as kernel:
            counts = kernel.counts()
        pools = {"bind": self._binders, "action": self._actors, "remote": self._remote}
        pools |= {"own": self._outside.actors, "check": self._outside.checkers}
        return {
            "start_time": format_time(self._started),
            "time": format_time(self.clock.wall()),
            "tasks": {
                "num_waiting": counts["waiting"],
                "num_running": counts["starting"] + counts["running"],
                "num_stopping": counts["stopping"],
                "num_action": sum(p._work_queue.qsize() for p in (self._actors, self._outside.actors)),
            },
            "scheduled": {"num_heap": counts["heap"], "num_entries": counts["alarms"]},
            "run_store": {
                "num_expected_runs": counts["expected"],
                "num_active_runs": counts["active"],
                "publisher": self._feed.stats(),
            },
            "queues": {name: pool._work_queue.qsize() for name, pool in pools.items()},
            "writer": self._store.stats(),
            **figures.process(),
            "runs": counts,
            "timer": self._lateness.json(),
            "lock_hold": self._holds.json(),
            "lock_wait": self._lock_waits.json(),
            "started": self._started,
            "writer_braked": self._store.braked,
        }

    def is_alive(self) -> bool:
        """Whether the timer goes round. False: only a restart helps."""
        return self.clock.monotonic() - self._ticked < STALLED

    def status(self) -> str:
        """What goes on, in a line."""
        with self._hold() as kernel:
            counts = kernel.counts()
        said = f"{counts['starting'] + counts['running']} running, {counts['waiting']} waiting"
        return "; ".join([said, *self.ailments()])

    def ailments(self) -> list[str]:
        """What keeps runs from starting in time, a sentence each; empty: nothing."""
        if not self.is_running.is_set():
            return ["starting: runs of earlier times are being taken up"]
        found = []
        writer = self._store.stats()
        if failing := writer["failing"]:
            found.append(f"the database can't be written: {failing}; nothing new is started")
        elif writer["committing"] > LATE:
            found.append(f"a commit has been under way for {writer['committing']:.0f} s: the disk or a lock")
        elif self._store.braked:
            found.append("the disk is far behind; nothing new is started")
        now = self.clock.wall()
        with self._hold() as kernel:
            due = kernel.next_due()
            unplaced = Counter(
                str((run.program or {})["group_id"])
                for run in kernel.runs.values()
                if run.state is State.STARTING
                and "group_id" in (run.program or {})
                and not (run.run_state or {}).get("conn_id")
                and now - run.timestamp > UNPLACED
            )
        if due is not None and now - due > LATE:
            found.append(f"the timer is {now - due:.0f} s late")
        for group, number in sorted(unplaced.items()):
            found.append(f"no agent takes runs of group {group}: {number} wait for one")
        return found

    # -- jobs --------------------------------------------------------------------------------------

    def reload(self, dry_run: bool = False) -> dict[str, Any]:
        """Load the job directory again: all of it or, with an error (JobErrors), nothing."""
        with self._reloads:
            new = self._parts.load_jobs()
            diff = self.jobs.diff(new)
            future = self._future(diff, new)
            if not dry_run:
                with self._hold() as kernel:
                    kernel.change_jobs(
                        diff.removed,
                        [new.jobs[j] for j in (*diff.added, *diff.changed)],
                        [new.jobs[j] for j in diff.metadata],
                    )
                    self.jobs = new
                    self._due.notify()
                self._feed.publish([new])
        changed = sorted([*diff.changed, *diff.metadata])
        return {
            "removed": diff.removed,
            "added": diff.added,
            "changed": changed,
            "dry_run": dry_run,
            "runs": future,
        }

    def _future(self, diff: Diff, new: JobSet) -> dict[str, Any]:
        with self._hold() as kernel:
            position = kernel.position()
        limits = self._settings.horizon, self._settings.max_expected
        now = self.clock.wall()
        ahead = [run for run in self.expected() if run.run_id not in self._kernel.leaving]
        return future_runs(diff, self.jobs.jobs, new.jobs, ahead, position, now, *limits)

    def _read_ad_hoc(self, rows: Iterable[tuple[str, Json]]) -> dict[str, Job]:
        jobs: dict[str, Job] = {}
        for job_id, json in rows:
            try:
                jobs[job_id] = self._parts.parse_ad_hoc(json, job_id)
            except ApsisError as error:
                log.warning("ad hoc job %s can't be read: %s", job_id, error)
        return jobs

    def _limits(self, run: Run) -> Any:
        try:
            return self._parts.load_program(run.program or {}).limits()
        except ApsisError:
            return run.limits


class _Hold:
    """Hold the lock; on leaving, whatever was decided goes to the writer."""

    __slots__ = ("_driver",)

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __enter__(self) -> Scheduler:
        driver = self._driver
        asked = driver.clock.monotonic()
        driver._lock.acquire()
        driver._has_lock()
        driver._lock_waits.add(driver._since - asked)
        return driver._kernel

    def __exit__(self, *failure: object) -> None:
        driver = self._driver
        try:
            driver._flush_locked()
        finally:
            driver._leaves_lock()
            driver._lock.release()


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def labels(job: Job) -> list[str]:
    return list(job.metadata.get("labels", ()))


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check_texts(args: Mapping[str, str]) -> None:
    for name, value in args.items():
        for text in (name, value):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise BadRequest(f"arg {name!r} holds a lone surrogate, which UTF-8 cannot express") from None
