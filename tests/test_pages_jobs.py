"""The pages of one run, of jobs and of agents, in a real browser."""

from __future__ import annotations

from browsing import HOSTILE, JOBS, state
from installation import PROGRAM, Installation
from playwright.sync_api import Page, expect


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
    expect(page.locator("#dialog")).to_contain_text(f"Stop run {run_id} of slow?")
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


def test_agents_are_listed(site: Installation, page: Page) -> None:
    page.goto("/agents")
    expect(page.locator("h2")).to_have_text("default")
    expect(page.locator("tbody tr")).to_contain_text("w3")
    expect(page.locator("tbody tr")).to_contain_text("active")
