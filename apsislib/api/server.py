"""The HTTP port: sockets, threads, and what every request goes through.

`apsis-http` accepts; each connection is then served by one of a bounded number of `apsis-api-N`,
until it is closed. When all are taken, the connection that has been idle longest makes room; if all
are at work, the newcomer is told 503 at once.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import itertools
import logging
import socket
import socketserver
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from apsislib.api import message, routes
from apsislib.api.message import MAX_HEAD, Refused, Request, Response, failed
from apsislib.api.pages import Pages
from apsislib.api.parts import Parts
from apsislib.clock import Deadline
from apsislib.errors import ApsisError

log = logging.getLogger(__name__)

THREADS = 64  # connections served at once; a browser holds six, a command one
BACKLOG = 128  # connections that the kernel holds for us
IDLE = 30.0  # s between requests of a connection
HEAD = 10.0  # s for a head, from its first byte; also for a client that sends one byte at a time
BODY = 60.0  # s for a body: 16 MiB at a poor 300 kB/s
SEND = 30.0  # s without a byte taken, after which the client is taken for gone
LINGER = 1.0  # s that a refused client is read from, so that a reset does not take the answer from it
WHOLE = 65536  # bytes up to which head and body share one send

# Takes over a connection that becomes a WebSocket: the name of its route, the request's parameters,
# query and headers, the socket, and the bytes that were read beyond the head. Raises an ApsisError before
# anything is written.
TakeSocket = Callable[
    [str, Mapping[str, str], str, Mapping[str, str], socket.socket, bytes],
    None,
]


class Server(http.server.HTTPServer):
    """The port. start() returns once it listens; `address` then says where."""

    request_queue_size = BACKLOG
    allow_reuse_address = True

    def __init__(
        self,
        parts: Parts,
        host: str = "127.0.0.1",
        port: int = 5000,
        *,
        take_socket: TakeSocket,
        allowed_hosts: Iterable[str] = (),
        threads: int = THREADS,
    ) -> None:
        """Binds. Raises OSError. `allowed_hosts`: names besides loopback ones that Host may say."""
        self.parts = parts
        self.take_socket = take_socket
        self.pages = Pages()
        self.names = {message.host_name(name) for name in (host, *allowed_hosts)}
        self.limit = threads
        self.closing = threading.Event()
        # Protects what follows; leaf: take nothing under it.
        self._lock = threading.Lock()
        self._offered = threading.Condition(self._lock)  # _waiting is no longer empty, or closing was set
        self._waiting: deque[tuple[socket.socket, Any]] = deque()  # accepted, not yet taken by a thread
        self._free = 0  # threads that wait for a connection
        self._threads: list[threading.Thread] = []
        self._open: dict[socket.socket, bool] = {}  # being served -> idle; longest idle first among those
        self._numbers = itertools.count(1)
        self._refused: deque[tuple[socket.socket, Deadline]] = deque()  # apsis-http only
        self._accepting = threading.Thread(target=self._accept, name="apsis-http")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.address_family = family
        super().__init__((host, port), Exchange)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service for the machine's name.
        socketserver.TCPServer.server_bind(self)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.server_address[:2]
        return str(host), int(port)

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        self._accepting.start()

    def stop(self, deadline: Deadline) -> list[str]:
        """Accept no more, let requests end, and close. Answers the names of threads still alive.

        After `deadline` connections are cut.
        """
        self.closing.set()
        if self._accepting.ident is not None:
            _shut(self.socket, socket.SHUT_RDWR)  # else it would be a second until the thread wakes
            self.shutdown()
            self._accepting.join(deadline.left())
        for sock, _ in self._refused:
            sock.close()
        self.server_close()
        with self._lock:
            self._offered.notify_all()
            waiting = list(self._waiting)
            self._waiting.clear()
            for sock, idle in self._open.items():
                if idle:
                    _shut(sock, socket.SHUT_RD)
            threads = list(self._threads)
        for sock, _ in waiting:
            sock.close()
        for thread in threads:
            thread.join(deadline.left())
        with self._lock:
            for sock in self._open:
                _shut(sock, socket.SHUT_RDWR)
        for thread in threads:
            thread.join(0.5 if thread.is_alive() else 0)
        return [t.name for t in (self._accepting, *threads) if t.is_alive()]

    def _accept(self) -> None:
        """(apsis-http) Ends when shutdown() was called."""
        self.serve_forever(poll_interval=1.0)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.error("can't accept connections: %s", error)
                # The connection stays in the backlog and would be offered again at once.
                self.closing.wait(0.1)
            raise

    # -- connections and threads -------------------------------------------------------------------

    def process_request(self, request: Any, client_address: Any) -> None:
        """(apsis-http) Give a new connection to a thread."""
        with self._lock:
            if self._free <= len(self._waiting):
                if len(self._threads) < self.limit:
                    name = f"apsis-api-{next(self._numbers)}"
                    thread = threading.Thread(target=self._serve, name=name)
                    self._threads.append(thread)
                    thread.start()
                elif not self._make_room_locked():
                    self._refuse(request)
                    return
            self._waiting.append((request, client_address))
            self._offered.notify()

    def _refuse(self, sock: socket.socket) -> None:
        """(apsis-http) Say that there is no room. The socket is closed a little later by service_actions."""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(_BUSY)
            sock.shutdown(socket.SHUT_WR)
        self._refused.append((sock, Deadline(LINGER, self.parts.clock)))
        if len(self._refused) > BACKLOG:
            self._refused.popleft()[0].close()

    def service_actions(self) -> None:
        """(apsis-http) Called at least every second: close those whose client has read the refusal.

        Closing at once, with the request unread, would reset the connection and could take the answer
        away before it is read.
        """
        while self._refused and (self._refused[0][1].passed() or self.closing.is_set()):
            sock, _ = self._refused.popleft()
            with contextlib.suppress(OSError):
                while sock.recv(65536):
                    pass
            sock.close()

    def _make_room_locked(self) -> bool:
        """Have the connection that has been idle longest closed. False: none is idle."""
        for sock, idle in self._open.items():
            if idle:
                self._open[sock] = False
                # Its thread, waiting for the next request, reads the end of the stream.
                _shut(sock, socket.SHUT_RD)
                return True
        return False

    def _serve(self) -> None:
        """(apsis-api-N) Serve one connection after another. Ends when stop() was called."""
        while True:
            with self._lock:
                self._free += 1
                while not self._waiting and not self.closing.is_set():
                    self._offered.wait()
                self._free -= 1
                if self.closing.is_set():
                    return
                sock, address = self._waiting.popleft()
                self._open[sock] = False
            kept = False
            try:
                exchange = Exchange(sock, address, self)
                kept = exchange.taken
            except OSError as error:
                log.debug("connection of %s lost: %s", address, error)
            except Exception:
                log.exception("connection of %s failed", address)
            with self._lock:
                del self._open[sock]
            if not kept:
                self.shutdown_request(sock)

    def idle(self, sock: socket.socket, idle: bool) -> None:
        """A connection waits for a request, or has got its first byte."""
        with self._lock:
            # Taken out and put back: the order of the dict is the order of becoming idle.
            del self._open[sock]
            self._open[sock] = idle

    # -- a request -----------------------------------------------------------------------------------

    def admit(self, request: Request, local: str) -> None:
        """Raises Refused unless the request may be for us, and may come from where it comes.

        A page of somebody else's may have its name resolve to our address, or post to it blindly.
        """
        name = message.host_name(request.headers.get("host", local))
        if name not in self.names and name != local and not message.is_loopback(name):
            raise Refused(403, f"unknown host: {name[:100]}; add it to the server's allowed hosts")
        changes = request.method not in ("GET", "HEAD") or "upgrade" in request.headers
        if changes and not message.same_origin(request):
            raise Refused(403, "refused: the request comes from a page of another site")

    def answer(self, request: Request) -> Response:
        """The answer of the handler; an error becomes its JSON."""
        try:
            page = self.pages.find(request)
            if page is not None:
                return page
            found = routes.find(request)
            if isinstance(found, Response):
                return found
            route, request = found
            if route.call is None:
                return failed(400, "this address is a WebSocket")
            if route.body and "content-length" not in request.headers:
                return replace(failed(411, "missing header: Content-Length"), close=True)
            return route.call(self.parts, request)
        except ApsisError as error:
            if error.status >= 500:
                log.warning("%s %s: %s", request.method, request.path, error)
            return failed(error.status, str(error))
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return failed(500, "internal error")


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

    def finish(self) -> None:
        pass

    def handle(self) -> None:
        while not self.server.closing.is_set():
            try:
                head = self._read_head()
                if head is None or not self._exchange(head):
                    return
            except Refused as refusal:
                answer = failed(refusal.status, str(refusal))
                self._send(replace(answer, headers=refusal.headers, close=True), head_only=False)
                self._linger()
                return

    def _exchange(self, head: bytes) -> bool:
        """One request and its answer; whether another may follow."""
        request, keep = message.parse_head(head)
        self.server.admit(request, self.local)
        if "upgrade" in request.headers and request.headers["upgrade"].lower() == "websocket":
            answer = self._upgrade(request)
            if answer is None:
                return False
        else:
            length = message.body_length(request)
            if length:
                request = replace(request, body=self._read_body(request, length))
            answer = self.server.answer(request)
        log.debug("%s %s %s %s", answer.status, request.method, request.path, self.client_address[0])
        keep = keep and not answer.close and not self.server.closing.is_set()
        self._send(answer, request.method == "HEAD", keep)
        if answer.after is not None:
            answer.after()
        return keep

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
            self.server.idle(self.sock, True)
            self.sock.settimeout(IDLE)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                return None
            if not data:
                return None
            self.server.idle(self.sock, False)
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
            self.sock.settimeout(SEND)
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = Deadline(BODY, self.clock)
        while len(self.held) < length:
            if not self._more(deadline):
                raise Refused(400, "the body is shorter than Content-Length says")
        body = bytes(self.held[:length])
        del self.held[:length]
        return body

    def _more(self, deadline: Deadline) -> bool:
        """Receive. False: the stream has ended. Raises Refused when time is up."""
        left = deadline.left()
        try:
            if not left:
                raise TimeoutError
            self.sock.settimeout(left)
            data = self.sock.recv(262144)
        except TimeoutError:
            raise Refused(408, "the request did not arrive in time") from None
        self.held += data
        return bool(data)

    # -- sending -------------------------------------------------------------------------------------

    def _send(self, answer: Response, head_only: bool, keep: bool = False) -> None:
        self.sock.settimeout(SEND)
        head = answer.head(close=not keep)
        body = answer.body
        if head_only:
            self.sock.sendall(head)
        elif isinstance(body, bytes):
            if len(body) <= WHOLE:
                self.sock.sendall(head + body)
            else:
                self.sock.sendall(head)
                self.sock.sendall(body)
        else:
            for piece in body:
                self.sock.sendall(head + piece if head else piece)
                head = b""
            if head:
                self.sock.sendall(head)

    def _linger(self) -> None:
        """Read what a refused client still sends, for a moment: a reset could overtake the answer."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            deadline = Deadline(LINGER, self.clock)
            while (left := deadline.left()) and not self.server.closing.is_set():
                self.sock.settimeout(left)
                if not self.sock.recv(262144):
                    return


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(how)


_BUSY_BODY = failed(503, "the server is busy; try again later")
_BUSY = replace(_BUSY_BODY, headers=(("retry-after", "1"),)).head(close=True) + bytes(_BUSY_BODY.body)  # type: ignore[arg-type]
