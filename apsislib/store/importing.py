"""A database that is being made out of another one.

It grows beside the name that it will have, as NAME.importing, and takes the name once it is whole: so
nobody serves half of it. How far each table has been walked is committed with its rows: an import that
was cut off at any instant goes on from there, and leaves what it would have left without that.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from apsislib.errors import ApsisError
from apsislib.runs import Json, Run, run_number
from apsislib.store import files, outputs
from apsislib.store.batches import BLAME
from apsislib.store.rows import SAVE, dump, number_of, to_saved

# Dropped at the end. `count`: of rows with the same reason, such as lines of a log without its run.
_TABLES = """
CREATE TABLE import_walked (name TEXT PRIMARY KEY, row INTEGER NOT NULL) STRICT;
CREATE TABLE import_remarks (
    kind    TEXT NOT NULL,
    id      TEXT NOT NULL,
    reason  TEXT NOT NULL,
    count   INTEGER NOT NULL,
    PRIMARY KEY (kind, id, reason)
) STRICT;
CREATE TABLE import_lines (number INTEGER PRIMARY KEY, message TEXT NOT NULL) STRICT;
CREATE TABLE import_indexes (name TEXT PRIMARY KEY, sql TEXT NOT NULL) STRICT;
"""
# Indexes are made at the end: kept up to date meanwhile, they took two thirds of the time. Of these rows
# there are few, and they are looked for.
_KEPT = "runs_occurrence"
RERUN = "scheduled as rerun of "  # how Apsis 2 says so, in the run log alone
REPORTED = 10_000  # remarks that are kept with the database

Remark = tuple[str, str, str, int]  # kind, ID, reason, how often


class Import:
    """Open for filling. To be used by one thread; one process at a time."""

    def __init__(self, target: Path, source: str, like: Path, began: float) -> None:
        """`source`: what is imported, as a text that changes with it. `began`: an instant. `like`: a file
        whose owner and mode the new one gets.

        Goes on with what an earlier import of the same source has left. ApsisError: it can't be written.
        """
        self.target = target
        self.began = began
        self.resumed = False
        self.whole = False  # nothing is left to do but finish()
        self._part = target.with_name(target.name + ".importing")
        self._lock = files.Lock(target)
        self._run: tuple[int, bool] = (0, False)  # the number asked for last, and whether it is there
        try:
            if target.exists():
                raise ApsisError(f"{target} exists: name a new file")
            files.own(self._lock.path, os.stat(like))  # for the server, which is of another user perhaps
            self._db = self._open(source, like)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, source: str, like: Path) -> Connection:
        if self._part.exists() and not _is_current(self._part):
            self._discard()  # begun by another release, whose tables would have to be migrated half filled
        if not self._part.exists():
            files.make_alike(self._part, like)
        db = files.open_database(self._part)
        try:
            meta = dict(db.execute("SELECT name, value FROM meta"))
            self.resumed = meta.get("importing") == source
            if self.resumed:
                self.began = float(meta["imported"])
                self.whole = "import" in meta
                return db
            fresh = "importing" not in meta
        except sqlite3.Error as error:
            db.close()
            raise ApsisError(files.explain(self._part, error)) from error
        if not fresh:  # of what the source was before
            db.close()
            self._discard()
            files.make_alike(self._part, like)
            db = files.open_database(self._part)
        with files.transaction(db):
            files.run_script(db, _TABLES)
            db.execute(
                "INSERT INTO import_indexes SELECT name, sql FROM sqlite_master"
                " WHERE type = 'index' AND sql IS NOT NULL AND name != ?",
                (_KEPT,),
            )
            for (name,) in db.execute("SELECT name FROM import_indexes").fetchall():
                db.execute(f"DROP INDEX {name}")
            db.executemany(
                "INSERT INTO meta (name, value) VALUES (?, ?)",
                [("importing", source), ("imported", self.began)],
            )
        return db

    def _discard(self) -> None:
        for end in ("-journal", "-wal", "-shm", ""):
            self._part.with_name(self._part.name + end).unlink(missing_ok=True)

    def close(self) -> None:
        self._db.close()
        self._lock.release()

    # -- rows --------------------------------------------------------------------------------------

    def walked(self, table: str) -> int:
        """The row ID up to which the other database's table is here."""
        row = self._db.execute("SELECT row FROM import_walked WHERE name = ?", (table,)).fetchone()
        return row[0] if row else 0

    @contextmanager
    def stretch(self, table: str, last: int) -> Iterator[None]:
        """What is added in the block, and that everything up to `last` is here: in one transaction.

        ApsisError: nothing of it was written, the disk is full say.
        """
        try:
            with files.transaction(self._db):
                yield
                self._db.execute("INSERT OR REPLACE INTO import_walked VALUES (?, ?)", (table, last))
        except sqlite3.Error as error:
            raise ApsisError(
                f"{files.explain(self._part, error)}; then repeat the import, which goes on from here"
            ) from error

    def remark(self, kind: str, name: str, reason: str) -> None:
        """Something for the report."""
        clean = [text.encode("utf-8", "backslashreplace").decode() for text in (name, reason)]
        self._db.execute(
            "INSERT INTO import_remarks VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
            (kind, *clean),
        )

    def add_run(self, run: Run) -> None:
        """ValueError, TypeError and so on (BLAME): it can't be stored, or there is one of its ID."""
        if self._has(run.number):
            raise ValueError("another run has this ID")
        if run.occurrence is not None:
            run = run.but(occurrence=self._free(run.occurrence))
        self._db.execute(SAVE, to_saved(run))
        self._run = run.number, True

    def _free(self, occurrence: str) -> str:
        """The identity, with the first ordinal that no other run has."""
        *parts, ordinal = json.loads(occurrence)
        stem = occurrence[: occurrence.rindex(",") + 1]
        while self._db.execute("SELECT 1 FROM runs WHERE occurrence = ?", (f"{stem}{ordinal}]",)).fetchone():
            ordinal += 1
        return f"{stem}{ordinal}]"

    def _has(self, number: int) -> bool:
        if self._run[0] != number:
            found = self._db.execute("SELECT 1 FROM runs WHERE number = ?", (number,)).fetchone()
            self._run = number, found is not None
        return self._run[1]

    def has_run(self, run_id: str) -> bool:
        number = run_number(run_id)
        return number is not None and self._has(number)

    def add_line(self, run_id: str, time: float, message: str) -> None:
        """A line of a run's log, after those that are there. BLAME: it can't be stored."""
        number = number_of(run_id)
        self._db.execute(
            "INSERT INTO log (number, seq, time, message)"
            " VALUES (?1, (SELECT coalesce(max(seq) + 1, 0) FROM log WHERE number = ?1), ?2, ?3)",
            (number, time, message),
        )
        if message.startswith(RERUN) and run_number(message[len(RERUN) :]) is not None:
            self._db.execute(
                "UPDATE runs SET rerun_of = ? WHERE number = ? AND rerun_of IS NULL",
                (message[len(RERUN) :], number),
            )

    def add_last_line(self, run_id: str, message: str) -> None:
        """What the import itself has to say in a run's log: at its end, however long it is."""
        self._db.execute("INSERT INTO import_lines VALUES (?, ?)", (number_of(run_id), message))

    def add_output(
        self, run_id: str, output_id: str, name: str, content_type: str, pieces: Iterable[bytes]
    ) -> int:
        """Returns its length. ApsisError, BLAME: it can't be stored, and nothing of it was."""
        number = number_of(run_id)
        self._db.execute("SAVEPOINT output")
        try:
            row, length = outputs.open_output(self._db, number, output_id, name, content_type)
            if length:
                raise ValueError("the run has another output of this ID")
            for piece in _even(pieces):
                length = outputs.append(self._db, row, length, piece)
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK TO output")
                self._db.execute("RELEASE output")
            raise
        self._db.execute("RELEASE output")
        return length

    def add_job(self, job_id: str, job: Json) -> None:
        """An ad hoc job. BLAME: it can't be stored."""
        self._db.execute("INSERT OR REPLACE INTO jobs (job_id, job) VALUES (?, ?)", (job_id, dump(job)))

    # -- the end -----------------------------------------------------------------------------------

    def finish(self, source: Path, clock: float | None, next_run: int) -> Json:
        """Give the database its name. Returns the report, which stays in it."""
        try:
            report = _report(self._db)
            if report is None:
                self._make_indexes()
                report = self._sum_up(source, clock)
                last = self._db.execute("SELECT max(number) FROM runs").fetchone()[0] or 0
                with files.transaction(self._db):
                    for number, message in self._db.execute("SELECT * FROM import_lines").fetchall():
                        self.add_line(f"r{number}", self.began, message)
                    report["log"] = self._db.execute("SELECT count(*) FROM log").fetchone()[0]
                    meta = [("next_run", max(next_run, last + 1)), ("import", dump(report))]
                    meta += [] if clock is None else [("clock", clock)]
                    self._db.executemany("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", meta)
                    for table in ("walked", "remarks", "lines", "indexes"):
                        self._db.execute(f"DROP TABLE import_{table}")
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._db.close()
            with open(self._part, "rb") as file:
                os.fsync(file.fileno())
            if self.target.exists():
                raise ApsisError(f"{self.target} has come to be meanwhile; the import is {self._part}")
            os.rename(self._part, self.target)
            directory = os.open(self.target.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            return report
        except sqlite3.Error as error:
            raise ApsisError(files.explain(self._part, error)) from error

    def _make_indexes(self) -> None:
        for name, sql in self._db.execute("SELECT name, sql FROM import_indexes ORDER BY name").fetchall():
            with files.transaction(self._db):
                self._db.execute(sql)
                self._db.execute("DELETE FROM import_indexes WHERE name = ?", (name,))

    def _sum_up(self, source: Path, clock: float | None) -> dict[str, Any]:
        def one(sql: str) -> Any:
            return self._db.execute(sql).fetchone()

        number, size = one("SELECT count(*), coalesce(sum(length), 0) FROM outputs")
        remarks = self._db.execute(
            "SELECT kind, id, reason, count FROM import_remarks ORDER BY rowid LIMIT ?", (REPORTED,)
        ).fetchall()
        return {
            "source": str(source),
            "imported": self.began,
            "clock": clock,
            "runs": dict(self._db.execute("SELECT state, count(*) FROM runs GROUP BY state").fetchall()),
            "log": 0,
            "outputs": number,
            "output_bytes": size,
            "jobs": one("SELECT count(*) FROM jobs")[0],
            "remarks": [list(remark) for remark in remarks],
            "remarks_in_all": one("SELECT count(*) FROM import_remarks")[0],
        }


def _is_current(part: Path) -> bool:
    """Whether a file is of this release, or empty. ApsisError: it can't be read."""
    try:
        # Not "ro": what an import has begun that was killed while it made the file is rolled back first.
        with closing(files.connect(part, "rw")) as db:
            return db.execute("PRAGMA user_version").fetchone()[0] in (0, len(files.MIGRATIONS))
    except sqlite3.Error as error:
        raise ApsisError(files.explain(part, error)) from error


def _report(db: Connection) -> dict[str, Any] | None:
    row = db.execute("SELECT value FROM meta WHERE name = 'import'").fetchone()
    return None if row is None else dict(json.loads(row[0]))


def imported(path: Path) -> tuple[str, Json] | None:
    """(what a database was imported from, the report); None: it was not imported. ApsisError: unreadable."""
    try:
        with closing(files.connect(path, "ro")) as db:
            if db.execute("PRAGMA application_id").fetchone()[0] != files.APPLICATION_ID:
                return None
            report = _report(db)
            source = db.execute("SELECT value FROM meta WHERE name = 'importing'").fetchone()
            return None if report is None or source is None else (str(source[0]), report)
    except sqlite3.Error as error:
        raise ApsisError(files.explain(path, error)) from error


def _even(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of a chunk each."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= outputs.CHUNK:
            yield bytes(held[: outputs.CHUNK])
            del held[: outputs.CHUNK]
    if held:
        yield bytes(held)


__all__ = ["BLAME", "Import", "Remark", "imported"]
