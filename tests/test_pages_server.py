"""The pages of agents and of the server, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import accessible, live, watched
from installation import PROGRAM, Installation
from playwright.sync_api import Browser, Locator, Page, expect
from server import Server

SLEEP = "program: {type: procstar, argv: [/usr/bin/sleep, '600']}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), {"etl/sleep": SLEEP})
    with server.running():
        yield server


@pytest.fixture
def agents(browser: Browser, server: Server) -> Iterator[Page]:
    with watched(browser, server.url.removesuffix("/api/v1")) as page:
        page.goto("/agents")
        live(page)
        yield page


def group(page: Page, name: str) -> Locator:
    return page.locator("main div", has=page.get_by_role("heading", name=f"Group {name}", exact=True)).last


def test_an_agent_is_shown_with_its_runs_as_they_come_and_go(server: Server, agents: Page) -> None:
    head = agents.locator(".head-row", has_text="Group default")
    expect(head).to_contain_text("1 live · 0 runs")
    run_id = server.schedule({"job_id": "etl/sleep"})
    expect(head).to_contain_text("1 live · 1 run")
    cells = agents.locator("main table").first.locator("tbody tr")
    expect(cells.get_by_role("link", name=run_id)).to_be_visible()
    expect(cells).to_contain_text("etl/sleep")
    expect(cells.locator("[data-agent=live]")).to_have_text("live")
    expect(agents.locator("main table").last).to_contain_text("connected")
    accessible(agents)
    agents.emulate_media(color_scheme="dark")
    accessible(agents, "color-contrast")
    agents.emulate_media(color_scheme="light")
    server.post(f"/runs/{run_id}/signal/KILL")
    expect(head).to_contain_text("1 live · 0 runs")


def test_a_group_without_agent_says_what_waits_for_one(server: Server, agents: Page) -> None:
    server.schedule({"job": {"program": {"type": "procstar", "argv": ["/bin/true"], "group_id": "nobody"}}})
    head = agents.locator(".head-row", has_text="Group nobody")
    expect(head).to_contain_text("no agent")
    expect(head).to_contain_text("1 run waits for an agent")


def test_an_agent_that_is_gone_is_lost_and_remembered(server: Server, agents: Page) -> None:
    expect(agents.locator("[data-agent=live]").first).to_be_visible()
    server.end_agent()
    expect(agents.locator("main table").first.locator("[data-agent=live]")).to_have_count(0)
    expect(agents.locator("main table").last).to_contain_text(re.compile("lost|done"))


# -- the server ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    jobs = {"noop": PROGRAM, "every": "schedule: {type: interval, interval: 600}\n" + PROGRAM}
    site = Installation(tmp_path_factory.mktemp("site"), jobs).start()
    yield site
    site.stop()


def test_health_and_figures_are_shown_and_renewed(site: Installation, page: Page) -> None:
    page.goto("/server")
    expect(page.locator(".health")).to_contain_text("Well: runs start in time")
    expect(page.locator(".health")).to_contain_text("version 9.8.7")
    expect(page.locator(".plots figure").first).to_contain_text("The first point comes after")
    for _ in range(4):
        site.make("noop")
        site.samples.sample()
    page.get_by_role("button", name="day").click()
    page.get_by_role("button", name="hour").click()
    memory = page.locator("figure", has_text="Memory")
    expect(memory.locator("svg")).to_have_attribute("aria-label", re.compile("Memory: now 95 MiB"))
    ended = page.locator("figure", has_text="Runs ended per minute")
    expect(ended.locator("strong")).to_have_text("6")  # one in ten seconds


def test_illness_is_shown_with_its_reasons(
    site: Installation, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.driver, "ailments", lambda: ["no agent takes runs of group <b>: 3 wait"])
    page.goto("/server")
    expect(page.locator(".health.ill li")).to_have_text("no agent takes runs of group <b>: 3 wait")


def test_the_configuration_can_be_searched(site: Installation, page: Page) -> None:
    page.goto("/server")
    config = page.locator(".config")
    expect(config).to_contain_text("job_dir")
    page.get_by_label("Find a setting").fill("retention")
    expect(config).not_to_contain_text("job_dir")
    expect(config).to_contain_text("86400")


def test_a_reload_is_previewed_then_done(site: Installation, page: Page) -> None:
    page.goto("/server")
    files = page.locator("section", has=page.get_by_role("heading", name="Job files"))
    expect(files).to_contain_text("2 jobs, read")
    preview = files.get_by_role("button", name="Preview a reload")
    preview.click()
    expect(files).to_contain_text("A reload would change nothing.")
    site.write("new/one", "schedule: {type: interval, interval: 900}\n" + PROGRAM)
    (site.job_dir / "every.yaml").unlink()
    preview.click()
    expect(files).to_contain_text("Added: 1")
    expect(files).to_contain_text("Removed: 1")
    expect(files).to_contain_text("scheduled runs would appear")
    expect(files).to_contain_text("scheduled runs would disappear")
    assert set(site.driver.jobs.jobs) == {"noop", "every"}
    files.get_by_role("button", name="Reload", exact=True).click()
    page.locator("#confirm").click()
    expect(page.locator(".notice")).to_contain_text("Reloaded: 1 added, 1 removed, 0 changed.")
    assert set(site.driver.jobs.jobs) == {"noop", "new/one"}


def test_errors_of_job_files_are_shown_with_their_place(site: Installation, page: Page) -> None:
    page.goto("/server")
    files = page.locator("section", has=page.get_by_role("heading", name="Job files"))
    site.write("broken", "program: {type: no-op}\nschedule: {type: daily}\n")
    files.get_by_role("button", name="Preview a reload").click()
    expect(files.locator("tbody")).to_contain_text("missing key: ")
    site.post("/api/control/reload_jobs")
    page.reload()
    expect(files).to_contain_text("The last reload was refused")
    expect(files.locator("tbody td").nth(1)).to_contain_text(re.compile(r"broken\.yaml(:\d+)?$"))
    (site.job_dir / "broken.yaml").unlink()
    site.post("/api/control/reload_jobs")


@pytest.mark.parametrize("scheme, rules", [("light", ""), ("dark", "color-contrast")])
def test_the_page_of_the_server_keeps_wcag_and_fits_a_phone(
    site: Installation, browser: Browser, scheme: Any, rules: str
) -> None:
    for _ in range(3):
        site.samples.sample()
    with watched(browser, site.url, color_scheme=scheme, viewport={"width": 390, "height": 800}) as page:
        page.goto("/server")
        expect(page.locator(".plots svg").first).to_be_visible()
        accessible(page, rules)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
