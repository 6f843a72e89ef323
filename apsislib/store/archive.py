"""The archive: runs that have left the database, in an SQLite file of their own.

Its tables and columns are those of the Apsis before this one, so that what people have for reading
archives goes on working, and files that it made can be added to.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import Any, BinaryIO

from apsislib.errors import ApsisError
from apsislib.runs import Run, canonical, run_number
from apsislib.states import State
from apsislib.store import files
from apsislib.store.damage import CANT_READ, UNREADABLE
from apsislib.store.outputs import PIECE, unpacked
from apsislib.store.reader import Reader
from apsislib.store.records import Copied, OutputInfo, Version
from apsislib.store.rows import dump, is_instant
from apsislib.times import format_instant

TABLES = """
CREATE TABLE runs (
    rowid      INTEGER NOT NULL PRIMARY KEY,  -- the number of the run ID
    run_id     VARCHAR NOT NULL,
    timestamp  FLOAT NOT NULL,
    job_id     VARCHAR NOT NULL,
    args       VARCHAR NOT NULL,
    state      VARCHAR NOT NULL,
    program    VARCHAR,
    times      VARCHAR NOT NULL,
    meta       VARCHAR NOT NULL,
    message    VARCHAR,
    run_state  VARCHAR,
    rerun      VARCHAR,
    expected   BOOLEAN,
    conds      VARCHAR,
    actions    VARCHAR
);
CREATE INDEX idx_runs_job_args ON runs (job_id, args);
CREATE TABLE run_history (
    run_id     VARCHAR NOT NULL,
    timestamp  FLOAT NOT NULL,
    message    VARCHAR NOT NULL
);
CREATE INDEX idx_run_id ON run_history (run_id);
CREATE TABLE output (
    run_id        VARCHAR NOT NULL,
    output_id     VARCHAR NOT NULL,
    name          VARCHAR NOT NULL,
    content_type  VARCHAR NOT NULL,
    length        INTEGER NOT NULL,
    compression   VARCHAR,  -- null, gzip, or br in files that an older Apsis began
    data          BINARY NOT NULL,
    PRIMARY KEY (run_id, output_id)
);
"""
COLUMNS = (
    "rowid, run_id, timestamp, job_id, args, state, program, times, meta, message, run_state, rerun,"
    " expected, conds, actions"
)
NAMES = {"runs", "run_history", "output"}
SPOOL = 1 << 20  # bytes of a compressed output that are kept in memory
PLAIN = 256  # bytes: compression gains nothing below
LARGEST = 900_000_000  # bytes; SQLite takes no value of 1 GB, which is what an output is here


class Clash(ApsisError):
    """The archive has another run of this ID."""


@dataclass(slots=True)
class _Output:
    row: tuple[Any, ...]  # run_id, output_id, name, content_type, length, compression
    data: BinaryIO
    size: int  # bytes of data


@dataclass(slots=True)
class _Packed:
    """A run as the archive will hold it."""

    run: tuple[Any, ...]  # COLUMNS
    log: list[tuple[float, str]]
    outputs: list[_Output] = field(default_factory=list)

    def digest(self) -> bytes:
        digest = _Digest(self.run, self.log)
        for output in self.outputs:
            digest.output(output.row, _pieces(output.data))
        return digest.value()

    def close(self) -> None:
        for output in self.outputs:
            output.data.close()


class Archive:
    """An archive, open for adding. To be used by one thread; several processes may have it open."""

    def __init__(self, path: Path, live: Path, timeout: float | None = None) -> None:
        """Opens the file, or makes it. ApsisError: it is something else (such as the database `live`)."""
        self.path = Path(path)
        if self.path.is_dir() or not self.path.parent.is_dir():
            what = "is a directory" if self.path.is_dir() else f"there is no directory {self.path.parent}"
            raise ApsisError(f"can't write the archive {path}: {what}")
        if self.path.exists() and os.path.samefile(self.path, live):
            raise ApsisError(f"{path} is the live database: name another file for the archive")
        try:
            self._db = files.connect(self.path, "rwc", timeout)
            try:
                _prepare(self._db, self.path)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise ApsisError(_explain(self.path, error)) from error

    def close(self) -> None:
        self._db.close()

    def copy(self, reader: Reader, runs: Sequence[Run]) -> Copied:
        """Write the runs with their logs and outputs, and verify that they are there.

        Those that are there already, identical, count as written; those there in an earlier state are
        replaced. What cannot be copied is left, with the reason. ApsisError: nothing was written.
        """
        copied = Copied()
        digests: dict[str, bytes] = {}
        try:
            with files.transaction(self._db):
                for run in runs:
                    try:
                        try:
                            packed = _pack(reader, run)
                        except sqlite3.Error as error:  # of the database, not of the archive
                            raise ApsisError(f"it can't be read: {error}") from error
                        try:
                            digests[run.run_id] = packed.digest()
                            self._write(packed, digests[run.run_id])
                        finally:
                            packed.close()
                    except ApsisError as error:
                        copied.left[run.run_id] = str(error)
                        digests.pop(run.run_id, None)
                    else:
                        lengths = tuple(one.row[4] for one in packed.outputs)
                        copied.versions.append(Version(run.run_id, run.rev, len(packed.log), lengths))
                        copied.log += len(packed.log)
                        copied.outputs += len(lengths)
            for run_id, digest in digests.items():
                if self._digest(run_id) != digest:
                    raise ApsisError(f"archive {self.path}: run {run_id} is not there as it was written")
        except (sqlite3.Error, OSError) as error:
            raise ApsisError(_explain(self.path, error)) from error
        return copied

    def _write(self, packed: _Packed, digest: bytes) -> None:
        number, run_id = packed.run[:2]
        there = self._db.execute("SELECT job_id, args, times FROM runs WHERE rowid = ?", (number,)).fetchone()
        if there is not None:
            if (*there[:2], _schedule(there[2])) != (*packed.run[3:5], _schedule(packed.run[7])):
                raise Clash(
                    f"the archive has another run {run_id}, of job {there[0]}:"
                    " name another file for the archive"
                )
            if self._digest(run_id) == digest:
                return
            for table in NAMES:
                self._db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
        marks = ", ".join("?" * len(packed.run))
        self._db.execute(f"INSERT INTO runs ({COLUMNS}) VALUES ({marks})", packed.run)
        self._db.executemany(
            "INSERT INTO run_history (run_id, timestamp, message) VALUES (?, ?, ?)",
            [(run_id, time, message) for time, message in packed.log],
        )
        for output in packed.outputs:
            made = self._db.execute(
                "INSERT INTO output (run_id, output_id, name, content_type, length, compression, data)"
                " VALUES (?, ?, ?, ?, ?, ?, zeroblob(?))",
                (*output.row, output.size),
            )
            assert made.lastrowid is not None
            with self._db.blobopen("output", "data", made.lastrowid) as blob:
                for piece in _pieces(output.data):
                    blob.write(piece)

    def _digest(self, run_id: str) -> bytes | None:
        """Of what the file holds of the run; None: nothing."""
        row = self._db.execute(
            f"SELECT {COLUMNS} FROM runs WHERE rowid = ?", (run_number(run_id),)
        ).fetchone()
        if row is None:
            return None
        log = self._db.execute(
            "SELECT timestamp, message FROM run_history WHERE run_id = ? ORDER BY rowid", (run_id,)
        ).fetchall()
        digest = _Digest(row, log)
        outputs = self._db.execute(
            "SELECT rowid, run_id, output_id, name, content_type, length, compression FROM output"
            " WHERE run_id = ? ORDER BY output_id",
            (run_id,),
        ).fetchall()
        for rowid, *output in outputs:
            with self._db.blobopen("output", "data", rowid, readonly=True) as blob:
                digest.output(tuple(output), iter(lambda blob=blob: blob.read(PIECE), b""))  # type: ignore[misc]
        return digest.value()


class _Digest:
    """A hash of everything that an archive holds of a run."""

    def __init__(self, run: tuple[Any, ...], log: list[tuple[float, str]]) -> None:
        self._hash = hashlib.sha256(repr((run, log)).encode("utf-8", "surrogatepass"))

    def output(self, row: tuple[Any, ...], pieces: Iterator[bytes]) -> None:
        self._hash.update(repr(row).encode("utf-8", "surrogatepass"))
        for piece in pieces:
            self._hash.update(piece)

    def value(self) -> bytes:
        return self._hash.digest()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    return iter(lambda: file.read(PIECE), b"")


def _prepare(db: Connection, path: Path) -> None:
    """Make the tables where there are none. ApsisError: the file is something else."""
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    application = db.execute("PRAGMA application_id").fetchone()[0]
    if application == files.APPLICATION_ID or tables >= files.OLD_TABLES:
        raise ApsisError(f"{path} is a database of Apsis, not an archive: name another file for the archive")
    if (tables and not tables >= NAMES) or (application not in (0, files.ARCHIVE_ID)):
        raise ApsisError(f"{path} is a database, but not an archive of Apsis: name another file")
    with files.transaction(db):
        if not tables:
            files.run_script(db, TABLES)
        if application != files.ARCHIVE_ID:
            db.execute(f"PRAGMA application_id = {files.ARCHIVE_ID}")


def _explain(path: Path, error: BaseException) -> str:
    return files.explain(path, error).replace("database ", "archive ", 1)


def _schedule(times: str) -> str | None:
    """For when the run was: with job and args, what tells it from another run of the same ID."""
    schedule: str | None = json.loads(times).get("schedule")
    return schedule


def _pack(reader: Reader, run: Run) -> _Packed:
    """ApsisError: an output is damaged, or larger than an archive can hold."""
    row = (
        run_number(run.run_id),
        run.run_id,
        run.timestamp,
        run.job_id,
        canonical(run.args),
        run.state.value,
        None if run.program is None else dump(run.program),
        dump({name: format_instant(time) for name, time in run.times.items()}),
        dump(run.meta),
        None,
        "null" if run.run_state is None else dump(run.run_state),
        run.rerun_of,
        0,
        dump(run.conds) if run.conds else None,
        dump(run.actions) if run.actions else None,
    )
    packed = _Packed(row, reader.log(run.run_id))
    try:
        for info in reader.outputs(run.run_id):
            packed.outputs.append(_pack_output(reader, run.run_id, info))
    except BaseException:
        packed.close()
        raise
    return packed


def _pack_output(reader: Reader, run_id: str, info: OutputInfo) -> _Output:
    compress = info.length >= PLAIN
    # 31: with a gzip header, so that gunzip reads what somebody takes out of the file.
    packer = zlib.compressobj(6, wbits=31)
    spool: Any = tempfile.SpooledTemporaryFile(SPOOL)  # noqa: SIM115 - closed by its owner
    try:
        count = 0
        for piece in reader.output(run_id, info.output_id, 0, info.length):
            count += len(piece)
            spool.write(packer.compress(piece) if compress else piece)
        if compress:
            spool.write(packer.flush())
        if count != info.length:
            raise ApsisError(f"output {info.output_id} is no more")
        size = spool.tell()
        if size > LARGEST:
            raise ApsisError(f"output {info.output_id} takes {size} bytes: more than an archive holds")
    except BaseException:
        spool.close()
        raise
    row = (run_id, info.output_id, info.name, info.content_type, info.length, "gzip" if compress else None)
    return _Output(row, spool, size)


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArchivedRun:
    """A run as an archive has it. `times` are texts, as in args."""

    run_id: str
    job_id: str
    args: dict[str, str]
    state: State
    timestamp: float
    times: dict[str, str]
    meta: dict[str, Any]
    program: dict[str, Any] | None


def query(
    path: Path,
    *,
    run_id: str | None = None,
    job_id: str | None = None,
    state: State | None = None,
    since: float | None = None,
    until: float | None = None,
    limit: int | None = None,
    unreadable: list[str] | None = None,
) -> list[ArchivedRun]:
    """The newest archived runs that pass every filter, oldest first, but for those that can't be read.

    These are added to `unreadable`, a line each. ApsisError: it is no archive, or damaged.
    """
    tests = {
        "run_id = ?": run_id,
        "job_id = ?": job_id,
        "state = ?": None if state is None else state.value,
        "timestamp >= ?": since,
        "timestamp < ?": until,
    }
    where = " AND ".join(["1", *(test for test, value in tests.items() if value is not None)])
    values = [value for value in tests.values() if value is not None]
    with _opened(path) as db:
        db.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        rows = db.execute(
            "SELECT run_id, job_id, args, state, timestamp, times, meta, program FROM runs"
            f" WHERE {where} ORDER BY rowid DESC LIMIT ?",
            (*values, -1 if limit is None else limit),
        ).fetchall()
    found = []
    for row in reversed(rows):
        try:
            found.append(_archived(row))
        except UNREADABLE as error:
            if unreadable is not None:
                unreadable.append(f"{row[0]}: {CANT_READ}: {error}")
    return found


def history(path: Path, run_id: str) -> list[tuple[float, str]]:
    """The run's log: (instant, message). ApsisError: it is no archive, or damaged."""
    with _opened(path) as db:
        db.text_factory = lambda text: text.decode("utf-8", "replace")
        return db.execute(
            "SELECT timestamp, message FROM run_history WHERE run_id = ? ORDER BY rowid", (run_id,)
        ).fetchall()


def output(path: Path, run_id: str, output_id: str = "output") -> Iterator[bytes]:
    """The bytes of an output, piece by piece. ApsisError: there is none, or it can't be unpacked."""
    with _opened(path) as db:
        row = db.execute(
            "SELECT rowid, compression FROM output WHERE run_id = ? AND output_id = ?", (run_id, output_id)
        ).fetchone()
        if row is None:
            raise ApsisError(f"{path} has no output {output_id} of run {run_id}")
        rowid, compression = row
        with db.blobopen("output", "data", rowid, readonly=True) as blob:
            yield from unpacked(iter(lambda: blob.read(PIECE), b""), compression)


@contextmanager
def _opened(path: Path) -> Iterator[Connection]:
    """The archive, for reading. ApsisError: it is none, or what is wrong with the file."""
    with closing(_open(path)) as db:
        try:
            yield db
        except sqlite3.Error as error:
            raise ApsisError(_explain(path, error)) from error


def _open(path: Path) -> Connection:
    if not path.is_file():
        raise ApsisError(f"there is no archive {path}")
    try:
        if path.with_name(f"{path.name}-journal").exists():
            # Whoever wrote last was cut off; what was not committed is undone by the first who may write.
            with suppress(sqlite3.Error), closing(files.connect(path, "rw")) as db:
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db = files.connect(path, "ro")
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise ApsisError(_explain(path, error)) from error
    if not tables >= NAMES or tables >= files.OLD_TABLES or "meta" in tables:
        db.close()
        raise ApsisError(f"{path} is not an archive of Apsis")
    return db


def _archived(row: tuple[Any, ...]) -> ArchivedRun:
    """ValueError, TypeError: the row is damaged."""
    run_id, job_id, args, state, timestamp, times, meta, program = row
    texts = args, times, meta, "{}" if program is None else program
    found = [json.loads(text) for text in texts]
    if not all(isinstance(one, dict) for one in found) or not is_instant(timestamp):
        raise ValueError("it is not what a run is")
    args, times, meta, bound = found
    return ArchivedRun(
        run_id, job_id, args, State(state), timestamp, times, meta, None if program is None else bound
    )
