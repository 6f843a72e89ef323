"""The records over HTTP, on 127.0.0.1 only: for a look at an agent, and for one without a server.

    GET    /procs                      every result, by proc ID
    POST   /procs                      start: {"specs": {ID: SPEC}}
    GET    /procs/ID                   one result
    DELETE /procs/ID                   forget it
    POST   /procs/ID/signals/SIG       by name or number
    GET    /procs/ID/output/FD/data    what it has written, raw

There is no authentication. So that no web page can start programs, a request must name this machine as
its Host and come from no other Origin.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from apsislib.agent.loop import READ, WRITE, Loop, Timer
from apsislib.agent.procs import Procs
from apsislib.agent.shutdown import Shutdown
from apsislib.agent.spec import parse_fd, parse_specs
from apsislib.errors import ApsisError, BadRequest, NotFound

log = logging.getLogger(__name__)

MAX_HEAD = 16 * 1024  # bytes of request line and headers
MAX_BODY = 16 << 20  # bytes
MAX_CLIENTS = 64
IDLE = 60.0  # seconds without a byte in either direction
PAUSE = 1.0  # seconds without accepting after it has failed
PIECE = 256 * 1024  # bytes of output read at a time

PHRASES = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
}

# Content type, length, and the body in pieces.
Reply = tuple[str, int, Iterable[bytes]]


class Refused(ApsisError):
    """A request that gets this status and no more of our time."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Serve:
    """Accepts and answers, from the loop."""

    def __init__(self, loop: Loop, procs: Procs, shutdown: Shutdown, port: int) -> None:
        self._loop = loop
        self._procs = procs
        self._shutdown = shutdown
        self._clients: set[_Client] = set()
        self._sock = socket.create_server(("127.0.0.1", port), backlog=64)
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]
        self._pause: Timer | None = None
        self._listen()
        log.info("serving http://127.0.0.1:%d/procs", self.port)

    def close(self) -> None:
        for client in tuple(self._clients):
            client.close()
        if self._pause is not None:
            self._pause.cancel()
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()

    def _listen(self) -> None:
        self._loop.watch(self._sock.fileno(), READ, self._accept)

    def _accept(self, events: int) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has left already
            return
        except OSError as error:
            # No descriptor is left, say. Who waits goes on waiting: without a pause the loop would spin.
            log.warning("cannot accept a connection, pausing: %s", error)
            self._loop.unwatch(self._sock.fileno())
            self._pause = self._loop.call_after(PAUSE, self._listen)
            return
        if len(self._clients) >= MAX_CLIENTS:
            sock.close()
            return
        self._clients.add(_Client(self._loop, sock, self.answer, self._clients.discard))

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        """What a request gets. Raises an ApsisError with the status of a refusal."""
        self._check_origin(headers)
        match [unquote(part) for part in urlsplit(target).path.strip("/").split("/")], method:
            case ["procs"], "GET":
                return _json({p: self._procs.result(self._procs.get(p)) for p in self._procs.ids()})
            case ["procs"], "POST":
                self._start(headers, body)
                return _json(None)
            case ["procs", proc_id], "GET":
                return _json(self._procs.result(self._procs.get(proc_id)))
            case ["procs", proc_id], "DELETE":
                self._procs.delete(proc_id)
                return _json(None)
            case ["procs", proc_id, "signals", name], "POST":
                self._procs.signal(proc_id, _signal_number(name))
                return _json(None)
            case ["procs", proc_id, "output", fd, "data"], "GET":
                capture = self._procs.capture(proc_id, parse_fd(fd))
                length = capture.length()
                return "application/octet-stream", length, capture.pieces(0, length, PIECE)
            case (
                (["procs"] | ["procs", _] | ["procs", _, "signals", _] | ["procs", _, "output", _, "data"]),
                _,
            ):
                raise Refused(405, f"{method} is not for this")
        raise NotFound(f"nothing at {target[:80]}")

    def _check_origin(self, headers: dict[str, str]) -> None:
        allowed = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        if headers.get("host", "") not in allowed:
            raise Refused(403, "this service is for 127.0.0.1 only")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc not in allowed:
            raise Refused(403, "not for pages of another origin")

    def _start(self, headers: dict[str, str], body: bytes) -> None:
        if headers.get("content-type") != "application/json":
            raise BadRequest("content type must be application/json")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"not JSON: {error}") from None
        specs = document.get("specs") if isinstance(document, dict) else None
        if not isinstance(specs, dict):
            raise BadRequest('no "specs"')
        self._procs.start(parse_specs(specs), self._shutdown.state)


class _Client:
    """One connection: reads a request, writes its answer, then reads the next."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        answer: Callable[[str, str, dict[str, str], bytes], Reply],
        gone: Callable[[_Client], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._answer = answer
        self._gone = gone
        self._in = bytearray()
        self._out: deque[bytes] = deque()
        self._body: Iterator[bytes] = iter(())
        self._last = False  # close after the answer
        self._timer: Timer | None = None
        sock.setblocking(False)
        self._wait(READ)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._body = iter(())
        self._gone(self)

    def _wait(self, events: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_after(IDLE, self.close)
        self._loop.watch(self._sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        try:
            if events & READ and not self._out:
                data = self._sock.recv(65536)
                if not data:
                    self.close()
                    return
                self._in += data
                self._read()
            self._write()
        except BlockingIOError:
            self._wait(WRITE if self._out else READ)
        except OSError:
            self.close()
        except Exception:
            self.close()
            raise

    def _read(self) -> None:
        """Answer the request that has come, if it has come in full."""
        try:
            request = self._request()
            if request is None:
                return
            kind, length, body = self._answer(*request)
            status = 200
        except ApsisError as error:
            # After a request that could not be read there is no telling where the next begins.
            self._last = self._last or isinstance(error, Refused)
            status = error.status
            kind, length, body = _json({"status": status, "detail": str(error)}, "errors")
        head = (
            f"HTTP/1.1 {status} {PHRASES.get(status, 'Error')}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {length}\r\n{'Connection: close' + chr(13) + chr(10) if self._last else ''}\r\n"
        )
        self._out.append(head.encode())
        self._body = iter(body)

    def _request(self) -> tuple[str, str, dict[str, str], bytes] | None:
        end = self._in.find(b"\r\n\r\n")
        if end < 0:
            if len(self._in) > MAX_HEAD:
                raise Refused(431, "the head of the request is too long")
            return None
        first, *lines = self._in[:end].decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise Refused(400, "not an HTTP request")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if "transfer-encoding" in headers:
            raise Refused(411, "give the body a Content-Length")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Refused(400, "Content-Length is not a number")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise Refused(413, f"a body of more than {MAX_BODY} bytes")
        stop = end + 4 + int(length)
        if len(self._in) < stop:
            return None
        body = bytes(self._in[end + 4 : stop])
        del self._in[:stop]
        self._last = words[2] == "HTTP/1.0" or headers.get("connection", "").lower() == "close"
        return words[0], words[1], headers, body

    def _write(self) -> None:
        while True:
            if not self._out:
                piece = next(self._body, None)
                if piece is not None:
                    self._out.append(piece)
                elif self._last:
                    self.close()
                    return
                else:
                    before = len(self._in)
                    if before:
                        self._read()  # what was sent without waiting for our answer
                    if not self._out:
                        self._wait(READ)
                        return
            rest = self._out[0][self._sock.send(self._out[0]) :]
            if rest:
                self._out[0] = rest
            else:
                self._out.popleft()


def _json(data: Any, key: str = "data") -> Reply:
    body = json.dumps({key: data}).encode() + b"\n"
    return "application/json", len(body), (body,)


def _signal_number(name: str) -> int:
    if name.isascii() and name.isdigit() and len(name) < 10:
        return int(name)
    upper = name.upper()
    try:
        return signal.Signals[upper if upper.startswith("SIG") else f"SIG{upper}"]
    except KeyError:
        raise BadRequest(f"unknown signal: {name}") from None
