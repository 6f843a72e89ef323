"""Runs that do not keep to what is expected of them: late, missed, long."""

from __future__ import annotations

from apsislib import actions
from apsislib.runs import Alarm, Owe, Raised, Run, stamp
from apsislib.scheduler.alarms import Alarms
from apsislib.scheduler.ledger import Ledger
from apsislib.states import State


def watch(alarms: Alarms, run: Run) -> None:
    """Wake it when it is late or has been missed."""
    expect = run.meta.get("expect")
    if expect:
        raised = run.meta.get("alarms", ())
        for kind, name in ((Alarm.LATE, "late"), (Alarm.MISSED, "missed")):
            if name in expect and name not in raised:
                alarms.arm(run.run_id, kind, expect[name])


def watch_long(alarms: Alarms, run: Run, since: float) -> None:
    """Wake it when it has been running for too long. `since`: the boot instant at which it began to run."""
    expect = run.meta.get("expect")
    if expect and "long" in expect and "long" not in run.meta.get("alarms", ()):
        alarms.arm(run.run_id, Alarm.LONG, since + expect["long"])


def ring(ledger: Ledger, run: Run, kind: Alarm, when: float, wall: float) -> None:
    """One of the three has come up."""
    match kind:
        case Alarm.LATE if not run.expected and not run.times.get("starting", wall + 1) <= when:
            _raise(ledger, run, "late", wall, f"has not begun by {stamp(when)}")
        case Alarm.MISSED if not run.expected:
            _raise(ledger, run, "missed", wall, f"has not ended by {stamp(when)}")
        case Alarm.LONG if run.state is State.RUNNING:
            seconds = run.meta["expect"]["long"]
            _raise(ledger, run, "long", wall, f"has been running for more than {seconds:g} s")


def due(run: Run) -> float:
    """The wall instant from which on it could begin, whatever it has waited for left out."""
    times = run.times
    if "waiting" in times and "starting" in times:
        return times["starting"]
    # One made by hand for an instant in the past has not been late before it was made.
    made = times["schedule"] if run.occurrence else times.get("scheduled", times["schedule"])
    return max(times["schedule"], made)


def call_late(ledger: Ledger, run: Run, why: str, wall: float, text: str) -> Run:
    """It begins late, and not by its own doing. No alarm: for that there is what its job expects."""
    ledger.note(run, wall, text)
    return run.but(meta={**run.meta, "reasons": {**run.meta.get("reasons", {}), "late": why}})


def miss(ledger: Ledger, run: Run, why: str, wall: float) -> None:
    """It is not begun at all, as it should have been long ago. An alarm, if its job expects anything."""
    meta = {**run.meta, "reasons": {**run.meta.get("reasons", {}), "missed": why}}
    raised = not {"late", "missed"}.isdisjoint(run.meta.get("expect") or ())
    if raised:
        meta["alarms"] = [*run.meta.get("alarms", ()), "missed"]
    run = ledger.move(run, State.SKIPPED, wall, f"skipped: missed: {why}", meta=meta)
    if raised:
        _follow(ledger, run, "missed")


def _raise(ledger: Ledger, run: Run, alarm: str, wall: float, message: str) -> None:
    """Once in the life of a run."""
    raised = [*run.meta.get("alarms", ()), alarm]
    reasons = {alarm: message, **run.meta.get("reasons", {})}
    meta = {**run.meta, "alarms": raised, "reasons": reasons}
    run = ledger.alter(run.but(meta=meta, rev=run.rev + 1), transition=True)
    ledger.note(run, wall, f"{alarm}: {message}")
    _follow(ledger, run, alarm)


def _follow(ledger: Ledger, run: Run, alarm: str) -> None:
    for index, action in enumerate((*run.actions, *ledger.settings.actions)):
        if actions.owed_by_alarm(action, alarm, run.state):
            ledger.outbox.append(Owe(f"{run.run_id}/{index}/{alarm}", run, action))
    ledger.outbox.append(Raised(run, alarm))
