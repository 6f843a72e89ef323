"""The output of one descriptor: one growing byte string, numbered from 0, kept until its record goes.

In mode tempfile the program writes straight into an unlinked file, opened with O_APPEND, and we read
with pread: neither can move the other's place. In mode memory it writes into a pipe, which is emptied
into a memfd: the same reading, no disk. In both the length may go on growing after the program's end,
as long as a descendant holds the descriptor.
"""

from __future__ import annotations

import base64
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apsislib.agent.spec import Captured

log = logging.getLogger(__name__)

PIECE = 65536  # bytes: what a pipe holds, so one read empties it
ATTACHED_MAX = 64 << 20  # bytes of attached output in a result; more than that must be fetched


def temporary_directory() -> Path:
    """Where captured output lies: TMPDIR, else /tmp."""
    return Path(os.environ.get("TMPDIR") or "/tmp")


class Capture:
    """What one descriptor of one program has written so far."""

    def __init__(self, spec: Captured, directory: Path) -> None:
        self.spec = spec
        self.pipe: int | None = None  # the read end, in mode memory, until its end of file
        self._file = -1
        if spec.mode == "memory":
            self._file = os.memfd_create("procstar-capture", os.MFD_CLOEXEC)
            try:
                self.pipe, self.child_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                os.set_blocking(self.child_fd, True)  # the program's end is like any other pipe
            except OSError:
                os.close(self._file)
                raise
        else:
            self._file = self.child_fd = _unlinked_file(directory)
        self._store = _Store(self._file)

    def started(self) -> None:
        """The child has its own copy: close ours, so that the pipe can come to its end."""
        if self.child_fd not in (-1, self._file):
            os.close(self.child_fd)
        self.child_fd = -1

    def length(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file).st_size

    def drain(self) -> int | None:
        """Take what waits in the pipe: bytes taken, 0 if none waits, None once no more can come.

        With a record gone (see close) the bytes are thrown away, so that a descendant that still
        writes is neither blocked nor killed.
        """
        if self.pipe is None:
            return None
        try:
            data = os.read(self.pipe, PIECE)
        except BlockingIOError:
            return 0
        if self._file >= 0:
            self._keep(data)
        return len(data) or None

    def _keep(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            log.error("memory capture lost output: %s", error)

    def clamp(self, start: int, stop: int | None) -> int:
        """Where the part of [start, stop) that exists now ends; `start` where there is none."""
        length = self.length()
        return max(start, length if stop is None else min(stop, length))

    def read(self, start: int, stop: int) -> bytes:
        """The bytes in [start, stop), which must exist."""
        return b"".join(_pieces(self._file, start, stop, PIECE * 16))

    def pieces(self, start: int, stop: int, size: int) -> Iterator[bytes]:
        """The same in pieces of at most `size` bytes; goes on though the record be deleted meanwhile."""
        return Pieces(self._store, start, stop, size)

    def result(self) -> dict[str, Any]:
        """The `fds` entry of a result."""
        spec = self.spec
        try:
            length = self.length()
            if not spec.attached:
                return {"type": "detached", "length": length, "encoding": spec.encoding or "base64"}
            if length > ATTACHED_MAX:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            data = self.read(0, length)
        except OSError as error:
            log.warning("cannot read a capture: %s", error)
            return {"type": "error"}
        if spec.encoding is None:
            return {"type": "data", "data": base64.b64encode(data).decode(), "encoding": "base64"}
        return {"type": "text", "text": data.decode("utf-8", "replace"), "encoding": "utf-8"}

    def close(self) -> None:
        """Give up the output. The pipe stays with the loop, which drains it to its end."""
        if self.child_fd not in (-1, self._file):
            os.close(self.child_fd)
        if self._file >= 0:
            self._store.release()
        self._file = self.child_fd = -1


class _Store:
    """The file of one capture, closed when the last of those who read it has let go.

    Not a second descriptor for each: output must be had from an agent that has none left too.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._holders = 1

    def hold(self) -> None:
        self._holders += 1

    def release(self) -> None:
        self._holders -= 1
        if not self._holders:
            os.close(self.fd)


class Pieces(Iterator[bytes]):
    """A range of output on its way to the server, which holds the store until its end.

    Not a generator: one that is dropped before its first piece would never let go.
    """

    def __init__(self, store: _Store, start: int, stop: int, size: int) -> None:
        self._store: _Store | None = store
        store.hold()
        self._pieces = _pieces(store.fd, start, stop, size)

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except StopIteration:
            self.close()
            raise

    def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.release()

    def __del__(self) -> None:
        self.close()


def _unlinked_file(directory: Path) -> int:
    """A file that no crash leaves behind: it never has a name, or loses it at once."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        # Some file systems (overlay on old kernels, NFS) have no O_TMPFILE.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    path = directory / f"procstar-capture-{os.urandom(6).hex()}"
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    return fd


def _pieces(fd: int, start: int, stop: int, size: int) -> Iterator[bytes]:
    while start < stop:
        data = os.pread(fd, min(size, stop - start), start)
        if not data:
            # The program truncated its own output (`: > /dev/stdout`) after its length was announced.
            data = bytes(min(size, stop - start))
        start += len(data)
        yield data
