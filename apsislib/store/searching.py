"""Searching the whole history: terms as SQL, and the index by which to go.

Three ways. Where an index finds few rows, these are fetched and sorted. Where all rows of an index pass
(one state, one job), its newest end is walked. Else `runs_search`, which has of each run what never
changes and a search looks into (number, job, args, labels), is walked from the newest end: a tenth of
the table's size, it takes 0.3 s for a million runs; the table itself is looked into only for what passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from apsislib.clock import Deadline
from apsislib.runs import quoted
from apsislib.store.rows import COLUMNS, dump
from apsislib.terms import (
    ArgHas,
    ArgIs,
    JobIs,
    JobPart,
    JobUnder,
    Label,
    Marked,
    Not,
    Since,
    StateIn,
    Term,
    Until,
    lower,
)

Query = Callable[[str, Collection[Any]], list[Any]]

FEW = 5000  # rows that are fetched and sorted rather than walked
WALKS = 10  # values of one index whose walks are merged
KINDS = 5000  # job IDs, or sets of labels, that are looked through for the ones that are meant
WINDOW = 100_000  # run numbers walked by one query: some 30 ms
# Seconds after which a page ends as it is: a search must not keep a thread for long.
BUDGET = 0.5

# Each value of an indexed column once, by a seek for each.
_DISTINCT = (
    "WITH RECURSIVE kinds(kind) AS ("
    " SELECT min({0}) FROM runs INDEXED BY {1} WHERE {0} > ''"
    " UNION ALL SELECT (SELECT min({0}) FROM runs INDEXED BY {1} WHERE {0} > kind) FROM kinds"
    " WHERE kind IS NOT NULL LIMIT ?)"
    " SELECT kind FROM kinds WHERE kind IS NOT NULL"
)
_IN = "{} IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True, slots=True)
class Clause:
    sql: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """A clause that an index serves: `column` is one of `kinds`."""

    index: str
    column: str
    kinds: tuple[Any, ...]

    def clause(self) -> Clause:
        return Clause(_IN.format(self.column), (dump(self.kinds),))


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[Any]  # newest first
    rest: int | None  # numbers below this were not looked at; None: all were


def search(query: Query, terms: Collection[Term], before: int, limit: int, budget: Deadline) -> Page:
    """Up to `limit` rows (of COLUMNS) that pass every term, numbered below `before`, newest first."""
    ways, clauses = plan(query, terms)
    if any(not way.kinds for way in ways):
        return Page([], None)
    low, high, narrow = _span(query, terms, before)
    counts = [(count_of(query, way), way) for way in ways]
    count, best = min(counts, key=lambda pair: pair[0], default=(FEW, None))

    def walk(path: str, more: list[Clause], low: int, high: int) -> list[Any]:
        chosen = [Clause("number >= ? AND number < ?", (low, high)), *more, *clauses]
        where = " AND ".join(f"({clause.sql})" for clause in chosen)
        values = [value for clause in chosen for value in clause.values]
        return query(
            f"SELECT {COLUMNS} FROM runs {path} WHERE {where} ORDER BY number DESC LIMIT ?", (*values, limit)
        )

    if best is not None and count < FEW:
        rows = walk(f"INDEXED BY {best.index}", [way.clause() for way in ways], low, high)
        return _cut(rows, limit)
    if narrow is not None:
        rows = walk("INDEXED BY runs_timestamp", [way.clause() for way in ways], low, high)
        return _cut(rows, limit)
    if best is not None and len(ways) == 1 and not clauses and len(best.kinds) <= WALKS:
        rows = [
            row
            for kind in best.kinds
            for row in walk(f"INDEXED BY {best.index}", [Clause(f"{best.column} = ?", (kind,))], low, high)
        ]
        return _cut(sorted(rows, key=lambda row: -row[0])[:limit], limit)
    path = "INDEXED BY runs_search" if ways or clauses else "NOT INDEXED"
    found: list[Any] = []
    top = min(high, _newest(query) + 1)
    while top > low:
        bottom = max(low, top - WINDOW)
        found += walk(path, [way.clause() for way in ways], bottom, top)
        if len(found) >= limit:
            return _cut(found[:limit], limit)
        top = bottom
        if budget.passed():
            return Page(found, top if top > low else None)
    return Page(found, None)


def _cut(rows: list[Any], limit: int) -> Page:
    return Page(rows, rows[-1][0] if len(rows) == limit else None)


def _newest(query: Query) -> int:
    number: int = query("SELECT coalesce(max(number), 0) FROM runs", ())[0][0]
    return number


def count_of(query: Query, way: Way) -> int:
    clause = way.clause()
    sql = f"SELECT count(*) FROM (SELECT 1 FROM runs INDEXED BY {way.index} WHERE {clause.sql} LIMIT {FEW})"
    number: int = query(sql, clause.values)[0][0]
    return number


def _span(query: Query, terms: Collection[Term], before: int) -> tuple[int, int, int | None]:
    """(lowest number, number beyond the highest) that the times leave, and how many runs if these are few."""
    since = max((term.time for term in terms if isinstance(term, Since)), default=None)
    until = min((term.time for term in terms if isinstance(term, Until)), default=None)
    if since is None and until is None:
        return 0, before, None
    # Runs are numbered about in the order of their times: a span of times is mostly one of numbers.
    low, high, count = query(
        "SELECT min(number), max(number), count(*) FROM runs INDEXED BY runs_timestamp"
        " WHERE timestamp >= ? AND timestamp < ?",
        (-1e300 if since is None else since, 1e300 if until is None else until),
    )[0]
    if not count:
        return 0, 0, 0
    return low, min(high + 1, before), count if count < FEW else None


def plan(query: Query, terms: Collection[Term]) -> tuple[list[Way], list[Clause]]:
    ways: list[Way] = []
    clauses: list[Clause] = []
    jobs = [term for term in terms if isinstance(term, JobPart | JobIs | JobUnder)]
    if jobs:
        exact = {term.job_id for term in jobs if isinstance(term, JobIs)}
        known = sorted(exact) if exact else _distinct(query, "job_id", "runs_job")
        if known is None:
            clauses += [_clause(term) for term in jobs]
        else:
            ways.append(Way("runs_job", "job_id", tuple(k for k in known if _is_meant(jobs, k))))
    labelled = [term for term in terms if isinstance(term, Label)]
    if labelled:
        sets = _distinct(query, "labels", "runs_labels")
        if sets is None:
            clauses += [_clause(term) for term in labelled]
        else:
            meant = tuple(s for s in sets if all(f",{quoted(t.label)}," in s for t in labelled))
            ways.append(Way("runs_labels", "labels", meant))
    alarmed = [term for term in terms if isinstance(term, Marked)]
    if alarmed:
        packs = _distinct(query, "alarms", "runs_alarms")
        if packs is None:
            clauses += [_clause(term) for term in alarmed]
        else:
            meant = tuple(
                p for p in packs if all(any(f",{quoted(a)}," in p for a in t.marks) for t in alarmed)
            )
            ways.append(Way("runs_alarms", "alarms", meant))
    states = [term.states for term in terms if isinstance(term, StateIn)]
    if states:
        names = sorted(state.value for state in frozenset.intersection(*states))
        ways.append(Way("runs_state", "state", tuple(names)))
    for term in terms:
        if isinstance(term, ArgHas | ArgIs):
            clauses.append(_clause(term))
        elif isinstance(term, Since):
            clauses.append(Clause("timestamp >= ?", (term.time,)))
        elif isinstance(term, Until):
            clauses.append(Clause("timestamp < ?", (term.time,)))
        elif isinstance(term, Not):
            inner = _clause(term.term)
            clauses.append(Clause(f"NOT ({inner.sql})", inner.values))
    return ways, clauses


def _is_meant(jobs: list[JobPart | JobIs | JobUnder], job_id: str) -> bool:
    text = lower(job_id)
    return all(
        t.text in text
        if isinstance(t, JobPart)
        else f"{job_id}/".startswith(f"{t.path}/")
        if isinstance(t, JobUnder)
        else t.job_id == job_id
        for t in jobs
    )


def _distinct(query: Query, column: str, index: str) -> list[str] | None:
    """Every value of the column, or None where there are too many to look through."""
    found = [kind for (kind,) in query(_DISTINCT.format(column, index), (KINDS,))]
    return found if len(found) < KINDS else None


def _clause(term: JobPart | JobIs | JobUnder | ArgHas | ArgIs | Label | Marked) -> Clause:
    if isinstance(term, JobPart):
        return Clause("instr(lower(job_id), ?) > 0", (term.text,))
    if isinstance(term, JobIs):
        return Clause("job_id = ?", (term.job_id,))
    if isinstance(term, JobUnder):
        return Clause("substr(job_id || '/', 1, ?) = ?", (len(term.path) + 1, f"{term.path}/"))
    if isinstance(term, ArgIs):
        given = "SELECT 1 FROM json_each(args) WHERE key = ? AND value = ?"
        return Clause(
            f"CASE WHEN instr(args, ?) > 0 AND json_valid(args) THEN EXISTS ({given}) ELSE 0 END",
            (f"{quoted(term.name)}:{quoted(term.value)}", term.name, term.value),
        )
    if isinstance(term, Label):
        return Clause("labels IS NOT NULL AND instr(labels, ?) > 0", (f",{quoted(term.label)},",))
    if isinstance(term, Marked):
        wanted = [f",{quoted(mark)}," for mark in sorted(term.marks)]
        parts = " OR ".join(["instr(alarms, ?) > 0"] * len(wanted))
        return Clause(f"alarms IS NOT NULL AND ({parts})", tuple(wanted))
    # First a look at the text, which nearly always decides; json_each() of a damaged row would end the query.
    inside = "SELECT 1 FROM json_each(args) WHERE key = ? AND instr(lower(value), ?) > 0"
    exact: tuple[str, ...] = (term.name, term.text)
    if not term.text:
        inside, exact = "SELECT 1 FROM json_each(args) WHERE key = ?", (term.name,)
    return Clause(
        "CASE WHEN instr(args, ?) > 0 AND instr(lower(args), ?) > 0 AND json_valid(args)"
        f" THEN EXISTS ({inside}) ELSE 0 END",
        (f"{quoted(term.name)}:", lower(quoted(term.text)[1:-1]), *exact),
    )
