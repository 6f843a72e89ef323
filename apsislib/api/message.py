"""HTTP messages as values: what a handler is given, what it answers, and the reading of a head.

Strict where leniency lets two programs read one request differently: lines end in CRLF, nothing is
folded, lengths and hosts are said once, chunked bodies are refused.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from apsislib.errors import BadRequest
from apsislib.shapes import encode

MAX_HEAD = 65536  # bytes of request line and header: far above what browsers send, cookies included
MAX_TARGET = 16384  # bytes of path and query: a thousand run IDs in one query
MAX_FIELDS = 100  # header lines
MAX_BODY = 16 * 2**20  # bytes: an ad hoc job, generously

JSON_TYPE = "application/json"


class Refused(Exception):
    """A request that no handler may see. The connection is closed behind the answer."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple((name.replace("_", "-"), value) for name, value in headers.items())


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # still percent-encoded, so that an encoded slash is not a separator; without the query
    raw_query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case; repeated ones joined
    body: bytes = b""
    params: Mapping[str, str] = field(default_factory=dict)  # from the path, decoded exactly once
    raw_params: Mapping[str, str] = field(default_factory=dict)  # ... still encoded

    def query(self) -> list[tuple[str, str]]:
        """Decoded names and values. Those with a blank value are as if absent."""
        found = []
        for item in self.raw_query.split("&"):
            name, _, value = item.partition("=")
            if value:
                pair = decode(name.replace("+", " ")), decode(value.replace("+", " "))
                found.append(pair)
        return found

    def one(self, name: str) -> str | None:
        """The value of a parameter that may be given once; None if absent. Raises BadRequest."""
        values = [value for key, value in self.query() if key == name]
        if len(values) > 1:
            raise BadRequest(f"{name} was given {len(values)} times; give it once")
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.query() if key == name]

    def flag(self, name: str) -> bool:
        """Whether `name` stands in the query, bare or with any value."""
        return any(item.partition("=")[0] == name for item in self.raw_query.split("&"))

    def json(self) -> dict[str, Any]:
        """The body, a JSON object. Raises BadRequest."""
        try:
            value = _DECODER.decode(self.body.decode())
            # Two halves of a \\u pair may come apart; what UTF-8 cannot express cannot be stored.
            if b"\\u" in self.body:
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeDecodeError:
            raise BadRequest("can't parse the body as JSON: it is not UTF-8") from None
        except UnicodeEncodeError:
            raise BadRequest("the body holds a lone surrogate, which UTF-8 cannot express") from None
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"can't parse the body as JSON: {error or 'nested too deeply'}") from None
        if not isinstance(value, dict):
            raise BadRequest("the body must be a JSON object")
        return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def decode(text: str) -> str:
    """Percent-decoded once. Raises BadRequest where that gives no UTF-8, or a NUL."""
    if "%" not in text and text.isascii():
        return text
    try:
        decoded = unquote_to_bytes(text.encode("latin-1")).decode()
    except UnicodeError:
        raise BadRequest("the address is not UTF-8 once percent-decoded") from None
    if "\0" in decoded:
        raise BadRequest("the address holds a NUL character")
    return decoded


@dataclass(frozen=True, slots=True)
class Response:
    status: int = 200
    # Whole, or in pieces that are sent as they are made. Then `length` says how many bytes come; None:
    # nobody knows yet, so they go in chunks.
    body: bytes | Iterable[bytes] = b"{}"
    content_type: str = JSON_TYPE
    headers: Sequence[tuple[str, str]] = ()
    length: int | None = None
    after: Callable[[], None] | None = None  # called once the answer is sent
    close: bool = False  # the connection ends with this answer

    @property
    def measured(self) -> bool:
        return isinstance(self.body, bytes) or self.length is not None

    def head(self, close: bool, chunks: bool = True) -> bytes:
        """`chunks`: whether the client knows them. For one that does not, the end of the connection is that
        of a body of unknown length."""
        length = len(self.body) if isinstance(self.body, bytes) else self.length
        start = f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}\r\n"
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        size = "transfer-encoding: chunked\r\n" if chunks else ""
        if length is not None:
            size = f"content-length: {length}\r\n"
        fields = f"{size}content-type: {self.content_type}\r\n"
        connection = "close" if close else "keep-alive"
        tail = f"connection: {connection}\r\nx-content-type-options: nosniff\r\n\r\n"
        return (start + fields + lines + tail).encode("latin-1")


_REASONS = {status.value: status.phrase for status in HTTPStatus}


def ok(value: Any) -> Response:
    return Response(body=encode(value))


def blocks(pieces: list[bytes]) -> Response:
    """JSON that was made in pieces."""
    return Response(body=pieces, length=sum(map(len, pieces)))


def failed(status: int, message: str, **more: Any) -> Response:
    return Response(status, encode({"error": message, **more}))


# -- reading a head ----------------------------------------------------------------------------------

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ONCE = (b"host", b"content-length", b"origin", b"content-type", b"authorization")


def parse_head(head: bytes) -> tuple[Request, bool]:
    """(the request without its body, whether the connection stays open after it).

    `head` ends before the empty line. Raises Refused.
    """
    line, _, rest = head.partition(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not words[2].startswith(b"HTTP/"):
        raise Refused(400, "malformed request line")
    method, target, version = words
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    if len(target) > MAX_TARGET:
        raise Refused(414, f"the address is longer than {MAX_TARGET} bytes")
    if not _TARGET.fullmatch(target):
        raise Refused(400, "malformed request line")
    headers = _parse_fields(rest)
    if target.startswith((b"http://", b"https://")):
        # The form that proxies are sent. The authority in it counts, not Host.
        authority, slash, path = target.split(b"//", 1)[1].partition(b"/")
        headers["host"] = authority.decode("latin-1")
        target = slash + path or b"/"
    if not target.startswith(b"/"):
        raise Refused(400, "the address must begin with /")
    if version == b"HTTP/1.0":
        # Its clients know no chunks, in which gzip is sent.
        headers.pop("accept-encoding", None)
    elif "host" not in headers:
        raise Refused(400, "missing header: Host")
    path, _, query = target.partition(b"#")[0].partition(b"?")
    # HTTP/1.0 clients that ask for keep-alive are so rare that they are not humoured.
    keep = version == b"HTTP/1.1" and "close" not in headers.get("connection", "").lower()
    return Request(method.decode(), path.decode("latin-1"), query.decode("latin-1"), headers), keep


def _parse_fields(text: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    lines = text.split(b"\r\n") if text else []
    if len(lines) > MAX_FIELDS:
        raise Refused(431, f"more than {MAX_FIELDS} header lines")
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or _BAD_VALUE.search(value):
            raise Refused(400, "malformed header")
        name = name.lower()
        key = name.decode()
        word = value.strip(b" \t").decode("latin-1")
        if key in headers:
            if name in _ONCE:
                raise Refused(400, f"repeated header: {key}")
            word = f"{headers[key]}, {word}"
        headers[key] = word
    return headers


def body_length(request: Request) -> int:
    """How many bytes of body follow the head. Raises Refused."""
    if "transfer-encoding" in request.headers:
        raise Refused(411, "chunked bodies are not accepted; send Content-Length")
    text = request.headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Refused(400, "malformed header: Content-Length")
    length = int(text)
    if length > MAX_BODY:
        raise Refused(413, f"the body is larger than {MAX_BODY} bytes")
    expect = request.headers.get("expect", "100-continue").lower()
    if expect != "100-continue":
        raise Refused(417, "only 100-continue can be expected")
    return length


# -- who asks ----------------------------------------------------------------------------------------


def host_name(authority: str) -> str:
    """The host of `host:port` in the form in which names are compared."""
    name = authority.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    return name.removesuffix(".")


def is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def same_origin(request: Request) -> bool:
    """Whether the request comes from a page of ours, or from no page at all."""
    origin = request.headers.get("origin")
    if origin is None:
        # Browsers send Origin with every state change; this is for those that would once forget it.
        return request.headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    scheme, _, authority = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    if port is None:
        return False
    return authority.removesuffix(port) == request.headers.get("host", "").lower().removesuffix(port)


def with_params(request: Request, raw: Mapping[str, str]) -> Request:
    params = {name: decode(value) for name, value in raw.items()}
    return replace(request, params=params, raw_params=raw)


def with_body(request: Request, body: bytes) -> Request:
    # Not replace(), which takes as long as half of the parsing.
    return Request(request.method, request.path, request.raw_query, request.headers, body)
