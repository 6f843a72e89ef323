"""Chromium on our pages, for tests: what it must not do, and jobs with names that would like to be HTML."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from installation import PROGRAM, SLOW, Installation
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from apsislib.clock import Deadline

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>'\"&amp;{{7*7}}"
)
SITE = {
    "etl/load": "params: [date]\nmetadata: {labels: [etl], description: Loads a day.}\n" + PROGRAM,
    "etl/fails": "program: {type: no-op, success: false}\n",
    "slow": SLOW,
    "long": "expect: {max_duration: 0.5}\n" + SLOW,
    "later": "schedule: {type: interval, interval: 600}\n" + PROGRAM,
    "waits": "condition: {type: dependency, job_id: etl/load, args: {date: never}}\n" + PROGRAM,
    # A name that is HTML, and a slash less: it has to be a file's.
    "<b onmouseover=alert(1)>&amp;": "metadata: "
    + json.dumps({"labels": [HOSTILE], "description": HOSTILE})
    + "\nparams: [x]\n"
    + PROGRAM,
}
AGENT = {
    "shutdown_state": "active",
    "info": {
        "conn": {"conn_id": HOSTILE, "group_id": "default", "restricted_exe": None},
        "socket": {"address": "10.1.2.3", "port": 40112},
        "proc": {"hostname": "w3", "username": HOSTILE, "pid": 811},
        "stats": {
            "connected": True,
            "first_connect_time": "2031-05-06T07:00:00.123456+00:00",
            "last_connect_time": "2031-05-06T07:00:00.123456+00:00",
            "num_connections": 1,
        },
    },
}


@contextmanager
def chromium() -> Iterator[Browser]:
    assert shutil.which(CHROMIUM), f"the page is tested in Chromium: install it as {CHROMIUM}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def watched(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page whose every error, refused script and request elsewhere fails the test."""
    context = browser.new_context(**{"base_url": url, "timezone_id": "Europe/Berlin", **options})
    page = context.new_page()
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    wrong: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        # The browser itself reports each answer of 4xx, and each attempt to connect to a server that is away;
        # whether that is shown is the test's business.
        own = re.match("Failed to load resource|WebSocket connection to", message.text)
        if message.type == "error" and not own:
            wrong.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: request.url.startswith(url) or wrong.append(request.url))
    yield page
    assert page.title() != "owned"
    assert page.locator("main img, main script, main b").count() == 0
    context.close()
    assert wrong == [], "\n".join(wrong)


def until(page: Page, expression: str) -> None:
    """Wait for a JavaScript expression to be true. Not wait_for_function(), whose second look the page's CSP
    refuses to evaluate."""
    deadline = Deadline(60)
    while not page.evaluate(expression):
        assert not deadline.passed(), expression
        page.wait_for_timeout(20)


def accessible(page: Page, rules: str = "") -> None:
    """Fail unless axe-core finds the page to keep WCAG 2.1 AA, or just these of its rules."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    # What fades in is judged once it is there.
    until(
        page,
        "document.getAnimations().every((one) => one.playState !== 'running'"
        " || one.effect.getTiming().iterations === Infinity)",
    )
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
    only = {"type": "rule", "values": rules.split()} if rules else {"type": "tag", "values": tags}
    found = page.evaluate(
        "(only) => axe.run({runOnly: only, resultTypes: ['violations'], elementRef: false})", only
    )
    wrong = [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
    assert wrong == [], "\n".join(wrong)


def live(page: Page) -> None:
    expect(page.locator("#live")).to_have_text("live")


def state(page: Page, text: str) -> None:
    expect(page.locator(".title .state")).to_have_text(text)


def installed(directory: Any, **options: Any) -> Installation:
    return Installation(directory, SITE, connections=lambda: {"c": AGENT}, **options).start()
