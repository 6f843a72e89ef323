"""Runs as a file, for spreadsheets and scripts; and completions of what a search is made of.

    GET /api/v1/export/runs?format=csv&q=etl+state:failure,error+since:7d
    GET /api/v1/complete?q=etl/lo

The file is made page by page as it is sent, so that a million runs take no more memory than a hundred; it
has what a search by latest transition would have, without those that schedules have made ahead of time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from heapq import nsmallest

from apsislib import terms
from apsislib.api.message import Request, Response, ok
from apsislib.api.outputs import GUARD
from apsislib.api.parts import Parts
from apsislib.api.search import read_terms
from apsislib.errors import BadRequest, Unavailable
from apsislib.runs import Run, alarms, labels
from apsislib.shapes import encode, run_summary
from apsislib.states import FINISHED
from apsislib.terms import Term
from apsislib.times import format_time

PAGE = 500  # runs read and sent in one go
MARGIN = 60.0  # s; a transition may be on disk so much later than it was decided, on a slow one
COLUMNS = ("run_id", "job_id", "state", "schedule", "start", "end", "elapsed", "args", "labels", "alarms")
COMPLETIONS = 12  # of a kind


def runs(parts: Parts, request: Request) -> Response:
    kind = request.one("format") or "json"
    if kind not in ("csv", "json"):
        raise BadRequest(f"format must be csv or json: {kind}")
    order = request.one("order") or "latest"
    if order not in ("latest", "earliest"):
        raise BadRequest(f"order must be latest or earliest: {order}")
    wanted = read_terms(parts, request)
    if parts.files.are_full():
        raise Unavailable("other files of runs are being made; try again when one is done")
    found = _pages(parts, wanted, order == "earliest")
    name = f"runs-{format_time(parts.clock.wall())[:10]}.{kind}"
    headers = (
        ("content-disposition", f'attachment; filename="{name}"'),
        ("cache-control", "no-store"),
        *GUARD,
    )
    if kind == "csv":
        return Response(200, _as_csv(found), "text/csv; charset=utf-8", headers, length=None)
    return Response(200, _as_json(found), headers=headers, length=None)


def _pages(parts: Parts, wanted: list[Term], oldest: bool) -> Iterator[list[Run]]:
    """Each run once, also of those that change while the file is sent, and so have another place.

    Of such a one the newest state need not be in it, and it may stand at the end.
    """
    sent = _Numbers()
    begun = parts.clock.wall()

    def walk(place: tuple[float, int] | None, oldest: bool) -> Iterator[list[Run]]:
        while True:
            # A transaction a page: a client that reads slowly holds none open.
            with parts.store.read() as reader:
                page, place = reader.search_by_time(wanted, place, PAGE, oldest)
            yield [run for run in page if sent.add(run.number)]
            if place is None:
                return

    with parts.files.take():
        yield from walk(None, oldest)
        if not oldest:
            # What has changed since is at the beginning now, where we were before.
            yield from walk((begun - MARGIN, 0), True)


class _Numbers:
    """A set of run numbers, of which a million take 125 kB."""

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """False: it was there."""
        block, bit = divmod(number, 1 << 15)
        bits = self._bits.setdefault(block, bytearray(1 << 12))
        mask = 1 << (bit & 7)
        new = not bits[bit >> 3] & mask
        bits[bit >> 3] |= mask
        return new


def _as_json(pages: Iterable[list[Run]]) -> Iterator[bytes]:
    between = b"[\n"
    for page in pages:
        lines = [encode(run_summary(run)) for run in page]
        if lines:
            yield between + b",\n".join(lines)
            between = b",\n"
    yield b"\n]\n" if between == b",\n" else b"[]\n"


def _as_csv(pages: Iterable[list[Run]]) -> Iterator[bytes]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for page in pages:
        writer.writerows(_row(run) for run in page)
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()


def _row(run: Run) -> list[str]:
    begun = run.times.get("running")
    end = run.times.get(run.state.value) if run.state in FINISHED else None
    took = None if begun is None or end is None else max(0.0, end - begun)
    return [
        run.run_id,
        _plain(run.job_id),
        run.state.value,
        *("" if t is None else format_time(t) for t in (run.times.get("schedule"), begun, end)),
        "" if took is None else f"{took:.3f}",
        encode(dict(run.args)).decode(),
        _plain(" ".join(labels(run.meta.get("job")))),
        " ".join(alarms(run.meta)),
    ]


def _plain(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def complete(parts: Parts, request: Request) -> Response:
    text = terms.lower(request.one("q") or "")
    if len(text) > 200:
        raise BadRequest("q is longer than 200 characters")
    names: set[str] = set()
    marks: set[str] = set()
    params: set[str] = set()
    for job in parts.driver.jobs.jobs.values():
        names.add(job.job_id)
        marks.update(labels(job.metadata))
        params.update(job.params)
    found = {"jobs": names, "labels": marks, "params": params}
    return ok({kind: _best(words, text) for kind, words in found.items()})


def _best(words: Iterable[str], text: str) -> list[str]:
    """Those that hold the text: at their beginning, at that of a part, anywhere."""

    def rank(word: str) -> tuple[int, int, str]:
        at = terms.lower(word).find(text)
        return (0 if at == 0 else 1 if word[at - 1] in "/-_." else 2), len(word), word

    return nsmallest(COMPLETIONS, (word for word in words if text in terms.lower(word)), key=rank)
