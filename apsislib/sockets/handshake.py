"""How an HTTP request becomes a WebSocket: the server's answer, the client's request, with deadlines."""

from __future__ import annotations

import base64
import binascii
import contextlib
import ipaddress
import logging
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from apsislib.clock import Clock, Deadline, WallClock
from apsislib.sockets.connection import MAX_PENDING, Connection

# Importing websocket_server configures the root logger, which is for the program alone to do.
_root_handlers = logging.root.handlers[:]
from websocket_server import WebsocketServer  # noqa: E402
from websocket_server.websocket_server import WebSocketHandler  # noqa: E402

logging.root.handlers[:] = _root_handlers

__all__ = ["Refused", "WebSocketHandler", "WebsocketServer", "accept", "connect", "upgrade"]

HANDSHAKE_TIMEOUT = 10.0  # seconds; the reference server's and the agents' own limit
MAX_HEAD = 16 * 1024  # bytes of request line and headers; real agents send about 160
MAX_HEADERS = 100  # lines

_PHRASES = {
    400: "Bad Request",
    405: "Method Not Allowed",
    408: "Request Timeout",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
}
T = TypeVar("T")


class Refused(ConnectionError):
    """The opening handshake failed. `status` is the HTTP status: for the client what the server answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# ---- server side -----------------------------------------------------------------------------------


def accept(sock: socket.socket, deadline: Deadline) -> tuple[str, dict[str, str], bytes]:
    """(path, headers, bytes beyond them) of the upgrade request on a fresh socket, which is answered here.

    Raises Refused, after telling the client; OSError if the socket fails.
    """
    sock.setblocking(False)
    try:
        line, headers, leftover = _read_head(sock, deadline)
        method, _, rest = line.partition(" ")
        path, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1.") or version == "HTTP/1.0" or not path:
            raise Refused(400, f"not a request of HTTP/1.1: {line[:80]!r}")
        if method != "GET":
            raise Refused(405, f"a WebSocket opens with GET, not {method[:20]}")
        answer = _answer(headers)
    except (Refused, TimeoutError) as error:
        status = error.status if isinstance(error, Refused) else 408
        with contextlib.suppress(OSError):
            sock.send(_refusal(status, str(error)))
        raise
    _send_all(sock, answer, deadline)
    return path, headers, leftover


def upgrade(
    sock: socket.socket,
    leftover: bytes,
    headers: Mapping[str, str],
    *,
    clock: Clock | None = None,
    path: str = "/",
    timeout: float = HANDSHAKE_TIMEOUT,
    assemble: int | None = None,
    limit_bytes: int = MAX_PENDING,
) -> Connection:
    """Answer 101 on a socket whose GET request was read by an HTTP server, and make a WebSocket of it.

    `leftover` is what the HTTP server has read beyond the request. Raises Refused before anything is
    written, with the status that the HTTP server should answer; OSError if the socket fails or does
    not take the answer in `timeout` seconds. Who may connect (Host, Origin, tokens) is the caller's to
    judge before.
    """
    clock = clock or WallClock()
    lower = _lower(headers)
    answer = _answer(lower)
    sock.setblocking(False)
    _send_all(sock, answer, Deadline(timeout, clock))
    return Connection(
        sock,
        "server",
        clock,
        leftover=leftover,
        assemble=assemble,
        limit_bytes=limit_bytes,
        peer=_peer(sock),
        path=path,
        headers=lower,
    )


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with names in lower case, repeated ones joined as HTTP says."""
    lower: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        lower[name] = f"{lower[name]}, {value}" if name in lower else value
    return lower


def _answer(headers: Mapping[str, str]) -> bytes:
    """The 101 response, or Refused.

    websocket-server's has `Connection: Upgrade` alone, on which the agents insist, and neither
    extensions nor a subprotocol.
    """
    if headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in _tokens(headers, "connection"):
        raise Refused(426, "only WebSocket connections are served here")
    if headers.get("sec-websocket-version", "").strip() != "13":
        raise Refused(426, "only WebSocket version 13 is served here")
    key = headers.get("sec-websocket-key", "").strip()
    try:
        sound = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        sound = False
    if not sound:
        raise Refused(400, "the request has no sound Sec-WebSocket-Key")
    response: str = WebSocketHandler.make_handshake_response(key)
    return response.encode("ascii")


def _refusal(status: int, message: str) -> bytes:
    body = message.encode() + b"\n"
    extra = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" if status == 426 else ""
    return (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{extra}Connection: close\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _tokens(headers: Mapping[str, str], name: str) -> set[str]:
    return {token.strip().lower() for token in headers.get(name, "").split(",")}


# ---- client side -----------------------------------------------------------------------------------


def connect(
    url: str,
    ssl_context: ssl.SSLContext | None = None,
    deadline: Deadline | float = HANDSHAKE_TIMEOUT,
    *,
    clock: Clock | None = None,
    headers: Mapping[str, str] | None = None,
    assemble: int | None = None,
    limit_bytes: int = MAX_PENDING,
) -> Connection:
    """Open a WebSocket to `url`: name, TCP, TLS and upgrade by `deadline`, or in as many seconds.

    `ssl_context` is for wss; None means the system's trust roots, with the host name verified. Raises
    OSError of some kind, its text naming the server: TimeoutError, ssl.SSLError, socket.gaierror,
    Refused (the server did not upgrade); ValueError for a URL that is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"not a WebSocket address: {url!r}; write ws://HOST:PORT/ or wss://HOST:PORT/")
    secure = parts.scheme == "wss"
    host, port = parts.hostname, parts.port or (443 if secure else 80)
    clock = clock or WallClock()
    if not isinstance(deadline, Deadline):
        deadline = Deadline(deadline, clock)
    sock = _connect_tcp(host, port, deadline)
    try:
        if secure:
            context = ssl_context or ssl.create_default_context()
            sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            shake_hands(sock, deadline)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        leftover = _request(sock, parts.netloc, path, headers or {}, deadline)
        return Connection(
            sock,
            "client",
            clock,
            leftover=leftover,
            assemble=assemble,
            limit_bytes=limit_bytes,
            peer=_peer(sock),
            path=path,
        )
    except TimeoutError as error:
        sock.close()
        raise TimeoutError(f"no WebSocket with {host}:{port} in time") from error
    except BaseException:
        sock.close()
        raise


def _connect_tcp(host: str, port: int, deadline: Deadline) -> socket.socket:
    last: OSError = OSError(f"{host} has no address")
    found = _addresses(host, port, deadline)
    for index, (family, kind, proto, _, address) in enumerate(found):
        sock = socket.socket(family, kind, proto)
        left = deadline.left()
        try:
            # One address that swallows packets must leave time for the others.
            sock.settimeout(None if left is None else max(0.001, left / (len(found) - index)))
            sock.connect(address)
            sock.setblocking(False)
            return sock
        except OSError as error:
            sock.close()
            text = f"can't connect to {host}:{port}: {error.strerror or error}"
            last = TimeoutError(text) if error.errno is None else type(error)(error.errno, text)
            if deadline.passed():
                break
    raise last


def _addresses(host: str, port: int, deadline: Deadline) -> list[tuple[Any, ...]]:
    """Where `host` is. The resolver knows no deadline, so a name is asked for in a thread of its own."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    answer: list[tuple[Any, ...]] = []
    failure: list[OSError] = []

    def ask() -> None:
        try:
            answer.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            failure.append(error)
        except UnicodeError:
            failure.append(OSError(f"not a host name: {host!r}"))

    # Ends when the resolver answers or gives up; a daemon, since it may take minutes and does no harm.
    thread = threading.Thread(target=ask, name="apsis-resolver", daemon=True)
    thread.start()
    thread.join(deadline.left())
    if thread.is_alive():
        raise TimeoutError(f"no address of {host} in time")
    if failure:
        raise failure[0]
    return answer


def _request(
    sock: socket.socket, netloc: str, path: str, extra: Mapping[str, str], deadline: Deadline
) -> bytes:
    """Ask for the upgrade; the bytes that came after the answer."""
    key = base64.b64encode(os.urandom(16)).decode("ascii")
    head = {
        "Host": netloc,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        **extra,
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header of the WebSocket request holds a line break")
    _send_all(sock, "\r\n".join(lines).encode("latin-1"), deadline)
    status_line, headers, leftover = _read_head(sock, deadline)
    status = status_line.split(" ")[1:2]
    if not status_line.startswith("HTTP/1.1 ") or not status[0].isdecimal():
        raise Refused(502, f"{netloc} does not answer as an HTTP server: {status_line[:80]!r}")
    if status[0] != "101":
        raise Refused(int(status[0]), f"{netloc} refused the WebSocket: {status_line[9:89]}")
    if headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in _tokens(headers, "connection"):
        raise Refused(502, f"{netloc} switched to something other than a WebSocket")
    if headers.get("sec-websocket-accept", "").strip() != WebSocketHandler.calculate_response_key(key):
        raise Refused(502, f"{netloc} answered with a wrong Sec-WebSocket-Accept")
    if "sec-websocket-extensions" in headers or "sec-websocket-protocol" in headers:
        raise Refused(502, f"{netloc} chose an extension or subprotocol that was never offered")
    return leftover


# ---- both ------------------------------------------------------------------------------------------


def shake_hands(sock: ssl.SSLSocket, deadline: Deadline) -> None:
    """The TLS handshake of a socket wrapped with do_handshake_on_connect=False."""
    sock.setblocking(False)
    _until(sock, sock.do_handshake, select.POLLIN, deadline)


def _until(sock: socket.socket, step: Callable[[], T], blocked: int, deadline: Deadline) -> T:
    """The result of `step`, repeated until it need not wait; TimeoutError at the deadline."""
    poll = select.poll()
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            wanted = select.POLLIN
        except ssl.SSLWantWriteError:
            wanted = select.POLLOUT
        except BlockingIOError:
            wanted = blocked
        left = deadline.left()
        poll.register(sock, wanted)
        if (left is not None and left <= 0) or not poll.poll(None if left is None else left * 1000):
            raise TimeoutError("the opening handshake took too long")


def _send_all(sock: socket.socket, data: bytes, deadline: Deadline) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[_until(sock, lambda: sock.send(rest), select.POLLOUT, deadline) :]  # noqa: B023


def _read_head(sock: socket.socket, deadline: Deadline) -> tuple[str, dict[str, str], bytes]:
    """(first line, headers with names in lower case, bytes read beyond)."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n", max(0, len(data) - 4096 - 3))) < 0:
        if len(data) >= MAX_HEAD:
            raise Refused(431, f"more than {MAX_HEAD} bytes of headers")
        more = _until(sock, lambda: sock.recv(4096), select.POLLIN, deadline)
        if not more:
            raise ConnectionResetError("the peer left during the opening handshake")
        data += more
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    if len(lines) > MAX_HEADERS:
        raise Refused(431, f"more than {MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip():  # also refuses continuation lines
            raise Refused(400, f"not a header: {line[:80]!r}")
        value = value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return first, headers, bytes(data[end + 4 :])


def _peer(sock: socket.socket) -> tuple[str, int]:
    """Address and port of the other end; of a Unix socket its path and 0."""
    with contextlib.suppress(OSError):
        name = sock.getpeername()
        return (name[0], name[1]) if isinstance(name, tuple) else (str(name), 0)
    return ("", 0)
