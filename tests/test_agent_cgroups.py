"""Limits and accounting by cgroup v2, in a Linux of the test's own: few machines lend us cgroups."""

from __future__ import annotations

import ast
from pathlib import Path

import own_linux
import pytest

SCENARIO = Path(__file__).with_name("cgroup_scenario.py")


@pytest.mark.timeout(300)
def test_every_test_of_the_scenario_passes_there(tmp_path: Path) -> None:
    status, said = own_linux.run(own_linux.pytest_command(SCENARIO.name), tmp_path, timeout=280)
    print(said)
    assert status == 0, said
    tests = [node.name for node in ast.parse(SCENARIO.read_text()).body if isinstance(node, ast.FunctionDef)]
    for test in tests:
        assert not test.startswith("test_") or f"PASSED tests/{SCENARIO.name}::{test}" in said, said
