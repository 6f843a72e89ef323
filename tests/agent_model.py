"""Agents in miniature for stage.py: what they hold, what they answer, and the line to the server.

They live on when the server is killed, and write down what they started, as in a ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faultpoints import Fault, Killed

from apsislib import wire
from apsislib.clock import SimClock


class Program:
    """`/bin/work SECONDS [deaf]`: prints a line a second; ends on SIGTERM unless it is deaf."""

    def __init__(self, spec: Mapping[str, Any], start: float) -> None:
        self.run_id = spec["env"]["vars"]["APSIS_RUN_ID"]
        _, seconds, *how = spec["argv"]
        self.start = start
        self.ends = start + float(seconds)
        self.deaf = "deaf" in how
        self.signum = 0
        self.told = False  # its end

    def over(self, now: float) -> bool:
        return now >= self.ends

    def output(self, now: float) -> bytes:
        lines = int(min(now, self.ends) - self.start) + 1
        return b"".join(b"%s %d\n" % (self.run_id.encode(), n) for n in range(lines))

    def signal(self, signum: int, now: float) -> None:
        if not self.over(now) and (signum == 9 or not self.deaf):
            self.ends = now
            self.signum = signum if signum == 9 else 0

    def result(self, now: float) -> dict[str, Any]:
        over = self.over(now)
        status = {"exit_code": None if self.signum else 0, "signum": self.signum or None}
        if self.signum:
            status["signal"] = "SIGKILL"  # type: ignore[assignment]
        stdout = {"type": "detached", "length": len(self.output(now)), "encoding": "base64"}
        return {
            "state": "terminated" if over else "running",
            "errors": [],
            "pid": 7,
            "status": status if over else None,
            "fds": {"stdout": stdout},
        }


class Model:
    """An agent: what it holds, and what it says to what."""

    def __init__(self, conn_id: str, clock: SimClock) -> None:
        self.conn_id = conn_id
        self.held: dict[str, Program] = {}
        self.starts: list[str] = []  # run IDs
        self.outputs: dict[str, bytes] = {}  # of programs that have ended, by run ID
        self.line: Line | None = None
        self.back_at = 0.0  # boot instant at which it connects
        self._clock = clock

    def register(self) -> dict[str, Any]:
        names = ("pid", "ppid", "uid", "euid", "username", "gid", "egid", "groupname", "hostname")
        conn = {"conn_id": self.conn_id, "group_id": "default", "restricted_exe": None}
        proc = dict.fromkeys(names, None) | {"pid": 7, "hostname": "here"}
        return wire.register(conn, proc, self.held, "", "active", f"life of {self.conn_id}")

    def handle(self, message: Mapping[str, Any]) -> None:
        """A request of the server's; answers go into the line, if there is still one."""
        now = self._clock.boot()
        kind, proc_id = message["type"], message.get("proc_id", "")
        if kind == "ProcStartRequest":
            ((proc_id, spec),) = message["specs"].items()
            if spec["argv"][0] != "/bin/work":  # what looks for the remains of one: there are none
                self.say(wire.proc_result(proc_id, {"state": "terminated", "status": {"exit_code": 0}}))
                return
            if proc_id in self.held:
                self.say(wire.request_error(message, f"duplicate proc id: {proc_id}"))
                return
            program = self.held[proc_id] = Program(spec, now)
            self.starts.append(program.run_id)
            self.say(wire.proc_result(proc_id, program.result(now)))
        elif kind == "Registered" or (kind == "ProcDeleteRequest" and proc_id not in self.held):
            pass
        elif proc_id not in self.held:
            self.say(wire.proc_unknown(proc_id))
        elif kind == "ProcResultRequest":
            self.say(wire.proc_result(proc_id, self.held[proc_id].result(now)))
        elif kind == "ProcSignalRequest":
            if self.held[proc_id].over(now):
                self.say(wire.request_error(message, "no process"))
            else:
                self.held[proc_id].signal(message["signum"], now)
        elif kind == "ProcFdDataRequest":
            data = self.held[proc_id].output(now)[message["start"] : message["stop"]]
            self.say(wire.proc_fd_data(proc_id, "stdout", message["start"], data))
        elif kind == "ProcDeleteRequest":
            assert self.held[proc_id].over(now)
            del self.held[proc_id]
            self.say(wire.proc_delete(proc_id))

    def tell_ends(self) -> None:
        now = self._clock.boot()
        for proc_id, program in list(self.held.items()):
            if program.over(now) and not program.told:
                program.told = True
                self.outputs[program.run_id] = program.output(now)
                self.say(wire.proc_result(proc_id, program.result(now)))

    def say(self, message: Mapping[str, Any]) -> None:
        if self.line is not None:
            self.line.said.append(wire.encode(message))

    def next_event(self) -> float | None:
        """The boot instant at which it does something by itself."""
        if self.line is None:
            return self.back_at
        return min((p.ends for p in self.held.values() if not p.told), default=None)


class Line:
    """A connection of an agent: what links.Link asks of one."""

    peer = ("127.0.0.1", 40000)
    pending = 0

    def __init__(self, model: Model, clock: SimClock, fault: Fault) -> None:
        self.model = model
        self.said: list[bytes] = []  # by the agent, not yet read
        self.sent: list[bytes] = []  # by the server, not yet read
        self.broken = False
        self._clock = clock
        self._fault = fault

    @property
    def last_received(self) -> float:
        return self._clock.monotonic()

    def send(self, data: bytes) -> bool:
        if self.broken:
            return False
        match self._fault.at("send"):
            case "lost":
                self.broken = True
                return False
            case "cut":
                self.broken = True
                return True
            case "before":
                raise Killed
            case "after":
                self.sent.append(data)
                raise Killed
        self.sent.append(data)
        return True

    def wake(self) -> None: ...
    def ping(self) -> None: ...
    def abort(self, reason: str = "") -> None: ...
