"""Shared by all tests."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sim import Sim  # noqa: E402

if TYPE_CHECKING:
    from installation import Installation
    from playwright.sync_api import Browser, Page

# A shell lets what it starts in the background ignore Ctrl-C, and all that we start would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
def site(tmp_path_factory: Any) -> Iterator[Installation]:
    """A server with the jobs of browsing.py, for the tests of the pages."""
    from browsing import installed

    site = installed(tmp_path_factory.mktemp("site"))
    yield site
    site.stop()
