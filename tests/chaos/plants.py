"""Defects, planted into the server's process before it starts: the checker has to find each.

Each is a mistake that an engineer could make in a change that passes every example.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from apsislib.driver.acting import Acting
from apsislib.driver.guard import Guard
from apsislib.runs import Connect, Launch, Run, Send, SetClock
from apsislib.scheduler.ahead import Ahead
from apsislib.scheduler.ledger import Ledger
from apsislib.states import State
from apsislib.store.backlog import Backlog
from apsislib.store.records import Chunk
from programs import fetching
from programs.fetching import Fetching

PART = 64 * 1024  # bytes of output that are written at once


def launch_before_commit() -> None:
    """Programs are told as soon as something is decided; the disk may follow."""
    early: dict[int, Acting] = {}
    init, flush, call = Acting.__init__, Guard.flush_locked, Acting._call_program

    def remember(self: Acting, guard: Guard, *rest: Any) -> None:
        init(self, guard, *rest)
        early[id(guard)] = self

    def hasty(self: Guard) -> None:
        acting = early.get(id(self))
        calls = [effect for effect in self.kernel.outbox if isinstance(effect, Launch | Send)]
        flush(self)
        if acting is not None and calls:
            acting._hands.submit(acting._hands.programs, do, acting, calls)

    def do(acting: Acting, calls: list[Any]) -> None:
        for effect in calls:
            call(acting, effect, effect.run)

    def later(self: Acting, effect: Any, run: Run) -> None:
        if not isinstance(effect, Launch | Send):
            call(self, effect, run)

    Acting.__init__ = remember  # type: ignore[method-assign]
    Guard.flush_locked = hasty  # type: ignore[method-assign]
    Acting._call_program = later  # type: ignore[method-assign]


def clock_before_claims() -> None:
    """The stored clock runs ahead of what is claimed, by as much as a timer may be late."""

    def move_clock(self: Ahead, wall: float) -> None:
        if wall + 2.0 > self.clock + 1.0:
            self.clock = wall + 2.0
            self._ledger.outbox.append(SetClock(self.clock))

    Ahead.move_clock = move_clock  # type: ignore[method-assign]


def reconciliation_skipped() -> None:
    """A server that was started again does not look for the processes of its runs."""
    call = Acting._call_program

    def forgetful(self: Acting, effect: Any, run: Run) -> None:
        if not isinstance(effect, Connect):
            call(self, effect, run)

    Acting._call_program = forgetful  # type: ignore[method-assign]


def slot_kept() -> None:
    """A run that ends in error goes on counting against max_running."""
    touch = Ledger.touch

    def greedy(self: Ledger, run: Run, old: State | None) -> None:
        touch(self, run, None if run.state is State.ERROR else old)

    Ledger.touch = greedy  # type: ignore[method-assign]


def offset_reset() -> None:
    """After a restart output is asked for from its beginning, and put behind what is there."""
    resume, store = Fetching.resume, Fetching._store
    bases: dict[str, int] = {}

    def again(self: Fetching) -> None:
        resume(self)
        bases[self._process.proc_id] = self._received
        self._received = 0

    def behind(self: Fetching, data: bytes) -> None:
        base = bases.get(self._process.proc_id, 0)
        self._received += base
        store(self, data)
        self._received -= base

    Fetching.resume = again  # type: ignore[method-assign]
    Fetching._store = behind  # type: ignore[method-assign]


def verdict_before_output() -> None:
    """A verdict does not wait for the last of its run's output."""
    take = Backlog.take

    def part(self: Backlog, limit: int, whole: Collection[str]) -> list[Chunk]:
        return take(self, min(limit, PART), ())

    fetching.TOGETHER = 1 << 30
    Backlog.take = part  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (
        launch_before_commit,
        clock_before_claims,
        reconciliation_skipped,
        slot_kept,
        offset_reset,
        verdict_before_output,
    )
}
