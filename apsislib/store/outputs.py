"""Outputs as chunks: appended to without gap or repetition, read back window by window.

A chunk holds at most 256 KiB. A program that says twenty bytes a second must neither make a row of
each twenty bytes nor have its last 256 KiB rewritten each second, so the tail grows as a binary
counter does: what comes is joined to the last chunk while that is tiny or no larger than what
comes. A byte is rewritten some six times at most, and an output has only a few small chunks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from sqlite3 import Connection
from typing import Any

from apsislib.errors import ApsisError

CHUNK = 256 * 1024  # bytes before compression: what a reader must unpack to see any byte of it
PIECE = CHUNK  # bytes read at a time of what others have packed
TINY = 4 * 1024  # bytes: a page; a smaller chunk always takes up what comes after it
PLAIN = 256  # bytes: zlib gains nothing below
# On job logs: level 1 packs to 0.41 at 83 MB/s, level 6 to 0.36 at 25 MB/s, measured on 2 cores. The
# writer has transitions to commit meanwhile.
LEVEL = 1


class Gap(ValueError):
    """Output arrived beyond the end of what there is."""


def splice(length: int, offset: int, data: bytes) -> bytes:
    """What of `data`, which begins at `offset`, follows the first `length` bytes. Gap: it begins later."""
    if offset > length:
        raise Gap(
            f"output has {length} bytes, and what came begins at {offset}: the bytes between are missing"
        )
    return data[length - offset :] if offset < length else data


def open_output(db: Connection, number: int, output_id: str, name: str, content_type: str) -> tuple[int, int]:
    """The row ID and length of an output, made if it is new."""
    row = db.execute("SELECT id, length FROM outputs WHERE number = ? AND output_id = ?", (number, output_id))
    found: tuple[int, int] | None = row.fetchone()
    if found:
        return found
    made = db.execute(
        "INSERT INTO outputs (number, output_id, name, content_type, length) VALUES (?, ?, ?, ?, 0)",
        (number, output_id, name, content_type),
    )
    assert made.lastrowid is not None
    return made.lastrowid, 0


def length_of(db: Connection, number: int, output_id: str) -> int:
    """Bytes of an output, 0 if there is none."""
    row = db.execute(
        "SELECT length FROM outputs WHERE number = ? AND output_id = ?", (number, output_id)
    ).fetchone()
    return row[0] if row else 0


def append(db: Connection, output: int, length: int, data: bytes) -> int:
    """Put `data` at the end of an output of `length` bytes. Returns the new length."""
    new_length = length + len(data)
    start, data = _join_tail(db, output, length, data)
    for at in range(0, len(data), CHUNK):
        codec, packed = _pack(data[at : at + CHUNK])
        db.execute(
            "INSERT INTO chunks (output, start, size, codec, data) VALUES (?, ?, ?, ?, ?)",
            (output, start + at, min(CHUNK, len(data) - at), codec, packed),
        )
    db.execute("UPDATE outputs SET length = ? WHERE id = ?", (new_length, output))
    return new_length


def _join_tail(db: Connection, output: int, end: int, data: bytes) -> tuple[int, bytes]:
    """`data`, which begins at `end`, with the chunks before it that are to be one with it, taken out."""
    while end and data:
        tail = db.execute(
            "SELECT rowid, start, size FROM chunks WHERE output = ? ORDER BY start DESC LIMIT 1", (output,)
        ).fetchone()
        if tail is None:
            break
        row, start, size = tail
        if size + len(data) > CHUNK or (size >= TINY and size > len(data)):
            break
        codec, packed = db.execute("SELECT codec, data FROM chunks WHERE rowid = ?", (row,)).fetchone()
        data = _unpack(codec, packed) + data
        db.execute("DELETE FROM chunks WHERE rowid = ?", (row,))
        end = start
    return end, data


def window(db: Connection, output: int, position: int) -> tuple[int, bytes] | None:
    """The chunk that holds the byte at `position`, with its start; None where there is none.

    By position, because the writer may join chunks between two calls. zlib.error: it is damaged.
    """
    row = db.execute(
        "SELECT start, size, codec, data FROM chunks"
        " WHERE output = ? AND start <= ? ORDER BY start DESC LIMIT 1",
        (output, position),
    ).fetchone()
    if row is None or position >= row[0] + row[1]:
        return None
    start, _, codec, packed = row
    return start, _unpack(codec, packed)


def sound(db: Connection, output: int) -> int:
    """How many bytes of an output are there, from its beginning to the first that is missing or damaged."""
    end = 0
    for start, size, codec, packed in db.execute(
        "SELECT start, size, codec, data FROM chunks WHERE output = ? ORDER BY start", (output,)
    ):
        try:
            whole = start == end and len(_unpack(codec, packed)) == size
        except zlib.error:
            whole = False
        if not whole:
            return end
        end += size
    return end


def _pack(data: bytes) -> tuple[int, bytes]:
    if len(data) >= PLAIN:
        packed = zlib.compress(data, LEVEL)
        if len(packed) < len(data) * 0.95:
            return 1, packed
    return 0, data


def _unpack(codec: int, data: bytes) -> bytes:
    return zlib.decompress(data) if codec else data


# -- what Apsis 2 has packed -----------------------------------------------------------------------

NO_BROTLI = "packed by Brotli, which takes a Python package that is missing: pip install brotli"
BITE = 4096  # bytes; of these Brotli may make a lot


def unpacked(pieces: Iterable[bytes], compression: str | None) -> Iterator[bytes]:
    """The bytes of an output, in pieces of bounded size, also where a few bytes stand for many.

    ApsisError: they are damaged, packed in a way that nobody knows, or by Brotli, which is missing.
    """
    if compression is None:
        yield from pieces
        return
    ways: dict[str, Callable[[Iterable[bytes]], Iterator[bytes]]] = {
        "gzip": lambda pieces: _inflated(pieces, 31),  # with gzip's header
        "deflate": lambda pieces: _inflated(pieces, 15),
        "br": _unbrotlied,
    }
    if compression not in ways:
        raise ApsisError(f"unknown compression: {compression}")
    yield from ways[compression](pieces)


def _inflated(pieces: Iterable[bytes], wbits: int) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=wbits)
    try:
        for piece in pieces:
            while piece:
                yield unpacker.decompress(piece, PIECE)
                piece = unpacker.unconsumed_tail
        yield unpacker.flush()
    except zlib.error as error:
        raise ApsisError(f"its bytes are damaged: {error}") from error
    if not unpacker.eof:
        raise ApsisError("its bytes are damaged: they are cut off")


def has_brotli() -> bool:
    try:
        import brotli  # noqa: F401
    except ImportError:
        return False
    return True


def _unbrotlied(pieces: Iterable[bytes]) -> Iterator[bytes]:
    try:
        import brotli
    except ImportError:
        raise ApsisError(f"it is {NO_BROTLI}") from None
    unpacker: Any = brotli.Decompressor()
    bounded = hasattr(unpacker, "can_accept_more_data")  # of version 1.2 on
    try:
        for piece in pieces:
            for at in range(0, len(piece), BITE):
                bite = piece[at : at + BITE]
                if not bounded:
                    yield unpacker.process(bite)
                    continue
                made = unpacker.process(bite, output_buffer_limit=PIECE)
                yield made
                while len(made) >= PIECE or not unpacker.can_accept_more_data():
                    made = unpacker.process(b"", output_buffer_limit=PIECE)
                    yield made
    except brotli.error as error:
        raise ApsisError(f"its bytes are damaged: {error}") from error
    if not unpacker.is_finished():
        raise ApsisError("its bytes are damaged: they are cut off")
