"""How soon the page of a run shows an output of a gigabyte, and how soon one is anywhere in it.

    python -m benchmarks.output [--bytes 1073741824] [--times 5]

A program on a real agent prints it, with output.max_size raised. The time to open is from the start of the
navigation to the frame after the last lines are there; the others are from a key to the frame in which the
answer is seen. Line numbers come later: the lines before have to be counted, which the server does piece by
piece. The server's and the tab's memory say whether anybody held the whole.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.serving import Server  # first: it puts the tests on the path

from browsing import chromium  # isort: skip
from playwright.sync_api import Page, expect

LINE = "{n:012} INFO loaded a batch of trades from the vendor, all is well\n"
PRINT = (
    "seq -f '%012.0f INFO loaded a batch of trades from the vendor, all is well' 1 {lines} | head -c {size}"
)
CONFIG = "output: {max_size: 4 GB}\n"
PATIENCE = 120_000  # ms
# Notes the instant of the frame after lines are there.
WATCH = """() => {
  const look = () => {
    const there = document.querySelectorAll('.output .line').length > 50;
    requestAnimationFrame(there ? () => { window.shownAt = performance.now(); } : look);
  };
  requestAnimationFrame(look);
}"""


def timed(does: Callable[[], object]) -> float:
    began = time.perf_counter()
    does()
    return time.perf_counter() - began


def opened(page: Page, address: str) -> float:
    """Seconds to the first frame with lines."""
    page.goto(address, wait_until="commit")
    expect(page.locator(".output .line").nth(60)).to_be_attached()
    page.wait_for_function("() => window.shownAt !== undefined")
    return float(page.evaluate("window.shownAt")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=2**30)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    lines = -(-options.bytes // len(LINE.format(n=1)))
    with tempfile.TemporaryDirectory(prefix="apsis-bench-", dir="/var/tmp") as directory:
        command = PRINT.format(lines=lines, size=options.bytes)
        server = Server(
            Path(directory), {"huge": f'program: {{type: procstar-shell, command: "{command}"}}\n'}, CONFIG
        )
        with server.running(), chromium() as browser:
            began = time.perf_counter()
            run_id = server.schedule({"job_id": "huge"})
            while server.run(run_id)["state"] in ("starting", "running"):
                time.sleep(0.5)
            length = 0
            while length < options.bytes:  # the verdict may be on disk before the last of the output is
                assert time.perf_counter() - began < PATIENCE / 1000 * 3, length
                time.sleep(0.1)
                length = server.get(f"/runs/{run_id}/outputs")[0]["output_len"]
            print(f"printed and stored {length:,} bytes in {time.perf_counter() - began:.1f} s")
            address = f"http://127.0.0.1:{server.port}/runs/{run_id}"
            context = browser.new_context(viewport={"width": 1440, "height": 900}, bypass_csp=True)
            times = []
            for _ in range(options.times):
                page = context.new_page()
                page.add_init_script(f"({WATCH})()")
                page.set_default_timeout(PATIENCE)
                expect.set_options(timeout=PATIENCE)
                times.append(opened(page, address))
                page.close()
            print(f"opens in {median(times):.2f} s (slowest {max(times):.2f} s)")
            walk(context.new_page(), address, lines)
            resident = server.get("/stats")["statm_resident"]
            print(f"the server's memory: {resident / 1e6:.0f} MB")


def walk(page: Page, address: str, lines: int) -> None:
    page.set_default_timeout(PATIENCE)
    page.add_init_script(f"({WATCH})()")
    found = page.locator(".output .line.found")

    def counted() -> None:
        page.goto(address)
        expect(page.locator(".place")).to_contain_text(f"of {lines:,}")

    def top() -> None:
        page.get_by_role("button", name="Top").click()
        expect(page.locator('.output .line[data-n="1"]')).to_be_visible()

    def search(text: str) -> None:
        page.get_by_label("Search the output").fill(text)
        page.keyboard.press("Enter")
        expect(found).to_contain_text(text)

    def line(number: int) -> None:
        page.get_by_label("Go to line").fill(str(number))
        page.keyboard.press("Enter")
        expect(found).to_contain_text(f"{number:012}")

    print(f"lines counted, and numbered, after {timed(counted):.1f} s")
    print(f"to the beginning in {timed(top):.2f} s")
    middle = lines // 2
    print(f"to line {middle:,} in {timed(lambda: line(middle)):.2f} s")
    timed(top)
    print(f"a text near the end is found in {timed(lambda: search(f'{lines - 1000:012} INFO')):.1f} s")
    heap = page.evaluate("performance.memory.usedJSHeapSize")
    rows = page.locator(".output .line").count()
    print(f"the tab's JavaScript heap: {heap / 1e6:.0f} MB; lines in it: {rows:,}")


if __name__ == "__main__":
    main()
