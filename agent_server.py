"""Where agents connect: ports, registration, and whose connection is served.

Each connection has a thread that owns its socket (apsislib/links.py). Of an agent at most one is
served at any moment: a newer one evicts the older and waits until its thread is through. Nothing is
sent before `Registered`, and that only after every check. What one agent does delays no other. What
programs ask of agents is apsislib/roster.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from apsislib.clock import Clock, Deadline
from apsislib.links import Agent, Link, guard
from apsislib.ports import Port, tls
from apsislib.registering import await_register, described, instance, refusal
from apsislib.roster import KEEP, Roster
from apsislib.sockets import NORMAL, Closed, Connection, Listener, Strangers
from apsislib.wire import Message

log = logging.getLogger(__name__)

REFUSED = 1.0  # seconds that a refused agent is kept: one with a wrong token tries for ever
PING = 20.0  # seconds between pings; agents leave after 60 s of silence
SILENCE = 40.0  # seconds without a byte, in spite of a ping, after which the connection is dead
EVICT = 8.0  # seconds for the older connection of an agent to end; agents wait 10 s for Registered
TIDY = 60.0  # seconds between looks for agents that can be forgotten


class AgentServer(Roster):
    """Accepts agents, and lets programs talk to them. Safe for any thread; only start and stop block.

    `output_full` tells that output waits for the disk: an agent in the middle of sending some is then
    not read on. `on_change` is given the messages of the summary stream, `agent_conn` and
    `agent_conn_delete`; it must not block. `reconnect_timeout`, in seconds: for how long a lost agent
    that has no processes of ours is remembered. `claimed(conn_id, proc_id, result)` is asked, on the
    agent's thread, about each process that nobody watches, whether somebody looks after it; if so, they
    watch() or dismiss() it.
    """

    def __init__(
        self,
        ports: Sequence[Port],
        clock: Clock,
        *,
        reconnect_timeout: float | None = KEEP,
        output_full: Callable[[], bool] = lambda: False,
        on_change: Callable[[dict[str, Any]], None] = lambda change: None,
        claimed: Callable[[str, str, Mapping[str, Any]], bool] = lambda conn_id, proc_id, res: False,
        ping: float = PING,
        silence: float = SILENCE,
    ) -> None:
        super().__init__(clock, reconnect_timeout, output_full, on_change, claimed, ping, silence)
        self._ports = ports
        self._strangers = Strangers(clock)
        self._listeners: list[tuple[Port, Listener]] = []
        self._stopping = threading.Event()
        self._janitor = threading.Thread(target=self._tidy_for_ever, name="apsis-agents")

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind and accept. Raises OSError, BadRequest."""
        try:
            for port in self._ports:
                context = tls(port)

                def serve(connection: Connection, port: Port = port, at: int = len(self._listeners)) -> None:
                    self._serve(connection, port.token, self._listeners[at][1].settle)

                address = (port.host, port.port)
                listener = Listener(
                    address,
                    serve,
                    clock=self._clock,
                    ssl_context=context,
                    settle_late=True,
                    strangers=self._strangers,
                )
                self._listeners.append((port, listener))
        except BaseException:
            for _, listener in self._listeners:
                listener.stop(0)
            raise
        for port, listener in self._listeners:
            listener.start()
            log.info(
                "agents may connect: address=%s port=%d tls=%s", *listener.address, port.cert is not None
            )
        self._janitor.start()

    def stop(self, deadline: Deadline) -> list[str]:
        """Close every connection; processes live on. Answers the names of threads still alive."""
        alive: list[str] = []
        if self._stopping.is_set():
            return alive
        self._stopping.set()
        for _, listener in self._listeners:
            left = deadline.left()
            alive += listener.stop(10.0 if left is None else left)
        if self._janitor.ident is not None:
            self._janitor.join(deadline.left())
            alive += [self._janitor.name] if self._janitor.is_alive() else []
        self._strangers.sum_up(now=True)
        return alive

    def _tidy_for_ever(self) -> None:
        """(apsis-agents) Ends when stop() was called."""
        while not self._stopping.wait(min(TIDY, max(1.0, self._keep))):
            guard(self.tidy)

    def tidy(self) -> None:
        """Forget who has been away for too long, and sum up what was not said of strangers."""
        more = self._strangers.sum_up()
        if more is not None:
            with self._lock:
                self._note_locked("refused", "", reason=more)
        super().tidy()

    @property
    def address(self) -> tuple[str, int]:
        """Of the first port, as it was bound."""
        return self._listeners[0][1].address

    def addresses(self) -> list[tuple[str, int]]:
        """Of all ports, in their order."""
        return [listener.address for _, listener in self._listeners]

    def reload_certificate(self) -> None:
        """New connections get the certificate as its files are now. Raises BadRequest, changing nothing."""
        for port, listener in self._listeners:
            if port.cert is not None:
                # A context of its own: half of a pair that does not match must not end in the one in use.
                listener.ssl_context = tls(port)
                log.info("certificate %s was loaded again", port.cert)

    # -- a connection (its thread) -------------------------------------------------------------------

    def _serve(self, connection: Connection, token: str, settle: Callable[[], None]) -> None:
        def left(reason: str) -> None:
            self._tell_stranger(logging.INFO, connection, "left before it registered: %s", reason)

        register, problem = await_register(connection, self._clock, left)
        if register is not None:
            problem = refusal(register, token)
            if problem is None:
                settle()
                problem = self._run_link(register, connection)
        if problem is not None:
            if self._tell_stranger(logging.WARNING, connection, "refused: %s", problem):
                with self._lock:
                    self._note_locked("refused", connection.peer[0], reason=problem)
            self._refuse(connection)

    def _tell_stranger(self, level: int, connection: Connection, text: str, *args: object) -> bool:
        """Log something about a peer that is not let in. False: there is too much of that."""
        peer = connection.peer[0]
        return self._strangers.say(level, peer, f"agent at %s {text}", peer, *args)

    def _refuse(self, connection: Connection) -> None:
        deadline = Deadline(REFUSED, self._clock)
        while not deadline.passed() and not self._stopping.is_set():
            if any(isinstance(event, Closed) for event in connection.poll(deadline.left())):
                return
        connection.close(NORMAL)
        connection.finish()

    def _run_link(self, register: Message, connection: Connection) -> str | None:
        """Serve a connection until it ends; answers why it may not be served, if it may not."""
        link, problem = self._take_over(register, connection)
        if link is None:
            return problem
        agent = link.agent
        try:
            link.follow()
        finally:
            with self._lock:
                if agent.info is not None:
                    agent.info["stats"] |= {"connected": False, "last_disconnect_time": self._now()}
                    self._note_locked("lost", agent.info["socket"]["address"], agent, link.ended)
            try:
                link.leave(silently=self._stopping.is_set())
            finally:
                agent.free.set()
            if agent.state != "done" or not self._drop(agent):
                self._changed(agent)
        return None

    def _take_over(self, register: Message, connection: Connection) -> tuple[Link | None, str | None]:
        """Make this the connection of its agent, once the older one's thread is through."""
        conn_id, group_id = register["conn"]["conn_id"], register["conn"]["group_id"]
        deadline = Deadline(EVICT, self._clock)
        with self._lock:
            agent = self._agents.setdefault(conn_id, Agent(conn_id))
            old = agent.link
            if old is not None and agent.group_id != group_id:
                return None, f"conn_id {conn_id} is connected already, in group {agent.group_id}"
            agent.claim += 1
            claim = agent.claim
        if old is not None:
            log.info("agent %s: a newer connection replaces the older", conn_id)
            # From its own thread; should that be stuck, kill() below ends the socket under it.
            old.connection.post(lambda: old.connection.close(NORMAL, "replaced", timeout=1.0))
        while True:
            if not agent.free.wait(deadline.left()):
                if old is not None:
                    old.connection.kill()
                return None, f"the older connection of conn_id {conn_id} does not end"
            with self._lock:
                if agent.claim != claim or self._agents.get(conn_id) is not agent:
                    return None, f"a newer connection of conn_id {conn_id} came"
                if agent.free.is_set():
                    agent.free.clear()
                    return self._connect_locked(agent, register, connection), None

    def _connect_locked(self, agent: Agent, register: Message, connection: Connection) -> Link:
        agent.group_id = register["conn"]["group_id"]
        agent.state = register["shutdown_state"]
        agent.instance = instance(register)
        agent.drained = False
        agent.lost_at = None
        agent.procs = set(register["proc_ids"] or ())
        agent.vague = register["proc_ids"] is None  # before agent 0.4.1
        agent.info = described(register, connection.peer, agent.info, self._now())
        agent.shown = agent.state
        self._note_locked("connected", connection.peer[0], agent)
        agent.link = Link(agent, connection, self._shared)
        return agent.link

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="microseconds")
