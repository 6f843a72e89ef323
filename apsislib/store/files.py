"""The database file: opening, creating, migrating and locking it."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from importlib import resources
from pathlib import Path
from sqlite3 import Connection
from urllib.parse import quote

from apsislib.errors import ApsisError
from apsislib.runs import labels
from apsislib.store.rows import pack_labels

# In the file's header, so that `file` and other programs can tell what it is: "APSI", "APSA".
APPLICATION_ID = 0x41505349
ARCHIVE_ID = 0x41505341

TIMEOUT = 5.0  # s; how long to wait for a lock that somebody else, e.g. the sqlite3 shell, holds
OLD_TABLES = {"clock", "runs", "run_history"}  # what databases of Apsis 2 have, of whatever release
SCANT = 2**18  # bytes; with less than this free a disk is as good as full
MIN_SQLITE = (3, 37, 0)  # STRICT tables

PAGES_IN_WAL = 4000  # 16 MB; the writer checkpoints at a commit beyond this
WAL_LIMIT = 64 << 20  # bytes; a WAL that a long read has grown is cut back to this
CACHE = 16384  # KiB of pages in the writer's memory


def _create(db: Connection) -> None:
    run_script(db, resources.files("apsislib").joinpath("schema.sql").read_text("utf-8"))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.executemany(
        "INSERT INTO meta (name, value) VALUES (?, ?)",
        [("next_run", 1), ("batch", 0), ("installation", str(uuid.uuid4()))],
    )


def _make_searchable(db: Connection) -> None:
    """Version 2: labels in a column, and the index of what searches look into."""
    db.execute("ALTER TABLE runs ADD COLUMN labels TEXT")
    packs: dict[str, str | None] = {}

    def packed(text: str) -> str | None:
        # One text a job mostly, for hundreds of thousands of rows.
        if text not in packs:
            packs[text] = pack_labels(labels({"labels": json.loads(text)}))
        return packs[text]

    db.create_function("packed_labels", 1, packed, deterministic=True)
    found = "json_extract(meta, '$.job.labels')"
    db.execute(
        f"UPDATE runs SET labels = packed_labels({found})"
        f" WHERE CASE WHEN json_valid(meta) THEN json_type({found}) = 'array' END"
    )
    # What of a run never changes, so that a transition leaves it alone.
    db.execute("CREATE INDEX runs_search ON runs (number, job_id, args, labels)")
    db.execute("CREATE INDEX runs_labels ON runs (labels) WHERE labels IS NOT NULL")


def _index_alarms(db: Connection) -> None:
    """Version 3: what runs are called (late, missed, long) in a column with an index."""
    db.execute("ALTER TABLE runs ADD COLUMN alarms TEXT")
    db.create_function("packed", 1, lambda text: pack_labels(json.loads(text)), deterministic=True)
    found = "json_extract(meta, '$.alarms')"
    db.execute(
        f"UPDATE runs SET alarms = packed({found})"
        f" WHERE CASE WHEN json_valid(meta) THEN json_type({found}) = 'array' END"
    )
    db.execute("CREATE INDEX runs_alarms ON runs (alarms) WHERE alarms IS NOT NULL")


def _index_reruns(db: Connection) -> None:
    """Version 4: from a run to those that rerun it."""
    db.execute("CREATE INDEX runs_rerun ON runs (rerun_of) WHERE rerun_of IS NOT NULL")


# Step n makes version n out of version n - 1, in a transaction of its own. Steps are only ever added.
MIGRATIONS: Sequence[Callable[[Connection], None]] = (_create, _make_searchable, _index_alarms, _index_reruns)


def run_script(db: Connection, script: str) -> None:
    """Execute statements one by one, inside the transaction that is open (executescript would end it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


class Lock:
    """One writing process a database: held from open to close, and by the kernel no longer than we live."""

    def __init__(self, path: Path) -> None:
        """ApsisError: another process, or another store of this one, has it."""
        # A file of its own: closing the database file ourselves would drop SQLite's locks on it. It is
        # never removed: another process might be about to lock the name that we would take away.
        self.path = path.with_name(path.name + ".lock")
        try:
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ApsisError(f"can't lock {path}: {error.strerror}: {self.path}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = (self._file.read(20) or b"").decode("ascii", "replace").strip()
            self._file.close()
            by = f"process {owner}" if owner else "another process"
            raise ApsisError(f"{path} is in use by {by}: stop it, or use another database") from None
        with suppress(OSError):  # a courtesy; should the disk be full, the database will say so
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n".encode())

    def release(self) -> None:
        self._file.close()


def identity(path: Path) -> tuple[int, int]:
    """Which file `path` names now. OSError: none."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def connect(path: Path, mode: str, timeout: float | None = None) -> Connection:
    """A connection in autocommit mode. `mode`: ro (for any reader), rw, or rwc (make the file)."""
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=TIMEOUT if timeout is None else timeout,
        isolation_level=None,  # we say BEGIN ourselves
        check_same_thread=False,  # a connection is used by one thread at a time, and its owner may change
        cached_statements=256,
    )
    try:
        if mode == "ro":
            db.execute("PRAGMA query_only = ON")
        else:
            # FULL, not NORMAL: Launch trusts this commit, also after a power cut.
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA wal_autocheckpoint = {PAGES_IN_WAL}")
            db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
            db.execute(f"PRAGMA cache_size = -{CACHE}")
            # Debian's default, ON, writes zeros over each page freed by the joining of chunks.
            db.execute("PRAGMA secure_delete = FAST")
    except BaseException:
        db.close()
        raise
    return db


def open_database(
    path: Path,
    timeout: float | None = None,
    migrations: Sequence[Callable[[Connection], None]] = MIGRATIONS,
) -> Connection:
    """The read-write connection to the database at `path`, made if missing, brought to the latest version.

    ApsisError: it is something else, damaged, of a newer program, or cannot be written.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        need = ".".join(map(str, MIN_SQLITE))
        raise ApsisError(f"SQLite {sqlite3.sqlite_version} is too old: Apsis needs {need} or later")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else f"can't be made: there is no directory {path.parent}"
        raise ApsisError(f"database {path} {what}: set database.path in the configuration")
    try:
        db = connect(path, "rwc", timeout)
        try:
            _judge(db, path, len(migrations))
            _migrate(db, path, migrations)
        except BaseException:
            db.close()
            raise
        return db
    except sqlite3.Error as error:
        raise ApsisError(explain(path, error)) from error


def is_imported(path: Path) -> bool:
    """Whether what is in this database came from another program. False where there is none."""
    if not path.is_file():
        return False
    try:
        with closing(connect(path, "ro")) as db:
            return db.execute("SELECT 1 FROM meta WHERE name = 'imported'").fetchone() is not None
    except sqlite3.Error:  # whoever opens it will say so
        return False


def is_damaged(error: BaseException) -> bool:
    """Whether the file itself is what is wrong: then no time and no room will help."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def explain(path: Path, error: BaseException) -> str:
    """What went wrong with the file, and the way out."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    remedy = {
        sqlite3.SQLITE_NOTADB: "it is no database: set database.path to another file, or restore a backup",
        sqlite3.SQLITE_CORRUPT: "the file is damaged: `apsis check-db` says where; restore a backup, or"
        " move it away and salvage it with `sqlite3 DAMAGED .recover | sqlite3 SALVAGED`",
        sqlite3.SQLITE_FULL: "make room on the disk",
        sqlite3.SQLITE_READONLY: "let the server's user write to the file and its directory",
        sqlite3.SQLITE_CANTOPEN: "let the server's user read and write the file and its directory",
        sqlite3.SQLITE_BUSY: "another program holds it locked: end that program's transaction",
        sqlite3.SQLITE_IOERR: "look for errors of the disk in the system log, and for quotas",
    }.get(code)
    if getattr(error, "sqlite_errorname", "") == "SQLITE_READONLY_ROLLBACK":
        remedy = (
            "whoever wrote to it last was cut off; undo what was left half done with"
            f" `sqlite3 {path} .tables`, as a user who may write to the file and its directory"
        )
    text = str(error)
    if code == sqlite3.SQLITE_IOERR:
        # Not only a broken disk: SQLite says so too where there is no room for its files beside the database.
        text += f" ({getattr(error, 'sqlite_errorname', '')})"
        free = _free(path)
        if free is not None and free < SCANT:
            remedy = f"the disk is full, {free} bytes are free: make room on it"
    return f"database {path}: {text}" + (f": {remedy}" if remedy else "")


def _free(path: Path) -> int | None:
    """Bytes that the file system of this file has for us; None where it can't be asked."""
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_favail or not found.f_files else 0


def _judge(db: Connection, path: Path, latest: int) -> None:
    """ApsisError, unless the file is empty or an Apsis database of a version that we know."""
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application == ARCHIVE_ID:
        raise ApsisError(f"{path} is an archive, not a database: set database.path to the live database")
    if application != APPLICATION_ID:
        if tables >= OLD_TABLES:
            raise ApsisError(
                f"{path} was made by an older Apsis and is left as it is: bring its contents into a new"
                f" file with `apsis import-db {path} NEW.db` and set database.path to NEW.db"
            )
        if tables or application or version:
            raise ApsisError(f"{path} is a database, but not of Apsis: set database.path to another file")
    if version > latest:
        raise ApsisError(
            f"{path} was written by a newer Apsis (version {version}, this program knows {latest}):"
            " install that Apsis again, or restore a backup from before"
        )


def _migrate(db: Connection, path: Path, migrations: Sequence[Callable[[Connection], None]]) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        # Both before the first table: later, either takes a VACUUM.
        db.execute(
            "PRAGMA page_size = 4096"
        )  # a commit writes whole pages: larger ones cost more than they save
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if db.execute("PRAGMA auto_vacuum").fetchone()[0] != 2:  # an empty database made by another program
            db.execute("VACUUM")
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise ApsisError(f"{path} can't be used with a write-ahead log: put the database on a local disk")
    for number, step in enumerate(migrations[version:], version + 1):
        with transaction(db):
            step(db)
            db.execute(f"PRAGMA user_version = {number}")
    with transaction(db):
        pass  # refuses a file that we may read only, now rather than at the first run


class transaction:  # noqa: N801 - reads as a word of the language
    """BEGIN IMMEDIATE, then COMMIT, or ROLLBACK where the block or the commit fails."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # SQLite itself rolls back after some errors
                self._db.execute("ROLLBACK")


def make_alike(path: Path, like: Path) -> None:
    """Make an empty file with the owner and mode of another. OSError: it exists, or can't be made.

    At no time may more people read a copy than what it is a copy of.
    """
    found = os.stat(like)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        own(file, found)
        os.fchmod(file, found.st_mode & 0o777)
    finally:
        os.close(file)


def own(file: int | Path, like: os.stat_result) -> None:
    """Give a file the owner of another, where we may: only root may give files away."""
    now = os.stat(file)
    if (now.st_uid, now.st_gid) != (like.st_uid, like.st_gid):
        with suppress(PermissionError):
            os.chown(file, like.st_uid, like.st_gid)
