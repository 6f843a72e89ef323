"""Searching by the instant of runs' latest transitions: how a list for people is ordered.

Run numbers are given when runs are made, which may be a day before they begin; a list by number is not one
by time. Where an index finds few rows these are fetched and sorted; else the index of latest transitions is
walked from one end, a stretch at a time, and the table looked into for what passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from apsislib.clock import Deadline
from apsislib.store.rows import COLUMNS
from apsislib.store.searching import FEW, count_of, plan
from apsislib.terms import Since, Term, Until

Query = Callable[[str, Collection[Any]], list[Any]]

STRETCH = 10_000  # runs that are looked at by one query: some 20 ms
EVER = 1e300  # beyond every instant

Place = tuple[float, int]  # (instant of the latest transition, run number): no two runs are in one


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[Any]  # of COLUMNS, in order
    rest: Place | None  # the rows beyond this place were not looked at; None: all were


def search(
    query: Query, terms: Collection[Term], start: Place | None, limit: int, budget: Deadline, oldest: bool
) -> Page:
    """Up to `limit` rows that pass every term, beyond `start`: newest first, or `oldest` first."""
    ways, clauses = plan(query, terms)
    if any(not way.kinds for way in ways):
        return Page([], None)
    beyond, order = (">", "ASC") if oldest else ("<", "DESC")
    first = max((term.time for term in terms if isinstance(term, Since)), default=-EVER)
    last = min((term.time for term in terms if isinstance(term, Until)), default=EVER)
    at: Place = start or ((first, -1) if oldest else (last, -1))
    passing = [*(way.clause() for way in ways), *clauses]
    where = " AND ".join(["1", *(f"({clause.sql})" for clause in passing)])
    values = [value for clause in passing for value in clause.values]
    columns = ", ".join(f"runs.{name}" for name in COLUMNS.split(", "))

    counts = [(count_of(query, way), way) for way in ways]
    count, best = min(counts, key=lambda pair: pair[0], default=(FEW, None))
    if best is not None and count < FEW:
        rows = query(
            f"SELECT {columns} FROM runs INDEXED BY {best.index} WHERE {where}"
            f" AND (timestamp, number) {beyond} (?, ?) ORDER BY timestamp {order}, number {order} LIMIT ?",
            (*values, *at, limit),
        )
        return _cut(rows, limit)
    found: list[Any] = []
    walk = (
        "FROM runs INDEXED BY runs_timestamp"
        f" WHERE timestamp >= ? AND timestamp < ? AND (timestamp, number) {beyond} (?, ?)"
    )
    by = f"ORDER BY timestamp {order}, number {order}"
    while True:
        stretch = (first, last, *at)
        end = query(f"SELECT timestamp, number {walk} {by} LIMIT 1 OFFSET ?", (*stretch, STRETCH - 1))
        rows = query(
            f"SELECT {columns} FROM (SELECT number AS n {walk} {by} LIMIT ?) JOIN runs ON runs.number = n"
            f" WHERE {where} {by} LIMIT ?",
            (*stretch, STRETCH, *values, limit - len(found)),
        )
        found += rows
        if len(found) == limit:
            return _cut(found, limit)
        if not end:
            return Page(found, None)
        at = end[0]
        if budget.passed():
            return Page(found, at)


_TIMESTAMP = COLUMNS.split(", ").index("timestamp")


def _cut(rows: list[Any], limit: int) -> Page:
    return Page(rows, (rows[-1][_TIMESTAMP], rows[-1][0]) if len(rows) == limit else None)
