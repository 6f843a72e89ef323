"""A server's request in, the direct answer out. What a request changes is told by the observers of procs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from apsislib import wire
from apsislib.agent.captures import Capture
from apsislib.agent.children import os_error
from apsislib.agent.procs import Procs
from apsislib.agent.spec import parse_fd, parse_specs
from apsislib.errors import BadRequest, NotFound

log = logging.getLogger(__name__)

WHOLE = 256 * 1024  # bytes: longer output goes out in pieces of this size, each read when it can be sent

# A message to encode, or the bytes of one in pieces.
Answer = dict[str, Any] | Iterator[bytes]


def answer(message: dict[str, Any], procs: Procs, shutdown_state: Callable[[], str]) -> Answer | None:
    """Do what `message` asks. The answer to it, None where the protocol has none."""
    try:
        return _answer(message, procs, shutdown_state)
    except NotFound:
        return wire.proc_unknown(message["proc_id"])
    except BadRequest as error:
        why = str(error)
    except OSError as error:  # the disk that its output lies on, say: nothing that ends a connection mends
        why = os_error(error)
    log.warning("%s refused: %s", message["type"], why)
    return wire.request_error(message, why)


def _answer(message: dict[str, Any], procs: Procs, shutdown_state: Callable[[], str]) -> Answer | None:
    match message["type"]:
        case "ProcStartRequest":
            procs.start(parse_specs(message["specs"]), shutdown_state())
        case "ProcidListRequest":
            return wire.procid_list(procs.ids())
        case "ProcResultRequest":
            proc_id = message["proc_id"]
            return wire.proc_result(proc_id, procs.result(procs.get(proc_id)))
        case "ProcSignalRequest":
            procs.signal(message["proc_id"], message["signum"])
        case "ProcFdDataRequest":
            return _fd_data(message, procs)
        case "ProcDeleteRequest":
            procs.delete(message["proc_id"])
        case "Registered":
            raise BadRequest("unexpected")
        case kind:
            log.warning("ignored a message of type %.60s", kind)
    return None


def _fd_data(message: dict[str, Any], procs: Procs) -> Answer:
    """The part of the range that exists, which may be none of it; never more, and nothing is moved."""
    proc_id, name, start = message["proc_id"], message["fd"], message["start"]
    capture: Capture = procs.capture(proc_id, parse_fd(name))
    if start < 0:
        raise BadRequest("Invalid argument (os error 22)")
    stop = capture.clamp(start, message["stop"])
    size = min(stop - start, wire.MAX_BIN)
    encoding = capture.spec.encoding
    if size <= WHOLE:
        return wire.proc_fd_data(proc_id, name, start, capture.read(start, start + size), encoding)
    pieces = capture.pieces(start, start + size, WHOLE)
    return wire.fd_data_pieces(proc_id, name, start, size, pieces, encoding)
