"""What spares bytes on the way: a tag by which a client's copy is known to be current, and gzip."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from apsislib.api.message import Request, Response

LEAST = 4096  # bytes; what is smaller fits in a few packets anyway
LEVEL = 1  # 6 would take three times as long for a tenth fewer bytes
PACKABLE = re.compile(r"application/json|text/.*|image/svg.*|application/octet-stream")


def tagged(request: Request, response: Response) -> Response:
    """The answer with an ETag of its whole body; 304 where the client has that already."""
    body = response.body
    digest = hashlib.sha256()
    for piece in [body] if isinstance(body, bytes) else body:
        digest.update(piece)
    tag = f'"{digest.hexdigest()[:20]}"'
    headers = (*response.headers, ("etag", tag), ("cache-control", "no-cache"))
    if is_known(request, tag):
        return Response(304, b"", response.content_type, headers)
    return replace(response, headers=headers)


def is_known(request: Request, tag: str) -> bool:
    """Whether If-None-Match names the tag. Compared weakly: gzip does not make it another."""
    given = request.headers.get("if-none-match", "").split(",")
    known = [word.strip().removeprefix("W/") for word in given]
    return tag in known or "*" in known


def accepts_gzip(text: str) -> bool:
    """Whether an Accept-Encoding says that gzip is read; a client that says nothing may not know it."""
    found: dict[str, float] = {}
    for item in text.lower().split(","):
        name, _, rest = item.strip().partition(";")
        weight = re.fullmatch(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*", rest)
        found[name.strip()] = float(weight[1]) if weight else 1.0
    return found.get("gzip", found.get("*", 0.0)) > 0


def packed(request: Request, response: Response) -> Response:
    """The answer in gzip, where that is worth it and the client takes it."""
    length = len(response.body) if isinstance(response.body, bytes) else response.length
    if response.status != 200 or not length or length < LEAST or not PACKABLE.match(response.content_type):
        return response
    if any(name == "vary" for name, _ in response.headers):  # whoever made it has decided
        return response
    headers = [(k, f"W/{v}" if k == "etag" else v) for k, v in response.headers]
    headers.append(("vary", "accept-encoding"))
    if not accepts_gzip(request.headers.get("accept-encoding", "")):
        return replace(response, headers=(*response.headers, ("vary", "accept-encoding")))
    headers.append(("content-encoding", "gzip"))
    if isinstance(response.body, list | tuple | bytes):
        whole = [response.body] if isinstance(response.body, bytes) else response.body
        pieces = list(_pack(whole))
        return replace(response, body=pieces, length=sum(map(len, pieces)), headers=headers)
    # Made as it is sent, so that nobody knows its length beforehand: it goes in chunks.
    return replace(response, body=_pack(response.body), length=None, headers=headers)


def _pack(pieces: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(LEVEL, wbits=31)
    for piece in pieces:
        if found := packer.compress(piece):
            yield found
    yield packer.flush()
