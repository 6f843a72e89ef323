"""Rows that can't be read, mended while no server runs: what is damaged is put aside, what is whole stays.

A run keeps its row, with its log and its output; only columns that can't be read get the value that means
nothing. Had it not ended, it is an error now, unless what a server needs to go on with it is whole. Actions
and jobs that can't be read are taken out. What was replaced or taken out is written to a file, and synced,
before the database is changed in one transaction.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from apsislib.errors import ApsisError
from apsislib.runs import run_number
from apsislib.states import ACTIVE, FINISHED, State
from apsislib.store import files
from apsislib.store.damage import RECORDS, UNREADABLE, find
from apsislib.store.rows import CHANGING, COLUMNS, FIXED, from_row, is_instant, to_saved

_NAMES = FIXED + CHANGING
# What is no run's, and readable: put beside one column of a row it tells whether that column is damaged.
_BLANK: dict[str, Any] = {
    **dict.fromkeys(_NAMES),
    **{"number": 1, "job_id": "", "state": "error", "timestamp": 0.0, "rev": 1},
    **dict.fromkeys(("args", "times", "meta"), "{}"),
}
_BEGUN = ACTIVE - {State.WAITING}
# What may be missing of a run that has begun: it goes on all the same.
_SPARE = {"meta", "conds", "rerun_of", "occurrence", "cause"}
_UPDATE = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in (*_NAMES, 'labels', 'alarms'))}"


def aside_of(path: Path) -> Path:
    """Where what is replaced in this database, or taken out, is put: JSON, a line for each row."""
    return path.with_name(path.name + ".unreadable.jsonl")


def mend(path: Path, timeout: float | None, wall: float) -> list[str]:
    """What was done, a line a row. ApsisError: nothing was, and why. `wall`: now."""
    lock = files.Lock(path)
    try:
        with closing(files.open_database(path, timeout)) as db:
            damaged = [text for (text,) in db.execute("PRAGMA integrity_check")]
            if damaged != ["ok"]:
                raise ApsisError(
                    f"database {path}: the file itself is damaged ({damaged[0]}), not only rows of it:"
                    " restore a backup, or move it away, salvage it with `sqlite3 DAMAGED .recover |"
                    " sqlite3 SALVAGED`, and repair that"
                )
            with files.transaction(db):
                found = list(find(db))
                if found:
                    _put_aside(db, path, found, wall)
                return [_MENDERS[table](db, key, why, wall) for table, key, why in found]
    except sqlite3.Error as error:
        raise ApsisError(files.explain(path, error)) from error
    finally:
        lock.release()


def _put_aside(db: Connection, path: Path, found: list[tuple[str, Any, str]], wall: float) -> None:
    """Append these rows as they are to the file, and sync it. OSError: it can't be written."""
    with open(aside_of(path), "a", encoding="ascii") as file:
        for table, key, why in found:
            row = dict(zip(*_raw(db, table, key), strict=True))
            entry = {"time": wall, "table": table, "key": _json(key), "why": why, "row": row}
            file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _raw(db: Connection, table: str, key: Any) -> tuple[list[str], list[Any]]:
    cursor = db.execute(f"SELECT * FROM {table} WHERE {_is(table, key)}", (key,))
    return [name for name, *_ in cursor.description], [_json(value) for value in cursor.fetchone()]


def _is(table: str, key: Any) -> str:
    """A condition on the key, in SQL. Text that is no UTF-8 is compared by its bytes."""
    column = RECORDS[table].key
    return f"CAST({column} AS BLOB) = ?" if isinstance(key, bytes) else f"{column} = ?"


def _json(value: Any) -> Any:
    """A value of SQLite as one of JSON: bytes, and text that is no UTF-8, as {"base64": ...}."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


# -- runs ------------------------------------------------------------------------------------------


def _mend_run(db: Connection, number: Any, why: str, wall: float) -> str:
    sql = f"SELECT {COLUMNS} FROM runs WHERE number = ?"
    row = dict(zip(_NAMES, db.execute(sql, (number,)).fetchone(), strict=True))
    broken = [name for name in _NAMES if not _is_readable(name, row[name])]
    state = row["state"] if "state" not in broken else None
    for name in broken:
        old, row[name] = row[name], _BLANK[name]
        if name in ("job_id", "rerun_of", "occurrence", "cause") and isinstance(old, bytes):
            row[name] = old.decode("utf-8", "backslashreplace")
    times = json.loads(row["times"])
    if row["schedule"] is not None and is_instant(row["schedule"]):
        times.setdefault("schedule", row["schedule"])
    lost = not (state in FINISHED or (state in _BEGUN and _SPARE.issuperset(broken)))
    if lost:
        row["state"], row["rev"] = State.ERROR.value, row["rev"] + 1
        times["error"] = wall
    if lost or "timestamp" in broken:
        row["timestamp"] = wall
    row["times"] = json.dumps(times)
    db.execute(f"{_UPDATE} WHERE number = ?", (*to_saved(from_row(tuple(row.values()))), number))
    columns = ", ".join(broken)
    text = f"its record could not be read and was repaired: {columns}"
    _note(db, number, f"error: {text}: it may have run" if lost else text, wall)
    return f"runs {number}: repaired: {columns}" + (
        "; it is an error now, as it had not ended" if lost else ""
    )


def _is_readable(name: str, value: Any) -> bool:
    if isinstance(value, bytes):
        return False
    try:
        to_saved(from_row(tuple({**_BLANK, name: value}.values())))
    except UNREADABLE:
        return False
    return True


def _note(db: Connection, number: int, message: str, wall: float) -> None:
    sql = "INSERT INTO log (number, seq, time, message) SELECT ?, ifnull(max(seq), -1) + 1, ?, ? FROM log"
    db.execute(f"{sql} WHERE number = ?", (number, wall, message, number))


# -- what else can't be read -----------------------------------------------------------------------


def _drop_owed(db: Connection, cause: Any, why: str, wall: float) -> str:
    db.execute(f"DELETE FROM owed WHERE {_is('owed', cause)}", (cause,))
    number = run_number(str(cause).partition("/")[0])
    if number is not None and db.execute("SELECT 1 FROM runs WHERE number = ?", (number,)).fetchone():
        _note(db, number, f"an action that it owed could not be read, and is not taken: {cause}", wall)
    return f"owed {_shown(cause)}: taken out: the action is not taken"


def _drop_job(db: Connection, job_id: Any, why: str, wall: float) -> str:
    db.execute(f"DELETE FROM jobs WHERE {_is('jobs', job_id)}", (job_id,))
    return f"jobs {_shown(job_id)}: taken out: the ad hoc job; its runs stay"


def _shown(key: Any) -> str:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)


_MENDERS = {"runs": _mend_run, "owed": _drop_owed, "jobs": _drop_job}
