"""Noticing that files of a directory have changed: told by the kernel of Linux, which costs nothing while
nothing changes. Where it cannot tell (inotify is missing, or its watches are used up), by looking."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import struct
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

QUIET = 0.5  # s without a change before it is looked at: editors and git write in several steps
# Of a directory and what is in it: modified, attributes, moved from, moved to, created, deleted, itself
# deleted, itself moved. Of the directory above only what makes it another: its names, not their contents.
_MASK = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_NAMES = 0x40 | 0x80 | 0x100 | 0x200
_HEAD = struct.Struct("iIII")  # watch, mask, cookie, length of the name
_NONBLOCK, _CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC

Signature = Mapping[str, tuple[int, int, int]]


def signature(root: Path, suffix: str) -> Signature:
    """What tells one state of the files below a directory from another: identity, size and time of each."""
    found: dict[str, tuple[int, int, int]] = {}
    for directory, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if name.endswith(suffix) and not name.startswith("."):
                path = os.path.join(directory, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _directories(root: Path) -> list[str]:
    found = []
    for directory, inner, _ in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found.append(directory)
    return found


class Watcher:
    """Calls `changed` when files below a directory are not as they were, in a thread of its own."""

    def __init__(self, root: Path, suffix: str, changed: Callable[[], None], every: float) -> None:
        """What is there now is what `changed` need not be called for. `every`: seconds between two looks
        where the system does not tell."""
        self._every = every
        self._root = root
        self._suffix = suffix
        self._changed = changed
        self._seen = signature(root, suffix)
        self._wake, self._waker = os.pipe2(_NONBLOCK | _CLOEXEC)
        self._thread = threading.Thread(target=self._watch_for_ever, name="apsis-watch")

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None) -> list[str]:
        """Answers the name of the thread if it goes on."""
        os.write(self._waker, b"x")
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            return [self._thread.name]
        os.close(self._wake)
        os.close(self._waker)
        return []

    def _watch_for_ever(self) -> None:
        """(apsis-watch) Ends when stop() was called."""
        notifier = _Notifier.make()
        try:
            while True:
                # Watched first, then looked at: what changes in between is seen twice, not never.
                told = notifier is not None and notifier.watch(self._root)
                self._look()
                while True:
                    if self._sleep(notifier if told else None, None if told else self._every):
                        return
                    if notifier is None or not told or notifier.drain():
                        break
                while notifier is not None and not self._sleep(notifier, QUIET) and notifier.drain():
                    pass
        finally:
            if notifier is not None:
                notifier.close()

    def _sleep(self, notifier: _Notifier | None, seconds: float | None) -> bool:
        """Until there is news or the time is over; whether it is time to end."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if notifier is not None:
            poll.register(notifier.descriptor, select.POLLIN)
        ready = poll.poll(None if seconds is None else seconds * 1000)
        return any(descriptor == self._wake for descriptor, _ in ready)

    def _look(self) -> None:
        now = signature(self._root, self._suffix)
        if now != self._seen:
            self._seen = now
            try:
                self._changed()
            except Exception:
                log.error("the change of %s could not be taken up:\n%s", self._root, traceback.format_exc())


class _Notifier:
    """inotify, through libc: the standard library has no door to it."""

    def __init__(self, libc: ctypes.CDLL, descriptor: int) -> None:
        self._libc = libc
        self.descriptor = descriptor
        self._above = -1  # the watch of the directory above
        self._name = b""

    @classmethod
    def make(cls) -> _Notifier | None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            descriptor = libc.inotify_init1(_NONBLOCK | _CLOEXEC)
        except (OSError, AttributeError):
            return None
        return None if descriptor < 0 else cls(libc, descriptor)

    def watch(self, root: Path) -> bool:
        """Watch all directories below `root`, and its name in the one above; whether all of them are.

        To watch what is watched already changes nothing.
        """
        self._name = os.fsencode(root.absolute().name)
        self._above = self._add(str(root.absolute().parent), _NAMES)
        added: dict[str, int] = {}
        # Until there is none that was made after its own directory was listed, before that was watched.
        while new := [directory for directory in _directories(root) if directory not in added]:
            added |= {directory: self._add(directory, _MASK) for directory in new}
        return self._above >= 0 and all(number >= 0 for number in added.values())

    def _add(self, path: str, mask: int) -> int:
        return int(self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), mask))

    def drain(self) -> bool:
        """Take what it tells; whether anything of it matters."""
        matters = False
        while True:
            try:
                data = os.read(self.descriptor, 65536)
            except BlockingIOError:
                return matters
            at = 0
            while at < len(data):
                number, _, _, length = _HEAD.unpack_from(data, at)
                name = data[at + _HEAD.size : at + _HEAD.size + length].rstrip(b"\0")
                at += _HEAD.size + length
                matters = matters or number != self._above or name == self._name

    def close(self) -> None:
        os.close(self.descriptor)
