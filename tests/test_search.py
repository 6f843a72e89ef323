"""Searches of the whole history: what a term means, and that the database means the same."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storing import a_run, opened, put

from apsislib.errors import BadRequest
from apsislib.runs import Save
from apsislib.states import State
from apsislib.store import Store, bytime, files, searching
from apsislib.terms import (
    ArgHas,
    ArgIs,
    JobPart,
    JobUnder,
    Label,
    Marked,
    Not,
    Since,
    StateIn,
    Until,
    admits,
    parse,
)

NOW = 2e9
JOBS = ["etl/load", "etl/get", "ops/Vacuum", "é%_x", 'odd"\\', "a:b=c"]
LABELS: list[list[str]] = [[], ["etl"], ["etl", "night ly"], ['q"uo', "ünï"], ["etl,night"]]
ALARMS: list[dict[str, Any]] = [
    *[{}] * 10,
    {"alarms": ["late", "long"], "reasons": {"late": "x", "long": "y"}},
    {"alarms": ["long"]},
    {"reasons": {"late": "the server was down"}},
    {"alarms": ["long"], "late_verdict": {"state": "success"}},
    {"late_verdict": {"state": "failure"}},
    {"late_verdict": {"state": "error"}},
    {"late_verdict": 5},
]
VALUES = ["eu", "EU-west", 'q"uo', "a\\b", "ünï", "", "2031-05-06", "x=y:z", "%_"]
NAMES = ["region", "da te", 'n"', "b\\"]


def a_history(size: int = 400) -> list[Any]:
    """Runs of every kind, alike in each test."""
    rnd = random.Random(7)
    made = []
    for number in range(1, size + 1):
        names = rnd.sample(NAMES, rnd.randrange(4))
        labels = rnd.choice(LABELS)
        made.append(
            a_run(
                number * 3,
                rnd.choice(list(State)[1:]),
                rnd.choice(JOBS),
                args={name: rnd.choice(VALUES) for name in names},
                timestamp=NOW - rnd.randrange(1000) * 60,
                meta=({"job": {"labels": labels}} if labels or number % 2 else {}) | rnd.choice(ALARMS),
            )
        )
    return made


HISTORY = a_history()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with opened(tmp_path_factory.mktemp("history") / "apsis.db") as (store, _):
        put(store, *map(Save, HISTORY))
        yield store


def find(store: Store, query: str, limit: int = 1000) -> list[str]:
    """All pages of a search, one after the other."""
    found: list[str] = []
    before = None
    while True:
        with store.read() as reader:
            runs, rest = reader.search(parse(query, NOW), before, limit)
        assert len(runs) <= limit and (before is None or rest is None or rest < before)
        found += [run.run_id for run in runs]
        if rest is None:
            return found
        before = rest


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


WORDS = st.one_of(
    st.sampled_from([*JOBS, "ETL", "load", "x", "nothing"]).map(quote),
    st.builds(
        lambda name, value: f"{quote(name)}={quote(value)}",
        st.sampled_from([*NAMES, "nope"]),
        st.sampled_from([*VALUES, "U", "2031", "nothing"]),
    ),
    st.builds(
        lambda name, value: f"{quote(name)}=={quote(value)}",
        st.sampled_from([*NAMES, "nope"]),
        st.sampled_from([*VALUES, "EU", "nothing"]),
    ),
    st.sampled_from([*JOBS, "etl", "etl/", "/ETL", "x", "nothing"]).map(lambda path: f"path:{quote(path)}"),
    st.sets(st.sampled_from(["run", "succ", "FAIL", "err", "ski", "sch", "waiting", "star"]), min_size=1).map(
        lambda names: f"state:{','.join(names)}"
    ),
    st.sampled_from(["etl", "night ly", 'q"uo', "ünï", "none", "etl,night"]).map(
        lambda label: f"label:{quote(label)}"
    ),
    st.sampled_from(["late", "LONG", "missed", "late,long", "missed,late"]).map(
        lambda names: f"alarm:{names}"
    ),
    st.sampled_from(["any", "succ", "FAILURE", "error,fail", "skipped"]).map(lambda ends: f"verdict:{ends}"),
    st.builds(
        lambda key, minutes: f"{key}:{minutes}min",
        st.sampled_from(["since", "until"]),
        st.integers(0, 1000),
    ),
)
QUERIES = st.lists(st.builds(lambda no, word: ("!" if no else "") + word, st.booleans(), WORDS), max_size=4)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(QUERIES, st.sampled_from([3, 50, 1000]), st.sampled_from([0, 50, 5000]))
def test_the_database_finds_what_the_terms_admit_whichever_way_it_goes(
    store: Store, words: list[str], limit: int, few: int
) -> None:
    query = " ".join(words)
    terms = parse(query, NOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "FEW", few)
        patch.setattr(searching, "WINDOW", 100)
        if few == 50:
            patch.setattr(searching, "KINDS", 2)
            patch.setattr(searching, "BUDGET", 0.0)
        found = find(store, query, limit)
    assert found == [run.run_id for run in reversed(HISTORY) if admits(terms, run)]


def find_by_time(store: Store, query: str, limit: int, oldest: bool) -> list[str]:
    found: list[str] = []
    place = None
    while True:
        with store.read() as reader:
            runs, place = reader.search_by_time(parse(query, NOW), place, limit, oldest)
        assert len(runs) <= limit
        found += [run.run_id for run in runs]
        if place is None:
            return found


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(QUERIES, st.sampled_from([3, 50, 1000]), st.sampled_from([0, 50, 5000]), st.booleans())
def test_by_time_the_same_runs_are_found_in_the_order_of_their_latest_transitions(
    store: Store, words: list[str], limit: int, few: int, oldest: bool
) -> None:
    query = " ".join(words)
    terms = parse(query, NOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bytime, "FEW", few)
        patch.setattr(searching, "FEW", few)
        patch.setattr(bytime, "STRETCH", 70)
        if few == 50:
            patch.setattr(searching, "KINDS", 2)
            patch.setattr(searching, "BUDGET", 0.0)
        found = find_by_time(store, query, limit, oldest)
    ordered = sorted(HISTORY, key=lambda run: (run.timestamp, run.number), reverse=not oldest)
    assert found == [run.run_id for run in ordered if admits(terms, run)]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("path:etl/x/ !path:a", [JobUnder("etl/x"), Not(JobUnder("a"))]),
        ("region==EU !x==", [ArgIs("region", "EU"), Not(ArgIs("x", ""))]),
        ('region="=EU"', [ArgHas("region", "=eu")]),
        ("  ETL/load ", [JobPart("etl/load")]),
        ("region=EU date=", [ArgHas("region", "eu"), ArgHas("date", "")]),
        ('!region="e u"', [Not(ArgHas("region", "e u"))]),
        ('"region=eu"', [JobPart("region=eu")]),
        ('"!x" "state:success"', [JobPart("!x"), JobPart("state:success")]),
        (r'"a\"b\\c"', [JobPart(r'a"b\c')]),
        ("state:succ,FAIL", [StateIn(frozenset({State.SUCCESS, State.FAILURE}))]),
        ("!state:success", [StateIn(frozenset(State) - {State.SUCCESS})]),
        ('label:x !label:"y z"', [Label("x"), Not(Label("y z"))]),
        ("since:1970-01-02 until:now", [Since(86400.0), Until(NOW)]),
        ("since:2h !since:1970-01-01T00:00:09Z", [Since(NOW - 7200), Until(9.0)]),
        ("label:a=b", [Label("a=b")]),
        (
            "alarm:late,Long !alarm:missed",
            [Marked(frozenset({"late", "long"})), Not(Marked(frozenset({"missed"})))],
        ),
        (
            "verdict:succ,ERROR !verdict:Any",
            [
                Marked(frozenset({"verdict:success", "verdict:error"})),
                Not(
                    Marked(frozenset(f"verdict:{end}" for end in ("success", "failure", "error", "skipped")))
                ),
            ],
        ),
        ("url=http://x", [ArgHas("url", "http://x")]),
        ("a:b", [JobPart("a:b")]),
    ],
)
def test_words_become_terms(text: str, terms: list[Any]) -> None:
    assert parse(text, NOW) == terms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state:s", r"ambiguous state: s \(scheduled, starting, stopping, success, skipped\)"),
        ("state:bogus", "not a state: 'bogus'"),
        ("state:", "says no state"),
        ("alarm:lost", r"not an alarm: 'lost' \(known: late, missed, long\)"),
        ("alarm:", "says no alarm"),
        ("verdict:run", r"not how a program ends: 'run' \(known: any, error, failure, skipped, success\)"),
        ("verdict:", "says no verdict"),
        ('"open', "a double quote is not closed"),
        ("!", "an empty term"),
        ("=x", "names no arg"),
        ("since:tomorrow", "no time: tomorrow"),
        ("x " * 51, "a search of 51 terms"),
    ],
)
def test_what_no_search_can_mean_is_said(text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse(text, NOW)


def test_a_late_verdict_is_found_until_the_run_is_given_it(store: Store) -> None:
    open_ones = [
        run.run_id
        for run in reversed(HISTORY)
        if isinstance(late := run.meta.get("late_verdict"), dict) and late["state"] != run.state.value
    ]
    assert open_ones and find(store, "verdict:any") == open_ones
    chosen = next(run for run in HISTORY if run.run_id == open_ones[0])
    late = State(chosen.meta["late_verdict"]["state"])
    put(store, Save(chosen.but(state=late, rev=chosen.rev + 1)))
    assert find(store, "verdict:any") == open_ones[1:]
    put(store, Save(chosen.but(rev=chosen.rev + 2)))
    assert find(store, "verdict:any") == open_ones


def test_a_search_goes_by_the_index_of_what_is_rare(store: Store) -> None:
    with store.read() as reader:
        plans: list[str] = []

        def query(sql: str, values: Any) -> list[Any]:
            plans.extend(row[3] for row in reader._db.execute(f"EXPLAIN QUERY PLAN {sql}", tuple(values)))
            return reader._all(sql, values)

        for text in (
            "ops",
            "state:fail",
            "label:etl,night",
            "alarm:long",
            "verdict:failure",
            "since:3min",
            "region=eu",
        ):
            plans.append(f"-- {text}")
            terms = parse(text, NOW)
            searching.search(query, terms, 1 << 62, 5, searching.Deadline(1, reader._clock))
    steps = "\n".join(plans)
    assert "SCAN runs\n" not in steps
    for name in ("job", "state", "labels", "alarms", "timestamp", "search"):
        assert f"USING INDEX runs_{name}" in steps or f"USING COVERING INDEX runs_{name}" in steps


def test_a_database_from_before_is_made_searchable(tmp_path: Path) -> None:
    path = tmp_path / "apsis.db"
    metas = (
        '{"job":{"labels":["b","a,c"]}}',
        "{}",
        "damaged",
        '{"alarms":["long","late"]}',
    )
    with closing(files.open_database(path, migrations=files.MIGRATIONS[:1])) as db:
        for number, meta in enumerate(metas, 1):
            db.execute(
                "INSERT INTO runs (number, job_id, args, state, timestamp, rev, times, meta)"
                " VALUES (?, 'j', '{}', 'success', 5.0, 1, '{}', ?)",
                (number, meta),
            )
    with opened(path) as (store, _):
        assert find(store, 'label:"a,c"') == ["r1"]
        assert find(store, "label:c") == []
        assert find(store, "j state:succ") == ["r4", "r2", "r1"]
        assert find(store, "alarm:late") == ["r4"]
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("SELECT labels, alarms FROM runs ORDER BY number").fetchall()
    assert found == [(',"a,c","b",', None), (None, None), (None, None), (None, ',"late","long",')]


def test_transitions_leave_the_index_of_searches_alone(store: Store) -> None:
    with store.read() as reader:
        (columns,) = reader._all("SELECT sql FROM sqlite_master WHERE name = 'runs_search'")[0]
    assert not {"state", "timestamp", "meta", "times"} & set(columns.replace("(", " ").split())
