"""One connection: what is received becomes requests, answers become bytes."""

from __future__ import annotations

import contextlib
import enum
import http.server
import logging
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from apsislib.api import message, routes
from apsislib.api.message import MAX_HEAD, Refused, Request, Response, failed
from apsislib.clock import Deadline
from apsislib.errors import ApsisError

if TYPE_CHECKING:
    from apsislib.api.server import Server

log = logging.getLogger(__name__)
access = logging.getLogger("access")  # a line for each request: see apsis.set_up_logging

IDLE = 30.0  # s between requests of a connection
HEAD = 10.0  # s for a head, from its first byte; also for a client that sends one byte at a time
BODY = 60.0  # s for a body: 16 MiB at a poor 300 kB/s
SEND = 30.0  # s without a byte taken, after which the client is taken for gone
LINGER = 1.0  # s that a refused client is read from, so that a reset does not take the answer from it
WHOLE = 65536  # bytes up to which head and body share one send


class Phase(enum.Enum):
    """What a connection is about. The first two may be ended for the sake of others."""

    IDLE = "no request, or nothing of it yet"
    PARTIAL = "a part of a request"
    AT_WORK = "a whole request, until its answer was sent"
    LEAVING = "ended for the sake of others, or of the server's stop"


class Crowded(Exception):
    """The connection has to end, for another or with the server, and has not brought a whole request."""


class Exchange(http.server.BaseHTTPRequestHandler):
    """One connection: request, answer, request, answer.

    The base class would read a head line by line and parse it as e-mail, at a third of a millisecond;
    here it comes in as it is received and is taken apart by message.parse_head.
    """

    server: Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.sock: socket.socket = self.request
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.local = self.sock.getsockname()[0]
        self.clock = self.server.parts.clock
        self.held = bytearray()  # received, not yet used
        self.taken = False  # the socket belongs to somebody else now
        self.asked: Request | None = None  # the request under way, once its head has been read

    def finish(self) -> None:
        pass

    def handle(self) -> None:
        while not self.server.closing.is_set():
            self.asked = None
            try:
                head = self._read_head()
                if head is None or not self._exchange(head):
                    return
            except Crowded:
                self._make_room()
                return
            except Refused as refusal:
                self.server.enter(self.sock, Phase.AT_WORK)
                answer = failed(refusal.status, str(refusal))
                self._log(refusal.status)
                self._send(replace(answer, headers=refusal.headers, close=True), head_only=False)
                self.server.enter(self.sock, Phase.PARTIAL)
                self._linger()
                return

    def _exchange(self, head: bytes) -> bool:
        """One request and its answer; whether another may follow."""
        request, keep = message.parse_head(head)
        self.asked = request
        self.server.admit(request, self.local)
        if "upgrade" in request.headers and request.headers["upgrade"].lower() == "websocket":
            if not self.server.enter(self.sock, Phase.AT_WORK):
                raise Crowded
            answer = self._upgrade(request)
            if answer is None:
                self._log(101)
                return False
        else:
            length = message.body_length(request)
            if length:
                request = message.with_body(request, self._read_body(request, length))
            keep &= self.server.enter(self.sock, Phase.AT_WORK)
            answer = self.server.answer(request)
        self._log(answer.status)
        keep = keep and not answer.close and not self.server.closing.is_set()
        if head.partition(b"\r\n")[0].endswith(b"HTTP/1.0") and not answer.measured:
            self._send_to_the_end(answer, request.method == "HEAD")
        else:
            self._send(answer, request.method == "HEAD", keep)
        if answer.after is not None:
            answer.after()
        return keep

    def _log(self, status: int) -> None:
        if access.isEnabledFor(logging.INFO):
            asked = self.asked
            url = "-" if asked is None else asked.path + (f"?{asked.raw_query}" if asked.raw_query else "")
            method = "-" if asked is None else asked.method
            access.info("%s %s %s (%s)", status, method, url, self.client_address[0])

    def _upgrade(self, request: Request) -> Response | None:
        """Give the socket away; or the answer why not."""
        found = routes.find(request)
        if isinstance(found, Response):
            return replace(found, close=True)
        route, request = found
        if route.call is not None:
            return replace(failed(400, "this address is no WebSocket"), close=True)
        try:
            self.server.take_socket(
                route.live, request.params, request.raw_query, request.headers, self.sock, bytes(self.held)
            )
        except ApsisError as error:
            return replace(failed(error.status, str(error)), close=True)
        self.taken = True
        return None

    # -- receiving -----------------------------------------------------------------------------------

    def _read_head(self) -> bytes | None:
        """The next head, without the empty line behind it; None: the client has gone. Raises Refused."""
        if not self.held:
            self.server.enter(self.sock, Phase.IDLE)
            if self.server.closing.is_set():  # after stop() has ended those who were idle before
                return None
            self._wait_for(IDLE)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                return None
            if not data:
                return None
            self.held += data
        deadline: Deadline | None = None
        seen = 0
        while True:
            if self.held[:2] == b"\r\n":  # after a body, from clients that count badly
                del self.held[:2]
            end = self.held.find(b"\r\n\r\n", seen)
            if 0 <= end <= MAX_HEAD:
                head = bytes(self.held[:end])
                del self.held[: end + 4]
                return head
            if len(self.held) > MAX_HEAD:
                raise Refused(431, f"the header is larger than {MAX_HEAD} bytes")
            if b"\n\n" in self.held:
                raise Refused(400, "header lines must end in CR LF")
            seen = max(0, len(self.held) - 3)
            deadline = deadline or Deadline(HEAD, self.clock)
            if not self._more(deadline):
                return None

    def _read_body(self, request: Request, length: int) -> bytes:
        if len(self.held) < length and "expect" in request.headers:
            self._wait_for(0.0)  # 25 bytes, which are taken at once unless earlier answers are not read
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = Deadline(BODY, self.clock)
        while len(self.held) < length:
            if not self._more(deadline):
                raise Refused(400, "the body is shorter than Content-Length says")
        body = bytes(self.held[:length])
        del self.held[:length]
        return body

    def _wait_for(self, seconds: float) -> None:
        """Set how long the socket may block. A call to the system, unless it is so already."""
        if self.sock.gettimeout() != seconds:
            self.sock.settimeout(seconds)

    def _more(self, deadline: Deadline) -> bool:
        """Receive more of a request. False: the stream has ended. Raises Refused, Crowded when time is up."""
        if not self.server.enter(self.sock, Phase.PARTIAL):
            raise Crowded
        left = deadline.left()
        try:
            if not left:
                raise TimeoutError
            self._wait_for(left)
            data = self.sock.recv(262144)
        except TimeoutError:
            raise Refused(408, "the request did not arrive in time") from None
        if not data and not self.server.enter(self.sock, Phase.PARTIAL):
            raise Crowded
        self.held += data
        return bool(data)

    # -- sending -------------------------------------------------------------------------------------

    def _send(self, answer: Response, head_only: bool, keep: bool = False) -> None:
        self._wait_for(SEND)
        head = answer.head(close=not keep)
        body = answer.body
        if head_only or answer.status == 304:
            self.sock.sendall(head)
        elif isinstance(body, bytes):
            if len(body) <= WHOLE:
                self.sock.sendall(head + body)
            else:
                self.sock.sendall(head)
                self.sock.sendall(body)
        else:
            for piece in body if answer.length is not None else _chunks(body):
                self.sock.sendall(head + piece if head else piece)
                head = b""
            if head:
                self.sock.sendall(head)

    def _send_to_the_end(self, answer: Response, head_only: bool) -> None:
        """To a client of HTTP/1.0, which knows no chunks: only a reset tells it that a body is not whole."""
        self._wait_for(SEND)
        self.sock.sendall(answer.head(close=True, chunks=False))
        try:
            for piece in () if head_only else answer.body:
                self.sock.sendall(piece)  # type: ignore[arg-type]
        except BaseException:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()
            raise

    def _make_room(self) -> None:
        """Tell the client why, if that can be done without waiting."""
        why = "stopping" if self.server.closing.is_set() else "busy"
        if why == "busy":
            text = "too many connections: closed one of %s, whose request had not arrived"
            host = self.client_address[0]
            self.server.strangers.say(logging.WARNING, host, text, host)
        answer = failed(503, f"the server is {why}, and the request had not arrived yet; try again")
        answer = replace(answer, headers=(("retry-after", "1"),))
        self._wait_for(0.0)
        with contextlib.suppress(OSError):
            self.sock.sendall(answer.head(close=True) + bytes(answer.body))  # type: ignore[arg-type]

    def _linger(self) -> None:
        """Read what a refused client still sends, for a moment: a reset could overtake the answer."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            deadline = Deadline(LINGER, self.clock)
            while (left := deadline.left()) and not self.server.closing.is_set():
                self._wait_for(left)
                if not self.sock.recv(262144):
                    return


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if piece:  # an empty one would be the last
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"
