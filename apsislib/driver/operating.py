"""What operators do to runs, one by one and many at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from apsislib.driver.guard import Guard
from apsislib.driver.late import Late
from apsislib.driver.looking import Looking
from apsislib.driver.making import Making
from apsislib.driver.timer import SLICE
from apsislib.errors import ApsisError, NotFound, RunError, Unavailable
from apsislib.operations import refusal
from apsislib.runs import Note, Run, adrift
from apsislib.scheduler import Scheduler
from apsislib.states import FINISHED, State

URGENT = ("stop", "signal")  # those overtake a failing disk
Ended = Callable[[Scheduler, Run], None]


class Operating:
    def __init__(self, guard: Guard, looking: Looking, making: Making, late: Late) -> None:
        self._guard = guard
        self._clock = guard.clock
        self._looking = looking
        self._making = making
        self._late = late

    def skip(self, run_id: str, reason: str = "") -> Run:
        """Raises NotFound, RunError, Unavailable; so do the others here. `reason`: for the run's log."""
        return self._operate(run_id, "skip", reason, lambda k: k.skip(run_id, self._clock.wall()))

    def start_run(self, run_id: str, reason: str = "") -> Run:
        return self._operate(
            run_id, "start", reason, lambda k: k.start(run_id, self._clock.wall(), self._clock.boot())
        )

    def stop_run(self, run_id: str, reason: str = "") -> Run:
        return self._operate(
            run_id,
            "stop",
            reason,
            lambda k: k.stop(run_id, self._clock.wall(), self._clock.boot()),
            lambda k, run: k.stop_adrift(run, self._clock.wall()),
        )

    def signal(self, run_id: str, signum: int, reason: str = "") -> Run:
        return self._operate(
            run_id,
            "signal",
            reason,
            lambda k: k.signal(run_id, signum, self._clock.wall()),
            lambda k, run: k.signal_adrift(run, signum, self._clock.wall()),
        )

    def mark(self, run_id: str, state: State, reason: str = "") -> Run:
        self._check_disk_for("mark")
        ticket = self._operate_ended(run_id, reason, lambda k, run: k.mark(run, state, self._clock.wall()))
        self._wait(ticket, "mark", False)
        return self._looking.find_run(run_id)

    def _operate(
        self,
        run_id: str,
        verb: str,
        reason: str,
        operation: Callable[[Scheduler], None],
        ended: Ended | None = None,
    ) -> Run:
        """`ended`: what is done to a run that is not in memory any more; None: nothing can be."""
        self._check_disk_for(verb)
        is_live = True
        with self._guard.hold() as kernel:
            try:
                operation(kernel)
                self._give(kernel, run_id, reason)
            except KeyError:
                is_live = False
            self._guard.flush_locked()
            ticket = self._guard.ticket
            run = kernel.runs.get(run_id)
            self._guard.wake_timer_locked()
        if not is_live:  # the database is asked, for which nobody else should wait
            if ended is None:
                raise self._not_live(run_id, verb)
            ticket = self._operate_ended(run_id, reason, ended)
        is_order = verb == "stop" and (run is None or run.state in FINISHED)  # to be read from the disk
        self._wait(ticket, verb, verb in URGENT and not is_order)
        return run or self._looking.find_run(run_id)

    def _give(self, kernel: Scheduler, run_id: str, reason: str) -> None:
        """The reason of what was just done, in the same transaction as that."""
        if reason:
            kernel.outbox.append(Note(run_id, self._clock.wall(), f"reason: {reason}"))

    def _operate_ended(self, run_id: str, reason: str, operation: Ended) -> int:
        """The ticket. Raises as an operation does."""

        def operate(kernel: Scheduler, run: Run) -> None:
            operation(kernel, run)
            self._give(kernel, run_id, reason)

        ticket = self._late.amend(run_id, operate)
        if ticket is None:
            raise NotFound(f"unknown run {run_id}")
        return ticket

    def _wait(self, ticket: int, verb: str, urgent: bool) -> None:
        """`urgent`: it is passed on though the disk fails."""
        try:
            self._guard.wait(ticket)
        except Unavailable as error:
            if not urgent:
                text = f"{error}; the {verb} counts when that is over, unless the server ends before"
                raise Unavailable(text) from error
            self._guard.overtake()
            # To say that all is well would be a promise: a server that ends now knows nothing of it.
            raise Unavailable(
                f"the {verb} is passed on if the agent is connected, but {error}; ask again should the server"
                " end before that"
            ) from error

    def _check_disk_for(self, verb: str) -> None:
        if verb not in URGENT:
            self._guard.check_disk()

    def _not_live(self, run_id: str, verb: str) -> ApsisError:
        """Why an operation on a run that is not in memory is refused: it has ended, or never was."""
        with self._guard.store.read() as reader:
            run = reader.run(run_id)
        if run is None:
            return NotFound(f"unknown run {run_id}")
        return RunError(refusal(verb, run) or f"can't {verb} {run_id}: it has just ended")

    # -- many at once --------------------------------------------------------------------------------

    def bulk(
        self,
        verb: str,
        run_ids: Sequence[str],
        *,
        signum: int = 0,
        state: State | None = None,
        dry_run: bool = False,
        reason: str = "",
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The same operation on many runs, each by itself: (run ID -> run ID, or of its rerun; refusals).

        `dry_run`: only say what would come of it, as things are now. Raises Unavailable.
        """
        done: dict[str, str] = {}
        refused: dict[str, str] = {}
        if not dry_run:
            self._check_disk_for(verb)
        ticket, urgent = 0, verb in URGENT

        def order(kernel: Scheduler, run: Run) -> None:
            if verb == "mark":
                assert state is not None
                kernel.mark(run, state, self._clock.wall())
            elif verb == "stop":
                kernel.stop_adrift(run, self._clock.wall())
            else:
                kernel.signal_adrift(run, signum, self._clock.wall())

        for at in range(0, len(run_ids), SLICE):
            some = run_ids[at : at + SLICE]
            with self._guard.hold() as kernel:
                amended = kernel.amended
            with self._guard.store.read() as reader:
                stored = {run.run_id: run for run in reader.runs(run_ids=some)}
            if verb == "rerun" or dry_run:
                self._bulk_rest(verb, some, stored, state, dry_run, reason, done, refused)
                continue
            ended: list[str] = []
            with self._guard.hold() as kernel:
                stale = kernel.amended != amended  # what was read: somebody has changed some of them since
                for run_id in some:
                    run = stored.get(run_id)
                    apart = stale if verb == "mark" else verb in URGENT and run and adrift(run) is not None
                    if apart and run_id not in kernel.runs:
                        ended.append(run_id)
                        continue
                    try:
                        self._bulk_one(kernel, verb, run_id, stored, signum, state)
                        self._give(kernel, run_id, reason)
                        done[run_id] = run_id
                    except ApsisError as error:
                        refused[run_id] = str(error)
                self._guard.flush_locked()
                ticket = self._guard.ticket
                self._guard.wake_timer_locked()
            for run_id in ended:
                try:
                    ticket = self._operate_ended(run_id, reason, order)
                    done[run_id] = run_id
                    urgent = verb == "signal"
                except ApsisError as error:
                    refused[run_id] = str(error)
        if ticket:
            self._wait(ticket, verb, urgent)
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
        wall, boot = self._clock.wall(), self._clock.boot()
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
        reason: str,
        done: dict[str, str],
        refused: dict[str, str],
    ) -> None:
        for run_id in run_ids:
            run = self._looking.live_run(run_id) or stored.get(run_id)
            said = f"unknown run {run_id}" if run is None else refusal(verb, run, state)
            if said is not None:
                refused[run_id] = said
            else:
                done[run_id] = run_id if dry_run else self._making.rerun(run_id, reason).run_id
