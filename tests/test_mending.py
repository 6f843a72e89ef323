"""What `apsis check-db --repair` makes of rows that can't be read, and what it keeps of them."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from storing import a_run, opened, put
from test_damage import DAMAGE

from apsislib.clock import WallClock
from apsislib.errors import ApsisError
from apsislib.runs import Note, Run, Save
from apsislib.states import FINISHED, State
from apsislib.store import Store, aside_of

Change = tuple[str, Any]  # a column of `runs`, and what it is made to hold
EACH = [(column, value) for column, values in DAMAGE.items() for value in values]


def spoilt(path: Path, cases: list[tuple[State, Iterable[Change]]]) -> dict[int, dict[str, Any]]:
    """A database with a run for each case, so changed; the rows, by number."""
    with opened(path) as (store, _):
        runs = [a_run(number, state) for number, (state, _) in enumerate(cases, 1)]
        put(store, *(effect for run in runs for effect in (Save(run), Note(run.run_id, 1.0, "begun"))))
    with closing(sqlite3.connect(path)) as db:
        with db:
            for number, (_, changes) in enumerate(cases, 1):
                for column, value in changes:
                    cast = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
                    db.execute(f"UPDATE runs SET {column} = {cast} WHERE number = ?", (value, number))
        db.row_factory = sqlite3.Row
        db.text_factory = bytes
        return {row["number"]: dict(row) for row in db.execute("SELECT * FROM runs")}


def mended(path: Path) -> tuple[list[str], dict[str, Run], dict[str, list[str]]]:
    """What is said to have been done; runs and logs afterwards, by run ID."""
    said = Store(path, WallClock()).mend()
    with opened(path) as (store, _):
        assert store.check() == []
        with store.read() as reader:
            runs = {run.run_id: run for run in reader.runs()}
            return said, runs, {run_id: [line for _, line in reader.log(run_id)] for run_id in runs}


def test_whatever_is_damaged_every_run_stays_and_what_stood_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "apsis.db"
    chosen = random.Random(1)
    states = [state for state in State if state is not State.NEW]
    damage = [(one,) for one in EACH]
    damage += [pair for pair in chosen.sample(list(combinations(EACH, 2)), 300) if pair[0][0] != pair[1][0]]
    cases = [(chosen.choice(states), changes) for changes in damage]
    before = spoilt(path, cases)
    found = {int(line.split()[1].rstrip(":")) for line in Store(path, WallClock()).check()}
    assert len(found) > 300
    said, runs, logs = mended(path)
    assert len(said) == len(found) and len(runs) == len(cases)
    kept = [json.loads(line) for line in aside_of(path).read_text().splitlines()]
    assert {entry["key"] for entry in kept} == found
    for number, (state, changes) in enumerate(cases, 1):
        run, log = runs[f"r{number}"], logs[f"r{number}"]
        assert log[0] == "begun" and len(log) == (2 if number in found else 1)
        if number in found and "state" not in dict(changes):
            assert run.state is state or (run.state is State.ERROR and state not in FINISHED)
    for entry in kept:
        for name, value in entry["row"].items():
            if isinstance(value, str) and "inf" not in value:
                assert value.encode() == before[entry["key"]][name], name


def test_what_is_whole_is_not_touched_and_the_second_time_there_is_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "apsis.db"
    spoilt(path, [(State.SUCCESS, [("meta", "{")]), (State.SUCCESS, []), (State.WAITING, [("conds", "5")])])
    with closing(sqlite3.connect(path)) as db:
        whole = db.execute("SELECT * FROM runs WHERE number = 2").fetchone()
    said, runs, logs = mended(path)
    assert said == [
        "runs 1: repaired: meta",
        "runs 3: repaired: conds; it is an error now, as it had not ended",
    ]
    assert (runs["r1"].state, runs["r1"].meta, runs["r1"].args) == (State.SUCCESS, {}, a_run(1).args)
    assert logs["r1"][1] == "its record could not be read and was repaired: meta"
    assert logs["r3"][1].startswith("error: its record could not be read")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM runs WHERE number = 2").fetchone() == whole
    kept = aside_of(path).read_bytes()
    assert Store(path, WallClock()).mend() == [] and aside_of(path).read_bytes() == kept


@pytest.mark.parametrize(
    ("column", "state"), [("meta", State.RUNNING), ("run_state", State.ERROR), ("program", State.ERROR)]
)
def test_a_run_that_has_begun_goes_on_if_what_that_takes_is_whole(
    tmp_path: Path, column: str, state: State
) -> None:
    path = tmp_path / "apsis.db"
    spoilt(path, [(State.RUNNING, [(column, "{")])])
    _, runs, _ = mended(path)
    assert runs["r1"].state is state
    assert (runs["r1"].run_state == a_run(1, State.RUNNING).run_state) is (column != "run_state")


def test_actions_and_jobs_that_cannot_be_read_are_taken_out_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "apsis.db"
    spoilt(path, [(State.SUCCESS, [])])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO owed (cause, run, action) VALUES ('r1/0/success', '{', '5')")
        db.execute("INSERT INTO owed (cause, run, action) VALUES (CAST(x'ff' AS TEXT), '{', '5')")
        db.execute("INSERT INTO jobs VALUES ('adhoc-1', '{')")
    said, _, logs = mended(path)
    assert said == [
        "owed r1/0/success: taken out: the action is not taken",
        "owed \\xff: taken out: the action is not taken",
        "jobs adhoc-1: taken out: the ad hoc job; its runs stay",
    ]
    assert logs["r1"][1] == "an action that it owed could not be read, and is not taken: r1/0/success"
    kept = [json.loads(line) for line in aside_of(path).read_text().splitlines()]
    assert [entry["key"] for entry in kept] == ["r1/0/success", {"base64": "/w=="}, "adhoc-1"]
    assert kept[2]["row"] == {"job_id": "adhoc-1", "job": "{"}


def test_nothing_is_changed_where_it_cannot_be_kept_or_the_file_itself_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "apsis.db"
    spoilt(path, [(State.SUCCESS, [("meta", "{")])])
    aside_of(path).mkdir()
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"apsis\.db\.unreadable\.jsonl"):
        Store(path, WallClock()).mend()
    assert path.read_bytes() == before
    aside_of(path).rmdir()
    with opened(path), pytest.raises(ApsisError, match="is in use by"):
        Store(path, WallClock()).mend()
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 4] = bytes(8192)
    path.write_bytes(data)
    with pytest.raises(ApsisError, match=r"damaged.*restore a backup, or .*\.recover"):
        Store(path, WallClock()).mend()
    assert path.read_bytes() == data and not aside_of(path).exists()
