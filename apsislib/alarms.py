"""The alarm clock of the kernel: what wakes a run, and when.

Two heaps: instants of schedules by the wall clock, durations by CLOCK_BOOTTIME. Nothing is ever
removed from the middle: an alarm that was re-armed or disarmed goes stale and is dropped when it
comes up, and a heap that is mostly stale is rebuilt.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from apsislib.runs import Alarm

_WALL = (Alarm.DUE, Alarm.STOP)
_Entry = tuple[float, int, str, Alarm]


class Alarms:
    def __init__(self) -> None:
        self._wall: list[_Entry] = []
        self._boot: list[_Entry] = []
        self._armed: dict[tuple[str, Alarm], tuple[int, float]] = {}  # (seq, when) of the live entry
        self._seq = 0  # breaks ties in order of arming, so that nothing else is ever compared

    def __len__(self) -> int:
        return len(self._armed)

    @property
    def heaped(self) -> int:
        """Entries in the heaps, stale ones included."""
        return len(self._wall) + len(self._boot)

    def arm(self, run_id: str, kind: Alarm, when: float) -> None:
        """Wake the run at `when`; replaces its earlier alarm of this kind, and of no other."""
        self._seq += 1
        self._armed[run_id, kind] = (self._seq, when)
        heap = self._wall if kind in _WALL else self._boot
        heapq.heappush(heap, (when, self._seq, run_id, kind))

    def disarm(self, run_id: str, kinds: Iterable[Alarm] = tuple(Alarm)) -> None:
        for kind in kinds:
            self._armed.pop((run_id, kind), None)

    def armed(self, run_id: str, kind: Alarm) -> float | None:
        found = self._armed.get((run_id, kind))
        return found and found[1]

    def pop(self, wall: float, boot: float) -> tuple[str, Alarm, float] | None:
        """The next live alarm that is due, disarmed: (run ID, kind, when); None if none is."""
        for heap, now in ((self._wall, wall), (self._boot, boot)):
            while heap and heap[0][0] <= now:
                when, seq, run_id, kind = heapq.heappop(heap)
                if self._armed.get((run_id, kind), (0,))[0] == seq:
                    del self._armed[run_id, kind]
                    return run_id, kind, when
        self._tidy()
        return None

    def next(self) -> tuple[float | None, float | None]:
        """The next live wall instant and boot instant."""
        return self._top(self._wall), self._top(self._boot)

    def _top(self, heap: list[_Entry]) -> float | None:
        while heap and self._armed.get((heap[0][2], heap[0][3]), (0,))[0] != heap[0][1]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def _tidy(self) -> None:
        if self.heaped > 2 * len(self._armed) + 1000:
            for heap in (self._wall, self._boot):
                heap[:] = [e for e in heap if self._armed.get((e[2], e[3]), (0,))[0] == e[1]]
                heapq.heapify(heap)
