"""A real database of Apsis 2.4.3, brought over and served: every table, every run, log and output.

tests/apsis-2.4.3 was made by Apsis 2.4.3; the run r17301 was running on an agent when it was stopped.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import brotli
import pytest
import requests
from doubles import killed
from doubles import result as going
from raw_agent import RawAgent
from server import ROOT, Server

REAL = ROOT / "tests" / "apsis-2.4.3"
RUNNING, WAITING, SCHEDULED = "r17301", "r17297", "r17298"
CONN_ID, PROC_ID = "6e0c4f5e-2b0c-4b27-9a52-7f6d0a6c3f11", "0d3f3c8e-8a3e-4a39-9d0b-54f5a2c7a001"
CONFIG = """job_dir: jobs
database: {path: new.db}
procstar: {agent: {enable: true, server: {host: 127.0.0.1, port: PORT, access_token: ""}}}
"""


def rows(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(sql).fetchall()


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The directory of a server whose database has been imported; it has not been started."""
    directory = tmp_path_factory.mktemp("moved")
    shutil.copytree(REAL, directory, dirs_exist_ok=True)
    agents = Server(directory).port
    (directory / "apsis.yaml").write_text(CONFIG.replace("PORT", str(agents)))
    server = Server(directory)
    before = (directory / "apsis.db").read_bytes()
    said = server.command("import-db", str(directory / "apsis.db"), "--config", str(directory / "apsis.yaml"))
    assert (said.returncode, said.stderr) == (0, "")
    lines = said.stdout.splitlines()
    assert lines[0] == "27 runs: 3 error, 4 failure, 1 running, 1 scheduled, 1 skipped, 16 success, 1 waiting"
    assert lines[1:4] == ["114 lines of run logs", "4 outputs, 601,153 bytes", "1 ad hoc jobs"]
    assert lines[-1] == f"imported into {directory / 'new.db'}"
    assert not any("not carried" in line or "with a change" in line for line in lines)
    assert (directory / "apsis.db").read_bytes() == before, "the old database was changed"
    return server


def old_and_new(server: Server) -> tuple[Path, Path]:
    return REAL / "apsis.db", server.directory / "new.db"


def test_every_row_of_every_table_is_there(moved: Server) -> None:
    old, new = old_and_new(moved)
    seconds = "strftime('%s', substr(value, 1, 19))"
    fraction = (
        "round(CAST('0' || substr(substr(value, 20), 1, instr(substr(value, 20), '+') - 1) AS REAL), 5)"
    )
    was = (
        f"SELECT rowid, key, CAST({seconds} AS INTEGER), {fraction} FROM runs, json_each(times) ORDER BY 1, 2"
    )
    is_ = "SELECT number, key, CAST(value AS INTEGER), round(value - CAST(value AS INTEGER), 5)"
    is_ += " FROM runs, json_each(times) ORDER BY 1, 2"
    for table, before, after in (
        (
            "runs",
            "SELECT rowid, job_id, args, state, timestamp, json(meta) FROM runs ORDER BY 1",
            "SELECT number, job_id, args, state, timestamp, json(meta) FROM runs ORDER BY 1",
        ),
        ("times", was, is_),
        (
            "programs",
            "SELECT rowid, json(program) FROM runs ORDER BY 1",
            "SELECT number, json_remove(program, '$.str') FROM runs ORDER BY 1",
        ),
        (
            "conditions",
            "SELECT rowid, coalesce(conds, '[]') FROM runs ORDER BY 1",
            "SELECT number, coalesce((SELECT json_group_array(json_remove(value, '$.str'))"
            " FROM json_each(conds)), '[]') FROM runs ORDER BY 1",
        ),
        (
            "run_history",
            "SELECT CAST(substr(run_id, 2) AS INTEGER), timestamp, message FROM run_history"
            " ORDER BY 1, rowid",
            "SELECT number, time, message FROM log ORDER BY number, seq",
        ),
        (
            "output",
            "SELECT run_id, output_id, name, content_type, length FROM output ORDER BY 1",
            "SELECT 'r' || number, output_id, name, content_type, length FROM outputs ORDER BY 1",
        ),
        ("jobs", "SELECT job_id, json(job) FROM jobs", "SELECT job_id, json(job) FROM jobs"),
        (
            "next_run_id",
            "SELECT number FROM next_run_id",
            "SELECT value FROM meta WHERE name = 'next_run'",
        ),
    ):
        found, expected = rows(new, after), rows(old, before)
        assert len(found) == len(expected) > 0, table
        for new_row, old_row in zip(found, expected, strict=True):
            assert [plain(value) for value in new_row] == [plain(value) for value in old_row], table


def plain(value: Any) -> Any:
    """Of JSON, what it means: the order of keys, and `if: {states: null}`, mean nothing."""
    return json.loads(value) if isinstance(value, str) and value[:1] in ("{", "[") else value


def test_the_clock_goes_on_a_little_before_where_it_stopped(moved: Server) -> None:
    old, new = old_and_new(moved)
    ((stopped,),) = rows(old, "SELECT time FROM clock")
    ((clock,),) = rows(new, "SELECT value FROM meta WHERE name = 'clock'")
    assert clock == stopped - 5
    # What the schedule made since then is not made again.
    claimed = rows(new, "SELECT number, occurrence FROM runs WHERE occurrence IS NOT NULL ORDER BY 1")
    late = rows(old, f"SELECT rowid FROM runs WHERE timestamp > 0 AND {_due('times')} >= {clock} ORDER BY 1")
    kept = {number for (number,) in late} - {int(SCHEDULED[1:])}
    assert {number for number, _ in claimed} == kept and kept


def _due(column: str) -> str:
    return f"(julianday(substr(json_extract({column}, '$.schedule'), 1, 19)) - 2440587.5) * 86400"


def test_the_installation_is_a_new_one_that_keeps_everything(moved: Server) -> None:
    _, new = old_and_new(moved)
    meta = dict(rows(new, "SELECT name, value FROM meta"))
    assert meta["imported"] and len(meta["installation"]) == 36
    assert not (moved.directory / "new.db.importing").exists()
    again = moved.directory / "again.db"
    assert moved.command("import-db", str(REAL / "apsis.db"), str(again)).returncode == 0
    (other,) = rows(again, "SELECT value FROM meta WHERE name = 'installation'")
    assert other[0] != meta["installation"]
    made = moved.command("create", str(moved.directory / "made.db"))
    assert made.returncode == 0
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
    assert rows(new, schema) == rows(moved.directory / "made.db", schema)


@pytest.fixture(scope="module")
def serving(moved: Server) -> Iterator[Server]:
    """It serves a copy of the imported database."""
    directory = moved.directory.with_name("serving")
    shutil.copytree(moved.directory, directory)
    # Since now: the real jobs have one for every five seconds, and it is days that they were away.
    with Server(directory).running("-o", "schedule.since=now") as server:
        yield server


@pytest.fixture(scope="module")
def shown(serving: Server) -> dict[str, Any]:
    """The imported runs, as they are found and shown before a test has done anything to them."""
    found = serving.get("/search/runs", q="until:2026-11-24T00:00:00Z", limit="100")["runs"]
    return {run_id: serving.run(run_id) for run_id in {*found, RUNNING}}


@pytest.fixture(scope="module")
def server(serving: Server, shown: dict[str, Any]) -> Iterator[tuple[Server, RawAgent]]:
    """The server; and the agent that had the running process, which is back."""
    config = (serving.directory / "apsis.yaml").read_text()
    port = int(config.partition("port: ")[2].partition(",")[0])
    agent = RawAgent(("127.0.0.1", port), CONN_ID, proc_ids=[PROC_ID])
    yield serving, agent
    agent.close()


def test_runs_are_found_and_shown_as_they_were(shown: dict[str, Any]) -> None:
    payloads = [json.loads(text) for (text,) in rows(REAL / "apsis.db", "SELECT payload FROM run_summary")]
    assert len(payloads) == 27
    for payload in payloads:
        was = payload["run_summary"]
        now = shown[was["run_id"]]
        if was["run_id"] == RUNNING:  # which has gone on
            del was["times"], was["state"]
        assert {name: now.get(name) for name in was} == was
        assert now["program"] is None or now["program"]["str"]
        assert all(cond["str"] for cond in now["conds"])


def test_logs_and_outputs_read_as_they_did(server: tuple[Server, RawAgent]) -> None:
    apsis, _ = server
    history: dict[str, list[str]] = {}
    for run_id, message in rows(REAL / "apsis.db", "SELECT run_id, message FROM run_history ORDER BY rowid"):
        history.setdefault(run_id, []).append(message)
    for run_id, messages in history.items():
        assert apsis.messages(run_id)[: len(messages)] == messages
    for run_id, data, packed in rows(REAL / "apsis.db", "SELECT run_id, data, compression FROM output"):
        assert apsis.output(run_id) == (brotli.decompress(data) if packed else data)
        (found,) = apsis.get(f"/runs/{run_id}/outputs")
        assert found["output_id"] == "output"


def test_a_running_program_is_taken_up_at_its_agent(server: tuple[Server, RawAgent]) -> None:
    """Its time limit has long passed: the signal that Apsis 2 would have sent is sent."""
    apsis, agent = server
    assert agent.wait("ProcResultRequest")["proc_id"] == PROC_ID
    agent.result(PROC_ID, going())
    assert agent.wait("ProcSignalRequest") == {"type": "ProcSignalRequest", "proc_id": PROC_ID, "signum": 2}
    assert agent.wait("ProcFdDataRequest")["start"] == 0
    agent.data(PROC_ID, 0, b"day 2026-11-20\n")
    agent.result(PROC_ID, killed(2, "SIGINT", 15))
    assert apsis.until(RUNNING, "failure", "error")["state"] == "failure"
    assert apsis.messages(RUNNING)[-1] == "failure: killed by SIGINT (timeout after 300 s)"
    assert apsis.output(RUNNING) == b"day 2026-11-20\n"
    assert agent.wait("ProcDeleteRequest")["proc_id"] == PROC_ID


def test_what_waits_and_what_is_to_come_goes_on(server: tuple[Server, RawAgent]) -> None:
    apsis, _ = server
    assert apsis.run(SCHEDULED)["times"]["stop"] == "2031-05-06T08:30:00.000+00:00"
    assert apsis.run(WAITING)["state"] == "waiting"
    made = apsis.schedule({"job_id": "ok", "args": {"region": "eu", "date": "2031-01-01"}})
    assert int(made[1:]) >= 17345, "a run ID was given out again"
    assert apsis.until(WAITING, "success")["state"] == "success"
    assert apsis.post(f"/runs/{SCHEDULED}/skip") == {}


def test_an_ad_hoc_job_can_be_run_again(server: tuple[Server, RawAgent]) -> None:
    apsis, _ = server
    assert apsis.get("/jobs/adhoc-RqWfsUNowWYr")["ad_hoc"]
    again = apsis.post("/runs/r17300/rerun")["show_run_id"]
    assert apsis.until(again, "success", "error")["args"] == {"x": "é ü 日本"}
    assert apsis.run("r17300")["state"] == "success"


def test_nothing_is_retired_until_somebody_says_so(server: tuple[Server, RawAgent]) -> None:
    apsis, _ = server
    assert [job["job_id"] for job in apsis.get("/jobs")].count("apsis-retention") == 0


def test_importing_again_does_nothing(server: tuple[Server, RawAgent]) -> None:
    apsis, _ = server
    again = apsis.command("import-db", str(REAL / "apsis.db"), str(apsis.directory / "new.db"))
    assert again.returncode == 0 and "nothing is done" in again.stdout.splitlines()[0]
    report = apsis.command(
        "import-db", str(REAL / "apsis.db"), str(apsis.directory / "new.db"), "--format", "json"
    )
    assert json.loads(report.stdout)["runs"]["success"] == 16
    assert requests.get(f"{apsis.url}/runs/{WAITING}", timeout=30).status_code == 200
