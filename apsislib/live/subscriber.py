"""One subscriber: its socket, its queue of events, and the loop over both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from apsislib import sockets
from apsislib.clock import Clock, Deadline
from apsislib.errors import ApsisError, NotFound, Unavailable
from apsislib.feeds import Feed
from apsislib.jobs import JobSet
from apsislib.runs import Json, Run
from apsislib.store import Store

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


class Room(Protocol):
    """What the subscribers share: Live."""

    driver: Engine
    store: Store
    feed: Feed
    clock: Clock
    connections: Callable[[], Mapping[str, Json]] | None
    lookback: float | None
    batch: float
    summaries: Callable[[Run], bytes]


class Gone(Exception):
    """The connection is over."""


class Subscriber:
    """What the three kinds have in common. Everything but stop() is for its own thread."""

    limit: ClassVar[int]  # events that may wait in the feed's queue

    connection: sockets.Connection  # set once the handshake is answered

    def __init__(self, live: Room, params: Mapping[str, str], query: str) -> None:
        self.live = live
        self.params = params
        self.query = query.split("&")
        self.run_id = params.get("run_id")
        self._stopping = False
        self._pinged = False
        self._drained = live.clock.monotonic()  # when the socket last took all that was queued

    def subscribe(self) -> None:
        self.events = self.live.feed.subscribe(run_id=self.run_id, limit=self.limit, wake=self._wake)

    def leave(self) -> None:
        self.events.close()

    def _wake(self) -> None:
        """(any thread) There are events. Before there is a connection nobody waits for them."""
        if hasattr(self, "connection"):
            self.connection.wake()

    def stop(self) -> None:
        """(any thread) The server ends."""
        self._stopping = True
        self.connection.wake()

    def serve(self) -> None:
        try:
            self.run()
        except sockets.Full:
            self.close(TRY_AGAIN, "too slow")
        except NotFound:
            self.close(sockets.NORMAL, "no such run")
        except Unavailable as error:
            self.close(TRY_AGAIN, str(error)[:100])
        except ApsisError as error:
            self.close(sockets.FAILED, str(error)[:100])  # which to come back does not mend
        finally:
            self.leave()

    def run(self) -> None:
        raise NotImplementedError

    def close(self, code: int, reason: str = "") -> None:
        self.connection.close(code, reason, GOODBYE)
        self.connection.finish()
        raise Gone

    # -- waiting -----------------------------------------------------------------------------------

    def poll(self, timeout: float) -> None:
        """One round of the socket: send what is queued, answer pings, notice the end. Raises Gone."""
        connection = self.connection
        now = connection.clock.monotonic()
        silent = now - connection.last_received
        if not connection.pending:
            self._drained = now
        if silent > DEAD or now - self._drained > DEAD:
            connection.abort("silent")
            raise Gone
        if silent < PING:
            self._pinged = False
        elif not self._pinged:
            self._pinged = True
            connection.ping()
        for event in connection.poll(min(timeout, PING)):
            if isinstance(event, sockets.Closed):
                raise Gone
        if self._stopping:
            self.close(sockets.GOING_AWAY, "the server is stopping")

    def changes(self, timeout: float) -> list[Any]:
        """What has happened, once something has or `timeout` has passed. Raises Gone."""
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
        """Send, waiting until the socket has taken most of what went before. Raises Gone."""
        while self.connection.pending > AHEAD:
            self.poll(PING)
        self.connection.send(message)
        self.poll(0)
