"""The port where agents connect: one thread accepts, each connection has a thread of its own.

What websocket-server brings is the TCP server (bind, accept, a thread per request) and the key
computation of the handshake. Its frames, sends and TLS are not used, for they know no binary
messages, no fragments and no deadlines, and fall back to plain text if a certificate is bad.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from apsislib.clock import Clock, Deadline, WallClock
from apsislib.sockets.connection import MAX_PENDING, Connection
from apsislib.sockets.events import GOING_AWAY
from apsislib.sockets.handshake import (
    HANDSHAKE_TIMEOUT,
    WebSocketHandler,
    WebsocketServer,
    accept,
    shake_hands,
)
from apsislib.sockets.strangers import Strangers

log = logging.getLogger(__name__)

BACKLOG = 1024  # connections waiting to be accepted; all agents return at once after a restart
MAX_CONNECTIONS = 2000  # threads; parked ones cost about 16 KiB each, and each has 3 descriptors
PAUSE = 0.5  # seconds without accepting after the descriptors ran out
LOG_PAUSE = 60.0  # seconds between two warnings about the same trouble
LAST_WAIT = 1.0  # seconds for threads whose socket was ended under them


class _Peer(WebSocketHandler):  # type: ignore[misc]
    """One connection, in its thread: TLS, opening handshake, then the owner's loop."""

    def setup(self) -> None:
        """No rfile: what is read beyond the handshake goes to the connection as it is."""

    def handle(self) -> None:
        self.server.listener._handle(self.request, self.client_address)

    def finish(self) -> None:
        pass


class _Server(WebsocketServer):  # type: ignore[misc]
    """websocket-server's server, with named threads, a bound on them, and errors that are ours to log."""

    request_queue_size = BACKLOG
    daemon_threads = False  # the listener joins them, and names those that don't end
    block_on_close = False

    def __init__(self, listener: Listener, host: str, port: int, family: int) -> None:
        self.listener = listener
        self.address_family = family
        super().__init__(host, port)
        self.RequestHandlerClass = _Peer
        self.socket.setblocking(False)  # a client may be gone between poll() and accept()

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6 and self.server_address[0] == "::":
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            self.listener._not_accepted(error)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        self.listener._spawn(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("connection from %s failed", client_address[0])


class Listener:
    """Accepts WebSockets, any path, and calls `serve` with each in a thread `<name>-<n>` of its own.

    When `serve` returns or raises its connection is dropped, if it isn't closed; what it raises is logged
    and costs nobody else. With `ssl_context` nothing but TLS is spoken. `address` is host and port; host
    "" or "*" means every address of the machine, port 0 any free one. The constructor binds, and
    raises OSError naming the address; start() begins to accept.

    Above `max_connections` one that is new takes the place of the oldest that is not settled, or is refused
    where all are. Settled is who has shaken hands, or with `settle_late` who was let in by settle(): so
    nobody can shut others out by connecting again and again and saying nothing. `strangers` logs who does
    not get as far as a WebSocket.
    """

    def __init__(
        self,
        address: tuple[str, int],
        serve: Callable[[Connection], object],
        *,
        clock: Clock | None = None,
        ssl_context: ssl.SSLContext | None = None,
        name: str = "apsis-agent",
        max_connections: int = MAX_CONNECTIONS,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        assemble: int | None = None,
        limit_bytes: int = MAX_PENDING,
        settle_late: bool = False,
        strangers: Strangers | None = None,
    ) -> None:
        self._settle_late = settle_late
        self._serve = serve
        self._clock = clock or WallClock()
        self._strangers = strangers or Strangers(self._clock)
        self.ssl_context = ssl_context  # of connections to come; may be replaced at any time
        self._name = name
        self._max = max_connections
        self._handshake_timeout = handshake_timeout
        self._assemble = assemble
        self._limit_bytes = limit_bytes
        self._server = self._bind(*address)
        self._wake_in, self._wake_out = socket.socketpair()
        self._stopping = threading.Event()
        self._warned: dict[str, float] = {}  # what was logged, and when; accept thread only
        self._count = 0  # of connections so far; accept thread only
        self._lock = threading.Lock()  # protects the three below; leaf
        self._threads: dict[threading.Thread, socket.socket] = {}
        self._unsettled: dict[threading.Thread, None] = {}  # oldest first
        self._connections: dict[threading.Thread, Connection] = {}
        self._thread = threading.Thread(target=self._accept, name=f"{name}-accept")

    def _bind(self, host: str, port: int) -> _Server:
        shown = f"{host or '*'}:{port}"
        try:
            if host in ("", "*"):
                if socket.has_dualstack_ipv6():
                    return _Server(self, "::", port, socket.AF_INET6)
                return _Server(self, "0.0.0.0", port, socket.AF_INET)
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            return _Server(self, str(found[0][4][0]), port, found[0][0])
        except (OSError, OverflowError, UnicodeError) as error:
            number = getattr(error, "errno", None)
            why = getattr(error, "strerror", None) or str(error)
            hint = "; is another server running, or the port taken?" if number == errno.EADDRINUSE else ""
            raise OSError(number, f"can't listen on {shown}: {why}{hint}") from error

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: address and the actual port."""
        name = self._server.server_address
        return name[0], name[1]

    @property
    def connections(self) -> int:
        """How many there are, those still in their handshake included."""
        with self._lock:
            return len(self._threads)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> list[str]:
        """Accept no more, close every connection (1001), and join the threads.

        Who does not end in `timeout` seconds has its socket ended under it. Returns the names of the
        threads that are alive even so.
        """
        deadline = Deadline(timeout, self._clock)
        self._stopping.set()
        self._wake_out.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join(deadline.left())
        self._server.server_close()
        with self._lock:
            threads = dict(self._threads)
            connections = dict(self._connections)
        for thread, sock in threads.items():
            if thread in connections:
                self._ask_to_close(connections[thread], deadline)
            else:
                _end(sock)  # still in its handshake
        for thread in threads:
            thread.join(deadline.left())
        late = {thread for thread in threads if thread.is_alive()}
        with self._lock:
            for thread in late & self._connections.keys():
                self._connections[thread].kill()
        last = Deadline(LAST_WAIT, self._clock)
        for thread in late:
            thread.join(last.left())
        if not self._thread.is_alive():
            self._wake_in.close()
            self._wake_out.close()
        return [thread.name for thread in (self._thread, *late) if thread.is_alive()]

    @staticmethod
    def _ask_to_close(connection: Connection, deadline: Deadline) -> None:
        left = deadline.left()
        timeout = 1.0 if left is None else left * 0.8  # so that its thread still ends in time
        with contextlib.suppress(ConnectionError):
            connection.post(lambda: connection.close(GOING_AWAY, "the server is stopping", timeout))

    # ---- the accepting thread ------------------------------------------------------------------

    def _accept(self) -> None:
        """Ends when stop() wakes it."""
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        poll.register(self._wake_in, select.POLLIN)
        while not self._stopping.is_set():
            poll.poll()
            if not self._stopping.is_set():
                self._server._handle_request_noblock()

    def _not_accepted(self, error: OSError) -> None:
        if isinstance(error, BlockingIOError) or error.errno == errno.ECONNABORTED:
            return  # the client left
        self._warn("accept", "can't accept agents, pausing: %s", error)
        # What waits stays in the backlog and is reported again at once: without a pause this would spin.
        self._stopping.wait(PAUSE)

    def _warn(self, topic: str, text: str, *args: object) -> None:
        now = self._clock.monotonic()
        if now - self._warned.get(topic, -LOG_PAUSE) >= LOG_PAUSE:
            self._warned[topic] = now
            log.warning(text, *args)

    def _spawn(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        self._count += 1
        thread = threading.Thread(
            target=self._server.process_request_thread,
            args=(sock, address),
            name=f"{self._name}-{self._count}",
        )
        with self._lock:
            full = len(self._threads) >= self._max
            oldest = next(iter(self._unsettled), None) if full else None
            if oldest is not None:
                self._unsettled.pop(oldest)
                _end(self._threads[oldest])
            if not full or oldest is not None:
                self._threads[thread] = sock
                self._unsettled[thread] = None
        if full:
            does = "refusing %s" if oldest is None else "dropping the oldest that says nothing, for %s"
            self._warn("full", f"more than %s connections: {does}", self._max, address[0])
        if full and oldest is None:
            self._server.shutdown_request(sock)
            return
        try:
            thread.start()
        except RuntimeError as error:
            self._forget(thread)
            self._warn("thread", "can't start a thread for %s: %s", address[0], error)
            self._server.shutdown_request(sock)

    # ---- a connection's thread -----------------------------------------------------------------

    def settle(self) -> None:
        """(its own thread only) This connection is to stay, however many there are."""
        with self._lock:
            self._unsettled.pop(threading.current_thread(), None)

    def _handle(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Ends when `serve` does."""
        me = threading.current_thread()
        try:
            connection = self._open(sock, address)
            if connection is None:
                return
            with self._lock:
                self._connections[me] = connection
            if not self._settle_late:
                self.settle()
            try:
                if not self._stopping.is_set():
                    self._serve(connection)
            except Exception:
                log.exception("the connection of %s failed", address[0])
            finally:
                connection.abort()
        finally:
            self._forget(me)

    def _open(self, sock: socket.socket, address: tuple[Any, ...]) -> Connection | None:
        """The WebSocket on a fresh socket; None, logged, if the client isn't up to it."""
        me = threading.current_thread()
        deadline = Deadline(self._handshake_timeout, self._clock)
        current = sock
        try:
            context = self.ssl_context
            if context is not None:
                wrapped = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                current = wrapped
                with self._lock:
                    self._threads[me] = wrapped  # wrapping detached the former
                    dropped = me not in self._unsettled
                if dropped or self._stopping.is_set():  # who ended the former has ended nothing
                    _end(wrapped)
                shake_hands(wrapped, deadline)
            path, headers, leftover = accept(current, deadline)
            return Connection(
                current,
                "server",
                self._clock,
                leftover=leftover,
                assemble=self._assemble,
                limit_bytes=self._limit_bytes,
                peer=(address[0], address[1]),
                path=path,
                headers=headers,
            )
        except (OSError, ValueError) as error:
            why = str(error) or type(error).__name__
            self._strangers.say(logging.INFO, address[0], "no WebSocket with %s: %s", address[0], why)
        _leave(current)
        return None

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._threads.pop(thread, None)
            self._unsettled.pop(thread, None)
            self._connections.pop(thread, None)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not the method of SSLSocket, which would throw away the TLS state that its thread is using.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _leave(sock: socket.socket) -> None:
    """Close, having told the end of the stream first, so that a refusal sent before is read."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
    sock.close()
