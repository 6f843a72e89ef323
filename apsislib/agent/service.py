"""The connection to the server: register, answer, tell, keep alive, and connect again.

Only the attempt to connect has a thread of its own, since the resolver cannot be waited for otherwise.
Requests are answered one at a time and in order; what the server does not read holds back the answers,
then the requests, never the programs.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import ssl
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

from apsislib import sockets, wire
from apsislib.agent.loop import Loop, Timer
from apsislib.agent.options import Options
from apsislib.agent.procs import Proc, Procs
from apsislib.agent.requests import answer
from apsislib.agent.shutdown import Shutdown
from apsislib.clock import Deadline

log = logging.getLogger(__name__)

NO_SERVER = 1  # exit status: the attempts to connect are exhausted
REGISTER_TIMEOUT = 10.0  # seconds for all of TCP, TLS, HTTP and registration
PING_INTERVAL = 20.0  # seconds
SHORT = 1.0  # seconds; a server that registers us only to close, thrice in a row, is not rushed at again
SHORT_MAX = 3
FLUSH_TIMEOUT = 5.0  # seconds for the last words at the end

MESSAGE_MAX = 64 << 20  # bytes of one request, as in other agents
ANSWERS_MAX = 8 << 20  # bytes waiting to be sent, above which requests wait
STREAMS_MAX = 2  # long outputs waiting to be sent, likewise
REQUESTS_MAX = 1000  # requests waiting, above which nothing is read


class Service:
    """One agent's side of the protocol. Everything but _attempt is called from the loop."""

    def __init__(self, loop: Loop, procs: Procs, shutdown: Shutdown, options: Options) -> None:
        self._loop = loop
        self._clock = loop.clock
        self._procs = procs
        self._shutdown = shutdown
        self._options = options
        self._process = _process_info()
        self._instance = str(uuid.uuid4())
        self._conn: sockets.Connection | None = None
        self._registered = False
        self._since = 0.0  # monotonic, when this connection was registered
        self._alive = 0.0  # monotonic, when the server last gave a sign of life
        self._attempt_end = Deadline(REGISTER_TIMEOUT, self._clock)
        self._watched: tuple[int, int] | None = None  # descriptor and events that the loop waits for
        self._inbox: deque[dict[str, Any]] = deque()  # requests not yet handled
        self._streams = 0  # long outputs not yet sent
        self._failures = 0  # attempts in a row
        self._short = 0  # registered connections in a row that ended at once
        self._interval = options.connect_interval_start
        self._timers: dict[str, Timer] = {}
        self._exhausted = False
        procs.observers.append(self._told)
        shutdown.observers.append(self._shutting_down)
        loop.soon(self._connect)
        self._watch_idleness()

    def finish(self) -> int:
        """Say what is still to be said, and close. The exit status."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._unwatch()
            conn.close(timeout=FLUSH_TIMEOUT)
            conn.finish()
        return NO_SERVER if self._exhausted else 0

    # -- coming and going

    def _connect(self) -> None:
        self._attempt_end = Deadline(REGISTER_TIMEOUT, self._clock)
        log.info("connecting to %s", self._options.url)
        # A daemon: getaddrinfo cannot be interrupted, and must not keep an agent from ending.
        thread = threading.Thread(
            target=self._attempt, args=(self._attempt_end,), name="apsis-agent-connect", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the host has none to spare, as when its programs fork without end
            self._failed(str(error))

    def _attempt(self, deadline: Deadline) -> None:
        """(apsis-agent-connect only) Open the WebSocket, and hand it or the error to the loop."""
        try:
            context = None if self._options.plain else _tls_context()
            conn = sockets.connect(
                self._options.url, context, deadline.left() or 0.0, clock=self._clock, assemble=MESSAGE_MAX
            )
        except Exception as error:  # whatever it is, the next attempt may fare better
            reason = f"{type(error).__name__}: {error}"
            self._loop.post(lambda: self._failed(reason))
        else:
            self._loop.post(lambda: self._connected(conn))

    def _connected(self, conn: sockets.Connection) -> None:
        options = self._options
        self._conn = conn
        self._registered = False
        self._inbox.clear()
        self._streams = 0
        self._alive = self._clock.monotonic()
        conn.send(
            wire.encode(
                wire.register(
                    conn={
                        "conn_id": options.conn_id,
                        "group_id": options.group_id,
                        "restricted_exe": options.restrict_exe,
                    },
                    proc=self._process,
                    proc_ids=self._procs.ids(),
                    access_token=os.environ.get("PROCSTAR_AGENT_TOKEN", ""),
                    shutdown_state=self._shutdown.state,
                    instance=self._instance,
                )
            )
        )
        self._set_timer(
            "register", self._attempt_end.left() or 0.0, lambda: self._drop("not registered in time")
        )
        self._round()

    def _failed(self, reason: str) -> None:
        """An attempt came to nothing: wait, longer each time, and try again."""
        self._failures += 1
        log.warning("cannot connect to %s: %s", self._options.url, reason)
        limit = self._options.connect_count_max
        if limit is not None and self._failures >= limit:
            log.error("giving up after %d attempts, programs=%d", self._failures, len(self._procs.running))
            self._exhausted = True
            self._loop.stop()
            return
        self._set_timer("connect", self._interval, self._connect)
        self._interval = min(
            self._interval * self._options.connect_interval_mult, self._options.connect_interval_max
        )

    def _drop(self, reason: str) -> None:
        if self._conn is not None:
            log.warning("dropping the connection: %s", reason)
            self._unwatch()  # first: the number of a closed descriptor is soon another's
            self._conn.abort(reason)
            self._kick()

    def _lost(self, closed: sockets.Closed) -> None:
        """The connection is over; programs go on, and the next Register says which."""
        was_registered, self._registered = self._registered, False
        self._conn = None
        # What the server asked before the end is done, as by other agents, though nobody hears the answer.
        for message in self._inbox if was_registered else ():
            try:
                answer(message, self._procs, lambda: self._shutdown.state)
            except Exception:  # an agent that did not come back over it would be lost with all it holds
                log.error("%s failed", message["type"], exc_info=True)
        self._inbox.clear()
        self._clear_timer("register")
        self._clear_timer("ping")
        self._clear_timer("silence")
        reason = f"{closed.why}: code {closed.code} {closed.reason}".rstrip()
        if not was_registered:
            self._failed(reason)
            return
        log.warning("lost the server: %s", reason)
        self._watch_idleness()
        self._failures = 0
        self._interval = self._options.connect_interval_start
        lasted = self._clock.monotonic() - self._since
        self._short = self._short + 1 if lasted < SHORT else 0
        if self._short < SHORT_MAX:
            self._connect()
        else:
            self._set_timer("connect", self._interval, self._connect)

    # -- one round of the socket

    def _ready(self, events: int) -> None:
        if not self._reading():
            # We do not listen, so a sign of life is that it takes what we send.
            self._alive = self._clock.monotonic()
        self._round()

    def _round(self) -> None:
        """Write, read and answer what can be, then wait for the socket again."""
        conn = self._conn
        if conn is None:
            return
        try:
            self._take(conn)
            if self._conn is conn and not conn.idle:
                self._take(conn)  # the answers leave now, not a round later
        except Exception:  # a failure of the connection's own code costs the connection, not the programs
            log.error("connection failed", exc_info=True)
            self._unwatch()
            self._drop("internal error")
        if self._conn is conn and conn.closed is not None:
            self._unwatch()
            self._lost(conn.closed)
        if self._conn is conn:
            self._watch(conn)

    def _take(self, conn: sockets.Connection) -> None:
        events = conn.poll(0, self._reading())
        # What came before the peer's Close counts, Registered above all; what comes after our own does not.
        ended = conn.closed
        for event in events:
            if conn.closed is not ended:
                return
            match event:
                case sockets.Data(data):
                    self._message(data)
                case sockets.Text():
                    self._drop("the server sent text")
        if conn.closed is None:
            self._alive = max(self._alive, conn.last_received)
            self._work()

    def _watch(self, conn: sockets.Connection) -> None:
        events = conn.interest(self._reading())
        if events is None:
            self._loop.soon(self._round)
            return
        if not events:
            self._unwatch()
            return
        wanted = (conn.fileno(), events)
        if wanted != self._watched:
            if self._watched is not None and self._watched[0] != wanted[0]:
                self._unwatch()
            self._loop.watch(*wanted, self._ready)
            self._watched = wanted

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._loop.unwatch(self._watched[0])
            self._watched = None

    def _reading(self) -> bool:
        return len(self._inbox) < REQUESTS_MAX

    # -- messages

    def _message(self, data: bytes) -> None:
        try:
            message = wire.decode(data, MESSAGE_MAX)
        except wire.WireError as error:
            # No answer, as in other agents; a start with readable specs gets one, from requests.answer.
            log.warning("undecodable message: %s", error)
            if not self._registered:
                self._drop("not Registered")
            return
        if self._registered:
            self._inbox.append(message)
        elif message["type"] == "Registered":
            self._welcome()
        else:
            self._drop(f"expected Registered, not {message['type']:.60}")

    def _welcome(self) -> None:
        log.info("registered at %s as %s", self._options.url, self._options.conn_id)
        self._registered = True
        self._since = self._alive = self._clock.monotonic()
        self._failures = 0
        self._interval = self._options.connect_interval_start
        self._clear_timer("register")
        self._watch_idleness()
        self._ping()
        self._set_timer("silence", self._options.agent_read_timeout, self._listen)

    def _work(self) -> None:
        """Handle requests, in order, as long as their answers find room."""
        while self._inbox and self._conn is not None and not self._holding_back(self._conn):
            if self._conn.closed is not None:
                return
            message = self._inbox.popleft()
            reply = answer(message, self._procs, lambda: self._shutdown.state)
            if reply is not None:
                self._send(reply)

    def _holding_back(self, conn: sockets.Connection) -> bool:
        return self._streams >= STREAMS_MAX or conn.pending > ANSWERS_MAX

    def _send(self, message: dict[str, Any] | Iterator[bytes]) -> None:
        if self._conn is None:
            return
        if isinstance(message, dict):
            try:
                self._conn.send(wire.encode(message))
            except wire.WireError as error:
                log.error("cannot say %s: %s", message["type"], error)
            except sockets.Full as error:
                log.error("%s", error)
                self._drop("the server does not read")
        else:
            self._streams += 1
            self._conn.send_fragments(self._counted(self._conn, message))

    def _counted(self, conn: sockets.Connection, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield from pieces
        if conn is self._conn:
            self._streams -= 1
            self._loop.soon(self._round)

    def _told(self, event: str, proc: Proc) -> None:
        """Something happened to a record. While disconnected it is not told: Register will."""
        self._watch_idleness()
        if self._conn is None or not self._registered:
            return
        if event == "deleted":
            self._send(wire.proc_delete(proc.proc_id))
        else:
            self._send(wire.proc_result(proc.proc_id, self._procs.result(proc)))
        self._kick()

    def _shutting_down(self, state: str) -> None:
        if self._conn is not None and self._registered:
            self._send(wire.shut_down(state))
            self._kick()

    def _kick(self) -> None:
        """What was sent from outside a round leaves in the next."""
        if "kick" not in self._timers:
            self._set_timer("kick", 0.0, self._round)

    # -- keeping alive, and giving up

    def _ping(self) -> None:
        if self._conn is not None:
            self._conn.ping()
            self._set_timer("ping", PING_INTERVAL, self._ping)
            self._loop.soon(self._round)

    def _listen(self) -> None:
        """Drop a server that has been silent for too long."""
        silent = self._clock.monotonic() - self._alive
        left = self._options.agent_read_timeout - silent
        if left > 0:
            self._set_timer("silence", left, self._listen)
        else:
            self._drop(f"silent for {silent:.0f} s")

    def _watch_idleness(self) -> None:
        """--idle-exit: an agent that nobody has asked for anything for so long is of no use to anybody."""
        if self._options.idle_exit is None:
            return
        if self._registered or self._procs.held:
            self._clear_timer("idle")
        elif "idle" not in self._timers:
            self._set_timer("idle", self._options.idle_exit, self._idle)

    def _idle(self) -> None:
        log.warning("no server and no records for %g s: ending", self._options.idle_exit)
        self._shutdown.finish()

    def _set_timer(self, name: str, seconds: float, call: Any) -> None:
        self._clear_timer(name)

        def fire() -> None:
            del self._timers[name]
            call()

        self._timers[name] = self._loop.call_after(seconds, fire)

    def _clear_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def _tls_context() -> ssl.SSLContext:
    """The system's roots, and the certificate that PROCSTAR_AGENT_CERT names: a CA's or the server's own."""
    context = ssl.create_default_context()
    own = os.environ.get("PROCSTAR_AGENT_CERT")
    if own:
        context.load_verify_locations(cafile=own)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _process_info() -> dict[str, Any]:
    """The `proc` of a Register: who and where this agent is."""
    try:
        username = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        username = None
    try:
        groupname = grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        groupname = None
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "uid": os.getuid(),
        "euid": os.geteuid(),
        "username": username,
        "gid": os.getgid(),
        "egid": os.getegid(),
        "groupname": groupname,
        "hostname": os.uname().nodename,
    }
