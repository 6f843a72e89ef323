"""WebSockets on loopback: our two ends, the independent `websockets` package, and peers that misbehave."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import queue
import resource
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
import websockets.sync.client
import websockets.sync.server
from websockets.exceptions import ConnectionClosed

from apsislib import sockets
from apsislib.sockets import Closed, Connection, Data, Full, Listener, Pong, Refused, Text

WAIT = 60.0  # seconds after which a test has failed; the machine may be busy
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455, section 1.3
REQUEST = (
    "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
).encode()


# ---- peers -----------------------------------------------------------------------------------------


def frame(
    opcode: int, payload: bytes = b"", fin: bool = True, mask: bytes | None = b"\x01\x02\x03\x04"
) -> bytes:
    """A frame, made by hand."""
    first = bytes([(0x80 if fin else 0) | opcode])
    bit = 0x80 if mask is not None else 0
    size = len(payload)
    if size < 126:
        head = bytes([bit | size])
    elif size < 65536:
        head = bytes([bit | 126]) + struct.pack(">H", size)
    else:
        head = bytes([bit | 127]) + struct.pack(">Q", size)
    if mask is None:
        return first + head + payload
    return first + head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


class Raw:
    """A client that writes what it likes."""

    def __init__(self, address: tuple[str, int], request: bytes | None = REQUEST) -> None:
        self.sock = socket.create_connection(address[:2], timeout=WAIT)
        self._buffer = b""
        if request is not None:
            self.sock.sendall(request)
            self.head = self.until(b"\r\n\r\n")

    def until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            more = self.sock.recv(65536)
            if not more:
                raise EOFError(self._buffer)
            self._buffer += more
        found, _, self._buffer = self._buffer.partition(end)
        return found + end

    def take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            more = self.sock.recv(65536)
            if not more:
                raise EOFError(self._buffer)
            self._buffer += more
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    def frame(self) -> tuple[int, bytes, bool]:
        """(opcode, payload, fin) of the next frame, which a server must not mask."""
        first, size = self.take(2)
        assert size < 128, "a server must not mask"
        if size == 126:
            (size,) = struct.unpack(">H", self.take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.take(8))
        return first & 0x0F, self.take(size), bool(first & 0x80)

    def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        data = self._buffer
        with contextlib.suppress(ConnectionResetError):
            while more := self.sock.recv(65536):
                data += more
        return data

    def close(self) -> None:
        self.sock.close()


class Server:
    """A listener; what its connections tell is put into `events`, and each is run by `serve`."""

    def __init__(self, serve: Callable[[Server, Connection], None] | None = None, **options: Any) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.connections: queue.Queue[Connection] = queue.Queue()
        self._serve = serve or Server.echo
        host = options.pop("host", "127.0.0.1")
        self.listener = Listener((host, 0), self._run, **options)
        self.listener.start()
        self.address = self.listener.address
        self.url = f"{'wss' if options.get('ssl_context') else 'ws'}://localhost:{self.address[1]}/"

    def _run(self, connection: Connection) -> None:
        self.connections.put(connection)
        self._serve(self, connection)

    def echo(self, connection: Connection) -> None:
        """Tell of every event, and send every message back."""
        while connection.closed is None:
            for event in connection.poll(WAIT):
                self.events.put(event)
                if isinstance(event, Data | Text):
                    connection.send(event.data)

    def note(self, connection: Connection) -> None:
        """Tell of every event."""
        while connection.closed is None:
            for event in connection.poll(WAIT):
                self.events.put(event)

    def event(self) -> Any:
        return self.events.get(timeout=WAIT)

    def connection(self) -> Connection:
        return self.connections.get(timeout=WAIT)


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*args: Any, **options: Any) -> Server:
        servers.append(Server(*args, **options))
        return servers[-1]

    yield make
    for server in servers:
        assert server.listener.stop(5) == []


@pytest.fixture
def owned() -> Iterator[tuple[Connection, Raw]]:
    """A connection that the test itself drives, and the raw client at its other end."""
    made = []
    with socket.create_server(("127.0.0.1", 0)) as port:

        def pair(**options: Any) -> tuple[Connection, Raw]:
            raw = Raw(port.getsockname(), None)
            sock, _ = port.accept()
            headers = BytesParser().parsebytes(REQUEST.partition(b"\r\n")[2])
            connection = sockets.upgrade(sock, options.pop("leftover", b""), dict(headers), **options)
            raw.head = raw.until(b"\r\n\r\n")
            made.append((connection, raw))
            return connection, raw

        yield pair  # type: ignore[misc]
    for connection, raw in made:
        connection.abort()
        raw.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, cert.pem, and its key, key.pem, in this directory."""
    path = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-keyout", path / "key.pem", "-out", path / "cert.pem", "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )
    return path


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    # The client of these tests reads and writes in two threads, which Python's ssl does not support
    # before 3.13: session tickets, read while it writes, can cost it its request.
    context.num_tickets = 0
    return context


@pytest.fixture
def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "cert.pem"))


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> Any:
    """(server context, client context), each None for the plain half of the tests."""
    return (server_tls, client_tls) if request.param == "tls" else (None, None)


def events(connection: Connection, count: int = 1, **options: Any) -> list[Any]:
    """The next `count` events, or up to the end."""
    found: list[Any] = []
    end = time.monotonic() + WAIT
    while len(found) < count and time.monotonic() < end:
        found += connection.poll(0.5, **options)
        if connection.closed is not None:
            break
    return found


def until(condition: Callable[[], object], connection: Connection, **options: Any) -> None:
    """Run the connection until `condition` holds."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        connection.poll(0.05, **options)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- with the independent implementation -----------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 2**20, 2**20 + 1, 5 * 2**20])
def test_an_independent_client_gets_its_messages_back(start, tls, size):
    server = start(assemble=8 * 2**20, ssl_context=tls[0])
    message = os.urandom(size)
    with websockets.sync.client.connect(server.url, ssl=tls[1], max_size=None) as client:
        client.send(message)
        assert client.recv(timeout=WAIT) == message
        client.send("tëxt")
        assert client.recv(timeout=WAIT) == "tëxt"
    assert [server.event() for _ in range(3)] == [Data(message), Text("tëxt"), Closed(1000, "", "peer")]


@pytest.mark.parametrize("size", [0, 125, 126, 65536, 2**20 + 1, 5 * 2**20])
def test_our_client_gets_its_messages_back_from_an_independent_server(tls, size):
    def echo(peer: websockets.sync.server.ServerConnection) -> None:
        for message in peer:
            peer.send(message)

    message = os.urandom(size)
    with websockets.sync.server.serve(echo, "localhost", 0, ssl=tls[0], max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        url = f"{'wss' if tls[1] else 'ws'}://localhost:{port}/a/path?x=1"
        client = sockets.connect(url, tls[1], assemble=8 * 2**20)
        client.send(message)
        client.send("tëxt")
        client.ping(b"abc")
        got = events(client, 3)
        assert {type(event) for event in got} == {Data, Text, Pong}
        assert Data(message) in got and Text("tëxt") in got and Pong(b"abc") in got
        client.close(1000, "done")
        assert client.finish() == Closed(1000, "done", "local")
        server.shutdown()
        thread.join(WAIT)


def test_path_headers_and_peer_are_kept(start):
    server = start()
    url = server.url + "some/path?q=1"
    with websockets.sync.client.connect(url, additional_headers={"X-Thing": "a"}) as client:
        connection = server.connection()
        assert connection.path == "/some/path?q=1"
        assert connection.headers["x-thing"] == "a"
        assert connection.peer == client.local_address[:2]


def test_an_independent_client_is_told_why_it_is_closed(start):
    def refuse(server: Server, connection: Connection) -> None:
        connection.close(1008, "not you")
        server.events.put(connection.finish())

    server = start(refuse)
    with websockets.sync.client.connect(server.url) as client:
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(timeout=WAIT)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "not you")
    assert server.event() == Closed(1008, "not you", "local")


def test_large_output_goes_out_in_fragments_of_one_message(start, tls):
    block = os.urandom(300_000)

    def pour(_: Server, connection: Connection) -> None:
        connection.send_fragments(block for _ in range(40))
        connection.close()
        connection.finish()

    server = start(pour, ssl_context=tls[0])
    with websockets.sync.client.connect(server.url, ssl=tls[1], max_size=None) as client:
        assert client.recv(timeout=WAIT) == block * 40


# ---- the opening handshake -------------------------------------------------------------------------


def test_the_answer_has_connection_upgrade_alone_and_negotiates_nothing(start):
    server = start()
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    raw = Raw(server.address, REQUEST[:-2] + offer)
    lines = raw.head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    assert sorted(line for line in lines[1:] if line) == [
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        "Upgrade: websocket",
    ]
    raw.close()


def changed(old: str, new: str) -> bytes:
    assert old.encode() in REQUEST
    return REQUEST.replace(old.encode(), new.encode())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (changed("GET", "POST"), b"405"),
        (changed("HTTP/1.1", "HTTP/1.0"), b"400"),
        (b"garbage\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (changed("Upgrade: websocket\r\n", ""), b"426"),
        (changed("Connection: Upgrade\r\n", "Connection: keep-alive\r\n"), b"426"),
        (changed("Version: 13", "Version: 8"), b"426"),
        (changed(KEY, "short"), b"400"),
        (changed(KEY, "?" * 24), b"400"),
        (changed(f"Sec-WebSocket-Key: {KEY}\r\n", f"Sec-WebSocket-Key: {KEY}\r\n" * 2), b"400"),
        (changed("Host: localhost", "Host localhost"), b"400"),
        (changed("Host: localhost", "Host: localhost\r\n folded"), b"400"),
        (changed("Host: localhost", "\r\n".join(f"A{i}: b" for i in range(200))), b"431"),
        (changed("localhost", "x" * 20_000), b"431"),
    ],
)
def test_a_request_that_is_no_upgrade_is_refused_in_http(start, request_, status):
    server = start()
    raw = Raw(server.address, None)
    raw.sock.sendall(request_)
    assert raw.rest().startswith(b"HTTP/1.1 " + status)
    assert server.connections.empty()
    raw.close()


def test_a_header_list_as_browsers_send_it_is_taken(start):
    server = start()
    raw = Raw(server.address, changed("Connection: Upgrade", "connection: keep-alive, upgrade"))
    assert raw.head.startswith(b"HTTP/1.1 101")
    raw.close()


def test_a_handshake_byte_by_byte_is_taken(start):
    server = start()
    raw = Raw(server.address, None)
    for at in range(len(REQUEST)):
        raw.sock.sendall(REQUEST[at : at + 1])
    assert raw.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101")
    raw.close()


@pytest.mark.parametrize("sent", [b"", REQUEST[:40]])
def test_a_handshake_that_stalls_is_cut_off(start, sent):
    server = start(handshake_timeout=0.2)
    raw = Raw(server.address, None)
    raw.sock.sendall(sent)
    assert raw.rest().startswith(b"HTTP/1.1 408")
    raw.close()


def test_a_tls_handshake_that_stalls_is_cut_off(start, server_tls):
    server = start(handshake_timeout=0.2, ssl_context=server_tls)
    raw = Raw(server.address, None)
    raw.sock.sendall(b"\x16\x03\x01")
    raw.rest()
    raw.close()


def test_plain_text_at_a_tls_port_is_refused_and_others_are_served(start, server_tls, client_tls):
    server = start(ssl_context=server_tls)
    raw = Raw(server.address, None)
    raw.sock.sendall(REQUEST)
    assert b"101" not in raw.rest()
    with websockets.sync.client.connect(server.url, ssl=client_tls) as client:
        client.send("x")
        assert client.recv(timeout=WAIT) == "x"
    raw.close()


def test_frames_that_come_with_the_request_are_not_lost(start):
    server = start()
    raw = Raw(server.address, REQUEST + frame(2, b"early"))
    assert raw.frame() == (2, b"early", True)
    raw.close()


def test_nothing_is_sent_unasked(owned):
    connection, raw = owned()
    assert connection.poll(0.05) == []
    raw.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        raw.take(1)


# ---- the client's side of it -----------------------------------------------------------------------


@contextlib.contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """A server with one fixed answer; None for none at all."""
    with socket.create_server(("127.0.0.1", 0)) as port:

        def serve() -> None:
            sock, _ = port.accept()
            with sock:
                sock.recv(65536)
                if answer is not None:
                    sock.sendall(answer)
                while sock.recv(65536):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"ws://127.0.0.1:{port.getsockname()[1]}/"
        thread.join(WAIT)


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", 403, "refused the WebSocket: 403 Forbidden"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 502, "does not answer as an HTTP server"),
        (
            SWITCH + b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            502,
            "a wrong Sec-WebSocket-Acc",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
            502,
            "something other than a WebSocket",
        ),
    ],
)
def test_a_server_that_does_not_upgrade_is_named(answer, status, text):
    with answering(answer) as url:
        with pytest.raises(Refused, match=text) as caught:
            sockets.connect(url)
        assert caught.value.status == status


def test_a_server_that_says_nothing_costs_the_deadline_and_no_more():
    with answering(None) as url:
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match="no WebSocket with 127.0.0.1"):
            sockets.connect(url, deadline=0.2)
        assert time.monotonic() - begun < 30


def test_a_server_that_leaves_is_an_error():
    with answering(b"HTTP/1.1 101 Sw") as url, pytest.raises(OSError):
        sockets.connect(url, deadline=0.5)


def test_nobody_listening_is_an_error_that_names_the_address():
    with socket.create_server(("127.0.0.1", 0)) as port:
        address = port.getsockname()
    with pytest.raises(ConnectionRefusedError, match=f"can't connect to 127.0.0.1:{address[1]}"):
        sockets.connect(f"ws://127.0.0.1:{address[1]}/")


@pytest.mark.parametrize("url", ["http://localhost/", "localhost:80", "ws://", "ws://user@localhost/"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="not a WebSocket address"):
        sockets.connect(url)


def test_a_certificate_that_nobody_vouches_for_is_refused(start, server_tls):
    server = start(ssl_context=server_tls)
    with pytest.raises(ssl.SSLCertVerificationError):
        sockets.connect(server.url)


def test_a_certificate_for_another_host_is_refused(start, server_tls, client_tls):
    server = start(ssl_context=server_tls, host="127.0.0.2")
    with pytest.raises(ssl.SSLCertVerificationError, match="(?i)mismatch|doesn't match|not valid for"):
        sockets.connect(f"wss://127.0.0.2:{server.address[1]}/", client_tls)


def test_ipv6_is_served(start):
    server = start(host="::1")
    client = sockets.connect(f"ws://[::1]:{server.address[1]}/")
    client.send(b"six")
    assert events(client) == [Data(b"six")]
    client.abort()


def test_every_address_of_the_machine_is_served(start):
    server = start(host="*")
    for host in ("127.0.0.1", "[::1]"):
        client = sockets.connect(f"ws://{host}:{server.address[1]}/")
        client.send(b"hi")
        assert events(client) == [Data(b"hi")]
        client.abort()


# ---- what arrives ----------------------------------------------------------------------------------


def test_frames_byte_by_byte_arrive(owned):
    connection, raw = owned(assemble=1000)
    data = frame(2, b"abc") + frame(1, "dëf".encode()) + frame(2, b"x" * 200)
    got: list[Any] = []
    for at in range(len(data)):
        raw.sock.sendall(data[at : at + 1])
        got += connection.poll(0.01)
    until(lambda: len(got) == 3 or got.extend(connection.poll(0.05)), connection)
    assert got == [Data(b"abc"), Text("dëf"), Data(b"x" * 200)]


def test_fragments_are_joined_with_pings_between_them(owned):
    connection, raw = owned(assemble=100)
    raw.sock.sendall(
        frame(2, b"one", fin=False)
        + frame(9, b"p1")
        + frame(0, b"", fin=False)
        + frame(0, b"two", fin=False)
        + frame(9, b"p2")
        + frame(0, b"three")
    )
    assert events(connection) == [Data(b"onetwothree")]
    connection.poll(0)
    assert [raw.frame(), raw.frame()] == [(10, b"p1", True), (10, b"p2", True)]
    raw.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):  # each Ping is answered once
        raw.take(1)


def test_without_joining_the_pieces_come_as_they_are(owned):
    connection, raw = owned()
    raw.sock.sendall(frame(2, b"one", fin=False) + frame(0, b"two") + frame(1, b"text"))
    assert events(connection, 3) == [Data(b"one", False), Data(b"two", True), Text("text", True)]


def test_half_a_frame_and_silence_is_for_the_owner_to_judge(owned):
    connection, raw = owned(assemble=100)
    before = connection.last_received
    raw.sock.sendall(frame(2, b"x" * 50)[:20])
    until(lambda: connection.last_received > before, connection)
    last = connection.last_received
    assert connection.poll(0.1) == []
    assert connection.last_received == last
    raw.sock.sendall(frame(2, b"x" * 50)[20:])
    assert events(connection) == [Data(b"x" * 50)]
    assert connection.last_received > last


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(2, b"x", mask=None), 1002),  # unmasked
        (b"\xc2" + frame(2, b"x")[1:], 1002),  # RSV1
        (b"\x92" + frame(2, b"x")[1:], 1002),  # RSV3
        (frame(3, b"x"), 1002),  # unknown opcode
        (frame(0, b"x"), 1002),  # continues nothing
        (frame(2, b"x", fin=False) + frame(2, b"y"), 1002),  # begins within another
        (frame(9, b"x", fin=False), 1002),  # a fragmented Ping
        (frame(9, b"x" * 126), 1002),  # a long Ping
        (b"\x82\xfe\x00\x05\0\0\0\0hello", 1002),  # a length longer than need be
        (b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0", 1002),  # 2**64-1 bytes
        (frame(8, b"\x03"), 1002),  # half a close code
        (frame(8, struct.pack(">H", 1005)), 1002),  # a code that is never sent
        (frame(8, struct.pack(">H", 99)), 1002),
        (frame(8, struct.pack(">H", 1000) + b"\xff"), 1007),
        (frame(1, b"\xff"), 1007),
        (frame(1, b"\xc3", fin=False) + frame(0, b"x"), 1007),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
    ],
)
def test_a_peer_that_breaks_the_rules_is_told_and_closed(start, data, code):
    server = start()
    raw = Raw(server.address)
    raw.sock.sendall(data)
    opcode, payload, _ = raw.frame()
    assert (opcode, struct.unpack(">H", payload[:2])[0]) == (8, code)
    raw.close()
    while not isinstance(closed := server.event(), Closed):
        pass  # the first half of what goes wrong in the second
    assert (closed.code, closed.why) == (code, "protocol")
    assert closed.reason


@pytest.mark.parametrize("text", [False, True])
def test_a_message_larger_than_what_is_joined_is_refused(start, text):
    server = start(assemble=1000)
    raw = Raw(server.address)
    raw.sock.sendall(frame(1 if text else 2, b"x" * 600, fin=False) + frame(0, b"x" * 600))
    opcode, payload, _ = raw.frame()
    assert (opcode, payload[:2]) == (8, struct.pack(">H", 1009))
    raw.close()
    assert server.event() == Closed(1009, "a message of more than 1000 bytes", "protocol")


def test_a_peer_that_floods_with_pings_and_reads_nothing_is_held_back(owned):
    connection, raw = owned()
    connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.sock.setblocking(False)
    flood = frame(9, b"x" * 125) * 100
    sent = quiet = 0
    while quiet < 20:
        try:
            sent += raw.sock.send(flood[sent % len(flood) :])
            quiet = 0
        except BlockingIOError:
            quiet += 1
        connection.poll(0.005 if quiet else 0)
    assert connection.pending < 100_000


def test_garbage_of_every_kind_ends_in_a_closed_event(start):
    server = start(Server.note, assemble=10_000)
    for seed in range(30):
        raw = Raw(server.address)
        with contextlib.suppress(OSError):
            raw.sock.sendall(bytes((seed * 97 + i * 31 + i * i * seed) % 256 for i in range(3000)))
            raw.sock.shutdown(socket.SHUT_WR)
        raw.rest()
        raw.close()
        while not isinstance(server.event(), Closed):
            pass


def test_300_mb_in_one_frame_pass_in_bounded_memory(start):
    size = 300 * 2**20
    got = queue.Queue()

    def count(_: Server, connection: Connection) -> None:
        total = largest = 0
        while connection.closed is None:
            for event in connection.poll(WAIT):
                if isinstance(event, Data):
                    total += len(event.data)
                    largest = max(largest, len(event.data))
                    if event.last:
                        got.put((total, largest))

    server = start(count)
    raw = Raw(server.address)
    before = peak()
    raw.sock.sendall(b"\x82\xff" + struct.pack(">Q", size) + b"\0\0\0\0")
    block = b"\xab" * 2**20
    for _ in range(300):
        raw.sock.sendall(block)
    assert got.get(timeout=60) == (size, sockets.connection.READ_LARGE)
    assert peak() - before < 32 * 2**20
    raw.close()


# ---- back-pressure ---------------------------------------------------------------------------------


def test_who_does_not_want_to_read_holds_the_peer_back_and_goes_on_writing(owned):
    connection, raw = owned()
    raw.sock.setblocking(False)
    message = frame(2, b"x" * 10_000)
    sent = quiet = 0
    while quiet < 20:
        assert connection.poll(0.005 if quiet else 0, want_read=False) == []
        try:
            sent += raw.sock.send(message[sent % len(message) :])
            quiet = 0
        except BlockingIOError:
            quiet += 1
    connection.send(b"still writing")
    connection.poll(0, want_read=False)
    raw.sock.settimeout(WAIT)
    assert raw.frame() == (2, b"still writing", True)
    got = 0
    end = time.monotonic() + WAIT
    while got < sent // len(message) * 10_000 and time.monotonic() < end:
        got += sum(len(event.data) for event in connection.poll(0.5))
    assert got >= sent // len(message) * 10_000


def test_a_peer_that_left_is_noticed_without_spinning_while_nobody_reads(owned):
    connection, raw = owned()
    raw.sock.sendall(frame(2, b"last words"))
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()  # with a reset
    connection.poll(0.1, want_read=False)
    cpu = time.process_time()
    for _ in range(3):
        assert connection.poll(0.1, want_read=False) == []
    assert time.process_time() - cpu < 0.1
    last = events(connection, 2)[-1]
    assert (last.code, last.why) == (1006, "lost")


def test_what_the_peer_said_before_it_left_is_read_first(owned):
    connection, raw = owned()
    raw.sock.sendall(frame(2, b"a") + frame(2, b"b"))
    raw.close()
    connection.poll(0.1, want_read=False)
    assert events(connection, 3) == [
        Data(b"a"),
        Data(b"b"),
        Closed(1006, "the peer ended the connection", "lost"),
    ]


def test_a_slow_reader_meets_the_limit_and_is_served_when_it_reads_again(owned):
    connection, raw = owned(limit_bytes=8 * 2**20)
    message = b"y" * 2**20
    sent = 0
    with pytest.raises(Full, match="reads too slowly: .* bytes are queued.* exceed the limit of 8388608"):
        while True:
            connection.send(message)
            sent += 1
            connection.poll(0)
    assert 8 <= sent < 100
    assert connection.pending <= 8 * 2**20 + 2**20
    assert connection.closed is None
    reader = threading.Thread(target=lambda: [raw.frame() for _ in range(sent)])
    reader.start()
    until(lambda: connection.idle, connection)
    assert connection.pending == 0
    assert connection.send(message)
    reader.join(WAIT)


def test_pieces_are_asked_for_only_as_the_socket_takes_them(owned):
    connection, raw = owned()
    asked = 0

    def pieces() -> Iterator[bytes]:
        nonlocal asked
        for _ in range(200):
            asked += 1
            yield b"z" * 2**20

    connection.send_fragments(pieces())
    assert asked == 0
    for _ in range(50):
        connection.poll(0.002)
    stalled = asked
    assert stalled < 40  # what the kernel's two buffers hold, and one in hand
    assert connection.pending <= 2 * 2**20
    assert connection.send(b"next")  # waits its turn

    def read() -> None:
        frames = []
        while not frames or not frames[-1][2]:
            opcode, payload, fin = raw.frame()
            frames.append((opcode, len(payload), fin))
        assert frames == [(2, 2**20, False)] + [(0, 2**20, False)] * 198 + [(0, 2**20, True)]
        assert raw.frame() == (2, b"next", True)
        done.set()

    done = threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    until(done.is_set, connection)
    reader.join(WAIT)
    assert asked == 200


@pytest.mark.parametrize(
    ("pieces", "frames"),
    [
        ([], [(2, b"", True)]),
        ([b""], [(2, b"", True)]),
        ([b"a"], [(2, b"a", True)]),
        ([b"a", b"", b"b"], [(2, b"a", False), (0, b"b", True)]),
        (["ä", "b"], [(1, "ä".encode(), False), (0, b"b", True)]),
    ],
)
def test_pieces_become_one_message(owned, pieces, frames):
    connection, raw = owned()
    connection.send_fragments(pieces)
    connection.poll(0)
    assert [raw.frame() for _ in frames] == frames


def test_a_ping_is_answered_in_the_midst_of_fragments(owned):
    connection, raw = owned()
    connection.send_fragments(b"z" * 2**20 for _ in range(50))
    raw.sock.sendall(frame(9, b"now"))
    for _ in range(20):
        connection.poll(0.002)
    opcodes: list[int] = []
    done = threading.Event()

    def read() -> None:
        fin = False
        while not fin or opcodes[-1] == 10:
            opcode, _, fin = raw.frame()
            opcodes.append(opcode)
        done.set()

    reader = threading.Thread(target=read)
    reader.start()
    until(done.is_set, connection)
    reader.join(WAIT)
    assert opcodes.count(10) == 1
    assert opcodes.index(10) < 50


def test_pieces_that_fail_cost_the_connection(owned):
    connection, raw = owned()

    def pieces() -> Iterator[bytes]:
        yield b"a"
        yield b"b"
        raise OSError("the file is gone")

    connection.send_fragments(pieces())
    with pytest.raises(OSError, match="the file is gone"):
        connection.poll(0)
    assert connection.closed is not None
    assert connection.poll() == [connection.closed]


# ---- other threads ---------------------------------------------------------------------------------


def test_other_threads_post_messages_and_calls(start):
    def serve(server: Server, connection: Connection) -> None:
        server.note(connection)

    server = start(serve)
    with websockets.sync.client.connect(server.url) as client:
        connection = server.connection()
        names: list[str] = []
        for i in range(100):
            assert connection.post(b"%d" % i)
        assert connection.post(lambda: names.append(threading.current_thread().name))
        assert connection.post("last")
        assert [client.recv(timeout=WAIT) for _ in range(101)] == [b"%d" % i for i in range(100)] + ["last"]
        assert names == ["apsis-agent-1"]
    assert isinstance(server.event(), Closed)
    assert not connection.post(b"too late")


def test_many_threads_post_and_nothing_is_lost(start):
    server = start(Server.note)
    client = sockets.connect(server.url)
    connection = server.connection()

    def post(number: int) -> None:
        for i in range(200):
            connection.post(struct.pack(">HH", number, i))

    threads = [threading.Thread(target=post, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    got = [struct.unpack(">HH", event.data) for event in events(client, 1600)]
    for thread in threads:
        thread.join(WAIT)
    assert len(got) == 1600
    for number in range(8):
        assert [i for n, i in got if n == number] == list(range(200))
    client.abort()


def test_posts_count_towards_the_limit(owned):
    connection, _ = owned(limit_bytes=1000)
    assert connection.post(b"x" * 900)
    assert connection.pending == 900
    with pytest.raises(Full):
        connection.post(b"x" * 200)


def test_a_wake_ends_the_wait(owned):
    connection, _ = owned()
    timer = threading.Timer(0.05, connection.wake)
    begun = time.monotonic()
    timer.start()
    connection.poll(0)
    assert connection.poll(WAIT) == []
    assert time.monotonic() - begun < WAIT / 2
    connection.wake()
    connection.wake()
    assert connection.poll(WAIT) == []
    assert connection.poll(0.01) == []


def test_a_post_that_fails_costs_the_connection_alone(start, caplog):
    server = start()
    with websockets.sync.client.connect(server.url) as client:
        server.connection().post(lambda: 1 // 0)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=WAIT)
    with websockets.sync.client.connect(server.url) as client:
        client.send("x")
        assert client.recv(timeout=WAIT) == "x"
    assert "ZeroDivisionError" in caplog.text


# ---- the end ---------------------------------------------------------------------------------------


def test_a_close_goes_out_after_what_is_queued(owned):
    connection, raw = owned()
    connection.send(b"one")
    connection.close(1001, "bye")
    assert not connection.send(b"two")
    assert connection.poll(0) == []
    assert [raw.frame(), raw.frame()] == [(2, b"one", True), (8, struct.pack(">H", 1001) + b"bye", True)]
    raw.sock.sendall(frame(2, b"on its way") + frame(8, struct.pack(">H", 1001)))
    assert events(connection) == [Closed(1001, "", "local")]
    assert raw.rest() == b""
    assert connection.poll() == [Closed(1001, "", "local")]


def test_a_close_that_nobody_answers_has_a_deadline(owned):
    connection, raw = owned()
    connection.close(timeout=0.1)
    assert events(connection) == [Closed(1006, "no answer to our Close", "local")]
    assert raw.frame()[0] == 8


def test_a_close_that_cannot_even_be_sent_has_a_deadline(owned):
    connection, _ = owned()
    connection.send(b"x" * 50 * 2**20)
    connection.poll(0)
    connection.close(timeout=0.1)
    assert events(connection) == [Closed(1006, "no answer to our Close", "local")]


@pytest.mark.parametrize(("payload", "code"), [(b"", 1005), (struct.pack(">H", 4321) + b"why", 4321)])
def test_a_close_of_the_peer_is_answered(owned, payload, code):
    connection, raw = owned()
    raw.sock.sendall(frame(8, payload))
    closed = events(connection)[0]
    assert (closed.code, closed.why) == (code, "peer")
    assert raw.frame() == (8, payload, True)
    assert raw.rest() == b""


def test_both_may_close_at_once(owned):
    connection, raw = owned()
    connection.close(1001)
    raw.sock.sendall(frame(8, struct.pack(">H", 1000)))
    closed = events(connection)[0]
    assert closed.code in (1000, 1001)
    assert raw.frame()[0] == 8
    assert raw.rest() == b""


def test_a_close_of_the_peer_is_heard_though_our_writes_fail(owned):
    connection, raw = owned()
    raw.sock.sendall(frame(8, struct.pack(">H", 1001)))
    raw.close()
    connection.send(b"x" * 2**20)
    closed = events(connection)[0]
    assert (closed.code, closed.why) == (1001, "peer")


def test_nothing_can_be_sent_once_the_end_has_begun(owned):
    connection, raw = owned()
    raw.sock.sendall(frame(2, b"a") + frame(8))
    events(connection, 2)
    assert not connection.send(b"x")
    assert not connection.send_fragments([b"x"])
    assert not connection.post(b"x")
    connection.ping()
    connection.wake()
    connection.close()
    connection.abort()


def test_kill_from_another_thread_ends_the_wait(start, tls):
    server = start(Server.note, ssl_context=tls[0])
    client = sockets.connect(server.url, tls[1])
    server.connection().kill()
    assert server.event().why == "lost"
    client.abort()


# ---- an owner with a poll() of its own -------------------------------------------------------------


def test_interest_tells_an_outer_poll_what_to_wait_for(owned):
    connection, raw = owned()
    assert connection.interest() is None  # nothing has been tried yet
    connection.poll(0)
    assert connection.interest() == select.POLLIN
    assert connection.interest(want_read=False) == 0
    connection.send(b"x" * 30 * 2**20)
    until(
        lambda: connection.poll(0) == [] and connection.interest() == select.POLLIN | select.POLLOUT,
        connection,
    )
    assert connection.interest(want_read=False) == select.POLLOUT
    outer = select.poll()
    outer.register(connection.fileno(), select.POLLIN)
    raw.sock.sendall(frame(2, b"hello"))
    assert outer.poll(WAIT * 1000) == [(connection.fileno(), select.POLLIN)]
    assert connection.poll(0) == [Data(b"hello")]


# ---- the listener ----------------------------------------------------------------------------------


def test_a_port_in_use_is_an_error_that_names_it(start):
    server = start()
    with pytest.raises(
        OSError, match=f"can't listen on 127.0.0.1:{server.address[1]}: Address already in use"
    ):
        Listener(server.address, lambda connection: None)


@pytest.mark.parametrize("address", [("127.0.0.1", 99_999), ("no.such.host.invalid", 0), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_is_an_error(address):
    with pytest.raises(OSError, match="can't listen on"):
        Listener(address, lambda connection: None)


def test_100_connections_are_served_at_once(start):
    server = start()
    clients = [sockets.connect(server.url) for _ in range(100)]
    for turn in range(3):
        got = []
        for number, client in enumerate(clients):
            client.send(b"%d %d" % (turn, number))
            got.append(client.poll(0))
        for number, client in enumerate(clients):
            assert (got[number] or events(client)) == [Data(b"%d %d" % (turn, number))]
    assert server.listener.connections == 100
    for client in clients:
        client.abort()


def test_above_the_bound_connections_are_refused_until_one_ends(start):
    server = start(max_connections=2)
    raws = [Raw(server.address) for _ in range(2)]
    for _ in raws:
        server.connection()
    refused = Raw(server.address, None)
    assert refused.rest() == b""
    raws[0].close()
    assert isinstance(server.event(), Closed)
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        with contextlib.suppress(EOFError, OSError):
            raws.append(Raw(server.address))
            break
    assert raws[-1].head.startswith(b"HTTP/1.1 101")
    for raw in (*raws, refused):
        raw.close()


def test_above_the_bound_who_says_nothing_makes_room(start):
    server = start(max_connections=3)
    settled = Raw(server.address)
    server.connection()
    silent = [Raw(server.address, None) for _ in range(2)]
    for count in range(1, 4):
        raw = Raw(server.address)
        server.connection()
        if count < 3:
            assert raw.head.startswith(b"HTTP/1.1 101")
            assert silent[count - 1].rest() == b""  # the older one first
            raw.close()
            assert isinstance(server.event(), Closed)
            end = time.monotonic() + WAIT
            while server.listener.connections > 2 and time.monotonic() < end:
                threading.Event().wait(0.01)  # its thread is still ending
            silent.append(Raw(server.address, None))
    settled.sock.sendall(frame(2, b"still here"))
    assert settled.frame()[1] == b"still here"
    for each in (settled, raw, *silent):
        each.close()


def test_above_the_bound_half_an_opening_makes_room(start, tls):
    """Half a TLS record, or half a head: whoever has all of it is let in while all others are held open."""
    server = start(max_connections=3, handshake_timeout=10 * WAIT, ssl_context=tls[0])
    hello = b"GET / HTTP/1.1\r\nHost: h" if tls[0] is None else b"\x16\x03\x01\x02\x00\x01\x00"
    halves = []
    for _ in range(20):
        halves.append(Raw(server.address, None))
        halves[-1].sock.sendall(hello)
    with websockets.sync.client.connect(server.url, ssl=tls[1], open_timeout=WAIT) as client:
        client.send("in")
        assert client.recv(timeout=WAIT) == "in"
    for half in halves[:17]:
        assert half.rest() == b""
    for half in halves:
        half.close()


def test_stop_says_goodbye_and_frees_the_port():
    server = Server()
    with websockets.sync.client.connect(server.url) as client:
        server.connection()
        stopped: list[Any] = []
        thread = threading.Thread(target=lambda: stopped.append(server.listener.stop(5)))
        thread.start()
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(timeout=WAIT)
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1001
        thread.join(WAIT)
    assert stopped == [[]]
    assert not [t for t in threading.enumerate() if t.name.startswith("apsis-agent")]
    again = Listener(server.address, lambda connection: None)
    again.start()
    assert again.stop(5) == []


def test_stop_ends_peers_that_do_not_answer_and_handshakes_within_its_deadline(server_tls):
    for context in (None, server_tls):
        server = Server(ssl_context=context)
        raws = [Raw(server.address, None) for _ in range(3)]
        if context is None:
            raws.append(Raw(server.address))
            server.connection()
        end = time.monotonic() + WAIT
        while server.listener.connections < len(raws) and time.monotonic() < end:
            threading.Event().wait(0.01)
        begun = time.monotonic()
        assert server.listener.stop(0.5) == []
        assert time.monotonic() - begun < sockets.HANDSHAKE_TIMEOUT
        for raw in raws:
            raw.close()


def test_stop_names_the_thread_that_does_not_end():
    release = threading.Event()

    def stuck(server: Server, connection: Connection) -> None:
        release.wait(WAIT)

    server = Server(stuck)
    raw = Raw(server.address)
    server.connection()
    assert server.listener.stop(0.1) == ["apsis-agent-1"]
    release.set()
    raw.close()


def test_a_failing_owner_is_logged_and_costs_its_connection_alone(start, caplog):
    def fail(server: Server, connection: Connection) -> None:
        if connection.path == "/fail":
            raise RuntimeError("owner failed")
        server.echo(connection)

    server = start(fail)
    raw = Raw(server.address, REQUEST.replace(b"GET / ", b"GET /fail "))
    assert raw.rest() == b""
    raw.close()
    with websockets.sync.client.connect(server.url) as client:
        client.send("x")
        assert client.recv(timeout=WAIT) == "x"
    assert "owner failed" in caplog.text


OUT_OF_DESCRIPTORS = """
import logging, resource, socket, sys, threading, time
logging.basicConfig(level=logging.INFO)
from apsislib.sockets import Closed, Listener, connect

def serve(connection):
    while connection.closed is None:
        for event in connection.poll(20):
            if not isinstance(event, Closed):
                connection.send(event.data)

listener = Listener(("127.0.0.1", 0), serve)
listener.start()
used = 60
resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
clients = []
try:
    while True:
        clients.append(socket.create_connection(listener.address))
except OSError:
    pass
clients.pop().close()
clients.append(socket.create_connection(listener.address))  # which the server has no descriptor to accept
cpu = time.process_time()
threading.Event().wait(1.2)
print("cpu", time.process_time() - cpu)
for client in clients:
    client.close()
url = "ws://127.0.0.1:%d/" % listener.address[1]
for _ in range(50):
    try:
        client = connect(url, deadline=5)
        break
    except OSError:
        threading.Event().wait(0.1)
client.send(b"alive")
print(next(event for _ in range(20) for event in client.poll(1)))
client.abort()
print("stopped", listener.stop(5))
"""


def test_running_out_of_descriptors_pauses_accepting_without_spinning():
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert float(lines[0].split()[1]) < 0.5
    assert "alive" in lines[1]
    assert lines[2] == "stopped []"
    assert done.stderr.count("can't accept agents, pausing: [Errno 24]") == 1


def test_importing_leaves_the_root_logger_to_the_program():
    code = "import logging, apsislib.sockets; assert not logging.root.handlers, logging.root.handlers"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    assert logging.getLogger("websocket_server").level <= logging.WARNING


# ---- upgrading a socket of an HTTP server ----------------------------------------------------------


def test_a_request_that_is_no_upgrade_leaves_the_socket_to_the_http_server():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for headers, status in (
            ({}, 426),
            ({"Upgrade": "websocket", "Connection": "upgrade"}, 426),
            ({"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}, 400),
        ):
            with pytest.raises(Refused) as caught:
                sockets.upgrade(ours, b"", headers)
            assert caught.value.status == status
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def test_what_the_http_server_read_beyond_the_request_is_not_lost(owned):
    connection, raw = owned(leftover=frame(2, b"ea"), assemble=100, path="/live")
    raw.sock.sendall(frame(2, b"rly"))
    assert events(connection, 2) == [Data(b"ea"), Data(b"rly")]
    assert connection.path == "/live"
    assert connection.headers["sec-websocket-key"] == KEY


def test_half_a_frame_beyond_the_request_is_completed(owned):
    early = frame(1, b"early")
    connection, raw = owned(leftover=early[:4], assemble=100)
    assert connection.poll(0.01) == []
    raw.sock.sendall(early[4:])
    assert events(connection) == [Text("early")]


def test_the_key_of_the_standard_has_the_answer_of_the_standard(owned):
    _, raw = owned()
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in raw.head
    assert base64.b64decode(KEY) == b"the sample nonce"


# ---- TLS -------------------------------------------------------------------------------------------


def test_both_directions_are_full_at_once_over_tls(start, tls):
    server = start(assemble=None, ssl_context=tls[0], limit_bytes=2**30)
    client = sockets.connect(server.url, tls[1], limit_bytes=2**30)
    block = os.urandom(2**20)
    client.send_fragments(block for _ in range(30))
    got = 0
    end = time.monotonic() + WAIT
    while got < 30 * 2**20 and time.monotonic() < end:
        for event in client.poll(1):
            assert isinstance(event, Data)
            got += len(event.data)
    assert got == 30 * 2**20
    client.close()
    assert client.finish().why == "local"


def test_bytes_that_poll_cannot_see_are_read_over_tls(start, server_tls, client_tls):
    """16 KiB records hold many frames; reading was refused when they arrived, and nothing comes after."""
    server = start(ssl_context=server_tls)
    client = sockets.connect(server.url, client_tls)
    for i in range(500):
        client.send(b"%d" % i)
    until(lambda: client.idle, client, want_read=False)
    for _ in range(5):
        client.poll(0.02, want_read=False)
    assert [event.data for event in events(client, 500)] == [b"%d" % i for i in range(500)]
    client.abort()


def test_a_peer_that_ends_without_a_tls_farewell_is_lost(start, server_tls, client_tls):
    server = start(Server.note, ssl_context=server_tls)
    client = sockets.connect(server.url, client_tls)
    server.connection()
    socket.socket.shutdown(client._sock, socket.SHUT_RDWR)
    assert server.event().why == "lost"
    client.abort()
