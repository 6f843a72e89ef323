"""Commands that go on while a run does. What WebSockets need is loaded when it is needed."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

from apsislib.cli.client import Client
from apsislib.cli.terminal import Terminal, plain
from apsislib.cli.times import show_iso
from apsislib.states import FINISHED

OUTPUT = "output"  # the ID of what a program prints


def output(args: Namespace, client: Client, terminal: Terminal) -> int:
    if args.follow or args.follow_new:
        from apsislib.cli import live

        client.get("v1", "runs", args.run_id)  # a run that is not known has nothing to follow
        start = _length(client, args.run_id) if args.follow_new else 0
        pieces = live.output(client, args.run_id, OUTPUT, start)
    else:
        pieces = _printed(args.run_id, client)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    return _judged(client.get("v1", "runs", args.run_id)["runs"][args.run_id])


def _printed(run_id: str, client: Client) -> Iterator[bytes]:
    """What there is of an output; of a run that has ended, to its last byte. Says so if more is to come."""
    count, complete = yield from client.download("v1", "runs", run_id, "output", OUTPUT)
    if complete:
        return
    state = client.get("v1", "runs", run_id, "state")["state"]
    if state not in FINISHED:
        more = f"more output may come, which apsis output -f {run_id} waits for"
        print(f"{run_id} is {state}: {more}", file=sys.stderr)
        return
    # More may have come of a run that was given up, which is on disk within a second.
    from apsislib.cli import live

    yield from live.output(client, run_id, OUTPUT, count)


def _judged(run: Any) -> int:
    """The exit status, once what there is of a run's output was printed. Says what is, or may be, missing."""
    run_id, meta = run["run_id"], run.get("meta") or {}
    missing = (meta.get("program") or {}).get("output_incomplete")
    if missing:
        print(f"error: the output of {run_id} is incomplete: {plain(missing)}", file=sys.stderr)
        return 1
    if run["state"] == "error" and "running" in run["times"] and "late_verdict" not in meta:
        text = f"its output may lack its end; apsis log {run_id} says why"
        print(f"{run_id} ended in error: {text}", file=sys.stderr)
    return 0


def _length(client: Client, run_id: str) -> int:
    found = client.get("v1", "runs", run_id, "outputs")
    return next((int(output["output_len"]) for output in found if output["output_id"] == OUTPUT), 0)


def watch(args: Namespace, client: Client, terminal: Terminal) -> int:
    from apsislib.cli import live

    for name, part in live.updates(client, args.run_id):
        if args.json:
            print(json.dumps({name: part}), flush=True)
        elif name == "run_log_append" and not args.silent:
            print(f"{show_iso(part['timestamp'], args.utc)}: {plain(part['message'])}", flush=True)
        if name == "run" and args.finish and part["state"] in FINISHED:
            return 0 if part["state"] == "success" else 1
    return 1


def await_ends(client: Client, runs: Iterable[Any]) -> list[tuple[Any, str]]:
    """The runs as they are once all of them have ended, each with the server's time at its last look."""
    from apsislib.cli import live

    ended = []
    for run in runs:
        if run["state"] not in FINISHED:
            live.await_end(client, run["run_id"])
        answer = client.get("v1", "runs", run["run_id"])
        ended.append((answer["runs"][run["run_id"]], str(answer["when"])))
    return ended
