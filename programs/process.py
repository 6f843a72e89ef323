"""One process of a run at an agent, followed from the start request to the last byte of its output.

fetching.py gets the output, verdicts.py judges the end, sudo.py carries signals to other users' programs.

Everything in Process is for the thread of its agent's connection, save start() and rejoin(). A run is
put in error only where its process provably has ended, or never was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from apsislib import wire
from apsislib.runs import Back, Finished, Json, Lost, Remark, Run, Running, Unplaced, Update
from apsislib.states import FINISHED, State
from apsislib.wire import FdHead
from programs import remains
from programs.base import Agents, Host, OutputLimit, Settings, lasting, signal_name
from programs.fetching import Fetching
from programs.sudo import UNCATCHABLE, BySudo
from programs.verdicts import conclusion, elapsed, ended_in_time, kept, output_length, unmet, verdict

log = logging.getLogger(__name__)

PROBE = 30.0  # seconds after a start without a word; an agent drops in silence what it cannot decode
# Results are pushed when a process ends, but an agent may lose a push: this long, and we ask.
SAFETY = 300.0
SAID = 4096  # bytes of its first output, where sudo may say that it refuses


class Program(Protocol):
    """What a process needs to know of its program."""

    @property
    def settings(self) -> Settings: ...
    @property
    def argv(self) -> tuple[str, ...]: ...
    @property
    def sudo_user(self) -> str | None: ...
    def spec(self, run: Run, proc_id: str) -> dict[str, Any]: ...
    def sudo(self, user: str) -> list[str]: ...
    def output_limit(self) -> OutputLimit: ...


class Process:
    """Watches one process (base.Watcher) and reports on its run."""

    def __init__(
        self, run: Run, proc_id: str, conn_id: str, host: Host, agents: Agents, program: Program
    ) -> None:
        self.run_id = run.run_id
        self.proc_id = proc_id
        self.conn_id = conn_id
        self._host = host
        self._agents = agents
        self._program = program
        self._state = lasting(run)
        # What is known of where the agent is, from before the process.
        self._place = {k: v for k, v in (run.meta.get("program") or {}).items() if k == "aws_ecs"}
        self._start_message = wire.proc_start_request({proc_id: program.spec(run, proc_id)})
        self._properties = self._start_message["specs"][proc_id].get("systemd_properties") or {}
        self._marked = False  # it was started with its ID in its environment, as far as is known
        self._warned = False  # of limits that were not applied
        self.started = run.state in (State.RUNNING, State.STOPPING)
        self.here = False  # its agent is connected
        self._told_lost = False
        # Which process of the agent the start was, or may have been, sent to.
        self._instance: str | None = (run.run_state or {}).get("agent")
        self._sent: float | None = None  # monotonic; when the start was written on this connection
        self._final: Json | None = None  # the result that says it ended
        self.ended = False  # Finished is reported; Forget will follow
        self._pid: int | None = None
        self._sudo: BySudo | None = None
        if (user := program.sudo_user) is not None:
            self._sudo = BySudo(agents, conn_id, program.sudo(user), self._signalled_by_sudo)
        self._update_due: float | None = None
        self._update = False  # the next result is to be stored
        self._limit = program.output_limit()
        self._output = Fetching(
            self,
            host,
            agents,
            self._limit,
            program.settings.output_interval,
            0 if user is None else SAID,
        )

    @property
    def over(self) -> bool:
        """Its agent has told that it ended; for any thread."""
        return self._final is not None

    # -- from the thread of programs -----------------------------------------------------------------

    def start(self) -> None:
        """Send the start, as the first thing that this agent hears of the process."""
        self.here = self._marked = True
        if not self._agents.watch(self.proc_id, self.conn_id, self, self._start_message, self._fate):
            self._fate(False)

    def rejoin(self) -> None:
        """Look for the process after a restart of the server; its output goes on where the store ends."""
        self._output.resume()
        if not self._agents.watch(self.proc_id, self.conn_id, self, rejoin=True):
            self._tell_lost()

    # -- the connection ------------------------------------------------------------------------------

    def _fate(self, written: bool) -> None:
        """Of the start request."""
        if written:
            self._sent = self._now()
            self._instance = self._agents.instance(self.conn_id)
            self._agents.poll(self.proc_id)
        elif not self.started and not self.ended:
            self._unplace(f"agent {self.conn_id} was lost before the start was sent to it")

    def _unplace(self, reason: str) -> None:
        """Provably this agent has not started it: another may."""
        self.ended = True
        self._agents.unwatch(self.proc_id)
        if self._told_lost:
            self._host.report(self.run_id, Back(self.conn_id))  # ends the reconnect timeout
        self._host.report(self.run_id, Unplaced(reason))

    def lost(self) -> None:
        self.here = False
        self._output.lost()
        self._sent = None
        if self.ended:
            return
        if self._final is not None and self._output.whole:
            self._output.finish()  # it only waited for the disk
            return
        if self._final is not None:
            state, why = verdict(self._final, self._program.argv[0])
            text = f"the program had ended ({state}{f': {why}' if why else ''})"
            self.remark(
                f"{text}; {self._output.left} bytes of its output are still with agent {self.conn_id}"
            )
        self._tell_lost()

    def _tell_lost(self) -> None:
        self._told_lost = True
        self._host.report(self.run_id, Lost(self.conn_id, self._agents.heard(self.conn_id)))

    def registered(self, listed: bool) -> None:
        self.here = True
        run = self._host.run(self.run_id)
        if run is None:  # it has ended, and is on disk, which says whether the record is still wanted
            self._agents.abandon(self.proc_id, self.conn_id)
        if self.ended or run is None or run.state in FINISHED:
            self.ended = True  # Forget follows, once the verdict is on disk
            return
        self._told_lost = False
        self._host.report(self.run_id, Back(self.conn_id))
        if not listed:
            self._absent()
            return
        self._update = True
        self._ask_result()
        now = self._now()
        self._update_due = now + self._update_interval
        state = run.run_state or {}
        names = state.get("signals") or ()
        if names and not self.over and (run.state is State.STOPPING or state.get("timed_out") is not None):
            self._signal_again(str(names[-1]))
        self._output.back(now)

    def _absent(self) -> None:
        """The agent is here and has no record of the process."""
        if self._final is not None:
            self.conclude()
        elif self.started:
            why = "the agent was restarted, or the record deleted; its program may go on"
            self._finish(State.ERROR, f"agent {self._agent()} no longer has the process: {why}")
        elif self._instance is None or self._instance != self._agents.instance(self.conn_id):
            # The process that it was sent to is no more, but the program may be: it outlives agents.
            text = "was restarted while the start was on its way to it: the program may have started"
            self._finish(State.ERROR, f"agent {self._agent()} {text}")
        elif not self._agents.send(self.conn_id, self._start_message, self._fate):
            # What was sent on an older connection never came: the agent would list it. So once more,
            # or elsewhere if that can't be sent either.
            self._fate(False)

    def gone(self) -> None:
        if self.ended:
            return
        if self._final is not None:
            self.conclude()
        elif self.started:
            self._finish(
                State.ERROR, f"agent {self._agent()} shut down without telling how the process ended"
            )
        else:
            self._finish(State.ERROR, f"agent {self._agent()} shut down: the program may have started")

    # -- what the agent says -------------------------------------------------------------------------

    def result(self, res: Json) -> None:
        self._output.result_came()
        if self.ended or self._final is not None:
            return
        self._heed_warnings(res)
        if isinstance(res.get("pid"), int):
            self._pid = res["pid"]
            self._signal_by_sudo()
        if res.get("state") == "running":
            self._running(res)
            return
        if not self.started and res.get("state") != "error":
            self._running(res)
        self._final = res
        self._output.ended(output_length(res))
        self._sweep(res)
        stdout = (res.get("fds") or {}).get("stdout")
        if isinstance(stdout, Mapping) and stdout.get("type") == "error":
            self._output.give_up("the agent could not read the output")
        self._output.pull()

    def _sweep(self, res: Json) -> None:
        """Whoever is killed, or told to end, does not see to its children any more."""
        run = self._host.run(self.run_id)
        signalled = ((run.run_state if run is not None else None) or {}).get("signals")
        status = res.get("status")
        killed = isinstance(status, Mapping) and status.get("signum") is not None
        if self._pid is not None and (killed or signalled):
            took = elapsed(res) or 0.0
            told = partial(self._host.note, self.run_id)
            process = (self._pid, self.proc_id, self.run_id)
            remains.sweep(self._agents, self.conn_id, process, took, self._marked, told)

    def _running(self, res: Json) -> None:
        meta = self._meta(res)
        if not self.started:
            self.started = True
            state = self._state | {"proc_id": self.proc_id, "conn_id": self.conn_id}
            self._host.report(self.run_id, Running(state, meta))
            now = self._now()
            self._output.started(now)
            self._update_due = now + self._update_interval
            self._agents.poll(self.proc_id)
        elif self._update:
            self._host.report(self.run_id, Update(meta))
        self._update = False

    def _heed_warnings(self, res: Json) -> None:
        """Say what the agent could not do for the process, as ours tells; of others it can be inferred."""
        limits = self._properties.get("slice") or {}
        if not self._warned:
            for text in unmet(res, limits) if limits else ():
                self._warned = True
                self.remark(f"agent {self._agent()}{text}")

    def unknown(self) -> None:
        if self.ended:
            return
        if self._final is not None:
            self.conclude()
        elif self.started:
            self._finish(State.ERROR, f"agent {self._agent()} no longer knows the process")
        elif self._sent is None:  # on this connection: what became of an older start is not known
            text = f"agent {self._agent()} does not know the process: the program may have started"
            self._finish(State.ERROR, text)
        else:
            why = " (resources need an agent of version 0.5.0 or later)" if self._properties else ""
            text = f"agent {self._agent()} is too old or refused the specification: nothing was started"
            self._finish(State.ERROR, text + why)

    def deleted(self) -> None:
        if self.ended:
            return
        if self._final is not None:
            self.conclude()
        else:
            text = f"the record of the process at agent {self._agent()} was deleted by somebody else"
            self._finish(State.ERROR, text)

    def error(self, msg: Json, err: str) -> None:
        if self.ended:
            return
        kind = msg.get("type")
        if kind == "ProcStartRequest":
            self._start_refused(err)
        elif kind == "ProcSignalRequest":
            self._signal_refused(msg.get("signum"), err)
        elif kind == "ProcFdDataRequest":
            self._output.refused(err)
            if self._final is not None:
                self.conclude()
        else:
            log.warning("agent %s refused %s for run %s: %s", self.conn_id, kind, self.run_id, err)

    def _start_refused(self, err: str) -> None:
        if self.started or err.startswith("duplicate proc id"):
            self._ask_result()  # it is there, from an earlier request
        elif err.startswith("agent shutting down"):
            self._agents.drain(self.conn_id)
            self._unplace(f"agent {self._agent()} is shutting down")
        else:
            self._finish(State.ERROR, f"start failed: agent {self._agent()}: {err}")

    def head(self, head: FdHead) -> None:
        self._output.head(head)

    def data(self, piece: bytes) -> None:
        self._output.data(piece)

    def end(self) -> None:
        self._output.answered()

    # -- signals -------------------------------------------------------------------------------------

    def signal(self, signum: int, fate: Callable[[bool], None] | None = None) -> None:
        """(any thread) Send a signal to the program; `fate` as for Agents.send."""
        if self._sudo is not None and signum in UNCATCHABLE:
            if self.here:
                self._sudo.put(signum)
                self._agents.poll(self.proc_id)
            elif fate is not None:
                fate(False)
        else:
            sent = self._agents.send(self.conn_id, wire.proc_signal_request(self.proc_id, signum), fate)
            if not sent and fate is not None:
                fate(False)

    def _signal_again(self, name: str) -> None:
        """What was to end it may have been lost with the connection."""
        signum = next((n for n in range(1, 32) if signal_name(n) == name), None)
        if signum is not None:
            self.signal(signum)

    def _signal_refused(self, signum: Any, err: str) -> None:
        if self.over:
            return
        name = signal_name(signum) if isinstance(signum, int) else "a signal"
        if err == "no process":
            self._ask_result()  # it has ended; perhaps the push with its result was lost
        elif "os error 1)" not in err or self._sudo is None or not isinstance(signum, int):
            self.remark(f"{name} was refused: {err}")
        else:
            self.remark(f"{name} was refused ({err}): trying kill through sudo")
            self._sudo.put(signum)
            self._signal_by_sudo()

    def _signal_by_sudo(self) -> None:
        if self._sudo is not None and self._pid is not None and not self.over:
            self._sudo.send(self._pid)

    def _signalled_by_sudo(self, signum: int, failure: str | None) -> None:
        if self.ended or self.over:
            return
        name = signal_name(signum)
        if failure is None:
            self.remark(f"{name} was sent through sudo")
        else:
            self.remark(f"{name} was not sent: kill through sudo failed: {failure}")

    # -- time ----------------------------------------------------------------------------------------

    @property
    def _update_interval(self) -> float:
        return self._program.settings.update_interval or SAFETY

    def poll(self, now: float) -> float | None:
        if self.ended or not self.here:
            return None
        self._signal_by_sudo()
        if self._output.overdue(now):
            self._ask_result()
        if not self.started and self._final is None and self._sent is not None and now >= self._sent + PROBE:
            self._sent = now
            self._ask_result()
        if self.started and self._final is None and self._update_due is not None and now >= self._update_due:
            self._update_due = now + self._update_interval
            self._update = self._program.settings.update_interval is not None
            self._ask_result()
        self._output.pull_if_due(now)
        dues = [self._output.next_due()]
        if not self.started and self._sent is not None:
            dues.append(self._sent + PROBE)
        if self.started and self._final is None:
            dues.append(self._update_due)
        return None if self.ended else min((due for due in dues if due is not None), default=None)

    # -- the end -------------------------------------------------------------------------------------

    def conclude(self) -> None:
        """Report the verdict of the final result."""
        assert self._final is not None
        self._output.close()
        run = self._host.run(self.run_id)
        run_state = (run.run_state if run is not None else None) or {}
        program = self._program
        state, message = conclusion(
            self._final,
            run_state,
            program.argv[0],
            self._limit,
            (self._properties.get("slice") or {}).get("memory_max"),
            program.sudo_user,
            bytes(self._output.said),
        )
        if ended_in_time(self._final, run_state):
            took = elapsed(self._final)
            self.remark(f"its agent says that the program ran for {took:.3g} s: it had ended within its time")
        meta = self._meta(self._final)
        meta["stop"] = {"signals": list(run_state.get("signals") or ())}
        if self._output.missing is not None:
            meta["output_incomplete"] = self._output.missing
        self._finish(state, message, meta)

    def _finish(self, state: State, message: str | None, meta: Json | None = None) -> None:
        self.ended = True
        self._host.report(self.run_id, Finished(state, message, meta))

    # -- words ---------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._host.clock.monotonic()

    def _ask_result(self) -> None:
        self._agents.send(self.conn_id, wire.proc_result_request(self.proc_id))

    def remark(self, text: str) -> None:
        self._host.report(self.run_id, Remark(text))

    def _agent(self) -> str:
        record = self._agents.record(self.conn_id)
        host = record["info"]["proc"].get("hostname") if record else None
        return f"{self.conn_id} ({host})" if host else self.conn_id

    def _meta(self, res: Json) -> dict[str, Any]:
        """What is kept of a result with the run."""
        meta = {"errors": list(res.get("errors") or ()), **self._place, **kept(res)}
        meta["procstar_proc_id"] = self.proc_id
        record = self._agents.record(self.conn_id)
        if record:
            meta["procstar_conn"] = record["info"]["conn"]
            meta["procstar_agent"] = record["info"]["proc"]
        return meta
