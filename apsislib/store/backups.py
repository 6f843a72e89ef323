"""A copy of a database that is in use."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from apsislib.errors import ApsisError
from apsislib.store.files import connect, own


def backup(source: Path, target: Path) -> None:
    """Copy a database that is in use, as it is at one instant, to a new file. Writers do not wait.

    ApsisError: the target exists, or cannot be written; or it is written, and what it is of is damaged.
    """
    if target.exists():
        raise ApsisError(f"{target} exists: name a new file for the backup")
    part = target.with_name(target.name + ".part")  # so that half a copy is never taken for a backup
    try:
        with _made_alone(part, source):
            if target.exists():
                raise ApsisError(f"{target} exists: name a new file for the backup")
            said = _back_up(source, part, target)
        if said != "ok":
            raise ApsisError(
                f"{target} is the copy of a database that is damaged ({said}): keep the backups from before;"
                f" `apsis check-db {source}` says where"
            )
    except OSError as error:
        raise ApsisError(f"can't back up to {target}: {error}") from error


@contextmanager
def _made_alone(part: Path, like: Path) -> Iterator[None]:
    """An empty file that nobody else fills meanwhile. ApsisError: somebody does."""
    while True:
        try:
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            _clear(part)
            continue
        try:
            # Whoever takes it for left behind, as it has no lock yet, has removed it by the time of ours.
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, part):
                own(file, os.stat(like))
                os.fchmod(file, os.stat(like).st_mode & 0o777)
                yield
                return
        finally:
            os.close(file)


def _clear(part: Path) -> None:
    """Remove what a backup that was cut off has left. ApsisError: it has not been cut off."""
    try:
        file = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, part):
            part.unlink()
    except BlockingIOError:
        raise ApsisError(f"another backup to {part.with_suffix('')} is being made") from None
    finally:
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _back_up(source: Path, part: Path, target: Path) -> str:
    """What SQLite says of the copy: ok, or what is damaged."""
    try:
        with closing(connect(source, "ro")) as live, closing(sqlite3.connect(part)) as copy:
            # All in one step, which is one read transaction: in several, each commit starts it afresh.
            live.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, that can be copied as it is
            try:
                said = str(copy.execute("PRAGMA quick_check(1)").fetchone()[0]).splitlines()[-1]
            except sqlite3.DatabaseError as error:
                said = str(error)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.rename(part, target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return said
    except (sqlite3.Error, OSError) as error:
        part.unlink(missing_ok=True)
        raise ApsisError(f"can't back up to {target}: {error}") from error
