"""Hand-written doubles for tests of programs: the server as programs see it, and agents that only listen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from apsislib.clock import Clock, SimClock
from apsislib.runs import Finished, Launched, Placed, Remark, Report, Run, Running, Unplaced, Update
from apsislib.states import State

TIMEOUT = 60.0  # seconds; only a failure takes so long

R = TypeVar("R")


class FakeHost:
    """Keeps runs and output in memory, and every report. Commits at once; calls no program by itself."""

    def __init__(self, agents: Any = None, clock: Clock | None = None) -> None:
        self.clock = clock or SimClock(wall=1_700_000_000.0)
        self.agents = agents
        self.full = False
        self.waiting = 0  # bytes of output that are not on disk
        self.runs: dict[str, Run] = {}
        self.reports: list[tuple[str, Report]] = []
        self.outputs: dict[str, bytearray] = {}
        self.asked = 0  # how often output_full was
        self.offers: list[tuple[str, State, str | None]] = []
        self.stats = self.upkeep = None
        self._changed = threading.Condition()

    def add(self, run: Run) -> Run:
        self.runs[run.run_id] = run
        return run

    def report(self, run_id: str, report: Report) -> None:
        with self._changed:
            self.reports.append((run_id, report))
            run = self.runs.get(run_id)
            if run is not None:
                self.runs[run_id] = _after(run, report)
            self._changed.notify_all()

    def run(self, run_id: str) -> Run | None:
        return self.runs.get(run_id)

    def stored(self, run_id: str) -> Run | None:
        return self.runs.get(run_id)

    def offer(self, run_id: str, state: State, message: str | None, meta: Any) -> None:
        self.offers.append((run_id, state, message))

    def note(self, run_id: str, text: str) -> None:
        self.report(run_id, Remark(text))

    def put_output(self, run_id: str, output_id: str, offset: int, data: bytes, **kind: str) -> None:
        with self._changed:
            stored = self.outputs.setdefault(run_id, bytearray())
            assert offset == len(stored), f"output at {offset} after {len(stored)} bytes"
            stored += data
            self._changed.notify_all()

    def output_length(self, run_id: str, output_id: str) -> int:
        return len(self.outputs.get(run_id, b""))

    def output_full(self) -> bool:
        self.asked += 1
        return self.full

    def output_waiting(self, run_id: str) -> int:
        return self.waiting

    def spawn(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="hand").start()

    def insist(self, work: Callable[[], None]) -> None:
        self.spawn(work)

    def change(self, run_id: str, **fields: Any) -> Run:
        self.runs[run_id] = replace(self.runs[run_id], **fields)
        return self.runs[run_id]

    def of(self, kind: type[R], run_id: str | None = None) -> list[R]:
        """The reports of a kind, in order."""
        return [r for i, r in list(self.reports) if isinstance(r, kind) and run_id in (None, i)]

    def wait(self, kind: type[R], count: int = 1, run_id: str | None = None) -> R:
        """The count-th report of a kind, when it has come."""
        self.until(lambda: len(self.of(kind, run_id)) >= count)
        return self.of(kind, run_id)[count - 1]

    def until(self, holds: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(holds, TIMEOUT), self.reports


def _after(run: Run, report: Report) -> Run:
    """Roughly what the kernel makes of a report."""
    match report:
        case Launched(state, meta):
            return replace(run, run_state=state, meta={"program": meta})
        case Placed(state):
            return replace(run, run_state=state)
        case Unplaced():
            return replace(run, run_state={k: v for k, v in (run.run_state or {}).items() if k != "conn_id"})
        case Running(state, meta):
            return replace(run, state=State.RUNNING, run_state=state, meta={"program": meta})
        case Update(meta):
            return replace(run, meta={"program": meta})
        case Finished(state, _, meta) if run.state not in (State.SUCCESS, State.FAILURE, State.ERROR):
            return replace(run, state=state, meta={"program": meta})
    return run


class FakeAgents:
    """One agent, `A`: what is sent to it is kept; what it says is said by the test."""

    def __init__(self) -> None:
        self.here = True
        self.full = False
        self.sent: list[dict[str, Any]] = []
        self.watchers: dict[str, Any] = {}
        self.forgotten: list[str] = []
        self.drained: list[str] = []
        self.wanting: list[Callable[[], None]] = []
        self.abandoned: list[str] = []
        self.life = "A's first"

    def choose(self, group_id: str) -> str | None:
        return "A" if self.here and not self.drained else None

    def when_available(self, group_id: str, callback: Callable[[], None], wanted: Any = None) -> None:
        self.wanting.append(callback)

    def watch(
        self,
        proc_id: str,
        conn_id: str,
        watcher: Any,
        message: Any = None,
        fate: Any = None,
        rejoin: bool = False,
    ) -> bool:
        if not self.here and not rejoin:
            return False
        self.watchers[proc_id] = watcher
        if self.here and message is not None:
            self.send(conn_id, message, fate)
        return self.here

    def unwatch(self, proc_id: str) -> None:
        self.watchers.pop(proc_id, None)

    def watcher(self, proc_id: str) -> Any:
        return self.watchers.get(proc_id)

    def forget(self, proc_id: str, conn_id: str) -> None:
        self.unwatch(proc_id)
        self.forgotten.append(proc_id)

    def send(self, conn_id: str, message: Mapping[str, Any], fate: Any = None) -> bool:
        if not self.here:
            return False
        self.sent.append(dict(message))
        if fate is not None:
            fate(True)
        return True

    def abandon(self, proc_id: str, conn_id: str) -> None:
        self.unwatch(proc_id)
        self.abandoned.append(proc_id)

    def dismiss(self, proc_id: str, conn_id: str, res: Mapping[str, Any]) -> None:
        self.forgotten.append(proc_id)

    def instance(self, conn_id: str) -> str:
        return self.life

    def heard(self, conn_id: str) -> None: ...

    def poll(self, proc_id: str) -> None: ...

    def drain(self, conn_id: str) -> None:
        self.drained.append(conn_id)

    def record(self, conn_id: str) -> dict[str, Any]:
        conn = {"conn_id": conn_id, "group_id": "default", "restricted_exe": None}
        return {"shutdown_state": "active", "info": {"conn": conn, "proc": {"pid": 7, "hostname": "node1"}}}

    def take(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What was sent since the last look; of one type if given."""
        sent, self.sent = self.sent, []
        return [m for m in sent if kind is None or m["type"] == kind]


def result(state: str = "running", length: int = 0, **more: Any) -> dict[str, Any]:
    """A ProcResult's `res`."""
    res: dict[str, Any] = {
        "state": state,
        "errors": [],
        "pid": 4133,
        "proc_stat": {"pid": 4133},
        "proc_statm": None,
        "times": {"start": "2026-03-04T05:06:07.123456789+00:00", "stop": None, "elapsed": 1.5},
        "status": None,
        "rusage": None,
        "fds": {"stderr": None, "stdout": {"type": "detached", "length": length, "encoding": "base64"}},
    }
    return res | more


def ended(code: int = 0, length: int = 0, **more: Any) -> dict[str, Any]:
    status = {"status": code << 8, "exit_code": code, "signum": None, "signal": None, "core_dump": False}
    return result("terminated", length, status=status, **more)


def killed(signum: int, name: str, length: int = 0) -> dict[str, Any]:
    status = {"status": signum, "exit_code": None, "signum": signum, "signal": name, "core_dump": False}
    return result("terminated", length, status=status)
