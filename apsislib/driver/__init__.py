"""The engine: the kernel's lock, and the threads around it.

A command takes the lock, lets the kernel decide, and hands what was decided to the writer before it
lets go. What has to be *done* (a program started, an action, a template expanded) is done by hands,
after the writer has said that it is on disk. A room for each of these, in the order of reading:

    guard        the lock
    timer        the thread that ticks the kernel when something is due
    hands        the threads that do what was decided, and their second tries
    acting       what they do after a commit
    book         the jobs: found, added, reloaded
    making       runs made by hand, as reruns, by actions, ahead of time
    late         what is learned about runs that have ended already, and done about it
    operating    what operators do to runs
    looking      runs as readers see them
    health       figures, and what ails the server
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from apsislib.clock import Clock, Deadline
from apsislib.driver.acting import Acting
from apsislib.driver.book import Book
from apsislib.driver.guard import Guard
from apsislib.driver.hands import Hands
from apsislib.driver.health import Health
from apsislib.driver.late import Late
from apsislib.driver.looking import Looking
from apsislib.driver.making import Making
from apsislib.driver.operating import Operating
from apsislib.driver.parts import Parts as Parts
from apsislib.driver.parts import Program as Program
from apsislib.driver.timer import Timer
from apsislib.errors import ApsisError, BadRequest
from apsislib.feeds import Feed
from apsislib.jobs import JobSet
from apsislib.outside import Outside
from apsislib.runs import Json, Report, Run, SetClock, stamp
from apsislib.scheduler import Scheduler, Settings
from apsislib.store import Store

log = logging.getLogger(__name__)


class Driver:
    """The engine, as the rest of the server sees it. Its verbs are those of its rooms."""

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
        """`store` is open, its writer not started; give it `committed`, `unwritable` and `failing`.

        `since`: schedules go on from there ("now", or an instant) if that is later than the stored
        clock. `refuse_older`: seconds; raises BadRequest if the stored clock is older than that.
        """
        self.clock = clock
        self._parts = parts
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
            kernel = Scheduler(settings, start, reader.occurrences(start))
            ad_hoc = reader.ad_hoc()
        if start != stored:  # else a server that ends at once would forget when it began
            kernel.outbox.append(SetClock(start))

        self._guard = guard = Guard(kernel, store, clock)
        looking = Looking(guard)
        self._book = book = Book(guard, jobs, feed, parts, settings, looking.expected)
        book.restore_ad_hoc(ad_hoc)
        outside = Outside(store, parts.smtp, parts.get_calendar, book.get, looking.expected)
        self._hands = hands = Hands(guard, outside)
        self._timer = timer = Timer(guard, hands, parts.die, stored)
        self._making = making = Making(guard, book, looking, parts)
        late = Late(guard, self._limits)
        operating = Operating(guard, looking, making, late)
        health = Health(guard, timer, hands, feed)

        self.is_running = timer.is_running
        self.is_alive = timer.is_alive
        self.spawn = hands.spawn
        self.insist = partial(hands.insist, hands.remote)
        self.job, self.match = book.job, book.match
        self.reload, self.retired = book.reload, book.retired
        self.create, self.create_ad_hoc, self.rerun = making.create, making.create_ad_hoc, making.rerun
        self.skip, self.start_run, self.stop_run = operating.skip, operating.start_run, operating.stop_run
        self.signal, self.mark, self.bulk = operating.signal, operating.mark, operating.bulk
        self.live_run, self.find_run = looking.live_run, looking.find_run
        self.expected, self.expected_run = looking.expected, looking.expected_run
        self.next_runs = looking.next_runs
        self.waiting = looking.waiting
        self.stored, self.note, self.offer = late.stored, late.note, late.offer
        self.stats, self.status, self.ailments = health.stats, health.status, health.ailments
        self.peak = health.peak
        # Last: what programs are given has some of these verbs.
        self._acting = acting = Acting(guard, hands, book, making, feed, parts, parts.host(self))
        self.committed, self.unwritable, self.failing = acting.committed, acting.unwritable, acting.failing
        self.tally = acting.tally

    @property
    def jobs(self) -> JobSet:
        """The jobs of the job directory; immutable, replaced whole by a reload."""
        return self._book.jobs

    @property
    def last_reload(self) -> Json:
        """What the last reload, or the start, made of the job directory."""
        return self._book.last_reload

    def report(self, run_id: str, report: Report) -> None:
        """What a program tells of its run. Any thread."""
        with self._guard.hold() as kernel:
            kernel.report(run_id, report, self.clock.wall(), self.clock.boot())
            self._guard.wake_timer_locked()

    # -- life ------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up what an earlier process left. The store's writer must run.

        Returns once every program of a live run has been told to look for its process, so that agents
        may be let in.
        """
        self._hands.start()
        with self._guard.store.read() as reader:
            active = [run.but(limits=self._limits(run)) for run in reader.active()]
            owed = reader.owed()
        with self._guard.hold() as kernel:
            kernel.set_jobs(self.jobs.jobs.values())
            kernel.restore(active, self.clock.wall(), self.clock.boot())
        self._guard.wait(self._guard.ticket)
        self._guard.store.told()  # what follows that commit is with the hands, not only on disk
        self._hands.programs.submit(lambda: None).result()  # Connect effects have been acted on
        for owe in owed:
            self._acting.hand_on(owe)
        log.info("restored %d runs, %d owed actions", len(active), len(owed))

    def _limits(self, run: Run) -> Any:
        try:
            return self._parts.load_program(run.program or {}).limits()
        except ApsisError:
            return run.limits

    def start(self) -> None:
        """Start the timer: from here on, what is due is started."""
        self._timer.start()

    def stop(self, deadline: Deadline) -> list[str]:
        """Stop the timer and the hands; runs go on. Answers the names of threads still alive."""
        self._guard.stop()
        left = self._timer.stop(deadline) + self._hands.stop(deadline)
        return [thread.name for thread in left]
