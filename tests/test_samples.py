"""Figures over time."""

from __future__ import annotations

from pathlib import Path

import pytest

from apsislib import samples
from apsislib.clock import Deadline, SimClock, WallClock
from apsislib.figures import Extent
from apsislib.samples import Samples


class Meter:
    """Totals and figures that a test sets."""

    def __init__(self) -> None:
        self.now = dict.fromkeys([*samples.FIGURES], 0.0)

    def __call__(self) -> dict[str, float]:
        return self.now


def test_totals_become_differences_and_points_of_longer_spans_are_put_together() -> None:
    clock = SimClock(1_900_000_000.0)
    meter = Meter()
    kept = Samples(clock, meter)
    kept.sample()  # the first one has nothing to be compared with
    for n in range(1, 49):
        clock.advance(10)
        meter.now["ended"] += n
        meter.now["failed"] += n % 2
        meter.now["lateness"] = 5.0 if n == 7 else 0.01
        meter.now["memory"] = 1000.0 + n
        meter.now["processor"] += 2.5
        kept.sample()
    hour, day = kept.series("hour"), kept.series("day")
    assert hour["series"]["ended"] == list(range(1, 49))
    assert hour["series"]["processor"] == [0.25] * 48
    assert hour["step"] == 10.0 and hour["end"] == "2030-03-17T17:54:40.000+00:00"
    assert day["step"] == 240.0
    assert day["series"]["ended"] == [sum(range(1, 25)), sum(range(25, 49))]
    assert day["series"]["failed"] == [12, 12]
    assert day["series"]["lateness"] == [5.0, 0.01]  # not averaged away
    assert day["series"]["memory"] == [1024.0, 1048.0]
    assert kept.series("week")["series"]["ended"] == []


def test_no_ring_grows_beyond_its_bound() -> None:
    clock = SimClock(0.0)
    kept = Samples(clock, Meter())
    for _ in range(5000):
        kept.sample()
    assert len(kept.series("hour")["series"]["memory"]) == 360
    assert len(kept.series("day")["series"]["memory"]) == 5000 // 24


def test_the_thread_takes_samples_and_ends_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(samples, "EVERY", 0.01)
    failures = [OSError("no such file")]

    def take() -> dict[str, float]:
        if failures:
            raise failures.pop()
        return Meter()()

    kept = Samples(WallClock(), take)  # what goes wrong once costs one sample
    kept.start()
    deadline = Deadline(30)
    while len(kept.series("hour")["series"]["memory"]) < 3:
        assert not deadline.passed()
    assert kept.stop(Deadline(30)) == []


def test_a_peak_is_told_once() -> None:
    extent = Extent()
    for value in (0.5, 3.0, 1.0):
        extent.add(value)
    assert (extent.take_peak(), extent.take_peak()) == (3.0, 0.0)
    extent.add(0.2)
    assert extent.take_peak() == 0.2
    assert extent.json()["max"] == 3.0
