"""Who is connected."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from collections.abc import Callable, Mapping

from apsislib import sockets
from apsislib.clock import Clock, Deadline
from apsislib.errors import BadRequest, Unavailable
from apsislib.feeds import Feed
from apsislib.live.output import OutputUpdates
from apsislib.live.subscriber import Engine, Gone, Room, Subscriber
from apsislib.live.summary import Summaries, Summary
from apsislib.live.updates import RunUpdates
from apsislib.runs import Json, Run
from apsislib.store import Store

log = logging.getLogger(__name__)

THREADS = 256  # subscribers; a browser tab has one or two
BATCH = 0.2  # s for which changes are gathered into one frame of the summary: it soothes browsers
MAX_RECEIVED = 2**20  # bytes of a message; subscribers have nothing to say

# The names that routes have for them.
KINDS: dict[str, Callable[[Room, Mapping[str, str], str], Subscriber]] = {
    "summary": Summary,
    "run": RunUpdates,
    "output": OutputUpdates,
}


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
        self.summaries: Callable[[Run], bytes] = Summaries()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # protects what follows; leaf
        self._closing = False
        self._shaking = 0  # handshakes under way
        self._open: dict[threading.Thread, Subscriber] = {}

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
        subscriber: Subscriber | None = None
        try:
            # Subscribed before the handshake is answered: what a client does once it is through, it is told.
            subscriber = KINDS[kind](self, params, query)
            subscriber.subscribe()
            subscriber.connection = sockets.upgrade(
                sock, leftover, headers, clock=self.clock, assemble=MAX_RECEIVED
            )
        except sockets.Refused as error:
            raise BadRequest(f"not a WebSocket handshake: {error}") from None
        finally:
            with self._lock:
                self._shaking -= 1
            if subscriber is not None and not hasattr(subscriber, "connection"):
                subscriber.leave()
        name = f"apsis-live-{next(self._numbers)}"
        thread = threading.Thread(target=self._serve, args=(subscriber,), name=name)
        with self._lock:
            self._open[thread] = subscriber
            if self._closing:
                subscriber.stop()
        try:
            thread.start()
        except RuntimeError as error:  # the client has its answer, and comes again
            log.error("can't start a thread for a live connection: %s", error)
            with self._lock:
                del self._open[thread]
            subscriber.leave()
            subscriber.connection.abort()

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

    def _serve(self, subscriber: Subscriber) -> None:
        """(apsis-live-N) Ends with the connection."""
        try:
            subscriber.serve()
        except Gone:
            pass
        except Exception:
            log.exception("live connection of %s failed", subscriber.connection.peer)
            subscriber.connection.abort()
        finally:
            with self._lock:
                del self._open[threading.current_thread()]
