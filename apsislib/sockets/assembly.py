"""What arrives of messages, turned into events: piece by piece, or joined into whole ones."""

from __future__ import annotations

from apsislib.sockets.events import Data, Text


class TooBig(Exception):
    """A message is larger than what is joined."""


class Assembly:
    """Joins the pieces of a message, up to `limit` bytes (of text, characters); None hands them on."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._size = 0
        self._part: bytearray | list[str] | None = None  # a bytearray, since pieces may be of one byte each

    def add(self, data: bytes | bytearray | str, last: bool) -> Data | Text | None:
        """The event that these bytes or characters complete. Raises TooBig."""
        if self._limit is None:
            return Text(data, last) if isinstance(data, str) else Data(bytes(data), last)
        self._size += len(data)
        if self._size > self._limit:
            self._part = None
            raise TooBig(f"a message of more than {self._limit} bytes")
        if self._part is None:
            if last:
                self._size = 0
                return Text(data) if isinstance(data, str) else Data(bytes(data))
            self._part = [] if isinstance(data, str) else bytearray()
        if isinstance(data, str):
            assert isinstance(self._part, list)
            if data:
                self._part.append(data)
        else:
            assert isinstance(self._part, bytearray)
            self._part += data
        if not last:
            return None
        part, self._part, self._size = self._part, None, 0
        return Text("".join(part)) if isinstance(part, list) else Data(bytes(part))
