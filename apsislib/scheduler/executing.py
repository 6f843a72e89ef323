"""From *starting* to the end: what programs report, what operators ask, what takes too long."""

from __future__ import annotations

from apsislib.runs import (
    Alarm,
    Back,
    Finished,
    Forget,
    Json,
    Launch,
    Launched,
    Lost,
    Output,
    Placed,
    Remark,
    Report,
    Run,
    Running,
    Send,
    Signal,
    Unplaced,
    Update,
    adrift,
    signal_name,
    stamp,
)
from apsislib.scheduler import lateness
from apsislib.scheduler.gaps import Gaps
from apsislib.scheduler.ledger import Ledger, keep
from apsislib.states import ERROR, FINISHED, RUNNING, STARTING, State

SIGKILL = 9
_KEPT = ("proc_id", "conn_id", "signals", "timed_out", "stop_asked", "stepped")  # of who is given up
HELD_UP = 5.0  # s; what runs, or has an agent, later than this after it could begin is called late


class Executing:
    def __init__(self, ledger: Ledger, gaps: Gaps) -> None:
        self._ledger = ledger
        self._gaps = gaps
        self._alarms = ledger.alarms

    def begin(self, run: Run, wall: float, boot: float) -> None:
        """Nothing is in the way: have its program started."""
        ledger = self._ledger
        run = ledger.move(run, STARTING, wall)
        if run.limits.start_timeout is not None:
            run = ledger.arm(run, Alarm.START, run.limits.start_timeout, wall, boot)
        ledger.outbox.append(Launch(run))

    # -- what programs report ------------------------------------------------------------------------

    def report(self, run_id: str, report: Report, wall: float, boot: float) -> None:
        """A program's word on its run. Ignored where the run has ended: its first end is its end."""
        run = self._ledger.runs.get(run_id)
        if run is None or run.state in FINISHED:
            return
        ledger, alarms = self._ledger, self._alarms
        match report:
            case Finished():
                self._finish(run, report, wall)
            case Running() if run.state is STARTING:
                self._run(run, report, wall, boot)
            case Running(wake=wake) if wake is not None:  # reconnected after a restart
                alarms.arm(run_id, Alarm.WAKE, boot + wake)
            case Launched(run_state, meta) if run.state is State.STARTING:
                self._store_state(run.but(meta={**run.meta, "program": meta}), run_state)
            case Placed(run_state) if run.state is State.STARTING:
                alarms.disarm(run_id, Alarm.START)
                nobody = f"no agent of group {_group(run)} took it"
                run = self._store_state(self._held_up(run, nobody, wall), run_state)
                ledger.outbox.append(Send(run))
            case Unplaced(reason) if run.state is State.STARTING:
                alarms.disarm(run_id, Alarm.RECONNECT)
                if (run.run_state or {}).get("stop_asked"):
                    ledger.note(run, wall, reason)
                    self._drop_start(run, wall)
                    return
                rest = {k: v for k, v in (run.run_state or {}).items() if k not in ("conn_id", "agent")}
                run = self._store_state(run, rest)
                run = ledger.arm(run, Alarm.START, run.limits.start_timeout, wall, boot)
                ledger.note(run, wall, reason)
                ledger.outbox.append(Launch(run))
            case Update(meta):
                ledger.alter(run.but(meta={**run.meta, "program": meta}))
            case Lost(conn_id, heard) if conn_id == (run.run_state or {}).get("conn_id"):
                if alarms.armed(run_id, Alarm.RECONNECT) is None:
                    ledger.note(run, wall, f"agent {conn_id} is away")
                    run = ledger.alter(run.but(run_state={**(run.run_state or {}), "heard": heard}))
                    ledger.arm(run, Alarm.RECONNECT, run.limits.reconnect_timeout, wall, boot)
            case Back(conn_id):
                if alarms.armed(run_id, Alarm.RECONNECT) is not None:
                    ledger.note(run, wall, f"agent {conn_id} is back")
                    alarms.disarm(run_id, Alarm.RECONNECT)
                    if "heard" in (run.run_state or {}):
                        rest = {k: v for k, v in (run.run_state or {}).items() if k != "heard"}
                        ledger.alter(run.but(run_state=rest))
            case Remark(message):
                ledger.note(run, wall, message)
            case _:
                pass  # e.g. a second Running

    def _run(self, run: Run, report: Running, wall: float, boot: float) -> None:
        ledger, alarms, run_id = self._ledger, self._alarms, run.run_id
        conn_id = (run.run_state or {}).get("conn_id")
        run = self._held_up(run, f"agent {conn_id} did not start it", wall)
        asked = run.run_state and run.run_state.get("stop_asked")
        meta = run.meta if report.meta is None else {**run.meta, "program": report.meta}
        run_state = keep(run, report.run_state or run.run_state)
        run = ledger.move(run, RUNNING, wall, meta=meta, run_state=run_state)
        alarms.disarm(run_id, Alarm.START, Alarm.RECONNECT)
        if run.limits.timeout is not None:
            run = ledger.arm(run, Alarm.TIMEOUT, run.limits.timeout, wall, boot)
        if "expect" in run.meta:
            lateness.watch_long(alarms, run, boot)
        if report.wake is not None:
            alarms.arm(run_id, Alarm.WAKE, boot + report.wake)
        stop = run.times.get("stop")
        if asked or (stop is not None and stop <= wall):
            self.stop(run, wall, boot)
        elif stop is not None:
            alarms.arm(run_id, Alarm.STOP, stop)

    def _held_up(self, run: Run, blame: str, wall: float) -> Run:
        """It could have begun long ago, and is called late with what is known of the reason.

        `blame`: what agents did not do. It is for programs of a group of these: tasks of ECS and users'
        classes take to begin what they take.
        """
        since = min(lateness.due(run), run.times.get("starting", wall))
        if wall - since <= HELD_UP or "late" in run.meta.get("reasons", ()):
            return run
        agents = None if _group(run) is None else f"{blame} before {stamp(wall)}"
        why = "; ".join(filter(None, (self._gaps.between(since, wall), agents)))
        text = f"{wall - since:.0f} s late: {why}"
        return lateness.call_late(self._ledger, run, why, wall, text) if why else run

    def _finish(self, run: Run, report: Finished, wall: float) -> None:
        state = report.state
        if run.state is STARTING and state is not ERROR:
            state = ERROR  # it never ran
        meta = run.meta if report.meta is None else {**run.meta, "program": report.meta}
        if report.output is not None:
            self._ledger.outbox.append(Output(run.run_id, report.output))
        text = f"{state}: {report.message}" if report.message else None
        ended = self._ledger.move(run, state, wall, text, meta=meta)
        self._ledger.outbox.append(Forget(ended, run.run_state))

    def _store_state(self, run: Run, run_state: Json) -> Run:
        return self._ledger.alter(run.but(run_state=keep(run, run_state)))

    # -- stops, signals, timeouts ----------------------------------------------------------------------

    def stop(self, run: Run, wall: float, boot: float) -> Run:
        """It runs, and is to end."""
        run = self._ledger.move(run, State.STOPPING, wall)
        # A timeout that comes up during a stop is void: the grace period ends the run sooner or later.
        self._alarms.disarm(run.run_id, Alarm.STOP, Alarm.TIMEOUT)
        run = self.signal(run, run.limits.stop_signal, wall, stop=True)
        return self._ledger.arm(run, Alarm.GRACE, run.limits.grace, wall, boot)

    def stop_start(self, run: Run, wall: float) -> None:
        """It is starting, and is to end."""
        if (run.run_state or {}).get("conn_id"):
            # It may be running by now: it is stopped as soon as the agent says so.
            self._store_state(run, {**(run.run_state or {}), "stop_asked": True})
            self._ledger.note(run, wall, "to be stopped as soon as it runs")
        else:
            self._drop_start(run, wall)

    def _drop_start(self, run: Run, wall: float) -> None:
        """It is to end, and provably no agent has begun it."""
        self._ledger.move(run, State.SKIPPED, wall, "skipped: stopped before it was sent to an agent")
        self._ledger.outbox.append(Forget(run, run.run_state))

    def signal(self, run: Run, signum: int, wall: float, stop: bool) -> Run:
        name = signal_name(signum)
        if stop:
            sent = [*((run.run_state or {}).get("signals") or ()), name]
            run = self._store_state(run, {**(run.run_state or {}), "signals": sent})
        self._ledger.note(run, wall, f"sending {name}")
        self._ledger.outbox.append(Signal(run, signum, stop))
        return run

    def kill(self, run: Run, wall: float) -> None:
        """Its grace period is over."""
        self.signal(run, SIGKILL, wall, stop=True)

    def time_out(self, run: Run, wall: float, boot: float) -> None:
        """It has been running for too long."""
        limits = run.limits
        seconds = limits.timeout or 0.0
        run = run.but(run_state=keep(run, {**(run.run_state or {}), "timed_out": seconds}))
        self._ledger.runs[run.run_id] = run  # its row follows with the signal
        self._ledger.note(run, wall, f"timeout after {seconds:g} s")
        run = self.signal(run, limits.timeout_signal, wall, stop=True)
        self._ledger.arm(run, Alarm.GRACE, limits.grace, wall, boot)

    def start_timed_out(self, run: Run, wall: float) -> None:
        group = (run.program or {}).get("group_id", "default")
        text = f"error: start failed: no connected agent in group: {group}"
        ended = self._ledger.move(run, State.ERROR, wall, text)
        self._ledger.outbox.append(Forget(ended, run.run_state))

    # -- runs that are given up ------------------------------------------------------------------------

    def reconnect_timed_out(self, run: Run, wall: float) -> None:
        """Its agent has been away for too long: an error, which lets go of its slot."""
        run_state = run.run_state or {}
        conn_id, heard = run_state.get("conn_id"), run_state.get("heard")
        when = (
            f"before the restart at {stamp(self._ledger.restored)}" if heard is None else f"at {stamp(heard)}"
        )
        told = ": may have started" if run.state is State.STARTING else ""
        text = f"error: procstar: agent reconnect timeout: conn_id {conn_id}, last heard of {when}{told}"
        ended = self._ledger.move(run, State.ERROR, wall, text, meta=given_up(run))
        self._ledger.outbox.append(Forget(ended, run.run_state))

    def stop_adrift(self, run: Run, wall: float) -> None:
        """It was given up, and its program is to end, wherever that is. The run stays what it is."""
        was = adrift(run)
        if was is None:
            return
        sent = list(was.get("signals") or ())
        if was.get("state") == State.STOPPING or was.get("stop_asked") or signal_name(SIGKILL) in sent:
            return  # it is to end already
        name = signal_name(run.limits.stop_signal)
        was = {**was, "state": State.STOPPING.value, "signals": [*sent, name]}
        if run.limits.grace is not None:
            was["kill_at"] = wall + run.limits.grace
        self._amend(run.but(meta={**run.meta, "given_up": was}))
        where = f"at once if agent {was.get('conn_id')} is connected, else when it is back"
        self._ledger.note(run, wall, f"{name} is to end its program, {where}")
        # Who follows it lets go; its record stays, is found again, and so is what is to end it.
        self._ledger.outbox.append(Forget(run, was))

    def offer(self, run: Run, state: State, message: str | None, program: Json | None, wall: float) -> None:
        """How a run that was given up really ended. It stays what it is: others have acted on that.

        `program`: its metadata about the program.
        """
        ledger = self._ledger
        if run.state not in FINISHED or "late_verdict" in run.meta:
            return
        meta = run.meta if program is None else {**run.meta, "program": program}
        verdict = {"state": state.value, "message": message, "time": wall}
        run = self._amend(run.but(meta={**meta, "late_verdict": verdict}))
        ledger.note(run, wall, f"late verdict: {state}: {message}" if message else f"late verdict: {state}")
        if state not in (State.ERROR, run.state):
            text = f"it stays {run.state}; to accept the late verdict: apsis mark {state} {run.run_id}"
            ledger.note(run, wall, text)
        ledger.outbox.append(Forget(run, run.meta.get("given_up")))

    def _amend(self, run: Run) -> Run:
        """Other metadata of a run that has ended: it is in memory until they are on disk."""
        run = run.but(rev=run.rev + 1)
        if run.run_id not in self._ledger.runs:
            self._ledger.enter(run)
        return self._ledger.alter(run)


def _group(run: Run) -> str | None:
    """Of the agents that may run its program."""
    group: str | None = (run.program or {}).get("group_id")
    return group


def given_up(run: Run) -> Json:
    """The metadata of a run that ends while its program may go on: what is needed to tell, later, how
    that ended."""
    state = run.run_state or {}
    if "proc_id" not in state or "conn_id" not in state:
        return run.meta
    kept = {key: state[key] for key in _KEPT if key in state}
    grace = (state.get("timers") or {}).get(Alarm.GRACE.name)
    if grace is not None and "SIGKILL" not in state.get("signals", ()):
        kept["kill_at"] = grace
    return {**run.meta, "given_up": {**kept, "state": run.state.value}}
