"""The page of runs, in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from browsing import HOSTILE, SITE, accessible, live, until, watched
from installation import Installation
from playwright.sync_api import Browser, Locator, Page, expect

from apsislib.runs import Run
from apsislib.states import State
from apsislib.store.rows import SAVE, to_saved

DAY = 86400.0


def put(site: Installation, runs: list[Run]) -> None:
    """Runs on disk; past the server, which would tell everybody of each."""
    with closing(sqlite3.connect(site.store.path, timeout=60)) as db, db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -200000")
        db.executemany(SAVE, map(to_saved, runs))


def past(number: int, job_id: str, end: float, state: State = State.SUCCESS, **options: Any) -> Run:
    times = {"schedule": end - 61, "running": end - 60, state.value: end}
    return Run(f"r{number}", job_id, options.pop("args", {}), state, end, times, **options)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """100,000 runs of the last month."""
    site = Installation(tmp_path_factory.mktemp("large"), {"some/job": SITE["etl/load"]}).start()
    now = site.clock.wall() - 60
    put(
        site,
        [
            past(
                1000 + n,
                f"team{n % 10}/job{n % 700}",
                now - (100_000 - n) * 30 * DAY / 100_000,
                State.FAILURE if n % 1000 == 7 else State.SUCCESS,
                args={"n": str(n), "odd, one": "a,b" if n % 5000 == 0 else "x"},
                meta={"job": {"labels": ["x,y"] if n % 100 == 0 else ["z"]}},
            )
            for n in range(100_000)
        ],
    )
    yield site
    site.stop()


def opened(page: Page, path: str = "/runs") -> Locator:
    page.goto(path)
    live(page)
    expect(page.locator("[data-loaded=yes]")).to_have_count(1)
    return page.locator("table.runs tbody tr")


def found(page: Page, text: str) -> Locator:
    field = page.get_by_label("Search runs")
    field.fill(text)
    field.press("Escape") if page.locator(".completions").is_visible() else None
    field.press("Enter")
    expect(page.locator("[data-loaded=yes]")).to_have_count(1)
    return page.locator("table.runs tbody tr")


def ids(rows: Locator) -> list[str]:
    return rows.locator("td.id").all_inner_texts()


def test_runs_are_listed_and_new_ones_appear_and_change_by_themselves(site: Installation, page: Page) -> None:
    old = site.make("etl/load", args={"date": "d1"})["run_id"]
    rows = opened(page)
    expect(rows.first).to_contain_text(old)
    expect(rows.first).to_contain_text("date=d1")
    expect(rows.first.locator(".state")).to_have_text("success")
    new = site.make("slow")["run_id"]
    expect(rows.first).to_contain_text(new)
    expect(rows.first.locator(".state")).to_have_text("running")
    expect(rows.first.locator("td.el")).to_have_text(re.compile("[1-9]"))
    site.post(f"/api/v1/runs/{new}/stop")
    expect(rows.first.locator(".state")).to_have_text("success")
    expect(rows.first).to_contain_text(new)


def test_an_alarm_appears_by_itself_in_list_and_run(site: Installation, page: Page) -> None:
    rows = opened(page)
    run_id = site.make("long")["run_id"]
    expect(rows.first).to_contain_text(run_id)
    expect(rows.first.locator(".alarm")).to_have_text("long")
    page.goto(f"/runs/{run_id}")
    expect(page.locator(".title .alarm")).to_have_text("long")
    site.post(f"/api/v1/runs/{run_id}/stop")
    expect(page.locator(".title .state")).to_have_text("success")
    expect(page.locator(".title .alarm")).to_have_text("long")


def test_what_is_chosen_stands_in_the_address_and_back_undoes_it(site: Installation, page: Page) -> None:
    failed = site.make("etl/fails")["run_id"]
    site.make("etl/load", args={"date": "d2"})
    rows = opened(page)
    page.get_by_role("button", name="Failed").click()
    expect(page).to_have_url(f"{site.url}/runs?states=failure,error")
    expect(rows.first).to_contain_text(failed)
    assert set(rows.locator(".state").all_inner_texts()) == {"failure"}
    page.locator("summary").click()
    page.locator(".drop").get_by_label("success").check()
    expect(page).to_have_url(f"{site.url}/runs?states=success,failure,error")
    page.get_by_role("button", name="All", exact=True).click()
    expect(page).to_have_url(f"{site.url}/runs")
    page.get_by_label("hide repeats").uncheck()
    expect(page).to_have_url(f"{site.url}/runs?ungroup")
    page.get_by_label("Rows of a page").select_option("100")
    expect(page).to_have_url(f"{site.url}/runs?show=100&ungroup")
    page.get_by_role("button", name="Newest first").click()
    expect(page).to_have_url(f"{site.url}/runs?show=100&asc=true&ungroup")
    expect(page.locator("[data-loaded=yes]")).to_have_count(1)
    assert ids(rows)[-1] != ids(opened(page))[-1]
    page.go_back()
    expect(page).to_have_url(f"{site.url}/runs?show=100&asc=true&ungroup")
    page.go_back()
    page.go_back()
    expect(page).to_have_url(f"{site.url}/runs?ungroup")
    expect(page.get_by_label("Rows of a page")).to_have_value("50")
    rows = opened(page, "/runs?states=scheduled")
    expect(rows.first).to_contain_text("later")
    expect(page.get_by_text("Export", exact=True)).to_be_hidden()


def test_old_addresses_show_what_they_showed(large: Installation, browser: Browser) -> None:
    with watched(browser, large.url) as page:
        rows = opened(page, "/runs?path=team3&keywords=job,7&labels=z&states=success&show=20&ungroup")
        expect(rows.first).to_contain_text("team3/job")
        assert len(ids(page.locator("table.runs tbody tr"))) == 20
        expect(page.locator(".filters")).to_contain_text("in team3/")
        rows = opened(page, "/runs?args=n=77,odd%2C%20one".replace("%2C", "%5C,"))
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("n=77")
        page.get_by_role("button", name="Remove arg n=77").click()
        expect(page).to_have_url(re.compile(r"/runs\?args=odd"))
        rows = opened(page, "/runs?labels=x%5C,y")
        expect(rows.first).to_contain_text("x,y")
        rows = opened(page, "/runs?show=failed")
        assert set(rows.locator(".state").all_inner_texts()) == {"failure"}
        rows = opened(page, "/runs?time=20200101T000000Z")
        expect(page.locator(".empty")).to_have_text("No runs.")
        rows = opened(page, "/runs?time=20200101T000000Z&asc=true")
        assert ids(rows)[:3] == ["r1000", "r1001", "r1002"]
        page.goto("/runs/r1000?runs")
        expect(page.locator("h1")).to_contain_text("r1000")
        page.goto("/job/team0/job0")
        expect(page.locator("h1")).to_contain_text("team0/job0")


def test_all_of_a_large_history_is_searched_and_paged(large: Installation, browser: Browser) -> None:
    with watched(browser, large.url) as page:
        rows = opened(page, "/runs?ungroup")
        assert ids(rows) == [f"r{100_999 - n}" for n in range(50)]
        page.get_by_role("button", name="Earlier runs").click()
        expect(rows).to_have_count(100)
        assert ids(rows) == [f"r{100_999 - n}" for n in range(100)]
        expect(found(page, "n==123")).to_have_count(1)
        expect(page).to_have_url(re.compile(r"q=n(=|%3D)(=|%3D)123"))
        expect(rows).to_contain_text("team3/job123")
        expect(found(page, "state:fail team7/ !n=9")).to_have_count(50)
        assert all("failure" in text for text in rows.locator(".state").all_inner_texts())
        rows = found(page, "since:1d job69")
        assert 0 < rows.count() <= 50
        page.get_by_label("Search runs").fill("state:gone")
        page.keyboard.press("Enter")
        expect(page.locator(".wrong")).to_contain_text("not a state: 'gone'")
        expect(page.get_by_label("Search runs")).to_have_attribute("aria-invalid", "true")
        found(page, "")
        expect(page.locator(".wrong")).to_be_hidden()


def test_the_search_completes_words_by_keyboard(site: Installation, page: Page) -> None:
    opened(page)
    page.keyboard.press("/")
    field = page.get_by_label("Search runs")
    expect(field).to_be_focused()
    page.keyboard.type("lab")
    options = page.locator(".completions").get_by_role("option")
    expect(options.first).to_contain_text("label:")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(options.first).to_contain_text("label:etl")
    accessible(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{site.url}/runs?q=label:etl")
    page.keyboard.type("!state:suc")
    expect(options.first).to_have_text("!state:success")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    expect(field).to_have_value("label:etl !state:success ")
    page.keyboard.press("Escape")
    expect(page).to_have_url(f"{site.url}/runs")
    page.get_by_role("button", name="How to search").click()
    expect(page.locator("#help")).to_contain_text("the arg “date” is just this")
    accessible(page)


def test_repeats_are_hidden_and_shown_on_demand(site: Installation, page: Page) -> None:
    made = [site.make("etl/load", args={"date": "again"})["run_id"] for _ in range(4)]
    rows = opened(page, "/runs?q=date==again")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(made[-1])
    fetched = page.locator(".counted")
    expect(fetched).to_have_text("3 repeats hidden, of all 4 runs that fit. ")
    page.get_by_role("button", name="+3", exact=True).click()
    expect(rows).to_have_count(4)
    expect(fetched).to_have_count(0)
    assert ids(rows) == made[::-1]
    page.get_by_role("button", name="+3").click()
    expect(rows).to_have_count(1)
    page.get_by_label("hide repeats").uncheck()
    expect(rows).to_have_count(4)


def test_repeats_are_counted_as_far_as_runs_have_been_fetched(site: Installation, page: Page) -> None:
    now = site.clock.wall()
    put(site, [past(400_000 + n, "often", now - 20 * DAY + n) for n in range(1500)])
    rows = opened(page, "/runs?q=often&show=50")
    expect(rows).to_have_count(1)
    button = rows.get_by_role("button", name=re.compile(r"^\+\d+…$"))
    expect(button).to_have_attribute("title", re.compile("of those fetched so far"))
    fetched = page.locator(".counted")
    expect(fetched).to_have_text(re.compile("repeats hidden, of the .* runs fetched so far"))
    # The page also fetches by itself what comes into sight: the button may go at any moment.
    more = 'document.querySelector(".more button")?.click()'
    until(page, f"""{more}, document.querySelector(".counted")?.textContent.includes("of all ")""")
    expect(fetched).to_have_text("1,499 repeats hidden, of all 1,500 runs that fit. ")
    expect(rows.get_by_role("button", name="+1499", exact=True)).to_be_visible()


def test_a_page_that_is_read_does_not_jump(site: Installation, page: Page) -> None:
    put(site, [past(300_000 + n, "filler", site.clock.wall() - 5000 + n) for n in range(60)])
    rows = opened(page, "/runs?ungroup&show=100")
    page.mouse.wheel(0, 600)
    until(page, "window.scrollY > 300")
    reading = rows.nth(20)
    before = reading.bounding_box()
    new = site.make("slow")["run_id"]
    pill = page.get_by_role("button", name=re.compile("1 newer run$"))
    expect(pill).to_be_visible()
    assert reading.bounding_box() == before
    page.keyboard.press("n")
    expect(rows.first).to_contain_text(new)
    expect(pill).to_be_hidden()
    site.post(f"/api/v1/runs/{new}/stop")


def test_runs_are_chosen_and_operated_on_after_a_preview(site: Installation, page: Page) -> None:
    running = [site.make("slow")["run_id"] for _ in range(2)]
    done = site.make("etl/load", args={"date": "bulk"})["run_id"]
    rows = opened(page, "/runs?ungroup")
    for _ in range(3):
        page.keyboard.press("j")
        page.keyboard.press("x")
    bar = page.get_by_role("region", name="Operations on the selected runs")
    expect(bar).to_contain_text("3 runs selected")
    accessible(page)
    bar.get_by_role("button", name="Stop").click()
    dialog = page.locator("#dialog")
    expect(dialog).to_contain_text("Stop: 2 runs?")
    for run_id in running:
        expect(dialog.locator(".ids")).to_contain_text(f"{run_id} slow")
    dialog.locator("summary").click()
    expect(dialog.locator(".refused")).to_contain_text(f"can't stop run {done}: run is success")
    accessible(page)
    page.get_by_label("Reason, for the log").fill("too slow")
    page.locator("#confirm").click()
    expect(page.locator(".notice")).to_have_text(re.compile("2 runs stopped"))
    for run_id in running:
        log = site.get(f"/api/v1/runs/{run_id}/log").json()["run_log"]
        assert "reason: too slow" in [line["message"] for line in log]
    expect(bar).to_be_hidden()
    for run_id in running:
        row = rows.filter(has=page.get_by_label(f"Select {run_id}", exact=True))
        expect(row.locator(".state")).to_have_text("success")
    page.get_by_label(f"Select {done}", exact=True).check()
    bar.get_by_role("button", name="Skip").click()
    expect(dialog).to_contain_text("None of these runs can be skipped.")
    expect(page.locator("#confirm")).to_have_count(0)
    page.get_by_role("button", name="Close").last.click()
    bar.get_by_label("Mark as").select_option("failure")
    page.locator("#confirm").click()
    row = rows.filter(has=page.get_by_label(f"Select {done}", exact=True))
    expect(row.locator(".state")).to_have_text("failure")


def test_all_that_a_search_finds_is_marked_at_once(large: Installation, browser: Browser) -> None:
    with watched(browser, large.url) as page:
        rows = opened(page, "/runs?q=state:failure+since:40d&show=20&ungroup")
        page.keyboard.press("a")
        bar = page.get_by_role("region", name="Operations on the selected runs")
        expect(bar).to_contain_text("20 runs selected")
        bar.get_by_role("button", name="Select all that the search finds").click()
        bar.get_by_label("Mark as").select_option("success")
        expect(page.locator("#dialog")).to_contain_text("Mark as success: 100 runs?")
        expect(page.locator("#dialog")).to_contain_text("and 88 more runs")
        page.locator("#confirm").click()
        expect(page.locator(".notice")).to_contain_text("100 runs marked as success")
        expect(rows.first.locator(".state")).to_have_text("success")
        assert large.get("/api/v1/search/runs?state=failure").json()["runs"] == {}


def test_what_is_found_is_exported(large: Installation, browser: Browser) -> None:
    with watched(browser, large.url) as page:
        opened(page, "/runs?path=team3&q=n=99&ungroup")
        with page.expect_download() as download:
            page.get_by_role("link", name="Export as CSV").click()
        rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
        assert rows and all(row["job_id"].startswith("team3/") and "99" in row["args"] for row in rows)
        with page.expect_download() as download:
            page.get_by_role("link", name="Export as JSON").click()
        runs = json.loads(download.value.path().read_text())
        assert [run["run_id"] for run in runs] == [row["run_id"] for row in rows]


def test_hostile_texts_are_text_and_filter_as_they_are(site: Installation, page: Page) -> None:
    name = next(job_id for job_id in SITE if job_id.startswith("<b"))
    run_id = site.make(name, args={"x": HOSTILE})["run_id"]
    rows = opened(page, f"/runs?q={quote('<b onmouseover')}")
    expect(rows.first).to_contain_text(HOSTILE)
    page.get_by_role("button", name=HOSTILE).first.click()
    expect(page.locator(".filters")).to_contain_text(HOSTILE)
    expect(rows.first).to_contain_text(run_id)
    page.reload()
    expect(page.locator(".filters")).to_contain_text(HOSTILE)
    expect(rows.first).to_contain_text(run_id)


def test_what_happened_while_the_server_was_away_is_there(browser: Browser, tmp_path: Path) -> None:
    jobs = {"noop": SITE["later"]}
    site = Installation(tmp_path, jobs).start()
    try:
        with watched(browser, site.url) as page:
            site.make("noop")
            rows = opened(page)
            port = site.port
            site.stop()
            expect(page.locator("#stale")).to_be_visible()
            (tmp_path / "again").mkdir()
            site = Installation(tmp_path / "again", {"other": SITE["etl/fails"]}, port=port).start()
            run_id = site.make("other")["run_id"]
            expect(rows).to_have_count(1)
            expect(rows.first).to_contain_text(f"{run_id}failure")
    finally:
        site.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_accessible(site: Installation, browser: Browser, scheme: Any, width: int) -> None:
    site.make("etl/load", args={"date": "d"})
    size = {"width": width, "height": 800}
    with watched(browser, site.url, color_scheme=scheme, viewport=size) as page:
        opened(page, "/runs?labels=etl&states=success,failure,error")
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
