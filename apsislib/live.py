"""WebSocket subscribers: who is told at once what happens.

Each has a thread, `apsis-live-N`, which owns its socket and its subscription to the feed, and ends with
the connection. Nobody waits for a subscriber: one that reads too slowly overflows its own queue, is
told so (close code 1013), and may come back and ask for the whole again.

    summary   all jobs, runs and agents in arrays of messages
    run       one run: state, metadata, log, lengths of outputs; an object a frame
    output    bytes of one output, as they are stored; binary frames with a small header
"""

from __future__ import annotations

import itertools
import json
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from apsislib import sockets
from apsislib.clock import Clock, Deadline
from apsislib.errors import ApsisError, BadRequest, NotFound, Unavailable
from apsislib.feeds import Feed
from apsislib.jobs import JobSet
from apsislib.runs import Drop, Expect, Json, Note, Output, Run, Save
from apsislib.shapes import encode, job_object, log_entry, run_summary
from apsislib.states import FINISHED
from apsislib.store import Grew, Store

log = logging.getLogger(__name__)

THREADS = 256  # subscribers; a browser tab has one or two
BATCH = 0.2  # s for which changes are gathered into one frame of the summary: it soothes browsers
FRAME = 4096  # messages of a summary's frame
NEWEST = 20_000  # runs that a summary begins with, besides all that are unfinished
PAGE = 1000  # runs read from the database in one go
WINDOW = 2**20  # bytes of output of a frame
MAX_RECEIVED = 2**20  # bytes of a message; subscribers have nothing to say
AHEAD = 4 * 2**20  # bytes queued on a socket above which nothing is added until it takes some
PING = 30.0  # s without a byte from the subscriber, after which it is pinged
DEAD = 100.0  # s after which it is given up
GOODBYE = 2.0  # s that a subscriber has to take what is queued and to answer our Close
TRY_AGAIN = 1013  # the close code for what is our load, not the subscriber's fault


class Engine(Protocol):
    """The driver, as a subscriber sees it."""

    @property
    def jobs(self) -> JobSet: ...
    def expected(self, job_id: str | None = None) -> Sequence[Run]: ...
    def find_run(self, run_id: str) -> Run: ...


class _Gone(Exception):
    """The connection is over."""


class Live:
    """All subscribers."""

    def __init__(
        self,
        driver: Engine,
        store: Store,
        feed: Feed,
        clock: Clock,
        *,
        connections: Callable[[], Mapping[str, Json]] | None = None,
        lookback: float | None = None,
        limit: int = THREADS,
        batch: float = BATCH,
    ) -> None:
        """`connections`: agent connections by conn_id. `lookback`: seconds; a summary begins no earlier."""
        self.driver = driver
        self.store = store
        self.feed = feed
        self.clock = clock
        self.connections = connections
        self.lookback = lookback
        self.batch = batch
        self._limit = limit
        self._summaries = _Summaries()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # protects what follows; leaf
        self._closing = False
        self._shaking = 0  # handshakes under way
        self._open: dict[threading.Thread, _Subscriber] = {}

    def take(
        self,
        kind: str,
        params: Mapping[str, str],
        query: str,
        headers: Mapping[str, str],
        sock: socket.socket,
        leftover: bytes,
    ) -> None:
        """Answer the opening handshake on a socket of the HTTP server, and serve it from now on.

        Raises Unavailable or BadRequest before anything is written.
        """
        with self._lock:
            if self._closing:
                raise Unavailable("the server is stopping")
            if len(self._open) + self._shaking >= self._limit:
                raise Unavailable("too many live connections; try again later")
            self._shaking += 1
        try:
            connection = sockets.upgrade(sock, leftover, headers, clock=self.clock, assemble=MAX_RECEIVED)
            subscriber = _KINDS[kind](self, connection, params, query)
        except sockets.Refused as error:
            raise BadRequest(f"not a WebSocket handshake: {error}") from None
        finally:
            with self._lock:
                self._shaking -= 1
        name = f"apsis-live-{next(self._numbers)}"
        thread = threading.Thread(target=self._serve, args=(subscriber,), name=name)
        with self._lock:
            self._open[thread] = subscriber
            if self._closing:
                subscriber.stop()
        thread.start()

    def stop(self, deadline: Deadline) -> list[str]:
        """Say goodbye to all (1001). Answers the names of threads still alive."""
        with self._lock:
            self._closing = True
            found = list(self._open.items())
        for _, subscriber in found:
            subscriber.stop()
        for thread, _ in found:
            if thread.ident is not None:
                thread.join(deadline.left())
        for thread, subscriber in found:
            if thread.is_alive():
                subscriber.connection.kill()
                thread.join(0.5)
        return [thread.name for thread, _ in found if thread.is_alive()]

    def stats(self) -> dict[str, int]:
        with self._lock:
            return {"subscribers": len(self._open)}

    def _serve(self, subscriber: _Subscriber) -> None:
        """(apsis-live-N) Ends with the connection."""
        try:
            subscriber.serve()
        except _Gone:
            pass
        except Exception:
            log.exception("live connection of %s failed", subscriber.connection.peer)
            subscriber.connection.abort()
        finally:
            with self._lock:
                del self._open[threading.current_thread()]


class _Summaries:
    """Run summaries as JSON, kept for a while: a hundred open tabs are told the same."""

    SIZE = 4096

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, str], bytes] = {}  # single operations on it are atomic; no lock

    def __call__(self, run: Run) -> bytes:
        key = run.run_id, run.rev, run.state.value
        found = self._known.get(key)
        if found is None:
            found = encode(run_summary(run))
            if len(self._known) >= self.SIZE:
                self._known.clear()
            self._known[key] = found
        return found


# -- one subscriber --------------------------------------------------------------------------------


class _Subscriber:
    """What the three kinds have in common. Everything but stop() is for its own thread."""

    limit: ClassVar[int]  # events that may wait in the feed's queue

    def __init__(
        self, live: Live, connection: sockets.Connection, params: Mapping[str, str], query: str
    ) -> None:
        self.live = live
        self.connection = connection
        self.params = params
        self.query = query.split("&")
        self.run_id = params.get("run_id")
        self._stopping = False
        self._pinged = False
        self._drained = connection.clock.monotonic()  # when the socket last took all that was queued

    def stop(self) -> None:
        """(any thread) The server ends."""
        self._stopping = True
        self.connection.wake()

    def serve(self) -> None:
        self.events = self.live.feed.subscribe(
            run_id=self.run_id, limit=self.limit, wake=self.connection.wake
        )
        try:
            self.run()
        except sockets.Full:
            self.close(TRY_AGAIN, "too slow")
        except NotFound:
            self.close(sockets.NORMAL, "no such run")
        except ApsisError as error:
            self.close(TRY_AGAIN, str(error)[:100])
        finally:
            self.events.close()

    def run(self) -> None:
        raise NotImplementedError

    def close(self, code: int, reason: str = "") -> None:
        self.connection.close(code, reason, GOODBYE)
        self.connection.finish()
        raise _Gone

    # -- waiting -----------------------------------------------------------------------------------

    def poll(self, timeout: float) -> None:
        """One round of the socket: send what is queued, answer pings, notice the end. Raises _Gone."""
        connection = self.connection
        now = connection.clock.monotonic()
        silent = now - connection.last_received
        if not connection.pending:
            self._drained = now
        if silent > DEAD or now - self._drained > DEAD:
            connection.abort("silent")
            raise _Gone
        if silent < PING:
            self._pinged = False
        elif not self._pinged:
            self._pinged = True
            connection.ping()
        for event in connection.poll(min(timeout, PING)):
            if isinstance(event, sockets.Closed):
                raise _Gone
        if self._stopping:
            self.close(sockets.GOING_AWAY, "the server is stopping")

    def changes(self, timeout: float) -> list[Any]:
        """What has happened, once something has or `timeout` has passed. Raises _Gone."""
        deadline = Deadline(timeout, self.connection.clock)
        while True:
            if self.connection.pending < AHEAD:
                found = self.events.get(0)
                if self.events.dropped:
                    self.close(TRY_AGAIN, "too slow")
                if found:
                    return found
                if deadline.passed():
                    return []
            self.poll(deadline.left() or 0.0 if self.connection.pending < AHEAD else PING)

    def send(self, message: str | bytes) -> None:
        """Send, waiting until the socket has taken most of what went before. Raises _Gone."""
        while self.connection.pending > AHEAD:
            self.poll(PING)
        self.connection.send(message)
        self.poll(0)


class Summary(_Subscriber):
    limit = 100_000

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._jobs = self.live.driver.jobs

    def run(self) -> None:
        if "init" in self.query:
            self._send_all(self._initial())
        while True:
            found = self.changes(PING)
            if found:
                self._gather(found)
                self._send_all(self._messages(found))

    def _gather(self, found: list[Any]) -> None:
        """What else happens within a moment goes into the same frame."""
        deadline = Deadline(self.live.batch, self.connection.clock)
        while left := deadline.left():
            self.poll(left)
            found += self.events.get(0)

    def _messages(self, events: Iterable[Any]) -> Iterator[bytes]:
        jobs = self.live.driver.jobs
        if jobs is not self._jobs:
            yield from self._job_changes(self._jobs, jobs)
            self._jobs = jobs
        for event in events:
            match event:
                case Save(run=run, transition=True) | Expect(run=run):
                    yield b'{"type":"run_transition","run_summary":%b}' % self.live._summaries(run)
                case Drop(run_id):
                    yield encode({"type": "run_delete", "run_id": run_id})
                case {"type": _}:  # of the agent server
                    yield encode(event)

    @staticmethod
    def _job_changes(old: JobSet, new: JobSet) -> Iterator[bytes]:
        for job_id in old.jobs:
            if job_id not in new.jobs:
                yield encode({"type": "job_delete", "job_id": job_id})
        for job_id, job in new.jobs.items():
            before = old.jobs.get(job_id)
            if before is None or before is not job and before.json != job.json:
                kind = "job_add" if before is None else "job"
                yield encode({"type": kind, "job": job_object(job, new.get)})

    def _initial(self) -> Iterator[bytes]:
        for job in self._jobs.jobs.values():
            yield b'{"type":"job","job":%b}' % encode(job_object(job, self._jobs.get))
        if self.live.connections is not None:
            for connection in self.live.connections().values():
                yield encode({"type": "agent_conn", "conn": connection})
        sent: set[str] = set()
        for run in self._initial_runs():
            if run.run_id not in sent:
                sent.add(run.run_id)
                yield b'{"type":"run_summary","run_summary":%b}' % self.live._summaries(run)

    def _initial_runs(self) -> Iterator[Run]:
        yield from self.live.driver.expected()
        with self.live.store.read() as reader:
            unfinished = reader.active()
        yield from unfinished
        lookback = self.live.lookback
        since = None if lookback is None else self.live.clock.wall() - lookback
        before: int | None = None
        left = NEWEST
        while left > 0:
            # A transaction a page: none lasts as long as the sending.
            with self.live.store.read() as reader:
                page = reader.runs(since=since, before=before, limit=min(PAGE, left), newest=True)
            yield from page
            if len(page) < PAGE:
                return
            before = page[-1].number
            left -= len(page)

    def _send_all(self, messages: Iterable[bytes]) -> None:
        for batch in _batched(messages, FRAME):
            self.send((b"[" + b",".join(batch) + b"]").decode("ascii"))


class RunUpdates(_Subscriber):
    limit = 10_000

    def run(self) -> None:
        live = self.live
        assert self.run_id is not None
        run = live.driver.find_run(self.run_id)
        if run.run_id != self.run_id:
            raise NotFound(f"unknown run {self.run_id}")
        with live.store.read() as reader:
            run = reader.run(run.run_id) or run
            outputs = {o.output_id: (o.name, o.length, o.content_type) for o in reader.outputs(run.run_id)}
            lines = reader.log(run.run_id)
        # Everything up to what was read has been told, once the log's lines are seen to end.
        self._rev = run.rev
        self._lines = deque(lines)
        self._outputs = outputs
        if "init" in self.query:
            self._frame(
                run=run_summary(run),
                meta=run.meta,
                run_log=[log_entry(time, text) for time, text in lines],
                outputs=self._output_shapes(),
            )
        while True:
            found = self.changes(PING)
            # What was committed at once: first the log, then lengths of outputs, then the run itself, since
            # who follows a run leaves when it has ended.
            for event in found:
                if isinstance(event, Note) and not self._seen((event.time, event.message)):
                    self._frame(run_log_append=log_entry(event.time, event.message))
            self._grow([e for e in found if isinstance(e, Grew | Output)])
            for event in found:
                self._tell(event)

    def _tell(self, event: Any) -> None:
        match event:
            case Save(run=run, transition=True) | Expect(run=run):
                if run.rev >= self._rev:
                    self._rev = run.rev
                    self._frame(run=run_summary(run), meta=run.meta)
            case Save(run=run):
                if run.rev >= self._rev:
                    self._frame(meta=run.meta)
            case Drop():
                raise NotFound("the run is no more")

    def _seen(self, line: tuple[float, str]) -> bool:
        """Whether a line was in the log as it was read.

        What was committed before the read may be told after it, in the same order: so the lines told
        overlap with the end of those read.
        """
        if line not in self._lines:
            self._lines.clear()
            return False
        while self._lines.popleft() != line:
            pass
        return True

    def _grow(self, events: Iterable[Grew | Output]) -> None:
        changed = False
        for event in events:
            if isinstance(event, Output):
                known = event.name, len(event.data), event.content_type
            elif event.output_id in self._outputs:
                name, length, kind = self._outputs[event.output_id]
                known = name, max(length, event.length), kind
            else:
                with self.live.store.read() as reader:
                    info = next(
                        (o for o in reader.outputs(event.run_id) if o.output_id == event.output_id), None
                    )
                if info is None:
                    continue
                known = info.name, info.length, info.content_type
            if self._outputs.get(event.output_id) != known:
                self._outputs[event.output_id] = known
                changed = True
        if changed:
            self._frame(outputs=self._output_shapes())

    def _output_shapes(self) -> dict[str, Any]:
        return {
            output_id: {"name": name, "length": length, "content_type": kind}
            for output_id, (name, length, kind) in self._outputs.items()
        }

    def _frame(self, **parts: Any) -> None:
        self.send(json.dumps(parts, separators=(",", ":"), default=dict))


class OutputUpdates(_Subscriber):
    limit = 10_000

    def run(self) -> None:
        assert self.run_id is not None
        run = self.live.driver.find_run(self.run_id)
        if run.run_id != self.run_id:
            raise NotFound(f"unknown run {self.run_id}")
        self._type = "application/octet-stream"
        start = self._start()
        self._at = self._length() if start is None else start
        if run.state in FINISHED:
            if start is not None:
                self._send_to(self._length())
            self.close(sockets.NORMAL)
        if start is not None:
            self._send_to(self._length(), even_if_empty=True)
        while True:
            found = self.changes(PING)
            ended = any(isinstance(e, Save) and e.run.state in FINISHED for e in found)
            if ended or any(
                isinstance(e, Grew | Output) and e.output_id == self.params["output_id"] for e in found
            ):
                self._send_to(self._length())
            if ended or any(isinstance(e, Drop) for e in found):
                self.close(sockets.NORMAL)

    def _start(self) -> int | None:
        for item in self.query:
            name, _, value = item.partition("=")
            if name == "start" and value.isascii() and value.isdigit() and len(value) < 18:
                return int(value)
        return None

    def _length(self) -> int:
        with self.live.store.read() as reader:
            for output in reader.outputs(self.params["run_id"]):
                if output.output_id == self.params["output_id"]:
                    self._type = output.content_type
                    return output.length
        return 0

    def _send_to(self, length: int, even_if_empty: bool = False) -> None:
        """Send what there is beyond what was sent, a window a frame."""
        if even_if_empty and 0 < self._at == length:
            self._part(b"", length)
        while self._at < length:
            stop = min(self._at + WINDOW, length)
            with self.live.store.read() as reader:
                pieces = reader.output(self.params["run_id"], self.params["output_id"], self._at, stop)
                data = b"".join(pieces)
            if len(data) != stop - self._at:
                raise NotFound("the output is no more")
            self._part(data, length)

    def _part(self, data: bytes, length: int) -> None:
        last = self._at + len(data) - 1
        head = (
            f"Content-Type: {self._type}\r\n"
            f"Content-Range: bytes={self._at}-{last}/{length}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        self._at += len(data)
        self.send(head.encode("latin-1", "replace") + data)


_KINDS: dict[str, Callable[[Live, sockets.Connection, Mapping[str, str], str], _Subscriber]] = {
    "summary": Summary,
    "run": RunUpdates,
    "output": OutputUpdates,
}


def _batched(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
