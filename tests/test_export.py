"""Runs as files, and completions."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from installation import PROGRAM, Installation, every

from apsislib.api import export as exporting
from apsislib.errors import Unavailable
from apsislib.runs import Run, Save
from apsislib.states import State

FORMULA = '=HYPERLINK("http://x","y")'
JOBS = {
    "etl/load": "params: [date]\nmetadata: {labels: [etl, nightly]}\n" + PROGRAM,
    "etl/late-load": "params: [day]\n" + PROGRAM,
    "reports/etl": "params: [date]\nmetadata: {labels: [night-watch]}\n" + PROGRAM,
}
COUNT = 1234


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    # Runs that are made ahead are not exported.
    jobs = {**JOBS, "daily": every(3600) + PROGRAM}
    site = Installation(tmp_path_factory.mktemp("site"), jobs).start()
    assert site.driver.expected("daily")
    saves = []
    for n in range(COUNT):
        state = State.FAILURE if n % 10 == 0 else State.SUCCESS
        times = {"schedule": 1.9e9 + n, "running": 1.9e9 + n + 0.5, state.value: 1.9e9 + n + 2.25}
        job_id = FORMULA if n == 1 else "etl/load"
        meta = {"job": {"labels": ["etl"]}, **({"reasons": {"late": "the disk"}} if n == 2 else {})}
        saves.append(
            Save(Run(f"r{5000 + n}", job_id, {"date": f"d{n}"}, state, 1.9e9 + n + 2.25, times, meta=meta))
        )
    site.store.wait(site.store.put(saves), 20)
    yield site
    site.stop()


def export(site: Installation, **query: Any) -> requests.Response:
    answer = site.get("/api/v1/export/runs", params=query)
    assert answer.status_code == 200, answer.text
    return answer


def test_all_runs_are_exported_as_json_in_the_order_of_their_latest_transitions(site: Installation) -> None:
    answer = export(site)
    assert 'attachment; filename="runs-' in answer.headers["content-disposition"]
    assert "sandbox" in answer.headers["content-security-policy"]
    found = answer.json()
    assert [run["run_id"] for run in found] == [f"r{5000 + n}" for n in reversed(range(COUNT))]
    assert found[-1] == site.get("/api/v1/search/runs?q=date==d0").json()["runs"]["r5000"]
    assert [run["run_id"] for run in export(site, order="earliest", q="date==d7").json()] == ["r5007"]
    assert export(site, q="nothing-like-it").json() == []


def test_the_table_has_a_row_for_each_run_and_no_formulas(site: Installation) -> None:
    answer = export(site, format="csv", order="earliest")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == COUNT
    assert rows[2] == {
        "run_id": "r5002",
        "job_id": "etl/load",
        "state": "success",
        "schedule": "2030-03-17T17:46:42.000+00:00",
        "start": "2030-03-17T17:46:42.500+00:00",
        "end": "2030-03-17T17:46:44.250+00:00",
        "elapsed": "1.750",
        "args": '{"date":"d2"}',
        "labels": "etl",
        "alarms": "late",
    }
    assert rows[1]["job_id"] == "'" + FORMULA
    failed = list(csv.DictReader(io.StringIO(export(site, format="csv", state="failure").text)))
    assert len(failed) == 124 and {row["state"] for row in failed} == {"failure"}


def test_only_a_few_files_are_made_at_once_and_a_client_that_leaves_frees_its_place(
    site: Installation,
) -> None:
    parts = site.server.parts
    with parts.files.take(), parts.files.take(), parts.files.take():
        refused = site.get("/api/v1/export/runs")
        assert refused.status_code == 503 and "try again" in refused.json()["error"]
    with site.http.get(site.url + "/api/v1/export/runs", stream=True, timeout=60) as answer:
        next(answer.iter_content(1))
    site.http.head(site.url + "/api/v1/export/runs", timeout=60)
    ended = threading.Event()
    while parts.files._taken:
        ended.wait(0.01)
    assert len(export(site).json()) == COUNT


def test_a_client_that_knows_no_chunks_gets_the_file_as_it_is_or_a_reset(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = b"GET /api/v1/export/runs?format=csv&order=earliest HTTP/1.0\r\n\r\n"
    head, _, body = site.raw(ask).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head and b"connection: close" in head
    assert body == export(site, format="csv", order="earliest").content

    monkeypatch.setattr(exporting, "PAGE", 100)
    read, count = site.store.read, iter(range(1000))

    def fails() -> Any:
        if next(count) == 3:
            raise Unavailable("the disk is gone")
        return read()

    monkeypatch.setattr(site.store, "read", fails)
    with pytest.raises(ConnectionResetError):
        site.raw(ask)


def test_files_are_as_the_search_and_errors_are_said_before(site: Installation) -> None:
    for query, words in (
        ("format=xls", "format must be csv or json"),
        ("order=newest", "order must be latest or earliest"),
        ("q=state:gone", "not a state"),
    ):
        answer = site.get(f"/api/v1/export/runs?{query}")
        assert answer.status_code == 400 and words in answer.json()["error"]
    refused = site.get("/api/v1/search/runs?order=latest&cursor=r12")
    assert refused.status_code == 400 and "cursor must be" in refused.json()["error"]


def test_pages_by_latest_transition_neither_repeat_nor_leave_out(site: Installation) -> None:
    found: list[str] = []
    cursor = None
    while True:
        query = {"order": "latest", "limit": 500, **({"cursor": cursor} if cursor else {})}
        answer = site.get("/api/v1/search/runs", params=query).json()
        found += answer["runs"]
        cursor = answer["next"]
        if cursor is None:
            break
    assert found == [f"r{5000 + n}" for n in reversed(range(COUNT))]


@pytest.mark.parametrize("order", ["latest", "earliest"])
def test_a_run_that_changes_while_the_file_is_made_is_in_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(exporting, "PAGE", 2)
    site = Installation(tmp_path, JOBS).start()
    now = site.clock.wall()

    def save(number: int, state: State, time: float) -> Save:
        return Save(Run(f"r{number}", "etl/load", {}, state, time, {state.value: time}))

    try:
        site.store.wait(site.store.put([save(n, State.RUNNING, now - 9000 + n) for n in range(1, 11)]), 20)
        pages = exporting._pages(site.server.parts, [], order == "earliest")
        found = [run.number for run in next(pages)]
        # One that was sent, and one that was not, end meanwhile.
        site.store.wait(site.store.put([save(n, State.SUCCESS, site.clock.wall()) for n in (2, 9, 5)]), 20)
        found += [run.number for page in pages for run in page]
        assert sorted(found) == list(range(1, 11))
    finally:
        site.stop()


def test_words_are_completed_from_the_jobs(site: Installation) -> None:
    def complete(text: str) -> Any:
        return site.get("/api/v1/complete", params={"q": text}).json()

    assert complete("etl") == {
        "jobs": ["etl/load", "etl/late-load", "reports/etl"],
        "labels": ["etl"],
        "params": [],
    }
    assert complete("NIGHT") == {"jobs": [], "labels": ["nightly", "night-watch"], "params": []}
    assert complete("da") == {"jobs": ["daily"], "labels": [], "params": ["day", "date"]}
    assert len(complete("")["jobs"]) == 4
    assert site.get("/api/v1/complete", params={"q": "x" * 201}).status_code == 400
    json.dumps(complete('"'))
