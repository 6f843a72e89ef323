"""The page of runs, in a real browser."""

from __future__ import annotations

import re

from installation import Installation
from playwright.sync_api import Page, expect


def test_runs_are_listed_newest_first_and_new_ones_appear_by_themselves(
    site: Installation, page: Page
) -> None:
    old = site.make("etl/load", args={"date": "d1"})["run_id"]
    page.goto("/runs")
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
    page.goto("/runs")
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
