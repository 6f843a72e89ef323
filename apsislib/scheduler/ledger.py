"""What there is: the runs in memory, who waits, what rings when; and the one way to change a run.

A run that has finished stays here until its last row is on disk (`evict`), so that at every moment
it can be found either here or in the database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from apsislib import actions, catchup
from apsislib.conditions import OCCUPYING, RunKey
from apsislib.errors import RunError
from apsislib.runs import Alarm, Effect, Json, Note, Output, Owe, Run, Save, moved
from apsislib.scheduler.alarms import Alarms
from apsislib.scheduler.waits import Outcomes, Waits
from apsislib.states import ACTIVE, FINISHED, TRANSITIONS, WAITING, State

# What the kernel itself keeps in a run_state; "stepped": by how many seconds the clock was set since it runs.
OWN = ("timers", "timed_out", "signals", "stop_asked", "stepped")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server's file says about scheduling. Durations in seconds."""

    horizon: float = 86400.0
    max_expected: int = 2000  # per schedule: an every-second job must not fill the memory
    max_waiting: float | None = None
    actions: tuple[Json, ...] = ()  # owed by every run, besides its job's
    catch_up: catchup.CatchUp = catchup.DEFAULT  # complete
    max_age: float | None = None  # occurrences that are later than this are recorded as missed, not run


class Ledger:
    """The state that the kernel's rooms share. Every change of a run is appended to `outbox`, too."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.outbox: list[Effect] = []
        # Read without the lock by GETs (C-level copies of a dict are atomic); written only under it.
        self.runs: dict[str, Run] = {}
        self.expected: dict[str, dict[str, Run]] = {}  # by job ID
        # Expected till a moment ago, their first rows not on disk yet: shown as they were until then, or
        # they would be nowhere. The writer's thread takes them out, too.
        self.leaving: dict[str, Run] = {}
        self.alarms = Alarms()
        self.waits = Waits()
        self.outcomes = Outcomes()
        self.restored = 0.0  # wall; when this process took up the runs of an earlier one
        self.held = False  # waiting runs are not judged yet: expected ones are not all made
        self.braked = False  # the disk is failing: nothing is started
        self._by_key: dict[RunKey, dict[str, None]] = {}  # run IDs, in order of number
        self._occupied: dict[RunKey, int] = {}  # no Counter: its operations are three times as slow

    # -- View: what conditions may know ------------------------------------------------------------

    def live(self, key: RunKey) -> Iterable[Run]:
        runs = self.runs
        return [runs[run_id] for run_id in self._by_key.get(key, ())]

    def occupied(self, key: RunKey) -> int:
        return self._occupied.get(key, 0)

    def ended(self, key: RunKey) -> frozenset[State] | None:
        return self.outcomes.get(key)

    # -- runs come, change and go --------------------------------------------------------------------

    def enter(self, run: Run) -> None:
        """A run that was not in memory."""
        run_id, key = run.run_id, run.key
        self.runs[run_id] = run
        mine = self._by_key.get(key)
        if mine is None:
            self._by_key[key] = {run_id: None}
        else:
            mine[run_id] = None
        if run.state in OCCUPYING:  # restored
            self._occupied[key] = self._occupied.get(key, 0) + 1

    def move(
        self,
        run: Run,
        state: State,
        wall: float,
        message: str | None = None,
        force: bool = False,
        meta: Json | None = None,
        run_state: Json | None = None,
    ) -> Run:
        """A transition: the record, its row, its log line, what it owes, and whom it may wake.

        `meta`, `run_state`: new ones, unless they stay as they are.
        """
        old, run_id, times = run.state, run.run_id, run.times
        if state not in TRANSITIONS[old] and not force:
            raise RunError(f"cannot transition {run_id} from {old} to {state}")
        if meta is None:
            meta = run.meta
        if state in FINISHED:
            self.alarms.forget(run_id)
            if old is WAITING:
                self.waits.leave(run_id)
            if "running" in times and old not in FINISHED:
                took = wall - times["running"] - (run.run_state or {}).get("stepped", 0.0)
                meta = {**meta, "elapsed": round(max(0.0, took), 6)}
            run_state = None
        else:
            if run_state is None:
                run_state = run.run_state
            if old is WAITING:
                self.alarms.disarm(run_id, Alarm.WAITING)
                self.waits.leave(run_id)
        name = state._value_
        run = moved(run, state, wall, {**times, name: wall}, meta, run_state)
        self.runs[run_id] = run
        self.outbox += (Save(run), Note(run_id, wall, message or name))
        if run.actions or self.settings.actions:
            self.owe(run)
        self.touch(run, old)
        return run

    def touch(self, run: Run, old: State | None) -> None:
        """A run entered its state; it left `old`, if it was here before. Wakes who waits for that."""
        key, state = run.key, run.state
        if key in self.waits.filed:
            self.waits.touch(key, state)
        if state in FINISHED:
            self.outcomes.ended(key, state)
        if state in OCCUPYING:
            if old not in OCCUPYING:
                self._occupied[key] = self._occupied.get(key, 0) + 1
        elif old in OCCUPYING:
            left = self._occupied.pop(key) - 1
            if left:
                self._occupied[key] = left
            self.waits.touch_slots(key)

    def owe(self, run: Run) -> None:
        """What follows the transition that the run has just made."""
        for index, action in enumerate((*run.actions, *self.settings.actions)):
            if actions.owed(action, run.state):
                self.outbox.append(Owe(f"{run.run_id}/{index}/{run.rev}", run, action))

    def note(self, run: Run, wall: float, message: str) -> None:
        """A line of the run's log."""
        self.outbox.append(Note(run.run_id, wall, message))

    def output(self, run: Run, text: str, name: str = "output") -> None:
        """A small output of ours: why there is no other."""
        self.outbox.append(Output(run.run_id, text.encode("utf-8", "replace"), name, name))

    def alter(self, run: Run, transition: bool = False) -> Run:
        """The run with other metadata or run_state: a new row, no transition."""
        self.runs[run.run_id] = run
        self.outbox.append(Save(run, transition))
        return run

    def remove(self, run_id: str) -> None:
        """A run leaves memory. It has no alarms: it has ended, or they were forgotten."""
        run = self.runs.pop(run_id)
        self.leaving.pop(run_id, None)
        mine = self._by_key[run.key]
        if len(mine) > 1:
            del mine[run_id]
        else:
            del self._by_key[run.key]

    def evict(self, committed: Iterable[Run]) -> None:
        """Finished runs whose rows are on disk. One that was marked since stays for its newer row."""
        for run in committed:
            held = self.runs.get(run.run_id)
            if held is not None and held.rev == run.rev and held.state in FINISHED:
                self.remove(run.run_id)

    # -- run_state and its timers --------------------------------------------------------------------

    def arm(self, run: Run, kind: Alarm, seconds: float | None, wall: float, boot: float) -> Run:
        """Arm an alarm for a duration, and store by the wall clock when it ends, for a restart."""
        if seconds is None or run.run_id not in self.runs:
            return run
        run = self.runs[run.run_id]
        self.alarms.arm(run.run_id, kind, boot + seconds)
        timers = (run.run_state or {}).get("timers") or {}
        live = {n: end for n, end in timers.items() if self.alarms.armed(run.run_id, Alarm[n]) is not None}
        state = {**(run.run_state or {}), "timers": {**live, kind.name: wall + seconds}}
        return self.alter(run.but(run_state=state))

    def counts(self) -> dict[str, int]:
        """How much there is of everything, for the stats."""
        states = Counter(r.state for r in self.runs.values())
        expected = sum(len(m) for m in self.expected.values())
        return {
            "expected": expected,
            "scheduled": states[State.SCHEDULED] - expected,
            "active": sum(states[s] for s in ACTIVE),
            "waiting": states[State.WAITING],
            "starting": states[State.STARTING],
            "running": states[State.RUNNING],
            "stopping": states[State.STOPPING],
            "alarms": len(self.alarms),
            "heap": self.alarms.heaped,
        }


def keep(run: Run, run_state: Json | None) -> Json:
    """A program's new run_state, with what the kernel keeps in it."""
    if not run.run_state:
        return run_state or {}
    return {**{k: v for k, v in run.run_state.items() if k in OWN}, **(run_state or {})}
