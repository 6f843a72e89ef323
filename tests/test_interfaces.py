"""The interfaces that clients of Apsis 2 know, line by line, on a whole installation: a server of its own
process and a real agent, asked by `requests` and `websockets`, every body judged by the API's schemas.

test_api.py, test_live.py and test_encoding.py ask more of each, in the test's own process.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contract
import pytest
import requests
from server import ENDS, Server
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from apsislib.api.routes import ROUTES

LOOKBACK = "runs: {lookback: 100 days, retention: off}\n"
WAIT = 60.0  # s
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
NOOP = "program: {type: no-op}\n"
SHELL = 'program: {type: procstar-shell, command: "%s"}\n'
JOBS = {
    "noop": NOOP,
    "slow": SHELL % "echo begun; sleep 600",
    "fails": SHELL % "echo no such luck; exit 3",
    "prints": "params: [n]\n" + SHELL % "seq {{ n }}",
    # Prints a line for each file that is made, and ends with "end".
    "steps": "params: [dir]\n"
    + SHELL % "cd {{ dir }}; for n in 1 2 3; do until test -e $n; do sleep 0.02; done; echo line $n; done",
    "etl/get": "params: [date, region]\nmetadata: {labels: [etl], description: Gets.}\n" + NOOP,
    "etl/load": "params: [date, region]\n"
    "condition: {type: dependency, job_id: etl/get, args: {region: '{{ region }}'}}\n" + NOOP,
    "every": "schedule: {type: interval, interval: 2h, args: {region: eu}}\nparams: [region]\n" + NOOP,
    "odd name/a b": "params: [_x, summary, job_id, state]\n" + NOOP,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("site"), JOBS, LOOKBACK).running() as server:
        yield server


class Client:
    """What a client of its own makes of the API: each answer is one that openapi.json allows."""

    def __init__(self, server: Server) -> None:
        self.session = requests.Session()
        self.session.hooks["response"].append(lambda answer, **_: contract.check(answer))
        self.root = server.url.removesuffix("/api/v1")

    def __call__(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        """The body of an answer with this status; that of an error is its text."""
        answer = self.session.request(method, self.root + path, timeout=WAIT, **options)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        body = answer.json()
        return body if status == 200 else body["error"]

    def head(self, path: str, **headers: str) -> requests.Response:
        return self.session.head(self.root + path, headers=headers, timeout=WAIT)


@pytest.fixture(scope="module")
def api(server: Server) -> Client:
    return Client(server)


def new(api: Client, job_id: str, **body: Any) -> dict[str, Any]:
    (run,) = api("POST", "/api/v1/runs", json={"job_id": job_id, **body})["runs"].values()
    return run


# -- 1.1 common behaviour --------------------------------------------------------------------------


def test_1_1_json_is_compact_and_ascii_and_its_length_is_given(server: Server, api: Client) -> None:
    answer = api.session.post(
        f"{server.url}/runs", json={"job_id": "prints", "args": {"n": "/é"}}, timeout=WAIT
    )
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["connection"] == "keep-alive"
    assert rb'"args":{"n":"/\u00e9"}' in answer.content and b": " not in answer.content.split(b'"program"')[0]


def test_1_1_a_connection_is_used_again_whatever_was_answered(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), WAIT) as sock:
        for path, status in (("/api/v1/alive", 200), ("/api/v1/runs/r0", 404), ("/api/v1/alive/", 200)):
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(65536)
            assert head.startswith(b"HTTP/1.1 %d " % status)
            head, _, body = head.partition(b"\r\n\r\n")
            length = int(re.findall(rb"content-length: (\d+)", head.lower())[0])
            while len(body) < length:
                body += sock.recv(65536)


FILLED = {"job_id+": "noop", "run_id": "RUN", "output_id": "output", "signal": "TERM", "state": "success"}


def filled(pattern: str, run_id: str) -> str:
    for name, value in FILLED.items():
        pattern = pattern.replace("{" + name + "}", value)
    return pattern.replace("RUN", run_id)


QUERIES = {f"/api/v1/{name}": "?job_id=noop" for name in ("runs", "recent", "history", "days", "graph")}
QUERIES["/api/v1/timeline"] = "?since=2031-05-06T00:00:00Z&until=2031-05-07T00:00:00Z"
QUERIES["/api/v1/runs/{run_id}/output/{output_id}/search"] = "?q=x"


def test_1_1_every_get_has_a_head_of_the_same_length_and_type(server: Server, api: Client) -> None:
    run_id = new(api, "prints", args={"n": "3"})["run_id"]
    server.until(run_id, *ENDS)
    # These tell the time, with more digits or fewer.
    changing = {"/api/v1/stats", "/metrics", "/api/v1/series", "/api/v1/upcoming", "/api/v1/agents"}
    changing |= {"/api/v1/jobs/{job_id+}/upcoming", "/api/v1/board", "/api/v1/health"}
    for route in ROUTES:
        if "HEAD" not in route.methods or route.live:
            continue
        path = filled(route.pattern, run_id) + QUERIES.get(route.pattern, "")
        # As it is: packed, as a long answer is, it is shorter or longer by the time that it tells.
        plain = {"accept-encoding": "identity"}
        got = api.session.get(api.root + path, timeout=WAIT, headers=plain)
        head = api.head(path, **plain)
        assert head.status_code == got.status_code == 200, path
        assert head.content == b"" and head.headers["content-type"] == got.headers["content-type"], path
        if route.pattern not in changing:
            assert head.headers.get("content-length") == got.headers.get("content-length"), path


def test_1_1_slashes_at_the_end_and_foreign_parameters_make_no_difference(
    server: Server, api: Client
) -> None:
    """A page leaves its own query on the addresses that it asks for."""
    foreign = "path=etl&show=100&count=&x"
    run_id = new(api, "noop")["run_id"]
    for route in ROUTES:
        if "GET" not in route.methods or route.live or route.pattern == "/api/v1/runs":
            continue
        path, query = filled(route.pattern, run_id), QUERIES.get(route.pattern, "?")
        if "output_id" in path or "output" in path:
            continue  # a no-op has none
        answer = api.session.get(f"{api.root}{path}/{query}&{foreign}", timeout=WAIT)
        assert answer.status_code == 200, answer.url
    later = new(api, "noop", times={"schedule": "2101-01-01T00:00:00Z"})["run_id"]
    assert api("POST", f"/api/v1/runs/{later}/skip?{foreign}") == {}
    assert new_by(api, f"/api/v1/runs/{later}/rerun?{foreign}")["rerun_of"] == later


def new_by(api: Client, path: str) -> dict[str, Any]:
    body = api("POST", path)
    return body["runs"][body["show_run_id"]]


def test_1_1_blank_values_are_as_if_absent(api: Client) -> None:
    assert api("GET", "/api/v1/runs?job_id=noop&state=&since=&who=")["runs"]
    assert api("GET", "/api/v1/runs?job_id=", 400) == "either run_id or job_id filter is required"


@pytest.mark.parametrize("key", ["job_id=noop", "state=success", "since=2031-05-06T00:00:00Z", "summary=T"])
def test_1_1_a_single_key_given_twice_is_an_error_of_the_client(api: Client, key: str) -> None:
    answer = api.session.get(f"{api.root}/api/v1/runs?job_id=noop&{key}&{key}", timeout=WAIT)
    assert answer.status_code == 400 and key.split("=")[0] in answer.json()["error"]


def test_1_1_errors_have_the_status_and_text_that_clients_know(server: Server, api: Client) -> None:
    for path in ("r0", "r999999", "x", "R1"):
        assert api("GET", f"/api/v1/runs/{path}", 404) == f"unknown run {path}"
        assert api("POST", f"/api/v1/runs/{path}/skip", 404) == f"unknown run {path}"
    assert api("GET", "/api/v1/jobs/no%20such", 404) == "no job_id no%20such"
    assert api("GET", "/api/v1/jobs/no%20such/runs", 400) == "no job id match: no such"
    assert api("POST", "/api/v1/runs", 400, json={"job_id": "nope"}) == "no job id match: nope"
    assert api("GET", "/api/v1/jobs/etl", 400) == "ambiguous job id: etl/get, etl/load"
    run_id = new(api, "noop")["run_id"]
    assert api("GET", f"/api/v1/runs/{run_id}/output/none", 404) == f"no output none for {run_id}"
    for body in (b"{", b"[1]", b"\xff"):
        answer = api.session.post(f"{server.url}/runs", data=body, timeout=WAIT)
        assert answer.status_code == 400 and answer.json()["error"]
    answer = api.session.delete(f"{server.url}/runs/{run_id}", timeout=WAIT)
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"


def test_1_1_the_content_type_of_a_request_does_not_matter(server: Server, api: Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = api.session.post(
            f"{server.url}/runs", data=b'{"job_id":"noop"}', headers={"content-type": kind}, timeout=WAIT
        )
        assert answer.status_code == 200, kind


# -- 1.2 jobs by id --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        ("etl/get", "etl/get"),
        ("etl%2Fget", "etl/get"),
        ("get etl", "etl/get"),  # in any order
        ("ge", "etl/get"),  # by the beginning of a word
        ("odd%20name/a%20b", "odd name/a b"),
        ("name-odd", "odd name/a b"),
    ],
)
def test_1_2_a_job_by_its_id_or_words(api: Client, text: str, job_id: str) -> None:
    assert api("GET", f"/api/v1/jobs/{text}")["job_id"] == job_id
    assert "runs" in api("GET", f"/api/v1/jobs/{text}/runs")


def test_1_2_words_are_case_sensitive_and_an_empty_word_means_all(api: Client) -> None:
    assert api("GET", "/api/v1/jobs/ETL", 404) == "no job_id ETL"
    assert api("GET", "/api/v1/jobs/-", 400).startswith("ambiguous job id: ")


# -- 1.3 liveness ----------------------------------------------------------------------------------


def test_1_3_liveness_and_statistics(api: Client) -> None:
    assert api("GET", "/api/v1/alive") == api("GET", "/api/v1/running") == {}
    assert api("GET", "/api/v1/stats")["rusage_maxrss"] > 0


# -- 1.4 jobs --------------------------------------------------------------------------------------


def test_1_4_jobs_with_their_resolved_conditions(api: Client) -> None:
    jobs = {job["job_id"]: job for job in api("GET", "/api/v1/jobs")}
    assert set(jobs) == set(JOBS)
    assert [job["job_id"] for job in api("GET", "/api/v1/jobs?label=etl")] == ["etl/get"]
    load = jobs["etl/load"]
    assert load["params"] == ["date", "region"] and load["ad_hoc"] is False
    assert load["metadata"] == {"labels": []} and load["action"] == []
    (condition,) = load["condition"]
    assert condition["str"] == "dependency etl/get(region={{ region }}) is success"
    assert "states" not in condition and "exist" not in condition
    (resolved,) = load["common_conditions"]
    assert resolved["resolved_args"] == {"date": "{{ date }}", "region": "{{ region }}"}
    assert load["resolved_conditions"] == []
    (schedule,) = jobs["every"]["schedule"]
    assert schedule == {
        **{"type": "interval", "enabled": True, "interval": 7200.0, "phase": 0.0},
        **{"args": {"region": "eu"}, "str": "(region=eu) every 7200.0 sec", "words": "every 2 h"},
    }
    assert jobs["slow"]["program"] == {
        **{"type": "procstar-shell", "group_id": "default", "command": "echo begun; sleep 600"},
        "str": "echo begun; sleep 600",
    }


# -- 1.5 and 1.6 runs ------------------------------------------------------------------------------


def test_1_5_runs_by_args_whatever_their_names_are(api: Client) -> None:
    args = {"_x": "1", "summary": "2", "job_id": "3", "state": "4"}
    run_id = new(api, "odd name/a b", args=args)["run_id"]
    other = new(api, "odd name/a b", args=args | {"state": "5"})["run_id"]
    path = "/api/v1/runs?job_id=odd%20name/a%20b"
    assert list(api("GET", f"{path}&_state=4")["runs"]) == [run_id]
    assert list(api("GET", f"{path}&_job_id=3&__x=1")["runs"]) == [run_id, other]
    assert api("GET", f"{path}&_state=4&_job_id=4")["runs"] == {}
    assert list(api("GET", f"{path}&_summary=2")["runs"]) == [run_id, other]


def test_1_5_runs_by_ids_state_and_time(api: Client) -> None:
    first, second = (new(api, "noop")["run_id"] for _ in range(2))
    found = api("GET", f"/api/v1/runs?run_id={second}&run_id={first}&run_id=bogus&run_id=r1,r2")
    assert set(found["runs"]) == {first, second} and TIME.fullmatch(found["when"])
    assert first in api("GET", "/api/v1/runs?job_id=noop&state=success")["runs"]
    assert api("GET", "/api/v1/runs?job_id=noop&since=2101-01-01T00:00:00Z")["runs"] == {}
    for query in ("state=bogus", "since=yesterday", "summary=maybe"):
        assert api("GET", f"/api/v1/runs?job_id=noop&{query}", 400)


def test_1_6_a_run_has_its_parts_and_a_summary_fewer(server: Server, api: Client) -> None:
    run_id = new(api, "etl/load", args={"date": "2031-05-05", "region": "eu"})["run_id"]
    run = api("GET", f"/api/v1/runs/{run_id}")["runs"][run_id]
    assert run["state"] == "waiting" and run["labels"] == []
    assert run["dependencies"] == [["etl/get", {"date": "2031-05-05", "region": "eu"}]]
    assert run["conds"][0]["type"] == "dependency" and run["program"]["str"]
    assert set(run["times"]) == {"schedule", "scheduled", "waiting"}
    assert all(TIME.fullmatch(time) for time in run["times"].values())
    (summary,) = api("GET", f"/api/v1/runs?run_id={run_id}&summary=true")["runs"].values()
    assert set(run) - set(summary) >= {"conds", "actions", "meta", "program"}
    assert api("POST", f"/api/v1/runs/{run_id}/skip") == {}
    (expected, *_) = api("GET", "/api/v1/runs?job_id=every&state=scheduled")["runs"].values()
    assert expected["expected"] is True and "expected" not in run


def test_1_6_what_a_program_left_is_in_meta(server: Server, api: Client) -> None:
    run = server.until(new(api, "fails")["run_id"], *ENDS)
    program = run["meta"]["program"]
    assert program["status"]["exit_code"] == 3 and program["status"]["signal"] is None
    assert program["times"]["elapsed"] >= 0 and program["proc_stat"]["pid"] > 1
    assert program["procstar_conn"]["group_id"] == "default"
    assert run["meta"]["elapsed"] >= 0 and run["meta"]["job"] == {"labels": []}
    assert run["program"]["argv"] == ["/usr/bin/bash", "-c", "echo no such luck; exit 3"]


# -- 1.7 reading one run ---------------------------------------------------------------------------


def test_1_7_log_state_dependencies_and_outputs(server: Server, api: Client) -> None:
    get = new(api, "etl/get", args={"date": "d", "region": "eu"})["run_id"]
    run_id = new(api, "etl/load", args={"date": "d", "region": "eu"})["run_id"]
    server.until(run_id, *ENDS)
    log = api("GET", f"/api/v1/runs/{run_id}/log")["run_log"]
    assert [entry["message"] for entry in log][0] == "scheduled: now"
    assert [entry["timestamp"] for entry in log] == sorted(entry["timestamp"] for entry in log)
    assert {entry["run_id"] for entry in log} == {run_id}
    assert api("GET", f"/api/v1/runs/{run_id}/state") == {"state": "success"}
    assert api("GET", f"/api/v1/runs/{run_id}/dependencies") == {
        run_id: [{"job_id": "etl/get", "args": {"date": "d", "region": "eu"}, "run_ids": [get]}]
    }
    assert api("GET", f"/api/v1/runs/{run_id}/outputs") == []
    printed = new(api, "prints", args={"n": "5"})["run_id"]
    server.until(printed, *ENDS)
    (output,) = api("GET", f"/api/v1/runs/{printed}/outputs")
    assert (output["output_id"], output["output_len"]) == ("output", 10)


def test_1_7_an_output_of_any_size_whole_and_in_parts(server: Server, api: Client) -> None:
    run_id = new(api, "prints", args={"n": "20000"})["run_id"]
    server.until(run_id, *ENDS)
    text = b"".join(b"%d\n" % n for n in range(1, 20001))
    url = f"{server.url}/runs/{run_id}/output/output"
    whole = requests.get(url, timeout=WAIT)
    assert whole.content == text and whole.headers["content-type"] == "application/octet-stream"
    plain = requests.get(url, headers={"accept-encoding": "identity"}, timeout=WAIT)
    assert plain.content == text and "content-encoding" not in plain.headers
    assert plain.headers["accept-ranges"] == "bytes"
    for ranged, part in (("0-4", text[:5]), ("100000-", text[100000:]), ("-7", text[-7:])):
        answer = requests.get(url, headers={"range": f"bytes={ranged}"}, timeout=WAIT)
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["content-range"].endswith(f"/{len(text)}")
    beyond = requests.get(url, headers={"range": "bytes=999999-"}, timeout=WAIT)
    assert beyond.status_code == 416 and beyond.headers["content-range"] == f"bytes */{len(text)}"
    # A download that broke off goes on, and begins anew where the output is another.
    headers = {"range": "bytes=5-", "if-range": plain.headers["etag"]}
    assert requests.get(url, headers=headers, timeout=WAIT).content == text[5:]
    headers["if-range"] = '"another"'
    assert requests.get(url, headers=headers, timeout=WAIT).content == text
    known = {"if-none-match": plain.headers["etag"]}
    assert requests.get(url, headers=known, timeout=WAIT).status_code == 304


# -- 1.8 operations --------------------------------------------------------------------------------


def test_1_8_operations_and_what_they_refuse(server: Server, api: Client) -> None:
    path = "/api/v1/runs/"
    later = new(api, "noop", times={"schedule": "2101-01-01T00:00:00Z"})["run_id"]
    assert api("POST", f"{path}{later}/stop", 400) == f"can't stop run {later}: run is scheduled"
    assert api("POST", f"{path}{later}/signal/TERM", 400) == "invalid run state for signal: scheduled"
    assert api("POST", f"{path}{later}/mark/success", 400) == f"can't mark {later} in state scheduled"
    assert api("POST", f"{path}{later}/start") == {}
    server.until(later, "success")
    assert api("POST", f"{path}{later}/skip", 400) == f"can't skip {later} in state success"
    assert api("POST", f"{path}{later}/start", 400) == f"can't start {later} in state success"
    for method, state in (("PUT", "failure"), ("POST", "success")):
        assert api(method, f"{path}{later}/mark/{state}") == {}
        assert api("GET", f"{path}{later}/state") == {"state": state}
    assert api("PUT", f"{path}{later}/mark/success", 400) == f"run {later} already in state success"
    assert api("PUT", f"{path}{later}/mark/running", 400) == f"can't mark {later} to state running"
    assert api("PUT", f"{path}{later}/mark/bogus", 400) == "not a state: 'bogus'"
    again = new_by(api, f"{path}{later}/rerun")
    assert again["job_id"] == "noop" and f"scheduled as rerun of {later}" in server.messages(again["run_id"])
    for word in ("skip", "start", "rerun"):
        api.session.put(f"{server.url}/runs/{later}/{word}", timeout=WAIT).headers["allow"] = "POST"


def test_1_8_signals_and_stops_reach_the_program(server: Server, api: Client) -> None:
    run_id = new(api, "slow")["run_id"]
    server.until_printed(run_id, b"begun\n")
    path = f"/api/v1/runs/{run_id}"
    assert api("PUT", f"{path}/signal/FOO", 400) == "invalid signal: FOO"
    assert api("PUT", f"{path}/signal/term", 400) == "invalid signal: term"
    for name in ("SIGCONT", "CONT", str(int(signal.SIGCONT))):
        assert api("POST", f"{path}/signal/{name}") == {}
    stopped = api("PUT", f"{path}/stop")["runs"][run_id]
    assert stopped["state"] == "stopping"
    run = server.until(run_id, *ENDS)
    assert run["state"] == "failure" and run["meta"]["program"]["stop"]["signals"] == ["SIGTERM"]
    assert run["meta"]["program"]["status"]["signal"] == "SIGTERM"
    assert api("POST", f"{path}/stop", 400) == f"can't stop run {run_id}: run is failure"


# -- 1.9 new runs ----------------------------------------------------------------------------------


def test_1_9_new_runs(server: Server, api: Client) -> None:
    made = api("POST", "/api/v1/runs?count=3", json={"job_id": "noop"})["runs"]
    assert list(made) == sorted(made, key=lambda run_id: int(run_id[1:])) and len(made) == 3
    assert api("POST", "/api/v1/runs?count=0", json={"job_id": "noop"})["runs"] == {}
    for count in ("-1", "x", "1.5"):
        assert "count" in api("POST", f"/api/v1/runs?count={count}", 400, json={"job_id": "noop"})
    assert api("POST", "/api/v1/runs", 400, json={}) == "missing job_id or job"
    run = new(api, "prints")
    assert run["state"] == "error"
    assert "missing args (n) for job prints" in server.messages(run["run_id"])[-1]
    assert b"missing args (n) for job prints" in server.output(run["run_id"])
    program = {"program": {"type": "no-op"}}
    (adhoc,) = api("POST", "/api/v1/runs", json={"job": program, "job_id": "nope"})["runs"].values()
    assert re.fullmatch(r"adhoc-[A-Za-z]{12}", adhoc["job_id"])
    assert api("GET", f"/api/v1/jobs/{adhoc['job_id']}")["ad_hoc"] is True
    assert adhoc["job_id"] not in [job["job_id"] for job in api("GET", "/api/v1/jobs")]
    assert "program" in api("POST", "/api/v1/runs", 400, json={"job": {"program": {"type": "bogus"}}})


def test_1_9_a_time_that_is_past_begins_at_once_and_a_stop_counts_from_it(
    server: Server, api: Client
) -> None:
    run = new(api, "noop", times={"schedule": "2020-01-01T00:00:00Z"})
    assert server.until(run["run_id"], *ENDS)["times"]["schedule"] == "2020-01-01T00:00:00.000+00:00"
    for stop in ("90m", "+1.5 hours", "2101-01-01T01:30:00Z", 5400):
        times = {"schedule": "2101-01-01T00:00:00Z", "stop": stop}
        run = new(api, "noop", times=times)
        assert run["times"]["stop"] == "2101-01-01T01:30:00.000+00:00", stop
        assert api("POST", f"/api/v1/runs/{run['run_id']}/skip") == {}


# -- 1.10 agents, 1.11 pages -----------------------------------------------------------------------


def test_1_10_agents(server: Server, api: Client) -> None:
    server.until(new(api, "prints", args={"n": "1"})["run_id"], *ENDS)
    ((conn_id, agent),) = api("GET", "/api/procstar/connections").items()
    assert agent["info"]["conn"] == {"conn_id": conn_id, "group_id": "default", "restricted_exe": None}
    assert agent["shutdown_state"] == "active" and agent["info"]["stats"]["connected"] is True
    assert (
        agent["info"]["proc"]["pid"]
        == json.loads((server.directory / "apsis.db.agent.json").read_text())["pid"]
    )
    assert list(api("GET", "/api/procstar/groups")) == ["default"]


def test_1_11_pages_have_tags_and_types_and_the_api_is_none(api: Client) -> None:
    for path in ("/", "/index.html", "/jobs", "/jobs/etl/get", "/job/x", "/runs", "/runs/r1", "/agents"):
        answer = api.session.get(api.root + path, timeout=WAIT)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html"), path
        again = api.session.get(
            api.root + path, headers={"if-none-match": answer.headers["etag"]}, timeout=WAIT
        )
        assert (again.status_code, again.content) == (304, b"")
        head = api.head(path)
        assert head.headers["content-length"] and head.headers["etag"] == answer.headers["etag"]
    assert api("GET", "/api/v1/no/such", 404) == "no such address"


# -- 2 websockets ----------------------------------------------------------------------------------


def follow(server: Server, path: str) -> ClientConnection:
    return connect(f"ws{server.url[4:]}{path}", max_size=None, open_timeout=WAIT)


def frame(ws: ClientConnection) -> Any:
    """The next, which the schemas allow."""
    found = json.loads(ws.recv(timeout=WAIT))
    contract.complain(
        "#/components/schemas/" + ("SummaryFrame" if isinstance(found, list) else "RunFrame"), found
    )
    return found


def parts(ws: ClientConnection, length: int) -> bytes:
    """The payload of binary frames, which say where it belongs, up to `length` bytes or the close."""
    found = b""
    at = None
    while len(found) < length:
        try:
            message = ws.recv(timeout=WAIT)
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1000
            break
        assert isinstance(message, bytes)
        head, _, payload = message.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n"))
        first, last, total = map(
            int, re.fullmatch(rb"bytes=(\d+)-(\d+)/(\d+)", fields[b"content-range"]).groups()
        )  # type: ignore[union-attr]
        assert (
            len(payload) == int(fields[b"content-length"]) == last - first + 1 and last < total or not payload
        )
        assert at is None or first == at
        at = last + 1
        found += payload
    return found


def test_2_offers_are_declined_and_a_plain_get_is_400(server: Server, api: Client) -> None:
    run_id = new(api, "slow")["run_id"]
    for path in ("/summary", f"/runs/{run_id}/updates", f"/runs/{run_id}/output/output/updates"):
        assert api("GET", f"/api/v1{path}", 400)
        with connect(f"ws{server.url[4:]}{path}", subprotocols=["x"], open_timeout=WAIT) as ws:  # type: ignore[list-item]
            assert ws.subprotocol is None and not ws.protocol.extensions
    api("POST", f"/api/v1/runs/{run_id}/stop")
    server.until(run_id, *ENDS)


def test_2_1_the_summary_begins_with_everything_and_goes_on(server: Server, api: Client) -> None:
    old = new(api, "noop")["run_id"]
    # The flag is found between others, and only by its own name.
    for query, begins in (("?init", True), ("?path=x&init", True), ("?initial", False), ("", False)):
        with follow(server, f"/summary{query}") as ws:
            marker = new(api, "noop")["run_id"]
            seen: list[dict[str, Any]] = []
            while not any(
                m["type"] == "run_transition" and m["run_summary"]["run_id"] == marker for m in seen
            ):
                seen += frame(ws)
            kinds = {message["type"] for message in seen}
            assert ({"job", "agent_conn", "run_summary"} <= kinds) is begins, query
            runs = {m["run_summary"]["run_id"] for m in seen if m["type"] == "run_summary"}
            assert (old in runs) is begins
            if begins:
                assert {m["job"]["job_id"] for m in seen if m["type"] == "job"} == set(JOBS)
                assert any(m["run_summary"].get("expected") for m in seen if m["type"] == "run_summary")


def test_2_1_a_reload_is_told(server: Server, api: Client) -> None:
    with follow(server, "/summary") as ws:
        server.write("fresh", "schedule: {type: interval, interval: 1h}\nprogram: {type: no-op}\n")
        assert api("POST", "/api/control/reload_jobs?dry_run=False", json={})["added"] == ["fresh"]
        seen: list[dict[str, Any]] = []
        while not {"job_add", "run_transition"} <= {m["type"] for m in seen}:
            seen += frame(ws)
        (server.jobs / "fresh.yaml").unlink()
        assert api("POST", "/api/control/reload_jobs?dry_run=F", json={})["removed"] == ["fresh"]
        while not {"job_delete", "run_delete"} <= {m["type"] for m in seen}:
            seen += frame(ws)


def test_2_3_updates_of_a_run_and_after_a_lost_socket(server: Server, api: Client, tmp_path: Path) -> None:
    run_id = new(api, "steps", args={"dir": str(tmp_path)})["run_id"]
    with follow(server, f"/runs/{run_id}/updates?init") as ws:
        first = frame(ws)
        assert set(first) == {"run", "meta", "run_log", "outputs"}
        ws.socket.shutdown(socket.SHUT_RDWR)  # lost
    server.until(run_id, "running")
    for step in "123":
        (tmp_path / step).touch()
    server.until(run_id, *ENDS)
    with follow(server, f"/runs/{run_id}/updates?init") as ws:
        whole = frame(ws)
        assert whole["run"]["state"] == "success" and whole["outputs"]["output"]["length"] == 21
        assert [e["message"] for e in whole["run_log"]] == server.messages(run_id)
        assert api("POST", f"/api/v1/runs/{run_id}/mark/failure") == {}
        found: dict[str, Any] = {}
        while found.get("run", {}).get("state") != "failure" or "run_log_append" not in found:
            found |= frame(ws)  # a finished run's socket stays open
    with follow(server, "/runs/r999999/updates?init") as ws, pytest.raises(ConnectionClosed) as closed:
        ws.recv(timeout=WAIT)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000


def test_2_4_output_goes_on_after_a_lost_socket_and_to_the_last_byte(
    server: Server, api: Client, tmp_path: Path
) -> None:
    run_id = new(api, "steps", args={"dir": str(tmp_path)})["run_id"]
    path = f"/runs/{run_id}/output/output/updates"
    (tmp_path / "1").touch()
    with follow(server, f"{path}?start=0") as ws:
        got = parts(ws, 7)
        assert got == b"line 1\n"
        ws.socket.shutdown(socket.SHUT_RDWR)  # lost
    (tmp_path / "2").touch()
    with follow(server, f"{path}?start={len(got)}") as ws, follow(server, path) as late:
        got += parts(ws, 7)
        assert got == b"line 1\nline 2\n"
        (tmp_path / "3").touch()
        got += parts(ws, 1000)  # to the close
        assert got == b"line 1\nline 2\nline 3\n"
        assert parts(late, 1000).endswith(b"line 3\n")
    for start, rest in (("?start=7", got[7:]), ("?start=21", b""), ("", b""), ("?start=bogus", b"")):
        with follow(server, path + start) as ws:
            assert parts(ws, 1000) == rest
    with follow(server, "/runs/r999999/output/output/updates?start=0") as ws:
        assert parts(ws, 1) == b""


# -- 3 control -------------------------------------------------------------------------------------


def test_3_reload_is_all_or_nothing_and_wants_to_know_whether_it_is_meant(
    server: Server, api: Client
) -> None:
    server.write("broken", "program: {type: no-op\n")
    server.write("wrong", "condition: {type: dependency, job_id: zz}\nprogram: {type: no-op}\n")
    for query in ("?dry_run=T", "?dry_run=false", ""):
        answer = api.session.post(f"{api.root}/api/control/reload_jobs{query}", json={}, timeout=WAIT)
        assert answer.status_code == 400
        assert answer.json()["error"] == f"errors loading jobs in {server.jobs}"
        assert [job_id for job_id, _ in answer.json()["job_errors"]] == ["broken", "wrong"]
    for job_id in ("broken", "wrong"):
        (server.jobs / f"{job_id}.yaml").unlink()
    assert api("POST", "/api/control/reload_jobs?dry_run=maybe", 400)
    done = api("POST", "/api/control/reload_jobs?dry_run=t", json={})
    assert {name: done[name] for name in ("removed", "added", "changed", "dry_run")} == {
        **{"removed": [], "added": [], "changed": []},
        "dry_run": True,
    }
    assert api("GET", "/api/control/debug", 404)
    assert re.fullmatch(r"\d+\.\d+\.\d+", api("GET", "/api/control/version")["version"])


def test_3_1_restart_keeps_pid_and_runs_and_shut_down_ends_with_0(tmp_path: Path) -> None:
    with Server(tmp_path, JOBS).running() as server:
        api = Client(server)
        run_id = new(api, "slow")["run_id"]
        server.until_printed(run_id, b"begun\n")
        waits = new(api, "etl/load", args={"date": "d", "region": "eu"})["run_id"]
        assert server.process is not None
        with follow(server, "/summary") as ws:
            assert api("POST", "/api/control/shut_down?restart", json={}) == {}
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    ws.recv(timeout=WAIT)
            assert closed.value.rcvd is not None and closed.value.rcvd.code in (1001, 1012)
        end = time.monotonic() + WAIT
        while server.log().count("serving http") < 2:
            assert time.monotonic() < end and server.process.poll() is None, server.log()
            time.sleep(0.02)
        server.await_running()
        api = Client(server)
        assert api("GET", f"/api/v1/runs/{run_id}/state") == {"state": "running"}
        assert api("GET", f"/api/v1/runs/{waits}/state") == {"state": "waiting"}
        newer = new(api, "noop")["run_id"]
        assert int(newer[1:]) > int(waits[1:])  # no ID is used twice
        api("POST", f"/api/v1/runs/{run_id}/stop")
        server.until(run_id, *ENDS)
        assert api("POST", "/api/control/shut_down", json={}) == {}
        assert server.process.wait(WAIT) == 0
        server.start()


# -- 4 times, durations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2101-05-06T07:08:09Z", "2101-05-06T07:08:09.000+00:00"),
        ("2101-05-06T07:08:09.98765+02:00", "2101-05-06T05:08:09.987+00:00"),
        ("21010506T070809Z", "2101-05-06T07:08:09.000+00:00"),
        ("2101-05-06T07:08:09", None),
        ("2101-05-06 07:08:09Z", None),
        ("2101-05-06", None),
        ("2101-05-06T07:08Z", None),
        ("4145584089", None),
        (4145584089, None),
        ("tomorrow", None),
    ],
)
def test_4_2_times(api: Client, text: Any, instant: str | None) -> None:
    body = {"job_id": "noop", "times": {"schedule": text}}
    if instant is None:
        assert "schedule" in api("POST", "/api/v1/runs", 400, json=body)
        return
    (run,) = api("POST", "/api/v1/runs", json=body)["runs"].values()
    assert run["times"]["schedule"] == instant
    assert api("POST", f"/api/v1/runs/{run['run_id']}/skip") == {}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *((f"1 {unit}", 1) for unit in ("s", "sec", "second", "seconds")),
        *((f"2{unit}", 120) for unit in ("m", "min", "minute", "minutes")),
        *((f"1 {unit}", 3600) for unit in ("h", "hour", "hours")),
        *((f"1{unit}", 86400) for unit in ("d", "day", "days")),
        ("1e3", 1000),
        ("+1.5s", 1),
        (90, 90),
        *((text, None) for text in ("1w", "1h30m", "1 H", "inf", "nan", "-5s", "", "x", True, [], {})),
    ],
)
def test_4_2_durations(api: Client, text: Any, seconds: int | None) -> None:
    body = {"job_id": "noop", "times": {"schedule": "2101-01-01T00:00:00Z", "stop": text}}
    if seconds is None:
        assert "stop" in api("POST", "/api/v1/runs", 400, json=body)
        return
    (run,) = api("POST", "/api/v1/runs", json=body)["runs"].values()
    stop = f"2101-01-{1 + seconds // 86400:02}T{seconds % 86400 // 3600:02}:{seconds % 3600 // 60:02}"
    assert run["times"]["stop"].startswith(stop)
    assert api("POST", f"/api/v1/runs/{run['run_id']}/skip") == {}


def test_0_11_the_servers_options_may_be_abbreviated(tmp_path: Path) -> None:
    """`apsisctl --log DEBUG serve` is in scripts; a server answers within two seconds, and SIGTERM is 0."""
    server = Server(tmp_path, {"noop": JOBS["noop"]})
    argv = [*server.program, "--log", "DEBUG", "serve", "--config", str(tmp_path / "apsis.yaml")]
    with open(tmp_path / "server.log", "wb") as log:
        server.process = subprocess.Popen([*argv, "--port", str(server.port)], stderr=log, stdout=log)
    try:
        server.await_running()
        assert server.end() == 0
    finally:
        if server.process.poll() is None:
            server.kill()
        server.end_agent()


# -- 6 the server's file ---------------------------------------------------------------------------


def test_6_3_whatever_keeps_a_server_from_starting_is_a_sentence_and_exit_status_1(tmp_path: Path) -> None:
    jobs = {"noop.yaml": NOOP}
    cases: dict[str, tuple[str, dict[str, str], tuple[str, ...], str]] = {
        "not YAML": ("job_dir: [", jobs, (), "not valid YAML"),
        "a key twice": ("job_dir: jobs\njob_dir: jobs\n", jobs, (), "job_dir"),
        "a duration": ("waiting: {max_time: -5}\n", jobs, (), "waiting.max_time has negative duration: -5"),
        "a signal": ("program: {timeout: {signal: SIGFOO}}\n", jobs, (), "not a signal: SIGFOO"),
        "a key": ("waitng: {max_time: 5}\n", jobs, (), "waiting"),
        "no jobs directory": ("job_dir: none\n", jobs, (), "not a directory"),
        "a wrong job": ("", {"x.yaml": "program: {type: bogus}\n"}, (), "unknown program type: bogus"),
        "a wrong action": ("action: {type: bogus}\n", jobs, (), "bogus"),
        "since": ("schedule: {since: yesterday}\n", jobs, (), "yesterday"),
        "ECS": ("procstar: {agent: {ecs: {region: x}}}\n", jobs, (), "cluster_name"),
        "a certificate": (
            "procstar: {agent: {enable: true, server: {tls: {cert_path: no.crt}}}}\n",
            jobs,
            (),
            "no.crt",
        ),
        "an override": ("", jobs, ("-o", "waiting.max_time"), "NAME=VAL"),
        "a wrong override": ("", jobs, ("-o", "waiting.max_time=[]"), "waiting.max_time"),
        "no file": ("", jobs, ("--config", str(tmp_path / "none.yaml")), "none.yaml"),
        "no database": ("database: {path: no/such/dir/apsis.db}\n", jobs, (), "no/such/dir"),
    }
    started = {}
    for name, (config, files, options, _) in cases.items():
        directory = tmp_path / name
        (directory / "jobs").mkdir(parents=True)
        for file, text in files.items():
            (directory / "jobs" / file).write_text(text)
        (directory / "apsis.yaml").write_text(config)
        argv = [*Server.program, "serve", "--config", str(directory / "apsis.yaml"), "--port", "0", *options]
        started[name] = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wrong = {}
    for name, process in started.items():
        try:
            _, said = process.communicate(timeout=WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"it started: {process.communicate()[1]}"
        if process.returncode != 1 or cases[name][3] not in said or "Traceback" in said:
            wrong[name] = (process.returncode, said)
    assert not wrong


def test_6_2_agents_are_let_in_as_the_environment_says_where_the_file_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("HOST", "127.0.0.1"), ("PORT", str(port)), ("TOKEN", "from the environment")):
        monkeypatch.setenv(f"PROCSTAR_AGENT_{name}", value)
    (tmp_path / "apsis.yaml").write_text(
        "job_dir: jobs\nruns: {retention: off}\nprocstar: {agent: {enable: false, server: {plain: true}}}\n"
    )
    job = "program: {type: procstar, group_id: g, argv: [/bin/echo, here]}\n"
    server = Server(tmp_path, {"echo": job})
    with server.running("-o", "procstar.agent.enable=true"):  # YAML, so that false would be false
        argv = [*server.program, "agent", "--agent", "--plain", "--agent-port", str(port), "--group-id", "g"]
        agent = subprocess.Popen(argv)  # which has host and token from the environment too
        try:
            assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"
        finally:
            agent.send_signal(signal.SIGQUIT)
            agent.wait(WAIT)
