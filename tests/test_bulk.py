"""One operation on many runs, by the API and the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from installation import PROGRAM, SLOW, Installation
from server import PROGRAM as APSIS
from server import environment

from apsislib.times import format_time

JOBS = {
    "noop": "params: [n]\n" + PROGRAM,
    "slow": SLOW,
    "fails": "program: {type: no-op, success: false}\n",
    "every": "schedule: {type: interval, interval: 600}\n" + PROGRAM,
}


def bulk(site: Installation, operation: str, **body: Any) -> dict[str, Any]:
    answer = site.post("/api/v1/bulk", {"operation": operation, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def later(site: Installation, count: int) -> list[str]:
    """Runs that are due tomorrow."""
    body = {"job_id": "slow", "times": {"schedule": format_time(site.clock.wall() + 86400)}}
    return list(site.post("/api/v1/runs", body, params={"count": count}).json()["runs"])


def until(site: Installation, runs: list[str], state: str) -> None:
    """Returns once all the runs are in a state."""
    with site.feed.subscribe() as events:
        while any(site.driver.find_run(run_id).state != state for run_id in runs):
            assert events.get(30)


def test_a_list_of_runs_is_skipped_and_those_that_can_not_be_keep_none_back(site: Installation) -> None:
    first, second = later(site, 2)
    done = site.make("noop", args={"n": "1"})["run_id"]
    until(site, [done], "success")
    asked = [first, done, "r999999", "bogus", second, first]
    tried = bulk(site, "skip", runs=asked, dry_run=True)
    assert site.state(first) == "scheduled"
    answer = bulk(site, "skip", runs=asked)
    assert answer == tried | {"dry_run": False}
    assert answer["done"] == [first, second]
    assert answer["refused"] == {
        done: f"can't skip {done} in state success",
        "r999999": "unknown run r999999",
        "bogus": "unknown run bogus",
    }
    assert [site.state(run_id) for run_id in (first, second)] == ["skipped", "skipped"]


def test_each_of_many_runs_has_the_reason_in_its_log(site: Installation) -> None:
    runs = later(site, 3)
    assert bulk(site, "skip", runs=runs, reason="no data\non holidays")["done"] == runs
    for run_id in runs:
        log = site.get(f"/api/v1/runs/{run_id}/log").json()["run_log"]
        assert [line["message"] for line in log][-1] == "reason: no data on holidays"
    for wrong, text in ((3, "reason must be a text: 3"), ("\ud800", "lone surrogate")):
        answer = site.post("/api/v1/bulk", {"operation": "skip", "runs": runs, "reason": wrong})
        assert answer.status_code == 400 and text in answer.json()["error"]


def test_all_runs_that_match_a_search(site: Installation) -> None:
    failed = [site.make("fails")["run_id"] for _ in range(3)]
    query = "fails state:failure"
    assert set(failed) <= set(bulk(site, "mark", query=query, state="success", dry_run=True)["done"])
    answer = bulk(site, "mark", query=query, state="success")
    assert set(failed) <= set(answer["done"]) and answer["refused"] == {}
    assert {site.state(run_id) for run_id in failed} == {"success"}
    assert bulk(site, "mark", query=query, state="success")["done"] == []


def test_a_search_finds_expected_runs_too(site: Installation) -> None:
    expected = sorted(r.run_id for r in site.driver.expected("every"))
    assert expected and sorted(bulk(site, "skip", query="every state:scheduled")["done"]) == expected
    assert {site.state(run_id) for run_id in expected} == {"skipped"}
    assert site.driver.expected("every") == []


def test_reruns_are_linked_to_what_they_rerun(site: Installation) -> None:
    runs = [site.make("noop", args={"n": str(n)})["run_id"] for n in range(3)]
    answer = bulk(site, "rerun", runs=runs)
    assert answer["done"] == runs and list(answer["made"]) == runs
    for old, new in answer["made"].items():
        run = site.get(f"/api/v1/runs/{new}").json()["runs"][new]
        assert run["rerun_of"] == old
        assert run["args"] == site.get(f"/api/v1/runs/{old}").json()["runs"][old]["args"]


def test_running_runs_are_signalled_and_stopped_and_scheduled_ones_started(site: Installation) -> None:
    runs = later(site, 120)  # more than are done in one hold of the lock
    assert bulk(site, "signal", runs=runs[:1], signal="HUP")["refused"] == {
        runs[0]: "invalid run state for signal: scheduled"
    }
    assert bulk(site, "start", runs=runs)["done"] == runs
    until(site, runs, "running")
    assert bulk(site, "signal", runs=runs, signal="HUP")["done"] == runs
    assert bulk(site, "stop", runs=runs)["done"] == runs
    until(site, runs, "success")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "operation must be one of skip, start, stop, signal, mark, rerun: None"),
        ({"operation": "drop", "runs": []}, "operation must be one of"),
        ({"operation": "skip"}, "give either runs, a list of run IDs, or query, a search"),
        ({"operation": "skip", "runs": [], "query": "x"}, "give either runs"),
        ({"operation": "skip", "runs": "r1"}, "runs must be a list of run IDs"),
        ({"operation": "skip", "runs": [1]}, "runs must be a list of run IDs"),
        ({"operation": "skip", "query": " "}, "query must be a search"),
        ({"operation": "skip", "runs": [], "state": "error"}, "state has no meaning for skip"),
        ({"operation": "mark", "runs": []}, "state is missing"),
        ({"operation": "mark", "runs": [], "state": "running"}, "can't mark runs to state running"),
        ({"operation": "signal", "runs": [], "signal": "TREM"}, "invalid signal: TREM"),
        ({"operation": "skip", "runs": [], "dry_run": "no"}, "dry_run must be true or false: 'no'"),
        ({"operation": "skip", "runs": [], "dryrun": True}, "unexpected keys: dryrun"),
        ({"operation": "skip", "runs": [f"r{n}" for n in range(10_001)]}, "more than 10000 runs"),
    ],
)
def test_what_can_not_be_meant_is_refused(site: Installation, body: Any, message: str) -> None:
    answer = site.post("/api/v1/bulk", body)
    assert answer.status_code == 400 and message in answer.json()["error"]


def apsis(site: Installation, *words: str) -> tuple[int, str]:
    argv = [sys.executable, APSIS, "--port", str(site.port), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=environment())
    return done.returncode, done.stdout + done.stderr


def test_the_command_line_says_to_which_runs_it_is_done(site: Installation) -> None:
    runs = later(site, 2)
    text = f"{runs[0]}\n{runs[1]}\nskip would be done to 2 runs\n"
    assert apsis(site, "skip", "--dry-run", *runs) == (0, text)
    status, text = apsis(site, "skip", "--matching", "slow state:scheduled")
    assert status == 0 and text == f"{runs[0]}\n{runs[1]}\nskip done to 2 runs\n"
    status, text = apsis(site, "skip", "--dry-run", *runs)
    assert status == 1 and f"can't skip {runs[0]} in state skipped" in text
    assert apsis(site, "mark", "error", "--matching", "slow state:skipped", "--dry-run")[0] == 0
    run_id = site.make("noop", args={"n": "cli"})["run_id"]
    status, text = apsis(site, "rerun", "--matching", "noop n=cli")
    assert status == 0 and f"{run_id} as r" in text and "rerun done to 1 run\n" in text
    for words in (["skip"], ["stop", "r1", "--matching", "x"]):
        status, text = apsis(site, *words)
        assert status != 0 and "name runs, or give a search with --matching" in text


def test_runs_that_are_named_are_served_one_by_one(tmp_path: Path, site: Installation) -> None:
    (run_id,) = later(site, 1)
    assert apsis(site, "skip", run_id) == (0, "")
