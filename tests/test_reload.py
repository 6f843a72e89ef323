"""Reloading jobs on a whole server: read by another process, and taken as a whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
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
