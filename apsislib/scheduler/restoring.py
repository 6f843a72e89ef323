"""At start: unfinished runs of an earlier process go on where they were."""

from __future__ import annotations

from collections.abc import Iterable

from apsislib.conditions import seniority
from apsislib.runs import Alarm, Connect, Launch, Run
from apsislib.scheduler import lateness
from apsislib.scheduler.gaps import Gaps, is_put_off
from apsislib.scheduler.ledger import Ledger
from apsislib.scheduler.waiting import Waiting
from apsislib.states import State


def restore(
    ledger: Ledger, waiting: Waiting, gaps: Gaps, runs: Iterable[Run], wall: float, boot: float
) -> None:
    """All of them at once: conditions look at the others."""
    runs = list(runs)
    for run in runs:
        ledger.enter(run)
    # Those that wait do so in the order in which they began to.
    for run in sorted(runs, key=seniority):
        try:
            _restore(ledger, waiting, gaps, run, wall, boot)
        except Exception as error:  # of a row that was written by who knows whom: it costs its run alone
            text = f"error: could not be restored: {type(error).__name__}: {error}"
            ledger.move(run.but(actions=()), State.ERROR, wall, text, force=True)


def _restore(ledger: Ledger, waiting: Waiting, gaps: Gaps, run: Run, wall: float, boot: float) -> None:
    alarms = ledger.alarms
    lateness.watch(alarms, run)
    for name, end in ((run.run_state or {}).get("timers") or {}).items():
        kind = Alarm[name]
        # Of RECONNECT: it was us who was away. WAITING is as the server's file says now.
        if kind not in (Alarm.RECONNECT, Alarm.WAITING):
            alarms.arm(run.run_id, kind, boot + max(0.0, end - wall))
    match run.state:
        case State.SCHEDULED:
            ledger.note(run, wall, "restored")
            due = gaps.slot(wall) if is_put_off(run) else run.times["schedule"]
            alarms.arm(run.run_id, Alarm.DUE, due)
        case State.WAITING:
            ledger.note(run, wall, "restored")
            waiting.restore(run, wall, boot)
        case State.STARTING if doubt := (run.run_state or {}).get("doubt"):
            # Brought along from a server that did not say beforehand what it would send.
            ledger.move(run, State.ERROR, wall, f"error: {doubt}")
        case State.STARTING if not (run.run_state or {}).get("conn_id"):
            # Nothing can have been sent: the connection is stored before the first byte leaves.
            ledger.note(run, wall, "restored: not sent to an agent before the restart")
            ledger.outbox.append(Launch(run))
        case State.STARTING | State.RUNNING | State.STOPPING:
            ledger.note(run, wall, "reconnecting")
            if run.state is State.RUNNING:
                stepped = (run.run_state or {}).get("stepped", 0.0)
                lateness.watch_long(alarms, run, boot - (wall - run.times.get("running", wall) - stepped))
            if run.state is State.RUNNING and "stop" in run.times:
                alarms.arm(run.run_id, Alarm.STOP, run.times["stop"])
            # Agents are let in later: that this one is away now is no news.
            run = ledger.arm(run, Alarm.RECONNECT, run.limits.reconnect_timeout, wall, boot)
            ledger.outbox.append(Connect(run))
        case State.NEW:
            ledger.move(run, State.ERROR, wall, "error: the server stopped before it was scheduled")
