"""Shared by all tests."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

from sim import Sim  # noqa: E402

if TYPE_CHECKING:
    from installation import Installation
    from playwright.sync_api import Browser, Page

# A shell lets what it starts in the background ignore Ctrl-C, and all that we start would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# The files that take longest, which begin first: begun as the last, each would have one worker busy while
# the others are done already. xdist would begin those of the most tests, which are the quick ones. Beside
# the campaigns of chaos, which are about time, stand those that mostly wait.
LONGEST = """
chaos_plants agent_loss clock_steps ecs_life units chaos nth_fault pages_runs pages_today pages_jobs cli
pages_run power_loss damage agent_cgroups pages_server faults networks pages_output localagent reload pages
interfaces agent_life vacuum config_effects dist year exhaustion examples output_survives sudo command_line
founding_document agent_versions downtime
""".split()  # noqa: SIM905  A list would take a line for each.
RANKS = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
assert all((Path(__file__).parent / name).exists() for name in RANKS), "a file of LONGEST is no more"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: RANKS.get(item.path.name, len(RANKS)))


@pytest.fixture
def sim() -> Sim:
    return Sim()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from browsing import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, site: Installation) -> Iterator[Page]:
    """A page of the test file's `site`, on which nothing may go wrong."""
    from browsing import watched

    with watched(browser, site.url) as page:
        yield page


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A server with the JOBS of the test file; where it has none, with the SITE of browsing.py."""
    directory = tmp_path_factory.mktemp("site")
    if jobs := getattr(request.module, "JOBS", None):
        from installation import Installation

        site = Installation(directory, jobs).start()
    else:
        from browsing import installed

        site = installed(directory)
    yield site
    site.stop()
