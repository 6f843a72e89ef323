"""What waits to be sent over one WebSocket, and how it becomes frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable

from wsproto import events as ws
from wsproto.connection import Connection as Protocol

MAX_FRAME = 1024 * 1024  # bytes of payload; agents refuse frames above 16 MiB, and what is in hand is memory
WRITE_JOIN = 64 * 1024  # bytes up to which small frames share one send

Outgoing = bytes | str


class _Pieces:
    """A message sent as one fragment a piece, asked for as the socket takes them."""

    def __init__(self, pieces: Iterable[Outgoing], counted: bool) -> None:
        self.counted = counted  # its bytes were added to the queued ones
        self._pieces = _split(pieces)
        self._ahead: Outgoing | None = None  # asked for already, to know whether the one before is the last

    def take(self) -> tuple[Outgoing, bool]:
        """(the next piece, whether it is the last)."""
        piece = next(self._pieces, b"") if self._ahead is None else self._ahead
        self._ahead = next(self._pieces, None)
        return piece, self._ahead is None

    def close(self) -> None:
        self._pieces.close()


def _split(pieces: Iterable[Outgoing]) -> Generator[Outgoing, None, None]:
    """The pieces, none empty, none larger than a frame may be."""
    for piece in pieces:
        for at in range(0, len(piece), MAX_FRAME):
            yield piece if len(piece) <= MAX_FRAME else piece[at : at + MAX_FRAME]


class Outbox:
    """Messages in order; control frames overtake them, also between the fragments of one."""

    def __init__(self, protocol: Protocol) -> None:
        self.queued = 0  # bytes in messages, where they can be known
        self._protocol = protocol
        self._control: deque[bytes] = deque()  # encoded, go before the next data frame
        self._messages: deque[Outgoing | _Pieces] = deque()

    def __bool__(self) -> bool:
        return bool(self._control or self._messages)

    @property
    def control(self) -> int:
        """How many control frames wait."""
        return len(self._control)

    def add_control(self, frame: bytes) -> None:
        self._control.append(frame)

    def add(self, message: Outgoing) -> None:
        self.queued += len(message)
        small = len(message) <= MAX_FRAME
        self._messages.append(message if small else _Pieces((message,), counted=True))

    def add_pieces(self, pieces: Iterable[Outgoing]) -> None:
        self._messages.append(_Pieces(pieces, counted=False))

    def encode(self) -> bytearray:
        """The frames that are to be written next, small ones joined; empty if nothing waits."""
        out = bytearray()
        while len(out) < WRITE_JOIN:
            if self._control:
                out += self._control.popleft()
            elif self._messages:
                out += self._next_frame()
            else:
                break
        return out

    def _next_frame(self) -> bytes:
        message = self._messages[0]
        if isinstance(message, _Pieces):
            piece, last = message.take()
            counted = message.counted
        else:
            piece, last, counted = message, True, True
        if last:
            self._messages.popleft()
        if counted:
            self.queued -= len(piece)
        if isinstance(piece, str):
            return self._protocol.send(ws.TextMessage(piece, message_finished=last))
        return self._protocol.send(ws.BytesMessage(piece, message_finished=last))

    def clear(self) -> None:
        """Forget everything; iterators are closed."""
        self._control.clear()
        for message in self._messages:
            if isinstance(message, _Pieces):
                message.close()
        self._messages.clear()
        self.queued = 0
