"""Reloading jobs on a whole server: read by another process, and taken as a whole or not at all."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from installation import Installation
from server import ENDS, Server

MODULE = """
import os
from pathlib import Path

print("imported")


class Witness:
    @classmethod
    def from_config(cls, config):
        Path(config["path"]).write_text(str(os.getpid()))
        return cls()

    def run(self, run_id, cfg, report):
        report.output("seen\\n")
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "witness.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    with Server(tmp_path, {"old": "program: {type: no-op}\n"}).running() as server:
        yield server


def reload(server: Server, **query: str) -> Any:
    url = server.url.removesuffix("/v1") + "/control/reload_jobs"
    return requests.post(url, params=query, timeout=60)


def test_jobs_are_parsed_by_another_process_and_run_by_the_server(server: Server, tmp_path: Path) -> None:
    where = tmp_path / "pid"
    server.write("own", f"program: {{type: witness.Witness, path: {where}}}\n")
    server.write(
        "timed",
        "schedule: {type: daily, tz: UTC, daytime: '03:00:00', calendar: Mon-Fri}\n"
        "condition: {type: max_running, count: 1}\nprogram: {type: procstar-shell, command: echo hello}\n",
    )
    answer = reload(server)
    assert answer.status_code == 200, answer.text
    assert sorted(answer.json()["added"]) == ["own", "timed"]
    assert server.process is not None
    assert int(where.read_text()) not in (server.process.pid, os.getpid())
    for job_id, output in (("own", b"seen\n"), ("timed", b"hello\n")):
        run_id = server.schedule({"job_id": job_id})
        assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
        assert server.output(run_id) == output
    again = reload(server).json()
    assert not again["added"] and not again["changed"] and not again["removed"]


def test_one_wrong_file_leaves_all_jobs_as_they_were(server: Server) -> None:
    server.write("new", "program: {type: no-op}\n")
    server.write("wrong", "params: [a]\nprogram: {type: no-op}\nshedule: {}\n")
    answer = reload(server)
    assert answer.status_code == 400
    ((job, message),) = answer.json()["job_errors"]
    assert job == "wrong" and "shedule" in message
    assert [job["job_id"] for job in server.get("/jobs")] == ["old"]
    (server.jobs / "wrong.yaml").unlink()
    assert reload(server, dry_run="true").json()["added"] == ["new"]
    assert [job["job_id"] for job in server.get("/jobs")] == ["old"]
    assert reload(server).status_code == 200
    assert sorted(job["job_id"] for job in server.get("/jobs")) == ["new", "old"]


def test_what_lies_in_the_working_directory_is_not_taken_for_a_part_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("apsis.py", "programs.py", "apsislib.py", "yaml.py"):
        (tmp_path / name).write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with Server(tmp_path, {"echo": "program: {type: procstar, argv: [/bin/echo, x]}\n"}).running() as server:
        assert reload(server).status_code == 200
        assert server.until(server.schedule({"job_id": "echo"}), *ENDS)["state"] == "success"


def test_two_reloads_at_once_leave_one_set_of_jobs(server: Server) -> None:
    server.write("new", "program: {type: no-op}\n")
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(reload(server).status_code)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert server.until(server.schedule({"job_id": "new"}), *ENDS)["state"] == "success"


# -- what becomes of future runs -------------------------------------------------------------------

HOURLY = "params: [time]\nschedule: {type: interval, interval: 3600}\nprogram: {type: no-op}\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Installation]:
    # The horizon of an Installation is an hour: one run of HOURLY.
    site = Installation(tmp_path, {"kept": HOURLY, "gone": HOURLY, "new": "program: {type: no-op}\n"}).start()
    while len(site.driver.expected()) < 2:
        time.sleep(0.01)  # nobody is told that all are made
    yield site
    site.stop()


def listed(answer: Any) -> dict[str, list[str]]:
    return {name: [run["job_id"] for run in found["runs"]] for name, found in answer["runs"].items()}


def test_a_dry_run_says_which_future_runs_appear_disappear_or_change(site: Installation) -> None:
    (site.job_dir / "gone.yaml").unlink()
    site.write("new", HOURLY)
    site.write("kept", HOURLY + "condition: {type: max_running}\n")
    ids = {run.run_id for run in site.driver.expected()}
    answer = site.post("/api/control/reload_jobs", params={"dry_run": "true"}).json()
    assert listed(answer) == {"appear": ["new"], "disappear": ["gone"], "change": ["kept"]}
    assert {run.run_id for run in site.driver.expected()} == ids
    again = site.post("/api/control/reload_jobs").json()
    assert again == answer | {"dry_run": False}


def test_another_schedule_leaves_the_runs_of_the_first_as_they_are(site: Installation) -> None:
    two = HOURLY.replace("{type: interval, interval: 3600}", "[{type: interval, interval: 3600}, {}]")
    site.write("kept", two.replace("{}]", "{type: interval, interval: 1800}]"))
    found = listed(site.post("/api/control/reload_jobs", params={"dry_run": "true"}).json())
    assert found["disappear"] == found["change"] == [] and set(found["appear"]) == {"kept"}
    stop = "schedule: {start: {type: interval, interval: 3600}, stop: {type: duration, duration: 600}}\n"
    site.write("kept", HOURLY.replace("schedule: {type: interval, interval: 3600}\n", stop))
    found = listed(site.post("/api/control/reload_jobs", params={"dry_run": "true"}).json())
    assert found == {"appear": [], "disappear": [], "change": ["kept"]}


def test_skipped_and_started_runs_are_not_said_to_appear_nor_do_they(site: Installation) -> None:
    skipped, started = site.driver.expected("kept")[0], site.driver.expected("gone")[0]
    assert site.post(f"/api/v1/runs/{skipped.run_id}/skip").status_code == 200
    assert site.post(f"/api/v1/runs/{started.run_id}/start").status_code == 200
    for job_id in ("kept", "gone"):
        site.write(job_id, HOURLY + "condition: {type: max_running}\n")
    answer = site.post("/api/control/reload_jobs").json()
    assert answer["changed"] == ["gone", "kept"]
    assert listed(answer) == {"appear": [], "disappear": [], "change": []}
    when = {skipped.times["schedule"], started.times["schedule"]}
    assert not [run for run in site.driver.expected() if run.times["schedule"] in when]


def test_the_command_line_lists_future_runs(server: Server) -> None:
    server.write("often", "schedule: {type: interval, interval: 600}\nprogram: {type: no-op}\n")
    text = server.command("reload-jobs", "--dry-run").stdout
    assert re.search(r"Future runs new: 14[34]\n- \d{4}-\d\d-\d\d \d\d:\d0:00 often\n", text), text
    assert "Dry run; no changes made." in text


# -- files that change -----------------------------------------------------------------------------


def until(holds: Callable[[], object], tell: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, tell()
        time.sleep(0.02)


def test_a_server_that_watches_reloads_changed_files_and_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path, {"old": "program: {type: no-op}\n"}, "reload: {watch: true}\n")

    def jobs() -> list[str]:
        return [job["job_id"] for job in server.get("/jobs")]

    with server.running():
        server.write("group/new", "program: {type: no-op}\n")
        until(lambda: jobs() == ["group/new", "old"], server.log)
        until(lambda: "job files have changed: added: group/new" in server.log(), server.log)
        server.write("group/new", "program: {type: nonsense}\n")
        until(lambda: "the jobs stay as they are" in server.log(), server.log)
        assert "unknown program type: nonsense" in server.log() and jobs() == ["group/new", "old"]
        (server.jobs / "group" / "new.yaml").unlink()
        until(lambda: jobs() == ["old"], server.log)
