"""Shared by all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sim import Sim  # noqa: E402


@pytest.fixture
def sim() -> Sim:
    return Sim()
