"""The web pages: static files, held in memory.

A file is served at /static/NAME, and at /static/VERSION/NAME, where VERSION is a digest of all of them: the
page names the latter, so that a browser keeps what it has, and never mixes files of two releases.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
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
)

# Addresses that the page shows by itself, so that they can be opened and shared.
_VIEWS = re.compile(r"/|/index\.html|/(today|jobs|runs|agents|server)/?|/(job|jobs|runs)/.+")

# The view that an address begins with, by its first part and whether another follows.
_FIRST = {
    ("", False): "today",
    ("today", False): "today",
    ("runs", False): "runs",
    ("runs", True): "run",
    ("jobs", False): "jobs",
    ("jobs", True): "jobs",
    ("job", True): "job",
    ("agents", False): "agents",
    ("server", False): "server",
}

_LINK = '<link rel="{}" href="/static/{}">'
_SHEETS = re.compile(r'<link rel="stylesheet" href="/static/(style/[a-z-]+\.css)">\n')
_IMPORT = re.compile(r'^(?:import|export)\b[^"\']*?"(\.{1,2}/[^"]+)";', re.MULTILINE)

_FOREVER = ("cache-control", "public, max-age=31536000, immutable")
_ASK = ("cache-control", "no-cache")


class Pages:
    """The files of apsislib/pages/."""

    def __init__(self) -> None:
        root = Path(__file__).parents[1] / "pages"
        found = {
            file.relative_to(root).as_posix(): file.read_bytes()
            for file in sorted(root.rglob("*"))
            if file.suffix in _TYPES
        }
        self._base = f"/static/{_digest(b''.join(found.values()))[:12]}/"
        page = found["index.html"].decode()
        # The style sheets as one, in the order of the page: a request instead of seven.
        sheets = _SHEETS.findall(page)
        found["style.css"] = b"\n".join(found[name] for name in sheets)
        page = _SHEETS.sub("", page).replace("<!-- styles -->", _LINK.format("stylesheet", "style.css"))
        # One for each view, index.html for what has none: they differ in what is fetched at once.
        for view in ("", *_FIRST.values()):
            found[f"{view or 'index'}.html"] = self._page(page, found, view).encode()
        # name -> (content, type, tag)
        self._files = {
            name: (content, _TYPES[Path(name).suffix], f'"{_digest(content)[:20]}"')
            for name, content in found.items()
        }

    def _page(self, text: str, files: Mapping[str, bytes], view: str) -> str:
        """The page with versioned addresses, and the modules that this view needs in its head."""
        modules = _imported(files, "app.js") | (_imported(files, f"views/{view}.js") if view else set())
        links = "\n".join(_LINK.format("modulepreload", name) for name in sorted(modules - {"app.js"}))
        return text.replace("<!-- modules -->", links).replace('"/static/', f'"{self._base}')

    def find(self, request: Request) -> Response | None:
        """The answer to a request for a page or file; None: it is for neither."""
        path, caching = request.path, _ASK
        if path.startswith("/api/"):
            return None
        if _VIEWS.fullmatch(path):
            name = f"{_view(path)}.html"
        elif path == "/favicon.ico":
            name = "icon.svg"
        elif path.startswith(self._base):
            name, caching = path.removeprefix(self._base), _FOREVER
        elif path.startswith("/static/"):
            # Of another version there is none: a page that was open while the server was renewed loads anew.
            name = path.removeprefix("/static/")
        else:
            return None
        file = self._files.get(name)
        if file is None:
            return None
        if request.method not in ("GET", "HEAD"):
            answer = failed(405, f"{request.method[:20]} is not possible here; allowed: GET, HEAD")
            return Response(405, answer.body, headers=(("allow", "GET, HEAD"),))
        content, kind, tag = file
        headers = (*_HEADERS, caching, ("etag", tag))
        if is_known(request, tag):
            return Response(304, b"", kind, headers)
        return Response(200, content, kind, headers)


def _imported(files: Mapping[str, bytes], name: str) -> set[str]:
    """A module and all that it imports, and so on; not what it loads later."""
    found: set[str] = set()
    wanted = {name}
    while wanted:
        name = wanted.pop()
        found.add(name)
        for other in _IMPORT.findall(files[name].decode()):
            wanted |= {posixpath.normpath(posixpath.join(posixpath.dirname(name), other))} - found
    return found


def _view(path: str) -> str:
    first, _, rest = path.strip("/").partition("/")
    return _FIRST.get((first, bool(rest)), "index")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
