"""Who waits for what, and what is known of runs that have ended.

A waiter is filed under what its verdict named: an instance, and the states that a run of it may enter.
One that waits for a slot of an instance stands in its queue, of which only the head is woken, so that a
limit with ten thousand waiters costs each completion no more than one with ten.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from apsislib.conditions import Bound, Key, RunKey, Verdict
from apsislib.states import FINISHED, State

REMEMBERED = 10_000  # instances whose outcomes are kept; a query each brings back what was dropped


@dataclass(slots=True)
class Wait:
    """One waiting run."""

    conds: tuple[Bound, ...]
    at: int = 0  # index of the first condition not yet satisfied; len(conds): only re-checks are left
    blocked: int = 0  # index of the condition that it waits for
    since: float = 0.0  # wall instant from which it waits for that one
    reason: str = ""
    keys: tuple[Key, ...] = ()
    asked: set[int] = field(default_factory=set)  # conditions of users' own that have not answered yet
    answers: dict[int, Verdict] = field(default_factory=dict)
    place: int = 0  # in the order in which runs began to wait
    over: bool = False  # its time to wait is over, but an answer is still to come


class Waits:
    def __init__(self) -> None:
        self._waits: dict[str, Wait] = {}
        self.filed: dict[RunKey, dict[str, frozenset[State]]] = {}  # read by the ledger, before it touches
        self._queues: dict[RunKey, list[tuple[int, str]]] = {}  # heaps; may hold who has left
        self._ready: deque[str] = deque()
        self._is_ready: set[str] = set()
        self._place = 0

    def get(self, run_id: str) -> Wait | None:
        return self._waits.get(run_id)

    def enter(self, run_id: str, wait: Wait) -> None:
        """It waits, and is to be judged."""
        self._place += 1
        wait.place = self._place
        self._waits[run_id] = wait

    def leave(self, run_id: str) -> None:
        """It waits no more; if it was the head of a queue, the next one is looked at."""
        wait = self._waits.pop(run_id, None)
        if wait is not None:
            self.passed(self._unfile(run_id, wait), None)

    def file(self, run_id: str, keys: tuple[Key, ...]) -> None:
        """Judge it again when one of `keys` is touched."""
        wait = self._waits[run_id]
        wait.keys = keys
        for key, states in keys:
            if states is None:
                heapq.heappush(self._queues.setdefault(key, []), (wait.place, run_id))
            else:
                self.filed.setdefault(key, {})[run_id] = states

    def take(self, run_id: str) -> tuple[Wait, tuple[Key, ...]]:
        """The wait of a run that is about to be judged, and the keys that it was filed under till now."""
        wait = self._waits[run_id]
        return wait, self._unfile(run_id, wait)

    def passed(self, keys: tuple[Key, ...], wait: Wait | None) -> None:
        """A run has been judged: where it is not queued any more, the next one is looked at.

        Not before: two heads that both find no slot would wake each other for ever.
        """
        for key in keys:
            if key[1] is None and (wait is None or key not in wait.keys):
                self.touch_slots(key[0])

    def wake(self, run_id: str) -> None:
        if run_id not in self._is_ready:
            self._is_ready.add(run_id)
            self._ready.append(run_id)

    def touch(self, key: RunKey, state: State | None) -> None:
        """A run of this instance has entered `state`; None: all may be different. The oldest go first."""
        filed = self.filed.get(key)
        if filed:
            woken = [run_id for run_id, states in filed.items() if state is None or state in states]
            if len(woken) > 1:
                woken.sort(key=lambda run_id: self._waits[run_id].place)
            for run_id in woken:
                self.wake(run_id)

    def touch_slots(self, key: RunKey) -> None:
        """A slot of this instance may be free."""
        if key in self._queues:
            head = self.head(key)
            if head is not None:
                self.wake(head)

    def head(self, key: RunKey) -> str | None:
        """The first that waits for a slot of this instance."""
        queue = self._queues.get(key)
        while queue:
            wait = self._waits.get(queue[0][1])
            if wait is not None and (key, None) in wait.keys:
                return queue[0][1]
            heapq.heappop(queue)
        self._queues.pop(key, None)
        return None

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def next_ready(self) -> str | None:
        while self._ready:
            run_id = self._ready.popleft()
            self._is_ready.discard(run_id)
            if run_id in self._waits:
                return run_id
        return None

    def _unfile(self, run_id: str, wait: Wait) -> tuple[Key, ...]:
        keys, wait.keys = wait.keys, ()
        for key, states in keys:
            if states is not None:  # from a queue it is dropped when it comes up
                filed = self.filed[key]
                del filed[run_id]
                if not filed:
                    del self.filed[key]
        return keys


class Outcomes:
    """In which states runs of an instance ended: what this process saw, or what a query brought."""

    def __init__(self) -> None:
        self._known: OrderedDict[RunKey, frozenset[State]] = OrderedDict()
        # Endings seen while a query is under way, whose answer may be older than they are; None: the past was
        # changed meanwhile, so that the answer is worth nothing.
        self._asked: dict[RunKey, set[State] | None] = {}

    def get(self, key: RunKey) -> frozenset[State] | None:
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def ask(self, key: RunKey) -> bool:
        """Note that the database is to be asked; False if it is being asked already."""
        if key in self._asked:
            return False
        self._asked[key] = set()
        return True

    def answer(self, key: RunKey, states: Iterable[State]) -> None:
        seen = self._asked.pop(key, set())
        if seen is None:
            return  # who waits for it asks again
        self._known[key] = (frozenset(states) & FINISHED) | seen
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def ended(self, key: RunKey, state: State) -> None:
        if key in self._known:
            self._known[key] |= {state}
        asked = self._asked.get(key)
        if asked is not None:
            asked.add(state)

    def forget_jobs(self, job_ids: Collection[str]) -> None:
        """Runs of these jobs have left the database: ask again."""
        for key in [key for key in (*self._known, *self._asked) if key[0] in job_ids]:
            self.forget(key)

    def forget(self, key: RunKey) -> None:
        """A mark or an archive changed the past: ask again."""
        self._known.pop(key, None)
        if key in self._asked:
            self._asked[key] = None
