"""The truth about a run that was given up, when its agent comes back with the process after all.

Such a run is an error for good, as far as the server is concerned: its slot is free, its actions are
done, others may have acted on it. But what became of its program is worth knowing. So its process is
followed as any other, its output stored, and its end written into the run's log and offered to the
operator, who may mark the run accordingly. Nothing is kept in memory for it until it is back: the ID of
the process names its run, and the run's record says that it was given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from apsislib.runs import Finished, Json, Limits, Lost, Remark, Report, Run, run_number, signal_name
from apsislib.states import FINISHED, State
from programs.base import Agents, Host, run_of_proc


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
        given_up: Json = (run.meta.get("given_up") or {}) if run is not None else {}
        wanted = given_up.get("proc_id") == proc_id and run is not None and "late_verdict" not in run.meta
        program = self._load(run.program or {}).at_agent(run) if wanted and run is not None else None
        if run is None or run.state not in FINISHED or program is None:
            self._agents.dismiss(proc_id, conn_id, res)
            return
        before = _as_it_was(run, given_up, program.limits(), self._host.clock.wall())
        if res.get("state") == "running":
            text = f"agent {conn_id} is back and still runs the program (pid {res.get('pid')})"
            ordered = (before.run_state or {}).get("signals")
            self._host.note(run_id, f"{text}, which was to end: sending {ordered[-1]}" if ordered else text)
        program.connect(before, _Afterwards(self._host, self._agents, before, conn_id, proc_id))


def _as_it_was(run: Run, given_up: Json, limits: Limits, wall: float) -> Run:
    """The run as it was when it was given up. What was to end it then is to end it now.

    "kill_in" of its run_state: seconds from the agent's return to SIGKILL, of which no alarm of the kernel
    reminds any more.
    """
    state, run_state = State(given_up["state"]), dict(given_up)
    if given_up.get("stop_asked"):  # as soon as it runs, which it does, or did
        state = State.STOPPING
        run_state |= {"signals": [signal_name(limits.stop_signal)], "kill_in": limits.grace}
    elif "kill_at" in given_up:
        run_state["kill_in"] = max(0.0, given_up["kill_at"] - wall)
    return run.but(state=state, run_state=run_state)


class _Afterwards:
    """The server as the process of such a run sees it: the run is as it was when it was given up."""

    def __init__(self, host: Host, agents: Agents, run: Run, conn_id: str, proc_id: str) -> None:
        self._host = host
        self._agents = agents
        self._run = run
        self._conn_id = conn_id
        self._proc_id = proc_id
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

    def report(self, run_id: str, report: Report) -> None:
        match report:
            case Lost():
                # When the agent is back the process is found again, as it was this time.
                self._agents.unwatch(self._proc_id)
            case Remark(text):
                self._host.note(run_id, text)
            case Finished(state, message, meta):

                def store_a_late_verdict() -> None:
                    self.offer(run_id, state, message, meta)

                self.insist(store_a_late_verdict)
            case _:
                pass
