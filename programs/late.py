"""The truth about a run that was given up, when its agent comes back with the process after all.

Such a run is an error for good, as far as the server is concerned: its slot is free, its actions are
done, others may have acted on it. But what became of its program is worth knowing. So its process is
followed as any other, its output stored, and its end written into the run's log and offered to the
operator, who may mark the run accordingly. A stop, its timeout and its stop time end it as they would
have ended the run. Nothing is kept in memory for it until it is back: the ID of the process names its run,
and the run's record says that it was given up, and what is to end it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from signal import SIGKILL
from typing import Any

from apsislib.runs import (
    Alarm,
    Finished,
    Json,
    Limits,
    Lost,
    Remark,
    Report,
    Run,
    adrift,
    run_number,
    signal_name,
)
from apsislib.states import FINISHED, State
from programs.base import Agents, Host, number, run_of_proc
from programs.process import Process, Program
from programs.verdicts import elapsed


class Truths:
    """Looks after processes that no live run watches (see AgentServer's `claimed`)."""

    def __init__(self, load: Callable[[Json], Any], host: Host, agents: Agents) -> None:
        """`load` makes the program of a stored run."""
        self._load = load
        self._host = host
        self._agents = agents
        self._lock = threading.Lock()  # protects _asked
        # By proc_id, what was last heard of it and from whom, until its run has been read from the database.
        self._asked: dict[str, tuple[str, Json]] = {}

    def claimed(self, conn_id: str, proc_id: str, res: Json) -> bool:
        """(an agent's thread) Whether the process may be that of a run of ours; then it is looked up."""
        run_id = run_of_proc(proc_id)
        if run_number(run_id) is None:
            return False
        with self._lock:
            asked = proc_id in self._asked
            self._asked[proc_id] = conn_id, res
        if not asked:

            def look_up_a_late_process() -> None:
                self._follow(run_id, proc_id)

            self._host.insist(look_up_a_late_process)
        return True

    def _follow(self, run_id: str, proc_id: str) -> None:
        """(a hand) Follow the process if its run was given up. Raises Unavailable."""
        run = self._host.stored(run_id)
        with self._lock:
            asked = self._asked.pop(proc_id, None)
        if asked is None:
            return  # it failed for another reason than the database, as the log says
        conn_id, res = asked
        if run is not None and run.state not in FINISHED and (run.run_state or {}).get("proc_id") == proc_id:
            return  # it will be watched: its record is the only witness of what became of it
        given_up: Json = (None if run is None else adrift(run)) or {}
        program = None
        if run is not None and given_up.get("proc_id") == proc_id:
            program = self._load(run.program or {}).at_agent(run)
        if run is None or program is None:
            self._agents.dismiss(proc_id, conn_id, res)
            return
        limits = program.limits()
        before = _as_it_was(run, given_up, limits)
        dues: dict[Alarm, float] = {}
        if res.get("state") == "running":
            dues = _dues(before, limits, elapsed(res) or 0.0, self._host.clock.wall())
            ordered = (before.run_state or {}).get("signals")
            text = f"runs the program (pid {res.get('pid')})"
            if ordered:
                text = f"agent {conn_id} {text}, which is to end: sending {ordered[-1]}"
            else:
                text = f"agent {conn_id} is back and still {text}"
            self._host.note(run_id, text)
        after = _Afterwards(self._host, self._agents, before, proc_id)
        _LateProcess(after, before, conn_id, program, limits, dues).rejoin()

        def look_whether_that_still_holds() -> None:
            """A stop that came before it was watched has found nobody who could let go of it."""
            now = self._host.stored(run_id)
            if now is None or adrift(now) != given_up:
                self._agents.abandon(proc_id, conn_id)

        self._host.insist(look_whether_that_still_holds)


def _as_it_was(run: Run, given_up: Json, limits: Limits) -> Run:
    """The run as it was when it was given up. What was to end it then is to end it now."""
    state, run_state = State(given_up["state"]), dict(given_up)
    if given_up.get("stop_asked"):  # as soon as it runs, which it does, or did
        state = State.STOPPING
        run_state["signals"] = [signal_name(limits.stop_signal)]
    return run.but(state=state, run_state=run_state)


def _dues(before: Run, limits: Limits, ran: float, wall: float) -> dict[Alarm, float]:
    """In how many seconds something is due that no alarm of the kernel reminds of any more.

    `ran`: for how many seconds its agent says that the program has been running.
    """
    state = before.run_state or {}
    dues: dict[Alarm, float] = {}
    if state.get("stop_asked") and limits.grace is not None:
        dues[Alarm.GRACE] = limits.grace
    elif "kill_at" in state:
        dues[Alarm.GRACE] = state["kill_at"] - wall
    if before.state is State.STOPPING:
        return dues
    if limits.timeout is not None and "timed_out" not in state:
        begun = before.times.get("running")
        if begun is not None:
            ran = wall - begun - state.get("stepped", 0.0)
        dues[Alarm.TIMEOUT] = limits.timeout - ran
    if "stop" in before.times:
        dues[Alarm.STOP] = before.times["stop"] - wall
    return dues


class _LateProcess(Process):
    """The process of such a run. Its stop, timeout and SIGKILL are its own affair."""

    def __init__(
        self,
        after: _Afterwards,
        before: Run,
        conn_id: str,
        program: Program,
        limits: Limits,
        dues: dict[Alarm, float],
    ) -> None:
        super().__init__(before, after.proc_id, conn_id, after, after.agents, program)
        self._after = after
        self._limits = limits
        now = self._now()
        self._dues = {alarm: now + seconds for alarm, seconds in dues.items()}  # monotonic

    def poll(self, now: float) -> float | None:
        for alarm in sorted(self._dues, key=self._dues.__getitem__):
            if self.here and not self.over and self._dues.get(alarm, inf) <= now:
                self._ring(alarm, now)
        due = super().poll(now)
        if self.ended or self.over or not self.here:
            return due
        return min((*self._dues.values(), *(() if due is None else (due,))), default=None)

    def _ring(self, alarm: Alarm, now: float) -> None:
        """As the kernel does for a live run."""
        limits = self._limits
        del self._dues[alarm]
        if alarm is Alarm.GRACE:
            self._order(SIGKILL)
            return
        if alarm is Alarm.STOP:
            self.remark("its stop time has come")
            self._dues.pop(Alarm.TIMEOUT, None)
            self._order(limits.stop_signal, State.STOPPING)
        else:
            after = limits.timeout or 0.0
            self.remark(f"timeout after {number(after)} s")
            self._order(limits.timeout_signal, timed_out=after)
        if limits.grace is not None:
            self._dues[Alarm.GRACE] = now + limits.grace

    def _order(self, signum: int, state: State | None = None, **more: Any) -> None:
        name = signal_name(signum)
        self._after.ordered(name, state, more)
        self.remark(f"sending {name}")
        self.signal(signum)


class _Afterwards:
    """The server as the process of such a run sees it: the run is as it was when it was given up."""

    def __init__(self, host: Host, agents: Agents, run: Run, proc_id: str) -> None:
        self._host = host
        self._run = run
        self.proc_id = proc_id
        self.clock = host.clock
        self.agents = agents
        self.put_output = host.put_output
        self.output_length, self.output_waiting = host.output_length, host.output_waiting
        self.output_full = host.output_full
        self.spawn, self.insist = host.spawn, host.insist
        self.stats = host.stats
        self.upkeep = host.upkeep
        self.stored, self.note, self.offer = host.stored, host.note, host.offer

    def run(self, run_id: str) -> Run:
        return self._run

    def ordered(self, name: str, state: State | None, more: Json) -> None:
        """The signal is sent to end it; `more` of its run_state."""
        was = self._run.run_state or {}
        signals = [*(was.get("signals") or ()), name]
        self._run = self._run.but(
            state=state or self._run.state, run_state={**was, **more, "signals": signals}
        )

    def report(self, run_id: str, report: Report) -> None:
        match report:
            case Lost():
                # When the agent is back the process is found again, as it was this time.
                self.agents.unwatch(self.proc_id)
            case Remark(text):
                self._host.note(run_id, text)
            case Finished(state, message, meta):

                def store_a_late_verdict() -> None:
                    self.offer(run_id, state, message, meta)

                self.insist(store_a_late_verdict)
            case _:
                pass
