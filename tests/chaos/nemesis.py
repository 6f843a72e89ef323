"""What goes wrong and when: a timetable made from a seed, and its execution.

Faults of different things overlap; of the same thing they do not.
"""

from __future__ import annotations

import heapq
import random
import re
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field

import requests

from chaos.world import PATIENCE, World


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    target: str  # "server", "a1", "clock", ...
    at: float  # seconds from the beginning
    lasts: float = 0.0  # seconds
    what: int | str = 0  # seconds by which the clock is set and set back, way of a hang, ms of delay


@dataclass(slots=True)
class History:
    """What the nemesis has done, for the checker to judge what it may excuse."""

    counts: Counter[str] = field(default_factory=Counter)
    killed: set[str] = field(default_factory=set)  # lives of agents: "a1.3"
    away: list[tuple[str, float, float]] = field(default_factory=list)  # conn_id, from and until (boot)
    took: float = 0.0  # seconds that this machine takes to bring a server up
    behind: list[tuple[float, float]] = field(default_factory=list)  # when (boot), by how many seconds
    backups: int = 0  # that were made and are whole
    stopped: set[str] = field(default_factory=set)  # run IDs whose stop was accepted
    wrongs: list[str] = field(default_factory=list)  # seen while it went on: the server ended by itself, say

    def slow(self, begin: float, end: float) -> float:
        """Seconds by which the machine was behind between two instants (boot)."""
        return max([self.took, *(s for at, s in self.behind if begin <= at <= end)])


KINDS = {  # kind -> how often
    "kill server": 5,
    "end server": 2,
    "restart server": 2,
    "freeze server": 2,
    "kill agent": 4,
    "freeze agent": 3,
    "cut": 4,
    "hang": 4,
    "slow": 2,
    "clock": 2,
    "disk": 2,
    "lock": 2,
    "backup": 1,
    "stop": 5,
}


def timetable(seed: int, seconds: float, agents: list[str], reconnect: float) -> list[Fault]:
    """Faults for so many seconds. At least one agent is away for longer than `reconnect`."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    busy: dict[str, float] = {}
    long = chance.choice(agents)
    forever = reconnect + 8.0
    if seconds > forever + 10:
        at = chance.uniform(3, seconds - forever - 5)
        faults.append(Fault(chance.choice(("freeze agent", "hang")), long, at, forever, "both"))
    reserved = [(f.target, f.at, f.at + f.lasts) for f in faults]
    # A seed plays every kind, and then what it likes.
    kinds = list(KINDS)
    chance.shuffle(kinds)
    now = 2.0
    while now < seconds - 2:
        kind = kinds[-1] if kinds else chance.choices(list(KINDS), list(KINDS.values()))[0]
        target, lasts, what = _details(kind, chance, agents)
        lasts = min(lasts, seconds - now)
        free = busy.get(target, 0.0) <= now and not any(
            t == target and begin - 1 < now + lasts and now < end + 1 for t, begin, end in reserved
        )
        if free:
            kinds = [other for other in kinds if other != kind]
            busy[target] = now + lasts + 0.5
            faults.append(Fault(kind, target, now, lasts, what))
        elif kinds:
            chance.shuffle(kinds)  # another one may be possible now
        now += chance.uniform(0.3, 2.5) if free else 0.3
    return sorted(faults, key=lambda f: f.at)


def _details(kind: str, chance: random.Random, agents: list[str]) -> tuple[str, float, int | str]:
    match kind:
        case "kill server" | "end server":
            return "server", chance.choice((0.0, 0.0, chance.uniform(0, 3))), 0
        case "freeze server":
            return "server", chance.uniform(0.5, 5), 0
        case "kill agent":
            return chance.choice(agents), chance.uniform(0, 3), 0
        case "freeze agent":
            return chance.choice(agents), chance.uniform(0.3, 6), 0
        case "cut":
            return chance.choice(agents), 0.0, 0
        case "hang":
            return chance.choice(agents), chance.uniform(0.5, 8), chance.choice(("both", "up", "down"))
        case "slow":
            return chance.choice(agents), chance.uniform(1, 8), chance.choice((50, 400))
        case "restart server":
            return "server", 0.0, 0
        case "clock":
            return "clock", chance.uniform(1, 6), chance.choice((-1, 1)) * chance.randint(3, 30)
        case "disk":
            return "disk", chance.uniform(0.5, 4), 0
        case "lock":
            return "database", chance.uniform(0.5, 6), 0
    return "operator", 0.0, 0


# What a server says that may refuse to start, by the fault that is to blame.
REFUSALS = {
    "disk": re.compile(r"error: .*(disk is full|disk I/O error)"),
    "lock": re.compile(r"error: .*holds it locked"),
}
SINCE = 20.0  # seconds that it may take to refuse: it ends in order


class Nemesis:
    def __init__(self, world: World, faults: list[Fault], say: Callable[[str], None] = lambda text: None):
        self.history = History()
        self._world = world
        self._faults = faults
        self._say = say
        self._agents = {agent.conn_id: agent for agent in world.agents}
        self._operators: list[threading.Thread] = []
        self._down = False  # the server is to be down now
        self._suffers = False  # the server, a fault of its own
        self._deadline = 0.0  # monotonic; by then it must have ended as it was told
        self._over: dict[str, float] = {}  # until when (boot) a kind of REFUSALS was played

    def rage(self) -> History:
        """Execute the timetable; at its end all faults are over."""
        begun = time.monotonic()
        self.history.took = self._world.took
        events: list[tuple[float, int, Fault, bool]] = []
        for number, fault in enumerate(self._faults):
            heapq.heappush(events, (fault.at, number, fault, True))
        while events:
            at, number, fault, begins = heapq.heappop(events)
            while (left := begun + at - time.monotonic()) > 0:
                time.sleep(min(left, 0.2))  # the timetable is kept by the clock
                self._look_after_server()
            self.history.behind.append((_boot(), time.monotonic() - begun - at))
            if fault.target == "server" and not self._takes_turn(fault, begins):
                heapq.heappush(events, (time.monotonic() - begun + 0.2, number, fault, begins))
                continue
            self._say(f"{at:6.1f} {fault.kind} {fault.target} {'begins' if begins else 'ends'} {fault.what}")
            if begins:
                self.history.counts[fault.kind] += 1
                self._begin(fault)
                heapq.heappush(events, (at + fault.lasts, number, fault, False))
            else:
                self._end(fault)
        for operator in self._operators:
            operator.join()
        return self.history

    def _look_after_server(self) -> None:
        """Be what a service manager is: it starts again what has ended."""
        server = self._world.server
        if not self._down and server is not None and (status := server.poll()) is not None:
            if not self._has_refused(status):
                last = self._world.log().splitlines()[-8:]
                self.history.wrongs.append(f"the server ended by itself with status {status}: {last}")
            self._world.start_server()

    def _takes_turn(self, fault: Fault, begins: bool) -> bool:
        """Begin, or be over with, one fault of the server's at a time. False: not yet.

        A server ends when it can, and not at a time of ours; faults of other things go on meanwhile: it may
        be the disk that it waits for.
        """
        if self._suffers if begins else fault.kind == "end server" and not self._has_ended():
            return False
        self._suffers = begins
        return True

    def _has_ended(self) -> bool:
        """Whether the server has done as it was told, or will not."""
        assert self._world.server is not None
        status = self._world.server.poll()
        if status is None and time.monotonic() < self._deadline:
            return False
        if status is None:
            self.history.wrongs.append("the server did not end when it was told to")
            self._world.kill_server()
        elif status not in (0, -signal.SIGTERM) and not self._has_refused(status):
            self.history.wrongs.append(f"the server, told to end, did so with status {status}")
        return True

    def _has_refused(self, status: int) -> bool:
        """Whether the server had a reason not to start, and said so, by its status too."""
        last = "\n".join(
            self._world.log().splitlines()[-8:]
        )  # it goes on to say how the disk is while it ends
        return status == 1 and any(
            _boot() < until + SINCE and REFUSALS[kind].search(last) for kind, until in self._over.items()
        )

    def _begin(self, fault: Fault) -> None:
        world = self._world
        match fault.kind:
            case "kill server":
                self._down = True
                world.kill_server()
            case "end server":
                self._down = True
                assert world.server is not None
                # One that is only starting has no handler yet: SIGTERM is then a kill.
                world.server.terminate()
                self._deadline = time.monotonic() + PATIENCE
            case "restart server":
                self._operate(self._restart)
            case "freeze server":
                assert world.server is not None
                world.server.send_signal(signal.SIGSTOP)
            case "kill agent":
                agent = self._agents[fault.target]
                self.history.killed.add(agent.name)
                agent.kill()
            case "freeze agent":
                self._agents[fault.target].signal(signal.SIGSTOP)
            case "cut":
                self._agents[fault.target].proxy.cut()
            case "hang":
                self._agents[fault.target].proxy.hang(str(fault.what))
            case "slow":
                self._agents[fault.target].proxy.delay(int(fault.what) / 1000)
            case "clock":
                world.clock.set(world.clock.offset + int(fault.what))
            case "disk":
                world.disk.fill(world.server)
            case "lock":
                self._operate(lambda: self._lock(fault.lasts))
            case "backup":
                self._operate(self._back_up)
            case "stop":
                self._operate(self._stop_some_run)
        now = _boot()
        if fault.kind in REFUSALS:
            self._over[fault.kind] = now + fault.lasts
        if fault.target in self._agents:
            self.history.away.append((fault.target, now, now + fault.lasts))

    def _end(self, fault: Fault) -> None:
        world = self._world
        match fault.kind:
            case "kill server":
                world.start_server()
                self._down = False
            case "end server":
                world.start_server()
                self._down = False
            case "freeze server":
                assert world.server is not None
                world.server.send_signal(signal.SIGCONT)
            case "kill agent":
                self._agents[fault.target].start()
            case "freeze agent":
                self._agents[fault.target].signal(signal.SIGCONT)
            case "hang":
                self._agents[fault.target].proxy.heal()
            case "slow":
                self._agents[fault.target].proxy.delay(0.0)
            case "clock":
                world.clock.set(world.clock.offset - int(fault.what))
            case "disk":
                world.disk.free(world.server)

    def _operate(self, work: Callable[[], None]) -> None:
        operator = threading.Thread(target=work, name="operator")
        operator.start()
        self._operators.append(operator)

    def _restart(self) -> None:
        """An operator says `apsisctl restart`."""
        url = f"{self._world.url.removesuffix('/v1')}/control/shut_down"
        with suppress(requests.RequestException):
            requests.post(url, params={"restart": "true"}, timeout=5)

    def _lock(self, seconds: float) -> None:
        """Somebody's backup holds the database."""
        with suppress(sqlite3.OperationalError), closing(self._world.connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            db.rollback()

    def _back_up(self) -> None:
        """An operator copies the database while it is in use; each copy is whole."""
        copy = self._world.directory / "backup.db"
        copy.unlink(missing_ok=True)
        if self._world.back_up(copy):
            with closing(sqlite3.connect(copy)) as db:
                damage = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
            self.history.wrongs += [f"a backup is damaged: {text}" for text in damage]
            self.history.backups += not damage

    def _stop_some_run(self) -> None:
        """An operator stops a run, and trusts the answer."""
        url = self._world.url
        try:
            runs = requests.get(f"{url}/runs", params={"job_id": "long"}, timeout=5).json()["runs"].values()
            running = [run["run_id"] for run in runs if run["state"] == "running"]
            if running:
                run_id = running[-1]
                if requests.post(f"{url}/runs/{run_id}/stop", timeout=5).status_code == 200:
                    self.history.stopped.add(run_id)
        except (requests.RequestException, ValueError, KeyError):
            pass  # no answer: nothing was promised


def _boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
