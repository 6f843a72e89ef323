"""The page, in a real browser, with names and texts that would like to be HTML."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from installation import PROGRAM, SLOW, Installation
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

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
JOBS = {
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
        "proc": {"hostname": "w3", "username": HOSTILE},
        "stats": {"connected": True, "last_connect_time": "2031-05-06T07:00:00.123456+00:00"},
    },
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    site = Installation(tmp_path_factory.mktemp("site"), JOBS, connections=lambda: {"c": AGENT}).start()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert shutil.which(CHROMIUM), f"the page is tested in Chromium: install it as {CHROMIUM}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Installation) -> Iterator[Page]:
    """A page whose every error, refused script and request elsewhere fails the test."""
    context = browser.new_context(base_url=site.url, timezone_id="Europe/Berlin")
    page = context.new_page()
    page.set_default_timeout(10_000)
    wrong: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        # The browser itself reports each answer of 4xx; whether that is shown is the test's business.
        if message.type == "error" and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: request.url.startswith(site.url) or wrong.append(request.url))
    yield page
    assert page.title() != "owned"
    assert page.locator("main img, main script, main b").count() == 0
    context.close()
    assert wrong == []


def state(page: Page, text: str) -> None:
    expect(page.locator(".title .state")).to_have_text(text)


def test_the_page_may_run_and_load_nothing_but_its_own_files(site: Installation) -> None:
    for path in (
        "/",
        "/jobs",
        "/runs",
        "/runs/r1",
        "/job/a/b",
        "/agents",
        "/static/app.js",
        "/static/style.css",
    ):
        answer = requests.get(site.url + path, timeout=10)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    html = requests.get(site.url + "/", timeout=10).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html)
    script = requests.get(site.url + "/static/app.js", timeout=10)
    assert script.headers["content-type"].startswith("text/javascript")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script.text
    )


def test_files_that_the_browser_has_are_not_sent_again(site: Installation) -> None:
    first = requests.get(site.url + "/static/style.css", timeout=10)
    tag = first.headers["etag"]
    again = requests.get(site.url + "/static/style.css", headers={"if-none-match": f'"x", {tag}'}, timeout=10)
    assert (again.status_code, again.content) == (304, b"")
    assert requests.head(site.url + "/", timeout=10).headers["content-length"] != "0"


def test_every_file_of_the_page_is_shipped() -> None:
    root = Path(__file__).parent.parent
    assert "pages/*" in (root / "setup.cfg").read_text()
    assert {p.name for p in (root / "apsislib/pages").iterdir()} == {
        "index.html",
        "style.css",
        "app.js",
        "icon.svg",
    }


def test_runs_are_listed_newest_first_and_new_ones_appear_by_themselves(
    site: Installation, page: Page
) -> None:
    old = site.make("etl/load", args={"date": "d1"})["run_id"]
    page.goto("/")
    first = page.locator("tbody tr").first
    expect(first).to_contain_text(old)
    expect(first).to_contain_text("date=d1")
    expect(first.locator(".state")).to_have_text("success")
    expect(page.locator("#live")).to_have_text("live")
    new = site.make("slow")["run_id"]
    expect(first).to_contain_text(new)
    expect(first.locator(".state")).to_have_text("running")
    site.post(f"/api/v1/runs/{new}/stop")
    expect(first.locator(".state")).to_have_text("success")


def test_an_alarm_appears_by_itself_in_list_and_run(site: Installation, page: Page) -> None:
    page.goto("/")
    expect(page.locator("#live")).to_have_text("live")
    run_id = site.make("long")["run_id"]
    expect(page.locator("tbody tr").first).to_contain_text(run_id)
    expect(page.locator("tbody tr").first.locator(".alarm")).to_have_text("long")
    page.goto(f"/runs/{run_id}")
    expect(page.locator(".title .alarm")).to_have_text("long")
    site.post(f"/api/v1/runs/{run_id}/stop")
    expect(page.locator(".title .state")).to_have_text("success")
    expect(page.locator(".title .alarm")).to_have_text("long")


def test_runs_can_be_found_by_word_and_kind_and_the_address_says_so(site: Installation, page: Page) -> None:
    failed = site.make("etl/fails")["run_id"]
    site.make("etl/load", args={"date": "d2"})
    page.goto("/runs")
    page.get_by_label("Which runs").select_option("Failed")
    expect(page).to_have_url(re.compile(r"show=failed"))
    expect(page.locator("tbody tr").first).to_contain_text(failed)
    assert set(page.locator("tbody .state").all_text_contents()) == {"failure"}
    page.get_by_label("Part of a job ID").fill("LOAD")
    page.keyboard.press("Enter")
    expect(page.locator(".empty")).to_have_text("No runs.")
    page.get_by_label("Which runs").select_option("Recent")
    expect(page.locator("tbody tr").first).to_contain_text("etl/load")
    page.goto("/runs?show=upcoming")
    expect(page.locator("tbody tr").first).to_contain_text("later")


def test_more_runs_are_fetched_on_demand(site: Installation, page: Page) -> None:
    site.post("/api/v1/runs?count=150", {"job_id": "etl/fails"})
    page.goto("/runs?q=fails")
    expect(page.locator("tbody tr")).to_have_count(100)
    page.get_by_role("button", name="Earlier runs").click()
    expect(page.locator("tbody tr").nth(149)).to_be_visible()
    ids = page.locator("tbody tr td:first-child").all_text_contents()
    numbers = [int(run_id[1:]) for run_id in ids]
    assert numbers == sorted(set(numbers), reverse=True)


def test_a_run_shows_its_log_and_output_as_they_grow_and_can_be_stopped(
    site: Installation, page: Page
) -> None:
    run_id = site.make("slow")["run_id"]
    page.goto("/runs")
    page.get_by_role("link", name=run_id, exact=True).click()
    expect(page).to_have_url(f"{site.url}/runs/{run_id}")
    state(page, "running")
    expect(page.locator(".log")).to_contain_text("scheduled: now")
    page.wait_for_function("document.querySelector('.log tbody').children.length == 3")
    site.print(run_id, ["grüße ".encode()])
    expect(page.locator("pre.output")).to_have_text("grüße ")
    site.print(run_id, [HOSTILE.encode()], at=8)
    expect(page.locator("pre.output")).to_have_text("grüße " + HOSTILE)
    expect(page.get_by_text(f"combined stdout & stderr, {8 + len(HOSTILE)} bytes")).to_be_visible()
    page.get_by_role("button", name="stop").click()
    expect(page.locator("dialog")).to_contain_text(f"Stop run {run_id} of slow?")
    page.get_by_role("button", name="Cancel").click()
    assert site.state(run_id) == "running"
    page.get_by_role("button", name="stop").click()
    page.locator("#confirm").click()
    state(page, "success")
    expect(page.locator(".log")).to_contain_text("success")
    page.get_by_label("Mark as").select_option("failure")
    page.locator("#confirm").click()
    state(page, "failure")
    page.get_by_role("button", name="rerun").click()
    page.locator("#confirm").click()
    expect(page.get_by_text("rerun of", exact=True)).to_be_visible()
    state(page, "running")
    page.go_back()
    expect(page.locator("h1")).to_contain_text(run_id)
    for run in site.get("/api/v1/runs?job_id=slow&state=running").json()["runs"]:
        site.post(f"/api/v1/runs/{run}/stop")


def test_a_run_says_what_it_waits_for(site: Installation, page: Page) -> None:
    run_id = site.make("waits")["run_id"]
    page.goto(f"/runs/{run_id}")
    state(page, "waiting")
    conditions = page.locator("section", has=page.get_by_role("heading", name="Conditions"))
    expect(conditions).to_contain_text("dependency etl/load(date=never) is success")
    expect(conditions.locator(".chip")).to_contain_text("etl/load(date=never)")
    page.get_by_role("button", name="start").click()
    page.locator("#confirm").click()
    state(page, "success")


def test_of_a_large_output_the_end_is_shown_and_all_of_it_can_be_fetched(
    site: Installation, page: Page
) -> None:
    run_id = site.make("etl/fails")["run_id"]
    data = b"".join(b"line %d\n" % n for n in range(300_000))
    site.print(run_id, [data])
    page.goto(f"/runs/{run_id}")
    output = page.locator("pre.output")
    expect(output).to_contain_text("line 299999")
    assert len(output.text_content() or "") < 1_100_000
    with page.expect_download() as download:
        page.get_by_role("link", name="download").click()
    assert download.value.path().read_bytes() == data
    assert download.value.suggested_filename == f"{run_id}-output.txt"


def test_jobs_are_listed_found_and_run(site: Installation, page: Page) -> None:
    page.goto("/jobs")
    expect(page.locator("tbody tr")).to_have_count(len(JOBS))
    page.get_by_label("Find jobs").fill("etl load")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="etl/load").click()
    expect(page).to_have_url(f"{site.url}/job/etl/load")
    expect(page.locator("main")).to_contain_text("Loads a day.")
    page.get_by_label("date").fill("2031-05-06")
    page.get_by_role("button", name="Schedule").click()
    expect(page.get_by_text("scheduled r")).to_be_visible()
    expect(page.locator("tbody tr").first).to_contain_text("date=2031-05-06")
    page.get_by_label("when").fill("soonish")
    page.get_by_role("button", name="Schedule").click()
    expect(page.locator(".notice")).to_contain_text("times.schedule: can't parse as time: 'soonish'")


def test_a_job_that_is_reloaded_appears(site: Installation, page: Page) -> None:
    page.goto("/jobs")
    expect(page.locator("tbody tr")).to_have_count(len(JOBS))
    expect(page.locator("#live")).to_have_text("live")
    site.write("brand/new", PROGRAM)
    site.post("/api/control/reload_jobs?dry_run=False")
    expect(page.get_by_role("link", name="brand/new")).to_be_visible()
    (site.job_dir / "brand/new.yaml").unlink()
    site.post("/api/control/reload_jobs?dry_run=False")
    expect(page.get_by_role("link", name="brand/new")).to_have_count(0)


def test_hostile_names_and_texts_are_only_text_everywhere(site: Installation, page: Page) -> None:
    name = next(job_id for job_id in JOBS if job_id.startswith("<b"))
    run_id = site.make(name, args={"x": HOSTILE})["run_id"]
    site.print(run_id, [HOSTILE.encode()], name=HOSTILE)
    for path in ("/runs", "/jobs", "/agents", f"/runs/{run_id}"):
        page.goto(path)
        expect(page.locator("main")).to_contain_text("onerror=" if path != "/runs" else name)
    expect(page.locator("pre.output")).to_have_text(HOSTILE)
    page.get_by_role("link", name=name).first.click()
    expect(page.locator("h1")).to_contain_text(name)
    expect(page.locator("dd").first).to_have_text(HOSTILE)
    expect(page.locator("tbody tr").first).to_contain_text(run_id)
    page.goto(f"/runs/{requests.utils.quote(HOSTILE, safe='')}")
    expect(page.locator("main")).to_contain_text("unknown run")


def test_agents_are_listed(site: Installation, page: Page) -> None:
    page.goto("/agents")
    expect(page.locator("h2")).to_have_text("default")
    expect(page.locator("tbody tr")).to_contain_text("w3")
    expect(page.locator("tbody tr")).to_contain_text("active")


def test_times_follow_the_chosen_zone_and_it_is_remembered(site: Installation, page: Page) -> None:
    run_id = site.make("etl/load", args={"date": "z"}, times={"schedule": "2131-01-02T03:04:05Z"})["run_id"]
    page.goto(f"/runs/{run_id}")
    expect(page.locator("main")).to_contain_text("2131-01-02 04:04:05")
    page.get_by_label("Times in").select_option("UTC")
    expect(page.locator("main")).to_contain_text("2131-01-02 03:04:05")
    page.reload()
    expect(page.locator("main")).to_contain_text("2131-01-02 03:04:05")
    site.post(f"/api/v1/runs/{run_id}/skip")


def test_the_page_comes_back_by_itself_after_the_server_was_away(browser: Browser, tmp_path: Path) -> None:
    site = Installation(tmp_path, {"noop": PROGRAM}).start()
    page = browser.new_page(base_url=site.url)
    page.goto("/")
    expect(page.locator("#live")).to_have_text("live")
    port = site.port
    site.stop()
    expect(page.locator("#live")).to_have_text("reconnecting")
    (tmp_path / "again").mkdir()
    again = Installation(tmp_path / "again", {"noop": PROGRAM}, port=port).start()
    run_id = again.make("noop")["run_id"]
    expect(page.locator("#live")).to_have_text("live", timeout=10_000)
    expect(page.locator("tbody tr").first).to_contain_text(run_id)
    page.close()
    again.stop()


def test_both_colour_schemes_are_readable(site: Installation, browser: Browser) -> None:
    """Contrast of text to its background, as WCAG measures it: at least 4.5 for every state and text."""
    for scheme in ("light", "dark"):
        page = browser.new_page(base_url=site.url, color_scheme=scheme)  # type: ignore[arg-type]
        page.goto("/runs")
        expect(page.locator("tbody tr").first).to_be_visible()
        page.evaluate(STATES)
        poor: list[Any] = page.evaluate(CONTRAST)
        assert poor == [], scheme
        page.close()


STATES = """() => {
  const cell = document.querySelector('tbody td');
  const states = 'scheduled waiting starting running stopping success failure error skipped';
  for (const state of states.split(' ')) {
    const mark = document.createElement('span');
    mark.className = 'state';
    mark.dataset.state = state;
    mark.textContent = state;
    cell.append(mark);
  }
}"""
CONTRAST = r"""() => {
  const parse = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const color = parse(getComputedStyle(n).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    const texts = [...node.childNodes].filter((c) => c.nodeType === 3 && c.data.trim());
    if (!node.checkVisibility() || !texts.length) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push([node.textContent.slice(0, 30), ratio]);
  }
  return poor;
}"""
