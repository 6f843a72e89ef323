"""Graphs of what hangs on what."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from installation import PROGRAM, SLOW, Installation

from apsislib.runs import Save

DATED = "params: [date]\n"
NEED = "condition: {type: dependency, job_id: %s}\n"
JOBS = {
    "load": DATED + SLOW,
    "clean": DATED + NEED % "load" + PROGRAM,
    "report": DATED
    + "condition:\n- {type: dependency, job_id: clean}\n- {type: dependency, job_id: prices}\n"
    + PROGRAM,
    "prices": DATED + PROGRAM,
    "alone": PROGRAM,
    "maker": "action: {type: schedule, job_id: alone, if: {states: success}}\n" + PROGRAM,
    "fixed": "condition: {type: dependency, job_id: load, args: {date: d1}}\n" + PROGRAM,
    "by_name": DATED + "condition: {type: dependency, job_id: '{{ date }}', args: {}}\n" + PROGRAM,
    "off": DATED + "condition: {type: dependency, job_id: load, enabled: false}\n" + PROGRAM,
    "root": PROGRAM,
    **{f"leaf{n}": NEED % "root" + PROGRAM for n in range(60)},
}


def jobs(site: Installation, job_id: str) -> Any:
    return site.get(f"/api/v1/graph?job_id={quote(job_id)}").json()


def edges(graph: Any) -> set[tuple[str, ...]]:
    return {tuple(part.partition("\n")[0] for part in edge) for edge in graph["edges"]}


def test_a_job_is_shown_with_what_it_needs_and_what_needs_it(site: Installation) -> None:
    graph = jobs(site, "clean")
    assert graph["middle"] == "clean" and graph["more"] is False
    assert edges(graph) == {("load", "clean", "dependency"), ("clean", "report", "dependency")}
    assert {node["job_id"] for node in graph["nodes"]} == {"load", "clean", "report"}
    report = jobs(site, "report")
    assert edges(report) == {
        ("clean", "report", "dependency"),
        ("prices", "report", "dependency"),
        ("load", "clean", "dependency"),
    }


def test_what_a_job_makes_is_in_its_graph_from_either_side(site: Installation) -> None:
    for name in ("maker", "alone"):
        assert edges(jobs(site, name)) == {("maker", "alone", "action")}


def test_disabled_conditions_and_unknown_jobs_are_left_out_or_said_to_be_unknown(site: Installation) -> None:
    assert "off" not in {node["job_id"] for node in jobs(site, "load")["nodes"]}
    assert [node["exists"] for node in jobs(site, "gone")["nodes"]] == [False]


def test_a_hairball_is_cut_and_says_so(site: Installation) -> None:
    graph = jobs(site, "root")
    assert graph["more"] is True and len(graph["nodes"]) == 40
    assert {edge[0] for edge in graph["edges"]} == {"root"}


def test_a_run_is_shown_with_the_runs_that_it_waits_for_and_those_that_wait_for_it(
    site: Installation,
) -> None:
    load = site.make("load", args={"date": "d1"})["run_id"]
    clean = site.make("clean", args={"date": "d1"})["run_id"]
    other = site.make("clean", args={"date": "d2"})["run_id"]
    fixed = site.make("fixed")["run_id"]
    report = site.make("report", args={"date": "d1"})["run_id"]

    graph = site.get(f"/api/v1/runs/{clean}/graph").json()
    found = {node["job_id"]: node for node in graph["nodes"]}
    assert set(found) == {"load", "clean", "report"}
    assert edges(graph) == {("load", "clean", "dependency"), ("clean", "report", "dependency")}
    assert [run["run_id"] for run in found["load"]["runs"]] == [load]
    assert found["load"]["runs"][0]["state"] == "running"
    assert [run["run_id"] for run in found["report"]["runs"]] == [report]
    assert found["clean"]["args"] == {"date": "d1"}

    down = site.get(f"/api/v1/runs/{load}/graph").json()
    ids = {run["run_id"] for node in down["nodes"] for run in node["runs"]}
    assert ids == {load, clean, fixed, report} and other not in ids
    up = site.get(f"/api/v1/runs/{report}/graph").json()
    named = {node["job_id"]: [run["run_id"] for run in node["runs"]] for node in up["nodes"]}
    assert named == {"report": [report], "clean": [clean], "load": [load], "prices": []}
    assert {tuple(edge) for edge in up["edges"]} >= {
        ('prices\n{"date":"d1"}', 'report\n{"date":"d1"}', "dependency")
    }
    site.post(f"/api/v1/runs/{load}/stop")


def test_runs_made_by_actions_are_named_on_both_sides(site: Installation) -> None:
    with site.feed.subscribe() as events:
        maker = site.make("maker")["run_id"]
        while not any(isinstance(event, Save) and event.run.job_id == "alone" for event in events.get(30)):
            pass
    (made,) = site.get(f"/api/v1/runs/{maker}/graph").json()["made"]
    assert made["job_id"] == "alone"
    assert site.get(f"/api/v1/runs/{made['run_id']}/graph").json()["made_by"] == maker


def test_what_waits_is_found_however_many_runs_came_after_it(site: Installation) -> None:
    site.make("load", args={"date": "old"})
    old = site.make("clean", args={"date": "old"})["run_id"]
    load = next(iter(site.get("/api/v1/search/runs?q=load+date=old").json()["runs"]))
    site.post("/api/v1/runs?count=300", {"job_id": "clean", "args": {"date": "new"}})
    graph = site.get(f"/api/v1/runs/{load}/graph").json()
    assert old in {run["run_id"] for node in graph["nodes"] for run in node["runs"]}
    site.post(f"/api/v1/runs/{load}/stop")
