"""A short campaign against a whole installation. `make chaos SECONDS=1800 SEED=7` plays a long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import nemesis
from chaos.campaign import RECONNECT, campaign

SECONDS = 40.0
SEED = 4


@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_late_unsaid_or_untrue(tmp_path: Path) -> None:
    told: list[str] = []
    outcome = campaign(tmp_path, SEED, SECONDS, told.append)
    print(outcome)
    verdict = outcome.verdict
    assert verdict.clean, "\n".join([str(outcome), *told])
    assert set(outcome.history.counts) == set(nemesis.KINDS)
    assert verdict.occurrences > 100 and verdict.runs > 100


def test_a_seed_is_one_timetable_with_every_kind_of_fault() -> None:
    for seed in range(50):
        faults = nemesis.timetable(seed, SECONDS, ["a1", "a2"], RECONNECT)
        assert faults == nemesis.timetable(seed, SECONDS, ["a1", "a2"], RECONNECT)
        assert any(fault.lasts > RECONNECT for fault in faults)
        assert faults != nemesis.timetable(seed + 1, SECONDS, ["a1", "a2"], RECONNECT)
