"""Today, the operator's board, in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from browsing import AGENT, HOSTILE, SITE, accessible, live, until, watched
from installation import PROGRAM, Installation
from playwright.sync_api import Browser, Locator, Page, expect
from server import ENDS, Server, environment

from apsislib.runs import Run, Save
from apsislib.states import State


def tile(page: Page, words: str) -> Locator:
    return page.locator(".tile", has_text=re.compile(rf"\d {words}$"))


def panel(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name)


def lane(page: Page, job_id: str) -> Locator:
    """The row of a job in the chart: the one at the height of its label."""
    labels = page.locator(".labels li")
    expect(labels.filter(has_text=job_id)).to_have_count(1)
    at = labels.all_inner_texts().index(next(t for t in labels.all_inner_texts() if t.startswith(job_id)))
    return page.locator(".lane").nth(at)


def opened(page: Page, path: str = "/") -> None:
    page.goto(path)
    live(page)
    expect(page.locator(".timeline")).to_have_attribute("data-loaded", "yes")


def test_what_runs_fails_waits_and_comes_appears_by_itself(site: Installation, page: Page) -> None:
    opened(page)
    running = site.make("slow")["run_id"]
    expect(panel(page, "Running")).to_contain_text("slow")
    expect(tile(page, "running")).to_contain_text("1")
    expect(panel(page, "Running").locator(".when").first).to_have_text(re.compile(r"^\d:\d\d$"))
    waiting = site.make("waits")["run_id"]
    expect(panel(page, "Waiting")).to_contain_text("etl/load(date=never)")
    failed = site.make("etl/fails")["run_id"]
    expect(panel(page, "What needs attention").get_by_role("link", name="etl/fails")).to_have_attribute(
        "href", f"/runs/{failed}"
    )
    expect(page).to_have_title("(1) Today – Apsis")
    expect(page.locator("link[rel=icon]")).to_have_attribute("href", re.compile("icon-failing.svg$"))
    expect(panel(page, "Next starts").locator("li").first).to_contain_text("later")
    expect(panel(page, "Next starts").locator("li").first).to_contain_text(re.compile(r"in \d+ [ms]"))
    site.post(f"/api/v1/runs/{failed}/mark/success")
    expect(panel(page, "What needs attention")).to_be_hidden()
    expect(page).to_have_title("Today – Apsis")
    site.post(f"/api/v1/runs/{running}/stop")
    site.post(f"/api/v1/runs/{waiting}/skip")
    expect(panel(page, "Running")).to_contain_text("Nothing is running.")
    expect(panel(page, "Waiting")).to_contain_text("Nothing is waiting.")


def test_a_start_that_has_begun_makes_room_for_another(site: Installation, page: Page) -> None:
    opened(page)
    starts = panel(page, "Next starts").locator("li")
    expect(starts).to_have_count(20)
    links = starts.locator("a").evaluate_all("links => links.map((a) => a.getAttribute('href'))")
    begun = next(link for link in links if link.startswith("/runs/"))
    site.post(f"/api/v1{begun}/start")
    expect(starts.locator(f"a[href='{begun}']")).to_have_count(0)
    expect(starts).to_have_count(20)
    site.post(f"/api/v1{begun}/stop")


def test_a_late_run_stands_on_top(site: Installation, page: Page) -> None:
    opened(page)
    run_id = site.make("long")["run_id"]
    expect(panel(page, "What needs attention").locator(".alarm")).to_have_text("long")
    expect(tile(page, "late")).to_contain_text("1")
    site.post(f"/api/v1/runs/{run_id}/stop")
    expect(panel(page, "What needs attention")).to_be_hidden()


def test_an_agent_that_is_lost_stands_on_top(browser: Browser, tmp_path: Path) -> None:
    lost = json.loads(json.dumps(AGENT))
    lost["info"]["stats"].update(connected=False, last_disconnect_time="2031-05-06T08:00:00.123456+00:00")
    site = Installation(tmp_path, {"noop": PROGRAM}, connections=lambda: {"a": AGENT, "b": lost}).start()
    with closing(site), watched(browser, site.url) as page:
        opened(page)
        expect(panel(page, "What needs attention")).to_contain_text("w3group defaultagent is away")
        expect(panel(page, "What needs attention").locator("time")).to_have_attribute(
            "datetime", "2031-05-06T08:00:00.123Z"
        )
        expect(tile(page, "lost")).to_contain_text("1")


def test_an_operation_is_confirmed_shown_and_its_error_too(site: Installation, page: Page) -> None:
    run_id = site.make("slow")["run_id"]
    opened(page)
    menu = panel(page, "Running").get_by_role("button", name=f"Operations on {run_id}")
    menu.click()
    page.get_by_role("menuitem", name="Stop").click()
    expect(page.locator("#dialog")).to_contain_text(f"Stop run {run_id} of slow?")
    site.post(f"/api/v1/runs/{run_id}/stop")  # somebody else is faster
    expect(panel(page, "Running")).to_contain_text("Nothing is running.")
    page.locator("#confirm").click()
    expect(page.locator("#dialog .wrong")).to_contain_text(run_id)
    expect(page.locator("#confirm")).to_have_text("Try again")
    page.keyboard.press("Escape")
    expect(page.locator("#dialog")).to_be_hidden()


def past(site: Installation, job_id: str, number: int, begun: float, took: float, state: State) -> None:
    times = {"schedule": begun, "running": begun, state.value: begun + took}
    site.store.wait(site.store.put([Save(Run(f"r{number}", job_id, {}, state, begun + took, times))]), 20)


def test_the_timeline_shows_a_bar_for_each_run_and_follows(site: Installation, page: Page) -> None:
    now = site.clock.wall()
    past(site, "bars", 700_001, now - 7200, 600, State.SUCCESS)
    past(site, "bars", 700_002, now - 3600, 2600, State.FAILURE)
    opened(page)
    bars = lane(page, "bars").locator("a")
    expect(bars).to_have_count(2)
    expect(bars.nth(0)).to_have_attribute(
        "aria-label", re.compile("r700001, success.*took 10:00, usually 10:00")
    )
    assert bars.nth(1).locator("[data-state=failure]").count() == 1
    expect(lane(page, "later").locator("[data-tip]").first).to_have_attribute(
        "data-tip", re.compile("^later")
    )
    run_id = site.make("slow")["run_id"]
    new = lane(page, "slow").locator(f"[data-run={run_id}] .bar")
    expect(new).to_have_attribute("data-state", "running")
    site.post(f"/api/v1/runs/{run_id}/stop")
    expect(new).to_have_attribute("data-state", "success")
    bars.nth(1).hover()
    expect(page.locator(".tip")).to_contain_text("bars  r700002")
    bars.nth(1).click()
    expect(page).to_have_url(re.compile("/runs/r700002$"))


def test_the_window_is_moved_zoomed_and_shared_by_its_address(site: Installation, page: Page) -> None:
    past(
        site,
        "old",
        700_010,
        datetime(2031, 5, 6, 10, tzinfo=UTC).timestamp() - 20 * 366 * 86400,
        60,
        State.SUCCESS,
    )
    opened(page)
    window = page.locator(".window")
    expect(page.get_by_role("button", name="Follow the present")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Show 1 h").click()
    expect(page).to_have_url(re.compile(r"\?span=60m$"))
    page.get_by_label("Jump to a date or time").fill("2011-04-21")
    page.keyboard.press("Enter")
    expect(window).to_have_text("2011-04-21 00:00 – 04-22 00:00")
    expect(page).to_have_url(re.compile(r"at=20110420T220000Z"))  # Berlin's midnight
    expect(page.get_by_role("button", name="Follow the present")).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".labels li")).to_have_text(["old"])
    page.reload()
    expect(window).to_have_text("2011-04-21 00:00 – 04-22 00:00")
    page.locator(".lanes").focus()
    page.keyboard.press("ArrowRight")
    expect(window).to_have_text("2011-04-21 04:48 – 04-22 04:48")
    page.keyboard.press("+")
    expect(window).to_have_text("2011-04-21 10:48 – 22:48")
    page.get_by_label("Jump to a date or time").fill("whenever")
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("no time: whenever")
    page.get_by_role("button", name="Follow the present").click()
    expect(page.locator(".labels li").first).to_contain_text("bars")
    box = page.locator(".lanes").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 300, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 10, steps=4)
    page.mouse.up()
    expect(page).to_have_url(re.compile(r"at=\d{8}T\d{6}Z"))


def test_fingers_pan_and_zoom_the_timeline_scroll_past_it_and_open_runs(
    site: Installation, browser: Browser
) -> None:
    start = datetime(2031, 5, 6, 10, tzinfo=UTC).timestamp() - 20 * 366 * 86400
    past(site, "touched", 700_020, start, 7200, State.SUCCESS)
    phone = {"viewport": {"width": 390, "height": 700}, "has_touch": True, "is_mobile": True}
    with watched(browser, site.url, **phone) as page:
        page.goto("/?at=20110420T220000Z&span=1440m&jobs=touched")
        window, lanes = page.locator(".window"), page.locator(".lanes")
        expect(window).to_have_text("2011-04-21 00:00 – 04-22 00:00")
        bar = lanes.locator("a")
        expect(bar).to_have_count(1)
        lanes.scroll_into_view_if_needed()
        hand = page.context.new_cdp_session(page)

        def touch(kind: str, *fingers: tuple[float, float]) -> None:
            points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(fingers)]
            hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        def drag(*ways: tuple[tuple[float, float], tuple[float, float]]) -> None:
            """Each finger from one point to another, in ten steps."""
            for n in range(11):
                fingers = [(x + (to - x) * n / 10, y + (down - y) * n / 10) for (x, y), (to, down) in ways]
                touch("touchMove" if n else "touchStart", *fingers)
            touch("touchEnd")

        box = lanes.bounding_box()
        assert box is not None
        left, width, y = box["x"], box["width"], box["y"] + box["height"] / 2
        # To the left by a quarter of the chart: a quarter of the day later.
        drag(((left + 0.75 * width, y), (left + 0.5 * width, y)))
        expect(window).to_have_text(re.compile("2011-04-21 0[56]:.. – 04-22 0[56]:.."))
        drag(((left + 0.4 * width, y), (left + 0.65 * width, y)))
        expect(window).to_have_text(re.compile("2011-04-2[01] (23|00):.. – 04-2[12] (23|00):.."))

        # Two fingers, from half as far apart: half as long, and what was between them stays there.
        hours = "const [a, b] = document.querySelector('.window').textContent.match(/\\d\\d:\\d\\d/g)"
        hours += ".map((t) => t.split(':')[0] * 60 + +t.split(':')[1]); return (b - a + 1440) % 1440;"
        one, other = (left + 0.4 * width, y), (left + 0.6 * width, y)
        drag((one, (left + 0.3 * width, y)), (other, (left + 0.7 * width, y)))
        until(page, f"(() => {{ {hours} }})() > 650")
        assert page.evaluate(f"(() => {{ {hours} }})()") < 800
        expect(page).to_have_url(re.compile(r"span=[67]\d\dm"))

        # Up: the page scrolls, and the window stays.
        shown = window.text_content()
        before = page.evaluate("scrollY")
        drag(((left + 0.5 * width, y), (left + 0.5 * width, y - 200)))
        until(page, f"scrollY > {before}")
        assert window.text_content() == shown

        bar.tap()
        expect(page).to_have_url(re.compile("/runs/r700020$"))


def test_jobs_of_the_timeline_are_found_by_words(site: Installation, page: Page) -> None:
    opened(page)
    expect(page.locator(".labels li").filter(has_text="bars")).to_have_count(1)
    page.get_by_label("Jobs of the timeline").fill("BAR")
    expect(page.locator(".labels li")).to_have_text(["bars✗ 1"])
    expect(page).to_have_url(re.compile(r"\?jobs=BAR$"))


def test_everything_is_reached_by_keyboard(site: Installation, page: Page) -> None:
    run_id = site.make("slow")["run_id"]
    opened(page)
    page.keyboard.press("?")
    expect(page.locator("#help")).to_contain_text("Go to Runs")
    page.keyboard.press("Escape")
    page.locator(".labels").get_by_role("link", name="bars").focus()
    page.keyboard.press("l")
    expect(page.locator("[data-run=r700001]")).to_be_focused()
    expect(page.locator(".tip")).to_contain_text("r700001")
    page.keyboard.press("l")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/runs/r700002$"))
    page.keyboard.press("g")
    page.keyboard.press("t")
    expect(page.get_by_role("region", name="Running")).to_contain_text("slow")
    for _ in range(60):
        page.keyboard.press("j")
        if page.evaluate("document.activeElement.getAttribute('href')") == f"/runs/{run_id}":
            break
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name=f"Operations on {run_id}").last).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#dialog")).to_be_hidden()
    expect(page.get_by_role("region", name="Running")).to_contain_text("Nothing is running.")


def test_a_job_of_hostile_name_is_text(site: Installation, page: Page) -> None:
    name = next(job_id for job_id in SITE if job_id.startswith("<b"))
    run_id = site.make(name, args={"x": HOSTILE})["run_id"]
    site.post(f"/api/v1/runs/{run_id}/mark/failure")
    opened(page)
    expect(panel(page, "What needs attention")).to_contain_text(HOSTILE)
    bar = page.locator(f"[data-run={run_id}]")
    bar.hover()
    expect(page.locator(".tip")).to_contain_text(name)
    site.post(f"/api/v1/runs/{run_id}/mark/success")


def test_after_a_restart_what_was_missed_is_there(browser: Browser, tmp_path: Path) -> None:
    site = Installation(tmp_path, {"noop": PROGRAM, "fails": SITE["etl/fails"]}).start()
    try:
        with watched(browser, site.url) as page:
            opened(page)
            port = site.port
            site.stop()
            expect(page.locator("#live")).to_have_text("reconnecting")
            (tmp_path / "again").mkdir()
            site = Installation(tmp_path / "again", {"fails": SITE["etl/fails"]}, port=port).start()
            site.make("fails")
            expect(panel(page, "What needs attention")).to_contain_text("fails")
            expect(page.locator(".labels")).to_contain_text("fails")
            live(page)
    finally:
        site.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_board_is_accessible(site: Installation, browser: Browser, scheme: Any, width: int) -> None:
    made = [site.make(job_id)["run_id"] for job_id in ("slow", "long", "waits", "etl/fails")]
    size = {"width": width, "height": 900}
    with watched(browser, site.url, color_scheme=scheme, viewport=size) as page:
        opened(page)
        expect(panel(page, "What needs attention").locator("li").nth(1)).to_be_visible()
        accessible(page)
        page.keyboard.press("?")
        accessible(page)
        page.keyboard.press("Escape")
        panel(page, "Running").get_by_role("button", name=re.compile("Operations")).first.click()
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
    for run_id in made[:2]:
        site.post(f"/api/v1/runs/{run_id}/stop")
    site.post(f"/api/v1/runs/{made[2]}/skip")


# -- with a real agent -----------------------------------------------------------------------------


def test_programs_on_an_agent_are_on_the_board_and_so_is_its_death(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "go").mkdir()
    shell = "program: {type: procstar-shell, command: 'until [ -e %s ]; do sleep 0.05; done; exit %d'}\n"
    jobs = {
        "night/load": shell % (tmp_path / "go" / "load", 0),
        "night/check": shell % (tmp_path / "go" / "check", 7),
        "night/report": "condition: {type: dependency, job_id: night/load}\n" + PROGRAM,
    }
    server = Server(tmp_path, jobs)
    with server.running(), watched(browser, server.url.removesuffix("/api/v1")) as page:
        opened(page)
        report, load, check = (
            server.schedule({"job_id": f"night/{name}"}) for name in ("report", "load", "check")
        )
        expect(panel(page, "Running")).to_contain_text("night/load")
        expect(panel(page, "Running")).to_contain_text("night/check")
        expect(panel(page, "Waiting")).to_contain_text(
            f"night/load is {server.until(load, 'running')['state']}"
        )
        (tmp_path / "go" / "check").touch()
        attention = panel(page, "What needs attention")
        expect(attention.get_by_role("link", name="night/check")).to_have_attribute("href", f"/runs/{check}")
        (tmp_path / "go" / "load").touch()
        expect(panel(page, "Running")).to_contain_text("Nothing is running.")
        expect(panel(page, "Waiting")).to_contain_text("Nothing is waiting.")
        assert server.until(report, *ENDS)["state"] == "success"
        expect(attention).not_to_contain_text("agent is away")
        identity = json.loads((tmp_path / "apsis.db.agent.json").read_text())
        argv = [*server.program, "agent", "--agent", "--plain", "--agent-host", "127.0.0.1"]
        argv += ["--agent-port", str(identity["port"]), "--group-id", "far"]
        far = subprocess.Popen(argv, env=environment(PROCSTAR_AGENT_TOKEN=identity["token"]))
        try:
            expect(tile(page, "agents")).to_contain_text("2")
        finally:
            far.kill()
            far.wait()
        expect(attention).to_contain_text("agent is away")
        expect(tile(page, "lost")).to_contain_text("1")
