"""A message <-> its bytes. The one file that imports msgpack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from apsislib.wire.messages import MESSAGES, Message, WireError, as_text, check, show

MAX_MESSAGE = 16 * 1024 * 1024  # bytes, of every message but ProcFdData; also the agents' limit of one frame
MAX_ITEMS = 100_000  # in one array or map; an array's declared length is allocated before its items arrive
MAX_CONTAINERS = 200_000  # in one message; 16 MiB of empty maps would else become a gigabyte of dicts
MAX_DEPTH = 64  # a ProcResult is 5 deep; json.dumps, which prints it later, ends at about 1,000

_PLAIN = frozenset({str, int, float, bool, type(None), bytes})  # nearly all there is in a message


def encode(message: Mapping[str, Any]) -> bytes:
    """The bytes of `message`, `type` first.

    Raises WireError where a known message lacks a field, has one too many or of the wrong type, and
    where a value has no MessagePack form (a lone surrogate, an integer beyond 64 bits, a set).
    """
    kind = message.get("type")
    if type(kind) is not str:
        raise WireError(f"a message needs a string `type`, not {show(kind)}")
    fields = MESSAGES.get(kind)
    if fields is not None:
        check(kind, message, fields, exact=True)
    ordered = {"type": kind, **message}
    _walk(ordered)
    try:
        data: bytes = msgpack.packb(ordered, use_bin_type=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise WireError(f"can't encode {kind}: {error}") from error
    return data


def decode(data: bytes | bytearray, limit: int = MAX_MESSAGE) -> Message:
    """The message that `data` holds; of a known type only if every field that it must have is sound.

    A message of an unknown type comes back as it is. Raises WireError, naming what is wrong.
    """
    if len(data) > limit:
        raise WireError(f"a message of {len(data)} bytes, more than the limit of {limit}")
    containers = 0

    def count(value: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise WireError(f"more than {MAX_CONTAINERS} maps and arrays in one message")
        return value

    # Calling back costs time, and what is small cannot hold many.
    hook = count if len(data) > MAX_CONTAINERS else None
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            object_hook=hook,
            list_hook=hook,
        )
    except WireError:
        raise
    except msgpack.ExtraData as error:
        raise WireError(f"{len(error.extra)} bytes after the message") from error
    except (ValueError, msgpack.UnpackException, TypeError, OverflowError) as error:
        raise WireError(f"not MessagePack: {str(error) or type(error).__name__}") from error
    if type(value) is not dict:
        raise WireError(f"a message is a map, not {show(value)}")
    _walk(value)
    kind = value.get("type")
    if isinstance(kind, bytes):
        kind = value["type"] = as_text(kind, "type")
    if type(kind) is not str:
        raise WireError(f"a message needs a string `type`, not {show(kind)}", value)
    fields = MESSAGES.get(kind)
    if fields is not None:
        check(kind, value, fields, exact=False)
    return value


def _walk(value: Any, depth: int = 1) -> None:
    """Raise WireError at a key that is no string, a value of a foreign type, and below MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise WireError(f"a message nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise WireError(f"keys of a map must be strings, not {show(key)}")
        value = value.values()
    for item in value:
        if type(item) in _PLAIN:
            continue
        if isinstance(item, msgpack.ExtType | msgpack.Timestamp):  # the former is a tuple as well
            raise WireError("extension types have no meaning in a message")
        if isinstance(item, dict | list | tuple):
            _walk(item, depth + 1)


def scalar(data: bytearray, at: int, end: int) -> Any:
    """The value without items that data[at:end] holds."""
    try:
        return msgpack.unpackb(data[at:end], raw=False)
    except ValueError as error:
        raise WireError(f"not MessagePack: {error}") from error
