"""What the server tells as it happens, and patience while it is being restarted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator
from threading import Event
from typing import Any

from apsislib import sockets
from apsislib.cli.client import CONNECT, Client, Trouble, target
from apsislib.clock import Deadline
from apsislib.states import FINISHED

PATIENCE = 300.0  # s that a server may be away, say for an upgrade of its host, before we give up
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # s between attempts; the last again and again
QUIET = 45.0  # s without a byte, after which the server is asked for one; it pings us every 30
DEAD = 90.0  # s after which it is given up, and connected to anew
LARGEST = 256 * 2**20  # bytes of a message: the first holds a run's whole log

log = logging.getLogger(__name__)


class NoSuchRun(Trouble):
    """The server closed the stream in order, without having told what it was asked for."""


def messages(client: Client, path: Callable[[], tuple[tuple[str, ...], str]]) -> Iterator[str | bytes]:
    """The messages of a stream until the server closes it in order. Raises Trouble.

    `path` answers the segments and the query to ask for now: after a connection that was lost, it
    continues where what was received ends.
    """
    met = False
    patience, pauses = Deadline(PATIENCE), iter(PAUSES)  # with a server that answers and tells nothing
    pause = next(pauses)
    while True:
        connection = _connect(client, path, patient=met)
        met = True
        try:
            closed, told = yield from _received(connection)
        finally:
            connection.abort()
        if closed.why == "peer" and closed.code == sockets.NORMAL:
            return
        log.debug("stream of %s lost: %s %s", client.address, closed.code, closed.reason)
        if closed.why == "peer" and closed.code == sockets.FAILED:
            raise Trouble(f"{client.address} can't go on: {closed.reason}")
        if told:
            patience, pauses = Deadline(PATIENCE), iter(PAUSES)
            pause = next(pauses)
            continue
        if patience.passed():
            raise Trouble(f"{closed.reason or 'nothing is told'}, for {PATIENCE:g} s; try again later")
        Event().wait(pause)
        pause = next(pauses, pause)


def _connect(
    client: Client, path: Callable[[], tuple[tuple[str, ...], str]], patient: bool
) -> sockets.Connection:
    deadline = Deadline(PATIENCE if patient else 0.0)
    pauses = iter(PAUSES)
    pause, told = next(pauses), False
    while True:
        segments, query = path()
        url = f"ws://{client.address}{target(segments)}?{query}"
        try:
            connection = sockets.connect(url, deadline=CONNECT, assemble=LARGEST)
            log.debug("connected to %s", url)
            return connection
        except sockets.Refused as error:
            # Of these statuses 502 to 504 and that of no HTTP at all may pass; the others are final.
            if not patient or 400 <= error.status < 500:
                raise Trouble(f"{client.address} refuses to follow: {error}") from None
            problem = str(error)
        except ConnectionRefusedError:
            problem = f"no server at {client.address}"
            if not patient:
                raise Trouble(
                    f"{problem}; start one with apsis serve, or name it with --host and --port"
                ) from None
        except OSError as error:
            problem = str(error)
            if not patient:
                raise Trouble(f"{problem}; check --host and --port") from None
        if deadline.passed():
            raise Trouble(f"{problem}, for {PATIENCE:g} s; what runs goes on, try again later")
        if not told and pause >= 1.0:
            log.warning("%s; trying again for %g s", problem, PATIENCE)
            told = True
        Event().wait(pause)
        pause = next(pauses, pause)


def _received(connection: sockets.Connection) -> Generator[str | bytes, None, tuple[sockets.Closed, bool]]:
    """Messages of one connection. Its end is returned, and whether there were any."""
    asked = begun = False
    while True:
        for event in connection.poll(5.0):
            match event:
                case sockets.Closed():
                    return event, begun
                case sockets.Data(data) | sockets.Text(data):
                    yield data
                    if not begun:
                        log.debug("following")
                        begun = True
        silent = connection.clock.monotonic() - connection.last_received
        if silent > DEAD:
            return sockets.Closed(sockets.ABNORMAL, "silent", "lost"), begun
        if silent < QUIET:
            asked = False
        elif not asked:
            asked = True
            connection.ping()


# -- runs ------------------------------------------------------------------------------------------


def updates(client: Client, run_id: str) -> Iterator[tuple[str, Any]]:
    """What happens to a run: the parts of messages, beginning with all that is known. Raises Trouble.

    After a connection that was lost all is told again, but of the log as lines that were added.
    """
    lines = -1  # of the log that are known; -1 before the first message
    for message in messages(client, lambda: (("v1", "runs", run_id, "updates"), "init")):
        parts = _parsed(client, message)
        # Of several that come together the run is the last: who has seen its end looks no further.
        for name, part in sorted(parts.items(), key=lambda item: item[0] == "run" and lines >= 0):
            if name == "run_log" and lines >= 0:
                for entry in part[lines:]:
                    yield "run_log_append", entry
                lines = max(lines, len(part))
                continue
            if name == "run_log":
                lines = len(part)
            elif name == "run_log_append":
                lines += 1
            yield name, part
    if lines < 0:
        raise NoSuchRun(f"unknown run {run_id}; apsis runs -j JOB lists the runs of a job")
    raise NoSuchRun(f"run {run_id} is no more: its schedule or its record has been removed")


def _parsed(client: Client, message: str | bytes) -> dict[str, Any]:
    try:
        parts = json.loads(message)
        if isinstance(parts, dict):
            return parts
    except ValueError:
        pass
    raise client.strange()


def await_end(client: Client, run_id: str) -> str:
    """The final state of a run, once it has one. Raises Trouble."""
    for name, part in updates(client, run_id):
        if name == "run" and part["state"] in FINISHED:
            return str(part["state"])
    raise AssertionError("updates() ends by raising")


def output(client: Client, run_id: str, output_id: str, start: int) -> Iterator[bytes]:
    """The bytes of an output from `start` on, as they come, until the run ends. Raises Trouble."""
    at = start
    path = ("v1", "runs", run_id, "output", output_id, "updates")

    def resume() -> tuple[tuple[str, ...], str]:
        return path, f"start={at}"

    for message in messages(client, resume):
        first, data = _part(client, message)
        if first > at:
            raise Trouble(f"{client.address} left out bytes {at} to {first} of the output; try again")
        data = data[at - first :]
        at += len(data)
        if data:
            yield data


def _part(client: Client, message: str | bytes) -> tuple[int, bytes]:
    """The offset and the bytes of a message: a small header as in HTTP, then the payload."""
    if isinstance(message, bytes):
        head, blank, data = message.partition(b"\r\n\r\n")
        for line in head.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(": ")
            first = value.removeprefix("bytes=").partition("-")[0]
            if blank and name.lower() == "content-range" and first.isdigit():
                return int(first), data
    raise client.strange()
