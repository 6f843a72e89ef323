"""The alarm clock of the kernel: what wakes a run, and when.

Two heaps: instants of schedules by the wall clock, durations by CLOCK_BOOTTIME. Nothing is ever
removed from the middle: an alarm that was re-armed or disarmed goes stale and is dropped when it
comes up, and a heap that is mostly stale is rebuilt.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from apsislib.runs import Alarm

_WALL = (Alarm.DUE, Alarm.STOP, Alarm.LATE, Alarm.MISSED)
_Entry = tuple[float, int, str, Alarm]
_NONE: dict[Alarm, tuple[int, float]] = {}


class Alarms:
    def __init__(self) -> None:
        self._wall: list[_Entry] = []
        self._boot: list[_Entry] = []
        # By run: the live entry of each kind, (seq, when).
        self._armed: dict[str, dict[Alarm, tuple[int, float]]] = {}
        self._seq = 0  # breaks ties in order of arming, so that nothing else is ever compared

    def __len__(self) -> int:
        return sum(map(len, self._armed.values()))

    @property
    def heaped(self) -> int:
        """Entries in the heaps, stale ones included."""
        return len(self._wall) + len(self._boot)

    def arm(self, run_id: str, kind: Alarm, when: float) -> None:
        """Wake the run at `when`; replaces its earlier alarm of this kind, and of no other."""
        self._seq += 1
        mine = self._armed.get(run_id)
        if mine is None:
            mine = self._armed[run_id] = {}
        mine[kind] = (self._seq, when)
        heap = self._wall if kind in _WALL else self._boot
        heapq.heappush(heap, (when, self._seq, run_id, kind))

    def disarm(self, run_id: str, kinds: Iterable[Alarm] | None = None) -> None:
        """Forget the run's alarms of these kinds; of all, if none are named."""
        mine = self._armed.get(run_id)
        if mine is None:
            return
        for kind in kinds or ():
            mine.pop(kind, None)
        if kinds is None or not mine:
            del self._armed[run_id]

    def armed(self, run_id: str, kind: Alarm) -> float | None:
        found = self._armed.get(run_id, _NONE).get(kind)
        return None if found is None else found[1]

    def _is_live(self, entry: _Entry) -> bool:
        _, seq, run_id, kind = entry
        found = self._armed.get(run_id, _NONE).get(kind)
        return found is not None and found[0] == seq

    def pop(self, wall: float, boot: float) -> tuple[str, Alarm, float] | None:
        """The next live alarm that is due, disarmed: (run ID, kind, when); None if none is."""
        for heap, now in ((self._wall, wall), (self._boot, boot)):
            while heap and heap[0][0] <= now:
                entry = heapq.heappop(heap)
                if self._is_live(entry):
                    when, _, run_id, kind = entry
                    self.disarm(run_id, (kind,))
                    return run_id, kind, when
        self._tidy()
        return None

    def next(self) -> tuple[float | None, float | None]:
        """The next live wall instant and boot instant."""
        return self._top(self._wall), self._top(self._boot)

    def _top(self, heap: list[_Entry]) -> float | None:
        while heap and not self._is_live(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def _tidy(self) -> None:
        # A run has one alarm as a rule, so that runs do for alarms here.
        if self.heaped > 2 * len(self._armed) + 1000:
            for heap in (self._wall, self._boot):
                heap[:] = [entry for entry in heap if self._is_live(entry)]
                heapq.heapify(heap)
