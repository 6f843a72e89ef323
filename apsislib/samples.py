"""Figures over time: a few rings of samples, from the last hour by tens of seconds to the last week.

In memory alone: a restart begins anew, and Prometheus is there for whoever wants to keep them.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any

from apsislib.clock import Clock, Deadline
from apsislib.times import format_time

log = logging.getLogger(__name__)

EVERY = 10.0  # s between two samples
# name -> (samples that make one point, points kept): an hour, a day, a week of points that fit a screen.
RINGS = {"hour": (1, 360), "day": (24, 360), "week": (168, 360)}

# How the samples of one point become it. Lateness must not be averaged away; of sizes the last counts.
FIGURES: Mapping[str, Callable[[list[float]], float]] = {
    "lateness": max,  # s, the longest
    "ended": sum,  # runs
    "failed": sum,  # runs
    "running": max,  # runs
    "waiting": max,  # runs
    "memory": lambda values: values[-1],  # bytes, resident
    "database": lambda values: values[-1],  # bytes, with its write-ahead log
    "processor": lambda values: sum(values) / len(values),  # of one processor, 0 to 1
}


@dataclass(slots=True)
class _Ring:
    per: int
    points: deque[array[float]]  # by the order of FIGURES
    held: list[list[float]]  # samples of the point to come


class Samples:
    """Takes a sample every ten seconds, on a thread of its own; any thread may ask for a ring."""

    def __init__(self, clock: Clock, take: Callable[[], Mapping[str, float]]) -> None:
        """`take` answers totals of ended, failed and processor seconds, and the rest as it is now."""
        self._clock = clock
        self._take = take
        self._lock = Lock()  # protects the rings and _end; leaf
        self._rings = {name: _Ring(per, deque(maxlen=most), []) for name, (per, most) in RINGS.items()}
        self._end = clock.wall()
        self._before: Mapping[str, float] | None = None
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="apsis-samples")

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline: Deadline) -> list[str]:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(deadline.left())
        return [self._thread.name] if self._thread.is_alive() else []

    def _run(self) -> None:
        """(apsis-samples) Ends when stop() was called."""
        while True:
            try:
                self.sample()
            except Exception:  # figures are worth no more than a line in the log
                log.exception("a sample could not be taken")
            if self._stopping.wait(EVERY):
                return

    def sample(self) -> None:
        taken, before = self._take(), self._before
        self._before = dict(taken)
        if before is None:
            return
        now = dict(taken)
        for name in ("ended", "failed"):
            now[name] = max(0.0, now[name] - before[name])
        now["processor"] = max(0.0, now["processor"] - before["processor"]) / EVERY
        row = [float(now[name]) for name in FIGURES]
        with self._lock:
            self._end = self._clock.wall()
            for ring in self._rings.values():
                ring.held.append(row)
                if len(ring.held) == ring.per:
                    columns = zip(*ring.held, strict=True)
                    ring.points.append(
                        array("d", [f(list(c)) for f, c in zip(FIGURES.values(), columns, strict=True)])
                    )
                    ring.held = []

    def series(self, name: str) -> dict[str, Any]:
        """The points of a ring, oldest first, and the seconds between two of them."""
        with self._lock:
            ring = self._rings[name]
            points, end = list(ring.points), self._end - len(ring.held) * EVERY
        return {
            "end": format_time(end),
            "step": ring.per * EVERY,
            "series": {figure: [_rounded(point[n]) for point in points] for n, figure in enumerate(FIGURES)},
        }


def _rounded(value: float) -> float:
    return round(value, 6) if math.isfinite(value) else 0.0
