"""One WebSocket over one socket: what arrives, as events; what is to be sent, as a queue; in one thread."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from wsproto import events as ws
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionState, ConnectionType

from apsislib.clock import Clock
from apsislib.sockets.assembly import Assembly, TooBig
from apsislib.sockets.events import ABNORMAL, NORMAL, TOO_BIG, Closed, Event, Full, Pong
from apsislib.sockets.outbox import Outbox, Outgoing

MAX_PENDING = 64 * 1024 * 1024  # bytes; above it the peer reads so slowly that nobody is served by more
MAX_CONTROL = 64  # answers to Pings not yet taken by the socket; with more, reading waits for writing
READ_SMALL, READ_LARGE = 16 * 1024, 64 * 1024  # bytes of one recv; from 128 KiB on each costs an mmap
READ_ROUND = 256 * 1024  # bytes read before events are handed over
WRITE_ROUND = 4 * 1024 * 1024  # bytes written before reading has its turn
CLOSE_TIMEOUT = 5.0  # seconds for the peer to answer a Close, and for us to be rid of what is queued


class Connection:
    """One end of an open WebSocket. Everything here is for the one thread that owns it, save post(), wake(),
    kill(), `closed` and `pending`.

    The owner calls poll() until it returns a Closed. Messages come in pieces of at most 64 KiB as they
    arrive, or whole if `assemble` gives the largest size in bytes that is to be joined (a larger one
    is refused with 1009). Pings are answered here, once each, and never otherwise is a Pong sent. Nothing
    is sent unasked. Whether the peer has gone silent is for the owner to judge, from `last_received`.

    `sock` may be a TLS socket whose handshake is done; it belongs to the connection from now on, and
    `leftover` is what was read from it beyond the opening handshake.
    """

    def __init__(
        self,
        sock: socket.socket,
        side: Literal["server", "client"],
        clock: Clock,
        *,
        leftover: bytes = b"",
        assemble: int | None = None,
        limit_bytes: int = MAX_PENDING,
        peer: tuple[str, int] = ("", 0),
        path: str = "/",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.peer = peer  # address and port of the other end
        self.path = path  # of the request that opened the connection, query included
        self.headers = dict(headers or {})  # of that request (server side), names in lower case
        self.clock = clock
        self.closed: Closed | None = None
        self.last_received = clock.monotonic()  # when bytes of any kind last arrived
        self.limit_bytes = limit_bytes  # of `pending`, above which send() refuses
        self._sock = sock
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # a Unix socket has no Nagle
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._protocol = Protocol(
            ConnectionType.SERVER if side == "server" else ConnectionType.CLIENT, trailing_data=leftover
        )
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._wake_in, select.POLLIN)
        self._mask: int | None = None  # what the socket is registered for; None while it is not

        self._lock = threading.Lock()  # protects _posted, _posted_bytes, _woken and closing; leaf
        self._posted: deque[Callable[[], object] | Outgoing] = deque()
        self._posted_bytes = 0
        self._woken = False  # a byte is on its way through the wake pair

        self._events: list[Event] = []
        self._assembly = Assembly(assemble)
        self._leftover = bool(leftover)  # the protocol holds bytes that came with the handshake
        self._more = True  # there may be bytes that poll() can't see: ours, or those in the TLS layer
        self._read_size = READ_SMALL
        self._hung_up = False  # poll() reports the end of the stream, and would for ever
        self._read_needs_write = False  # TLS
        self._write_needs_read = False  # TLS

        self._outbox = Outbox(self._protocol)
        self._out = memoryview(b"")  # encoded, being taken by the socket
        self._deaf = False  # the socket refuses to take more; what it still holds for us is read
        self._close: tuple[int, str] | None = None  # to be sent after _messages
        self._discard = False  # of what arrives nothing matters any more
        self._ending: Closed | None = None  # to be reported when _out is flushed or the peer has answered
        self._answered = False  # both Close frames are on their way
        self._close_by: float | None = None  # monotonic

    # ---- for any thread ------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Bytes queued but not yet taken by the socket; of send_fragments() only the piece in hand counts."""
        return self._outbox.queued + self._posted_bytes + len(self._out)

    def post(self, item: Callable[[], object] | Outgoing) -> bool:
        """Have the owner's thread call `item` within its poll(), or send it if it is a message.

        False if the connection is over, so that certainly nothing will come of it. Raises Full.
        """
        size = 0 if callable(item) else len(item)
        with self._lock:
            if self.closed is not None:
                return False
            if size:
                self._room(size)
            self._posted.append(item)
            self._posted_bytes += size
            self._wake_locked()
        return True

    def wake(self) -> None:
        """Make the owner's poll() return."""
        with self._lock:
            self._wake_locked()

    def _wake_locked(self) -> None:
        if not self._woken and self.closed is None:
            self._woken = True
            with contextlib.suppress(OSError):
                self._wake_out.send(b"\0")

    def kill(self) -> None:
        """End the socket under its owner, who will see it as lost: the last resort of who stops threads."""
        with self._lock, contextlib.suppress(OSError):
            # Not the method of SSLSocket, which would throw away the TLS state that the owner is using.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    # ---- sending -------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing is queued; everything sent was taken by the socket."""
        return not (self._outbox or self._out or self._posted)

    def send(self, message: Outgoing) -> bool:
        """Queue a message, binary or text; it leaves at the next poll(), large ones in frames of 1 MiB.

        False if the connection is closing or over. Raises Full if `pending` would exceed `limit_bytes`;
        an empty queue takes a message of any size.
        """
        if self.closed is not None or self._discard or self._deaf:
            return False
        self._room(len(message))
        self._outbox.add(message)
        return True

    def send_fragments(self, pieces: Iterable[Outgoing]) -> bool:
        """Queue one message made of `pieces`, at least one asked for at a time, as the socket takes them.

        All of them bytes, or all text. What the iterator raises comes out of poll(), the connection
        dropped, since half a message cannot be taken back.
        """
        if self.closed is not None or self._discard or self._deaf:
            return False
        self._outbox.add_pieces(pieces)
        return True

    def ping(self, payload: bytes = b"") -> None:
        """Send a Ping; it overtakes queued messages."""
        if self.closed is None and self._protocol.state is ConnectionState.OPEN and not self._deaf:
            self._outbox.add_control(self._protocol.send(ws.Ping(payload)))

    def close(self, code: int = NORMAL, reason: str = "", timeout: float = CLOSE_TIMEOUT) -> None:
        """Send what is queued, then a Close, and await the answer; after `timeout` seconds drop the socket.

        Messages that arrive meanwhile are discarded. poll() on, until it returns Closed.
        """
        if self.closed is None and self._close is None and self._ending is None:
            self._close = (code, reason)
            self._discard = True
            self._close_by = self.clock.monotonic() + timeout

    def abort(self, reason: str = "dropped") -> None:
        """Drop the socket at once, without a word."""
        self._end(Closed(ABNORMAL, reason, "local"))

    def finish(self) -> Closed:
        """Poll until the connection is over, discarding what arrives; call close() before."""
        while True:
            for event in self.poll():
                if isinstance(event, Closed):
                    return event

    def _room(self, size: int) -> None:
        if self.pending and self.pending + size > self.limit_bytes:
            raise Full(
                f"{self.peer[0]}:{self.peer[1]} reads too slowly: {self.pending} bytes are queued,"
                f" and {size} more exceed the limit of {self.limit_bytes}"
            )

    # ---- the loop ------------------------------------------------------------------------------

    def poll(self, timeout: float | None = None, want_read: bool = True) -> list[Event]:
        """Send, wait, receive: one round, of at most `timeout` seconds (None: until something happens).

        Returns what arrived, perhaps nothing: also after a wake(), and after mere sending, so that who
        awaits `pending` to fall can look again. With `want_read=False` nothing is read, so that the peer is
        held back while what it has sent is being dealt with; the end of the connection then waits too.
        """
        if self.closed is not None:
            return [self.closed]
        try:
            self._take_posted()
            self._write()
            if self.closed is None:
                self._wait(timeout, want_read)
        except BaseException:
            self.abort("failed")
            raise
        events, self._events = self._events, []
        return events

    def fileno(self) -> int:
        """For an owner whose own poll() waits for other things too; see interest()."""
        return self._sock.fileno()

    def interest(self, want_read: bool = True) -> int | None:
        """The select.poll() events of fileno() at which poll(0, want_read) would next have something to do.

        None if it has at once. Neither posts of other threads nor the timeout of close() show on fileno().
        """
        reading = self._reading(want_read)
        if self._events or self._posted or (reading and self._more):
            return None
        wanted = select.POLLIN if reading else 0
        if self._out or self._outbox:
            wanted |= select.POLLIN if self._write_needs_read else select.POLLOUT
        if self._read_needs_write and reading:
            wanted |= select.POLLOUT
        return wanted

    def _reading(self, want_read: bool) -> bool:
        return (want_read or self._discard) and self._outbox.control < MAX_CONTROL

    def _wait(self, timeout: float | None, want_read: bool) -> None:
        if self._close_by is not None:
            left = max(0.0, self._close_by - self.clock.monotonic())
            timeout = left if timeout is None else min(timeout, left)
        wanted = self.interest(want_read)
        if wanted is None:
            timeout = 0
            wanted = select.POLLIN if self._reading(want_read) else 0
        self._watch(wanted)
        ready = dict(self._poll.poll(None if timeout is None else timeout * 1000))
        if self._wake_in.fileno() in ready:
            self._drain_wake()
            self._take_posted()
        if self.closed is not None:
            return
        state = ready.get(self._sock.fileno(), 0)
        if state & (select.POLLHUP | select.POLLERR):
            self._hung_up = True
        readable = state & ~select.POLLOUT or self._more or self._read_needs_write
        if state:
            self._read_needs_write = self._write_needs_read = False
        if readable and self._reading(want_read):
            self._read()
        if self.closed is None:
            self._write()
        if self.closed is None and self._close_by is not None and self.clock.monotonic() >= self._close_by:
            self._end(self._ending or Closed(ABNORMAL, "no answer to our Close", "local"))

    def _watch(self, wanted: int) -> None:
        """Register the socket for the events that are wanted of it."""
        # Else poll() would return at once, time and again, while nobody wants to read.
        mask = None if self._hung_up and not wanted else wanted
        if mask == self._mask:
            return
        if mask is None:
            self._poll.unregister(self._sock)
        else:
            self._poll.register(self._sock, mask)
        self._mask = mask

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(64)
        with self._lock:
            self._woken = False

    def _take_posted(self) -> None:
        while self._posted and self.closed is None:
            with self._lock:
                item = self._posted.popleft()
                if not callable(item):
                    self._posted_bytes -= len(item)
            if callable(item):
                item()
            elif not self._discard and not self._deaf:
                self._outbox.add(item)

    # ---- receiving -----------------------------------------------------------------------------

    def _read(self) -> None:
        if self._leftover:
            self._leftover = False
            self._parse(b"")
        taken = 0
        self._more = True
        while self.closed is None and taken < READ_ROUND and self._outbox.control < MAX_CONTROL:
            try:
                data = self._sock.recv(self._read_size)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._more = False
                return
            except ssl.SSLWantWriteError:
                self._more, self._read_needs_write = False, True
                return
            except OSError as error:
                self._end(self._ending or Closed(ABNORMAL, str(error), "lost"))
                return
            if not data:
                self._end(self._ending or Closed(ABNORMAL, "the peer ended the connection", "lost"))
                return
            self.last_received = self.clock.monotonic()
            taken += len(data)
            full = len(data) == self._read_size
            if not self._tls:  # which gives one record at most, of 16 KiB
                small = len(data) < READ_SMALL
                self._read_size = READ_LARGE if full else READ_SMALL if small else self._read_size
            if self._ending is None:
                self._parse(data)
            if not full and not self._tls:
                self._more = False
                return

    def _parse(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        for event in self._protocol.events():
            if isinstance(event, ws.Message):
                if not self._discard and not self._message(event):
                    return
            elif isinstance(event, ws.Ping):
                if self._protocol.state is ConnectionState.OPEN and not self._deaf:
                    self._outbox.add_control(self._protocol.send(event.response()))
            elif isinstance(event, ws.Pong):
                if not self._discard:
                    self._events.append(Pong(bytes(event.payload)))
            elif isinstance(event, ws.CloseConnection):
                self._peer_closed(event)
                return

    def _message(self, event: ws.Message[Any]) -> bool:
        try:
            whole = self._assembly.add(event.data, event.message_finished and event.frame_finished)
        except TooBig as error:
            self._fail(TOO_BIG, str(error))
            return False
        if whole is not None:
            self._events.append(whole)
        return True

    def _peer_closed(self, event: ws.CloseConnection) -> None:
        """The peer sent a Close; or wsproto says so of a peer that broke the rules."""
        code, reason = int(event.code), event.reason or ""
        if self._protocol.state is ConnectionState.CLOSED:  # the answer to ours
            self._ending = Closed(code, reason, "local")
            self._answered = True
        elif self._protocol.state is ConnectionState.REMOTE_CLOSING:
            self._outbox.clear()
            self._outbox.add_control(self._protocol.send(event.response()))
            self._ending = Closed(code, reason, "peer")
            self._answered = True
        else:
            self._fail(code, reason)
        self._discard = True
        if self._close_by is None:
            self._close_by = self.clock.monotonic() + CLOSE_TIMEOUT

    def _fail(self, code: int, reason: str) -> None:
        """Tell the peer what it did wrong, and read on so that no reset keeps it from hearing it."""
        self._outbox.clear()
        if self._protocol.state is ConnectionState.OPEN and not self._deaf:
            self._outbox.add_control(self._protocol.send(ws.CloseConnection(code, reason)))
        self._ending = Closed(code, reason, "protocol")
        self._discard = True
        if self._close_by is None:
            self._close_by = self.clock.monotonic() + CLOSE_TIMEOUT

    # ---- writing -------------------------------------------------------------------------------

    def _write(self) -> None:
        taken = 0
        while taken < WRITE_ROUND and not self._deaf and self.closed is None:
            if not self._out and not self._fill():
                break
            try:
                count = self._sock.send(self._out)
            except (BlockingIOError, ssl.SSLWantWriteError):
                return
            except ssl.SSLWantReadError:
                self._write_needs_read = True
                return
            except OSError:
                self._refused()
                return
            self._out = self._out[count:]
            taken += count
        if self._answered and self._ending is not None and (self._deaf or not (self._out or self._outbox)):
            self._end(self._ending)

    def _refused(self) -> None:
        """The socket takes no more. What the peer said before, perhaps a Close, can still be read."""
        self._deaf = True
        self._outbox.clear()
        self._out = memoryview(b"")
        if self._answered and self._ending is not None:
            self._end(self._ending)
            return
        self._more = True
        if self._discard and self._close_by is None:
            self._close_by = self.clock.monotonic() + CLOSE_TIMEOUT

    def _fill(self) -> bool:
        """Encode what comes next; False if there is nothing."""
        out = self._outbox.encode()
        if not out and self._close is not None and self._protocol.state is ConnectionState.OPEN:
            code, reason = self._close
            out += self._protocol.send(ws.CloseConnection(code, reason))
        self._out = memoryview(out)
        return bool(out)

    # ---- the end -------------------------------------------------------------------------------

    def _end(self, closed: Closed) -> None:
        if self.closed is not None:
            return
        if closed.why != "lost" and isinstance(self._sock, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self._sock.unwrap()  # non-blocking: says that the stream is complete, awaits nothing
        with self._lock:
            self.closed = closed
            self._posted.clear()
            self._posted_bytes = 0
            self._wake_in.close()
            self._wake_out.close()
            self._sock.close()
        self._outbox.clear()
        self._out = memoryview(b"")
        self._events.append(closed)
