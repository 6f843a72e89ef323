"""The page of a run, in a real browser: what it says, what can be done, and how it hangs together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import HOSTILE, accessible, live, state, watched
from installation import PROGRAM, SLOW, Installation
from playwright.sync_api import Browser, Locator, Page, expect
from server import Server

JOBS = {
    "load": "params: [date]\nmetadata: {labels: [etl, '" + "<i>&amp;" + "']}\n" + SLOW,
    "prices": "params: [date]\n" + PROGRAM,
    "report": "params: [date]\ncondition:\n- {type: dependency, job_id: load}\n"
    "- {type: dependency, job_id: prices}\n- {type: max_running, count: 1}\n" + PROGRAM,
    "fails": "program: {type: no-op, success: false}\n",
    "slow": SLOW,
    "long": "expect: {max_duration: 0.5}\n" + SLOW,
    "noop": PROGRAM,
}


def part(page: Page, heading: str) -> Locator:
    return page.locator("main section", has=page.get_by_role("heading", name=heading, exact=True))


def test_operations_ask_show_that_they_are_done_and_what_went_wrong(site: Installation, page: Page) -> None:
    run_id = site.make("slow")["run_id"]
    page.goto(f"/runs/{run_id}")
    state(page, "running")
    dialog = page.locator("#dialog")
    page.get_by_role("button", name="stop").click()
    expect(dialog).to_contain_text(f"Stop run {run_id} of slow?")
    page.get_by_role("button", name="Cancel").click()
    assert site.state(run_id) == "running"
    page.get_by_role("button", name="kill").click()
    site.post(f"/api/v1/runs/{run_id}/stop")  # somebody else is faster
    state(page, "success")
    page.locator("#confirm").click()
    expect(dialog.locator(".wrong")).to_contain_text("invalid run state for signal")
    expect(page.locator("#confirm")).to_have_text("Try again")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".log")).to_contain_text("success")
    page.get_by_label("Mark as").select_option("failure")
    page.get_by_label("Reason, for the log").fill("it loaded <b>half</b> & no more?")
    page.locator("#confirm").click()
    state(page, "failure")
    expect(page.locator(".log")).to_contain_text("reason: it loaded <b>half</b> & no more?")
    expect(page).to_have_title(re.compile(f"{run_id} failure"))
    page.get_by_role("button", name="rerun").click()
    page.locator("#confirm").click()
    expect(page.locator("dt", has_text="rerun of")).to_be_visible()
    state(page, "running")
    assert page.url != f"{site.url}/runs/{run_id}"
    expect(part(page, "This run").get_by_role("link", name=run_id)).to_be_visible()
    page.get_by_role("button", name="stop").click()
    page.locator("#confirm").click()
    state(page, "success")
    page.go_back()
    expect(page.locator("h1")).to_contain_text(run_id)


def test_a_run_says_why_it_waits_with_links_and_states(site: Installation, page: Page) -> None:
    load = site.make("load", args={"date": "w"})["run_id"]
    prices = site.make("prices", args={"date": "w"})["run_id"]
    run_id = site.make("report", args={"date": "w"})["run_id"]
    page.goto(f"/runs/{run_id}")
    waits = part(page, "Why it waits")
    conditions = waits.locator("li")
    expect(conditions).to_have_count(3)
    expect(conditions.nth(0)).to_contain_text("dependency load(date=w) is success")
    expect(conditions.nth(0)).to_contain_text("not yet")
    expect(conditions.nth(0)).to_contain_text("load(date=w) is running")
    expect(conditions.nth(0).get_by_role("link", name=load)).to_be_visible()
    expect(conditions.nth(1)).to_contain_text("holds")  # though it has not been asked yet
    expect(conditions.nth(2)).to_contain_text("asked once those above hold")
    graph = part(page, "Dependencies")
    expect(graph.get_by_role("link", name=f"load (date=w): {load} running")).to_be_visible()
    expect(graph.get_by_role("link", name=f"prices (date=w): {prices} success")).to_be_visible()
    live(page)
    site.post(f"/api/v1/runs/{load}/stop")
    state(page, "success")
    expect(graph.get_by_role("link", name=f"load (date=w): {load} success")).to_be_visible()
    graph.get_by_role("link", name=re.compile("^prices")).click()
    expect(page).to_have_url(f"{site.url}/runs/{prices}")
    expect(
        part(page, "Dependencies").get_by_role("link", name=f"report (date=w): {run_id} success")
    ).to_be_visible()


def test_history_shows_how_its_like_went_before(site: Installation, page: Page) -> None:
    ids = [site.make("fails")["run_id"] for _ in range(3)]
    page.goto(f"/runs/{ids[1]}")
    history = part(page, "History")
    expect(history).to_contain_text("Last 3 runs · 0 % succeeded")
    expect(history.locator(".bar-link")).to_have_count(3)
    expect(history.locator(".bar-link[aria-current]")).to_have_attribute("href", f"/runs/{ids[1]}")
    expect(history.locator("tbody tr").first).to_contain_text(ids[2])
    live(page)
    ids.append(site.make("fails")["run_id"])
    expect(history).to_contain_text("Last 4 runs")
    history.get_by_role("link", name="All runs of this job").click()
    expect(page).to_have_url(re.compile(r"/runs\?q=fails"))


def test_where_args_make_each_run_the_only_one_those_of_the_job_are_shown(
    site: Installation, page: Page
) -> None:
    for n in range(3):
        run_id = site.make("prices", args={"date": f"h{n}"})["run_id"]
    page.goto(f"/runs/{run_id}")
    history = part(page, "History")
    expect(history.get_by_role("button", name="Any args")).to_have_attribute("aria-pressed", "true")
    assert history.locator(".bar-link").count() >= 3
    history.get_by_role("button", name="These args").click()
    expect(history).to_contain_text("Last 1 run ")


def test_alarms_times_and_hostile_texts_are_shown_as_they_are(site: Installation, page: Page) -> None:
    run_id = site.make("long", times={"schedule": "now", "stop": "2131-05-06T07:00:00Z"})["run_id"]
    page.goto(f"/runs/{run_id}")
    expect(page.locator(".title .alarm")).to_have_text("long")
    facts = part(page, "This run")
    expect(facts).to_contain_text("to be stopped")
    expect(facts).to_contain_text("2131-05-06 09:00:00")
    before = facts.locator(".elapsed").text_content()
    expect(facts.locator(".elapsed")).not_to_have_text(before or "")  # it ticks
    site.post(f"/api/v1/runs/{run_id}/stop")
    hostile = site.make("load", args={"date": HOSTILE})["run_id"]
    page.goto(f"/runs/{hostile}")
    expect(page.locator(".title .args")).to_contain_text(HOSTILE)
    expect(page.locator(".title .chip").last).to_have_text("<i>&amp;")
    site.post(f"/api/v1/runs/{hostile}/stop")


def test_a_run_that_is_not_there_is_said_to_be_none(site: Installation, page: Page) -> None:
    page.goto("/runs/r999999")
    expect(page.locator("main [role=alert]")).to_contain_text("unknown run r999999")
    expect(page.locator("main [role=alert]")).to_contain_text("archived")


@pytest.mark.parametrize("scheme, rules", [("light", ""), ("dark", "color-contrast")])
def test_the_page_of_a_run_keeps_wcag_and_fits_a_phone(
    site: Installation, browser: Browser, scheme: str, rules: str
) -> None:
    site.make("fails")
    failed = site.make("fails")["run_id"]
    colours = "".join(
        f"\x1b[3{n}mcolour {n}\x1b[0m \x1b[9{n}mbright\x1b[4{n};37m on it\x1b[0m " for n in range(8)
    )
    site.print(
        failed, [colours.encode(), b"\n\x1b[7minverse\x1b[0m \x1b[2mdim\x1b[0m \x1b[38;5;226myellow\n"]
    )
    waiting = site.make("report", args={"date": f"axe-{scheme}"})["run_id"]
    with watched(browser, site.url, color_scheme=scheme, viewport={"width": 390, "height": 800}) as page:
        for run_id in (failed, waiting):
            page.goto(f"/runs/{run_id}")
            live(page)
            if run_id == failed:
                expect(page.locator(".output .line").first).to_contain_text("colour 7")
                page.get_by_label("Search the output").fill("bright")
                page.keyboard.press("Enter")
                expect(page.locator(".output mark").first).to_be_visible()
            else:
                expect(page.locator("svg.graph")).to_be_visible()
            page.locator("summary", has_text="Metadata").click()
            accessible(page, rules)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    site.post(f"/api/v1/runs/{waiting}/skip")


# -- with a real agent -----------------------------------------------------------------------------

TALK = """
program:
  type: procstar-shell
  command: |
    printf 'gr\\303'; until [ -e "$GO/1" ]; do sleep 0.05; done
    printf '\\274\\303\\237e\\nprogress  1 %%'; until [ -e "$GO/2" ]; do sleep 0.05; done
    printf '\\rprogress 99 %%'; until [ -e "$GO/3" ]; do sleep 0.05; done
    printf '\\r\\033[32mdone\\033[K\\033[0m\\nbye\\n'; exit 3
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    server = Server(
        directory,
        {"talk": TALK.replace("$GO", str(directory))},
        config="",
    )
    text = (directory / "apsis.yaml").read_text()
    (directory / "apsis.yaml").write_text(
        text.replace("{local: true}", "{local: true, run: {output_interval: 0.1}}")
    )
    with server.running():
        yield server


def lines(page: Page) -> list[str]:
    return [text.replace("\u200b", "") for text in page.locator(".output .line").all_text_contents()]


def test_output_appears_as_it_is_printed_also_over_a_restart_of_the_server(
    server: Server, browser: Browser
) -> None:
    directory = Path(server.directory)
    with watched(browser, server.url.removesuffix("/api/v1")) as page:
        run_id = server.schedule({"job_id": "talk"})
        page.goto(f"/runs/{run_id}")
        output = page.locator(".output .line")
        expect(output).to_have_text(["gr"])  # half of a letter is not shown as a wrong one
        (directory / "1").touch()
        expect(output).to_have_text(["grüße", "progress  1 %"])
        assert server.end() == 0
        expect(page.locator("#live")).to_have_text("reconnecting")
        server.start()
        live(page)
        (directory / "2").touch()
        expect(output).to_have_text(["grüße", "progress 99 %"])
        state(page, "running")
        (directory / "3").touch()
        state(page, "failure")
        expect(output).to_have_text(["grüße", "done", "bye"])
        assert lines(page) == ["grüße", "done", "bye"]
        expect(page.locator(".log")).to_contain_text("failure: exit code 3")
        done = output.nth(1).locator("span")
        expect(done).to_have_text("done")
        page.locator("summary", has_text="Metadata").click()
        expect(page.locator(".fold")).to_contain_text("exit_code")
        expect(part(page, "Program").locator("pre")).to_contain_text("printf")
        expect(part(page, "This run")).to_contain_text("agent")
