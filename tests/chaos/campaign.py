"""A campaign: jobs due every second, a nemesis, and the verdict."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos import checker, ledger, nemesis
from chaos.checker import Expected, Verdict
from chaos.nemesis import Fault, History, Nemesis
from chaos.world import PATIENCE, World

PROGRAM = Path(__file__).resolve().parent / "program.py"
RECONNECT = 12.0  # seconds that an agent may be away
WIDE, WIDTH = 300, 8_000  # lines of so many characters: some megabytes, more than one transaction takes
UNFINISHED = "state NOT IN ('success', 'failure', 'error', 'skipped')"


def job(
    path: Path,
    seconds: float,
    lines: int,
    code: int | str = 0,
    schedule: str = "",
    program: str = "",
    more: str = "",
    param: str = "schedule_time",
    width: int = 0,
) -> str:
    """A job's file. Its program writes to the ledger at `path`."""
    shown = f"{{{{ {param} }}}}" if param else "-"
    argv = [sys.executable, "-I", "-S", str(PROGRAM), str(path), shown]
    argv += map(str, (seconds, lines, code, width))
    text = f"params: [{param}]\n" if param else ""
    if schedule:
        text += f"schedule: {schedule}\n"
    items = "".join(f"\n  - {word!r}" for word in argv)
    return text + f"program:\n  type: procstar\n  argv:{items}\n{program}" + more


def every(seconds: int) -> str:
    return f"{{type: interval, interval: {seconds}}}"


def jobs(path: Path, every_busy: int = 12, over: int = 60) -> tuple[dict[str, str], dict[str, Expected]]:
    """Job files, and what is to come of them: each kind of end, and each way to get there.

    Those that queue up (`narrow` and `busy`, the latter every so many seconds) leave room for faults: a
    slot whose holder's agent is away is not free. `over`: seconds that a program would take which its timeout
    or stop is to kill; as long as no server may be there to do that.
    """
    stop = "{{start: {}, stop: {{type: duration, duration: 2}}}}".format
    kill = "  stop: {grace_period: 3}\n"
    files = {
        "quick": job(path, 0.05, 3, schedule=every(1)),
        "slow": job(path, 3, 6, schedule=every(2)),
        "fails": job(path, 0.05, 3, 3, every(2)),
        "narrow": job(
            path, 0.3, 3, schedule=every(4), more="condition: {type: max_running, count: 1}\n", param=""
        ),
        "busy": job(
            path,
            2.5,
            5,
            schedule=every(every_busy),
            more="condition: {type: max_running, count: 1}\n",
            param="",
        ),
        "first": job(path, 0.1, 3, schedule=every(3), more="successors: after\n"),
        "after": job(path, 0.1, 3),
        "halted": job(path, 30, 60, schedule=stop(every(3))),
        "deaf": job(path, over, over, "deaf", stop(every(6)), kill),
        "loud": job(path, 0.3, WIDE, schedule=every(12), width=WIDTH),
        "over": job(
            path, over, over, schedule=every(5), program="  timeout: {duration: 1.5, signal: SIGKILL}\n"
        ),
        "long": job(path, 12, 12, schedule=every(4)),
    }
    expected = {
        "quick": Expected(1),
        "slow": Expected(2, lines=6),
        "fails": Expected(2, ("failure",)),
        "narrow": Expected(4),
        "busy": Expected(every_busy, lines=5),
        "first": Expected(3, successor="after"),
        "after": Expected(None),
        "halted": Expected(3, ("success", "failure"), 60, cut=True),
        "deaf": Expected(6, ("failure",), over, cut=True),
        "loud": Expected(12, lines=WIDE, width=WIDTH),
        "over": Expected(5, ("failure",), over, cut=True),
        "long": Expected(4, lines=12),
    }
    return files, expected


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    history: History
    seconds: float  # of the nemesis

    def __str__(self) -> str:
        counts = self.history.counts
        faults = " ".join(f"{kind.replace(' ', '_')}={counts[kind]}" for kind in sorted(counts))
        head = f"seconds={self.seconds:.0f} faults={sum(counts.values())} backups={self.history.backups}"
        return f"{head}: {faults}\n{self.verdict}"


def run(
    directory: Path,
    faults: Sequence[Fault] | Callable[[World], History],
    seconds: float = 0.0,
    *,
    only: Sequence[str] = (),
    launch: Mapping[str, Any] | None = None,
    reconnect: float = RECONNECT,
    patience: float = PATIENCE,
    every_busy: int = 12,
    over: int = 60,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """`faults`: a timetable, or who does it all. `only`: of the jobs; all of them if empty. `patience`:
    seconds that runs may take to end, once all faults are over, without any of them ending."""
    path = directory / "ledger"
    files, expected = jobs(path, every_busy, over)
    if only:
        files = {job_id: files[job_id] for job_id in only}
        expected = {job_id: expected[job_id] for job_id in only}
    with closing(Orphans(path)), World(directory, files, reconnect, launch) as world:
        begin = world.clock.now() + 1
        begun = time.monotonic()
        history = faults(world) if callable(faults) else Nemesis(world, list(faults), say).rage()
        while (left := begun + seconds - time.monotonic()) > 0:
            time.sleep(left)  # the campaign has its length, whatever its faults
        # Nothing is due twice where a clock was set back: go on where it was furthest.
        end = max(world.clock.furthest, world.clock.now())
        world.clock.set(world.clock.offset + max(0, int(end - world.clock.now()) + 1))
        if world.server is not None and world.server.poll() is not None:
            world.start_server()  # it had refused to, on the full disk
        say(f"all faults are over: waiting for what was due before {end:.0f}")
        settle(world, end, patience)
        await_late_verdicts(world, history, patience)
        assert world.server is not None
        world.server.terminate()
        world.server.wait(PATIENCE)
        for agent in world.agents:
            agent.end()
        shutil.copytree(world.disk.path, directory / "kept")  # to look at: the disk is unmounted
        records, damage = checker.read(world.database)
        verdict = checker.check(expected, records, ledger.read(path), history, begin, end, reconnect, damage)
    return Outcome(verdict, history, seconds)


def settle(world: World, end: float, patience: float) -> None:
    """Return when all that was due before `end` has come to its end, or nothing moves any more."""
    before: list[Any] = []
    since = time.monotonic()
    while time.monotonic() < since + patience:
        ((clock,),) = world.query("SELECT value FROM meta WHERE name = 'clock'")
        live = world.query(f"SELECT number, rev FROM runs WHERE schedule < ? AND {UNFINISHED}", end)
        owed = world.query("SELECT cause FROM owed")
        late = clock < end
        if not (late or live or owed):
            return
        now = [live, owed, late and clock]
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.5)  # the database tells nobody that it has changed


def await_late_verdicts(world: World, history: History, patience: float) -> None:
    """Return when the agents, which are all back, have told the end of whatever was given up."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        records, _ = checker.read(world.database)
        acts = ledger.read(world.ledger)
        if not any(checker.owes_verdict(records[i], acts[i], history) for i in records):
            return
        time.sleep(0.5)  # nor does it tell this


class Orphans:
    """Programs of agents that were killed: they are ended with the campaign."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def close(self) -> None:
        for acts in ledger.read(self._path).values():
            for line in acts.begins:
                try:
                    command = Path(f"/proc/{line.pid}/cmdline").read_bytes()
                    if str(self._path).encode() in command:
                        os.kill(line.pid, signal.SIGKILL)
                except OSError:
                    pass  # it has ended


def campaign(directory: Path, seed: int, seconds: float, say: Callable[[str], None]) -> Outcome:
    faults = nemesis.timetable(seed, seconds, ["a1", "a2"], RECONNECT)
    return run(directory, faults, seconds, say=say)
