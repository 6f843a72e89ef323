"""What a disk holds after the power failed: only what was synced, and whatever else luck has put there.

A recorder (recorder.c) is preloaded into a server; from its record the files can be made as they would be
found after a failure at any instant.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HEAD = struct.Struct("=c3xIqqd")
SECTOR = 512  # bytes that are written whole, or not at all


@dataclass(frozen=True, slots=True)
class Event:
    kind: str  # "w", "t", "s", "u": see recorder.c
    name: str
    offset: int
    size: int
    time: float  # CLOCK_BOOTTIME
    data: bytes = field(default=b"", repr=False)


def read(record: Path) -> Iterator[Event]:
    data, at = record.read_bytes(), 0
    while at < len(data):
        kind, length, offset, size, time = HEAD.unpack_from(data, at)
        at += HEAD.size
        name = data[at : at + length].decode()
        at += length
        payload = b""
        if kind == b"w":
            payload = data[at : at + size]
            at += size
        yield Event(kind.decode(), name, offset, size, time, payload)


class Disk:
    """Files, as far as they were synced, and what was done to them since."""

    def __init__(self) -> None:
        self._synced: dict[str, bytearray] = {}
        self._since: dict[str, list[Event]] = {}

    def restore(self, files: Mapping[str, bytes]) -> None:
        """What was there, synced, before the record began."""
        self._synced = {name: bytearray(data) for name, data in files.items()}

    def do(self, event: Event) -> None:
        if event.kind == "u":
            self._synced.pop(event.name, None)
            self._since.pop(event.name, None)
        elif event.kind == "s":
            for done in self._since.pop(event.name, ()):
                _apply(self._synced.setdefault(event.name, bytearray()), done)
            self._synced.setdefault(event.name, bytearray())
        else:
            self._since.setdefault(event.name, []).append(event)

    def failed(self, luck: random.Random | None = None) -> Mapping[str, bytes]:
        """The files after a failure now. `luck`: of what was not synced some is there, out of order, and
        cut at sectors; None: nothing of it is."""
        files = {name: bytearray(data) for name, data in self._synced.items()}
        if luck is not None:
            for name, events in self._since.items():
                for event in events:
                    if luck.random() < 0.5:
                        _apply(files.setdefault(name, bytearray()), _torn(event, luck))
        return {name: bytes(data) for name, data in files.items() if not name.endswith("-shm")}


def _torn(event: Event, luck: random.Random) -> Event:
    if event.kind != "w" or luck.random() < 0.7:
        return event
    kept = event.data[: luck.randrange(0, len(event.data) // SECTOR + 1) * SECTOR]
    return Event("w", event.name, event.offset, len(kept), event.time, kept)


def _apply(data: bytearray, event: Event) -> None:
    if event.kind == "t":
        if event.size < len(data):
            del data[event.size :]
        else:
            data.extend(bytes(event.size - len(data)))
        return
    end = event.offset + len(event.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    data[event.offset : end] = event.data


def write(files: Mapping[str, bytes], directory: Path) -> None:
    """Make `directory` hold these files and no others."""
    for old in directory.iterdir():
        old.unlink()
    for name, data in files.items():
        (directory / name).write_bytes(data)
