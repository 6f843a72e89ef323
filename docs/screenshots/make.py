"""Pictures of each page in light, dark and at the width of a phone: `make screenshots`.

They are of the installation of demo.py, as it is at the moment: the times in them are those of the making.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "tests")]

import demo  # noqa: E402
import story  # noqa: E402
from browsing import chromium, live  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import Page, expect  # noqa: E402
from server import Server  # noqa: E402

KINDS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 800}},
    "phone": {
        "color_scheme": "light",
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
    },
}
LARGEST = 200_000  # bytes of a picture


def today(page: Page) -> None:
    page.goto("/")
    expect(page.locator(".timeline")).to_have_attribute("data-loaded", "yes")
    expect(page.locator(".list li").first).to_be_visible()


def runs(page: Page) -> None:
    page.goto("/runs")
    expect(page.locator("[data-loaded=yes]")).to_have_count(1)


def search(page: Page) -> None:
    page.goto("/runs?path=etl&states=failure,error,success")
    expect(page.locator("[data-loaded=yes]")).to_have_count(1)
    page.get_by_label("Search runs").click()
    page.keyboard.type("since:1d pos")
    expect(page.locator(".completions li").first).to_be_visible()


def bulk(page: Page) -> None:
    page.goto("/runs?states=starting,running,waiting,success")
    expect(page.locator("[data-loaded=yes]")).to_have_count(1)
    for _ in range(6):
        page.keyboard.press("j")
        page.keyboard.press("x")
    page.get_by_role("region", name="Operations on the selected runs").get_by_role(
        "button", name="Skip"
    ).click()
    expect(page.locator("#dialog")).to_be_visible()
    page.locator("#dialog summary").click()


def running(page: Page) -> None:
    page.goto(f"/runs/{SHOWN['running']}")
    expect(page.locator(".output .line").nth(100)).to_be_attached()
    expect(page.locator(".bar-link").first).to_be_visible()


def waiting(page: Page) -> None:
    page.goto(f"/runs/{SHOWN['waiting']}")
    expect(page.locator("svg.graph")).to_be_visible()
    expect(page.locator(".bar-link").first).to_be_visible()


def failed(page: Page) -> None:
    page.goto(f"/runs/{SHOWN['failed']}")
    expect(page.locator(".output .line").last).to_be_visible()
    page.get_by_label("Search the output").fill("vendor")
    page.keyboard.press("Enter")
    expect(page.locator(".output .line.found")).to_be_visible()


def jobs(page: Page) -> None:
    page.goto("/jobs")
    expect(page.locator("table.jobs .last .state").first).to_be_visible()


def job(page: Page) -> None:
    page.goto("/job/close/load")
    expect(page.locator("svg.calendar")).to_be_visible()
    expect(page.locator("svg.graph")).to_be_visible()


def form(page: Page) -> None:
    job(page)
    page.get_by_role("button", name="Schedule a run").click()
    page.get_by_label("When").fill("tomorrow 07:15")
    page.get_by_label("Stop it").fill("2h")
    page.locator(".run-form").scroll_into_view_if_needed()


def agents(page: Page) -> None:
    page.goto("/agents")
    expect(page.locator("[data-agent=draining]").first).to_be_visible()


def server_page(page: Page) -> None:
    page.goto("/server")
    page.get_by_role("button", name="hour").click()
    while page.locator(".plots polyline").count() == 0 or page.evaluate(POINTS) < 30:
        page.wait_for_timeout(5000)


# Each opens its page; a picture NAME-KIND.png is made of what is shown then.
SHOTS: dict[str, Callable[[Page], None]] = {
    "today": today,
    "runs": runs,
    "runs-search": search,
    "runs-bulk": bulk,
    "run-running": running,
    "run-waiting": waiting,
    "run-failed": failed,
    "jobs": jobs,
    "job": job,
    "job-form": form,
    "agents": agents,
    "server": server_page,
}
LATE = ("server",)  # its plots want some minutes; so these are the last
SHOWN: dict[str, str] = {}  # what the runs of story.py show -> run ID
POINTS = "document.querySelector('.plots polyline').getAttribute('points').split(' ').length"


def few_colours(path: Path) -> None:
    """256 colours are enough for a page, and a third of the bytes: the most frequent as they are, so that
    what is flat stays so, and the others by those that are nearest to most."""
    picture = Image.open(path).convert("RGB")
    counted = sorted(picture.getcolors(1 << 24), reverse=True)
    palette = [channel for _, colour in counted[:160] for channel in colour]
    rest = picture.quantize(96, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).getpalette()
    chosen = Image.new("P", (1, 1))
    chosen.putpalette((palette + rest)[: 256 * 3])
    picture.quantize(palette=chosen, dither=Image.Dither.NONE).save(path, optimize=True)


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="apsis-demo-", dir="/var/tmp") as directory:
        demo.build(Path(directory))
        port = story.build(Path(directory))
        server = Server(Path(directory), {}, "")
        with server.running(), chromium() as browser:
            expect.set_options(timeout=60_000)
            demo.begin(server)
            SHOWN.update(story.begin(server, port))
            chosen = names or list(SHOTS)
            passes = [[n for n in chosen if n not in LATE], [n for n in chosen if n in LATE]]
            for (kind, options), some in [(kind, some) for some in passes for kind in KINDS.items()]:
                context = browser.new_context(
                    base_url=f"http://127.0.0.1:{server.port}", timezone_id="Europe/London", **options
                )
                for name in some:
                    page = context.new_page()
                    SHOTS[name](page)
                    live(page)
                    page.wait_for_timeout(1800)  # what fades in
                    path = HERE / f"{name}-{kind}.png"
                    page.screenshot(path=path)
                    few_colours(path)
                    assert path.stat().st_size < LARGEST, f"{path} is of {path.stat().st_size} bytes"
                    page.close()
                context.close()


if __name__ == "__main__":
    main(sys.argv[1:])
