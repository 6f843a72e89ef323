"""GET /metrics, read by Prometheus's own parser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import AGENT, PROGRAM, SLOW, Installation
from prometheus_client.parser import text_string_to_metric_families

from apsislib import metrics
from apsislib.metrics import AD_HOC, OTHERS, Exposition, Tally
from apsislib.runs import Run
from apsislib.states import State
from apsislib.times import format_time

ODD = 'odd "quoted" back\\slash'
JOBS = {
    "noop": PROGRAM,
    "slow": SLOW,
    "fails": "program: {type: no-op, success: false}\n",
    "waits": "condition: {type: const, value: false}\n" + PROGRAM,
    "later": "schedule: {type: interval, interval: 1h}\n" + PROGRAM,
}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Installation]:
    site = Installation(tmp_path, JOBS, connections=lambda: {"c1": AGENT}).start()
    yield site
    site.stop()


def parsed(text: str) -> Samples:
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def scraped(site: Installation) -> Samples:
    answer = site.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.text)


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def test_a_scrape_shows_runs_agents_engine_and_process(site: Installation) -> None:
    site.make("slow")
    site.make("waits")
    site.make("noop", times={"schedule": "2101-01-01T00:00:00Z"})
    found = scraped(site)
    assert of(found, "apsis_info", version="9.8.7") == 1
    assert of(found, "apsis_healthy") == 1
    assert of(found, "apsis_jobs") == len(JOBS)
    assert of(found, "apsis_runs", state="running") == 1
    assert of(found, "apsis_runs", state="waiting") == 1
    assert of(found, "apsis_runs", state="scheduled") == 1
    assert (of(found, "apsis_runs", state="expected") or 0) >= 1
    assert of(found, "apsis_agents", group="default", state="active") == 1
    assert (of(found, "apsis_commits_total") or 0) > 0
    assert 0 < (of(found, "apsis_commit_seconds_max") or 0) < 60
    assert (of(found, "apsis_lock_wait_seconds_sum") or 0) > 0
    assert of(found, "apsis_commit_seconds_count") == of(found, "apsis_commits_total")
    assert of(found, "apsis_writer_braked") == 0
    assert (of(found, "process_resident_memory_bytes") or 0) > 1e7
    assert (of(found, "process_open_fds") or 0) > 3
    assert (of(found, "apsis_database_bytes") or 0) >= 4096


def test_outcomes_are_counted_by_job_from_zero_on(site: Installation) -> None:
    assert of(scraped(site), "apsis_runs_finished_total", job="fails", state="failure") == 0
    first = site.make("noop")
    site.make("noop")
    site.make("fails")
    site.post(f"/api/v1/runs/{first['run_id']}/mark/failure")
    site.make(job={"program": {"type": "no-op"}})
    found = scraped(site)
    assert of(found, "apsis_runs_finished_total", job="noop", state="success") == 2
    assert of(found, "apsis_runs_finished_total", job="noop", state="failure") == 0  # a mark is no end
    assert of(found, "apsis_runs_finished_total", job="fails", state="failure") == 1
    assert of(found, "apsis_runs_finished_total", job=AD_HOC, state="success") == 1
    now = site.clock.wall()
    assert 0 <= now - (of(found, "apsis_job_last_success_timestamp_seconds", job="noop") or 0) < 120
    assert of(found, "apsis_job_last_success_timestamp_seconds", job="fails") is None


def test_the_last_success_is_known_after_a_restart(tmp_path: Path) -> None:
    site = Installation(tmp_path, JOBS).start()
    site.make("noop")
    before = of(scraped(site), "apsis_job_last_success_timestamp_seconds", job="noop")
    site.make("fails")
    site.stop()
    (tmp_path / "jobs").rename(tmp_path / "old")
    site = Installation(tmp_path, JOBS).start()
    try:
        found = scraped(site)
        assert before is not None
        assert of(found, "apsis_job_last_success_timestamp_seconds", job="noop") == pytest.approx(before)
        assert of(found, "apsis_job_last_success_timestamp_seconds", job="fails") is None
        assert of(found, "apsis_runs_finished_total", job="noop", state="success") == 0
    finally:
        site.stop()


def test_scheduled_runs_are_counted_by_how_late_they_begin(site: Installation) -> None:
    site.make("noop")  # for at once: it cannot be late
    run = site.make("noop", times={"schedule": format_time(site.clock.wall() + 0.3)})
    with site.feed.subscribe(run["run_id"]) as events:
        while site.state(run["run_id"]) != "success":
            assert events.get(60)
    found = scraped(site)
    assert of(found, "apsis_start_lateness_seconds_count") == 1
    assert of(found, "apsis_start_lateness_seconds_bucket", le="+Inf") == 1
    assert 0 <= (of(found, "apsis_start_lateness_seconds_sum") or 0) < 60


def ended(job_id: str, state: State = State.SUCCESS) -> Run:
    return Run("r1", job_id, {}, state, 5.0, {"schedule": 1.0, state.value: 5.0}, rev=3)


def test_labels_are_escaped_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_JOBS", 3)
    tally = Tally()
    assert tally.know([ODD, "b\nc"]) == [ODD, "b\nc"]
    tally.saw([ended(name) for name in ("d", "e", "f")])
    tally.saw([ended("e", State.ERROR)])
    text = Exposition()
    tally.write(text)
    found = parsed(text.encode().decode())
    assert of(found, "apsis_runs_finished_total", job=ODD, state="success") == 0
    assert of(found, "apsis_runs_finished_total", job="b\nc", state="success") == 0
    assert of(found, "apsis_runs_finished_total", job="d", state="success") == 1
    assert of(found, "apsis_runs_finished_total", job=OTHERS, state="success") == 2
    assert of(found, "apsis_runs_finished_total", job=OTHERS, state="error") == 1
    assert tally.know(["x"]) == []  # it has no series of its own


def test_lateness_falls_into_the_bucket_that_bounds_it() -> None:
    tally = Tally()
    for late in (0.0, 0.25, 0.5, 7200.0):
        times = {"scheduled": 50.0, "schedule": 100.0, "starting": 100.0 + late}
        tally.saw([Run("r1", "j", {}, State.STARTING, 100.0 + late, times, rev=1)])
    early = Run("r2", "j", {}, State.STARTING, 60.0, {"scheduled": 50.0, "schedule": 100.0}, rev=1)
    tally.saw([early])  # started by hand
    text = Exposition()
    tally.write(text)
    found = parsed(text.encode().decode())
    assert of(found, "apsis_start_lateness_seconds_bucket", le="0.25") == 2
    assert of(found, "apsis_start_lateness_seconds_bucket", le="0.5") == 3
    assert of(found, "apsis_start_lateness_seconds_bucket", le="3600.0") == 3
    assert of(found, "apsis_start_lateness_seconds_bucket", le="+Inf") == 4
    assert of(found, "apsis_start_lateness_seconds_sum") == pytest.approx(7200.75)
