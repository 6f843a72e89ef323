"""What a whole server tells of its agents, its configuration, its figures and its last reload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from contract import check
from server import ENDS, Server

TOKEN = "a-token-that-nobody-may-see"
SLEEP = "program: {type: procstar, argv: [/usr/bin/sleep, '600']}\n"
CONFIG = f"smtp: {{auth: {{username: u, password: {TOKEN}}}}}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), {"sleep": SLEEP}, CONFIG)
    with server.running():
        yield server


def get(server: Server, path: str) -> Any:
    answer = requests.get(f"{server.url}{path}", timeout=30)
    check(answer)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_agent_is_shown_with_the_runs_on_it_and_its_coming_is_remembered(server: Server) -> None:
    run_id = server.schedule({"job_id": "sleep"})
    server.until(run_id, "running")
    found = get(server, "/agents")
    (agent,) = found["agents"]
    assert (agent["group_id"], agent["state"], agent["load"]) == ("default", "live", 1)
    assert [run["run_id"] for run in agent["runs"]] == [run_id]
    assert [(entry["event"], entry["conn_id"]) for entry in found["history"]] == [
        ("connected", agent["conn_id"])
    ]
    server.post(f"/runs/{run_id}/signal/KILL")
    server.until(run_id, *ENDS)
    assert get(server, "/agents")["agents"][0]["runs"] == []


def test_what_waits_for_an_agent_is_counted_by_group(server: Server) -> None:
    job = {"program": {"type": "procstar", "argv": ["true"], "group_id": "nobody"}}
    run_id = server.schedule({"job": job})
    server.until(run_id, "starting")
    assert get(server, "/agents")["unplaced"] == {"nobody": 1}


def test_the_configuration_is_told_as_it_is_in_force(server: Server) -> None:
    found = get(server, "/config")["config"]
    assert found["procstar"]["agent"]["local"] is True
    assert found["schedule"]["horizon"] == 86400.0
    assert found["smtp"]["auth"] == {"username": "u", "password": "***"}
    assert TOKEN not in requests.get(f"{server.url}/config", timeout=30).text


def test_the_last_reload_is_told_with_its_errors(server: Server) -> None:
    control = server.url.removesuffix("/v1") + "/control/reload_jobs"

    def last() -> Any:
        answer = requests.get(control, timeout=30)
        check(answer)
        return answer.json()

    assert (last()["errors"], last()["jobs"]) == ([], 1)
    server.write("broken", "schedule: {type: daily}\n")
    assert requests.post(control, params={"dry_run": "True"}, timeout=60).status_code == 400
    assert last()["errors"] == []  # that was only a look
    assert requests.post(control, timeout=60).status_code == 400
    (error, *_) = last()["errors"]
    assert error["job_id"] == "broken" and error["path"].endswith("broken.yaml") and error["message"]
    (server.jobs / "broken.yaml").unlink()
    assert requests.post(control, timeout=60).status_code == 200
    assert last()["errors"] == []


def test_the_figures_of_the_server_are_told_for_each_span(server: Server) -> None:
    for span in ("hour", "day", "week"):
        found = get(server, f"/series?span={span}")
        assert {"lateness", "ended", "memory", "database"} <= set(found["series"])
        assert len({len(points) for points in found["series"].values()}) == 1
    assert requests.get(f"{server.url}/series?span=year", timeout=30).status_code == 400
