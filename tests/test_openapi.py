"""The description of the API: complete, valid, and kept by every route of a real server.

contract.py judges, with jsonschema, also every other answer that tests of the API get.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import contract
import pytest
from installation import AGENT, PROGRAM, SLOW, Installation
from jsonschema import Draft202012Validator
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from apsislib.api import openapi
from apsislib.api.routes import ROUTES

JOBS = {
    "noop": PROGRAM,
    "slow": SLOW,
    "waits": "params: [n]\ncondition:\n- {type: dependency, job_id: noop2, args: {}}\n- {type: max_running}\n"
    "action: {type: schedule, job_id: noop, if: {states: failure}}\n" + PROGRAM,
    "noop2": PROGRAM,
    "every": "schedule: {type: interval, interval: 600}\nmetadata: {labels: [x], description: Often.}\n"
    + PROGRAM,
}

# Addresses that want to be told of which job, and what to look for.
NEEDS = {f"/api/v1/{name}": "?job_id=noop" for name in ("runs", "recent", "history", "days", "graph")}
NEEDS["/api/v1/timeline"] = "?since=2031-05-06T00:00:00Z&until=2031-05-07T00:00:00Z"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    directory = tmp_path_factory.mktemp("site")
    site = Installation(directory, JOBS, connections=lambda: {"c1": AGENT}).start()
    yield site
    site.stop()


def test_the_description_has_every_route_and_nothing_else(site: Installation) -> None:
    described = site.get("/api/v1/openapi.json").json()
    assert described["openapi"].startswith("3.1") and described["info"]["version"] == "9.8.7"
    assert {openapi.key(route) for route in ROUTES} == set(openapi.OPERATIONS)
    listed = {(method.upper(), path) for path, found in described["paths"].items() for method in found}
    routed = {(m, r.pattern.replace("+}", "}")) for r in ROUTES for m in r.methods if m != "HEAD"}
    assert listed == routed
    output = described["paths"]["/api/v1/runs/{run_id}/output/{output_id}"]["get"]["responses"]
    assert all("X-Apsis-Complete" in output[status]["headers"] for status in ("200", "206"))
    names = [o["operationId"] for found in described["paths"].values() for o in found.values()]
    assert len(names) == len(set(names))


def test_every_schema_is_one_and_every_reference_leads_somewhere(site: Installation) -> None:
    described = site.get("/api/v1/openapi.json").json()
    for name, schema in described["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert name

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    for reference in set(references(described)):
        found: Any = described
        for key in reference.removeprefix("#/").split("/"):
            found = found[key]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Runs", {"when": "2031-05-06T07:08:09+00:00", "runs": {}}),
        ("Runs", {"when": "2031-05-06T07:08:09.000+00:00", "runs": {"r1": {"run_id": "r1"}}}),
        ("RunState", {"state": "finished"}),
        ("Nothing", {"x": 1}),
        ("Error", {"error": ""}),
        ("RunFrame", {}),
        ("SummaryFrame", [{"type": "run_delete"}]),
        (
            "Outputs",
            [{"output_id": "output", "output_len": "5", "name": "", "content_type": "", "complete": True}],
        ),
    ],
)
def test_the_schemas_refuse_what_is_wrong(name: str, value: Any) -> None:
    with pytest.raises(AssertionError):
        contract.complain(f"#/components/schemas/{name}", value)


def test_every_route_answers_as_described(site: Installation) -> None:
    contract.seen.clear()
    slow = site.make("slow")["run_id"]
    waits = site.make("waits", args={"n": 1})["run_id"]
    later = site.make("noop", times={"schedule": "2101-01-01T00:00:00Z", "stop": "1h"})["run_id"]
    done = site.make("noop")["run_id"]
    adhoc = site.post("/api/v1/runs", {"job": {"program": {"type": "no-op"}}}).json()["runs"]
    site.make("waits")  # in error, for want of an arg: it has an output
    site.print(slow, [b"printed"], name="combined stdout & stderr")
    run = f"/api/v1/runs/{slow}"
    for path in (
        *("/api/v1/alive", "/api/v1/running", "/api/v1/stats", "/api/v1/health", "/api/v1/openapi.json"),
        *("/api/v1/jobs", "/api/v1/jobs?label=x", "/api/v1/jobs/waits", "/api/v1/jobs/waits/runs"),
        *("/api/v1/search/jobs?q=often", "/api/v1/overview/jobs", "/api/v1/recent?job_id=noop"),
        *("/api/v1/history?job_id=noop&args={}", "/api/v1/days?job_id=noop&tz=Asia/Tokyo"),
        *("/api/v1/complete?q=e", "/api/v1/search/runs?order=latest&limit=1"),
        *("/api/v1/export/runs", "/api/v1/export/runs?format=csv"),
        *("/api/v1/board", "/api/v1/timeline" + NEEDS["/api/v1/timeline"]),
        *("/api/v1/upcoming?skipped=true", "/api/v1/jobs/every/upcoming", "/api/v1/search/runs?limit=3"),
        *(f"/api/v1/runs?run_id={done}", "/api/v1/runs?job_id=noop&summary=true"),
        *(run, f"{run}/log", f"{run}/state", f"{run}/outputs", f"{run}/output/output"),
        *("/api/v1/graph?job_id=waits", f"/api/v1/runs/{waits}/graph"),
        *(f"{run}/output/output/lines", f"{run}/output/output/search?q=x"),
        *(f"/api/v1/runs/{waits}/dependencies", f"/api/v1/runs/{waits}/waiting", f"/api/v1/runs/{waits}"),
        *(f"/api/v1/jobs/{next(iter(adhoc.values()))['job_id']}", "/api/control/version"),
        *("/api/procstar/connections", "/api/procstar/groups", "/metrics", "/api/control/reload_jobs"),
        *("/api/v1/agents", "/api/v1/series?span=day", "/api/v1/config"),
    ):
        assert site.get(path).status_code == 200, path
    assert site.get(f"{run}/output/output", headers={"range": "bytes=1-2"}).content == b"ri"
    # (a no-op has no process to be sent a signal)
    assert site.http.put(f"{site.url}{run}/signal/TERM", timeout=60).status_code in (200, 400)
    assert site.post(f"{run}/signal/TERM").status_code in (200, 400)
    for method, path in (
        ("post", f"/api/v1/runs/{waits}/start"),
        ("post", f"/api/v1/runs/{later}/skip"),
        ("post", f"/api/v1/runs/{done}/rerun"),
        ("put", f"{run}/stop"),
        ("put", f"/api/v1/runs/{done}/mark/failure"),
        ("post", f"/api/v1/runs/{done}/mark/success"),
        ("post", "/api/control/reload_jobs?dry_run=True"),
        ("post", "/api/control/shut_down"),
    ):
        answer = site.http.request(method, site.url + path, timeout=30)
        assert answer.status_code == 200, (path, answer.text)
    again = site.make("slow")["run_id"]
    assert site.post(f"/api/v1/runs/{again}/stop").status_code == 200
    assert site.ends.get(timeout=60) is False
    many = {"operation": "rerun", "runs": [again, "r999999"], "dry_run": True}
    assert site.post("/api/v1/bulk", many).status_code == 200
    described = {
        (method.upper(), path)
        for path, found in contract.DOCUMENT["paths"].items()
        for method, operation in found.items()
        if "x-websocket" not in operation
    }
    signals = {(method, "/api/v1/runs/{run_id}/signal/{signal}") for method in ("PUT", "POST")}
    assert described - contract.seen <= signals


def frames(site: Installation, path: str, count: int) -> list[Any]:
    found: list[Any] = []
    with connect(site.ws + path, max_size=None, compression=None, proxy=None) as stream:
        try:
            while len(found) < count:
                found.append(stream.recv(timeout=30))
        except ConnectionClosed:
            pass
    return found


def test_frames_of_websockets_are_as_described(site: Installation) -> None:
    for path, operations in contract.DOCUMENT["paths"].items():
        if "x-websocket" not in operations.get("get", ()):
            continue
        ((kind, content),) = operations["get"]["responses"]["101"]["content"].items()
        run_id = site.make("slow")["run_id"]
        site.print(run_id, [b"printed"])
        address = path.removeprefix("/api/v1").format(run_id=run_id, output_id="output")
        query = "start=0" if "output" in path else "init"
        found = frames(site, f"{address}?{query}", 1)
        site.post(f"/api/v1/runs/{run_id}/stop")
        assert found
        for frame in found:
            if kind == "application/json":
                contract.complain(content["schema"]["$ref"], json.loads(frame))
            else:
                assert frame.endswith(b"\r\n\r\nprinted")


def test_a_head_of_every_get_says_what_get_would_send(site: Installation) -> None:
    run_id = site.make("slow")["run_id"]
    site.print(run_id, [b"x" * 5000])
    for route in ROUTES:
        if "HEAD" not in route.methods or route.call is None or route.pattern.endswith("/stats"):
            continue
        path = route.pattern.replace("{job_id+}", "every").format(run_id=run_id, output_id="output")
        url = site.url + path + NEEDS.get(path, "?q=x" if path.endswith("/search") else "")
        whole = site.http.get(url, timeout=30)
        head = site.http.head(url, timeout=30)
        assert (head.status_code, head.content) == (whole.status_code, b""), path
        assert whole.status_code == 200, path
        assert head.headers["content-type"] == whole.headers["content-type"]
        for name in ("content-encoding", "etag", "vary", "transfer-encoding"):
            assert head.headers.get(name) == whole.headers.get(name), path
        length = int(whole.headers.get("content-length", 0))
        assert abs(int(head.headers.get("content-length", 0)) - length) < 50, path
        assert urlsplit(whole.url).path == path
