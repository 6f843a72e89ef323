"""In a real browser: the truth about a run that was given up, of which a real agent tells later."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from browsing import accessible, state, watched
from chaos.world import World
from playwright.sync_api import Browser, expect
from server import ENDS

JOBS = {
    "gated": "params: [n]\nprogram:\n  type: procstar-shell\n"
    '  command: \'echo begun; until [ -e "$GO" ]; do sleep 0.05; done; exit $(cat "$GO")\'\n'
}
RECONNECT = 2.0  # seconds
LAUNCH = {"ping": 0.5, "silence": 1.5}  # seconds


def test_a_late_verdict_is_told_where_the_run_is_and_can_be_accepted_there(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    monkeypatch.setenv("GO", str(go))
    with World(tmp_path, JOBS, RECONNECT, LAUNCH, agents=1) as world:
        (agent,) = world.agents
        first, second = (world.schedule({"job_id": "gated", "args": {"n": n}}) for n in "12")
        for run_id in (first, second):
            world.until_printed(run_id, b"begun\n")
        agent.signal(signal.SIGSTOP)
        for run_id in (first, second):
            assert world.until(run_id, *ENDS)["state"] == "error"
        url = world.url.removesuffix("/api/v1")
        with watched(browser, url) as page, watched(browser, url) as runs:
            page.goto(f"/runs/{first}")
            state(page, "error")
            told = page.get_by_label("How its program ended")
            expect(told).to_be_hidden()
            # It may be running still, until its end is told.
            stop = page.get_by_role("button", name="stop", exact=True)
            stop.click()
            expect(page.get_by_role("dialog")).to_contain_text("stays error. Its program may still run")
            page.keyboard.press("Escape")
            runs.goto("/runs")
            rows = runs.locator("main tbody tr")
            expect(rows).to_have_count(2)
            expect(rows.first).not_to_contain_text("ended later")

            go.write_text("0")
            agent.signal(signal.SIGCONT)
            # Both pages learn of it by themselves.
            expect(told).to_contain_text("told how its program really ended: success, at 20")
            expect(told).to_contain_text("It stays error")
            expect(stop).to_have_count(0)
            expect(page.get_by_role("button", name="kill", exact=True)).to_have_count(0)
            for n in range(2):
                expect(rows.nth(n)).to_contain_text("ended later: success")
            accessible(page)
            for each in (page, runs):
                each.emulate_media(color_scheme="dark")
                accessible(each, "color-contrast")
            assert world.run(first)["late_verdict"] == "success"

            told.get_by_role("button", name="Mark as success").click()
            page.locator("#confirm").click()
            state(page, "success")
            expect(told).to_contain_text("nothing is left to be done")
            expect(told.get_by_role("button")).to_have_count(0)
            expect(rows.last).not_to_contain_text("ended later")
            assert "late_verdict" not in world.run(first)

            page.goto(f"/runs/{second}")
            told.get_by_role("button", name="Rerun").click()
            page.locator("#confirm").click()
            state(page, "success")
            assert not page.url.endswith(second)
