"""The alarm clock of the kernel: what wakes a run, and when.

Three heaps: instants of schedules by the wall clock, those at which runs are to stop apart from the
others, and durations by CLOCK_BOOTTIME. Nothing is ever removed from the middle: an alarm that was
re-armed or disarmed goes stale and is dropped when it comes up, and a heap that is mostly stale is
rebuilt.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from apsislib.runs import Alarm

_WALL = frozenset((Alarm.DUE, Alarm.LATE, Alarm.MISSED))
_Entry = tuple[float, int, str, Alarm]  # when, seq, run ID, kind
_NONE: dict[Alarm, _Entry] = {}


class Alarms:
    def __init__(self) -> None:
        self._wall: list[_Entry] = []
        self._stop: list[_Entry] = []
        self._boot: list[_Entry] = []
        self._armed: dict[str, dict[Alarm, _Entry]] = {}  # by run: the live entry of each kind
        self._seq = 0  # breaks ties in order of arming, so that nothing else is ever compared

    def __len__(self) -> int:
        return sum(map(len, self._armed.values()))

    @property
    def heaped(self) -> int:
        """Entries in the heaps, stale ones included."""
        return len(self._wall) + len(self._stop) + len(self._boot)

    def arm(self, run_id: str, kind: Alarm, when: float) -> None:
        """Wake the run at `when`; replaces its earlier alarm of this kind, and of no other."""
        self._seq += 1
        entry = when, self._seq, run_id, kind
        mine = self._armed.get(run_id)
        if mine is None:
            self._armed[run_id] = {kind: entry}
        else:
            mine[kind] = entry
        heap = self._wall if kind in _WALL else self._stop if kind is Alarm.STOP else self._boot
        heappush(heap, entry)

    def disarm(self, run_id: str, *kinds: Alarm) -> None:
        """Forget the run's alarms of these kinds."""
        mine = self._armed.get(run_id)
        if mine is not None:
            for kind in kinds:
                mine.pop(kind, None)
            if not mine:
                del self._armed[run_id]

    def forget(self, run_id: str) -> None:
        """All alarms of the run."""
        self._armed.pop(run_id, None)

    def armed(self, run_id: str, kind: Alarm) -> float | None:
        found = self._armed.get(run_id, _NONE).get(kind)
        return None if found is None else found[0]

    def due(self, wall: float, boot: float, only_ends: bool = False) -> Iterator[tuple[str, Alarm, float]]:
        """The live alarms that are due, each disarmed when it comes: (run ID, kind, when).

        `only_ends`: not those by which runs begin. Others may be armed and disarmed meanwhile.
        """
        armed = self._armed
        begins = float("-inf") if only_ends else wall
        for heap, now in ((self._wall, begins), (self._stop, wall), (self._boot, boot)):
            while heap and heap[0][0] <= now:
                entry = heappop(heap)
                when, _, run_id, kind = entry
                mine = armed.get(run_id, _NONE)
                if mine.get(kind) is entry:
                    if len(mine) > 1:
                        del mine[kind]
                    else:
                        del armed[run_id]
                    yield run_id, kind, when
        # A run has one alarm as a rule, so that runs do for alarms here.
        if self.heaped > 2 * len(armed) + 1000:
            self._tidy()

    def next(self) -> tuple[float | None, float | None]:
        """The next live wall instant and boot instant."""
        return self.next_wall(), self._top(self._boot)

    def next_wall(self) -> float | None:
        due, stop = self._top(self._wall), self._top(self._stop)
        return due if stop is None or (due is not None and due < stop) else stop

    def _top(self, heap: list[_Entry]) -> float | None:
        while heap:
            entry = heap[0]
            if self._armed.get(entry[2], _NONE).get(entry[3]) is entry:
                return entry[0]
            heappop(heap)
        return None

    def _tidy(self) -> None:
        for heap in (self._wall, self._stop, self._boot):
            heap[:] = [e for e in heap if self._armed.get(e[2], _NONE).get(e[3]) is e]
            heapify(heap)
