"""The pages of all jobs and of one job, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import HOSTILE, accessible, live, watched
from installation import PROGRAM, Installation
from playwright.sync_api import Browser, Locator, Page, expect

from apsislib.runs import Run, Save
from apsislib.states import State

MARKDOWN = (
    """Loads the **trades** of a _day_, see `load.py`.

# When it fails

1. Call the vendor
   - by [phone](tel:123), not [this](javascript:alert(1))
2. Read the [runbook](https://runbook.example/a_b) or our [runs](/runs?q=etl)

| what | by    |
|------|-------|
| *a*  | 05:30 |

> Never twice.

```
<b>code</b> & such
```

~~old~~ \\*plain\\* ![x](https://elsewhere.example/x.png) """
    + HOSTILE
)
JOBS: dict[str, str] = {
    "etl/load": "params: [date, region]\n"
    "schedule:\n"
    "- {type: daily, tz: Europe/London, calendar: Mon-Fri, daytime: '06:30:00', args: {region: emea}}\n"
    "- {type: daily, tz: UTC, daytime: '01:00:00', enabled: false, args: {region: apac}}\n"
    "metadata:\n  labels: [etl, nightly]\n  description: |\n"
    + "".join(f"    {line}\n" for line in MARKDOWN.split("\n"))
    + "  owner: "
    + "'the desk'\n"
    + PROGRAM,
    "etl/clean": "params: [date, region]\nmetadata: {labels: [etl], description: Deep inside is a needle.}\n"
    "condition: {type: dependency, job_id: etl/load}\n"
    "action: {type: schedule, job_id: notify, if: {states: failure}}\n" + PROGRAM,
    "notify": "metadata: {description: Tells the desk.}\n" + PROGRAM,
    "ops/backup/files": "program: {type: no-op, success: false}\n",
    "ops/backup/database": "schedule: {type: interval, interval: 600}\n" + PROGRAM,
    "ops/rotate": "metadata: {labels: [ops]}\n" + PROGRAM,
    **{f"zoo/job{n:03}": PROGRAM for n in range(120)},
}


def finished(n: int, due: float) -> Run:
    """One of forty days, of which four failed."""
    state = State.SUCCESS if n % 10 else State.FAILURE
    times = {"schedule": due, "running": due, state.value: due + 60 + n}
    args = {"date": f"d{n}", "region": "emea"}
    return Run(
        f"r{9000 + n}", "etl/load", args, state, due + 60 + n, times, meta={"job": {"labels": []}}, rev=3
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    site = Installation(tmp_path_factory.mktemp("site"), JOBS).start()
    past = [finished(n, site.clock.wall() - 86400.0 * (40 - n)) for n in range(40)]
    site.store.wait(site.store.put([Save(run) for run in past]))
    yield site
    site.stop()


def rows(page: Page) -> Locator:
    return page.locator("table.jobs tbody:not([aria-hidden]) tr")


def row(page: Page, job_id: str) -> Locator:
    return rows(page).filter(has=page.locator(f'a.job[title="{job_id}"]'))


def counted(page: Page, text: str) -> None:
    expect(page.locator(".title [role=status]")).to_have_text(text)


def test_a_job_is_shown_with_schedule_runs_and_durations(site: Installation, page: Page) -> None:
    page.goto("/jobs")
    counted(page, f"{len(JOBS)} jobs")
    load = row(page, "etl/load")
    expect(load.locator(".schedule")).to_have_text("weekdays at 06:30 London time")
    expect(load.locator(".last")).to_contain_text("success")
    expect(load.locator(".last a")).to_have_attribute("href", "/runs/r9039")
    expect(load.locator(".rate")).to_have_text("90 %")
    expect(load.locator(".spark svg")).to_have_attribute("aria-label", re.compile("^20 runs, 2 failed"))
    database = row(page, "ops/backup/database")
    expect(database.locator(".next a")).to_have_attribute("href", re.compile("/runs/r"))
    live(page)
    run_id = site.make("ops/rotate")["run_id"]  # and what happens appears by itself
    expect(row(page, "ops/rotate").locator(".last a")).to_have_attribute("href", f"/runs/{run_id}")
    expect(row(page, "ops/rotate").locator(".rate")).to_have_text("100 %")


def test_folders_open_and_close_and_can_be_entered(site: Installation, page: Page) -> None:
    page.goto("/jobs")
    folder = page.get_by_role("button", name="backup", exact=True)
    expect(row(page, "ops/backup/files")).to_be_visible()
    folder.click()
    expect(row(page, "ops/backup/files")).to_have_count(0)
    expect(folder).to_have_attribute("aria-expanded", "false")
    page.get_by_role("link", name="Only the folder ops", exact=True).click()
    expect(page).to_have_url(f"{site.url}/jobs/ops")
    counted(page, f"3 of {len(JOBS)} jobs")
    page.get_by_role("button", name="Expand all").click()
    expect(row(page, "ops/backup/files")).to_be_visible()
    page.get_by_role("button", name="Flat").click()
    expect(rows(page).first).to_contain_text("ops/backup/database")
    page.get_by_role("button", name="Job", exact=False).first.click()
    expect(rows(page).first).to_contain_text("ops/rotate")  # now the other way round
    page.get_by_role("button", name="Tree").click()


def test_jobs_are_found_by_whatever_is_said_of_them(site: Installation, page: Page) -> None:
    page.goto("/jobs")
    field = page.get_by_label("Search jobs")
    for words, found in (
        ("needle INSIDE", "etl/clean"),
        ("london weekdays", "etl/load"),
        ("never twice", "etl/load"),
    ):
        field.fill(words)
        counted(page, f"1 of {len(JOBS)} jobs")
        expect(row(page, found)).to_be_visible()
    expect(page).to_have_url(re.compile(r"q=never\+twice"))
    field.fill("nothing like that")
    counted(page, f"0 of {len(JOBS)} jobs")
    expect(page.locator(".empty")).to_have_text("No job is like that.")
    field.fill("")
    row(page, "etl/load").get_by_role("button", name="nightly").click()
    counted(page, f"1 of {len(JOBS)} jobs")
    page.get_by_role("button", name="nightly ×").click()
    counted(page, f"{len(JOBS)} jobs")
    site.make("ops/backup/files")
    page.get_by_label("Which jobs").select_option("Last run failed")
    counted(page, f"1 of {len(JOBS)} jobs")
    expect(row(page, "ops/backup/files")).to_be_visible()


@pytest.mark.parametrize(
    "address, count",
    [
        ("/jobs?keywords=etl,clean", 1),
        ("/jobs?labels=etl", 2),
        ("/jobs/ops/backup", 2),
        ("/jobs/ops?q=backup&view=flat", 2),
    ],
)
def test_old_and_shared_addresses_show_what_they_say(
    site: Installation, page: Page, address: str, count: int
) -> None:
    page.goto(address)
    counted(page, f"{count} of {len(JOBS)} jobs")


def test_only_rows_that_can_be_seen_are_drawn(site: Installation, page: Page) -> None:
    page.set_viewport_size({"width": 1000, "height": 500})
    page.goto("/jobs?view=flat")
    expect(row(page, "etl/clean")).to_be_visible()
    assert rows(page).count() < 60
    page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    expect(row(page, "zoo/job119")).to_be_visible()
    expect(row(page, "etl/clean")).to_have_count(0)
    assert rows(page).last.get_attribute("aria-rowindex") == str(len(JOBS) + 1)


def test_a_job_that_is_reloaded_appears_and_goes(site: Installation, page: Page) -> None:
    page.goto("/jobs")
    counted(page, f"{len(JOBS)} jobs")
    live(page)
    site.write("brand/new", PROGRAM)
    site.post("/api/control/reload_jobs")
    expect(row(page, "brand/new")).to_be_visible()
    (site.job_dir / "brand/new.yaml").unlink()
    site.post("/api/control/reload_jobs")
    expect(row(page, "brand/new")).to_have_count(0)


# -- one job ---------------------------------------------------------------------------------------


def part(page: Page, heading: str) -> Locator:
    return page.locator("main section", has=page.get_by_role("heading", name=heading, exact=True))


def test_a_description_is_rendered_and_none_of_it_is_html(site: Installation, page: Page) -> None:
    page.goto("/job/etl/load")
    prose = page.locator(".prose")
    expect(prose.locator("strong")).to_have_text("trades")
    expect(prose.locator("p").first.locator("em")).to_have_text("day")
    expect(prose.locator("h3")).to_have_text("When it fails")
    expect(prose.locator("ol > li").nth(0)).to_contain_text("Call the vendor")
    expect(prose.locator("ol > li ul > li")).to_have_text("by phone, not this")
    expect(prose.locator("td em")).to_have_text("a")
    expect(prose.locator("blockquote")).to_have_text("Never twice.")
    expect(prose.locator("pre")).to_have_text("<b>code</b> & such")
    expect(prose.locator("s")).to_have_text("old")
    expect(prose).to_contain_text("*plain*")
    expect(prose.locator("p").last).to_contain_text(HOSTILE)
    links: list[Any] = prose.locator("a").evaluate_all(
        "all => all.map((a) => [a.textContent, a.getAttribute('href')])"
    )
    assert links == [
        ["runbook", "https://runbook.example/a_b"],
        ["runs", "/runs?q=etl"],
        ["x", "https://elsewhere.example/x.png"],
    ]
    rel = prose.locator("a").first.get_attribute("rel") or ""
    assert "noopener" in rel and "noreferrer" in rel


def test_a_job_says_when_it_runs_and_why_not_on_some_dates(site: Installation, page: Page) -> None:
    page.goto("/job/etl/load")
    schedules = part(page, "Schedules")
    expect(schedules).to_contain_text("weekdays at 06:30 London time")
    expect(schedules.locator("li.disabled")).to_contain_text("every day at 01:00 UTC")
    coming = part(page, "Next").locator("li")
    expect(part(page, "Next").locator("li:not(.skipped)")).to_have_count(20)
    expect(coming.filter(has_text="is not in calendar Mon-Fri").first).to_be_visible()
    expect(coming.filter(has_text="region=emea").first).to_be_visible()
    expect(part(page, "Metadata")).to_contain_text("the desk")


def test_a_job_shows_what_it_hangs_on_what_follows_and_how_it_has_gone(
    site: Installation, page: Page
) -> None:
    page.goto("/job/etl/clean")
    expect(part(page, "Waits for")).to_contain_text("success of etl/load")
    expect(part(page, "Then")).to_contain_text("schedules notify on failure")
    graph = part(page, "Dependencies").locator("svg.graph")
    expect(graph.get_by_role("link", name="etl/load")).to_be_visible()
    expect(graph.locator("path.graph-edge.action")).to_have_count(1)
    graph.get_by_role("link", name="etl/load").click()
    expect(page).to_have_url(f"{site.url}/job/etl/load")
    gone = part(page, "How it has gone")
    expect(gone).to_contain_text("Last 40 runs: 90 % succeeded")
    expect(gone.locator(".bar-link")).to_have_count(40)
    expect(gone.locator("svg.calendar")).to_have_attribute(
        "aria-label", re.compile("Outcomes by day: 36 succeeded, 4 failed")
    )
    expect(gone.locator("svg.calendar path.day-cross")).to_have_count(4)
    expect(page.locator("main table").filter(has_text="Elapsed").locator("tbody tr").first).to_contain_text(
        "r9039"
    )


def test_a_run_is_made_by_the_form_with_args_times_and_count(site: Installation, page: Page) -> None:
    page.goto("/job/etl/load")
    page.get_by_role("button", name="Schedule a run").click()
    form = page.locator(".run-form")
    expect(form).to_contain_text("Args as of r9039")
    date = form.get_by_label("date", exact=True)
    expect(date).to_have_value("d39")
    expect(form.get_by_label("region")).to_have_value("emea")
    when, stop = form.get_by_label(re.compile("^When")), form.get_by_label(re.compile("^Stop it"))
    submit = form.get_by_role("button", name="Schedule")

    when.fill("soonish")
    expect(form).to_contain_text("no time: soonish")
    submit.click()
    expect(page.locator("#dialog")).to_be_hidden()
    expect(when).to_be_focused()
    when.fill("2131-05-06 07:00")
    expect(form).to_contain_text("2131-05-06 07:00:00 Europe/Berlin")
    stop.fill("2131-05-06 06:00")
    expect(form).to_contain_text("It would be stopped before it begins.")
    stop.fill("2h")
    expect(form).to_contain_text("2131-05-06 09:00:00 Europe/Berlin")
    date.fill(HOSTILE)
    form.get_by_label("How many runs").fill("0")
    submit.click()
    expect(form).to_contain_text("from 1 to 10,000")
    form.get_by_label("How many runs").fill("3")
    form.get_by_label("region").fill("")
    submit.click()
    dialog = page.locator("#dialog")
    expect(dialog).to_contain_text("Schedule 3 runs of etl/load?")
    expect(dialog).to_contain_text(HOSTILE)
    expect(dialog).to_contain_text("region is empty")
    page.locator("#confirm").click()
    expect(form.get_by_text("scheduled r")).to_be_visible()
    run_id = form.locator("[role=status] a").first.text_content()
    run = site.get(f"/api/v1/runs/{run_id}").json()["runs"][run_id]
    assert run["args"] == {"date": HOSTILE, "region": ""}
    assert run["times"]["schedule"] == "2131-05-06T05:00:00.000+00:00"
    assert run["times"]["stop"] == "2131-05-06T07:00:00.000+00:00"
    found = site.get("/api/v1/search/runs?q=load&state=scheduled").json()["runs"]
    site.post("/api/v1/bulk", {"operation": "skip", "runs": list(found)})
    assert len([run for run in found.values() if run["args"]["region"] == ""]) == 3


def test_what_the_server_refuses_is_shown_where_it_was_asked(site: Installation, page: Page) -> None:
    site.write("fleeting", PROGRAM)
    site.post("/api/control/reload_jobs")
    page.goto("/job/fleeting")
    page.get_by_role("button", name="Schedule a run").click()
    (site.job_dir / "fleeting.yaml").unlink()
    site.post("/api/control/reload_jobs")
    expect(page.locator(".notice")).to_contain_text("The job has changed")
    page.locator(".run-form").get_by_role("button", name="Schedule").click()
    page.locator("#confirm").click()
    expect(page.locator("#dialog .wrong")).to_contain_text("no job id match: fleeting")
    page.get_by_role("button", name="Cancel").click()
    page.reload()
    expect(page.locator("main")).to_contain_text("There is no such job now.")


def test_a_job_is_found_and_run_by_the_keyboard_alone(site: Installation, page: Page) -> None:
    page.goto("/")
    live(page)
    page.keyboard.press("g")
    page.keyboard.press("j")
    expect(page).to_have_url(f"{site.url}/jobs")
    expect(row(page, "etl/load")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("tells the desk")
    counted(page, f"1 of {len(JOBS)} jobs")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{site.url}/job/notify")
    button = page.get_by_role("button", name="Schedule a run")
    expect(button).to_be_visible()
    for _ in range(30):
        page.keyboard.press("Tab")
        if button.evaluate("node => node === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator(".run-form").get_by_label(re.compile("^When"))).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#confirm")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".run-form").get_by_text("scheduled r")).to_be_visible()


@pytest.mark.parametrize("scheme, rules", [("light", ""), ("dark", "color-contrast")])
def test_the_pages_of_jobs_keep_wcag(site: Installation, browser: Browser, scheme: str, rules: str) -> None:
    with watched(browser, site.url, color_scheme=scheme) as page:
        page.goto("/jobs?q=a")
        expect(row(page, "etl/load").locator(".spark svg")).to_be_visible()
        accessible(page, rules)
        page.goto("/job/etl/load")
        expect(page.locator("svg.calendar")).to_be_visible()
        expect(page.locator("svg.graph")).to_be_visible()
        page.get_by_role("button", name="Schedule a run").click()
        accessible(page, rules)


def test_the_pages_of_jobs_fit_a_phone(site: Installation, browser: Browser) -> None:
    with watched(browser, site.url, viewport={"width": 390, "height": 800}) as page:
        for path in ("/jobs", "/job/etl/load"):
            page.goto(path)
            expect(page.locator("main section").first).to_be_visible()
            live(page)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
