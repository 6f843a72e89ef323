"""What the commands on the database file do. Each answers an exit status; ApsisError: why it could not."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from apsislib import config as configs
from apsislib.clock import Clock, Deadline, WallClock
from apsislib.errors import INTERRUPTED, BadRequest
from apsislib.offline.progress import Progress
from apsislib.runs import instance
from apsislib.store import CANT_READ, Store, aside_of
from apsislib.store import archive as archives
from apsislib.store import vacuum as sizes
from apsislib.times import format_time, parse_duration
from apsislib.upkeep import Upkeep, describe

PATIENCE = 5.0  # s for the database to be closed


def archive(args: argparse.Namespace) -> int:
    if args.age is None or args.path is None:
        raise BadRequest("archive: give --age and --path, or: archive query ARCHIVE")
    return _retire(args, args.path)


def purge(args: argparse.Namespace) -> int:
    return _retire(args, None)


def _retire(args: argparse.Namespace, path: Path | None) -> int:
    clock = WallClock()
    before = clock.wall() - _duration(args.age)
    with _opened(args, clock) as store, _stopped_by_ctrl_c() as stop:
        upkeep = Upkeep(store, clock)
        with Progress(min(args.count, upkeep.count(before)), "runs") as progress:
            done = upkeep.retire(
                before, args.count, path, progress=lambda done: progress(done.runs), stop=stop
            )
        remaining = upkeep.count(before) - len(done.left) if stop.is_set() else 0
    for line in describe(done):
        print(line, file=sys.stderr)
    print(f"{done.runs:,} runs {'deleted' if path is None else f'moved to {path}'}")
    if stop.is_set():
        print(f"interrupted: {remaining:,} runs of that age remain", file=sys.stderr)
        return INTERRUPTED
    return 1 if done.left else 0


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[Event]:
    """Set by the first Ctrl-C, so that what was done can be told; the second ends the command at once."""
    stop = Event()

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def vacuum(args: argparse.Namespace) -> int:
    with _opened(args, WallClock()) as store:
        size = store.path.stat().st_size
        with Progress(size, "bytes", lambda: sizes.copied(store.path)):
            before, after = store.vacuum()
    print(f"{before:,} bytes before, {after:,} bytes after")
    return 0


def backup(args: argparse.Namespace) -> int:
    path = _database(args)
    Store(path, WallClock()).backup(args.target)
    print(f"{path} copied to {args.target}")
    return 0


def check(args: argparse.Namespace) -> int:
    if args.path is not None and args.database is not None:
        raise BadRequest("name one database: PATH, or --database")
    args.database = args.path or args.database
    path = _database(args)
    store = Store(path, WallClock())
    if args.repair:
        mended = store.mend()
        for line in mended:
            print(f"{path}: {line}")
        if mended:
            print(f"{path}: what could not be read is in {aside_of(path)}")
    found = store.check()
    for line in found or ["no damage found"]:
        print(f"{path}: {line}")
    if any(CANT_READ in line for line in found):
        print(f"{path}: everything else is served; `apsis check-db --repair {path}` mends these rows")
    return 1 if found else 0


def query(args: argparse.Namespace) -> int:
    if args.output:
        if args.run_id is None:
            raise BadRequest("archive query: --output wants --run RUN_ID")
        for piece in archives.output(args.path, args.run_id):
            sys.stdout.buffer.write(piece)
        return 0
    wrong: list[str] = []
    runs = archives.query(
        args.path,
        run_id=args.run_id,
        job_id=args.job,
        state=args.state,
        limit=args.limit,
        unreadable=wrong,
    )
    for run in runs:
        log = archives.history(args.path, run.run_id) if args.run_id is not None else []
        if args.format == "json":
            shape: dict[str, Any] = {
                "run_id": run.run_id,
                "job_id": run.job_id,
                "args": run.args,
                "state": run.state.value,
                "timestamp": format_time(run.timestamp),
                "times": run.times,
            }
            if args.run_id is not None:
                shape["log"] = [{"timestamp": format_time(t), "message": text} for t, text in log]
            print(json.dumps(shape))
            continue
        print(run.run_id, run.state.value, format_time(run.timestamp), instance(run.job_id, run.args))
        for time, text in log:
            print(" ", format_time(time), text)
    for line in wrong:
        print(f"{args.path}: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _database(args: argparse.Namespace) -> Path:
    path: Path = args.database or configs.load(args.config).database.path
    if not path.is_file():
        raise BadRequest(f"there is no database {path}; say which with --database or --config")
    return path


@contextmanager
def _opened(args: argparse.Namespace, clock: Clock) -> Iterator[Store]:
    """The database, which nobody else uses."""
    store = Store(_database(args), clock)
    store.open()
    store.start()
    try:
        yield store
    finally:
        # What was to be written has been waited for. Should the disk refuse it, that was said.
        store.close(Deadline(PATIENCE, clock))


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise BadRequest(f"--age: {error}") from None


CHORES: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "archive": archive,
    "query": query,
    "purge": purge,
    "vacuum": vacuum,
    "backup": backup,
    "check-db": check,
}
