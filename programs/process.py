"""One process of a run at an agent, followed from the start request to the last byte of its output.

Everything in Process is for the thread of its agent's connection, save start() and rejoin(). A run is
put in error only where its process provably has ended, or never was.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from signal import SIGKILL
from typing import Any, Protocol

from apsislib import wire
from apsislib.runs import Back, Finished, Json, Lost, Remark, Run, Running, Unplaced, Update
from apsislib.states import FINISHED, State
from apsislib.wire import FdHead
from programs import remains
from programs.base import (
    OUTPUT,
    OUTPUT_NAME,
    OUTPUT_TYPE,
    Agents,
    Host,
    OutputLimit,
    Settings,
    lasting,
    number,
    signal_name,
)
from programs.sudo import UNCATCHABLE, Signalling, refusal

log = logging.getLogger(__name__)

PROBE = 30.0  # seconds after a start without a word; an agent drops in silence what it cannot decode
ANSWER = 60.0  # seconds without a byte of the output that was asked for
ATTEMPTS = 3  # times that output is asked for in vain, before the verdict goes without it
SLICE = 4 * 1024 * 1024  # bytes asked for at once after the end: what may wait in memory for the disk
ROOM = 0.25  # seconds until it is looked again whether output can be stored
SAID = 4096  # bytes
WARNINGS = 10  # of an agent, about one process
NEAR = 0.97  # of a memory limit: whoever was killed there met it
# Results are pushed when a process ends, but an agent may lose a push: this long, and we ask.
SAFETY = 300.0


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
        self._limit = program.output_limit()
        self._start_message = wire.proc_start_request({proc_id: program.spec(run, proc_id)})
        self._properties = self._start_message["specs"][proc_id].get("systemd_properties") or {}
        self._marked = False  # it was started with its ID in its environment, as far as is known
        self._warned = False  # of limits that were not applied
        self._started = run.state in (State.RUNNING, State.STOPPING)
        self._here = False  # its agent is connected
        self._told_lost = False
        # Which process of the agent the start was, or may have been, sent to.
        self._instance: str | None = (run.run_state or {}).get("agent")
        self._sent: float | None = None  # monotonic; when the start was written on this connection
        self._final: Json | None = None  # the result that says it ended
        self._ended = False  # Finished is reported; Forget will follow
        self._pid: int | None = None
        self._through_sudo: deque[int] = deque()  # signals to send so; any thread appends
        self._under_way: set[int] = set()  # signals being sent so

        self._received = 0  # bytes of output handed to the store, the marker not counted
        self._end = 0  # bytes of output in all, once it has ended
        self._mute = False  # no more output is wanted, or to be had
        self._said = bytearray()  # its first output, where sudo may say there that it refuses
        self._at = 0  # offset of the next piece of an answer
        self._asked: float | None = None  # monotonic; an answer with output is outstanding since
        self._fenced = False  # a result was asked for, to see whether an answer with output still comes
        self._vain = 0  # answers in a row that brought nothing of what must be there
        self._output_due: float | None = None
        self._update_due: float | None = None
        self._update = False  # the next result is to be stored

    @property
    def over(self) -> bool:
        """Its agent has told that it ended; for any thread."""
        return self._final is not None

    # -- from the thread of programs -----------------------------------------------------------------

    def start(self) -> None:
        """Send the start, as the first thing that this agent hears of the process."""
        self._here = self._marked = True
        if not self._agents.watch(self.proc_id, self.conn_id, self, self._start_message, self._fate):
            self._fate(False)

    def rejoin(self) -> None:
        """Look for the process after a restart of the server; its output goes on where the store ends."""
        stored = self._host.output_length(self.run_id, OUTPUT)
        limit = self._limit.max_size
        if limit is not None and stored > limit:  # with its marker
            stored, self._mute = limit, True
        self._received = stored
        if not self._agents.watch(self.proc_id, self.conn_id, self, rejoin=True):
            self._tell_lost()

    # -- the connection ------------------------------------------------------------------------------

    def _fate(self, written: bool) -> None:
        """Of the start request."""
        if written:
            self._sent = self._now()
            self._instance = self._agents.instance(self.conn_id)
            self._agents.poll(self.proc_id)
        elif not self._started and not self._ended:
            self._unplace(f"agent {self.conn_id} was lost before the start was sent to it")

    def _unplace(self, reason: str) -> None:
        """Provably this agent has not started it: another may."""
        self._ended = True
        self._agents.unwatch(self.proc_id)
        if self._told_lost:
            self._host.report(self.run_id, Back(self.conn_id))  # ends the reconnect timeout
        self._host.report(self.run_id, Unplaced(reason))

    def lost(self) -> None:
        self._here = False
        self._asked, self._fenced = None, False
        self._sent = None
        if not self._ended:
            self._tell_lost()

    def _tell_lost(self) -> None:
        self._told_lost = True
        self._host.report(self.run_id, Lost(self.conn_id, self._agents.heard(self.conn_id)))

    def registered(self, listed: bool) -> None:
        self._here = True
        run = self._host.run(self.run_id)
        if run is None:
            self._agents.forget(self.proc_id, self.conn_id)
        if self._ended or run is None or run.state in FINISHED:
            self._ended = True  # Forget follows, once the verdict is on disk
            return
        self._told_lost = False
        self._host.report(self.run_id, Back(self.conn_id))
        if not listed:
            self._absent()
            return
        self._update = True
        self._ask_result()
        now = self._now()
        self._output_due = now
        self._update_due = now + self._update_interval
        state = run.run_state or {}
        names = state.get("signals") or ()
        if names and not self.over and (run.state is State.STOPPING or state.get("timed_out") is not None):
            self._signal_again(str(names[-1]))
        if self._mute and self._limit.kill and self._limit.max_size is not None and not self.over:
            self.signal(SIGKILL)

    def _absent(self) -> None:
        """The agent is here and has no record of the process."""
        if self._final is not None:
            self._conclude()
        elif self._started:
            why = "the agent was restarted, or the record deleted"
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
        if self._ended:
            return
        if self._final is not None:
            self._conclude()
        elif self._started:
            self._finish(
                State.ERROR, f"agent {self._agent()} shut down without telling how the process ended"
            )
        else:
            self._finish(State.ERROR, f"agent {self._agent()} shut down: the program may have started")

    # -- what the agent says -------------------------------------------------------------------------

    def result(self, res: Json) -> None:
        if self._fenced:
            self._unanswered()
        if self._ended or self._final is not None:
            return
        self._heed_warnings(res)
        if isinstance(res.get("pid"), int):
            self._pid = res["pid"]
            self._signal_through_sudo()
        if res.get("state") == "running":
            self._running(res)
            return
        if not self._started and res.get("state") != "error":
            self._running(res)
        self._final = res
        self._end = _length(res)
        self._sweep(res)
        stdout = (res.get("fds") or {}).get("stdout")
        if isinstance(stdout, Mapping) and stdout.get("type") == "error":
            self._give_up("the agent could not read the output")
        self._pull()

    def _sweep(self, res: Json) -> None:
        """Whoever is killed, or told to end, does not see to its children any more."""
        run = self._host.run(self.run_id)
        signalled = ((run.run_state if run is not None else None) or {}).get("signals")
        status = res.get("status")
        killed = isinstance(status, Mapping) and status.get("signum") is not None
        if self._pid is not None and (killed or signalled):
            took = (res.get("times") or {}).get("elapsed") or 0.0
            told = partial(self._host.note, self.run_id)
            process = (self._pid, self.proc_id, self.run_id)
            remains.sweep(self._agents, self.conn_id, process, took, self._marked, told)

    def _running(self, res: Json) -> None:
        meta = self._meta(res)
        if not self._started:
            self._started = True
            state = self._state | {"proc_id": self.proc_id, "conn_id": self.conn_id}
            self._host.report(self.run_id, Running(state, meta))
            now = self._now()
            interval = self._program.settings.output_interval
            self._output_due = None if interval is None else now + interval
            self._update_due = now + self._update_interval
            self._agents.poll(self.proc_id)
        elif self._update:
            self._host.report(self.run_id, Update(meta))
        self._update = False

    def _heed_warnings(self, res: Json) -> None:
        """Say what the agent could not do for the process, as ours tells; of others it can be inferred."""
        limits = self._properties.get("slice") or {}
        if self._warned or not limits:
            return
        warnings = res.get("warnings")
        if isinstance(warnings, list) and warnings:
            self._warned = True
            for warning in warnings[:WARNINGS]:
                self._remark(f"agent {self._agent()}: {str(warning)[:200]}")
        elif res.get("state") == "terminated" and limits.get("memory_max") is not None:
            accounting = res.get("cgroup_accounting")
            if not isinstance(accounting, Mapping) or accounting.get("memory") is None:
                self._warned = True
                # It has no systemd at its service, or a kernel that lacks one of many figures.
                text = "gave no account of memory: whether its limit was applied can't be told"
                self._remark(f"agent {self._agent()} {text}")

    def unknown(self) -> None:
        if self._ended:
            return
        if self._final is not None:
            self._conclude()
        elif self._started:
            self._finish(State.ERROR, f"agent {self._agent()} no longer knows the process")
        else:
            why = " (resources need an agent of version 0.5.0 or later)" if self._properties else ""
            text = f"agent {self._agent()} is too old or refused the specification: nothing was started"
            self._finish(State.ERROR, text + why)

    def deleted(self) -> None:
        if self._ended:
            return
        if self._final is not None:
            self._conclude()
        else:
            text = f"the record of the process at agent {self._agent()} was deleted by somebody else"
            self._finish(State.ERROR, text)

    def error(self, msg: Json, err: str) -> None:
        if self._ended:
            return
        kind = msg.get("type")
        if kind == "ProcStartRequest":
            self._start_refused(err)
        elif kind == "ProcSignalRequest":
            self._signal_refused(msg.get("signum"), err)
        elif kind == "ProcFdDataRequest":
            self._asked = None
            self._give_up(f"the output can't be read: {err}")
            if self._final is not None:
                self._conclude()
        else:
            log.warning("agent %s refused %s for run %s: %s", self.conn_id, kind, self.run_id, err)

    def _start_refused(self, err: str) -> None:
        if self._started or err.startswith("duplicate proc id"):
            self._ask_result()  # it is there, from an earlier request
        elif err.startswith("agent shutting down"):
            self._agents.drain(self.conn_id)
            self._unplace(f"agent {self._agent()} is shutting down")
        else:
            self._finish(State.ERROR, f"start failed: agent {self._agent()}: {err}")

    # -- signals -------------------------------------------------------------------------------------

    def signal(self, signum: int, fate: Callable[[bool], None] | None = None) -> None:
        """(any thread) Send a signal to the program; `fate` as for Agents.send."""
        if self._program.sudo_user is not None and signum in UNCATCHABLE:
            if self._here:
                self._through_sudo.append(signum)
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
        elif "os error 1)" not in err or self._program.sudo_user is None or not isinstance(signum, int):
            self._remark(f"{name} was refused: {err}")
        else:
            self._remark(f"{name} was refused ({err}): trying kill through sudo")
            self._through_sudo.append(signum)
            self._signal_through_sudo()

    def _signal_through_sudo(self) -> None:
        user = self._program.sudo_user
        while self._through_sudo and user is not None and self._pid is not None and not self.over:
            signum = self._through_sudo.popleft()
            if signum in self._under_way:
                continue
            self._under_way.add(signum)
            ended = partial(self._signalled_through_sudo, signum)
            Signalling(self._agents, self.conn_id, self._program.sudo(user), signum, self._pid, ended).start()

    def _signalled_through_sudo(self, signum: int, failure: str | None) -> None:
        self._under_way.discard(signum)
        if self._ended or self.over:
            return
        name = signal_name(signum)
        if failure is None:
            self._remark(f"{name} was sent through sudo")
        else:
            self._remark(f"{name} was not sent: kill through sudo failed: {failure}")

    # -- output --------------------------------------------------------------------------------------

    def _pull(self) -> None:
        """Ask for output, if it is wanted and can be stored; conclude where all of it is here."""
        if self._ended or self._asked is not None or not self._here or not (self._started or self._final):
            return
        goal = self._end
        limit = self._limit.max_size
        if limit is not None and self._end > limit:
            goal = limit
        if self._final is not None and (self._mute or self._received >= goal):
            if not self._mute and self._end > self._received:
                self._truncate(b"")
            self._conclude()
            return
        if self._mute:
            return
        now = self._now()
        if self._host.output_full():
            self._output_due = now + ROOM
            self._agents.poll(self.proc_id)
            return
        # Bounds are safe only after the end, and within the length: an agent would damage the output else.
        stop = None if self._final is None else min(goal, self._received + SLICE)
        message = wire.proc_fd_data_request(self.proc_id, "stdout", self._received, stop)
        if self._agents.send(self.conn_id, message):
            self._asked = now
            self._at = self._received
            self._progress = self._received
            self._agents.poll(self.proc_id)

    _progress = 0  # _received when the outstanding request was made

    def head(self, head: FdHead) -> None:
        self._at = head.start if head.fd in ("stdout", "1") else -1

    def data(self, piece: bytes) -> None:
        if self._asked is not None:
            self._asked, self._fenced = self._now(), False
        if self._ended or self._mute or self._at < 0:
            return
        begin, self._at = self._at, self._at + len(piece)
        if begin > self._received:
            return  # a gap: what is missing is asked for again
        piece = piece[self._received - begin :]
        if not piece:
            return
        limit = self._limit.max_size
        if limit is not None and self._received + len(piece) > limit:
            self._truncate(piece[: limit - self._received])
        else:
            self._store(piece)

    def end(self) -> None:
        self._asked, self._fenced = None, False
        if self._ended:
            return
        if self._received > self._progress:
            self._vain = 0
        elif self._final is not None and not self._mute:
            self._vain += 1
            if self._vain >= ATTEMPTS:
                self._give_up(f"the agent sends {self._received} of {self._end} bytes of output")
        if self._final is not None:
            self._pull()

    def _unanswered(self) -> None:
        """Agents answer in order: what was asked for before this result will not come."""
        self._asked, self._fenced = None, False
        if self._ended or self._mute:
            return
        self._vain += 1
        if self._vain >= ATTEMPTS:
            self._give_up("the agent does not answer")
        self._pull()

    def _store(self, data: bytes) -> None:
        self._host.put_output(
            self.run_id, OUTPUT, self._received, data, name=OUTPUT_NAME, content_type=OUTPUT_TYPE
        )
        self._received += len(data)
        if self._program.sudo_user is not None and len(self._said) < SAID:
            self._said += data[: SAID - len(self._said)]

    def _truncate(self, last: bytes) -> None:
        """Keep `last`, and say at the end of the output that there was more."""
        self._mute = True
        limit = self._limit.max_size
        # In one piece with the last bytes: so the store's length tells, after a restart, that this was done.
        self._store(last + f"\n[apsis: output truncated after {limit} bytes]\n".encode())
        self._received = limit or 0
        if self._limit.kill and self._final is None:
            self._remark(f"output exceeds {limit} bytes: sending SIGKILL")
            self.signal(SIGKILL)
        else:
            self._remark(f"output truncated after {limit} bytes")

    def _give_up(self, why: str) -> None:
        if not self._mute:
            self._mute = True
            self._remark(f"output is incomplete: {why}")

    # -- time ----------------------------------------------------------------------------------------

    @property
    def _update_interval(self) -> float:
        return self._program.settings.update_interval or SAFETY

    def poll(self, now: float) -> float | None:
        if self._ended or not self._here:
            return None
        self._signal_through_sudo()
        if self._asked is not None and now >= self._asked + ANSWER:
            # It may be busy with the output of others. Its answer to this comes after what was asked before.
            self._asked, self._fenced = now, True
            self._ask_result()
        if not self._started and self._final is None and self._sent is not None and now >= self._sent + PROBE:
            self._sent = now
            self._ask_result()
        if self._started and self._final is None and self._update_due is not None and now >= self._update_due:
            self._update_due = now + self._update_interval
            self._update = self._program.settings.update_interval is not None
            self._ask_result()
        if self._output_due is not None and now >= self._output_due:
            interval = self._program.settings.output_interval
            running = self._final is None
            self._output_due = now + interval if running and interval is not None and not self._mute else None
            self._pull()
        dues: list[float | None] = [self._output_due, None if self._asked is None else self._asked + ANSWER]
        if not self._started and self._sent is not None:
            dues.append(self._sent + PROBE)
        if self._started and self._final is None:
            dues.append(self._update_due)
        return None if self._ended else min((due for due in dues if due is not None), default=None)

    # -- the end -------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        """The verdict of the final result."""
        assert self._final is not None
        if not self._mute and self._received < self._end:
            lost = f"{self._end - self._received} of its {self._end} bytes were lost with the agent"
            self._give_up(lost)
        state, message = verdict(self._final, self._program.argv[0])
        user = self._program.sudo_user
        if user is not None and state is State.FAILURE and (why := refusal(bytes(self._said))):
            message = f"{message}: sudo may not run it as {user}: {why}"
        run = self._host.run(self.run_id)
        run_state = (run.run_state if run is not None else None) or {}
        after = run_state.get("timed_out")
        if after is not None and state is not State.ERROR:
            state = State.FAILURE
            message = f"{message or 'exit code 0'} (timeout after {number(after)} s)"
        limit = self._limit.max_size
        if self._limit.kill and limit is not None and self._end > limit and state is State.FAILURE:
            message = f"{message} (output exceeds {limit} bytes)"
        if message == "killed by SIGKILL" and not run_state.get("signals") and self._met_memory_limit():
            message = f"{message} (it needed more memory than its limit)"
        meta = self._meta(self._final)
        meta["stop"] = {"signals": list(run_state.get("signals") or ())}
        self._finish(state, message, meta)

    def _met_memory_limit(self) -> bool:
        limit = (self._properties.get("slice") or {}).get("memory_max")
        accounting = (self._final or {}).get("cgroup_accounting")
        memory = accounting.get("memory") if isinstance(accounting, Mapping) else None
        peak = memory.get("peak") if isinstance(memory, Mapping) else None
        return isinstance(limit, int) and isinstance(peak, int) and peak >= limit * NEAR

    def _finish(self, state: State, message: str | None, meta: Json | None = None) -> None:
        self._ended = True
        self._host.report(self.run_id, Finished(state, message, meta))

    # -- words ---------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._host.clock.monotonic()

    def _ask_result(self) -> None:
        self._agents.send(self.conn_id, wire.proc_result_request(self.proc_id))

    def _remark(self, text: str) -> None:
        self._host.report(self.run_id, Remark(text))

    def _agent(self) -> str:
        record = self._agents.record(self.conn_id)
        host = record["info"]["proc"].get("hostname") if record else None
        return f"{self.conn_id} ({host})" if host else self.conn_id

    def _meta(self, res: Json) -> dict[str, Any]:
        """What is kept of a result with the run."""
        meta: dict[str, Any] = {"errors": list(res.get("errors") or ()), **self._place}
        for key in ("status", "times", "rusage", "proc_stat", "proc_statm", "cgroup_accounting"):
            if res.get(key) is not None:
                meta[key] = res[key]
        meta["procstar_proc_id"] = self.proc_id
        record = self._agents.record(self.conn_id)
        if record:
            meta["procstar_conn"] = record["info"]["conn"]
            meta["procstar_agent"] = record["info"]["proc"]
        return meta


def _length(res: Json) -> int:
    stdout = (res.get("fds") or {}).get("stdout")
    length = stdout.get("length") if isinstance(stdout, Mapping) else None
    return length if isinstance(length, int) and length > 0 else 0


def verdict(res: Json, program: str) -> tuple[State, str | None]:
    """What a final result means, a timeout not considered. `program`: what was to be executed."""
    errors = [str(error) for error in res.get("errors") or ()]
    if res.get("state") == "error" or errors:
        text = "; ".join(errors) or "the agent could not start the process"
        if "No such file" in text and "/" not in program:
            text += " (agents do not search PATH: give the program as an absolute path)"
        return State.ERROR, text
    status = res.get("status")
    if not isinstance(status, Mapping):
        return State.ERROR, "the agent did not tell how the process ended"
    code, signum = status.get("exit_code"), status.get("signum")
    if code == 0:
        return State.SUCCESS, None
    if isinstance(code, int):
        return State.FAILURE, f"exit code {code}"
    name = status.get("signal") or (signal_name(signum) if isinstance(signum, int) else None)
    if name is None:
        return State.ERROR, "the agent did not tell how the process ended"
    return State.FAILURE, f"killed by {name}"
