"""The web pages: static files, held in memory."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from apsislib.api.encoding import is_known
from apsislib.api.message import Request, Response, failed

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Nothing but what this server sends is run, shown or talked to; nobody may frame it. `connect-src
# 'self'` covers WebSockets to this host in all current browsers.
_HEADERS = (
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),
)

# Addresses that the page shows by itself, so that they can be opened and shared.
_VIEWS = re.compile(r"/|/index\.html|/(jobs|runs|agents)/?|/(job|jobs|runs)/.+")


class Pages:
    """The files of apsislib/pages/."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, str, str]] = {}  # address -> (content, type, tag)
        for file in sorted((Path(__file__).parents[1] / "pages").iterdir()):
            if file.suffix in _TYPES:
                content = file.read_bytes()
                tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
                self._files[f"/static/{file.name}"] = content, _TYPES[file.suffix], tag

    def find(self, request: Request) -> Response | None:
        """The answer to a request for a page or file; None: it is for neither."""
        path = request.path
        if path.startswith("/api/"):
            return None
        if _VIEWS.fullmatch(path):
            path = "/static/index.html"
        elif path == "/favicon.ico":
            path = "/static/icon.svg"
        file = self._files.get(path)
        if file is None:
            return None
        if request.method not in ("GET", "HEAD"):
            answer = failed(405, f"{request.method[:20]} is not possible here; allowed: GET, HEAD")
            return Response(405, answer.body, headers=(("allow", "GET, HEAD"),))
        content, kind, tag = file
        headers = (*_HEADERS, ("etag", tag))
        if is_known(request, tag):
            return Response(304, b"", kind, headers)
        return Response(200, content, kind, headers)
