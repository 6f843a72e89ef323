"""Where time comes from. The only importer of `time`; everything else is given instants."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Three readings, all in seconds."""

    def wall(self) -> float:
        """Since the epoch, UTC. An operator may step it: it decides schedules, never durations."""

    def boot(self) -> float:
        """Since boot, suspend included (CLOCK_BOOTTIME). Durations of runs are measured on it."""

    def monotonic(self) -> float:
        """For I/O deadlines, which a suspended machine should not use up."""


class WallClock:
    """The machine's clocks."""

    def wall(self) -> float:
        return time.time()

    def boot(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def monotonic(self) -> float:
        return time.monotonic()


class SimClock:
    """A clock that is set by hand: tests, and `apsis preview`."""

    def __init__(self, wall: float = 0.0) -> None:
        self._wall = wall
        self._boot = 0.0

    def wall(self) -> float:
        return self._wall

    def boot(self) -> float:
        return self._boot

    def monotonic(self) -> float:
        return self._boot

    def advance(self, seconds: float) -> None:
        self._wall += seconds
        self._boot += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP would."""
        self._wall += seconds


class Deadline:
    """How long an I/O wait may still last, carried through several waits."""

    def __init__(self, seconds: float | None, clock: Clock | None = None) -> None:
        self._clock = clock or WallClock()
        self._end = None if seconds is None else self._clock.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds left, at least 0; None where there is no limit."""
        return None if self._end is None else max(0.0, self._end - self._clock.monotonic())

    def passed(self) -> bool:
        return self._end is not None and self._clock.monotonic() >= self._end
