"""The HTTP API, asked by an independent client (requests) and by sockets that break its rules."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import AGENT, PROGRAM, SLOW, Installation

from apsislib.api import Parts, message, runs
from apsislib.api.exchange import Phase
from apsislib.api.message import Refused, Request, parse_head
from apsislib.api.outputs import parse_range
from apsislib.api.parts import WAITING
from apsislib.api.routes import ROUTES
from apsislib.api.runs import parse_signal
from apsislib.clock import Deadline, WallClock
from apsislib.errors import BadRequest, Unavailable

HOSTILE = "<img src=x onerror=alert(1)>"
JOBS = {
    "noop": PROGRAM,
    "fails": "program: {type: no-op, success: false}\n",
    "slow": SLOW + "metadata: {labels: [sluggish, x]}\n",
    "etl/load": "params: [date, region]\n" + PROGRAM,
    "etl/nightly load": PROGRAM,
    "ops/db/vacuum": PROGRAM,
    "ops/é": PROGRAM,
    "odd%41/a+b&c": PROGRAM,
    "x/runs": PROGRAM,
    "every": "schedule: {type: interval, interval: 600, args: {}}\n" + PROGRAM,
    "waits": "params: [n]\ncondition: {type: dependency, job_id: 'never'}\n" + PROGRAM,
    "never": PROGRAM,
    "dep": """
params: [date]
schedule:
  - {type: interval, interval: 3600, args: {date: "2031-01-01"}}
  - {type: interval, interval: 3600, phase: 60, args: {date: "2031-01-02"}}
condition:
  - {type: dependency, job_id: etl/load, args: {region: eu}}
  - {type: max_running, count: 3}
"""
    + PROGRAM,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    site = Installation(
        tmp_path_factory.mktemp("site"),
        JOBS,
        connections=lambda: {"c1": AGENT},
        allowed_hosts=["apsis.example"],
    ).start()
    yield site
    site.stop()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Installation]:
    site = Installation(tmp_path, {"noop": PROGRAM, "slow": SLOW}, threads=2).start()
    yield site
    site.stop()


def error(answer: Any) -> str:
    assert answer.headers["content-type"] == "application/json"
    text = answer.json()["error"]
    assert isinstance(text, str) and "Traceback" not in text
    return text


# -- the server ------------------------------------------------------------------------------------


def test_alive_running_version_and_stats_answer_objects(site: Installation) -> None:
    assert site.get("/api/v1/alive").json() == {}
    assert site.get("/api/v1/alive/").json() == {}
    assert site.get("/api/v1/running").json() == {}
    assert site.get("/api/control/version").json() == {"version": "9.8.7"}
    assert site.get("/api/v1/stats").json()["runs"]["expected"] >= 6


def test_an_answer_is_compact_json_with_its_length_and_keeps_the_connection(site: Installation) -> None:
    answer = site.get("/api/v1/jobs/ops%2F%C3%A9")
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["connection"] == "keep-alive"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert b'"job_id":"ops/\\u00e9"' in answer.content


def test_what_there_is_not_is_json_404_and_a_wrong_method_405_with_allow(site: Installation) -> None:
    for path in (
        "/api",
        "/api/v1/nope",
        "/api/v1/runs/r1/nope",
        "/nope",
        "/static/../setup.cfg",
        "/static/%2e%2e/x",
    ):
        answer = site.get(path)
        assert answer.status_code == 404, path
        assert error(answer) == "no such address"
    answer = site.http.delete(site.url + "/api/v1/runs", timeout=60)
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD, POST"
    assert "DELETE is not possible" in error(answer)
    assert site.get("/api/v1/runs/r1/stop").headers["allow"] == "PUT, POST"
    assert site.post("/").status_code == 405


def test_every_route_answers_json_whatever_it_is_given(site: Installation) -> None:
    for route in ROUTES:
        if "shut_down" in route.pattern or "reload" in route.pattern:
            continue
        for value in ("%00", "%ff", "..", "%2e%2e%2f", "r99999999", "r" + "9" * 40, "r%D9%A1", HOSTILE):
            path = route.pattern
            for name in ("job_id+", "run_id", "output_id", "signal", "state"):
                path = path.replace("{" + name + "}", value)
            for method in {*route.methods, "GET", "POST"}:
                for body in (None, b"", b"[", b'"\\ud800"', b"[" * 100_000, b"{}", b'{"job_id":1}'):
                    if body is not None and method != "POST":
                        continue
                    answer = site.http.request(method, site.url + path, data=body, timeout=60)
                    assert answer.status_code in (200, 400, 404, 405, 411), (method, path, body, answer.text)
                    if answer.status_code != 200 and method != "HEAD":
                        error(answer)
                if "{" not in route.pattern:
                    break


def test_head_says_what_get_would_send(site: Installation) -> None:
    whole = site.get("/api/v1/jobs/noop")
    head = site.http.head(site.url + "/api/v1/jobs/noop", timeout=60)
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_an_unexpected_failure_is_an_internal_error_in_json_and_a_traceback_in_the_log(
    site: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(site.driver, "stats", lambda: 1 // 0)
    answer = site.get("/api/v1/stats")
    assert answer.status_code == 500
    assert error(answer) == "internal error"
    assert "ZeroDivisionError" in caplog.text
    assert site.get("/api/v1/alive").ok


def test_shut_down_is_done_after_its_answer_and_knows_restart(site: Installation) -> None:
    assert site.post("/api/control/shut_down", {}).json() == {}
    assert site.post("/api/control/shut_down?restart", {}).json() == {}
    assert site.post("/api/control/shut_down?restart=no", {}).json() == {}
    assert [site.ends.get(timeout=60) for _ in range(3)] == [False, True, True]


def test_connections_and_groups_of_agents(site: Installation, alone: Installation) -> None:
    assert site.get("/api/procstar/connections").json() == {"c1": AGENT}
    assert site.get("/api/procstar/groups").json() == {"default": [AGENT]}
    answer = alone.get("/api/procstar/connections")
    assert (answer.status_code, error(answer)) == (400, "no agent server running")


# -- jobs ------------------------------------------------------------------------------------------


def test_jobs_are_an_array_and_can_be_chosen_by_label(site: Installation) -> None:
    assert {job["job_id"] for job in site.get("/api/v1/jobs").json()} == set(JOBS)
    assert [job["job_id"] for job in site.get("/api/v1/jobs?label=sluggish").json()] == ["slow"]
    assert len(site.get("/api/v1/jobs?label=").json()) == len(JOBS)
    assert site.get("/api/v1/jobs?label=none").json() == []
    assert site.get("/api/v1/jobs?path=x&show=100").ok  # the page's own query is ignored


def test_a_job_has_all_its_parts(site: Installation) -> None:
    job = site.get("/api/v1/jobs/dep").json()
    assert list(job) == [
        "job_id", "params", "schedule", "program", "condition", "common_conditions",
        "resolved_conditions", "action", "metadata", "ad_hoc",
    ]  # fmt: skip
    assert job["program"] == {"type": "no-op", "duration": None, "success": True, "str": "no-op"}
    assert [s["args"]["date"] for s in job["schedule"]] == ["2031-01-01", "2031-01-02"]
    assert all({"type", "str", "enabled"} <= set(s) for s in job["schedule"])
    assert [c["type"] for c in job["condition"]] == ["dependency", "max_running"]


def test_conditions_are_resolved_for_each_schedule(site: Installation) -> None:
    job = site.get("/api/v1/jobs/dep").json()
    assert [c["type"] for c in job["common_conditions"]] == ["max_running"]
    assert [group["schedule_args"] for group in job["resolved_conditions"]] == [
        {"date": "2031-01-01"},
        {"date": "2031-01-02"},
    ]
    for group, day in zip(job["resolved_conditions"], ("2031-01-01", "2031-01-02"), strict=True):
        (condition,) = group["conditions"]
        assert condition["resolved_job_id"] == "etl/load"
        assert condition["resolved_args"] == {"date": day, "region": "eu"}


@pytest.mark.parametrize(
    ("path", "job_id"),
    [
        ("ops/db/vacuum", "ops/db/vacuum"),
        ("ops%2Fdb%2Fvacuum", "ops/db/vacuum"),
        ("etl/nightly%20load", "etl/nightly load"),
        ("ops/%C3%A9", "ops/é"),
        ("odd%2541/a+b&c", "odd%41/a+b&c"),  # decoded once, and + is no blank in a path
        ("x%2Fruns", "x/runs"),
        ("vac", "ops/db/vacuum"),
        ("night%20load", "etl/nightly load"),
        ("load+night", "etl/nightly load"),
    ],
)
def test_a_job_is_found_by_its_id_however_encoded_and_by_words_of_it(
    site: Installation, path: str, job_id: str
) -> None:
    answer = site.raw(f"GET /api/v1/jobs/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["job_id"] == job_id


def test_a_job_that_is_not_or_not_clearly_meant_is_said(site: Installation) -> None:
    answer = site.get("/api/v1/jobs/no%2Fsuch")
    assert (answer.status_code, error(answer)) == (404, "no job_id no%2Fsuch")
    answer = site.get("/api/v1/jobs/etl")
    assert (answer.status_code, error(answer)) == (400, "ambiguous job id: etl/load, etl/nightly load")
    answer = site.get("/api/v1/jobs/nosuch/runs")
    assert (answer.status_code, error(answer)) == (400, "no job id match: nosuch")
    answer = site.get("/api/v1/runs?job_id=nosuch")
    assert (answer.status_code, error(answer)) == (400, "no job id match: nosuch")
    answer = site.post("/api/v1/runs", {"job_id": "nosuch"})
    assert (answer.status_code, error(answer)) == (400, "no job id match: nosuch")


def test_reload_answers_what_changed_and_refuses_the_whole_with_every_error(tmp_path: Path) -> None:
    site = Installation(tmp_path, {"a": PROGRAM, "b": PROGRAM}).start()
    try:
        site.write("b", SLOW)
        site.write("c", PROGRAM)
        (site.job_dir / "a.yaml").unlink()
        changes = {"removed": ["a"], "added": ["c"], "changed": ["b"]}
        answer = site.post("/api/control/reload_jobs?dry_run=True", {})
        assert answer.json() == {**changes, "dry_run": True, "runs": answer.json()["runs"]}
        assert site.get("/api/v1/jobs/a").ok
        done = site.post("/api/control/reload_jobs?dry_run=False", {}).json()
        assert done == {**changes, "dry_run": False, "runs": done["runs"]}
        assert site.get("/api/v1/jobs/a").status_code == 404
        site.write("d", "program: {type: bogus}\n")
        site.write("e", "params: [")
        answer = site.post("/api/control/reload_jobs?dry_run=False", {})
        assert answer.status_code == 400
        assert answer.json()["error"] == f"errors loading jobs in {site.job_dir}"
        assert [job_id for job_id, _ in answer.json()["job_errors"]] == ["d", "e"]
        assert (
            error(site.post("/api/control/reload_jobs?dry_run=maybe"))
            == "dry_run must be True or False: 'maybe'"
        )
    finally:
        site.stop()


# -- making runs -----------------------------------------------------------------------------------


def test_a_new_run_of_an_instant_program_is_answered_finished(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.driver.making.INSTANT", 60.0)
    (run,) = site.post("/api/v1/runs", {"job_id": "noop"}).json()["runs"].values()
    assert run["state"] == "success"
    assert list(run["times"]) == ["scheduled", "schedule", "starting", "running", "success"]
    assert all(
        time.endswith("+00:00") and time[19] == "." and len(time) == 29 for time in run["times"].values()
    )
    assert run["conds"] == [] and run["actions"] == [] and run["labels"] == []
    again = site.get(f"/api/v1/runs/{run['run_id']}").json()
    assert again["runs"] == {run["run_id"]: run}
    assert again["when"].endswith("+00:00")


def test_args_become_strings_and_are_sorted_and_wrong_args_make_a_run_in_error(site: Installation) -> None:
    run = site.make("etl/load", args={"region": "eu", "date": 5})
    assert run["args"] == {"date": "5", "region": "eu"} and list(run["args"]) == ["date", "region"]
    run = site.make("etl/load", args={"region": "eu"})
    assert run["state"] == "error" and run["program"] is None
    log = site.get(f"/api/v1/runs/{run['run_id']}/log").json()["run_log"]
    assert "missing args (date) for job etl/load" in log[-1]["message"]


def test_count_makes_as_many_runs_in_order(site: Installation) -> None:
    runs = site.post("/api/v1/runs?count=3", {"job_id": "noop"}).json()["runs"]
    numbers = [int(run_id[1:]) for run_id in runs]
    assert len(numbers) == 3 and numbers == sorted(numbers)
    assert site.post("/api/v1/runs?count=0", {"job_id": "noop"}).json()["runs"] == {}
    for count in ("10001", "-1", "x", "1e3", "9" * 30, "%D9%A1"):
        answer = site.post(f"/api/v1/runs?count={count}", {"job_id": "noop"})
        assert answer.status_code == 400 and "count must be a whole number" in error(answer)


def test_schedule_and_stop_times_are_instants_or_a_duration_after_the_start(site: Installation) -> None:
    times = {"schedule": "2131-05-06T07:00:00Z", "stop": "+90m"}
    run = site.make("noop", times=times)
    assert run["state"] == "scheduled"
    assert run["times"]["schedule"] == "2131-05-06T07:00:00.000+00:00"
    assert run["times"]["stop"] == "2131-05-06T08:30:00.000+00:00"
    assert "expected" not in run
    assert site.post(f"/api/v1/runs/{run['run_id']}/skip").json() == {}
    assert site.state(run["run_id"]) == "skipped"
    run = site.make("noop", times={"schedule": "2131-05-06T07:00:00Z", "stop": "2131-05-06T09:00:00-01:00"})
    assert run["times"]["stop"] == "2131-05-06T10:00:00.000+00:00"
    site.post(f"/api/v1/runs/{run['run_id']}/skip")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "missing job_id or job"),
        ({"job_id": 5}, "job_id must be a string"),
        ({"job_id": "noop", "args": []}, "args must be an object"),
        ({"job_id": "noop", "args": {"a": None}}, "args: a must be a string"),
        ({"job_id": "noop", "args": {"a": {"b": 1}}}, "args: a must be a string"),
        ({"job_id": "noop", "args": {"a": "x\0y"}}, "NUL"),
        ({"job_id": "noop", "times": []}, None),
        ({"job_id": "noop", "times": "now"}, "times must be an object"),
        ({"job_id": "noop", "times": {"schedule": []}}, "times.schedule must be a string"),
        (
            {"job_id": "noop", "times": {"scheduled": "2031-05-06T07:00:00Z"}},
            "times: unexpected keys: scheduled (known: schedule, stop)",
        ),
        (
            {"job_id": "noop", "time": "2031-05-06T07:00:00Z"},
            "unexpected keys: time (known: job_id, job, args",
        ),
        ({"job_id": "noop", "times": {"schedule": "tomorrow"}}, "times.schedule: can't parse as time"),
        ({"job_id": "noop", "times": {"schedule": "2031-05-06 07:00:00Z"}}, "times.schedule: can't parse"),
        ({"job_id": "noop", "times": {"schedule": "2031-05-06T07:00:00"}}, "times.schedule: can't parse"),
        ({"job_id": "noop", "times": {"schedule": 1e300}}, "times.schedule: can't parse"),
        ({"job_id": "noop", "times": {"stop": "-5m"}}, "times.stop must not be negative"),
        ({"job_id": "noop", "times": {"stop": "soon"}}, "times.stop: can't parse"),
        ({"job": "noop"}, "job must be an object"),
        ({"job": {}}, "missing key: program"),
        ({"job": {"program": {"type": "bogus"}}}, None),
        (
            {"job": {"program": {"type": "no-op"}, "schedule": {"type": "interval", "interval": 9}}},
            "schedule",
        ),
    ],
)
def test_a_body_that_cannot_be_meant_is_400(site: Installation, body: Any, text: str | None) -> None:
    answer = site.post("/api/v1/runs", body)
    if text is None:
        assert answer.status_code in (200, 400)
    else:
        assert answer.status_code == 400, answer.text
        assert text in error(answer)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"job_id":NaN}', b"\xff", b'{"args":{"a":"\\udc80"}}']
)
def test_a_body_that_is_no_json_object_is_400(site: Installation, body: bytes) -> None:
    answer = site.http.post(
        site.url + "/api/v1/runs", data=body, timeout=60, headers={"content-length": str(len(body))}
    )
    assert answer.status_code == 400
    error(answer)


def test_an_ad_hoc_job_gets_an_id_is_shown_and_stays_out_of_lists(site: Installation) -> None:
    run = site.make(job={"program": {"type": "no-op"}, "metadata": {"labels": ["now"]}})
    assert run["state"] == "success" and run["labels"] == ["now"]
    assert run["job_id"].startswith("adhoc-") and len(run["job_id"]) == 18
    job = site.get(f"/api/v1/jobs/{run['job_id']}").json()
    assert job["ad_hoc"] is True
    assert not any(job["ad_hoc"] for job in site.get("/api/v1/jobs").json())
    runs = site.get("/api/v1/runs", params={"job_id": run["job_id"]}).json()["runs"]
    assert list(runs) == [run["run_id"]]


# -- reading runs ----------------------------------------------------------------------------------


def test_a_query_needs_a_job_or_run_ids(site: Installation) -> None:
    for query in ("", "?state=success", "?job_id=", "?date=1"):
        answer = site.get(f"/api/v1/runs{query}")
        assert (answer.status_code, error(answer)) == (400, "either run_id or job_id filter is required")


def test_runs_are_chosen_by_id_state_time_and_args(site: Installation) -> None:
    one = site.make("etl/load", args={"date": "d1", "region": "eu"})["run_id"]
    two = site.make("etl/load", args={"date": "d2", "region": "eu"})["run_id"]

    def found(query: str) -> list[str]:
        answer = site.get(f"/api/v1/runs?{query}")
        assert answer.ok, answer.text
        return [run_id for run_id in answer.json()["runs"] if run_id in (one, two)]

    assert found("job_id=etl/load") == [one, two]
    assert found("job_id=etl/load&date=d2") == [two]
    assert found("job_id=etl/load&_date=d1&region=eu") == [one]
    assert found("job_id=etl/load&date=") == [one, two]
    assert found("job_id=etl/load&date=d3") == []
    assert found("job_id=etl/load&other=d1") == []
    assert found("job_id=etl/load&state=success") == [one, two]
    assert found("job_id=etl/load&state=failure") == []
    assert found(f"run_id={two}&run_id={one}&run_id=bogus&run_id=r0{one[1:]}") == [one, two]
    assert found(f"run_id={one},{two}") == []
    assert found("job_id=etl/load&since=2001-01-01T00:00:00Z") == [one, two]
    assert found("job_id=etl/load&since=2101-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("state=bogus", "not a state: 'bogus'"),
        ("state=success&state=error", "state was given 2 times"),
        ("since=yesterday", "since: can't parse as time"),
        ("summary=yes", "summary must be True or False"),
        ("job_id=noop", "job_id was given 2 times"),
    ],
)
def test_a_query_that_cannot_be_meant_is_400(site: Installation, query: str, text: str) -> None:
    answer = site.get(f"/api/v1/runs?job_id=noop&{query}")
    assert answer.status_code == 400
    assert text in error(answer)


def test_expected_runs_are_listed_with_stored_ones(site: Installation) -> None:
    made = site.make("every")["run_id"]
    runs = site.get("/api/v1/jobs/every/runs").json()["runs"]
    assert made in runs and len(runs) >= 6
    ahead = [run for run in runs.values() if run.get("expected")]
    assert {run["state"] for run in ahead} == {"scheduled"}
    assert site.get(f"/api/v1/runs/{ahead[0]['run_id']}").json()["runs"][ahead[0]["run_id"]] == ahead[0]
    summary = site.get("/api/v1/runs?job_id=every&summary=true").json()["runs"]
    assert set(summary) == set(runs) and "meta" not in summary[made] and "meta" in runs[made]


def test_a_query_for_more_runs_than_ten_thousand_is_refused_with_their_number(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.api.runs.LIMIT", 2)
    site.post("/api/v1/runs?count=3", {"job_id": "ops/db/vacuum"})
    for path in ("/api/v1/runs?job_id=ops/db/vacuum", "/api/v1/jobs/ops/db/vacuum/runs"):
        answer = site.get(path)
        assert answer.status_code == 400
        assert error(answer) == "query would return 3 runs (limit 2); add args or state filter to narrow"


def test_large_answers_are_made_one_at_a_time_and_small_ones_meanwhile(
    alone: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SMALL", 2)
    for _ in range(3):
        run_id = alone.make("noop")["run_id"]
    parts = Parts(alone.driver, alone.store, WallClock())
    made = threading.Semaphore(0)

    def ask() -> None:
        runs.listed(parts, runs.Filter(job_id="noop"))
        made.release()

    with parts.turns.take():
        threads = [threading.Thread(target=ask) for _ in range(WAITING)]
        for thread in threads:
            thread.start()
        assert runs.listed(parts, runs.Filter(run_ids=(run_id,))).status == 200
        assert runs.listed(parts, runs.Filter(job_id="slow")).status == 200
        while parts.turns._asked <= WAITING:
            threading.Event().wait(0.001)
        with pytest.raises(Unavailable, match="too many large answers"):
            runs.listed(parts, runs.Filter(job_id="noop"))
        assert not made.acquire(blocking=False)
    for thread in threads:
        assert made.acquire(timeout=30)
        thread.join()
    assert runs.listed(parts, runs.Filter(job_id="noop")).status == 200


@pytest.mark.parametrize("what", ["", "/log", "/state", "/dependencies", "/waiting"])
@pytest.mark.parametrize("run_id", ["r999999", "bogus", "r", "r0", "r007", "r%D9%A1", "R1"])
def test_a_run_that_is_not_is_404(site: Installation, what: str, run_id: str) -> None:
    answer = site.get(f"/api/v1/runs/{run_id}{what}")
    assert answer.status_code == 404
    assert error(answer) == f"unknown run {run_id.replace('%D9%A1', '١')}"


def waiting(site: Installation, run_id: str, reason: str) -> Any:
    """For what a run waits, once its last condition has been judged like this."""
    end = time.monotonic() + 60
    while True:
        answer = site.get(f"/api/v1/runs/{run_id}/waiting").json()
        if answer["waiting"][-1]["reason"] == reason:
            return answer
        assert time.monotonic() < end, answer


def test_a_run_that_waits_says_for_what(site: Installation) -> None:
    run_id = site.make("waits", args={"n": "1"})["run_id"]
    answer = waiting(site, run_id, "no run of never yet")
    assert answer["state"] == "waiting"
    (row,) = answer["waiting"]
    assert row["condition"] == "dependency never is success" and row["holds"] is False
    assert row["since"].endswith("+00:00") and row["runs"] == []
    assert site.get(f"/api/v1/runs/{run_id}/dependencies").json() == {
        run_id: [{"job_id": "never", "args": {}, "run_ids": []}]
    }
    run = site.get(f"/api/v1/runs/{run_id}").json()["runs"][run_id]
    assert run["dependencies"] == [["never", {}]]
    other = site.make("never")["run_id"]
    assert site.get(f"/api/v1/runs/{run_id}/dependencies").json()[run_id][0]["run_ids"] == [other]


def test_a_run_says_which_runs_it_waits_for(site: Installation) -> None:
    limited = "condition: [{type: const, value: true}, {type: max_running, count: 1}]\n" + SLOW
    after = "condition: {type: dependency, job_id: before}\n" + PROGRAM
    files = {"limited": limited, "after": after, "before": JOBS["fails"]}
    for job_id, text in files.items():
        site.write(job_id, text)
    assert site.post("/api/control/reload_jobs").status_code == 200
    try:
        first = site.make("limited")["run_id"]
        while site.state(first) != "running":
            pass
        second = site.make("limited")["run_id"]
        passed, row = waiting(site, second, "1 of 1 running: limited")["waiting"]
        assert passed == {"condition": "const true", "holds": True}
        assert row["runs"] == [{"run_id": first, "state": "running"}]
        run_id = site.make("after")["run_id"]
        failed = site.make("before")["run_id"]
        (row,) = waiting(site, run_id, "before is failure")["waiting"]
        assert row["runs"] == [{"run_id": failed, "state": "failure"}]
    finally:
        for job_id in files:
            (site.job_dir / f"{job_id}.yaml").unlink()
        assert site.post("/api/control/reload_jobs").status_code == 200


# -- operations ------------------------------------------------------------------------------------


def test_operations_on_a_scheduled_run(site: Installation) -> None:
    run_id = site.make("noop", times={"schedule": "2131-05-06T07:00:00Z"})["run_id"]
    answer = site.post(f"/api/v1/runs/{run_id}/stop")
    assert (answer.status_code, error(answer)) == (400, f"can't stop run {run_id}: run is scheduled")
    answer = site.post(f"/api/v1/runs/{run_id}/mark/success")
    assert (answer.status_code, error(answer)) == (400, f"can't mark {run_id} in state scheduled")
    assert site.post(f"/api/v1/runs/{run_id}/start?path=etl&show=100").json() == {}
    answer = site.post(f"/api/v1/runs/{run_id}/skip")
    assert answer.status_code == 400 and error(answer).startswith(f"can't skip {run_id} in state ")


def test_a_running_run_can_be_stopped_by_put_or_post(site: Installation) -> None:
    for method in ("PUT", "POST"):
        run_id = site.make("slow")["run_id"]
        while site.state(run_id) != "running":
            pass
        answer = site.http.request(method, f"{site.url}/api/v1/runs/{run_id}/stop", timeout=60)
        assert answer.json()["runs"][run_id]["state"] in ("stopping", "success")
        while site.state(run_id) != "success":
            pass
        answer = site.post(f"/api/v1/runs/{run_id}/stop")
        assert (answer.status_code, error(answer)) == (400, f"can't stop run {run_id}: run is success")


def test_signals_by_name_and_number(site: Installation) -> None:
    run_id = site.make("noop")["run_id"]
    answer = site.post(f"/api/v1/runs/{run_id}/signal/FOO")
    assert (answer.status_code, error(answer)) == (400, "invalid signal: FOO")
    answer = site.post(f"/api/v1/runs/{run_id}/signal/TERM")
    assert (answer.status_code, error(answer)) == (400, "invalid run state for signal: success")
    assert site.post("/api/v1/runs/r999999/signal/FOO").status_code == 404
    assert [parse_signal(text) for text in ("15", "TERM", "SIGTERM", "KILL", "USR1")] == [15, 15, 15, 9, 10]
    for text in ("0", "99", "-9", "term", "SIG_DFL", "SIGSIGTERM", "", "9.0", "１５"):
        with pytest.raises(BadRequest, match="invalid signal"):
            parse_signal(text)


def test_marks(site: Installation) -> None:
    run_id = site.make("fails")["run_id"]
    assert site.state(run_id) == "failure"
    assert site.post(f"/api/v1/runs/{run_id}/mark/success").json() == {}
    assert site.state(run_id) == "success"
    answer = site.post(f"/api/v1/runs/{run_id}/mark/success")
    assert (answer.status_code, error(answer)) == (400, f"run {run_id} already in state success")
    answer = site.post(f"/api/v1/runs/{run_id}/mark/running")
    assert (answer.status_code, error(answer)) == (400, f"can't mark {run_id} to state running")
    answer = site.post(f"/api/v1/runs/{run_id}/mark/bogus")
    assert (answer.status_code, error(answer)) == (400, "not a state: 'bogus'")


def log_of(site: Installation, run_id: str) -> list[str]:
    return [line["message"] for line in site.get(f"/api/v1/runs/{run_id}/log").json()["run_log"]]


def test_what_is_done_to_a_run_may_have_a_reason_which_its_log_keeps(site: Installation) -> None:
    run_id = site.make("fails")["run_id"]
    query = {"reason": "checked by hand:\n the file  is là"}
    assert site.post(f"/api/v1/runs/{run_id}/mark/success", params=query).json() == {}
    assert log_of(site, run_id)[-1] == "reason: checked by hand: the file is là"
    again = site.post(f"/api/v1/runs/{run_id}/rerun", params={"reason": "once more"}).json()["show_run_id"]
    assert "reason: once more" in log_of(site, again)
    # What is refused has none in its log.
    before = log_of(site, run_id)
    assert site.post(f"/api/v1/runs/{run_id}/skip", params={"reason": "x"}).status_code == 400
    answer = site.post(f"/api/v1/runs/{run_id}/mark/failure", params={"reason": "y" * 1001})
    assert (answer.status_code, error(answer)) == (400, "reason is longer than 1000 characters")
    assert log_of(site, run_id) == before and site.state(run_id) == "success"
    slow = site.make("slow")["run_id"]
    assert site.post(f"/api/v1/runs/{slow}/stop", params={"reason": "enough"}).status_code == 200
    assert "reason: enough" in log_of(site, slow)


def test_a_rerun_answers_the_new_run(site: Installation) -> None:
    old = site.make("etl/load", args={"date": "d", "region": "eu"})
    answer = site.post(f"/api/v1/runs/{old['run_id']}/rerun", {}).json()
    new = answer["runs"][answer["show_run_id"]]
    assert list(answer["runs"]) == [answer["show_run_id"]]
    assert new["args"] == old["args"] and new["rerun_of"] == old["run_id"]
    assert "reruns" not in new
    again = site.post(f"/api/v1/runs/{old['run_id']}/rerun", {}).json()["show_run_id"]
    (first,) = site.get(f"/api/v1/runs/{old['run_id']}").json()["runs"].values()
    assert first["reruns"] == [new["run_id"], again]


# -- search ----------------------------------------------------------------------------------------


def search(site: Installation, **query: Any) -> tuple[list[str], str | None]:
    answer = site.get("/api/v1/search/runs", params=query)
    assert answer.ok, answer.text
    return list(answer.json()["runs"]), answer.json()["next"]


def test_search_pages_newest_first_without_gap_or_repetition(site: Installation) -> None:
    made = list(site.post("/api/v1/runs?count=7", {"job_id": "etl/nightly load"}).json()["runs"])
    pages, before = [], None
    while True:
        page, before = search(site, q="NIGHTLY", limit=3, before=before)
        pages += page
        if before is None:
            break
    numbers = [int(run_id[1:]) for run_id in pages]
    assert numbers == sorted(set(numbers), reverse=True)
    assert [run_id for run_id in reversed(pages) if run_id in made] == made
    every, _ = search(site, limit=1000)
    assert len(every) == len(set(every)) and set(pages) <= set(every)


def test_search_filters_by_state_label_job_and_time(site: Installation) -> None:
    failed = site.make("fails")["run_id"]
    slow = site.make("slow")["run_id"]
    assert failed in search(site, state=["failure", "error"])[0]
    assert slow not in search(site, state=["failure", "error"])[0]
    assert slow in search(site, label="sluggish")[0]
    assert failed not in search(site, label="sluggish")[0]
    assert failed in search(site, job_id="fails")[0]
    assert search(site, job_id="fail")[0] == []
    assert search(site, since="2101-01-01T00:00:00Z")[0] == []
    assert search(site, until="2001-01-01T00:00:00Z")[0] == []
    site.post(f"/api/v1/runs/{slow}/stop")


def test_a_search_that_finds_little_stops_after_a_while_and_goes_on_where_it_was(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    needle = site.make("etl/load", args={"date": "needle", "region": "eu"})["run_id"]
    site.post("/api/v1/runs?count=30", {"job_id": "noop"})
    monkeypatch.setattr("apsislib.store.searching.BUDGET", 0.0)
    monkeypatch.setattr("apsislib.store.searching.WINDOW", 10)
    found, pages, before = [], 0, None
    while needle not in found:
        page, before = search(site, q="date=NEEDLE", limit=4, before=before)
        found += page
        pages += 1
        assert before is not None or needle in found
    assert pages > 1 and len(found) == len(set(found))


def test_search_by_schedule_time_gives_what_comes_next(site: Installation) -> None:
    answer = site.get("/api/v1/search/runs", params={"order": "schedule", "limit": 5}).json()
    times = [run["times"]["schedule"] for run in answer["runs"].values()]
    assert len(times) == 5 and times == sorted(times)
    assert {run["state"] for run in answer["runs"].values()} == {"scheduled"}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "before=5",
        "state=bogus",
        "order=odd",
        "since=x",
        "q=a&q=b",
        "q=state:s",
        "q=%22",
        "q=since:x",
    ],
)
def test_a_search_that_cannot_be_meant_is_400(site: Installation, query: str) -> None:
    answer = site.get(f"/api/v1/search/runs?{query}")
    assert answer.status_code == 400
    error(answer)


# -- outputs ---------------------------------------------------------------------------------------


def test_output_is_listed_and_sent_as_it_is(site: Installation) -> None:
    run_id = site.make("noop")["run_id"]
    data = bytes(range(256)) * 10
    site.print(run_id, [data[:1000], data[1000:]])
    assert site.get(f"/api/v1/runs/{run_id}/outputs").json() == [
        {
            "output_id": "output",
            "output_len": 2560,
            "name": "combined stdout & stderr",
            "content_type": "application/octet-stream",
            "complete": True,
        }
    ]
    answer = site.get(f"/api/v1/runs/{run_id}/output/output", headers={"accept-encoding": "gzip, br"})
    assert answer.content == data
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == f'attachment; filename="{run_id}-output.txt"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_output_says_whether_more_of_it_is_to_come(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(run_id: str) -> tuple[bool, str]:
        (output,) = site.get(f"/api/v1/runs/{run_id}/outputs").json()
        answer = site.get(f"/api/v1/runs/{run_id}/output/output")
        return output["complete"], answer.headers["x-apsis-complete"]

    run_id = site.make("noop")["run_id"]
    site.print(run_id, [b"x"])
    assert said(run_id) == (True, "true")
    # Its verdict is on disk, and so is not all that it has printed.
    monkeypatch.setattr(site.store, "has_pending", lambda other: other == run_id)
    assert said(run_id) == (False, "false")
    runs = site.make("slow")["run_id"]
    site.print(runs, [b"x"])
    assert said(runs) == (False, "false")
    answer = site.get(f"/api/v1/runs/{run_id}/output/other")
    assert answer.status_code == 503 and "is stored yet: try again" in answer.json()["error"]
    assert site.get(f"/api/v1/runs/{runs}/output/other").status_code == 404


def test_what_a_program_calls_its_output_is_never_a_web_page(site: Installation) -> None:
    run_id = site.make("noop")["run_id"]
    site.print(run_id, [b"<script>alert(1)</script>"], content_type="text/html", name=HOSTILE)
    answer = site.get(f"/api/v1/runs/{run_id}/output/output")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert site.get(f"/api/v1/runs/{run_id}/outputs").json()[0]["name"] == HOSTILE


def test_outputs_that_are_not(site: Installation) -> None:
    run_id = site.make("noop")["run_id"]
    assert site.get("/api/v1/runs/r999999/outputs").json() == []
    assert site.get("/api/v1/runs/bogus/outputs").json() == []
    answer = site.get(f"/api/v1/runs/{run_id}/output/other")
    assert (answer.status_code, error(answer)) == (404, f"no output other for {run_id}")
    answer = site.get("/api/v1/runs/bogus/output/output")
    assert (answer.status_code, error(answer)) == (404, "no output output for bogus")


def test_a_part_of_an_output(site: Installation) -> None:
    run_id = site.make("noop")["run_id"]
    site.print(run_id, [b"0123456789"])
    path = f"/api/v1/runs/{run_id}/output/output"
    for wanted, part, where in (
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=5-99", b"56789", "bytes 5-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
    ):
        answer = site.get(path, headers={"range": wanted})
        assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, part, where)
    for wanted in ("bytes=0-1,3-4", "lines=1-2", "bytes=", "bytes=5-3", "bytes=-"):
        assert site.get(path, headers={"range": wanted}).status_code == 200
    assert site.get(path, headers={"range": "bytes=0-1", "if-range": '"x"'}).status_code == 200
    for wanted in ("bytes=10-", "bytes=-0", "bytes=99-100"):
        answer = site.get(path, headers={"range": wanted})
        assert answer.status_code == 416 and answer.headers["content-range"] == "bytes */10"
        error(answer)


def test_ranges_of_an_empty_output_do_not_exist() -> None:
    for text in ("bytes=0-", "bytes=-5", "bytes=0-0"):
        with pytest.raises(BadRequest):
            parse_range(text, 0)


def test_a_large_output_comes_whole(site: Installation) -> None:
    run_id = site.make("noop")["run_id"]
    data = b"".join(b"%09d\n" % n for n in range(320_000))
    site.print(run_id, [data])
    assert site.get(f"/api/v1/runs/{run_id}/output/output").content == data
    part = site.get(f"/api/v1/runs/{run_id}/output/output", headers={"range": "bytes=1048570-2097160"})
    assert part.content == data[1048570:2097161]


# -- who asks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "admitted"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:9", True),
        ("127.1.2.3", True),
        ("localhost:5000", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("[::1]:80", True),
        ("apsis.example", True),
        ("Apsis.Example:8080", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
        ("10.0.0.1", False),
        ("::1", True),
        ("apsis.example@evil.example", False),
    ],
)
def test_only_known_hosts_are_served(site: Installation, host: str, admitted: bool) -> None:
    answer = site.get("/api/v1/alive", headers={"host": host})
    assert answer.status_code == (200 if admitted else 403)
    if not admitted:
        assert "unknown host" in error(answer)


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({}, True),
        ({"origin": "http://localhost:5000", "host": "localhost:5000"}, True),
        ({"origin": "https://apsis.example", "host": "apsis.example"}, True),
        ({"origin": "http://apsis.example", "host": "apsis.example:80"}, True),
        ({"origin": "http://localhost:5001", "host": "localhost:5000"}, False),
        ({"origin": "http://evil.example", "host": "localhost:5000"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "file://"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "none"}, True),
    ],
)
def test_a_page_of_another_site_changes_nothing(
    site: Installation, headers: dict[str, str], admitted: bool
) -> None:
    for path, method in (("/api/v1/runs?count=0", "POST"), ("/api/v1/runs/r999999/stop", "PUT")):
        answer = site.http.request(
            method, site.url + path, json={"job_id": "noop"}, headers=headers, timeout=10
        )
        assert (answer.status_code != 403) == admitted, (path, answer.text)
    assert site.get("/api/v1/alive", headers=headers).ok


def test_an_upgrade_from_a_page_of_another_site_is_refused(site: Installation) -> None:
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for path in ("/api/v1/summary", "/api/v1/runs/r1/updates", "/api/v1/runs/r1/output/output/updates"):
        answer = site.get(path, headers={**upgrade, "origin": "http://evil.example"})
        assert answer.status_code == 403
        answer = site.get(path, headers={**upgrade, "host": "evil.example"})
        assert answer.status_code == 403
        assert error(site.get(path)) == "this address is a WebSocket"
        assert site.get(path).status_code == 400
    answer = site.get("/api/v1/alive", headers=upgrade)
    assert (answer.status_code, error(answer)) == (400, "this address is no WebSocket")
    answer = site.get("/api/v1/summary", headers={"connection": "Upgrade", "upgrade": "websocket"})
    assert answer.status_code == 400 and "handshake" in error(answer)


# -- malformed and hostile HTTP --------------------------------------------------------------------

GOOD = b"GET /api/v1/alive HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /api/v1/alive HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET  /api/v1/alive HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /api/v1/alive HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /api/v1/alive\r\n\r\n", 400),
        (b"GET nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"G@T / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\rc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431),
        (b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\n\r\n", 411),
        (
            b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
        ),
        (
            b"PUT /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            400,
        ),
        (b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\n", 400),
        (b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 5\r\n\r\n", 400),
        (b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{}", 400),
        (b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\nContent-Length: 5\r\n\r\n", 417),
        (b"GET http://evil.example/api/v1/alive HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        (b"GET http://localhost/api/v1/alive HTTP/1.0\r\n\r\n", 200),
        (b"GET /api/v1/alive HTTP/1.0\r\n\r\n", 200),
        (b"\r\n" + LAST, 200),
    ],
)
def test_malformed_requests_are_refused_in_json_and_the_connection_is_closed(
    site: Installation, data: bytes, status: int
) -> None:
    answer = site.raw(data, end=status == 400)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"connection: close" in head and b"content-type: application/json" in head
    assert isinstance(json.loads(body), dict)


def test_a_refused_body_does_not_take_the_answer_away(site: Installation) -> None:
    data = b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", site.port), 10) as sock:
        sock.sendall(data + b"x" * 3_000_000)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_requests_sent_at_once_are_answered_in_order(site: Installation) -> None:
    version = b"GET /api/control/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    post = (
        b"POST /api/v1/runs?count=0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n\r\n"
        + b'{"job_id":"noop"}'
    )
    answer = site.raw(GOOD + version + post + b"HEAD" + GOOD[3:] + LAST)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies[0] == b"{}" and bodies[1] == b'{"version":"9.8.7"}'
    assert b'"runs":{}' in bodies[2] and bodies[3] == b"" and bodies[4] == b"{}"


def test_a_client_that_expects_100_continue_is_told(site: Installation) -> None:
    with socket.create_connection(("127.0.0.1", site.port), 10) as sock:
        sock.sendall(
            b"POST /api/v1/runs?count=0 HTTP/1.1\r\nHost: localhost\r\n"
            b"Expect: 100-continue\r\nContent-Length: 17\r\n\r\n"
        )
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b'{"job_id":"noop"}')
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_head_sent_byte_by_byte_is_understood(site: Installation) -> None:
    with socket.create_connection(("127.0.0.1", site.port), 10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GOOD:
            sock.sendall(bytes([byte]))
        assert sock.recv(1000).endswith(b"\r\n\r\n{}")


def test_a_head_that_never_ends_is_given_up(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apsislib.api.exchange.HEAD", 0.2)
    with socket.create_connection(("127.0.0.1", site.port), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed_in_time(site: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apsislib.api.exchange.IDLE", 0.1)
    with socket.create_connection(("127.0.0.1", site.port), 10) as sock:
        assert sock.recv(1000) == b""


def until_served(address: tuple[str, int], request: bytes) -> socket.socket:
    """A connection on which the answer to `request` has begun; its buffers hold little of a large one."""
    while True:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect(address)
        sock.sendall(request)
        if sock.recv(12) == b"HTTP/1.1 200":
            return sock
        sock.close()  # a thread counts as idle only an instant after it has answered


def rest(sock: socket.socket) -> bytes:
    answer = b""
    while piece := sock.recv(65536):
        answer += piece
    return answer


def test_with_all_threads_at_work_the_answer_is_503_at_once_and_idle_ones_make_room(
    alone: Installation,
) -> None:
    """Two threads. Idle connections give way; those whose answer is being sent do not."""
    address = ("127.0.0.1", alone.port)
    run_id = alone.make("noop")["run_id"]
    alone.print(run_id, [b"x" * 8_000_000])
    idle = [until_served(address, GOOD) for _ in range(2)]
    large = f"GET /api/v1/runs/{run_id}/output/output HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    busy = [until_served(address, large) for _ in range(2)]
    for sock in idle:
        rest(sock)
    with socket.create_connection(address, 60) as late:
        late.sendall(GOOD)
        head, _, body = rest(late).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after" in head
    assert "busy" in json.loads(body)["error"]
    for sock in busy:
        sock.shutdown(socket.SHUT_WR)  # else it would be kept for another request
        assert len(rest(sock)) > 8_000_000
    for sock in (*idle, *busy):
        sock.close()
    names = {t.name for t in threading.enumerate() if t.name.startswith("apsis-api-")}
    assert {"apsis-api-1", "apsis-api-2"} <= names


PARTS = [
    GOOD[:20],
    GOOD.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n{"),
]


@pytest.mark.parametrize("part", PARTS, ids=["head", "body"])
def test_who_has_sent_part_of_a_request_makes_room_and_is_told_so(
    alone: Installation, part: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two threads. Of more than two such connections the oldest give way, and all the time there is room."""
    monkeypatch.setattr("apsislib.api.server.ROOM", 60.0)
    for limit in ("HEAD", "BODY"):
        monkeypatch.setattr(f"apsislib.api.exchange.{limit}", 600.0)
    address = ("127.0.0.1", alone.port)
    parts = []
    for _ in range(20):
        parts.append(socket.create_connection(address, 60))
        parts[-1].sendall(part)
    until_served(address, GOOD).close()
    for sock in parts[:-2]:  # the last may still be there
        head, _, body = rest(sock).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in head
        assert "had not arrived" in json.loads(body)["error"]
    for sock in parts:
        sock.close()
    said = [r.getMessage() for r in caplog.records if "had not arrived" in r.getMessage()]
    assert len(said) == 10 and "127.0.0.1" in said[0]  # and how many more there were, a minute later


@pytest.mark.parametrize("part", [b"", *PARTS], ids=["nothing", "head", "body"])
def test_who_has_sent_part_of_a_request_does_not_delay_a_stop(
    alone: Installation, part: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for limit in ("IDLE", "HEAD", "BODY"):
        monkeypatch.setattr(f"apsislib.api.exchange.{limit}", 600.0)
    with socket.create_connection(("127.0.0.1", alone.port), 60) as sock:
        sock.sendall(GOOD)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        sock.sendall(part)
        deadline = Deadline(60.0)
        while part and Phase.PARTIAL not in alone.server._open.values():
            assert not deadline.passed()
            time.sleep(0.01)
        assert not alone.server.stop(deadline) and not deadline.passed()
        answer = rest(sock)
    assert (b"503" in answer and b"the server is stopping" in answer) if part else answer == b""
    assert "too many" not in caplog.text


def test_a_client_that_goes_away_costs_only_its_own_connection(site: Installation) -> None:
    run_id = site.make("noop")["run_id"]
    site.print(run_id, [b"x" * 8_000_000])
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", site.port), 10) as sock:
            sock.sendall(
                f"GET /api/v1/runs/{run_id}/output/output HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            sock.recv(1000)
    assert site.get("/api/v1/alive").ok


def test_heads_are_taken_apart() -> None:
    request, keep = parse_head(b"GET /a%20b?x=1&y HTTP/1.1\r\nHost: h\r\nAccept: a\r\nAccept: b")
    assert (request.method, request.path, request.raw_query) == ("GET", "/a%20b", "x=1&y")
    assert request.headers == {"host": "h", "accept": "a, b"} and keep
    assert not parse_head(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Close")[1]
    assert not parse_head(b"GET / HTTP/1.0")[1]
    with pytest.raises(Refused):
        parse_head(b"")


def test_queries_are_decoded_once_and_blank_values_are_left_out() -> None:
    request = Request("GET", "/", "a=1&b=&c&d=%2B+%2541&a=2&%C3%A9=x=y")
    assert request.query() == [("a", "1"), ("d", "+ %41"), ("a", "2"), ("é", "x=y")]
    assert request.all("a") == ["1", "2"] and request.one("é") == "x=y"
    assert request.flag("c") and request.flag("b") and not request.flag("init")
    with pytest.raises(BadRequest):
        request.one("a")
    with pytest.raises(BadRequest):
        Request("GET", "/", "a=%ff").query()


def test_a_large_answer_is_made_in_pieces(site: Installation) -> None:
    site.post("/api/v1/runs?count=500", {"job_id": "slow", "times": {"schedule": "2131-01-01T00:00:00Z"}})
    answer = site.get("/api/v1/runs?job_id=slow&state=scheduled", headers={"accept-encoding": ""})
    assert len(answer.json()["runs"]) == 500
    assert answer.headers["content-length"] == str(len(answer.content)) and len(answer.content) > 100_000
    assert message.encode("é/") == b'"\\u00e9/"'
