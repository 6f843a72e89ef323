"""How soon the pages show something, with 10,000 jobs and a million runs, and whether a tab grows.

    python -m benchmarks.pages [--minutes 10] [--runs 1000000] [--jobs 10000] [--keep DIRECTORY]

The time to the first meaningful paint is from the start of the navigation to the frame after rows are there:
on Today those of the timeline and the next starts, on Runs and Jobs those of the table, of a job its charts.
First with an empty cache, as on a first visit, then again. Bytes are what went over the wire, as the browser
counts them. A tab's memory is
its JavaScript heap and its nodes after a collection of garbage, while runs are made at 20 a second.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import bigday
from benchmarks.serving import Client, Server  # first: it puts the tests on the path

from browsing import chromium, until  # isort: skip
from playwright.sync_api import Browser, Page

RATE = 20.0  # runs a second
TIMES = 5

# What must be there to be meaningful, and where.
PAGES = {
    "Today": ("/", ["main .labels li", ".list[aria-label='Next starts'] li"]),
    "Runs": ("/runs", ["table.runs tbody tr"]),
    "Jobs": ("/jobs", ["table.jobs tbody:not([aria-hidden]) tr"]),
    "a job": (f"/job/{bigday.job_ids(1)[0]}", [".prose, .upcoming", "svg.calendar", ".bar-link"]),
}
# Notes the instant of the frame after all of them are there.
WATCH = """(selectors) => {
  const look = () => {
    const there = selectors.every((one) => document.querySelector(one));
    requestAnimationFrame(there ? () => { window.shownAt = performance.now(); } : look);
  };
  requestAnimationFrame(look);
}"""


@contextmanager
def large(directory: Path, jobs: int, runs: int) -> Iterator[Server]:
    server = Server(directory, {}, "")
    if not (directory / "apsis.db").exists():
        began = time.perf_counter()
        bigday.job_files(server.jobs, jobs)
        bigday.fill(directory / "apsis.db", jobs, runs)
        print(f"made {jobs:,} jobs and {runs:,} runs in {time.perf_counter() - began:.0f} s")
    with server.running():
        yield server


def opened(
    browser: Browser, server: Server, name: str, page: Page | None = None
) -> tuple[Page, float, float, int]:
    """(the page, seconds to its first and to its first meaningful paint, bytes)."""
    address, selectors = PAGES[name]
    if page is None:
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.add_init_script(f"({WATCH})({selectors!r})")
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    sizes: list[float] = []
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(f"http://127.0.0.1:{server.port}{address}", wait_until="commit")
    until(page, "window.shownAt !== undefined")
    shown = page.evaluate("window.shownAt") / 1000
    first = (
        page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN") / 1000
    )
    page.wait_for_timeout(300)
    session.detach()
    return page, first, shown, int(sum(sizes))


def paint(browser: Browser, server: Server) -> None:
    print(f"\n{'':28} {'first paint':>12} {'meaningful':>12} {'bytes':>12}")
    for name in PAGES:
        cold, warm = [], []
        for _ in range(TIMES):
            page, *figures = opened(browser, server, name)
            cold.append(figures)
            warm.append(opened(browser, server, name, page)[1:])
            page.context.close()
        for when, found in (("first visit", cold), ("again", warm)):
            first, shown, size = (median(column) for column in zip(*found, strict=True))
            worst = max(figures[1] for figures in found)
            print(
                f"{name + ', ' + when:28} {first:10.3f} s {shown:10.3f} s {size:12,.0f} (slowest {worst:.3f})"
            )


def memory(session: Any) -> tuple[float, int]:
    """(MB of the JavaScript heap, nodes) after a collection of garbage."""
    for _ in range(2):
        session.send("HeapProfiler.collectGarbage")
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return found["JSHeapUsedSize"] / 1e6, int(found["Nodes"])


def growth(browser: Browser, server: Server, minutes: float) -> None:
    tabs = {}
    for name in PAGES:
        page = opened(browser, server, name)[0]
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        tabs[name] = session
    stop = threading.Event()
    made = 0

    def make() -> None:
        nonlocal made
        client = Client(server)
        jobs = bigday.job_ids(50)
        began = time.monotonic()
        while not stop.wait(max(0.0, began + made / RATE - time.monotonic())):
            client.ask("POST", "/runs", {"job_id": jobs[made % 50], "args": {"date": f"n{made}"}})
            made += 1
        client.close()

    maker = threading.Thread(target=make)
    maker.start()
    print(f"\n{'minute':>8} {'runs':>8}" + "".join(f"{name + ', MB':>14}{'nodes':>9}" for name in tabs))
    found: list[list[tuple[float, int]]] = []
    try:
        began = time.monotonic()
        at = 0.0
        while at <= minutes:
            pages = [context.pages[0] for context in browser.contexts]
            while (left := began + at * 60 - time.monotonic()) > 0:
                pages[0].wait_for_timeout(min(1000, left * 1000))
            found.append([memory(session) for session in tabs.values()])
            print(
                f"{at:8.1f} {made:8}" + "".join(f"{mb:14.2f}{nodes:9,}" for mb, nodes in found[-1]),
                flush=True,
            )
            at += max(0.5, minutes / 10)
    finally:
        stop.set()
        maker.join()
    # The first minute fills what is bounded: lists, bars, caches.
    for n, name in enumerate(tabs):
        change = found[-1][n][0] - found[1][n][0]
        print(f"{name}: {change:+.2f} MB from the second measurement to the last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument(
        "--keep", type=Path, metavar="DIRECTORY", help="make the installation there, or use it"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apsis-bench-", dir="/var/tmp") as temporary:
        directory = options.keep or Path(temporary)
        with large(directory, options.jobs, options.runs) as server, chromium() as browser:
            paint(browser, server)
            if options.minutes:
                growth(browser, server, options.minutes)


if __name__ == "__main__":
    main()
