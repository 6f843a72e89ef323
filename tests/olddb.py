"""Databases as releases of Apsis 2 left them, for what the real one does not hold."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
from contextlib import closing, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from server import PROGRAM, environment

import apsis as main

NOOP = {"type": "apsis.program.noop.BoundNoOpProgram", "duration": "0.2", "success": True}
CLOCK = 1_900_000_000.25  # 2030-03-17T17:46:40.25Z

PROCSTAR = {
    "type": "apsis.program.procstar.agent.BoundProcstarProgram",
    "argv": ["/bin/true"],
    "group_id": "default",
    "stop": {"signal": 12, "grace_period": 15.0},
    "timeout": {"duration": 300.0, "signal": "SIGINT"},
}

_RUNS = """CREATE TABLE runs (
    rowid INTEGER NOT NULL, run_id VARCHAR NOT NULL, timestamp FLOAT NOT NULL, job_id VARCHAR NOT NULL,
    args VARCHAR NOT NULL, state VARCHAR NOT NULL, program VARCHAR, times VARCHAR NOT NULL,
    meta VARCHAR NOT NULL, message VARCHAR, run_state VARCHAR, rerun VARCHAR, expected BOOLEAN%s,
    PRIMARY KEY (rowid))"""
_REST = """
CREATE TABLE clock (time FLOAT NOT NULL);
CREATE TABLE jobs (job_id VARCHAR NOT NULL, job VARCHAR NOT NULL);
CREATE TABLE run_history (run_id VARCHAR NOT NULL, timestamp FLOAT NOT NULL, message VARCHAR NOT NULL);
CREATE TABLE output (
    run_id VARCHAR NOT NULL, output_id VARCHAR NOT NULL, name VARCHAR NOT NULL,
    content_type VARCHAR NOT NULL, length INTEGER NOT NULL, compression VARCHAR, data BINARY NOT NULL,
    PRIMARY KEY (run_id, output_id));
CREATE INDEX idx_run_id ON run_history (run_id);
"""


class OldDb:
    """`release`: 2.4.3, 2.2 (no run_summary), 0.33 (no conds, actions and next_run_id)."""

    def __init__(self, path: Path, release: str = "2.4.3", clock: float | None = CLOCK) -> None:
        self.path = path
        self.release = release
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("BEGIN")
        self.db.execute(_RUNS % ("" if release == "0.33" else ", conds VARCHAR, actions VARCHAR"))
        for statement in _REST.split(";"):
            self.db.execute(statement)
        if release != "0.33":
            self.db.execute("CREATE TABLE next_run_id (number INTEGER NOT NULL)")
            self.db.execute("INSERT INTO next_run_id VALUES (65)")
        if release == "2.4.3":
            self.db.execute(
                "CREATE TABLE run_summary (run_id VARCHAR NOT NULL UNIQUE, timestamp FLOAT, payload VARCHAR)"
            )
        if clock is not None:
            self.db.execute("INSERT INTO clock VALUES (?)", (clock,))
        self.db.execute("COMMIT")

    def close(self) -> Path:
        self.db.close()
        return self.path

    def run(self, number: int, state: str = "success", **columns: Any) -> str:
        """A row of runs; `columns` are Python values, or texts that stand as they are."""
        at = columns.pop("at", CLOCK - 1000.0)
        times = columns.pop("times", {"schedule": at, state: at + 1.5})
        row: dict[str, Any] = {
            "rowid": number,
            "run_id": f"r{number}",
            "timestamp": at + 1.5,
            "job_id": "job",
            "args": {},
            "state": state,
            "program": NOOP,
            "times": times if isinstance(times, str) else {n: written(t) for n, t in times.items()},
            "meta": {"job": {"labels": []}},
            "run_state": None,
            "expected": 0,
        }
        if self.release != "0.33":
            row |= {"conds": [], "actions": []}
        row |= columns
        values = [json.dumps(v) if isinstance(v, dict | list) else v for v in row.values()]
        marks = ", ".join("?" * len(row))
        self.db.execute(f"INSERT INTO runs ({', '.join(row)}) VALUES ({marks})", values)
        return f"r{number}"

    def line(self, run_id: str, message: Any, time: Any = CLOCK) -> None:
        self.db.execute("INSERT INTO run_history VALUES (?, ?, ?)", (run_id, time, message))

    def output(self, run_id: str, data: bytes, compression: str | None = None, **columns: Any) -> None:
        row = {
            "output_id": "output",
            "name": "combined stdout & stderr",
            "content_type": "application/octet-stream",
            "length": len(data),
        } | columns
        self.db.execute(
            "INSERT INTO output VALUES (?, ?, ?, ?, ?, ?, ?)", (run_id, *row.values(), compression, data)
        )

    def job(self, job_id: str, **more: Any) -> None:
        job = {"job_id": job_id, "params": [], "schedule": [], "program": {"type": "no-op"}}
        job |= {"condition": [], "action": [], "metadata": {"labels": []}, "ad_hoc": True} | more
        self.db.execute("INSERT INTO jobs VALUES (?, ?)", (job_id, json.dumps(job)))


def written(instant: float) -> str:
    """As Apsis 2 wrote times."""
    from apsislib.times import format_instant

    return format_instant(instant)


def select(path: Path, sql: str, *values: Any) -> list[Any]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(sql, values).fetchall()


def filled(path: Path, runs: int) -> Path:
    old = OldDb(path, clock=CLOCK)
    old.db.execute("BEGIN")
    for number in range(1, runs + 1):
        state = ("success", "failure", "error", "skipped", "scheduled", "waiting")[number % 6]
        at = CLOCK - 3600 + number if number % 50 else CLOCK + 60  # of these many claim one occurrence
        run_id = old.run(number, state, at=at, args={"n": str(number % 50)})
        for line in range(4):
            old.line(run_id, f"line {line}", at + line)
        if number % 10 == 0:
            old.output(run_id, random.Random(number).randbytes(5000), None)
    old.line("r0", "nobody's")
    old.job("adhoc-a")
    old.db.execute("COMMIT")
    return old.close()


def apsis(*words: str, check: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    """`apsis WORDS`: in this process, which is quicker, unless it needs one of its own."""
    if environ or words[0] == "serve":
        done = subprocess.run(
            [sys.executable, PROGRAM, *words],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(**environ),
        )
    else:
        out, err = StringIO(), StringIO()
        given = main.parser("apsis").parse_args(words)
        with redirect_stdout(out), redirect_stderr(err):
            status = given.run(given)
        done = subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
    assert done.returncode == check, done.stdout + done.stderr
    return done


def brought(path: Path, *options: str) -> tuple[Path, dict[str, Any]]:
    """The new database, and the report."""
    new = path.with_name("new.db")
    found = apsis("import-db", str(path), str(new), "--format", "json", *options)
    report: dict[str, Any] = json.loads(found.stdout)
    return new, report


def reasons(report: dict[str, Any], kind: str) -> dict[str, str]:
    return {name: reason for one, name, reason, _ in report["remarks"] if one == kind}


def whole(path: Path) -> list[Any]:
    """Everything in a database but what is of one import alone."""
    found: list[Any] = []
    for table in ("runs", "log", "outputs", "jobs", "owed"):
        found += select(path, f"SELECT * FROM {table} ORDER BY 1, 2")
    found += select(path, "SELECT output, start, size, codec, hex(data) FROM chunks ORDER BY 1, 2")
    found += select(path, "SELECT name, value FROM meta WHERE name IN ('clock', 'next_run')")
    found += select(path, "SELECT sql FROM sqlite_master ORDER BY name")
    return found
