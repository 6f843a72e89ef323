"""A ProcFdData in pieces, both directions: its output may be hundreds of MB, and is never held as a whole."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from apsislib.wire.codec import MAX_MESSAGE, decode, encode, scalar
from apsislib.wire.messages import MESSAGES, Message, WireError, check, proc_fd_data

MAX_PIECE = 1024 * 1024  # bytes of output handed on at a time: what the writer stores in one transaction
MAX_HEAD = 64 * 1024  # bytes before `data` of a streamed ProcFdData; real ones have about 120
MAX_TAIL = 64 * 1024  # bytes of unknown fields after `data` of a streamed ProcFdData; none are known
MAX_BIN = 2**32 - 1  # bytes; MessagePack has no longer one


def fd_data_pieces(
    proc_id: str,
    fd: str,
    start: int,
    size: int,
    pieces: Iterable[bytes],
    encoding: str | None = None,
) -> Iterator[bytes]:
    """The bytes of one ProcFdData in pieces, for output too large to hold in memory.

    The pieces must add up to `size` bytes, which is promised before the first of them is read; where
    the output proves shorter or longer WireError is raised and the message cannot be saved.
    """
    if not 0 <= size <= MAX_BIN:
        raise WireError(f"{size} bytes of output don't fit one message; ask for at most {MAX_BIN}")
    empty = encode(proc_fd_data(proc_id, fd, start, b"", encoding) | {"stop": start + size})
    yield empty[: -len(_bin_header(0))] + _bin_header(size)
    left = size
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        if piece:
            yield piece
    if left:
        raise WireError(f"output of {proc_id} {fd} is not the {size} bytes promised")


def _bin_header(size: int) -> bytes:
    if size < 0x100:
        return struct.pack(">BB", 0xC4, size)
    if size < 0x10000:
        return struct.pack(">BH", 0xC5, size)
    return struct.pack(">BI", 0xC6, size)


@dataclass(frozen=True, slots=True)
class FdHead:
    """The beginning of a ProcFdData: `size` bytes of output follow, in pieces, then FdEnd.

    `start` and `stop` are what the agent claims; compare `stop - start` with `size`.
    """

    proc_id: str
    fd: str
    start: int
    stop: int
    encoding: str | None
    size: int


@dataclass(frozen=True, slots=True)
class FdEnd:
    """The ProcFdData whose FdHead came before is complete."""


Item = Message | FdHead | bytes | FdEnd


class Stream:
    """Decodes the messages of one connection as their bytes arrive, in memory bounded by `limit`.

    A ProcFdData becomes FdHead, its bytes in pieces of at most 1 MiB, and FdEnd; it is handed through
    as it arrives if all other fields precede `data`, which they do in every known agent, and is else
    held back within `limit`. Every other message becomes a dict, once complete. `limit` may be changed
    between messages: who has not yet registered deserves less.

    After a WireError the rest of that message is skipped, so that a caller who can live without it
    may go on; an FdHead without FdEnd then means that its output is incomplete.
    """

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self.limit = limit
        self._clear()

    def _clear(self) -> None:
        self._held = bytearray()  # of this message, not yet handed on
        self._plain = False  # the message is to be decoded as a whole
        self._skip = False  # the message failed
        self._data_left: int | None = None  # bytes of `data` still to come; None before they begin
        self._tail_pairs = 0  # fields after `data`

    def feed(self, data: bytes, last: bool) -> list[Item]:
        """What has become known by the next bytes of a message; `last` if the message ends with them."""
        items: list[Item] = []
        try:
            if not self._skip:
                self._feed(data, last, items)
        except WireError:
            self._skip = True
            self._held = bytearray()
            raise
        finally:
            if last:
                self._clear()
        return items

    def _feed(self, data: bytes, last: bool, items: list[Item]) -> None:
        if self._data_left is None:
            if last and len(self._held) + len(data) <= self.limit:
                self._whole(self._held + data if self._held else data, items)
                return
            self._held += data
            if not self._plain:
                self._look(items)
            if self._data_left is None:
                if last or len(self._held) > self.limit:
                    raise WireError(f"a message of more than {self.limit} bytes")
                return
            data, self._held = bytes(self._held), bytearray()
        if self._data_left:
            taken = min(self._data_left, len(data))
            _hand_on(memoryview(data)[:taken], items)
            self._data_left -= taken
            data = data[taken:]
        self._held += data
        if len(self._held) > MAX_TAIL:
            raise WireError(f"more than {MAX_TAIL} bytes after the data of a ProcFdData")
        if last:
            if self._data_left:
                raise WireError(f"a ProcFdData that ends {self._data_left} bytes too early")
            # Known fields all came before: what is left need only be sound.
            decode(_map_header(self._tail_pairs + 1) + b"\xa4type\xa1-" + self._held)
            items.append(FdEnd())

    def _whole(self, data: bytes | bytearray, items: list[Item]) -> None:
        message = decode(data, self.limit)
        if message["type"] != "ProcFdData":
            items.append(message)
            return
        output = message["data"]
        items.append(_head(message, len(output)))
        _hand_on(memoryview(output), items)
        items.append(FdEnd())

    def _look(self, items: list[Item]) -> None:
        """Find out whether what is held begins a ProcFdData that can be handed through."""
        try:
            found = _scan(self._held)
        except _NotYet:
            self._plain = len(self._held) > MAX_HEAD
            return
        if found is None:
            self._plain = True
            return
        message, at, size, self._tail_pairs = found
        items.append(_head(message, size))
        del self._held[:at]
        self._data_left = size


def _hand_on(data: memoryview, items: list[Item]) -> None:
    items.extend(bytes(data[at : at + MAX_PIECE]) for at in range(0, len(data), MAX_PIECE))


def _head(message: Message, size: int) -> FdHead:
    return FdHead(
        message["proc_id"], message["fd"], message["start"], message["stop"], message["encoding"], size
    )


class _NotYet(Exception):
    """More bytes are needed to tell."""


# Sizes of the values that have no items, by their first byte: (bytes of the length, bytes of the value).
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}


def _scan(data: bytearray) -> tuple[Message, int, int, int] | None:
    """(fields before, offset of the first byte of data, size of data, fields after) of a ProcFdData.

    None if it is another message, or one that must be taken as a whole. Raises _NotYet.
    """
    pairs, at = _map_size(data)
    message: Message = {}
    while pairs:
        key_at = at
        at = _value_end(data, at)
        key = scalar(data, key_at, at) if at else None
        if type(key) is not str:
            return None
        if key == "data":
            break
        value_at = at
        at = _value_end(data, at)
        if not at:
            return None
        message[key] = scalar(data, value_at, at)
        if "type" in message and message["type"] != "ProcFdData":
            return None
        pairs -= 1
    fields = MESSAGES["ProcFdData"]
    if (
        not pairs
        or message.get("type") != "ProcFdData"
        or len(message.keys() & fields.keys()) < len(fields) - 1
    ):
        return None
    code = _byte(data, at)
    if code not in (0xC4, 0xC5, 0xC6):
        return None
    width = _SIZED[code]
    if len(data) < at + 1 + width:
        raise _NotYet
    size = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    check("ProcFdData", message | {"data": b""}, fields, exact=False)
    return message, at + 1 + width, size, pairs - 1


def _byte(data: bytearray, at: int) -> int:
    if at >= len(data):
        raise _NotYet
    return data[at]


def _map_size(data: bytearray) -> tuple[int, int]:
    """(pairs, length of the header) of the map that `data` begins with; (0, 0) if it is none."""
    code = _byte(data, 0)
    if 0x80 <= code <= 0x8F:
        return code & 0x0F, 1
    width = {0xDE: 2, 0xDF: 4}.get(code)
    if width is None:
        return 0, 0
    if len(data) < 1 + width:
        raise _NotYet
    return int.from_bytes(data[1 : 1 + width], "big"), 1 + width


def _map_header(pairs: int) -> bytes:
    return struct.pack(">BI", 0xDF, pairs)


def _value_end(data: bytearray, at: int) -> int:
    """The offset after the value at `at`; 0 if it has items. Raises _NotYet if it isn't all there."""
    code = _byte(data, at)
    if code <= 0x7F or code >= 0xE0:
        end = at + 1
    elif 0xA0 <= code <= 0xBF:
        end = at + 1 + (code & 0x1F)
    elif code in _FIXED:
        end = at + 1 + _FIXED[code]
    elif code in _SIZED:
        width = _SIZED[code]
        if len(data) < at + 1 + width:
            raise _NotYet
        end = at + 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
    else:
        return 0
    if len(data) < end:
        raise _NotYet
    return end
