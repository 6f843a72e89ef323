"""The power fails, at any instant: the database is sound, and knows whatever a program did because of it.

One server is recorded; the disk is then made as it would be after a failure at hundreds of instants.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import power
import preloaded
import pytest
from chaos import campaign, checker, ledger
from chaos.nemesis import History
from chaos.world import PATIENCE, World
from power import Disk, Event

CUTS = 150
FINISHED = ("success", "failure", "error", "skipped")


def found(directory: Path) -> dict[str, tuple[str, bool]]:
    """run ID -> its state, and whether the agent that has its program is known. Asserts soundness."""
    with closing(sqlite3.connect(directory / "apsis.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = db.execute("SELECT number, state, run_state FROM runs").fetchall()
    return {f"r{n}": (state, bool(json.loads(held or "{}").get("conn_id"))) for n, state, held in rows}


def check_cut(disk: Disk, cut: Event, directory: Path, acts: dict[str, ledger.Acts], luck: int) -> None:
    directory.mkdir(exist_ok=True)
    for name in (None, random.Random(luck)):
        power.write(disk.failed(name), directory)
        runs = found(directory)
        for run_id, act in acts.items():
            if act.begins[0].boot < cut.time:
                state, placed = runs.get(run_id, ("unknown", False))
                assert placed or state in FINISHED, f"{run_id} ran, and is {state} after the failure: {act}"


def replay(
    events: list[Event], base: Mapping[str, bytes], directory: Path, acts: dict[str, ledger.Acts]
) -> Disk:
    """Check the disk after failures all along the record; as it is at the end."""
    disk = Disk()
    disk.restore(base)
    cuts = set(random.Random(7).sample(range(len(events)), min(CUTS, len(events))))
    for number, event in enumerate(events):
        disk.do(event)
        if number in cuts:
            check_cut(disk, event, directory, acts, number)
    return disk


@pytest.mark.timeout(300)
def test_whenever_the_power_fails_no_launch_is_forgotten_and_the_database_is_sound(tmp_path: Path) -> None:
    record = tmp_path / "record"
    files, expected = campaign.jobs(tmp_path / "ledger")
    only = ("quick", "slow", "first", "after")
    with World(tmp_path, {job_id: files[job_id] for job_id in only}, 30.0, config="") as world:
        world.end_server()
        library = preloaded.build("recorder", tmp_path)
        environment = world.clock.environment
        environment["LD_PRELOAD"] = f"{library}:{environment['LD_PRELOAD']}"
        environment |= {"RECORDED": str(world.disk.path), "RECORD": str(record)}
        power_base = {path.name: path.read_bytes() for path in world.disk.path.iterdir()}
        begin = world.clock.now() + 1
        world.start_server()
        world.await_serving()
        time.sleep(6)  # what there is to record
        world.kill_server()
        events = list(power.read(record))
        acts = ledger.read(world.ledger)
        assert sum(event.kind == "s" for event in events) > 20 and len(acts) > 5

        disk = replay(events, power_base, tmp_path / "cut", acts)
        # The check is one: a server that did not sync at each commit would be found out.
        lazy = [event for event in events if (event.kind, event.name) != ("s", "apsis.db-wal")]
        with pytest.raises((AssertionError, sqlite3.DatabaseError)):
            replay(lazy, power_base, tmp_path / "lazy", acts)

        # And the server goes on from there.
        power.write(disk.failed(), world.disk.path)
        for name in ("RECORDED", "RECORD"):
            del environment[name]
        end = world.clock.now()
        world.start_server()
        world.await_serving()
        campaign.settle(world, end, PATIENCE)
        world.end_server()
        records, damage = checker.read(world.database)
        jobs = {job_id: expected[job_id] for job_id in only}
        acts = ledger.read(world.ledger)
        verdict = checker.check(jobs, records, acts, History(), begin, end, 30.0, damage)
        print(verdict)
        assert verdict.clean, str(verdict)
