"""Finding one's way within an output: where its lines are, and where a text stands in it.

    GET /api/v1/runs/r12/output/output/lines?start=0
    GET /api/v1/runs/r12/output/output/search?q=exception&start=1048576&back=true

Both read on from `start` until a quarter of a second has passed, and say in `next` where to go on: so an
output of a gigabyte is gone through in pieces, none of which keeps a thread for long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from apsislib.api.control import parse_bool
from apsislib.api.message import Request, Response, ok
from apsislib.api.outputs import find_output
from apsislib.api.parts import Parts
from apsislib.api.search import parse_limit
from apsislib.clock import Deadline
from apsislib.errors import BadRequest, NotFound

STRIDE = 256 * 1024  # bytes of a stretch: as many as a chunk in the database has at most
BUDGET = 0.25  # s
LONGEST = 1000  # bytes of a text that is looked for
MATCHES = 1000  # of one answer


def lines(parts: Parts, request: Request) -> Response:
    """Line ends of each stretch from `start` on. Of the last one, which may grow, as it is now."""
    run_id, info = find_output(parts, request)
    start = _position(request.one("start"))
    if start % STRIDE:
        raise BadRequest(f"start must be a multiple of {STRIDE}: {start}")
    deadline = Deadline(BUDGET, parts.clock)
    counts: list[int] = []
    at = start
    while at < info.length and (not counts or not deadline.passed()):
        counts.append(_read(parts, run_id, info.output_id, at, min(at + STRIDE, info.length)).count(b"\n"))
        at += STRIDE
    more = at if at < info.length else None
    return ok({"length": info.length, "start": start, "stride": STRIDE, "counts": counts, "next": more})


def search(parts: Parts, request: Request) -> Response:
    """Where the text `q` begins, from `start` on, or before it and backwards."""
    run_id, info = find_output(parts, request)
    text = request.one("q") or ""
    if not text or len(text.encode()) > LONGEST:
        raise BadRequest(f"q must be a text of 1 to {LONGEST} bytes")
    back = parse_bool(request.one("back") or "False", "back")
    limit = parse_limit(request.one("limit"), 100, MATCHES)
    start = min(info.length, _position(request.one("start") or (str(info.length) if back else None)))
    find, most = _finder(text, parse_bool(request.one("case") or "False", "case"))
    deadline = Deadline(BUDGET, parts.clock)
    found: list[list[int]] = []
    more = None
    for low, high in _stretches(start, info.length, back):
        if len(found) == limit or (more is not None and deadline.passed()):
            break
        # A text that begins in this stretch may reach into the next one.
        data = _read(parts, run_id, info.output_id, low, min(high + most - 1, info.length))
        here = [[low + at, size] for at, size in find(data) if low + at < high]
        found += reversed(here) if back else here
        more = low if back else high
        if len(found) > limit:
            found = found[:limit]
            more = found[-1][0] + (0 if back else 1)
            break
    else:
        more = None
    return ok({"length": info.length, "matches": found, "next": more})


def _stretches(start: int, length: int, back: bool) -> Iterator[tuple[int, int]]:
    if back:
        for high in range(start, 0, -STRIDE):
            yield max(0, high - STRIDE), high
    else:
        for low in range(start, length, STRIDE):
            yield low, min(low + STRIDE, length)


def _read(parts: Parts, run_id: str, output_id: str, start: int, stop: int) -> bytes:
    with parts.store.read() as reader:  # a short one each: it holds no snapshot for long
        data = b"".join(reader.output(run_id, output_id, start, stop))
    if len(data) != stop - start:
        raise NotFound(f"output {output_id} of {run_id} is no more")
    return data


Find = Callable[[bytes], Iterator[tuple[int, int]]]


def _finder(text: str, case: bool) -> tuple[Find, int]:
    """(what finds the text in bytes: where and how long; the bytes of the longest match)."""
    if case or text.isascii():
        needle = text.encode()
        needle = needle if case else needle.lower()

        def find(data: bytes) -> Iterator[tuple[int, int]]:
            data = data if case else data.lower()
            at = data.find(needle)
            while at >= 0:
                yield at, len(needle)
                at = data.find(needle, at + len(needle))

        return find, len(needle)
    # Letters beyond ASCII are other bytes in the other case, perhaps more of them.
    forms = [sorted({form.encode() for form in (c, c.lower(), c.upper())}) for c in text]
    pattern = re.compile(b"".join(b"(?:%b)" % b"|".join(map(re.escape, some)) for some in forms))

    def look(data: bytes) -> Iterator[tuple[int, int]]:
        return ((m.start(), m.end() - m.start()) for m in pattern.finditer(data))

    return look, sum(max(map(len, some)) for some in forms)


def _position(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise BadRequest(f"start must be a number of bytes: {text}")
    return int(text)
