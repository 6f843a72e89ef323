"""`apsis import-db`: a database of Apsis 2, walked table by table into a new one."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event
from typing import Any

import programs
from apsislib import config as configs
from apsislib import jobs
from apsislib.calendars import Calendars
from apsislib.clock import Clock, WallClock
from apsislib.config.keys import Config
from apsislib.errors import ApsisError, BadRequest, FieldError
from apsislib.moving import records
from apsislib.moving.records import Movers, Row, Unreadable, name_of, number, text
from apsislib.offline.progress import Progress
from apsislib.runs import Json, stamp
from apsislib.store.importing import BLAME, Import, imported
from apsislib.store.oldfile import OldFile, Stretch
from apsislib.store.outputs import NO_BROTLI, has_brotli, unpacked
from apsislib.times import parse_duration

# Apsis 2 stored its clock, then started what was due: cut off in between, it never started it. Its clock
# moved every second; what came within this long before it, and is not there, is made up for.
CUT_OFF = 5.0  # s
FRESH = 10.0  # s; a clock that was stored more recently may be that of a server which still runs
LOOK_AGAIN = 2.5  # s; in which a server stores its clock twice
STRETCH_ROWS = 2000  # in a transaction
STRETCH_BYTES = 8 << 20  # of outputs in a transaction, before they are packed
SHOWN = 20  # IDs in each line of the report; --format json has more


def run(args: argparse.Namespace) -> int:
    """Raises ApsisError, OSError."""
    config = configs.load(args.config)
    target = args.new
    if target is None:
        if args.config is None:
            raise BadRequest(f"name the new file: apsis import-db {args.old} NEW.db")
        target = config.database.path
    target = Path(target).resolve()
    old = OldFile(args.old)
    try:
        if target == args.old.resolve():
            raise BadRequest(f"{args.old} is left as it is: name another file for the new database")
        report = _done_before(old, target)
        if report is None:
            report = _import(old, target, config, _duration(args.stale))
        elif not args.format:
            print(f"{target} was imported before: nothing is done")
    finally:
        old.close()
    if args.format:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(described(report, target)))
    return 0


def _duration(words: str) -> float | None:
    if words in ("never", "off"):
        return None
    try:
        return parse_duration(words)
    except ValueError as error:
        raise BadRequest(f"--stale: {error}, or never") from None


def _done_before(old: OldFile, target: Path) -> Json | None:
    """The report of an import that has been done; None: there is none. Raises BadRequest."""
    if not target.exists():
        return None
    found = imported(target)
    if found is None:
        raise BadRequest(f"{target} exists, and was not imported from Apsis 2: name a new file")
    source, report = found
    if source != old.fingerprint():
        raise BadRequest(
            f"{target} was imported from {report['source']}, but not as {old.path} is now: to import it"
            " again, name a new file"
        )
    return report


def _import(old: OldFile, target: Path, config: Config, stale: float | None) -> Json:
    clock = WallClock()
    if not target.parent.is_dir():
        raise BadRequest(f"there is no directory {target.parent}")
    _refuse_live(old, clock)
    if (packed := old.packed_by_brotli()) and not has_brotli():
        raise ApsisError(f"{packed} outputs in {old.path} are {NO_BROTLI}")
    new = Import(target, old.fingerprint(), old.path, clock.wall())
    try:
        stopped = old.clock()
        start = None if stopped is None else stopped - CUT_OFF
        if not new.whole:
            with Progress(sum(old.counts().values()), "rows") as progress:
                Mover(old, new, config, start, stale).walk(progress)
            _refuse_live(old, clock)
        return new.finish(old.path, start, old.next_run())
    finally:
        new.close()


def _refuse_live(old: OldFile, clock: Clock) -> None:
    """Raises ApsisError if a server uses the old database."""
    then = old.clock()
    now = old.clock_now()
    if then is not None and now == then and abs(clock.wall() - then) < FRESH:
        Event().wait(LOOK_AGAIN)
        now = old.clock_now()
    if now != then:
        raise ApsisError(f"a server is using {old.path}: stop it, then import; or import a copy")


class Mover:
    """Carries tables over, stretch by stretch."""

    def __init__(
        self, old: OldFile, new: Import, config: Config, start: float | None, stale: float | None
    ) -> None:
        self._old = old
        self._new = new
        table = programs.Table(config)
        types = config.schedule_types, config.condition_types, config.action_types
        self._kinds = jobs.Kinds(table.parse, Calendars(config.calendars), *types)
        last = old.clock()
        before = None if last is None or stale is None else last - stale
        self._movers = Movers(table.load, _is_ours, new.began, start, before)

    def walk(self, progress: Callable[[int], None]) -> None:
        """All tables, each from where an earlier import has got to. ApsisError: it can't go on."""
        counts, before = self._old.counts(), 0
        for table, way in (
            ("jobs", self._job),
            ("runs", self._run),
            ("run_history", self._line),
            ("output", self._output),
        ):
            at, ended = self._new.walked(table), False
            while not ended:
                stretch = self._old.rows(table, at, STRETCH_ROWS)
                self._write(table, stretch, way)
                at, ended = stretch.last, stretch.ended
                progress(before + counts.get(table, 0) * at // max(1, self._old.ends.get(table, 1)))
            before += counts.get(table, 0)

    def _write(self, table: str, stretch: Stretch, way: Callable[[Row], None]) -> None:
        for part, last in _parts(stretch, table):
            with self._new.stretch(table, last):
                for row in part:
                    try:
                        way(row)
                    except (Unreadable, ApsisError, *BLAME) as error:
                        self._new.remark("left", self._name(table, row), str(error))
                if last == stretch.last:
                    for rowid, reason in stretch.damaged:
                        self._new.remark("left", f"{table} row {rowid}", reason)

    @staticmethod
    def _name(table: str, row: Row) -> str:
        what = {"run_history": "log of ", "output": "output of ", "jobs": "job "}.get(table, "")
        return what + name_of(row[1], row[0])

    def _job(self, row: Row) -> None:
        job_id = text(row[1], "job ID")
        job = records.read_json(row[2], "definition")
        if not isinstance(job, dict):
            raise Unreadable("its definition is not a mapping")
        if job.get("schedule"):
            # Apsis 2 ran such a job for ever, and showed it nowhere.
            self._new.remark("changed", f"job {job_id}", "without its schedules: ad hoc jobs have none")
            job["schedule"] = []
        try:
            jobs.parse_job(job, job_id, self._kinds, ad_hoc=True)
        except FieldError as error:
            said = f"its runs are there, but can't be run again: {error}"
            self._new.remark("changed", f"job {job_id}", said)
        self._new.add_job(job_id, job)

    def _run(self, row: Row) -> None:
        moved = records.run_of(row, self._movers)
        run = moved.run
        self._new.add_run(run)
        for remark in moved.remarks:
            self._new.remark("changed", run.run_id, remark)
        if moved.log is not None:
            self._new.add_last_line(run.run_id, moved.log)

    def _line(self, row: Row) -> None:
        _, run_id, time, message = row
        run_id = self._owner(run_id)
        at = number(time)
        if at is None:
            raise Unreadable("a line without a time")
        self._new.add_line(run_id, at, text(message, "message"))

    def _output(self, row: Row) -> None:
        rowid, run_id, output_id, name, content_type, length, compression, kind = row
        run_id = self._owner(run_id)
        # Apsis 2 kept tracebacks under this ID, where nobody could see them.
        output_id = text(output_id, "output ID")
        output_id = "traceback" if (output_id, name) == ("outputs", b"traceback") else output_id
        if kind not in (b"blob", b"text"):
            raise Unreadable(f"{output_id}: it has no bytes")
        packing = None if compression is None else text(compression, "compression")
        try:
            pieces = unpacked(self._old.data(rowid), packing)
            got = self._new.add_output(
                run_id, output_id, text(name, "name"), text(content_type, "content type"), pieces
            )
        except (ApsisError, *BLAME) as error:
            raise Unreadable(f"{output_id}: {error}") from None
        if got != length:
            self._new.remark("changed", f"output of {run_id}", f"{output_id} has {got} bytes, not {length}")

    def _owner(self, value: Any) -> str:
        run_id = text(value, "run ID")
        if not self._new.has_run(run_id):
            raise Unreadable("there is no such run")
        return run_id


def _is_ours(kind: str) -> bool:
    return kind in programs.BOUND or kind in programs.INTERNAL


def _parts(stretch: Stretch, table: str) -> Iterable[tuple[list[Row], int]]:
    """(rows of a transaction, the row ID up to which it goes): one but for outputs, which may be large."""
    if table != "output":
        yield stretch.rows, stretch.last
        return
    part: list[Row] = []
    size = 0
    for row in stretch.rows:
        part.append(row)
        size += int(number(row[5]) or 0)
        if size >= STRETCH_BYTES and row is not stretch.rows[-1]:
            yield part, row[0]
            part, size = [], 0
    yield part, stretch.last


def described(report: Json, target: Path) -> list[str]:
    """The report, for people."""
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(report["runs"].items()))
    lines = [
        f"{sum(report['runs'].values()):,} runs" + (f": {states}" if states else ""),
        f"{report['log']:,} lines of run logs",
        f"{report['outputs']:,} outputs, {report['output_bytes']:,} bytes",
        f"{report['jobs']:,} ad hoc jobs",
    ]
    if report["clock"] is not None:
        lines.append(f"schedules go on from {stamp(report['clock'])}")
    for kind, heading in (("left", "not carried over"), ("changed", "carried over with a change")):
        reasons: dict[str, list[str]] = {}
        rows: Counter[str] = Counter()
        for one, name, reason, count in report["remarks"]:
            if one == kind:
                reasons.setdefault(reason, []).append(name)
                rows[reason] += count
        for reason, names in reasons.items():
            more = f", ... ({len(names):,} in all)" if len(names) > SHOWN else ""
            times = f" ({rows[reason]:,} rows)" if rows[reason] > len(names) else ""
            lines.append(f"{heading}: {', '.join(names[:SHOWN])}{more}{times}: {reason}")
    if report["remarks_in_all"] > len(report["remarks"]):
        lines.append(f"and {report['remarks_in_all'] - len(report['remarks']):,} more")
    return [*lines, f"imported into {target}"]
