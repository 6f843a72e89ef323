"""What the store can do on this disk. `python -m benchmarks.store [DIRECTORY]`."""

from __future__ import annotations

import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from apsislib.clock import WallClock
from apsislib.runs import Note, Run, Save
from apsislib.states import State
from apsislib.store import Store

RUNS = 20_000
OUTPUT = 256 << 20  # bytes


def a_run(number: int, state: State) -> Run:
    """About as large as a real one."""
    when = 1.9e9 + number
    return Run(
        f"r{number}",
        f"etl/load{number % 50}",
        {"date": f"2031-05-{number % 28 + 1:02}", "region": "eu"},
        state,
        when,
        {"schedule": when, "scheduled": when + 0.123456, "starting": when + 0.2, "running": when + 0.3},
        program={
            "type": "procstar",
            "argv": ["/usr/bin/bash", "-c", "/opt/jobs/load --date 2031-05-05 --region eu"],
            "group_id": "default",
            "stop": {"signal": "SIGTERM", "grace_period": 60},
        },
        meta={"job": {"labels": ["etl"]}, "program": {"status": {"exit_code": 0}}, "elapsed": 9.2},
        run_state={"conn_id": "9b2d5b4e-5a0f-4e4d-8d4e-0123456789ab", "proc_id": f"p{number}"},
        occurrence=f"etl/load{number % 50}#0#{number}",
        rev=5,
    )


def timed(name: str, number: float, unit: str, work: Callable[[], object]) -> None:
    began = time.perf_counter()
    work()
    print(f"{name:44} {number / (time.perf_counter() - began):12,.0f} {unit}")


def singles(store: Store) -> None:
    for number in range(1, 501):
        store.wait(store.put([Save(a_run(number, State.SUCCESS))]))


def batched(store: Store, effects: list[list[Save | Note]]) -> None:
    for one in effects:
        ticket = store.put(one)
    store.wait(ticket)


def output(store: Store) -> None:
    line = b"2031-05-06 07:08:09.%03d INFO worker-%d loaded %d rows of %d\n"
    block = b"".join(line % (n % 1000, n % 7, n * 7919 % 65521, n) for n in range(20_000))[: 1 << 20]
    for at in range(0, OUTPUT, 1 << 20):
        if store.output_full():
            room = threading.Event()
            store.on_room(room.set)
            room.wait()
        store.put_output("r1", "output", at, block)
    done = threading.Event()
    store.committed = lambda effects, grew: done.set() if any(g.length == OUTPUT for g in grew) else None
    if store.output_backlog():
        done.wait()


def read_back(store: Store) -> None:
    with store.read() as reader:
        assert sum(map(len, reader.output("r1", "output"))) == OUTPUT


def queries(store: Store, number: int, work: Callable[[Store, int], object]) -> None:
    for one in range(number):
        work(store, one)


def newest(store: Store, _: int) -> None:
    with store.read() as reader:
        assert len(reader.runs(job_id="etl/load7", newest=True, limit=100)) == 100


def ended(store: Store, number: int) -> None:
    with store.read() as reader:
        reader.ended(a_run(number + 1, State.SUCCESS).key)


def main(directory: Path) -> None:
    store = Store(directory / "apsis.db", WallClock())
    store.open()
    store.start()
    numbers = range(501, 501 + RUNS)
    made = [[Save(a_run(n, State.SCHEDULED)), Note(f"r{n}", 1.0, "scheduled: now")] for n in numbers]
    ended_ = [[Save(a_run(n, State.SUCCESS)), Note(f"r{n}", 1.0, "success")] for n in numbers]
    timed("one effect a commit, waited for", 500, "commits/s", lambda: singles(store))
    timed("new run and log line a put, gathered", 2 * RUNS, "effects/s", lambda: batched(store, made))
    timed("transition and log line a put, gathered", 2 * RUNS, "effects/s", lambda: batched(store, ended_))
    timed("an instance's outcomes", 1000, "queries/s", lambda: queries(store, 1000, ended))
    timed("newest 100 runs of a job", 100, "queries/s", lambda: queries(store, 100, newest))
    store.close()
    print(f"{'size of a run with two log lines':44} {store.path.stat().st_size / (RUNS + 500):12,.0f} bytes")
    store = Store(directory / "apsis.db", WallClock())
    store.open()
    store.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timed("output, in", OUTPUT / 1e6, "MB/s", lambda: output(store))
    timed("output, out", OUTPUT / 1e6, "MB/s", lambda: read_back(store))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{'memory that took':44} {grown / 1024:12,.0f} MiB")
    timed("deletion of that run", 1, "runs/s", lambda: store.wait(store.delete_runs(["r1"])))
    store.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(Path(directory))
