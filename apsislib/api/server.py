"""The HTTP port: sockets, threads, and what every request goes through.

`apsis-http` accepts; each connection is then served by one of a bounded number of `apsis-api-N`,
until it is closed. When all are taken, the connection that has waited longest for a request, or for the
rest of one, makes room; if all are at work, the newcomer is told 503 at once.
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

from apsislib.api import encoding, message, routes
from apsislib.api.exchange import LINGER, Exchange, Phase
from apsislib.api.message import Refused, Request, Response, failed
from apsislib.api.pages import Pages
from apsislib.api.parts import Parts
from apsislib.clock import Deadline
from apsislib.errors import ApsisError
from apsislib.sockets import Strangers

log = logging.getLogger(__name__)

THREADS = 64  # connections served at once; a browser holds six, a command one
BACKLOG = 1024  # connections that the kernel holds for us; one more has to knock again, a second later
REFUSED = 128  # clients that may still read that they were refused
TURNOVER = 4  # one place in so many may change hands at once, so that who has come can say what it wants
ROOM = 3.0  # s that a newcomer waits at most for those before it to be in their places: milliseconds mostly

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
        self._free = 0  # threads that wait for a connection, or have one in _waiting to take
        self._threads: list[threading.Thread] = []
        self._open: dict[socket.socket, Phase] = {}  # have a thread; who is longest in its phase comes first
        self._leaving = 0  # of these, how many are in that phase
        self._settled = threading.Condition(self._lock)  # fewer places change hands
        self.strangers = Strangers(parts.clock)
        self._numbers = itertools.count(1)
        self._refused: deque[tuple[socket.socket, Deadline]] = deque()  # apsis-http only
        self._short = False  # of descriptors or memory, and that was said; apsis-http only
        self._alone = False  # no thread could be started, and that was said; apsis-http only
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
        """Accept no more, let whole requests end, and close. Answers the names of threads still alive.

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
            while self._make_room_locked():
                pass
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
        self.strangers.sum_up(now=True)
        return [t.name for t in (self._accepting, *threads) if t.is_alive()]

    def _accept(self) -> None:
        """(apsis-http) Ends when shutdown() was called."""
        self.serve_forever(poll_interval=1.0)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            accepted = super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                if not self._short:
                    log.error("can't accept connections: %s; who comes waits", error)
                self._short = True
                # The connection stays in the backlog and would be offered again at once.
                self.closing.wait(0.1)
            raise
        if self._short:
            log.warning("connections are accepted again")
        self._short = False
        return accepted

    # -- connections and threads -------------------------------------------------------------------

    def process_request(self, request: Any, client_address: Any) -> None:
        """(apsis-http) Give a new connection to a thread."""
        with self._lock:
            room = self._room_locked()
            if room:
                self._waiting.append((request, client_address))
                self._offered.notify()
        if not room:
            self._refuse(request)
            host = client_address[0]
            self.strangers.say(logging.WARNING, host, "too many requests at once: refused one of %s", host)

    def _room_locked(self) -> bool:
        """(apsis-http) Have a thread for one connection more, now or in an instant. False: there is none."""
        if self._free > len(self._waiting):
            return True
        if len(self._threads) < self.limit and self._add_thread_locked():
            return True
        # Who comes in a flood of others is not to give way before its first bytes could be read.
        calm = self._settled.wait_for(self._calm_locked, ROOM)
        return calm and self._make_room_locked()

    def _calm_locked(self) -> bool:
        changing = self._leaving + min(self._free, len(self._waiting))
        return changing < max(1, self.limit // TURNOVER)

    def _add_thread_locked(self) -> bool:
        """(apsis-http) False: the system has none left for us, which is said once."""
        thread = threading.Thread(target=self._serve, name=f"apsis-api-{next(self._numbers)}")
        try:
            thread.start()
        except RuntimeError as error:
            if not self._alone:
                log.error(
                    "can't start a thread for a connection: %s; it is told that the server is busy", error
                )
            self._alone = True
            return False
        self._alone = False
        self._threads.append(thread)
        self._free += 1
        return True

    def _refuse(self, sock: socket.socket) -> None:
        """(apsis-http) Say that there is no room. The socket is closed a little later by service_actions."""
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.send(_BUSY)
            sock.shutdown(socket.SHUT_WR)
        self._refused.append((sock, Deadline(LINGER, self.parts.clock)))
        if len(self._refused) > REFUSED:
            self._refused.popleft()[0].close()

    def service_actions(self) -> None:
        """(apsis-http) Called at least every second: sum up; close those whose client has read the refusal.

        Closing at once, with the request unread, would reset the connection and could take the answer
        away before it is read.
        """
        while self._refused and (self._refused[0][1].passed() or self.closing.is_set()):
            sock, _ = self._refused.popleft()
            with contextlib.suppress(OSError):
                while sock.recv(65536):
                    pass
            sock.close()
        self.strangers.sum_up()

    def _make_room_locked(self) -> bool:
        """Have the connection closed that has waited longest for its client. False: none waits."""
        for sock, phase in self._open.items():
            if phase in (Phase.IDLE, Phase.PARTIAL):
                self._open[sock] = Phase.LEAVING
                self._leaving += 1
                # Its thread, waiting for the next bytes, reads the end of the stream.
                _shut(sock, socket.SHUT_RD)
                return True
        return False

    def _gone_locked(self) -> None:
        """One that was to make room has done so, or has a request to be answered first."""
        self._leaving -= 1
        self._settled.notify()

    def _serve(self) -> None:
        """(apsis-api-N) Serve one connection after another. Ends when stop() was called."""
        while True:
            with self._lock:
                while not self._waiting and not self.closing.is_set():
                    self._offered.wait()
                self._free -= 1
                if self.closing.is_set():
                    return
                sock, address = self._waiting.popleft()
                self._open[sock] = Phase.IDLE
                self._settled.notify()
            kept = False
            try:
                exchange = Exchange(sock, address, self)
                kept = exchange.taken
            except OSError as error:
                log.debug("connection of %s lost: %s", address, error)
            except Exception:
                log.exception("connection of %s failed", address)
            with self._lock:
                self._free += 1
                if self._open.pop(sock) is Phase.LEAVING:
                    self._gone_locked()
            if not kept:
                self.shutdown_request(sock)

    def enter(self, sock: socket.socket, phase: Phase) -> bool:
        """A connection is in `phase` now. False: it is to end, and hears its client no more.

        If it has brought a whole request even so, that is still answered.
        """
        with self._lock:
            before = self._open[sock]
            if before is Phase.LEAVING and phase is Phase.AT_WORK:
                self._gone_locked()
                self._make_room_locked()  # somebody else has to, for the one who was promised the place
            elif before is Phase.LEAVING or (self.closing.is_set() and phase is not Phase.AT_WORK):
                return False
            elif before is phase:
                return True
            # Taken out and put back: the order of the dict is that of entering.
            del self._open[sock]
            self._open[sock] = phase
        return before is not Phase.LEAVING

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
                return encoding.packed(request, page)
            found = routes.find(request)
            if isinstance(found, Response):
                return found
            route, request = found
            if route.call is None:
                return failed(400, "this address is a WebSocket")
            if route.body and "content-length" not in request.headers:
                return replace(failed(411, "missing header: Content-Length"), close=True)
            return encoding.packed(request, route.call(self.parts, request))
        except ApsisError as error:
            if error.status >= 500:
                log.warning("%s %s: %s", request.method, request.path, error)
            answer = failed(error.status, str(error))
            return replace(answer, headers=(("retry-after", "1"),)) if error.status == 503 else answer
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return failed(500, "internal error")


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(how)


_BUSY_BODY = failed(503, "the server is busy; try again later")
_BUSY = replace(_BUSY_BODY, headers=(("retry-after", "1"),)).head(close=True) + bytes(_BUSY_BODY.body)  # type: ignore[arg-type]
