"""Programs that work on the server itself, run by a real one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from server import ENDS, Server
from websockets.sync.client import connect

from apsislib.config import Config
from apsislib.errors import FieldError
from programs import INTERNAL_NAMES, Table

PREFIX = "apsis.program.internal"
JOBS = {
    "nothing": "program: {type: no-op}\n",
    "stats": f"params: [name]\nprogram: {{type: {PREFIX}.stats.StatsProgram, path: '{{{{ name }}}}'}}\n",
    "archive": (
        f"params: [count]\nprogram: {{type: {PREFIX}.archive.ArchiveProgram, age: 0,"
        " count: '{{ count }}', path: old.db, chunk_size: 5}\n"
    ),
    "slow": (
        "program: {type: archive, age: 0 s, count: 1000, path: old.db, chunk_size: 1, chunk_sleep: 10 min}\n"
    ),
    "inside": "program: {type: archive, age: 14d, count: 10, path: apsis.db}\n",
    "vacuum": f"program: {{type: {PREFIX}.vacuum.VacuumProgram}}\n",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)  # what paths of programs are relative to
    with Server(tmp_path, JOBS).running() as server:
        yield server


def run(server: Server, job_id: str, **args: Any) -> dict[str, Any]:
    return server.until(server.schedule({"job_id": job_id, "args": args}), *ENDS)


def is_there(server: Server, run_id: str) -> bool:
    return requests.get(f"{server.url}/runs/{run_id}", timeout=30).status_code == 200


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [run_id for (run_id,) in db.execute("SELECT run_id FROM runs ORDER BY rowid")]


def test_statistics_are_printed_and_appended_to_a_file(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        done = run(server, "stats", name="stats.json")
        assert done["state"] == "success"
    lines = (tmp_path / "stats.json").read_text().splitlines()
    assert len(lines) == 2 and server.output(done["run_id"]).decode() == lines[1]
    told = json.loads(lines[1])
    assert told["tasks"] == {"num_waiting": 0, "num_running": 1, "num_stopping": 0, "num_action": 0}
    assert told["scheduled"] == {"num_heap": 0, "num_entries": 0}
    assert told["start_time"] < told["time"] and told["writer"]["commits"] > 0
    assert 10e6 < told["statm_resident"] < 1e9
    assert told["statm_resident"] <= told["rusage_maxrss"]  # of which a process inherits its parent's
    assert server.get("/stats").keys() == told.keys()


def test_statistics_that_cannot_be_appended_are_an_error_that_says_where(server: Server) -> None:
    done = run(server, "stats", name="no/such/dir.json")
    assert done["state"] == "error"
    said = "stats: can't append to no/such/dir.json: No such file or directory; its directory must exist"
    assert server.messages(done["run_id"])[-1] == f"error: {said}"
    assert json.loads(server.output(done["run_id"]))["tasks"]["num_running"] == 1


def test_old_runs_move_to_the_archive_and_everybody_sees_them_go(server: Server, tmp_path: Path) -> None:
    ids = [run(server, "nothing")["run_id"] for _ in range(12)]
    ad_hoc = server.schedule({"job": {"program": {"type": "no-op"}}})
    job_id = server.until(ad_hoc, *ENDS)["job_id"]
    gone: set[str] = set()
    with connect(f"{server.url.replace('http', 'ws')}/summary", origin=None) as summary:
        short = run(server, "archive", count="10")
        assert short["state"] == "failure"
        said = "archive count 10 exhausted with 3 eligible runs remaining: raise count"
        assert server.messages(short["run_id"])[-1] == f"failure: {said}"
        assert rows(tmp_path / "old.db") == ids[:10]
        done = run(server, "archive", count="1000")
        assert done["state"] == "success"
        while len(gone) < 14:  # the 12, the ad hoc one, and the archive run that failed
            for message in json.loads(summary.recv(timeout=30)):
                if message["type"] == "run_delete":
                    gone.add(message["run_id"])
    assert gone == {*ids, ad_hoc, short["run_id"]}
    assert rows(tmp_path / "old.db") == [*ids, ad_hoc, short["run_id"]]
    meta = done["meta"]["program"]
    assert meta["run count"] == 4 and meta["run_ids"] == [[*ids[10:], ad_hoc, short["run_id"]]]
    assert meta["row counts"]["runs"] == 4 and meta["time"]["archive runs"] > 0
    assert server.output(done["run_id"]) == b"4 runs archived in old.db\n"
    assert not any(is_there(server, run_id) for run_id in gone)
    assert requests.get(f"{server.url}/jobs/{job_id}", timeout=30).status_code == 404
    assert is_there(server, done["run_id"])


def test_a_crash_in_the_middle_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    ids = [run(server, "nothing")["run_id"] for _ in range(3)]
    slow = server.schedule({"job_id": "slow"})
    server.until(slow, "running")
    while is_there(server, ids[0]):
        pass
    server.kill()  # while it pauses
    server.start()
    while is_there(server, ids[1]):
        pass
    assert rows(tmp_path / "old.db") == ids[:2]
    server.post(f"/runs/{slow}/stop")
    assert server.until(slow, *ENDS)["state"] == "success"
    messages = server.messages(slow)
    assert "goes on after the restart" in messages
    assert "archive stopped with 1 eligible runs remaining" in messages
    assert [is_there(server, run_id) for run_id in ids] == [False, False, True]


def test_the_archive_is_never_the_database_itself(server: Server, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("apsis.db")
    done = run(server, "inside")
    assert done["state"] == "error", server.messages(done["run_id"])
    assert "apsis.db" in server.messages(done["run_id"])[-1]


def test_a_vacuum_gives_space_back_while_the_server_goes_on(server: Server, tmp_path: Path) -> None:
    big = {"type": "procstar-shell", "command": "head -c 20000000 /dev/urandom"}
    first = server.schedule({"job": {"program": big}})
    assert server.until(first, *ENDS)["state"] == "success"
    while len(server.output(first)) < 20_000_000:
        pass  # the last of it may come after the verdict
    assert run(server, "archive", count="1000")["meta"]["program"]["run_ids"] == [[first]]
    done = run(server, "vacuum")
    assert done["state"] == "success"
    told = done["meta"]["program"]
    assert told["bytes_before"] > 20_000_000 > 5_000_000 > told["bytes_after"] and told["time"] > 0
    assert (tmp_path / "apsis.db").stat().st_size < 5_000_000
    said = f"{told['bytes_before']:,} bytes before, {told['bytes_after']:,} bytes after\n"
    assert server.output(done["run_id"]).decode() == said
    with closing(sqlite3.connect(tmp_path / "apsis.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert run(server, "nothing")["state"] == "success"


def test_with_retention_a_job_of_the_servers_own_keeps_the_database_small(tmp_path: Path) -> None:
    server = Server(tmp_path, {"nothing": JOBS["nothing"]}, "runs: {retention: 90 days}\n")
    with server.running():
        (scheduled,) = server.get("/runs", job_id="apsis-retention")["runs"].values()
        assert scheduled["times"]["schedule"][11:] == "03:30:00.000+00:00"
        old, new = (run(server, "nothing")["run_id"] for _ in range(2))
        server.end()
        with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
            quarter = 91 * 86400
            db.execute("UPDATE runs SET timestamp = timestamp - ? WHERE number = ?", (quarter, int(old[1:])))
        server.start()
        assert run(server, "apsis-retention")["state"] == "success"
        assert rows(tmp_path / "apsis-archive.db") == [old]
        assert (is_there(server, old), is_there(server, new)) == (False, True)
        reload = f"http://127.0.0.1:{server.port}/api/control/reload_jobs"
        assert requests.post(reload, timeout=30).json()["removed"] == []


def test_retention_is_on_for_databases_of_our_own_and_off_for_imported_ones(tmp_path: Path) -> None:
    (tmp_path / "apsis.yaml").write_text("job_dir: jobs\ndatabase: {path: apsis.db}\n")
    server = Server(tmp_path, {"nothing": JOBS["nothing"]})
    with server.running():
        (job,) = [job for job in server.get("/jobs") if job["job_id"] == "apsis-retention"]
        assert job["program"]["age"] == 90 * 86400
        assert job["program"]["path"] == str(tmp_path / "apsis-archive.db")
        server.end()
        with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
            db.execute("INSERT INTO meta VALUES ('imported', 1.0)")
        server.start()
        assert [job["job_id"] for job in server.get("/jobs")] == ["nothing"]


def test_retention_may_delete_or_have_another_archive(tmp_path: Path) -> None:
    config = f"runs: {{retention: 90 days, on_retention: delete, archive: {tmp_path}/far.db}}\n"
    server = Server(tmp_path, {"nothing": JOBS["nothing"]}, config)
    with server.running():
        old, new = (run(server, "nothing")["run_id"] for _ in range(2))
        server.end()
        with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
            quarter = 91 * 86400
            db.execute("UPDATE runs SET timestamp = timestamp - ? WHERE number = ?", (quarter, int(old[1:])))
        text = (tmp_path / "apsis.yaml").read_text()
        server.start()
        done = run(server, "apsis-retention")
        assert done["state"] == "success" and server.output(done["run_id"]) == b"1 runs deleted\n"
        assert (is_there(server, old), is_there(server, new)) == (False, True)
        assert not (tmp_path / "far.db").exists()
        server.end()
        with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
            db.execute("UPDATE runs SET timestamp = timestamp - ? WHERE number = ?", (quarter, int(new[1:])))
        (tmp_path / "apsis.yaml").write_text(text.replace("on_retention: delete", "on_retention: archive"))
        server.start()
        done = run(server, "apsis-retention")
        assert done["state"] == "success", server.messages(done["run_id"])
        assert rows(tmp_path / "far.db") == [new]


@pytest.mark.parametrize("name", sorted(INTERNAL_NAMES))
def test_each_of_their_names_is_known_and_stored_as_the_longest(name: str) -> None:
    keys: dict[str, Any] = {"age": "14d", "count": 10} if "urge" in name else {}
    if "rchive" in name:
        keys = {"age": "14d", "count": 10, "path": "/a"}
    table = Table(Config())
    program = table.parse({"type": name, **keys})
    stored = program.bind(lambda text: text).to_json()
    assert stored["type"] == INTERNAL_NAMES[name]
    assert table.load(stored).to_json() == stored


@pytest.mark.parametrize(
    ("program", "said", "key"),
    [
        ({"type": "archive", "age": "14d", "count": 5}, "missing key: path", None),
        ({"type": "archive", "age": "x", "count": 5, "path": "a"}, "age: ", "age"),
        ({"type": "archive", "age": 1, "count": 0, "path": "a"}, "count must be a whole number", "count"),
        ({"type": "archive", "age": 1, "count": 5, "path": 5}, "path must be a path, not 5", "path"),
        (
            {"type": "archive", "age": 1, "count": 5, "path": "{{ x }}", "size": 1},
            "unexpected keys: size",
            "size",
        ),
        (
            {"type": "archive", "age": 1, "count": 5, "path": "a", "chunk_size": -1},
            "chunk_size must be a whole number above 0",
            "chunk_size",
        ),
        (
            {"type": "archive", "age": 1, "count": 5, "path": "a", "chunk_sleep": "soon"},
            "chunk_sleep: ",
            "chunk_sleep",
        ),
        ({"type": "stats", "file": "a"}, "unexpected keys: file (known: path)", "file"),
        ({"type": "vacuum", "path": "a"}, "unexpected keys: path (known: none)", "path"),
    ],
)
def test_a_mistake_is_named_when_the_job_is_read(program: dict[str, Any], said: str, key: str | None) -> None:
    with pytest.raises(FieldError) as caught:
        Table(Config()).parse(program)
    assert said in str(caught.value)
    assert list(caught.value.keys) == ([] if key is None else [key])
