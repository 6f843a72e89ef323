"""Which agents there are, who is connected, and what programs ask of them.

agent_server.py is the roster with the ports and connections: it puts an agent's link here, and takes it
away. Threads share nothing but a leaf lock, under which nothing is called.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from apsislib import wire
from apsislib.clock import Clock
from apsislib.links import Agent, Fate, Link, Shared, Watcher, guard
from apsislib.times import format_time

PROMISE = 10.0  # seconds that a choice counts as load before its process is watched
REMEMBERED = 500  # connections that came and went, as pages show them
KEEP = 3600.0  # seconds that a lost agent without processes is shown, if there is no reconnect timeout


class Roster:
    """Safe for any thread; nothing blocks. The arguments are those of AgentServer."""

    def __init__(
        self,
        clock: Clock,
        reconnect_timeout: float | None,
        output_full: Callable[[], bool],
        on_change: Callable[[dict[str, Any]], None],
        claimed: Callable[[str, str, Mapping[str, Any]], bool],
        ping: float,
        silence: float,
    ) -> None:
        self._clock = clock
        self._keep = KEEP if reconnect_timeout is None else reconnect_timeout
        self._on_change = on_change
        self._lock = threading.Lock()  # protects all below, and agents and links as they say; leaf
        self._shared = Shared(
            clock, output_full, ping, silence, self._changed, self._available, claimed, self._lock
        )
        self._agents: dict[str, Agent] = {}
        self._where: dict[str, Agent] = {}  # by proc ID that is watched
        self._history: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._wanting: dict[str, list[tuple[Callable[[], None], Callable[[], bool] | None]]] = {}

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

    # -- what the rest of the server tells -----------------------------------------------------------

    def restored(self) -> None:
        """Every live run watches its process by now: what nobody watches is left over, and may go."""
        with self._lock:
            self._shared.restored = True
            links = [agent.link for agent in self._agents.values() if agent.link is not None and agent.ready]
        for link in links:
            link.post(link.look_for_leftovers)

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

    # -- agents that are no more -----------------------------------------------------------------------

    def tidy(self) -> None:
        """Forget agents that have been away for too long, and callbacks nobody wants."""
        now = self._clock.monotonic()
        with self._lock:
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
            # When it was done, its watchers were told that it is gone.
            busy = agent.watchers and agent.state != "done"
            if busy or not agent.free.is_set() or self._agents.get(agent.conn_id) is not agent:
                return False
            del self._agents[agent.conn_id]
            for proc_id in agent.watchers:
                self._where.pop(proc_id, None)
        self._changed(agent)
        return True
