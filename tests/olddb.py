"""Databases as releases of Apsis 2 left them, for what the real one does not hold."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

NOOP = {"type": "apsis.program.noop.BoundNoOpProgram", "duration": "0.2", "success": True}
CLOCK = 1_900_000_000.25  # 2030-03-17T17:46:40.25Z

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
