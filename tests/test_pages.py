"""What all pages have in common, in a real browser."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import requests
from browsing import HOSTILE, SITE, live, watched
from installation import PROGRAM, Installation
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).parent.parent / "apsislib/pages"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.*"))


def test_the_page_may_run_and_load_nothing_but_its_own_files(site: Installation) -> None:
    addresses = ["/", "/today", "/jobs", "/jobs/a/b", "/runs", "/runs/r1", "/job/a/b", "/agents", "/server"]
    for path in (*addresses, *(f"/static/{name}" for name in FILES)):
        answer = requests.get(site.url + path, timeout=60)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        if path.endswith(".js"):
            assert answer.headers["content-type"].startswith("text/javascript")
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?://(?!www\.w3)",
                answer.text,
            )
        elif path.endswith(".css"):
            assert not re.search(r"@import|url\(|expression\(", answer.text)
    html = requests.get(site.url + "/", timeout=60).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html)


def test_files_are_kept_by_browsers_under_addresses_that_change_with_them(
    site: Installation, browser: Browser
) -> None:
    first = requests.get(site.url + "/static/style/frame.css", timeout=60)
    tag = first.headers["etag"]
    again = requests.get(first.url, headers={"if-none-match": f'"x", {tag}'}, timeout=60)
    assert (again.status_code, again.content) == (304, b"")
    assert requests.head(site.url + "/", timeout=60).headers["content-length"] != "0"
    page = requests.get(site.url + "/", timeout=60)
    assert page.headers["cache-control"] == "no-cache"
    addresses = re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)
    assert len(addresses) > 10
    for address in addresses:
        answer = requests.get(site.url + address, timeout=60)
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"], address
    board = requests.get(site.url + "/", timeout=60).text
    assert "views/today-chart.js" in board and "views/run.js" not in board
    run = requests.get(site.url + "/runs/r1", timeout=60).text
    assert "views/run.js" in run and "views/runs.js" not in run and "views/today" not in run
    # What a page names is what it loads: nothing comes in a second round trip, nothing in vain.
    with watched(browser, site.url) as opened:
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url.removeprefix(site.url)))
        opened.goto("/")
        live(opened)
        expect(opened.locator(".timeline")).to_have_attribute("data-loaded", "yes")
        named = set(re.findall(r'(?:href|src)="(/static/[^"]+\.(?:js|css))"', board))
        assert {address for address in asked if re.search(r"\.(js|css)$", address)} == named
    other = re.sub("[0-9a-f]{12}", "0123456789ab", addresses[0])
    assert requests.get(site.url + other, timeout=60).status_code == 404
    for name in ("../pages.py", "%2e%2e/pages.py", "", "lib", "lib/"):
        assert requests.get(f"{site.url}/static/{name}", timeout=60).status_code == 404


def test_every_file_of_the_page_is_shipped_and_short() -> None:
    shipped = (ROOT.parent.parent / "setup.cfg").read_text()
    assert "pages/*\n" in shipped and "pages/*/*\n" in shipped
    for name in FILES:
        assert name.count("/") <= 1, name
        assert len((ROOT / name).read_text().splitlines()) < 400, name


def test_hostile_names_and_texts_are_only_text_everywhere(site: Installation, page: Page) -> None:
    name = next(job_id for job_id in SITE if job_id.startswith("<b"))
    run_id = site.make(name, args={"x": HOSTILE})["run_id"]
    site.print(run_id, [HOSTILE.encode()], name=HOSTILE)
    for path in ("/runs", "/jobs", "/agents", f"/runs/{run_id}"):
        page.goto(path)
        expect(page.locator("main")).to_contain_text("onerror=" if path != "/runs" else name)
    expect(page.locator(".output .line")).to_have_text(HOSTILE)
    page.get_by_role("link", name=name).first.click()
    expect(page.locator("h1")).to_contain_text(name)
    expect(page.locator(".prose")).to_have_text(HOSTILE)
    expect(page.locator("tbody tr").first).to_contain_text(run_id)
    page.goto(f"/runs/{requests.utils.quote(HOSTILE, safe='')}")
    expect(page.locator("main")).to_contain_text("unknown run")


def test_times_follow_the_chosen_zone_and_it_is_remembered(site: Installation, page: Page) -> None:
    run_id = site.make("etl/load", args={"date": "z"}, times={"schedule": "2131-01-02T03:04:05Z"})["run_id"]
    page.goto(f"/runs/{run_id}")
    expect(page.locator("main")).to_contain_text("2131-01-02 04:04:05")
    page.get_by_label("Times in").select_option("UTC")
    expect(page.locator("main")).to_contain_text("2131-01-02 03:04:05")
    page.reload()
    expect(page.locator("main")).to_contain_text("2131-01-02 03:04:05")
    site.post(f"/api/v1/runs/{run_id}/skip")


def test_the_theme_is_chosen_once_and_remembered(site: Installation, browser: Browser) -> None:
    with watched(browser, site.url, color_scheme="light") as page:
        page.goto("/runs")
        back = "getComputedStyle(document.documentElement).backgroundColor"
        light = page.evaluate(back)
        theme = page.get_by_role("button", name="Theme")
        theme.click()
        expect(theme).to_have_attribute("title", "Theme: Light")
        theme.click()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        dark = page.evaluate(back)
        assert dark != light
        # Already when there is a body, and nothing has been painted: no flash.
        page.add_init_script(
            "new MutationObserver(() => { if (document.body) window.first ??= "
            f"{back}; }}).observe(document, {{childList: true, subtree: true}})"
        )
        page.reload()
        assert page.evaluate("window.first") == dark
        theme.click()
        expect(theme).to_have_attribute("title", "Theme: As the system has it")
        assert page.evaluate(back) == light


def test_keys_lead_to_every_page_and_say_so(site: Installation, page: Page) -> None:
    page.goto("/")
    live(page)
    for key, path in (("r", "/runs"), ("j", "/jobs"), ("a", "/agents"), ("t", "/")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        expect(page).to_have_url(site.url + path)
    page.keyboard.press("?")
    expect(page.locator("#help")).to_contain_text("Next row (Enter opens it)")
    page.keyboard.press("Escape")
    page.goto("/agents")
    live(page)
    page.keyboard.press("/")  # there is no search there
    expect(page.get_by_label("Search runs")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("main tbody a.row-link").first).to_be_visible()
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.className").endswith("row-link")


def test_a_page_of_an_older_server_loads_anew(site: Installation, page: Page) -> None:
    page.route("**/views/agents.js", lambda route: route.fulfill(status=404), times=1)
    page.goto("/runs")
    live(page)
    page.evaluate("window.old = true")
    page.get_by_role("link", name="Agents").click()
    expect(page.locator("h1")).to_have_text("Agents")
    assert page.evaluate("window.old === undefined")


def test_the_page_comes_back_by_itself_after_the_server_was_away(browser: Browser, tmp_path: Path) -> None:
    with (
        closing(Installation(tmp_path, {"noop": PROGRAM}).start()) as site,
        watched(browser, site.url) as page,
    ):
        page.goto("/runs")
        live(page)
        port = site.port
        site.stop()
        expect(page.locator("#live")).to_have_text("reconnecting")
        expect(page.locator("#stale")).to_contain_text("What is shown was true at")
        expect(page.locator("link[rel=icon]")).to_have_attribute("href", re.compile("stale"))
        page.get_by_role("button", name="Try now").click()
        expect(page.locator("#live")).to_have_text("reconnecting")
        (tmp_path / "again").mkdir()
        with closing(Installation(tmp_path / "again", {"noop": PROGRAM}, port=port).start()) as again:
            run_id = again.make("noop")["run_id"]
            live(page)
            expect(page.locator("#stale")).to_be_hidden()
            expect(page.locator("tbody tr").first).to_contain_text(run_id)


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
