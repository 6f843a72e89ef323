"""One registered connection of an agent, served by the one thread that owns its socket.

An Agent is known by its conn_id and outlives its connections; a Link is one connection of it. Who
watches a process is told everything by the thread of the link, one thing at a time. agent_server.py
makes links; programs never see one.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from apsislib import wire
from apsislib.clock import Clock
from apsislib.sockets import POLICY, UNSUPPORTED, Closed, Connection, Data, Text
from apsislib.wire import FdEnd, FdHead, Message, WireError

log = logging.getLogger(__name__)

HOLD = 60.0  # seconds that reading waits for the disk; an agent then leaves by itself
MAX_AHEAD = 256 * 1024  # bytes handed to the socket's queue: the rest is provably unwritten
MAX_OUTBOX = 64 * 1024 * 1024  # bytes; an agent that reads nothing is dropped
MAX_GARBLED = 100  # undecodable messages of one connection
POLLS = 1000  # of watchers, before the socket has its turn
AFTER_FAILURE = 60.0  # seconds until a watcher whose poll failed is polled again


class Watcher(Protocol):
    """Who follows a process; programs/base.py says what each means."""

    def registered(self, listed: bool) -> None: ...
    def lost(self) -> None: ...
    def gone(self) -> None: ...
    def result(self, res: Mapping[str, Any]) -> None: ...
    def head(self, head: FdHead) -> None: ...
    def data(self, piece: bytes) -> None: ...
    def end(self) -> None: ...
    def error(self, msg: Mapping[str, Any], err: str) -> None: ...
    def unknown(self) -> None: ...
    def deleted(self) -> None: ...
    def poll(self, now: float) -> float | None: ...


Fate = Callable[[bool], None]


@dataclass(slots=True)
class Shared:
    """What all links of a server have in common."""

    clock: Clock
    output_full: Callable[[], bool]
    ping: float  # seconds between pings
    silence: float  # seconds without a byte after which a connection is dead
    changed: Callable[[Agent], None]  # what is shown of the agent changed
    available: Callable[[Agent], None]  # it takes work from now on
    # (conn_id, proc ID, result): whether somebody looks after a process that nobody watches.
    claimed: Callable[[str, str, Mapping[str, Any]], bool]
    lock: threading.Lock  # protects agents and links as they say; leaf
    restored: bool = False  # all live runs watch their processes; protected by the lock


@dataclass(eq=False, slots=True)
class Agent:
    """What is known of an agent. Protected by the lock, save where it says otherwise."""

    conn_id: str
    group_id: str = ""
    link: Link | None = None
    ready: bool = False  # its watchers have been told that it is here: it may be given work
    claim: int = 0  # counts connections; the newest wins
    free: threading.Event = field(default_factory=threading.Event)  # no thread serves it
    state: str = "active"
    shown: str = "active"  # the state that was last noted
    drained: bool = False  # it has refused a start
    watchers: dict[str, Watcher] = field(default_factory=dict)  # by proc ID
    promised: deque[float] = field(default_factory=deque)  # choices not yet watched: when each lapses
    # Records that it holds, as far as it has said; `vague`: it has not said. The link's thread only.
    procs: set[str] = field(default_factory=set)
    vague: bool = False
    lost_at: float | None = None  # monotonic; since when it is not connected
    heard: float | None = None  # wall; its last sign of life, of one that is not connected
    instance: str = ""  # which process it is: another one has nothing of what this one was sent
    info: dict[str, Any] | None = None  # None: not seen in this life of the server

    def __post_init__(self) -> None:
        self.free.set()

    @property
    def open(self) -> bool:
        """It may be given work."""
        return self.ready and self.state == "active" and not self.drained

    def record(self) -> dict[str, Any]:
        """As API and UI show it."""
        assert self.info is not None
        return {"shutdown_state": self.state, "info": {k: dict(v) for k, v in self.info.items()}}


class Link:
    """Made under the lock, by the thread that then calls follow() and leave()."""

    def __init__(self, agent: Agent, connection: Connection, shared: Shared) -> None:
        self.agent = agent
        self.connection = connection
        self.ended = ""  # why it is over
        self._shared = shared
        self._lock = shared.lock
        self._clock = shared.clock
        self._thread = threading.get_ident()
        # Protected by the lock. `_outbox` is None once the link is over.
        self._outbox: deque[tuple[bytes, Fate | None]] | None = deque()
        self._waiting = 0  # bytes in it
        self._posted: deque[Callable[[], None]] = deque()
        # This thread only.
        self._welcome = list(agent.watchers.items())  # to be told that the agent is here
        self._stream = wire.Stream()
        self._reading: Watcher | None = None  # whose output is arriving
        self._held: float | None = None  # since when nothing is read, for the disk's sake
        self._heard = 0.0  # until when silence was our doing
        self._garbled = 0
        self._due: dict[str, float] = {}  # proc ID -> when its watcher is polled
        self._heap: list[tuple[float, str]] = []  # of `_due`; an entry that differs from it is stale

    # -- any thread --------------------------------------------------------------------------------

    def put_locked(self, data: bytes, fate: Fate | None = None) -> None:
        """Queue a message; follow with wake()."""
        assert self._outbox is not None  # an agent's link is not over
        self._outbox.append((data, fate))
        self._waiting += len(data)

    def put(self, message: Mapping[str, Any]) -> None:
        data = wire.encode(message)
        with self._lock:
            if self._outbox is None:
                return
            self.put_locked(data)
        self.wake()

    def post(self, work: Callable[[], None]) -> None:
        """Have `work` done by the link's thread; nothing happens if the link is over."""
        with self._lock:
            if self._outbox is None:
                return
            self._posted.append(work)
        self.wake()

    def wake(self) -> None:
        if threading.get_ident() != self._thread:
            self.connection.wake()

    # -- its own thread ----------------------------------------------------------------------------

    def follow(self) -> None:
        """Serve the connection until it ends."""
        connection = self.connection
        connection.send(wire.encode(wire.registered()))
        self._greet()
        next_ping = self._clock.monotonic() + self._shared.ping
        while True:
            self._do_posted()
            now = self._clock.monotonic()
            self._poll_watchers(now)
            self._fill_socket()
            if now >= next_ping:
                connection.ping()
                next_ping = now + self._shared.ping
            reading = self._may_read(now)
            silent_at = max(connection.last_received, self._heard) + self._shared.silence
            if now >= silent_at:
                self._drop("is silent")
            timeout = max(0.0, min(next_ping, silent_at, self._next_due()) - now)
            with self._lock:
                if self._posted:
                    timeout = 0.0
            for event in connection.poll(timeout if reading else min(timeout, 0.05), want_read=reading):
                if isinstance(event, Closed):
                    log.info("agent %s disconnected: %s %s", self.agent.conn_id, event.code, event.reason)
                    self.ended = self.ended or f"{event.code} {event.reason}".strip()
                    return
                if isinstance(event, Text):
                    connection.close(UNSUPPORTED, "binary messages only")
                elif isinstance(event, Data):
                    self._feed(event)

    def _greet(self) -> None:
        """Tell who watches that the agent is here, ask about what nobody watches, then let it have work."""
        agent, group, peer = self.agent, self.agent.group_id, self.connection.peer[0]
        log.info(
            "agent %s connected: group=%s peer=%s procs=%d", agent.conn_id, group, peer, len(agent.procs)
        )
        for proc_id, watcher in self._welcome:
            self.rejoin(proc_id, watcher)
        if agent.state == "done":
            self._gone()
        with self._lock:
            agent.ready = True
        self.look_for_leftovers()
        self._shared.changed(agent)
        self._shared.available(agent)

    def rejoin(self, proc_id: str, watcher: Watcher) -> None:
        """Tell one who watches that the agent is here."""
        guard(watcher.registered, proc_id in self.agent.procs or self.agent.vague)
        self.schedule(proc_id, self._clock.monotonic())

    def _do_posted(self) -> None:
        while True:
            with self._lock:
                if not self._posted:
                    return
                work = self._posted.popleft()
            guard(work)

    def _fill_socket(self) -> None:
        """Hand messages to the socket's queue, a little ahead of what it takes."""
        while self.connection.pending < MAX_AHEAD:
            with self._lock:
                if not self._outbox:
                    return
                data, fate = self._outbox.popleft()
                self._waiting -= len(data)
            sent = self.connection.send(data)
            if fate is not None:
                guard(fate, sent)
            self._count("num_sent")
        with self._lock:
            full = self._waiting > MAX_OUTBOX
        if full:
            self._drop("reads nothing")

    def _may_read(self, now: float) -> bool:
        """Not in the middle of output while the disk is behind: then the agent is held back."""
        if self._reading is None or not self._shared.output_full():
            self._held = None
            return True
        self._held = now if self._held is None else self._held
        self._heard = now
        if now >= self._held + HOLD:
            self._drop("has waited too long for the disk")
        return False

    def _drop(self, why: str) -> None:
        log.warning("agent %s %s: dropping its connection", self.agent.conn_id, why)
        self.ended = f"it {why}"
        self.connection.abort(why)

    def _count(self, name: str) -> None:
        with self._lock:
            if self.agent.info is not None:
                self.agent.info["stats"][name] += 1

    # -- what arrives --

    def _feed(self, event: Data) -> None:
        try:
            items = self._stream.feed(event.data, event.last)
        except WireError as error:
            log.warning("agent %s sent what can't be read: %s", self.agent.conn_id, error)
            self._end_reading()
            self._garbled += 1
            if self._garbled >= MAX_GARBLED:
                self.connection.close(POLICY, "too much that can't be read")
            return
        for item in items:
            if isinstance(item, bytes):
                if self._reading is not None:
                    guard(self._reading.data, item)
            elif isinstance(item, FdHead):
                self._reading = self._watcher(item.proc_id)
                if self._reading is not None:
                    guard(self._reading.head, item)
            else:
                self._count("num_received")
                if isinstance(item, FdEnd):
                    self._end_reading()
                else:
                    guard(self._message, item)

    def _end_reading(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            guard(reading.end)

    def _watcher(self, proc_id: Any) -> Watcher | None:
        with self._lock:
            return self.agent.watchers.get(proc_id) if isinstance(proc_id, str) else None

    def _message(self, message: Message) -> None:
        agent = self.agent
        proc_id = message.get("proc_id")
        watcher = self._watcher(proc_id)
        match message["type"]:
            case "ProcResult":
                agent.procs.add(message["proc_id"])
                if watcher is not None:
                    watcher.result(message["res"])
                else:
                    self._leftover(message["proc_id"], message["res"])
            case "ProcUnknown" | "ProcDelete" as kind:
                agent.procs.discard(message["proc_id"])
                if watcher is not None:
                    (watcher.unknown if kind == "ProcUnknown" else watcher.deleted)()
            case "RequestError":
                self._request_error(message["msg"], message["err"])
            case "ShutDown":
                self._shut_down(message["shutdown_state"])
            case "ProcidList":
                agent.procs = set(message["proc_ids"])
            case kind:
                log.warning("agent %s sent an unexpected %s", agent.conn_id, str(kind)[:40])

    def _request_error(self, msg: Mapping[str, Any], err: str) -> None:
        specs = msg.get("specs")
        for proc_id in list(specs) if isinstance(specs, Mapping) else [msg.get("proc_id")]:
            watcher = self._watcher(proc_id)
            if watcher is not None:
                guard(watcher.error, msg, err)
            else:
                log.info("agent %s refused %s of %s: %s", self.agent.conn_id, msg.get("type"), proc_id, err)

    def _shut_down(self, state: str) -> None:
        log.info("agent %s is now %s", self.agent.conn_id, state)
        with self._lock:
            self.agent.state = state
        if state == "done":
            self._gone()
        self._shared.changed(self.agent)
        self._shared.available(self.agent)

    def _gone(self) -> None:
        for watcher in self._watchers():
            guard(watcher.gone)

    def _watchers(self) -> list[Watcher]:
        with self._lock:
            return list(self.agent.watchers.values())

    # -- processes that no run knows --

    def look_for_leftovers(self) -> None:
        """Ask about every process that nobody watches; its result decides."""
        with self._lock:
            unwatched = self.agent.procs - self.agent.watchers.keys() if self._shared.restored else ()
        for proc_id in sorted(unwatched):
            self.put(wire.proc_result_request(proc_id))

    def _leftover(self, proc_id: str, res: Mapping[str, Any]) -> None:
        """A record that nobody watches goes once its process has ended; a process is never touched."""
        with self._lock:
            restored = self._shared.restored
        if restored and not self._shared.claimed(self.agent.conn_id, proc_id, res):
            self.dismiss(proc_id, res)

    def dismiss(self, proc_id: str, res: Mapping[str, Any]) -> None:
        """Nobody has anything to do with the process."""
        if self._watcher(proc_id) is not None:
            return
        if res.get("state") == "running":
            text = "agent %s runs a process that belongs to no live run: proc_id=%s pid=%s"
            log.warning(text, self.agent.conn_id, proc_id, res.get("pid"))
        else:
            self.delete(proc_id)

    def delete(self, proc_id: str) -> None:
        """Have the agent forget a process, if it has it."""
        if proc_id in self.agent.procs or self.agent.vague:
            self.put(wire.proc_delete_request(proc_id))

    # -- polling of watchers --

    def schedule(self, proc_id: str, due: float) -> None:
        self._due[proc_id] = due
        heapq.heappush(self._heap, (due, proc_id))

    def _next_due(self) -> float:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else float("inf")

    def _poll_watchers(self, now: float) -> None:
        for _ in range(POLLS):
            if self._next_due() > now:
                return
            _, proc_id = heapq.heappop(self._heap)
            del self._due[proc_id]
            watcher = self._watcher(proc_id)
            if watcher is None:
                continue
            try:
                due = watcher.poll(now)
            except Exception:
                log.exception("polling process %s of agent %s failed", proc_id, self.agent.conn_id)
                due = now + AFTER_FAILURE
            if due is not None and due < self._due.get(proc_id, float("inf")):
                self.schedule(proc_id, due)

    # -- the end --

    def leave(self, silently: bool) -> None:
        """The connection is over. `silently`: it is us who stop, and no run has lost anything."""
        self.connection.abort()
        with self._lock:
            self.agent.link, self.agent.ready = None, False
            self.agent.lost_at = self._clock.monotonic()
            self.agent.heard = self._clock.wall() - (self.agent.lost_at - self.connection.last_received)
            self.agent.promised.clear()
            unsent, self._outbox = self._outbox or deque(), None
            self._posted.clear()
        # First what was never written: its run looks for another agent, and is not told of the loss.
        for _, fate in unsent:
            if fate is not None and not silently:
                guard(fate, False)
        if not silently:
            for watcher in self._watchers():
                guard(watcher.lost)


def guard(work: Callable[..., Any], *args: Any) -> None:
    """What goes wrong with one run costs that run a message, and no other anything."""
    try:
        work(*args)
    except Exception:
        log.exception("%s failed", getattr(work, "__qualname__", work))
