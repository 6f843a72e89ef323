"""Reading the database. Every query goes by an index, and is a short transaction of its own."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, TypeVar

from apsislib.clock import Clock, Deadline
from apsislib.errors import ApsisError
from apsislib.runs import Args, Owe, Run, canonical, run_number
from apsislib.states import FINISHED, State
from apsislib.store import bytime, history, outputs, searching, timeline
from apsislib.store.damage import UNREADABLE, Damage, read_job, read_owed
from apsislib.store.records import OutputInfo
from apsislib.store.rows import COLUMNS, dump, from_row
from apsislib.terms import Term

log = logging.getLogger(__name__)

T = TypeVar("T")

# A filter that at most so many rows pass is served by fetching and sorting these. Beyond it the rows
# are walked in the order asked for, and the walk ends at the limit.
FEW = 5000
WALKS = 10  # values of one filter whose walks are merged; more are one walk along the whole table
RECENT = 200  # runs of a job among which its last success is looked for
LAST = (1 << 63) - 1  # beyond every run number

UNFINISHED = tuple(state for state in State if state not in FINISHED)


_RETIRABLE = (
    "timestamp < ? AND state IN (SELECT value FROM json_each(?)) AND (occurrence IS NULL OR schedule < ?)"
)


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on runs. `index` serves it; None: it only sifts what another has found."""

    clause: str
    values: tuple[Any, ...]
    index: str | None = None


class Reader:
    """Queries on one read-only connection. To be used by one thread, inside `with store.read()`."""

    def __init__(self, db: Connection, clock: Clock, damage: Damage, limit: float) -> None:
        self._db = db
        self._clock = clock
        self._damage = damage
        self._limit = limit  # s a query
        self._end = 0.0
        db.set_progress_handler(lambda: self._clock.monotonic() > self._end, 100_000)

    def _all(self, sql: str, values: Collection[Any] = ()) -> list[Any]:
        """Every row at once: a cursor left open would keep the write-ahead log from being cut back."""
        self._end = self._clock.monotonic() + self._limit
        try:
            return self._db.execute(sql, tuple(values)).fetchall()
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
        # Text that is not UTF-8, which only a damaged or foreign row can hold.
        self._db.text_factory = lambda text: text.decode("utf-8", "replace")
        try:
            return self._db.execute(sql, tuple(values)).fetchall()
        finally:
            self._db.text_factory = str

    def _readable(self, table: str, rows: list[Any], read: Callable[[Any], T]) -> list[T]:
        """The rows (whose first column is their key) as records, but for those that are damaged."""
        found: list[T] = []
        for row in rows:
            try:
                found.append(read(row))
            except UNREADABLE as error:
                self._damage.note(table, row[0], error)
        return found

    # -- runs --------------------------------------------------------------------------------------

    def run(self, run_id: str) -> Run | None:
        """The run, or None where there is none (or its row is damaged)."""
        found = self.runs(run_ids=[run_id])
        return found[0] if found else None

    def runs(
        self,
        *,
        run_ids: Collection[str] | None = None,
        job_id: str | Collection[str] | None = None,
        states: Collection[State] | None = None,
        args: Args | None = None,
        exact_args: Args | None = None,
        since: float | None = None,
        until: float | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Run]:
        """The runs that pass every filter, by number: ascending, or `newest` first.

        `args` must be among a run's args, `exact_args` be all of them. `since` <= timestamp < `until`.
        To page, give the number of the last run seen as `before` (newest first) or `after`.
        """
        filters = self._filters(run_ids, job_id, states, args, exact_args, since, until, after, before)
        return self._readable("runs", self._rows(filters, limit, newest), from_row)

    def newest(self, since: float | None, before: int | None, limit: int) -> tuple[list[Run], int | None]:
        """(up to `limit` runs whose latest transition is not before `since`, newest first; the `before` of
        the next page). None for the latter: there is no more. A page may hold fewer: some can't be read.
        """
        filters = self._filters(None, None, None, None, None, since, None, None, before)
        rows = self._rows(filters, limit, True)
        return self._readable("runs", rows, from_row), rows[-1][0] if len(rows) == limit else None

    def count(
        self,
        *,
        run_ids: Collection[str] | None = None,
        job_id: str | Collection[str] | None = None,
        states: Collection[State] | None = None,
        args: Args | None = None,
        exact_args: Args | None = None,
        since: float | None = None,
        until: float | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> int:
        """How many runs pass every filter; counting stops at `limit`."""
        filters = self._filters(run_ids, job_id, states, args, exact_args, since, until, after, before)
        return self._count(self._narrowest(filters)[0], filters, limit)

    def search(self, terms: Collection[Term], before: int | None, limit: int) -> tuple[list[Run], int | None]:
        """(up to `limit` runs that pass every term, newest first; the `before` of the next page).

        None for the latter: there is no more. A page may hold fewer, though more follow: what would
        take long is done piece by piece.
        """
        budget = Deadline(searching.BUDGET, self._clock)
        page = searching.search(self._all, terms, LAST if before is None else before, limit, budget)
        return self._readable("runs", page.rows, from_row), page.rest

    def search_by_time(
        self, terms: Collection[Term], start: bytime.Place | None, limit: int, oldest: bool = False
    ) -> tuple[list[Run], bytime.Place | None]:
        """The same by latest transition, newest or `oldest` first; `start`: the place before the page."""
        budget = Deadline(searching.BUDGET, self._clock)
        page = bytime.search(self._all, terms, start, limit, budget, oldest)
        return self._readable("runs", page.rows, from_row), page.rest

    def _filters(
        self,
        run_ids: Collection[str] | None,
        job_id: str | Collection[str] | None,
        states: Collection[State] | None,
        args: Args | None,
        exact_args: Args | None,
        since: float | None,
        until: float | None,
        after: int | None,
        before: int | None,
    ) -> list[Filter]:
        # Always there, so that a walk along the table is a search from one number to another.
        filters = [Filter("number > ? AND number < ?", (after or 0, LAST if before is None else before))]
        if run_ids is not None:
            numbers = {run_number(run_id) for run_id in run_ids} - {None}
            filters.append(_among("number", numbers, None))
        if job_id is not None:
            jobs = {job_id} if isinstance(job_id, str) else set(job_id)
            if exact_args is not None and len(jobs) == 1:
                instance = (*jobs, canonical(exact_args))
                filters.append(Filter("job_id = ? AND args = ?", instance, "runs_instance"))
            else:
                filters.append(_among("job_id", jobs, "runs_job"))
        if exact_args is not None and filters[-1].index != "runs_instance":
            filters.append(Filter("args = ?", (canonical(exact_args),)))
        for name, value in (args or {}).items():
            # CASE: json_each() of a damaged row would end the query.
            clause = "EXISTS (SELECT 1 FROM json_each(runs.args) WHERE key = ? AND value = ?)"
            filters.append(Filter(f"CASE WHEN json_valid(runs.args) THEN {clause} ELSE 0 END", (name, value)))
        if states is not None:
            filters.append(_among("state", {State(state).value for state in states}, "runs_state"))
        if since is not None or until is not None:
            ends = (-1e300 if since is None else since, 1e300 if until is None else until)
            filters.append(Filter("timestamp >= ? AND timestamp < ?", ends, "runs_timestamp"))
        return filters

    def _narrowest(self, filters: list[Filter]) -> tuple[str | None, int]:
        """The index that finds the fewest rows, and how many, counted to FEW at most."""
        best: tuple[str | None, int] = (None, FEW)
        for one in filters:
            if one.index and best[1]:
                number = self._count(one.index, [one], FEW)
                if best[0] is None or number < best[1]:
                    best = one.index, number
        return best

    def _walks(self, filters: list[Filter], newest: bool) -> list[tuple[str | None, list[Filter]]]:
        """The queries, each by an index, whose results together are the answer."""
        if any(one.clause.startswith("number IN") for one in filters):
            return [(None, filters)]
        index, number = self._narrowest(filters)
        if number < FEW:
            return [(index, filters)]
        by_index = {one.index: one for one in filters if one.index}
        # Rows of equal keys lie in an index by number: a walk needs no sorting, and ends at the limit.
        for name, column in (("runs_instance", "state"), ("runs_job", "job_id"), ("runs_state", "state")):
            if name not in by_index:
                continue
            one = by_index.get("runs_state") if name == "runs_instance" else by_index[name]
            values = json.loads(one.values[0]) if one else list(State)
            if len(values) <= WALKS:
                rest = [other for other in filters if other is not one]
                return [(name, [*rest, Filter(f"{column} = ?", (value,))]) for value in values]
        span = by_index.get("runs_timestamp")
        if span and abs(span.values[1 if newest else 0]) < 1e300:
            # The walk would begin outside the span, and might be long until it reached it.
            return [("runs_timestamp", filters)]
        return [(None, filters)]

    def _rows(self, filters: list[Filter], limit: int | None, newest: bool) -> list[Any]:
        rows = [
            row
            for index, conditions in self._walks(filters, newest)
            for row in self._select(index, conditions, limit, newest)
        ]
        rows.sort(key=lambda row: row[0], reverse=newest)
        return rows if limit is None else rows[:limit]

    def _select(self, index: str | None, filters: list[Filter], limit: int | None, newest: bool) -> list[Any]:
        where, values = _where(filters)
        order = "DESC" if newest else "ASC"
        return self._all(
            f"SELECT {COLUMNS} FROM runs {_by(index)} WHERE {where} ORDER BY number {order} LIMIT ?",
            (*values, -1 if limit is None else limit),
        )

    def _count(self, index: str | None, filters: list[Filter], limit: int | None) -> int:
        where, values = _where(filters)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM runs {_by(index)} WHERE {where} LIMIT ?)"
        number: int = self._all(sql, (*values, -1 if limit is None else limit))[0][0]
        return number

    def reruns(self, run_id: str) -> list[str]:
        """IDs of the runs that rerun this one, by number; the latest thousand."""
        sql = (
            "SELECT number FROM runs INDEXED BY runs_rerun WHERE rerun_of = ? ORDER BY number DESC LIMIT 1000"
        )
        return [f"r{number}" for (number,) in reversed(self._all(sql, (run_id,)))]

    def active(self) -> list[Run]:
        """All unfinished runs, by number."""
        where, values = _where([_among("state", set(UNFINISHED), None)])
        sql = f"SELECT {COLUMNS} FROM runs INDEXED BY runs_state WHERE {where} ORDER BY number"
        return self._readable("runs", self._all(sql, values), from_row)

    def ended(self, key: tuple[str, str]) -> set[State]:
        """The finished states that runs of this instance (job ID, canonical args) are in."""
        # One probe of the index a state: a daily job's ten years of runs are not looked at.
        probe = (
            "SELECT 1 FROM runs INDEXED BY runs_instance WHERE job_id = ? AND args = ? AND state = ? LIMIT 1"
        )
        return {state for state in FINISHED if self._all(probe, (*key, state.value))}

    def last_success(self, job_id: str) -> float | None:
        """When the latest success among the job's last runs ended; no more than RECENT are looked at."""
        sql = (
            "SELECT max(timestamp) FROM (SELECT state, timestamp FROM runs INDEXED BY runs_job"
            " WHERE job_id = ? ORDER BY number DESC LIMIT ?) WHERE state = ?"
        )
        found: float | None = self._all(sql, (job_id, RECENT, State.SUCCESS.value))[0][0]
        return found

    def past(
        self, job_id: str, args: Args | None, before: int | None, limit: int
    ) -> tuple[list[history.Past], int | None]:
        """(how a job's runs ended, or those of an instance, newest first; the `before` of the next page)."""
        key = None if args is None else canonical(args)
        return history.past(self._all, job_id, key, LAST if before is None else before, limit)

    def latest(self, job_ids: Sequence[str]) -> Iterator[tuple[str, int, State, float]]:
        """(job ID, run number, state, when it came to be in that) of each job's newest run that is due."""
        return history.latest(self._all, job_ids)

    def outcomes(
        self, job_id: str, since: float, before: int | None, limit: int
    ) -> tuple[list[tuple[State, float]], int | None]:
        """((state, instant it was due) of a job's runs, newest first; the `before` to go on with)."""
        return history.outcomes(self._all, job_id, since, LAST if before is None else before, limit)

    def lanes(
        self, since: float, until: float, words: Sequence[str]
    ) -> tuple[list[timeline.Lane], float | None]:
        """(jobs that finished runs in a span; the instant before which runs were too many to be counted)."""
        return timeline.lanes(self._all, since, until, words)

    def bars(self, lane: timeline.Lane, since: float, until: float, limit: int) -> list[history.Past]:
        """A job's finished runs in the span, newest first."""
        return timeline.bars(self._all, lane, since, until, limit)

    def slots(
        self, lane: timeline.Lane, since: float, until: float, count: int
    ) -> list[tuple[int, int, int]]:
        """(which of `count` equal parts of the span; runs of a job that ended in it; of these, failed)."""
        return timeline.slots(self._all, lane, since, until, count)

    def unfinished(self, limit: int) -> list[tuple[str, history.Past]]:
        """(job ID, run) of what waits, starts, runs or stops, newest first."""
        return timeline.active(self._all, limit)

    def scheduled(self, since: float, until: float, limit: int) -> list[Run]:
        """The first runs in the database that are scheduled and due in the span, by when they are due."""
        return self._readable("runs", timeline.scheduled(self._all, since, until, limit), from_row)

    def standing(self, since: float) -> list[Run]:
        """Failures since an instant that no later run of the instance has made good, newest first."""
        return self._readable("runs", timeline.standing(self._all, since), from_row)

    def occurrences(self, since: float) -> set[str]:
        """Identities of the occurrences, at or after `since`, that runs were made of."""
        sql = (
            "SELECT occurrence FROM runs INDEXED BY runs_schedule"
            " WHERE occurrence IS NOT NULL AND schedule >= ?"
        )
        return {occurrence for (occurrence,) in self._all(sql, (since,))}

    def occurred(self, first: float, last: float, jobs: Collection[str]) -> list[Run]:
        """Runs of these jobs that schedules made for instants from `first` to `last`, by number."""
        sql = (
            f"SELECT {COLUMNS} FROM runs INDEXED BY runs_schedule WHERE occurrence IS NOT NULL"
            " AND schedule >= ? AND schedule <= ? AND job_id IN (SELECT value FROM json_each(?))"
            " ORDER BY number LIMIT ?"
        )
        rows = self._all(sql, (first, last, dump(sorted(jobs)), 2 * FEW))
        return self._readable("runs", rows, from_row)

    def made_by(self, run_id: str) -> list[Run]:
        """The runs that actions of a run made, by number."""
        # All causes that begin with `r12/`: the character after a slash is 0.
        sql = (
            f"SELECT {COLUMNS} FROM runs INDEXED BY runs_cause WHERE cause IS NOT NULL"
            " AND cause >= ? AND cause < ? ORDER BY number LIMIT ?"
        )
        rows = self._all(sql, (f"{run_id}/", f"{run_id}0", RECENT))
        return self._readable("runs", rows, from_row)

    def retirable(
        self, before: float, after: tuple[float, int] | None, limit: int
    ) -> list[tuple[float, int]]:
        """(timestamp, number) of finished runs whose last transition was before an instant, oldest first.

        `after`: where the last call ended. A run whose occurrence lies ahead of the stored clock (it was
        started by hand before its time, or skipped) is not among them: it is what keeps another from
        being made of it.
        """
        return self._all(
            f"SELECT timestamp, number FROM runs INDEXED BY runs_timestamp WHERE {_RETIRABLE}"
            " AND (timestamp, number) > (?, ?) ORDER BY timestamp, number LIMIT ?",
            (*self._retirable(before), *(after or (-1e300, 0)), limit),
        )

    def count_retirable(self, before: float) -> int:
        """How many runs retirable() would give in all."""
        number: int = self._all(
            f"SELECT count(*) FROM runs INDEXED BY runs_timestamp WHERE {_RETIRABLE}", self._retirable(before)
        )[0][0]
        return number

    def is_swept(self) -> bool:
        """Whether nothing is left of deleted runs."""
        return not self._all("SELECT 1 FROM outputs WHERE number < 0 LIMIT 1")

    def _retirable(self, before: float) -> tuple[Any, ...]:
        clock = self.clock()
        return before, dump(sorted(state.value for state in FINISHED)), -1e300 if clock is None else clock

    # -- what belongs to a run -----------------------------------------------------------------------

    def log(self, run_id: str) -> list[tuple[float, str]]:
        """The run's log, (instant, message), in the order in which things happened."""
        return self._all("SELECT time, message FROM log WHERE number = ? ORDER BY seq", (run_number(run_id),))

    def outputs(self, run_id: str) -> list[OutputInfo]:
        sql = "SELECT output_id, name, content_type, length FROM outputs WHERE number = ? ORDER BY output_id"
        return [OutputInfo(*row) for row in self._all(sql, (run_number(run_id),))]

    def output_info(self, run_id: str, output_id: str) -> OutputInfo | None:
        return next((info for info in self.outputs(run_id) if info.output_id == output_id), None)

    def output(self, run_id: str, output_id: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes start .. stop (the end as it is now) of an output, in pieces of at most 256 KiB.

        Nothing where there is no such output, or from where its run is deleted. ApsisError: its bytes are
        damaged.
        """
        sql = "SELECT id, length FROM outputs WHERE number = ? AND output_id = ?"
        rows = self._all(sql, (run_number(run_id), output_id))
        if not rows:
            return
        output, length = rows[0]
        position, end = max(0, start), length if stop is None else min(stop, length)
        while position < end:
            self._end = self._clock.monotonic() + self._limit
            try:
                found = outputs.window(self._db, output, position)
            except zlib.error:
                found = None
            if found is None:
                if not self._all(sql, (run_number(run_id), output_id)):
                    return  # its run was archived, or deleted, meanwhile: that is no damage
                raise ApsisError(f"output {output_id} of {run_id} is damaged at byte {position}")
            first, data = found
            piece = data[position - first : end - first]
            position += len(piece)
            yield piece

    # -- what belongs to the whole -------------------------------------------------------------------

    def owed(self) -> list[Owe]:
        """The actions that are owed, in the order in which they came to be."""
        rows = self._all("SELECT cause, run, action FROM owed ORDER BY seq")
        return self._readable("owed", rows, read_owed)

    def ad_hoc(self) -> list[tuple[str, dict[str, Any]]]:
        """(job ID, definition) of the jobs that came without a file."""
        rows = self._all("SELECT job_id, job FROM jobs ORDER BY job_id")
        return self._readable("jobs", rows, read_job)

    def clock(self) -> float | None:
        """Everything due before this instant has been claimed; None in a new database."""
        value = self.meta("clock")
        return None if value is None else float(value)

    def meta(self, name: str) -> str | int | float | None:
        rows = self._all("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else None


def _among(column: str, values: Collection[Any], index: str | None) -> Filter:
    return Filter(f"{column} IN (SELECT value FROM json_each(?))", (dump(sorted(values)),), index)


def _where(filters: list[Filter]) -> tuple[str, list[Any]]:
    return " AND ".join(one.clause for one in filters), [value for one in filters for value in one.values]


def _by(index: str | None) -> str:
    return f"INDEXED BY {index}" if index else "NOT INDEXED"
