"""A host that sleeps, for real: in a Linux of the test's own, as nobody may suspend the machine itself."""

from __future__ import annotations

from pathlib import Path

import own_linux
import preloaded
import pytest


@pytest.mark.timeout(300)
def test_the_scenario_passes_there(tmp_path: Path) -> None:
    clock = preloaded.build("sleeper", tmp_path)
    command = own_linux.pytest_command("suspend_scenario.py")
    status, said = own_linux.run(command, tmp_path, 280, LD_PRELOAD=str(clock))
    print(said)
    assert status == 0 and "PASSED tests/suspend_scenario.py" in said, said
