"""Shared by all tests."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sim import Sim  # noqa: E402

# A shell lets what it starts in the background ignore Ctrl-C, and all that we start would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def sim() -> Sim:
    return Sim()
