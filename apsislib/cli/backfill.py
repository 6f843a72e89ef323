"""`apsis backfill`: the runs that a job's schedules would have made in a span, made now."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from math import isinf
from typing import Any

from apsislib.cli import looking
from apsislib.cli.client import ApiError, Client, Misuse, Trouble, Unwanted
from apsislib.cli.terminal import ARGS, Cell, Column, Terminal, plain, table
from apsislib.cli.times import read_span, show_time
from apsislib.clock import WallClock
from apsislib.states import ACTIVE, State
from apsislib.times import format_instant, parse_duration

MOST = 1000  # runs at once
# A run in one of these is as good as what would be made; one that failed, or was skipped, is not.
GOOD = {State.SUCCESS, State.SCHEDULED, *ACTIVE}


def backfill(args: Namespace, client: Client, terminal: Terminal) -> int:
    now = WallClock().wall()
    since, until = read_span(args.span, now, args.utc)
    if isinf(since) or isinf(until):
        raise Misuse("give both ends of the span: FROM..TO, or a day")
    try:
        apart = 0.0 if args.every is None else parse_duration(args.every)
    except ValueError as error:
        raise Misuse(f"--every: {error}") from None
    occurrences = _occurrences(args, client, since, until)
    if not occurrences and not args.format:
        print("Nothing is scheduled then.")
        return 0
    rows = [(entry, None if args.again else _good(client, entry)) for entry in occurrences]
    wanted = [entry for entry, there in rows if there is None]
    asked = not (args.dry_run or args.yes or args.format) and sys.stdin.isatty() and sys.stderr.isatty()
    if asked or (args.dry_run and not args.format):
        to = sys.stderr if asked else sys.stdout
        _show(args, rows, Terminal.of(to), to)
    if asked and wanted:
        print(f"make {_counted(len(wanted))}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Unwanted
    made: list[str] = []
    stopped: Trouble | None = None
    try:
        for n, entry in enumerate(() if args.dry_run else wanted):
            times = {"schedule": format_instant(now + n * apart) if apart else "now"}
            body = {"job_id": entry["job_id"], "args": entry["args"], "times": times}
            made += client.post("v1", "runs", body=body)["runs"]
            if not args.format:
                print(f"{made[-1]} {_named(entry['args'])}", flush=True)
    except (Trouble, ApiError) as error:
        unsure = isinstance(error, Trouble) or error.status >= 500
        more = ", and perhaps one more" if unsure else ""
        stopped = Trouble(f"{error}; of {_counted(len(wanted))} {len(made)} made{more}")
    if args.format:
        left = {str(there["run_id"]): str(there["state"]) for _, there in rows if there is not None}
        wants = [entry["args"] for entry in wanted]
        looking.print_data(args, {"wanted": wants, "made": made, "left_out": left})
    if stopped is not None:
        raise stopped
    if args.format:
        return 0
    would = "would be " if args.dry_run else ""
    left_out = len(rows) - len(wanted)
    rest = f", {left_out} left out: there is a run, or was a success" if left_out else ""
    print(f"{_counted(len(wanted))} {would}made{rest}")
    return 0


def _occurrences(args: Namespace, client: Client, since: float, until: float) -> list[Any]:
    """What the job's schedules say of the span. Raises Misuse."""
    found: list[Any] = []
    query = [("since", format_instant(since)), ("until", format_instant(until)), ("skipped", "false")]
    query.append(("limit", str(MOST)))
    answer = client.get("v1", "jobs", args.job, "upcoming", query=query)
    found += answer["upcoming"]
    if answer["next"] is not None:
        raise Misuse(f"more than {MOST} runs: give a shorter span")
    if found and not found[0]["args"]:
        job_id = plain(found[0]["job_id"])
        raise Misuse(f"runs of {job_id} have no args that would say what each of them is for")
    return found


def _good(client: Client, entry: Mapping[str, Any]) -> Any:
    """A run of the same instance that makes another one needless; None: there is none."""
    runs = looking.alike(client, entry["job_id"], entry["args"])
    good = next((run for run in runs if run["state"] in GOOD), None)
    return good or _success(client, entry)


def _success(client: Client, entry: Mapping[str, Any]) -> Any:
    """A success of the instance, however old: lists of runs may not reach that far back (runs.lookback)."""
    query = [("job_id", entry["job_id"]), ("args", json.dumps(entry["args"])), ("limit", str(MOST))]
    before: list[tuple[str, str]] = []
    while True:
        answer = client.get("v1", "history", query=[*query, *before])
        for run_id, state, *_ in answer["runs"]:
            if state == State.SUCCESS:
                return {"run_id": run_id, "state": state}
        if answer["next"] is None:
            return None
        before = [("before", answer["next"])]


def _show(args: Namespace, rows: list[tuple[Any, Any]], terminal: Terminal, to: Any) -> None:
    columns = [Column("time"), Column("args", ARGS), Column("run")]
    cells: list[list[str | Cell]] = [
        [
            show_time(entry["time"], args.utc),
            _named(entry["args"]),
            "to be made" if there is None else f"left out: {there['run_id']} {there['state']}",
        ]
        for entry, there in rows
    ]
    print("\n".join([*table(terminal, columns, cells), ""]), file=to)


def _named(args: Mapping[str, str]) -> str:
    return plain(" ".join(f"{name}={value}" for name, value in args.items()))


def _counted(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"
