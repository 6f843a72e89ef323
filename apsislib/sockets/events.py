"""What a connection tells its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Close codes, RFC 6455 section 7.4.
NORMAL, GOING_AWAY, UNSUPPORTED, ABNORMAL, POLICY, TOO_BIG, FAILED = 1000, 1001, 1003, 1006, 1008, 1009, 1011


class Full(ConnectionError):
    """The peer does not read: what is queued for it would exceed the limit."""


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a binary message; the whole where the connection assembles. `last` ends the message."""

    data: bytes
    last: bool = True


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a text message; the whole where the connection assembles. `last` ends the message."""

    data: str
    last: bool = True


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer answered a ping, or says so."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over; the last event, and the answer of every later poll.

    `code` is the peer's, or ours where the peer never sent one; 1006 where there was neither. `why`:
    "peer" closed it in order; "local": we did; "protocol": the peer broke the rules and was told
    `code`; "lost": the socket ended or failed without a word.
    """

    code: int
    reason: str
    why: Literal["peer", "local", "protocol", "lost"]


Event = Data | Text | Pong | Closed
