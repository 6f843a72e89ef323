"""Unpacks apsis.pyz on its first use, and runs what it holds.

Packages that read files beside their modules, as boto3 does, can't run from within an archive. So it is
unpacked to a directory of this user's, named by its content: another version gets another one, and one
that is there is whole, and is used by any Python. The directory is the first of these that can be used:

    $APSIS_UNPACK       then no other
    $CACHE_DIRECTORY    systemd's, for services with CacheDirectory=
    $XDG_CACHE_HOME/apsis, or ~/.cache/apsis
    apsis-UID in $TMPDIR or /var/tmp, or in /tmp, where the home can't be written
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import ZipFile

from apsis_name import NAME  # made when the archive was: version and digest of the content

CONTENT = "content/"  # what is unpacked of the archive
UNUSED = 30 * 86400.0  # s; after which another version's files are removed


def run() -> None:
    """Run apsis. Ends the process."""
    archive = Path(__file__).parent
    try:
        root = find(archive)
    except OSError as error:
        sys.exit(f"error: {archive} can't unpack itself: {error}; name a directory for it in APSIS_UNPACK")
    sys.path[:] = [str(root) if Path(entry) == archive else entry for entry in sys.path]
    from apsis import main

    sys.exit(main())


def find(archive: Path) -> Path:
    """Where the content is, unpacked now if it has not been. Raises OSError: nowhere, and why."""
    places = list(candidates())
    for place in places:
        if trusted(place / NAME):
            return place / NAME
    wrong = []
    for place in places:
        try:
            return unpack(archive, place)
        except OSError as error:
            wrong.append(f"{place}: {error.strerror or error}")
    raise OSError("; ".join(wrong))


def candidates() -> Iterator[Path]:
    """Directories for it, best first."""
    told = os.environ.get("APSIS_UNPACK")
    if told:
        yield Path(told).absolute()
        return
    if "CACHE_DIRECTORY" in os.environ:
        yield Path(os.environ["CACHE_DIRECTORY"].split(":")[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if cache.is_absolute():
        yield cache / "apsis"
    for temporary in (os.environ.get("TMPDIR") or "/var/tmp", "/tmp"):
        yield Path(temporary) / f"apsis-{os.getuid()}"


def trusted(path: Path) -> bool:
    """Whether it is a directory that only this user, or root, can have filled."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (0, os.getuid()) and not found.st_mode & 0o022


def unpack(archive: Path, place: Path) -> Path:
    """Unpack to `place`: whole or not at all, whoever else does the same, and whatever ends this process."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not trusted(place):
        raise OSError("is not a directory that only its owner can write to, or is somebody else's")
    target = place / NAME
    with locked(place / ".lock"):
        if trusted(target):
            return target  # by another process, meanwhile
        draft = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=place))
        try:
            with ZipFile(archive) as content:
                content.extractall(draft, [n for n in content.namelist() if n.startswith(CONTENT)])
            os.sync()  # or a power cut might leave it whole by name, and empty
            (draft / CONTENT).rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        tidy(place)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, where the file system can lock: the others would do the same work."""
    with open(path, "w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def tidy(place: Path) -> None:
    """Remove what other versions, and killed starts, have left and nobody uses: see itself.hold()."""
    for other in place.glob("*apsis-*"):
        if NAME in other.name and not other.name.startswith("."):
            continue
        with suppress(OSError):
            directory = os.open(other, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if time.time() - os.stat(directory).st_mtime > UNUSED:
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(other)
            finally:
                os.close(directory)
