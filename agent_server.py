"""Where agents connect: ports, registration, groups, and what programs ask of agents.

Each connection has a thread that owns its socket (apsislib/links.py). Of an agent at most one is
served at any moment: a newer one evicts the older and waits until its thread is through. Nothing is
sent before `Registered`, and that only after every check. What one agent does delays no other:
threads share nothing but a leaf lock, under which nothing is called.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import random
import re
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from apsislib import wire
from apsislib.clock import Clock, Deadline
from apsislib.config.keys import Server
from apsislib.errors import BadRequest
from apsislib.links import Agent, Fate, Link, Shared, Watcher, guard
from apsislib.sockets import NORMAL, Closed, Connection, Data, Listener, Strangers
from apsislib.times import format_time
from apsislib.wire import Message, WireError

log = logging.getLogger(__name__)

REGISTER = 60.0  # seconds that a connection may take to send Register
REFUSED = 1.0  # seconds that a refused agent is kept: one with a wrong token tries for ever
PING = 20.0  # seconds between pings; agents leave after 60 s of silence
SILENCE = 40.0  # seconds without a byte, in spite of a ping, after which the connection is dead
EVICT = 8.0  # seconds for the older connection of an agent to end; agents wait 10 s for Registered
MAX_REGISTER = 4 * 1024 * 1024  # bytes, some 100,000 processes; who has not registered deserves no more
MAX_NAME = 256  # characters of a conn_id, group or proc ID
PROMISE = 10.0  # seconds that a choice counts as load before its process is watched
TIDY = 60.0  # seconds between looks for agents that can be forgotten
REMEMBERED = 500  # connections that came and went, as pages show them
KEEP = 3600.0  # seconds that a lost agent without processes is shown, if there is no reconnect timeout


# -- ports -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Port:
    """An address to listen on, and what is demanded there. No certificate: plain text."""

    host: str  # "*": every address of the machine
    port: int
    token: str = ""
    cert: Path | None = None
    key: Path | None = None


def ports(server: Server) -> tuple[list[Port], list[str]]:
    """The port that the server's file asks for, and what its operator should be told about it.

    Open to other hosts only with a certificate and a token: whoever is taken for an agent is given
    programs to run, and is believed about their success. Raises BadRequest.
    """
    cert, key = (None, None) if server.plain else (server.tls.cert_path, server.tls.key_path)
    if cert is not None and key is None:
        key = cert.with_suffix(".key")
    safe = bool(server.access_token) and (cert is not None or server.plain)
    remedy = "set procstar.agent.server.access_token and .tls.cert_path (or .plain: true, unencrypted)"
    host = server.host
    notes = []
    if host is None:
        host = "*" if safe else "127.0.0.1"
        if not safe:
            notes.append(f"agents can connect from this host only; to open it to others, {remedy}")
    elif not safe and not server.plain and not _is_loopback(host):
        raise BadRequest(f"agents of other hosts may not connect to {host} like that: {remedy}")
    if not _is_loopback(host):
        if cert is None:
            notes.append(f"agents connect to {host} without TLS: whoever listens in reads token and output")
        if not server.access_token:
            notes.append("no access token is set: whoever reaches the agents' port is taken for an agent")
    return [Port(host, server.port, server.access_token, cert, key)], notes


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(port: Port) -> ssl.SSLContext | None:
    if port.cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty password fails where OpenSSL would ask for one on the terminal, and wait.
        context.load_cert_chain(port.cert, port.key, password="")
    except (OSError, ssl.SSLError) as error:
        raise BadRequest(f"can't use the certificate {port.cert} with key {port.key}: {error}") from error
    return context


# -- the server ------------------------------------------------------------------------------------


class AgentServer:
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
        self._ports = ports
        self._clock = clock
        self._keep = KEEP if reconnect_timeout is None else reconnect_timeout
        self._on_change = on_change
        self._strangers = Strangers(clock)
        self._listeners: list[tuple[Port, Listener]] = []
        self._stopping = threading.Event()
        self._janitor = threading.Thread(target=self._tidy_for_ever, name="apsis-agents")
        self._lock = threading.Lock()  # protects all below, and agents and links as they say; leaf
        self._shared = Shared(
            clock, output_full, ping, silence, self._changed, self._available, claimed, self._lock
        )
        self._agents: dict[str, Agent] = {}
        self._where: dict[str, Agent] = {}  # by proc ID that is watched
        self._history: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._wanting: dict[str, list[tuple[Callable[[], None], Callable[[], bool] | None]]] = {}

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind and accept. Raises OSError, BadRequest."""
        try:
            for port in self._ports:
                context = _tls(port)

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
                listener.ssl_context = _tls(port)
                log.info("certificate %s was loaded again", port.cert)

    def restored(self) -> None:
        """Every live run watches its process by now: what nobody watches is left over, and may go."""
        with self._lock:
            self._shared.restored = True
            links = [agent.link for agent in self._agents.values() if agent.link is not None and agent.ready]
        for link in links:
            link.post(link.look_for_leftovers)

    def room(self) -> None:
        """Output can be stored again: whoever was held back is read on."""
        with self._lock:
            links = [agent.link for agent in self._agents.values() if agent.link is not None]
        for link in links:
            link.wake()

    # -- what programs ask -------------------------------------------------------------------------

    def choose(self, group_id: str) -> str | None:
        """The conn_id of an agent of the group that takes work: any of those with the fewest processes."""
        now = self._clock.monotonic()
        with self._lock:
            loads = [(self._load_locked(agent, now), agent) for agent in self._open_locked(group_id)]
            if not loads:
                return None
            least = min(load for load, _ in loads)
            agent = random.choice([agent for load, agent in loads if load == least])
            agent.promised.append(now + PROMISE)
            return agent.conn_id

    def _open_locked(self, group_id: str) -> list[Agent]:
        return [agent for agent in self._agents.values() if agent.open and agent.group_id == group_id]

    @staticmethod
    def _load_locked(agent: Agent, now: float) -> int:
        while agent.promised and agent.promised[0] <= now:
            agent.promised.popleft()
        return len(agent.watchers) + len(agent.promised)

    def when_available(
        self, group_id: str, callback: Callable[[], None], wanted: Callable[[], bool] | None = None
    ) -> None:
        """Call back once when choose(group_id) has an answer: at once, or on that agent's thread.

        `wanted` is asked now and then; a callback that nobody wants any more is forgotten.
        """
        with self._lock:
            if not self._open_locked(group_id):
                self._wanting.setdefault(group_id, []).append((callback, wanted))
                return
        callback()

    def watch(
        self,
        proc_id: str,
        conn_id: str,
        watcher: Watcher,
        message: Mapping[str, Any] | None = None,
        fate: Fate | None = None,
        *,
        rejoin: bool = False,
    ) -> bool:
        """Tell `watcher` all about a process, and send a first message about it (see send).

        False: the agent is not connected, and nothing is sent or watched. With `rejoin` the process
        may exist already: it is watched in any case, and `registered` follows once the agent is here.
        """
        data = None if message is None else wire.encode(message)
        with self._lock:
            agent = self._agents.get(conn_id)
            link = None if agent is None else agent.link
            if link is None and not rejoin:
                return False
            if agent is None:
                agent = self._agents[conn_id] = Agent(conn_id, lost_at=self._clock.monotonic())
            if agent.promised:
                agent.promised.popleft()
            agent.watchers[proc_id] = watcher
            self._where[proc_id] = agent
            if link is not None and data is not None:
                link.put_locked(data, fate)
        if link is None:
            return False
        if rejoin:
            link.post(lambda: link.rejoin(proc_id, watcher))
        link.wake()
        return True

    def unwatch(self, proc_id: str) -> None:
        with self._lock:
            agent = self._where.pop(proc_id, None)
            if agent is not None:
                agent.watchers.pop(proc_id, None)

    def watcher(self, proc_id: str) -> Watcher | None:
        """Who is told about a process now."""
        with self._lock:
            agent = self._where.get(proc_id)
            return None if agent is None else agent.watchers.get(proc_id)

    def forget(self, proc_id: str, conn_id: str) -> None:
        """The process is of no more interest: its record is deleted now, or when its agent is back."""
        self.unwatch(proc_id)
        link = self._link(self._agents.get(conn_id))
        if link is not None:
            link.post(lambda: link.delete(proc_id))

    def abandon(self, proc_id: str, conn_id: str) -> None:
        """Watch the process no more, but let its record be: if the agent has it, it is a leftover."""
        self.unwatch(proc_id)
        link = self._link(self._agents.get(conn_id))
        if link is not None:
            link.post(link.look_for_leftovers)

    def dismiss(self, proc_id: str, conn_id: str, res: Mapping[str, Any]) -> None:
        """Nobody has anything to do with the process, whose latest result this is."""
        link = self._link(self._agents.get(conn_id))
        if link is not None:
            link.post(lambda: link.dismiss(proc_id, res))

    def send(self, conn_id: str, message: Mapping[str, Any], fate: Fate | None = None) -> bool:
        """Queue a message. False: the agent is not connected, and nothing will be written.

        If True, `fate` is called once, on the agent's thread: True just before the first byte may be
        written, False once it is clear that none was. Raises WireError for what cannot be encoded.
        """
        data = wire.encode(message)
        with self._lock:
            agent = self._agents.get(conn_id)
            link = None if agent is None else agent.link
            if link is None:
                return False
            link.put_locked(data, fate)
        link.wake()
        return True

    def poll(self, proc_id: str) -> None:
        """Have the watcher of a process polled soon."""
        link = self._link(self._where.get(proc_id))
        if link is not None:
            link.post(lambda: link.schedule(proc_id, self._clock.monotonic()))

    def drain(self, conn_id: str) -> None:
        """Choose this agent no more until it registers again: it has refused work."""
        with self._lock:
            if conn_id in self._agents:
                self._agents[conn_id].drained = True

    def _link(self, agent: Agent | None) -> Link | None:
        with self._lock:
            return None if agent is None else agent.link

    # -- what is shown -------------------------------------------------------------------------------

    def record(self, conn_id: str) -> dict[str, Any] | None:
        with self._lock:
            agent = self._agents.get(conn_id)
            return None if agent is None or agent.info is None else agent.record()

    def instance(self, conn_id: str) -> str | None:
        """Which process the agent is, as it was when last seen: another one knows nothing of its work."""
        with self._lock:
            agent = self._agents.get(conn_id)
            return None if agent is None or agent.info is None else agent.instance

    def heard(self, conn_id: str) -> float | None:
        """The wall instant of the last sign of life of an agent that was lost."""
        with self._lock:
            agent = self._agents.get(conn_id)
            return None if agent is None else agent.heard

    def connections(self) -> dict[str, dict[str, Any]]:
        """conn_id -> record, of all agents seen since the server started and not forgotten."""
        with self._lock:
            return {key: agent.record() for key, agent in self._agents.items() if agent.info is not None}

    def history(self) -> list[dict[str, Any]]:
        """Connections that came, changed, went or were refused, the latest first; since the start."""
        with self._lock:
            return list(reversed(self._history))

    def _note_locked(self, what: str, address: str, agent: Agent | None = None, reason: str = "") -> None:
        info = {} if agent is None or agent.info is None else agent.info
        self._history.append(
            {
                "time": format_time(self._clock.wall()),
                "event": what,
                "conn_id": None if agent is None else agent.conn_id,
                "group_id": None if agent is None else agent.group_id,
                "hostname": info.get("proc", {}).get("hostname"),
                "address": address,
                "reason": reason,
            }
        )

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for record in self.connections().values():
            groups.setdefault(record["info"]["conn"]["group_id"], []).append(record)
        return groups

    def _changed(self, agent: Agent) -> None:
        with self._lock:
            if agent.info is None:
                return
            here = self._agents.get(agent.conn_id) is agent
            record = agent.record()
            if agent.link is not None and agent.shown != agent.state:
                agent.shown = agent.state
                if agent.state != "active":
                    self._note_locked(agent.state, agent.info["socket"]["address"], agent)
        if here:
            guard(self._on_change, {"type": "agent_conn", "conn": record})
        else:
            guard(self._on_change, {"type": "agent_conn_delete", "conn_id": agent.conn_id})

    def _available(self, agent: Agent) -> None:
        with self._lock:
            wanting = self._wanting.pop(agent.group_id, []) if agent.open else []
        for callback, _ in wanting:
            guard(callback)

    # -- a connection (its thread) -------------------------------------------------------------------

    def _serve(self, connection: Connection, token: str, settle: Callable[[], None]) -> None:
        register, problem = self._await_register(connection)
        if register is not None:
            problem = _refusal(register, token)
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

    def _await_register(self, connection: Connection) -> tuple[Message | None, str | None]:
        """The first message, if it is a sound Register, or what is wrong. Nothing is sent.

        (None, None) where the connection has ended by itself.
        """
        stream = wire.Stream(MAX_REGISTER)
        deadline = Deadline(REGISTER, self._clock)
        while not deadline.passed():
            for event in connection.poll(deadline.left()):
                if isinstance(event, Closed):
                    self._tell_stranger(
                        logging.INFO, connection, "left before it registered: %s", event.reason
                    )
                    return None, None
                if not isinstance(event, Data):
                    return None, "its first message is no Register"
                try:
                    items = stream.feed(event.data, event.last)
                except WireError as error:
                    return None, f"its first message can't be read: {error}"
                if items:
                    first = items[0]
                    if isinstance(first, dict) and first["type"] == "Register":
                        return first, None
                    return None, "its first message is no Register"
        return None, f"it sent no Register within {REGISTER:g} s"

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
        agent.instance = _instance(register)
        agent.drained = False
        agent.lost_at = None
        agent.procs = set(register["proc_ids"] or ())
        agent.vague = register["proc_ids"] is None  # before agent 0.4.1
        now = self._now()
        before = agent.info["stats"] if agent.info else {}
        agent.info = {
            "conn": {key: register["conn"][key] for key in ("conn_id", "group_id", "restricted_exe")},
            "socket": {"address": connection.peer[0], "port": connection.peer[1]},
            "proc": {key: register["proc"][key] for key in _PROC},
            "stats": {
                "connected": True,
                "first_connect_time": before.get("first_connect_time", now),
                "last_connect_time": now,
                "last_disconnect_time": before.get("last_disconnect_time"),
                "num_connections": before.get("num_connections", 0) + 1,
                "num_received": before.get("num_received", 0) + 1,
                "num_sent": before.get("num_sent", 0) + 1,
            },
        }
        agent.shown = agent.state
        self._note_locked("connected", connection.peer[0], agent)
        agent.link = Link(agent, connection, self._shared)
        return agent.link

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="microseconds")

    # -- agents that are no more -----------------------------------------------------------------------

    def _tidy_for_ever(self) -> None:
        """(apsis-agents) Ends when stop() was called."""
        while not self._stopping.wait(min(TIDY, max(1.0, self._keep))):
            guard(self.tidy)

    def tidy(self) -> None:
        """Forget agents that have been away for too long, and callbacks nobody wants; sum up refusals."""
        more = self._strangers.sum_up()
        now = self._clock.monotonic()
        with self._lock:
            if more is not None:
                self._note_locked("refused", "", reason=more)
            lost = [(agent.lost_at, agent) for agent in self._agents.values()]
            wanting = [(group, entry) for group, entries in self._wanting.items() for entry in entries]
        for at, agent in lost:
            if at is not None and now >= at + self._keep:
                self._drop(agent)
        for group_id, entry in wanting:
            if entry[1] is not None and not entry[1]():
                with self._lock:
                    entries = self._wanting.get(group_id, [])
                    if entry in entries:
                        entries.remove(entry)
                    if not entries:
                        self._wanting.pop(group_id, None)

    def _drop(self, agent: Agent) -> bool:
        """Forget an agent that is away and has nothing that a run waits for."""
        with self._lock:
            busy = (
                agent.watchers and agent.state != "done"
            )  # when it was done, they were told that it is gone
            if busy or not agent.free.is_set() or self._agents.get(agent.conn_id) is not agent:
                return False
            del self._agents[agent.conn_id]
            for proc_id in agent.watchers:
                self._where.pop(proc_id, None)
        self._changed(agent)
        return True


_PROC = ("pid", "ppid", "uid", "euid", "username", "gid", "egid", "groupname", "hostname")


def _instance(register: Message) -> str:
    """Which process of its conn_id an agent is. That of others is told by its number; but in a container
    each life of the first process has the same one, so that is taken for another unless its conn_id is
    random, as it is by default."""
    if register.get("instance"):
        return str(register["instance"])
    conn_id, proc = register["conn"]["conn_id"], register["proc"]
    if proc["pid"] is None or (proc["pid"] == 1 and not _UUID.fullmatch(conn_id)):
        return str(uuid4())
    return f"{proc['hostname']} {proc['pid']}"


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _refusal(register: Message, token: str) -> str | None:
    """Why an agent may not register; None: it may."""
    if not hmac.compare_digest(register["access_token"].encode(), token.encode()):
        return "its access token is wrong"
    for key in ("conn_id", "group_id"):
        name = register["conn"][key]
        if not name or len(name) > MAX_NAME or not name.isprintable():
            return f"its {key} is empty, too long or unprintable"
    if len(register.get("instance") or "") > MAX_NAME:
        return "its instance is too long"
    if any(not proc_id or len(proc_id) > MAX_NAME for proc_id in register["proc_ids"] or ()):
        return "one of its proc IDs is empty or too long"
    return None
