"""Runs, logs and all the rest, from put() to the readers."""

from __future__ import annotations

import fcntl
import json
import random
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from storing import PATIENCE, a_run, opened, put

from apsislib.clock import Deadline, WallClock
from apsislib.errors import ApsisError, Unavailable
from apsislib.runs import (
    Drop,
    Expect,
    Forget,
    Launch,
    Note,
    Output,
    Owe,
    Run,
    Save,
    Send,
    SetClock,
    Settle,
    Signal,
)
from apsislib.states import FINISHED, State
from apsislib.store import DropJob, SaveJob, SetMeta, Store, Version, files
from apsislib.store import reader as reading
from apsislib.store.backups import backup


def test_a_run_comes_back_as_it_was_put(tmp_path):
    runs = [
        a_run(1, State.WAITING, occurrence="etl/load#0#1", cause="r9/0/2", rerun_of="r8"),
        Run("r2", "bare", {}),
        a_run(3, job_id="job with 'quotes' and ☃", args={'k"ey': "v\x00al", "空": ""}),
    ]
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, *map(Save, runs))
        with store.read() as reader:
            assert [reader.run(run.run_id) for run in runs] == runs
            assert reader.runs() == runs
            assert reader.run("r4") is None and reader.run("nonsense") is None


def test_everything_is_there_after_closing_and_opening(tmp_path):
    run = a_run(7, State.RUNNING)
    owed = Owe("r7/0/3", run, {"type": "schedule", "job_id": "x"})
    with opened(tmp_path / "apsis.db") as (store, _):
        installation = store.installation
        put(
            store,
            Save(run),
            Note("r7", 5.25, "scheduled: now"),
            Note("r7", 4.0, "after the clock was set back"),
            SetClock(123.5),
            Owe("done", run, {}),
            owed,
            Settle("done"),
            SaveJob("adhoc-a", {"program": {"type": "no-op"}}),
            SaveJob("adhoc-b", {}),
            DropJob("adhoc-b"),
            SetMeta("colour", "blue"),
            Output("r7", b"the reason"),
        )
    with opened(tmp_path / "apsis.db") as (store, _):
        assert store.installation == installation and len(installation) == 36
        with store.read() as reader:
            assert reader.active() == [run]
            assert reader.log("r7") == [(5.25, "scheduled: now"), (4.0, "after the clock was set back")]
            assert reader.clock() == 123.5
            assert reader.owed() == [owed]
            assert reader.ad_hoc() == [("adhoc-a", {"program": {"type": "no-op"}})]
            assert reader.meta("colour") == "blue" and reader.meta("none") is None
            (info,) = reader.outputs("r7")
            assert (info.output_id, info.name, info.length) == ("output", "output", 10)
        assert store.check() == []


def test_a_new_database_has_no_clock(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _), store.read() as reader:
        assert reader.clock() is None and reader.runs() == [] and reader.count() == 0


def test_effects_are_acted_on_after_their_commit_in_the_order_of_decision(tmp_path):
    with opened(tmp_path / "apsis.db", start=False) as (store, told):
        run = a_run(1, State.STARTING)
        effects = [
            Expect(run),
            Save(a_run(1, State.SCHEDULED)),
            Note("r1", 1.0, "one"),
            Save(run),
            Launch(run),
            Note("r1", 2.0, "two"),
            Signal(run, 15),
            Drop("r5"),
        ]
        seen = []

        def committed(effects, grew):
            with store.read() as reader:
                seen.append(reader.run("r1"))
            told.committed.extend(effects)

        store.committed = committed
        store.put(effects[:3])
        ticket = store.put(effects[3:])
        store.start()
        store.wait(ticket, PATIENCE)
        assert store.close(Deadline(PATIENCE))
        assert told.committed == effects
        assert seen == [run]  # one transaction for both puts, and on disk before anybody was told


def test_a_thousand_effects_that_gathered_are_one_commit(tmp_path):
    with opened(tmp_path / "apsis.db", start=False) as (store, told):
        for number in range(1, 501):
            ticket = store.put([Save(a_run(number)), Note(f"r{number}", 1.0, "x")])
        store.start()
        store.wait(ticket, PATIENCE)
        assert store.stats()["commits"] == 1
        with store.read() as reader:
            assert reader.count() == 500
    assert len(told.committed) == 1000


def test_puts_of_many_threads_all_arrive_each_in_its_own_order(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, told):

        def work(number: int) -> None:
            for line in range(50):
                ticket = store.put([Note(f"r{number}", float(line), "x")])
            store.wait(ticket, PATIENCE)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with store.read() as reader:
            for number in range(1, 9):
                assert [when for when, _ in reader.log(f"r{number}")] == list(map(float, range(50)))
    assert told.threads == {"apsis-writer"}


def test_a_callback_that_raises_costs_nothing_else(tmp_path, caplog):
    with opened(tmp_path / "apsis.db") as (store, told):

        def bad(effects, grew):
            raise RuntimeError("subscriber trouble")

        store.committed = bad
        put(store, Save(a_run(1)))
        put(store, Save(a_run(2)))
        with store.read() as reader:
            assert reader.count() == 2
    assert "subscriber trouble" in caplog.text and told.deaths == []


def test_a_bug_in_the_writer_is_told_to_its_owner_and_to_all_who_wait(tmp_path, monkeypatch):
    with opened(tmp_path / "apsis.db") as (store, told):
        put(store, Save(a_run(1)))

        def broken(*_):
            raise LookupError("a bug")

        monkeypatch.setattr("apsislib.store.store.write", broken)
        with pytest.raises(Unavailable, match="writer has failed"):
            put(store, Save(a_run(2)))
        told.wait(lambda: told.deaths)
        assert isinstance(told.deaths[0], LookupError)
        assert store.braked
        with pytest.raises(Unavailable, match="writer has failed"):
            store.put([Save(a_run(3))])


def test_nothing_is_taken_once_the_store_is_closing(tmp_path):
    others = threading.enumerate()
    with opened(tmp_path / "apsis.db") as (store, _):
        store.put([Save(a_run(1))])
        assert store.close(Deadline(PATIENCE))
        for late in (lambda: store.put([]), lambda: store.put_output("r1", "o", 0, b"x")):
            with pytest.raises(Unavailable, match="stopping"):
                late()
        assert "apsis-writer" not in {thread.name for thread in threading.enumerate() if thread not in others}


# -- what cannot be written -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"args": {"k": "\ud800"}},
        {"meta": {"x": float("nan")}},
        {"meta": {"x": object()}},
        {"timestamp": float("nan")},
        {"program": {"n": "\udfff"}},
        {"timestamp": "yesterday"},
    ],
    ids=["surrogate", "nan", "object", "nan time", "surrogate in program", "text for a time"],
)
def test_a_run_that_cannot_be_stored_is_named_and_the_rest_of_its_batch_is_stored(tmp_path, bad):
    wrong = a_run(3, State.STARTING, **bad)
    with opened(tmp_path / "apsis.db", start=False) as (store, told):
        store.put([Save(a_run(1)), Save(a_run(2))])
        ticket = store.put([Save(wrong), Launch(wrong), Note("r3", 1.0, "starting"), SetClock(9.0)])
        store.put([Save(a_run(4)), Launch(a_run(4))])
        store.start()
        store.wait(ticket, PATIENCE)
        put(store)
        with store.read() as reader:
            assert [run.run_id for run in reader.runs()] == ["r1", "r2", "r4"]
            assert reader.clock() == 9.0
        assert [effect for effect, _ in told.unwritable] == [Save(wrong)]
        # What is not on disk must not be started.
        assert [effect.run.run_id for effect in told.committed if isinstance(effect, Launch)] == ["r4"]
        assert store.stats()["refused"] == 1 and not store.braked


def test_the_last_writable_state_of_a_run_is_kept(tmp_path):
    good, bad = a_run(1, State.RUNNING), a_run(1, State.SUCCESS, meta={"x": "\ud800"})
    with opened(tmp_path / "apsis.db", start=False) as (store, told):
        store.put([Save(good), Launch(good), Save(bad), Forget(bad)])
        store.start()
        put(store)
        with store.read() as reader:
            assert reader.run("r1") == good
        assert told.committed == [Save(good), Launch(good)]  # the agent keeps what we do not have


def test_a_log_line_that_cannot_be_stored_does_not_cost_its_run(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, told):
        put(store, Save(a_run(1)), Note("r1", 1.0, "\ud800"), Note("junk", 1.0, "x"), Note("r1", 2.0, "ok"))
        put(store, Send(a_run(1)))
        with store.read() as reader:
            assert reader.log("r1") == [(2.0, "ok")]
    assert [effect.message for effect, _ in told.unwritable] == ["\ud800", "x"]
    assert Send(a_run(1)) in told.committed


@pytest.mark.parametrize("field", ["occurrence", "cause"])
def test_an_occurrence_or_an_action_makes_one_run_only(tmp_path, field):
    with opened(tmp_path / "apsis.db") as (store, told):
        put(store, Save(a_run(1, **{field: "x"})), Save(a_run(2)), Save(a_run(3)))
        put(store, Save(a_run(4, State.STARTING, **{field: "x"})), Launch(a_run(4, State.STARTING)))
        put(store, Save(a_run(1, State.FAILURE, **{field: "x"})))  # the same run again is no second one
        put(store)
        assert [effect.run.run_id for effect, _ in told.unwritable] == ["r4"]
        assert not any(isinstance(effect, Launch) for effect in told.committed)
        with store.read() as reader:
            assert reader.run("r1").state == State.FAILURE


# -- numbers --------------------------------------------------------------------------------------


def test_a_run_number_is_never_given_twice(tmp_path):
    with opened(tmp_path / "apsis.db", start=False) as (store, _):
        assert store.reserve(10) == 1
        store.start()
        assert store.reserve(5) == 11
        firsts: list[int] = []
        threads = [threading.Thread(target=lambda: firsts.append(store.reserve(3))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(firsts) == list(range(16, 76, 3))
        put(store, Save(a_run(200)))  # as an import would
    with opened(tmp_path / "apsis.db") as (store, _):
        assert store.reserve(1) == 201


# -- queries --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """600 runs of 3 jobs: a store, and the runs by hand."""
    states = [State.SUCCESS] * 8 + [State.FAILURE, State.ERROR]
    runs = [
        a_run(
            number,
            State.RUNNING if number > 595 else states[number % 10],
            f"job{number % 3}",
            args={"region": "eu" if number % 2 else "us", "n": str(number % 5)},
            occurrence=f"o{number}" if number % 2 else None,
        )
        for number in range(1, 601)
    ]
    with opened(tmp_path_factory.mktemp("history") / "apsis.db") as (store, _):
        put(store, *map(Save, runs))
        yield store, runs


CASES = [
    ({}, lambda run: True),
    ({"run_ids": ["r5", "r700", "r2", "bad", "r2"]}, lambda run: run.run_id in ("r5", "r2")),
    ({"run_ids": []}, lambda run: False),
    ({"job_id": "job1"}, lambda run: run.job_id == "job1"),
    ({"job_id": ["job1", "job2"]}, lambda run: run.job_id in ("job1", "job2")),
    ({"job_id": "none"}, lambda run: False),
    ({"states": [State.FAILURE]}, lambda run: run.state == "failure"),
    ({"states": FINISHED}, lambda run: run.state in FINISHED),
    ({"states": []}, lambda run: False),
    ({"job_id": "job0", "states": [State.ERROR]}, lambda run: run.job_id == "job0" and run.state == "error"),
    ({"args": {"n": "3"}}, lambda run: run.args["n"] == "3"),
    ({"args": {"n": "3", "x": "3"}}, lambda run: False),
    (
        {"job_id": "job0", "exact_args": {"n": "3", "region": "eu"}},
        lambda run: run.job_id == "job0" and run.args == {"n": "3", "region": "eu"},
    ),
    (
        {"job_id": "job0", "exact_args": {"n": "3", "region": "eu"}, "states": FINISHED},
        lambda run: run.job_id == "job0" and run.args == {"n": "3", "region": "eu"} and run.state in FINISHED,
    ),
    ({"exact_args": {"n": "3"}}, lambda run: False),
    ({"since": 1e9 + 300}, lambda run: run.number >= 300),
    ({"until": 1e9 + 300}, lambda run: run.number < 300),
    ({"since": 1e9 + 10, "until": 1e9 + 20, "job_id": "job1"}, lambda run: run.number in (10, 13, 16, 19)),
    ({"before": 100, "job_id": "job1"}, lambda run: run.number < 100 and run.job_id == "job1"),
    ({"after": 500, "states": [State.SUCCESS]}, lambda run: run.number > 500 and run.state == "success"),
]


@pytest.mark.parametrize("few", [reading.FEW, 5], ids=["by sorting", "by walking"])
@pytest.mark.parametrize("filters, wanted", CASES, ids=[str(sorted(case[0])) for case in CASES])
def test_a_query_finds_what_passes_every_filter(history, monkeypatch, few, filters, wanted):
    monkeypatch.setattr(reading, "FEW", few)
    store, runs = history
    found = [run for run in runs if wanted(run)]
    with store.read() as reader:
        assert reader.runs(**filters) == found
        assert reader.runs(**filters, newest=True, limit=7) == found[::-1][:7]
        assert reader.count(**filters) == len(found)
        assert reader.count(**filters, limit=3) == min(3, len(found))


def test_paging_newest_first_sees_each_run_once(history):
    store, runs = history
    with store.read() as reader:
        seen, before = [], None
        while page := reader.runs(job_id="job2", newest=True, limit=13, before=before):
            seen += page
            before = page[-1].number
    assert seen == [run for run in reversed(runs) if run.job_id == "job2"]


def test_how_an_instance_ended_and_which_occurrences_are_taken(history):
    store, runs = history
    with store.read() as reader:
        for run in runs[:40]:
            same = {other.state for other in runs if other.key == run.key}
            assert reader.ended(run.key) == same & FINISHED
        assert reader.ended(("none", "{}")) == set()
        assert reader.occurrences(1e9 + 590) == {f"o{n}" for n in range(591, 601, 2)}
        assert reader.active() == runs[595:]


@pytest.mark.parametrize("few", [reading.FEW, 5], ids=["by sorting", "by walking"])
def test_every_query_goes_by_an_index(history, monkeypatch, few):
    monkeypatch.setattr(reading, "FEW", few)
    store, _ = history
    with store.read() as reader:
        plans: list[str] = []
        honest = reader._all

        def explained(sql, values=()):
            plans.extend(row[3] for row in reader._db.execute("EXPLAIN QUERY PLAN " + sql, tuple(values)))
            return honest(sql, values)

        monkeypatch.setattr(reader, "_all", explained)
        for filters, _ in CASES:
            reader.runs(**filters)
            reader.runs(**filters, newest=True, limit=10)
            reader.count(**filters)
        reader.active()
        reader.ended(("job1", "{}"))
        reader.occurrences(0.0)
        reader.log("r1")
        reader.outputs("r1")
        list(reader.output("r1", "output"))
        scans = {plan for plan in plans if plan.startswith("SCAN")}
        # A counted subquery and the values of an IN are no tables.
        assert all("json_each" in plan or "subquery" in plan.lower() for plan in scans), scans
        assert any("runs_instance" in plan for plan in plans)
        if few == 5:  # a walk comes in order, and ends at the limit
            plans.clear()
            for filters in (
                {},
                {"job_id": "job1"},
                {"states": FINISHED},
                {"job_id": "job1", "args": {"n": "1"}},
            ):
                reader.runs(**filters, newest=True, limit=10)
            assert plans and not any("TEMP B-TREE" in plan for plan in plans)


def test_a_damaged_row_is_left_out_logged_once_and_counted(tmp_path, caplog):
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, *(Save(a_run(number, State.RUNNING)) for number in range(1, 6)))
        put(store, Owe("a", a_run(1), {}), Owe("b", a_run(1), {}), SaveJob("a", {}), SaveJob("b", {}))
        with closing(sqlite3.connect(tmp_path / "apsis.db")) as db, db:
            db.execute("UPDATE runs SET state = 'dreaming' WHERE number = 1")
            db.execute("UPDATE runs SET meta = '{' WHERE number = 2")
            db.execute("UPDATE runs SET args = '[' WHERE number = 3")
            db.execute("UPDATE runs SET job_id = CAST(x'ff41' AS TEXT) WHERE number = 4")
            db.execute("UPDATE owed SET run = 'x' WHERE cause = 'a'")
            db.execute("UPDATE jobs SET job = '3' WHERE job_id = 'a'")
        with store.read() as reader:
            assert [run.job_id for run in reader.active()] == ["\ufffdA", "etl/load"]
            assert [run.number for run in reader.runs(args={"region": "eu"})] == [4, 5]
            assert [owe.cause for owe in reader.owed()] == ["b"]
            assert reader.ad_hoc() == [("b", {})]
            assert reader.run("r2") is None
        assert store.stats()["unreadable"] == 5
        assert caplog.text.count("key=2") == 1


def test_readers_and_the_writer_never_wait_for_each_other(tmp_path):
    with opened(tmp_path / "apsis.db", timeout=0.0) as (store, told):
        put(store, Save(a_run(1)))
        done = threading.Event()
        errors: list[Exception] = []
        reads = [0] * 4

        def read(which: int) -> None:
            try:
                while not done.is_set():
                    with store.read() as reader:
                        assert reader.run("r1") is not None
                        assert reader.count() >= reader.count(limit=1)
                        reader.runs(newest=True, limit=20)
                    reads[which] += 1
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=read, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for number in range(2, 80):
            put(store, Save(a_run(number)), Note(f"r{number}", 1.0, "x"))
        told.wait(lambda: all(reads))
        done.set()
        for thread in threads:
            thread.join()
        assert errors == [] and told.failing == []


def test_a_query_without_end_is_ended(history):
    store, _ = history
    with pytest.raises(Unavailable, match="narrow it"), store.read(limit=0.05) as reader:
        reader._all("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
    with store.read() as reader:
        assert reader.count() == 600


def test_a_reader_cannot_write(history):
    store, _ = history
    with pytest.raises(Unavailable, match="readonly"), store.read() as reader:
        reader._db.execute("DELETE FROM runs")


def test_deleted_runs_take_their_logs_and_outputs_with_them(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        for number in (1, 2, 3):
            put(store, Save(a_run(number)), Note(f"r{number}", 1.0, "x"), Output(f"r{number}", b"x" * 999))
        store.wait(store.delete_runs([Version(r, 3) for r in ("r1", "r3", "r99")]), PATIENCE)
        with store.read() as reader:
            assert [run.number for run in reader.runs()] == [2]
            assert reader.log("r1") == [] and reader.outputs("r3") == []
            assert len(reader.log("r2")) == len(reader.outputs("r2")) == 1
            assert reader._all("SELECT count(*) FROM chunks") == [(1,)]
        with pytest.raises(ValueError, match="not a run ID"):
            store.delete_runs([Version("r1", 0), Version("x", 0)])


def test_a_run_that_has_changed_since_it_was_seen_is_not_deleted(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        for number in (1, 2, 3, 4):
            put(store, Save(a_run(number)), Note(f"r{number}", 1.0, "x"), Output(f"r{number}", b"123"))
        put(store, Save(a_run(1).but(rev=4)), Note("r2", 2.0, "late"), Output("r3", b"4"))
        seen = [Version(f"r{number}", 3, 1, (3,)) for number in (1, 2, 3, 4)]
        store.wait(store.delete_runs(seen), PATIENCE)
        with store.read() as reader:
            assert [run.number for run in reader.runs()] == [1, 2, 3]


def test_a_large_output_of_a_deleted_run_is_freed_bit_by_bit(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, Save(a_run(1)), Output("r1", random.Random(1).randbytes(5 << 20)))
        store.wait(store.delete_runs([Version("r1", 3)]), PATIENCE)
        counts = []
        with store.read() as reader:
            assert reader.outputs("r1") == [] and not reader.is_swept()
            while not reader.is_swept():
                store.wait(store.sweep(8), PATIENCE)
                counts += reader._all("SELECT count(*) FROM chunks")[0]
            assert counts == [12, 4, 0]
            assert reader._all("SELECT count(*) FROM outputs") == [(0,)]


# -- the file -------------------------------------------------------------------------------------


def test_the_file_is_made_with_what_cannot_be_changed_later(tmp_path):
    with opened(tmp_path / "a#b ?%41.db") as (store, _), closing(sqlite3.connect(store.path)) as db:
        pragma = {
            name: db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("auto_vacuum", "journal_mode", "application_id", "user_version", "page_size")
        }
    assert pragma == {
        "auto_vacuum": 2,  # incremental
        "journal_mode": "wal",
        "application_id": files.APPLICATION_ID,
        "user_version": len(files.MIGRATIONS),
        "page_size": 4096,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a#b ?%41.db", "a#b ?%41.db.lock"]


def test_the_writer_commits_to_the_disk_not_to_a_cache(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_the_schema_is_shipped_with_the_package():
    config = Path(__file__).parents[1].joinpath("setup.cfg").read_text()
    assert "schema.sql" in config.split("[options.package_data]")[1].split("[")[0]
    assert "apsislib.store" in config.split("packages =")[1].split("install_requires")[0].split()
    assert resources.files("apsislib").joinpath("schema.sql").is_file()


def test_two_servers_on_one_database_are_refused_and_readers_are_not(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        (tmp_path / "link.db").symlink_to("apsis.db")
        for name in ("apsis.db", "link.db"):
            with pytest.raises(ApsisError, match="in use by process [0-9]+: stop it"):
                Store(tmp_path / name, WallClock()).open()
        with closing(files.connect(store.path, "ro")) as db:
            assert db.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    with opened(tmp_path / "apsis.db"):
        pass


def make(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return path


def test_a_file_that_is_no_database_of_ours_is_left_alone_and_the_message_says_what_to_do(tmp_path):
    old = make(
        tmp_path / "old.db",
        *(f"CREATE TABLE {t} (x)" for t in ("clock", "runs", "run_history")),
    )
    archive = make(
        tmp_path / "archive.db", f"PRAGMA application_id = {files.ARCHIVE_ID}", "CREATE TABLE t (x)"
    )
    other = make(tmp_path / "other.db", "CREATE TABLE t (x)")
    text = tmp_path / "text.db"
    text.write_text("program:\n  type: no-op\n" * 100)
    with opened(tmp_path / "newer.db") as (store, _):
        newer = store.path
    make(newer, "PRAGMA user_version = 99")
    with opened(tmp_path / "damaged.db") as (store, _):
        put(store, *(Save(a_run(number)) for number in range(1, 50)))
        damaged = store.path
    content = bytearray(damaged.read_bytes())
    content[100:3000] = b"\xff" * 2900
    damaged.write_bytes(content)
    for path, message in [
        (old, f"apsis import-db {old} NEW.db"),
        (archive, "is an archive, not a database"),
        (other, "not of Apsis: set database.path"),
        (text, "not a database.*set database.path"),
        (newer, "newer Apsis .version 99"),
        (damaged, "restore a backup"),
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "apsis.db", "no directory|No such file"),
    ]:
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(ApsisError, match=message):
            Store(path, WallClock()).open()
        assert (path.read_bytes() if path.is_file() else b"") == before
        with pytest.raises(ApsisError, match=message):  # and the refusal holds no lock
            Store(path, WallClock()).open()


def test_an_empty_file_becomes_a_database(tmp_path):
    make(tmp_path / "apsis.db", "PRAGMA journal_mode = WAL", "CREATE TABLE t (x)", "DROP TABLE t")
    with opened(tmp_path / "apsis.db") as (store, _):
        assert store._db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    (tmp_path / "empty.db").touch()
    with opened(tmp_path / "empty.db") as (store, _):
        put(store, Save(a_run(1)))


def test_an_older_database_is_migrated_step_by_step_each_whole_or_not_at_all(tmp_path):
    path = tmp_path / "apsis.db"
    with opened(path) as (store, _):
        put(store, Save(a_run(1)))

    def second(db):
        files.run_script(
            db, "CREATE TABLE extra (x TEXT);\n-- a; comment\nINSERT INTO extra\nVALUES ('a;b');"
        )

    def broken(db):
        db.execute("INSERT INTO extra VALUES ('half')")
        db.execute("ALTER TABLE runs ADD COLUMN number TEXT")

    with pytest.raises(ApsisError, match="duplicate column"):
        files.open_database(path, migrations=(*files.MIGRATIONS, second, broken))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(files.MIGRATIONS) + 1,)
        assert db.execute("SELECT x FROM extra").fetchall() == [("a;b",)]
    with closing(files.open_database(path, migrations=(*files.MIGRATIONS, second, lambda db: None))) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(files.MIGRATIONS) + 2,)
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (1,)


def test_a_backup_is_a_whole_database_while_the_writer_goes_on(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, *(Save(a_run(number)) for number in range(1, 2000)))
        done = threading.Event()

        def write() -> None:
            number = 2000
            while not done.is_set():
                put(store, Save(a_run(number)), Note(f"r{number}", 1.0, "x"))
                number += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            store.backup(tmp_path / "copy.db")
        finally:
            done.set()
            thread.join()
        with pytest.raises(ApsisError, match="exists"):
            store.backup(tmp_path / "copy.db")
        with pytest.raises(ApsisError, match="can't back up"):
            store.backup(tmp_path / "none" / "copy.db")
    with opened(tmp_path / "copy.db") as (copy, _):
        assert copy.check() == []
        with copy.read() as reader:
            runs, lines = reader.count(), reader._all("SELECT count(*) FROM log")[0][0]
        assert runs == 1999 + lines


def until_locked(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except FileNotFoundError:
            pass
        time.sleep(0.005)
    raise AssertionError(f"{path} was not locked")


def test_of_two_backups_to_one_file_the_second_is_refused_and_the_first_is_whole(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, *(Save(a_run(number)) for number in range(1, 100)))
    source, target = tmp_path / "apsis.db", tmp_path / "copy.db"
    (tmp_path / "copy.db.part").write_bytes(b"left by one that was killed")
    errors: list[BaseException] = []

    def first() -> None:
        try:
            backup(source, target)
        except ApsisError as error:
            errors.append(error)

    with closing(sqlite3.connect(source, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("BEGIN EXCLUSIVE")  # the first one waits for it, half done
        thread = threading.Thread(target=first)
        thread.start()
        until_locked(tmp_path / "copy.db.part")
        with pytest.raises(ApsisError, match=f"another backup to {target} is being made"):
            backup(source, target)
        db.execute("ROLLBACK")
        thread.join()
    assert not errors
    with opened(target) as (copy, _):
        assert copy.check() == []


def test_check_names_what_is_damaged(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, *(Save(a_run(number)) for number in range(1, 500)))
    content = bytearray((tmp_path / "apsis.db").read_bytes())
    for page in range(20, 40):
        content[page * 4096 : page * 4096 + 200] = b"\xee" * 200
    (tmp_path / "apsis.db").write_bytes(content)
    with opened(tmp_path / "apsis.db") as (store, _):
        assert store.check() != []


def test_a_transition_is_on_disk_soon(tmp_path):
    """A rough bound that only something badly wrong, such as sleeping to gather, would pass. It holds for
    one of many: the machine may be busy, but not all the time."""
    took = []
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, Save(a_run(1)))
        for number in range(2, 52):
            began = time.monotonic()
            put(store, Save(a_run(number)))
            took.append(time.monotonic() - began)
    assert min(took) < 0.1


def test_args_are_stored_in_their_canonical_form(tmp_path):
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, Save(replace(a_run(1), args={"b": "2", "a": "ä"})))
        with store.read() as reader:
            assert reader._all("SELECT args FROM runs") == [('{"a":"ä","b":"2"}',)]
            assert json.loads(reader._all("SELECT times FROM runs")[0][0])["schedule"] == 1e9 + 1
