"""Rows and files that are damaged: what can't be read is said and left alone, and everything else goes on."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from server import ENDS, Server
from websockets.sync.client import connect

import apsis

WAIT = 60.0
BAD_TEXT = b"\xff\xfe"  # no UTF-8
# What may stand in a column of `runs` and be no part of a run, beside what is not JSON at all.
OBJECTS = ["{", "[]", "5", "null", '"x"', "", BAD_TEXT, "[" * 5000, '{"a":{"b":[1e999,NaN]}}', '{"a":null}']
DAMAGE: dict[str, list[Any]] = {
    "job_id": ["", "x" * 100_000, "no/such\njob", BAD_TEXT],
    "args": [*OBJECTS, '{"a":5}', '{"a":["b"]}'],
    "state": ["", "bogus", "RUNNING", "new", BAD_TEXT],
    "timestamp": [1e300, -1e300, 0.0],
    "rev": [-1, 2**62],
    "times": [*OBJECTS, '{"schedule":"x"}', '{"schedule":1e300}', '{"bogus":1}', '{"stop":[]}'],
    "meta": [
        *OBJECTS,
        '{"job":5}',
        '{"job":{"labels":5}}',
        '{"program":5}',
        '{"alarms":null}',
        '{"reasons":[5]}',
        '{"reasons":{"late":5},"alarms":[5]}',
        '{"expect":5}',
        '{"expect":["late","long"]}',
        '{"expect":{"late":"x","missed":[],"long":"y"}}',
        '{"expect":{"long":"y"}}',
        '{"elapsed":"x","given_up":5,"late_verdict":5}',
    ],
    "program": [*OBJECTS, '{"type":"bogus"}', '{"type":5}', '{"type":"apsis.program.noop.BoundNoOpProgram"}'],
    "conds": [*OBJECTS, "[5]", '[{"type":"bogus"}]', '[{"type":"dependency"}]', '[{"type":"max_running"}]'],
    "actions": [
        *OBJECTS,
        "[5]",
        '[{"type":"schedule"}]',
        '[{"type":"bogus"}]',
        '[{"if":5}]',
        '[{"if":{"states":5}}]',
    ],
    "run_state": [
        *OBJECTS,
        '{"proc_id":5}',
        '{"conn_id":[],"proc_id":{}}',
        '{"timers":5}',
        '{"timers":[1]}',
        '{"timers":{"GRACE":"x","BOGUS":1}}',
        '{"timers":{"TIMEOUT":"x"}}',
        '{"signals":5,"timed_out":"x","heard":"x"}',
    ],
    "rerun_of": ["x", "r0", BAD_TEXT],
}
JOBS = {
    "ended": "program: {type: no-op}\naction: {type: schedule, job_id: other, if: {states: failure}}\n",
    "other": "program: {type: no-op}\n",
    "waits": "condition: {type: dependency, job_id: never}\nprogram: {type: no-op}\n",
    "never": "program: {type: no-op}\n",
    "runs": "program: {type: no-op, duration: 3600}\n",
    "slow": "program: {type: procstar-shell, command: 'until test -e go; do sleep 0.1; done; echo end'}\n",
}


def ask_everything(server: Server, run_ids: list[str]) -> None:
    """Nothing that can be asked about these runs may be a failure of the server."""
    session = requests.Session()
    for path in (
        *(
            "/jobs",
            "/health",
            "/stats",
            "/board",
            "/agents",
            "/upcoming",
            "/overview/jobs",
            "/search/runs?limit=1000",
        ),
        *("/search/runs?q=state:success", "/search/runs?q=label:x&limit=100", "/config"),
        *(
            f"/{kind}?job_id={job_id}"
            for kind in ("runs", "recent", "history", "days", "graph")
            for job_id in JOBS
        ),
        *(f"/jobs/{job_id}/runs" for job_id in JOBS),
        "/timeline?since=2020-01-01T00:00:00Z&until=2099-01-01T00:00:00Z",
    ):
        answer = session.get(server.url + path, timeout=WAIT)
        assert answer.status_code < 500, f"{path}: {answer.text[:500]}"
    assert session.get(f"{server.url[:-7]}/metrics", timeout=WAIT).status_code == 200
    for at, run_id in enumerate(run_ids):
        for part in ("", ("/log", "/state", "/dependencies", "/waiting", "/graph", "/outputs")[at % 6]):
            answer = session.get(f"{server.url}/runs/{run_id}{part}", timeout=WAIT)
            assert answer.status_code < 500, f"{run_id}{part}: {answer.text[:500]}"
        for word in (("skip", "stop", "rerun"), ("start", "mark/failure", "signal/TERM"))[at % 2]:
            answer = session.post(f"{server.url}/runs/{run_id}/{word}", timeout=WAIT)
            assert answer.status_code < 500, f"{run_id}/{word}: {answer.text[:500]}"


def listed(server: Server) -> set[str]:
    """Runs that a new page is told of."""
    marker = server.schedule({"job_id": "never"})
    found: set[str] = set()
    with connect(f"ws{server.url[4:]}/summary?init", max_size=None) as stream:
        again = None
        while again not in found:
            for message in json.loads(stream.recv(timeout=WAIT)):
                if "run_summary" in message:
                    found.add(message["run_summary"]["run_id"])
            again = again or (server.schedule({"job_id": "never"}) if marker in found else None)
    return found


def test_no_damage_to_a_row_stops_the_server_or_keeps_other_runs_from_their_ends(tmp_path: Path) -> None:
    spoilt: dict[str, tuple[str, str, Any]] = {}
    server = Server(tmp_path, JOBS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with server.running():
            whole = {
                job_id: server.schedule({"job_id": job_id}) for job_id in ("ended", "waits", "runs", "slow")
            }
            server.until(whole["slow"], "running")
            made = {}
            for job_id in ("ended", "waits", "runs", "slow"):
                wanted = [(column, value) for column, values in DAMAGE.items() for value in values]
                if job_id == "slow":
                    wanted = random.Random(1).sample(wanted, 8)
                made[job_id] = list(server.post("/runs", {"job_id": job_id}, count=str(len(wanted)))["runs"])
                spoilt |= {r: (job_id, *what) for r, what in zip(made[job_id], wanted, strict=True)}
            for run_id in made["slow"]:
                server.until(run_id, "running")
            server.kill()
            with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
                for run_id, (_, column, value) in spoilt.items():
                    cast = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
                    db.execute(
                        f"UPDATE runs SET {column} = {cast} WHERE number = ?", (value, int(run_id[1:]))
                    )
                db.execute("INSERT INTO jobs VALUES ('adhoc-broken', '{')")
                db.execute("INSERT INTO jobs VALUES ('adhoc-wrong', '5')")
                db.execute("INSERT INTO owed (cause, run, action) VALUES ('x', '{', '5'), ('y', '[]', '{}')")
                db.execute(
                    "UPDATE log SET message = CAST(x'ff' AS TEXT) WHERE number = ?",
                    (int(whole["ended"][1:]),),
                )
            found = server.command("check-db", str(tmp_path / "apsis.db"))
            assert found.returncode == 1 and found.stdout.count("its row can't be read: ") > 100
            server.start()
            assert server.run(whole["waits"])["state"] == "waiting"
            assert server.run(whole["runs"])["state"] == "running"
            assert "unreadable row" in server.log()
            assert set(whole.values()) <= listed(server)
            ask_everything(server, [*spoilt, *whole.values()][::-1])
            # Everything else goes its way, and what is new.
            (tmp_path / "go").touch()
            for job_id in ("slow", "waits"):
                run_id = server.schedule({"job_id": job_id})
                assert server.until(run_id, *ENDS)["state"] == "success"
            server.kill()
            server.start()
            assert server.until(server.schedule({"job_id": "slow"}), *ENDS)["state"] == "success"
            # And the way out of it.
            repair = ("check-db", "--repair", str(tmp_path / "apsis.db"))
            refused = server.command(*repair)
            assert refused.returncode == 1 and "is in use by process" in refused.stderr, refused.stderr
            assert server.end() == 0
            found = server.command("check-db", str(tmp_path / "apsis.db"))
            assert "`apsis check-db --repair " in found.stdout
            done = server.command(*repair)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            assert f"what could not be read is in {tmp_path / 'apsis.db.unreadable.jsonl'}" in done.stdout
            assert done.stdout.endswith("apsis.db: no damage found\n")
            said = len(server.log())
            server.start()
            assert "unreadable row" not in server.log()[said:]
            assert all(server.run(run_id)["run_id"] == run_id for run_id in spoilt)


# -- the file --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a server that has ended, with some thousand runs."""
    server = Server(tmp_path_factory.mktemp("pristine"), {"ended": JOBS["ended"], "other": JOBS["other"]})
    with server.running():
        server.post("/runs", {"job_id": "ended"}, count="500")
    return server.directory


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "header":
        data[:100] = bytes(100)
    elif how == "schema":
        data[100:4096] = b"\xa5" * 3996
    elif how == "cut off":
        del data[len(data) // 2 :]
    elif how == "noise":
        data[:] = random.Random(1).randbytes(len(data))
    elif how == "text":
        data[:] = b"This is no database.\n" * 1000
    path.write_bytes(data)


def start_refused(server: Server) -> str:
    """What a server says that does not start."""
    argv = [*server.program, "serve", "--config", str(server.directory / "apsis.yaml"), "--port", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("how", ["header", "schema", "cut off", "noise", "text"])
def test_a_file_that_is_damaged_is_refused_with_the_ways_out_and_left_as_it_is(
    pristine: Path, tmp_path: Path, how: str
) -> None:
    shutil.copytree(pristine, tmp_path / "site")
    server = Server(tmp_path / "site")
    database = server.directory / "apsis.db"
    spoil(database, how)
    before = database.read_bytes()
    said = start_refused(server)
    assert str(database) in said, said
    assert "restore a backup" in said, said
    if "no database" not in said:
        assert "apsis check-db" in said and ".recover" in said, said
    assert database.read_bytes() == before
    assert server.command("check-db", str(database)).returncode == 1
    if how == "noise":  # A backup that was restored is as good as the database was.
        shutil.copy(pristine / "apsis.db", database)
        with server.running():
            assert len(server.get("/runs", job_id="ended")["runs"]) == 500


def spoil_pages(path: Path, pages: Iterable[int], seed: int) -> None:
    chosen = random.Random(seed)
    with open(path, "r+b") as file:
        for page in pages:
            file.seek(page * 4096)
            file.write(chosen.randbytes(4096))


def first_leaves(path: Path, *tables: str) -> list[int]:
    """Of each table the page with its first rows, which no start needs to read, counted from 0."""
    with closing(sqlite3.connect(path)) as db:
        sql = "SELECT pageno - 1 FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path LIMIT 1"
        return [db.execute(sql, (table,)).fetchone()[0] for table in tables]


@pytest.mark.parametrize("live", [False, True])
def test_pages_that_are_damaged_are_said_to_be_and_cost_only_what_was_on_them(
    pristine: Path, tmp_path: Path, live: bool
) -> None:
    shutil.copytree(pristine, tmp_path / "site")
    server = Server(tmp_path / "site")
    database = server.directory / "apsis.db"
    if live:
        server.start()
        some = random.Random(1).sample(range(1, database.stat().st_size // 4096), 60)
        spoil_pages(database, some, 1)
    else:
        spoil_pages(database, first_leaves(database, "runs", "log"), 3)
        assert "no damage found" not in server.command("check-db", str(database)).stdout
        server.start()
    try:
        for path in (
            "/jobs",
            "/runs?job_id=ended",
            "/search/runs?limit=1000",
            "/board",
            "/jobs/other/runs",
            "/stats",
        ):
            answer = requests.get(server.url + path, timeout=WAIT)
            assert answer.status_code in (200, 503), f"{path}: {answer.text}"
            assert answer.status_code == 200 or "damaged" in answer.text
        refused = False
        for _ in range(20):
            answer = requests.post(f"{server.url}/runs", json={"job_id": "ended"}, timeout=WAIT)
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 503:
                refused = True
                assert "damaged" in answer.json()["error"]
                health = requests.get(f"{server.url}/health", timeout=WAIT)
                assert health.status_code == 503 and "damaged" in health.json()["error"]
                break
        assert requests.get(f"{server.url}/alive", timeout=WAIT).status_code == 200
    finally:
        began = time.monotonic()
        status = server.end()
        took = time.monotonic() - began
        server.end_agent()
    assert took < apsis.STOP, "it waited for a damaged file to heal"
    assert status == (74 if refused else 0)
    assert refused or not live
