"""What programs have printed, sent as it is stored, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from apsislib.api.encoding import is_known
from apsislib.api.message import Request, Response, failed, ok
from apsislib.api.parts import Parts
from apsislib.errors import BadRequest, NotFound, Unavailable
from apsislib.runs import run_number
from apsislib.states import FINISHED
from apsislib.store import OutputInfo

WINDOW = 2**20  # bytes read from the database at a time

# A browser is to show nothing of an output as a page, whatever a program has printed or called it.
GUARD = (
    ("content-security-policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
    ("cross-origin-resource-policy", "same-origin"),
)
_PLAIN = re.compile(r"(text/plain|application/octet-stream)(; ?charset=[\w-]+)?")


def is_complete(parts: Parts, run_id: str) -> bool:
    """Whether nothing more of the run's output is to come; to be asked before lengths are read.

    A verdict is on disk with all that had come by then. Of a run that was given up there may be more since.
    """
    with parts.store.read() as reader:
        run = reader.run(run_id)
    return run is not None and run.state in FINISHED and not parts.store.has_pending(run_id)


def all_outputs(parts: Parts, request: Request) -> Response:
    run_id = request.params["run_id"]
    if run_number(run_id) is None:
        return ok([])
    complete = is_complete(parts, run_id)
    with parts.store.read() as reader:
        found = reader.outputs(run_id)
    return ok(
        [
            {
                "output_id": output.output_id,
                "output_len": output.length,
                "name": output.name,
                "content_type": output.content_type,
                "complete": complete,
            }
            for output in found
        ]
    )


def find_output(parts: Parts, request: Request) -> tuple[str, OutputInfo]:
    """(run ID, the output that the path names). Raises NotFound; Unavailable if it is about to be stored."""
    run_id, output_id = request.params["run_id"], request.params["output_id"]
    info = None
    if run_number(run_id) is not None:
        with parts.store.read() as reader:
            info = reader.output_info(run_id, output_id)
    if info is None:
        if parts.store.has_pending(run_id):
            raise Unavailable(
                f"nothing of output {output_id} of {run_id} is stored yet: try again in a second"
            )
        raise NotFound(f"no output {output_id} for {run_id}")
    return run_id, info


def one_output(parts: Parts, request: Request) -> Response:
    complete = run_number(request.params["run_id"]) is not None and is_complete(
        parts, request.params["run_id"]
    )
    run_id, info = find_output(parts, request)
    output_id = info.output_id
    filename = re.sub(r"[^0-9A-Za-z_-]", "_", f"{run_id}-{output_id}")
    headers = [
        ("accept-ranges", "bytes"),
        ("content-disposition", f'attachment; filename="{filename}.txt"'),
        *GUARD,
        ("x-apsis-complete", "true" if complete else "false"),
    ]
    status, start, stop = 200, 0, info.length
    # Bytes of an output never change, so its length tells one copy from another.
    tag = f'"{run_id}-{info.length}"'
    headers.append(("etag", tag))
    if is_known(request, tag):
        return Response(304, b"", headers=headers)
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", tag) == tag:
        try:
            part = parse_range(wanted, info.length)
        except BadRequest as error:
            answer = failed(416, str(error))
            return Response(416, answer.body, headers=[("content-range", f"bytes */{info.length}")])
        if part is not None:
            status, (start, stop) = 206, part
            headers.append(("content-range", f"bytes {start}-{stop - 1}/{info.length}"))
    kind = info.content_type if _PLAIN.fullmatch(info.content_type) else "application/octet-stream"
    pieces = windows(parts, run_id, output_id, start, stop)
    return Response(status, pieces, kind, headers, length=stop - start)


def windows(parts: Parts, run_id: str, output_id: str, start: int, stop: int) -> Iterator[bytes]:
    """The bytes from `start` to `stop`, a window at a time.

    No read of the database spans two windows: a client that reads slowly holds no snapshot open,
    which would keep the write-ahead log from shrinking.
    """
    while start < stop:
        end = min(start + WINDOW, stop)
        with parts.store.read() as reader:
            piece = b"".join(reader.output(run_id, output_id, start, end))
        if len(piece) != end - start:
            raise NotFound(f"output {output_id} of {run_id} is no more")
        yield piece
        start = end


_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


def parse_range(text: str, length: int) -> tuple[int, int] | None:
    """(start, stop) of a Range header; None where it is to be ignored, as RFC 9110 allows.

    Raises BadRequest where nothing of it exists. Several ranges at once are ignored.
    """
    match = _RANGE.fullmatch(text)
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        count = int(match[2])
        if count == 0 or length == 0:
            raise BadRequest(f"no such range in an output of {length} bytes")
        return max(0, length - count), length
    first = int(match[1])
    last = int(match[2]) if match[2] else length - 1
    if match[2] and last < first:
        return None
    if first >= length:
        raise BadRequest(f"no such range in an output of {length} bytes")
    return first, min(last + 1, length)
