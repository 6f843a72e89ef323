"""The verdict: ledger, database and the occurrences that should have been, compared.

The occurrences are worked out here, from the intervals of the jobs alone, for the instants that the
server's clock has shown: nothing of the server's own reckoning is used.

lost       An occurrence (job, instant) without a record in the database. A record that has come to no
           end although everything was healed and time was given. An error for which no fault is to blame:
           only a killed agent, or one that was away for longer than the reconnect timeout, may cost a run
           its verdict. A successor that a success owes and that was never made.
doubled    Two records of one occurrence, or of one owed action; two programs that ran for one record.
late       (late-unlabelled) A run that began more than LATE seconds after its time, in whose log
           nothing says so.
untrue     The record's state contradicts the ledger: a success without the end of a program that exited
           with 0; a failure without an end that explains it; a program in the ledger that the database
           does not know, or whose record says that nothing was started; a record that says starting,
           running or stopping while nothing runs; a run that waits for a slot that nobody has; output
           that is not what the program printed, byte by byte; a stop that was accepted and not carried
           out; a verdict that came late and is not told in the run's log; a corrupt database.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from chaos.ledger import Acts
from chaos.nemesis import History

LATE = 1.5  # seconds; the server promises to say so of what begins more than one late
SAID_LATE = re.compile(r"\blate\b|\bmissed\b")
FINISHED = ("success", "failure", "error", "skipped")
SLACK = 4.0  # seconds by which an absence may be shorter than the timeout, as agents take time to come back


@dataclass(frozen=True, slots=True)
class Expected:
    """What a job is to do. `ends`: how its runs may end, other than by an error that a fault excuses."""

    interval: int | None  # seconds between occurrences; None: it has no schedule
    ends: tuple[str, ...] = ("success",)
    lines: int = 3  # of output, if it is not cut short
    width: int = 0  # characters that each line has beyond its number
    cut: bool = False  # it is ended by a signal: stopped, or killed by its timeout
    successor: str | None = None  # the job that each success schedules


@dataclass(slots=True)
class Record:
    """A run as the database has it."""

    run_id: str
    job_id: str
    state: str
    schedule: float
    times: dict[str, float]
    meta: dict[str, Any]
    occurrence: str | None
    cause: str | None
    log: list[str] = field(default_factory=list)
    output: bytes = b""
    owes: bool = False  # an action, which is done when the server is there again


@dataclass(slots=True)
class Verdict:
    occurrences: int = 0
    runs: int = 0
    errors: int = 0  # that a fault excuses
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.late or self.untrue)

    def __str__(self) -> str:
        head = (
            f"occurrences={self.occurrences} runs={self.runs} errors_excused={self.errors}"
            f" lost={len(self.lost)} doubled={len(self.doubled)} late_unlabelled={len(self.late)}"
            f" untrue={len(self.untrue)}"
        )
        kinds = ("lost", "doubled", "late", "untrue")
        return "\n".join(
            [head, *(f"  {kind}: {text}" for kind in kinds for text in getattr(self, kind)[:20])]
        )


def read(database: Path) -> tuple[dict[str, Record], list[str]]:
    """All runs, with logs and outputs, and what integrity_check says, by plain SQL."""
    with closing(
        sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30, isolation_level=None)
    ) as db:
        db.execute("BEGIN")  # all of it as of one instant: the server may go on
        damage = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
        records = {}
        columns = "number, job_id, state, schedule, times, meta, occurrence, cause"
        for number, job_id, state, schedule, times, meta, occurrence, cause in db.execute(
            f"SELECT {columns} FROM runs"
        ):
            run_id = f"r{number}"
            records[run_id] = Record(
                run_id, job_id, state, schedule, json.loads(times), json.loads(meta), occurrence, cause
            )
        for number, message in db.execute("SELECT number, message FROM log ORDER BY number, seq"):
            records[f"r{number}"].log.append(message)
        for (cause,) in db.execute("SELECT cause FROM owed"):
            records[cause.split("/")[0]].owes = True
        for number, codec, data in db.execute(
            "SELECT number, codec, data FROM chunks JOIN outputs ON outputs.id = chunks.output"
            " WHERE output_id = 'output' ORDER BY number, start"
        ):
            records[f"r{number}"].output += zlib.decompress(data) if codec else data
    return records, damage


def check(
    jobs: Mapping[str, Expected],
    records: Mapping[str, Record],
    ledger: Mapping[str, Acts],
    history: History,
    begin: float,
    end: float,
    reconnect: float,
    damage: Sequence[str] = (),
) -> Verdict:
    """`begin`, `end`: instants of the server's clock, between which every occurrence counts."""
    verdict = Verdict(runs=len(records))
    verdict.untrue += [f"the database is damaged: {text}" for text in damage]
    verdict.untrue += history.wrongs
    _occurrences(jobs, records, begin, end, verdict)
    for run_id, acts in ledger.items():
        if run_id not in records:
            verdict.untrue.append(f"{run_id} ran ({acts.begins[0]}), and the database does not know it")
        if len(acts.begins) > 1:
            verdict.doubled.append(f"{run_id} was started {len(acts.begins)} times: {acts.begins}")
    for record in records.values():
        if record.schedule < end or record.state in FINISHED:
            _Judge(
                record, jobs[record.job_id], ledger.get(record.run_id) or Acts(), history, reconnect
            ).judge(verdict)
    _successors(jobs, records, verdict)
    return verdict


def _occurrences(
    jobs: Mapping[str, Expected], records: Mapping[str, Record], begin: float, end: float, verdict: Verdict
) -> None:
    made: dict[tuple[str, float], list[str]] = defaultdict(list)
    for record in records.values():
        if record.occurrence is not None:
            made[record.job_id, record.schedule].append(record.run_id)
    for (job_id, instant), run_ids in made.items():
        if len(run_ids) > 1:
            verdict.doubled.append(f"{job_id} at {instant:.0f} has {len(run_ids)} runs: {run_ids}")
    for job_id, expected in jobs.items():
        if expected.interval is None:
            continue
        first = -int(-begin // expected.interval) * expected.interval
        for instant in range(first, int(end), expected.interval):
            verdict.occurrences += 1
            if (job_id, float(instant)) not in made:
                verdict.lost.append(f"{job_id} at {instant} has no run")


def _successors(jobs: Mapping[str, Expected], records: Mapping[str, Record], verdict: Verdict) -> None:
    caused: dict[str, list[str]] = defaultdict(list)
    for record in records.values():
        if record.cause is not None:
            caused[record.cause.split("/")[0]].append(record.run_id)
    for record in records.values():
        if jobs[record.job_id].successor is None or record.state != "success":
            continue
        made = caused[record.run_id]
        if not made and not record.owes:
            verdict.lost.append(f"the success of {record.run_id} ({record.job_id}) had no successor")
        elif len(made) > 1:
            verdict.doubled.append(f"the success of {record.run_id} had {len(made)} successors: {made}")


class _Judge:
    """Compares one record with what its program wrote."""

    def __init__(
        self, record: Record, expected: Expected, acts: Acts, history: History, reconnect: float
    ) -> None:
        self.record = record
        self.expected = expected
        self.begin = acts.begins[0] if acts.begins else None
        self.end = acts.ends[0] if acts.ends else None
        self.history = history
        self.reconnect = reconnect
        # How it ended; remarks may follow.
        self.verdict = next((text for text in reversed(record.log) if text.startswith(record.state)), "")
        # Of a life that was killed: what its programs did afterwards nobody can know.
        self.orphan = self.begin is not None and self.begin.agent in history.killed

    def judge(self, verdict: Verdict) -> None:
        self._timeliness(verdict)
        match self.record.state:
            case "success" | "failure" as state:
                self._ended(state, verdict)
            case "error":
                self._error(verdict)
            case "skipped":
                if self.begin is not None:
                    verdict.untrue.append(self._say("its program ran"))
                if "missed" not in " ".join(self.record.log):
                    verdict.lost.append(self._say("nothing says why it was skipped"))
            case "waiting" | "scheduled":
                # Nobody has a slot any more: everything else has ended.
                verdict.untrue.append(self._say("it waits, and there is nothing to wait for"))
            case _:
                verdict.untrue.append(self._say("nothing of it runs any more"))
        if self.begin is not None and self.record.occurrence is not None and self.begin.occurrence != "-":
            instant = datetime.fromisoformat(self.begin.occurrence).timestamp()
            if instant != self.record.schedule:
                verdict.untrue.append(self._say("its program ran for another occurrence"))
        # A program that never began has nothing to print, and one that printed has begun.
        self._output(verdict)

    def _say(self, text: str) -> str:
        record = self.record
        return (
            f"{record.run_id} ({record.job_id} at {record.schedule:.0f}) is {record.state}: {text};"
            f" begin={self.begin} end={self.end} log={record.log[-6:]}"
        )

    def _timeliness(self, verdict: Verdict) -> None:
        started = self.record.times.get("starting")
        if started is None or self.record.occurrence is None or "waiting" in self.record.times:
            return
        late = started - self.record.schedule
        if late > LATE and not any(
            SAID_LATE.search(text) for text in (*self.record.log, *_called(self.record))
        ):
            verdict.late.append(self._say(f"it began {late:.1f} s late"))

    def _ended(self, state: str, verdict: Verdict) -> None:
        end = self.end
        if state not in self.expected.ends and self.record.run_id not in self.history.stopped:
            verdict.untrue.append(self._say("that is not how this job ends"))
        if self.expected.cut:
            # Killed by its timeout, or before it had a handler for its stop: then it wrote no end.
            if end is None and "killed by SIG" not in self.verdict:
                verdict.untrue.append(self._say("nothing ended it"))
        elif end is None:
            verdict.untrue.append(self._say("its program has not come to its end"))
        elif (end.code in ("0", "stopped")) != (state == "success"):
            verdict.untrue.append(self._say("its program ended otherwise"))
        # The order to stop may have come when it was at its end already.
        forgotten = end is not None and end.code != "stopped" and "stopping" not in self.record.times
        if self.record.run_id in self.history.stopped and forgotten:
            verdict.untrue.append(self._say("it was to be stopped, and was not"))

    def _error(self, verdict: Verdict) -> None:
        text = self.last_error()
        conn_id = next((c for c, _, _ in self.history.away if re.search(rf"\b{c}\b", text)), None)
        born = 0.0 if self.begin is None else self.begin.boot
        # For so long the agent was away at most, after the program had begun. On a busy machine one that was
        # cut off comes back late by as much as everything is.
        away = max(
            (
                b - a + 3 * self.history.slow(a, b + self.reconnect)
                for c, a, b in self.history.away
                if c == conn_id and b > born
            ),
            default=0.0,
        )
        killed = any(life.startswith(f"{conn_id}.") for life in self.history.killed)
        if "reconnect timeout" in text:
            excused = away >= self.reconnect - SLACK
        elif "no longer" in text:
            excused = self.orphan
        elif "may have started" in text:
            excused = killed
        else:
            excused = False
        if excused:
            verdict.errors += 1
        else:
            verdict.lost.append(self._say("no fault excuses that"))
        self._late_verdict(verdict)
        if "nothing was started" in text and self.begin is not None:
            verdict.untrue.append(self._say("it was started"))

    def _late_verdict(self, verdict: Verdict) -> None:
        """Its agent lives, and knows how it ended: the log says so, and the record offers it."""
        end, offered = self.end, self.record.meta.get("late_verdict")
        if self.begin is None or self.orphan or "given_up" not in self.record.meta:
            return
        # Who has written no end was killed: by nobody else than the server.
        state = "success" if end is not None and end.code in ("0", "stopped") else "failure"
        if end is None and not self.expected.cut:
            verdict.untrue.append(self._say("its program has not come to its end"))
        told = any(line.startswith(f"late verdict: {state}") for line in self.record.log)
        if offered is None or offered["state"] != state or not told:
            verdict.untrue.append(self._say(f"the late verdict is {offered}, not {state}"))

    def last_error(self) -> str:
        return next((line for line in self.record.log if line.startswith("error")), "")

    def _output(self, verdict: Verdict) -> None:
        record, end = self.record, self.end
        printed = end.printed if end is not None else self.expected.lines
        rest = b" " + b"x" * self.expected.width if self.expected.width else b""
        whole = b"".join(b"%s %d%s\n" % (record.run_id.encode(), n, rest) for n in range(printed))
        if self.begin is None:
            whole = b""
        complete = end is not None and record.state in ("success", "failure")
        if complete and self.orphan and any("incomplete" in line for line in record.log):
            complete = False  # its agent was killed when it had told of the end, but not of all the output
        same = _digest(record.output) == _digest(whole) if complete else whole.startswith(record.output)
        if record.state in ("success", "failure", "error") and not same:
            if record.state == "error" and not record.output.startswith(record.run_id.encode()):
                return  # the text of an error
            verdict.untrue.append(
                self._say(
                    f"its output is {record.output[:200]!r} ({len(record.output)} bytes), not {printed} lines"
                )
            )


def owes_verdict(record: Record, acts: Acts, history: History) -> bool:
    """Whether the agent of a run that was given up has still to tell how its program ended."""
    waits = "given_up" in record.meta and "late_verdict" not in record.meta
    return waits and bool(acts.begins) and acts.begins[0].agent not in history.killed


def _called(record: Record) -> list[str]:
    """The labels that its metadata gives it."""
    return [str(name) for key in ("alarms", "reasons") for name in record.meta.get(key) or ()]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
