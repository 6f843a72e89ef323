"""What the pages of jobs are made of: the list of jobs in short, and how their runs ended."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from installation import PROGRAM, SLOW, Installation

from apsislib.runs import Run, Save
from apsislib.states import State

DAY = 86400.0
TEXT = """metadata:
  labels: [etl, Nightly]
  description: |
    Loads *a day*
    of trades.

    More of Straße.
"""
JOBS = {
    "etl/load": TEXT + "params: [date]\n" + PROGRAM,
    "etl/often": "schedule: {type: interval, interval: 600}\n" + PROGRAM,
    "etl/rare": "schedule: {type: explicit, times: ['2131-05-06T07:00:00Z', '2130-05-06T07:00:00Z']}\n"
    + PROGRAM,
    "etl/off": "schedule: {type: interval, interval: 600, enabled: false}\n" + PROGRAM,
    "weekly": "schedule: {type: daily, tz: Europe/London, calendar: Mon-Fri, daytime: '06:30:00'}\n" + SLOW,
    "ahead": PROGRAM,
    "fails": "params: [n]\nprogram: {type: no-op, success: false}\n",
    "many": PROGRAM,
}


def get(site: Installation, path: str, **query: Any) -> Any:
    answer = site.get(f"/api/v1/{path}?{urlencode(query, doseq=True)}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: Any) -> list[str]:
    return [job["job_id"] for job in answer["jobs"]]


def past(site: Installation, job_id: str, start: int, ends: list[tuple[State, float, float]]) -> None:
    """Finished runs on disk: (state, when they were due, seconds that they took)."""
    runs = [
        Run(
            f"r{start + n}",
            job_id,
            {"n": str(n % 2)},
            state,
            due + took,
            {"schedule": due, "running": due, state.value: due + took},
            meta={"job": {"labels": []}},
            rev=3,
        )
        for n, (state, due, took) in enumerate(ends)
    ]
    site.store.wait(site.store.put([Save(run) for run in runs]))


def test_jobs_are_listed_in_short_with_their_schedules_in_words(site: Installation) -> None:
    found = {job["job_id"]: job for job in get(site, "search/jobs")["jobs"]}
    assert list(found) == sorted(JOBS)
    assert found["etl/load"] == {
        "job_id": "etl/load",
        "params": ["date"],
        "labels": ["etl", "Nightly"],
        "description": "Loads *a day* of trades.",
        "schedule": [],
        "program": {"type": "no-op", "str": "no-op"},
    }
    assert found["weekly"]["schedule"] == [{"words": "weekdays at 06:30 London time", "enabled": True}]
    assert found["etl/off"]["schedule"] == [{"words": "every 10 min", "enabled": False}]
    assert get(site, "jobs/weekly")["schedule"][0]["words"] == "weekdays at 06:30 London time"


@pytest.mark.parametrize(
    "words, found",
    [
        ("LOAD", ["etl/load"]),
        ("etl nightly", ["etl/load"]),
        ("more strasse", ["etl/load"]),  # deep in the description, and as case is folded
        ("london weekdays", ["weekly"]),
        ("date trades", ["etl/load"]),
        ("no-op 600", ["weekly"]),
        ("nothing", []),
    ],
)
def test_jobs_are_found_by_what_is_said_of_them(site: Installation, words: str, found: list[str]) -> None:
    assert ids(get(site, "search/jobs", q=words)) == found


def test_a_copy_of_the_list_stays_good_until_a_reload(site: Installation) -> None:
    first = site.get("/api/v1/search/jobs")
    tag = first.headers["etag"]
    assert site.get("/api/v1/search/jobs", headers={"if-none-match": tag}).status_code == 304
    site.write("brand/new", PROGRAM)
    site.post("/api/control/reload_jobs")
    again = site.get("/api/v1/search/jobs", headers={"if-none-match": tag})
    assert again.status_code == 200 and "brand/new" in ids(again.json())
    (site.job_dir / "brand/new.yaml").unlink()
    site.post("/api/control/reload_jobs")
    assert site.get("/api/v1/search/jobs", headers={"if-none-match": tag}).status_code == 304


def test_the_overview_has_the_last_and_the_next_run_of_every_job(site: Installation) -> None:
    run_id = site.make("fails", args={"n": "9"})["run_id"]
    ahead = site.make("ahead", times={"schedule": "2131-01-01T00:00:00Z"})["run_id"]
    jobs = get(site, "overview/jobs")["jobs"]
    assert set(jobs) == set(JOBS)
    last = jobs["fails"]["last"]
    assert (last["run_id"], last["state"], jobs["fails"]["next"]) == (run_id, "failure", None)
    assert jobs["ahead"]["last"] is None  # what is yet to come is no last run
    coming = jobs["etl/often"]["next"]
    expected = get(site, "search/runs", job_id="etl/often", order="schedule", limit=1)["runs"]
    assert expected[coming["run_id"]]["times"]["schedule"] == coming["time"]
    # Beyond the horizon there is no run yet, but an instant.
    assert jobs["etl/rare"]["next"] == {"run_id": None, "time": "2130-05-06T07:00:00.000+00:00"}
    assert jobs["etl/off"]["next"] is None
    site.post(f"/api/v1/runs/{ahead}/skip")


def test_history_tells_outcome_and_duration_page_by_page(site: Installation) -> None:
    base = 1_900_000_000.0
    ends = [(State.SUCCESS if n % 3 else State.FAILURE, base + 60 * n, 10.0 + n) for n in range(50)]
    past(site, "many", 100_000, ends)
    whole = get(site, "history", job_id="many", limit=1000)
    assert [run[0] for run in whole["runs"]] == [f"r{100_000 + n}" for n in reversed(range(50))]
    assert whole["next"] is None
    assert whole["runs"][-1] == [
        "r100000",
        "failure",
        *["2030-03-17T17:46:40.000+00:00"] * 2,
        10.0,
    ]
    pages, before = [], None
    while True:
        page = get(site, "history", job_id="many", limit=20, **({"before": before} if before else {}))
        pages += page["runs"]
        before = page["next"]
        if before is None:
            break
    assert pages == whole["runs"]
    odd = get(site, "history", job_id="many", args=json.dumps({"n": "1"}), limit=10)
    assert [run[0] for run in odd["runs"]] == [f"r{100_000 + n}" for n in range(49, 29, -2)]
    assert get(site, "history", job_id="many", args="{}")["runs"] == []
    recent = get(site, "recent", job_id=["many", "no such job"])["jobs"]
    assert recent == {"many": whole["runs"][:20], "no such job": []}


def test_a_row_that_cannot_be_read_does_not_end_the_history(site: Installation) -> None:
    past(site, "torn", 300_000, [(State.SUCCESS, 1_900_000_000.0 + n, 1.0) for n in range(30)])
    with closing(sqlite3.connect(site.store.path)) as db, db:
        db.execute("UPDATE runs SET times = '{' WHERE number = 300027")
    found, before = [], {}
    while before != {"before": None}:
        page = get(site, "history", job_id="torn", limit=5, **before)
        found += [run[0] for run in page["runs"]]
        before = {"before": page["next"]}
    assert found == [f"r{300_000 + n}" for n in reversed(range(30)) if n != 27]


def test_a_clock_that_was_wrong_for_one_run_hides_no_others(site: Installation) -> None:
    now = site.clock.wall()
    past(site, "no rtc", 400_000, [(State.SUCCESS, now - 3600 + n, 1.0) for n in range(10)])
    with closing(sqlite3.connect(site.store.path)) as db, db:
        db.execute("UPDATE runs SET timestamp = 5.0, schedule = 4.0 WHERE number = 400008")
    found = get(site, "days", job_id="no rtc")
    assert sum(counts["success"] for counts in found["days"].values()) == 9 and found["next"] is None


def test_a_mark_changes_the_outcome_but_not_the_duration(site: Installation) -> None:
    run_id = site.make("fails", args={"n": "1"})["run_id"]
    before = get(site, "history", job_id="fails", limit=1)["runs"][0]
    site.post(f"/api/v1/runs/{run_id}/mark/success")
    after = get(site, "history", job_id="fails", limit=1)["runs"][0]
    assert (before[0], before[1], after[1]) == (run_id, "failure", "success")
    assert before[2:] == after[2:]
    unbound = site.make("etl/load")["run_id"]  # for want of an arg
    assert get(site, "history", job_id="etl/load", limit=1)["runs"][0][::4] == [unbound, None]


def test_outcomes_are_counted_by_the_dates_of_a_zone_piece_by_piece(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon = datetime.combine(datetime.now(UTC).date(), datetime.min.time(), UTC).timestamp() - DAY / 2
    ends = [
        (State.SUCCESS, noon - DAY * day + hour * 3600, 1.0) for day in range(40, 0, -1) for hour in (0, 11)
    ]
    ends.append((State.ERROR, noon - DAY, 2.0))
    past(site, "etl/rare", 200_000, ends)
    monkeypatch.setattr("apsislib.api.history.WALK", 7)

    def all_days(tz: str, **query: str) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        before, pieces = None, 0
        while True:
            more = {"before": before} if before else {}
            answer = get(site, "days", job_id="etl/rare", tz=tz, **query, **more)
            for day, counts in answer["days"].items():
                for state, number in counts.items():
                    mine = found.setdefault(day, {})
                    mine[state] = mine.get(state, 0) + number
            before, pieces = answer["next"], pieces + 1
            if before is None:
                assert pieces > 1
                return found

    # 12:00 and 23:00 UTC: in Tokyo the latter is the next day.
    utc, tokyo = all_days("UTC"), all_days("Asia/Tokyo")
    day = datetime.fromtimestamp(noon - DAY, UTC).date()
    assert utc[day.isoformat()] == {"success": 2, "error": 1}
    del utc[day.isoformat()]
    assert len(utc) == 39 and all(counts == {"success": 2} for counts in utc.values())
    assert tokyo[(day + timedelta(days=1)).isoformat()] == {"success": 1}
    since = (date.fromisoformat(day.isoformat()) - timedelta(days=4)).isoformat()
    assert min(all_days("UTC", since=since)) == since
    # Dates that a zone left out, and two years at most.
    monkeypatch.undo()
    assert get(site, "days", job_id="etl/rare", tz="Pacific/Apia", since="2011-12-30")["since"] > "2020"


@pytest.mark.parametrize(
    "path",
    [
        "recent",
        "recent?" + "&".join(f"job_id={n}" for n in range(201)),
        "history",
        "history?job_id=many&limit=1001",
        "history?job_id=many&before=7",
        "history?job_id=many&args=[]",
        "history?job_id=many&args={",
        'history?job_id=many&args={"n":1}',
        "days?tz=UTC",
        "days?job_id=many&tz=Atlantis",
        "days?job_id=many&since=yesterday",
        "days?job_id=many&since=2031-02-30",
        "history?job_id=a&job_id=b",
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(site: Installation, path: str) -> None:
    answer = site.get(f"/api/v1/{path}")
    assert answer.status_code == 400 and len(answer.json()["error"]) > 8, answer.text


def test_no_query_of_history_looks_at_more_than_its_index_finds(site: Installation, tmp_path: Path) -> None:
    """Of each query the plan: a search by index, and never a scan of the runs or a sort."""
    from apsislib.states import FINISHED
    from apsislib.store import history

    plans: list[str] = []

    def query(sql: str, values: Any = ()) -> list[Any]:
        with site.store.read() as reader:
            plans.extend(row[3] for row in reader._all(f"EXPLAIN QUERY PLAN {sql}", values))
            return []

    history.past(query, "many", None, 10, 10)
    history.past(query, "many", "{}", 10, 10)
    list(history.latest(query, ["many"]))
    history.outcomes(query, "many", 0.0, 10, 10)
    about_runs = [plan for plan in plans if "runs" in plan]
    assert len(about_runs) == 4 + len(FINISHED)
    assert all(plan.startswith("SEARCH runs USING") for plan in about_runs), plans
    assert not any("TEMP B-TREE" in plan for plan in plans)
