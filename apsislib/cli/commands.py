"""What each client command does."""

from __future__ import annotations

import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, time, timedelta
from threading import Event
from typing import Any

from apsislib.cli import address, show
from apsislib.cli.client import SLOW, ApiError, Client, Trouble
from apsislib.cli.terminal import JOB, RED, Cell, Column, Terminal, forgiving, plain, table
from apsislib.clock import WallClock
from apsislib.times import format_time, parse_daytime, parse_duration, parse_time


def run(args: Namespace) -> int:
    """The command that `args` name; its exit status."""
    forgiving(sys.stdout)
    forgiving(sys.stderr)
    try:
        host, port = address.find(args.host, args.port, os.environ)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    terminal = Terminal.of(sys.stdout)
    try:
        status = COMMANDS[args.command](args, Client(host, port), terminal)
        sys.stdout.flush()
        return status
    except ApiError as error:
        say(error, terminal)
        return 1
    except Trouble as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Nobody reads any more; nor may the interpreter complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def say(error: ApiError, terminal: Terminal) -> None:
    print(terminal.paint(f"Error: {plain(error)}", RED))
    for job_id, message in error.job_errors:
        print(f"- {plain(job_id)}")
        for line in message.splitlines():
            print(f"  {plain(line)}")


def each(runs: Iterable[str], terminal: Terminal, call: Callable[[str], object]) -> int:
    """Call for every run, those after one that can't be served too; the exit status."""
    status = 0
    for run_id in runs:
        try:
            call(run_id)
        except ApiError as error:
            say(error, terminal)
            status = 1
    return status


def skip(args: Namespace, client: Client, terminal: Terminal) -> int:
    return each(args.runs, terminal, lambda run_id: client.post("v1", "runs", run_id, "skip"))


def start(args: Namespace, client: Client, terminal: Terminal) -> int:
    return each(args.runs, terminal, lambda run_id: client.post("v1", "runs", run_id, "start"))


def stop(args: Namespace, client: Client, terminal: Terminal) -> int:
    return each(args.runs, terminal, lambda run_id: client.put("v1", "runs", run_id, "stop"))


def shut_down(args: Namespace, client: Client, terminal: Terminal) -> int:
    client.post("control", "shut_down", patience=SLOW)
    return 0


def signal(args: Namespace, client: Client, terminal: Terminal) -> int:
    name = args.signal.upper()
    return each(args.runs, terminal, lambda run_id: client.put("v1", "runs", run_id, "signal", name))


def mark(args: Namespace, client: Client, terminal: Terminal) -> int:
    return each(args.runs, terminal, lambda run_id: client.post("v1", "runs", run_id, "mark", args.state))


def restart(args: Namespace, client: Client, terminal: Terminal) -> int:
    client.post("control", "shut_down", query=[("restart", "true")], patience=SLOW)
    return 0


def version(args: Namespace, client: Client, terminal: Terminal) -> int:
    answer = client.get("control", "version")
    if args.format:
        data = {"address": client.address, "server": answer["version"], "client": args.version}
        sys.stdout.write(show.machine(data, args.format))
    else:
        print(f"server address: {client.address}")
        print(f"server version: {answer['version']}")
        print(f"client version: {args.version}")
    return 0


def reload_jobs(args: Namespace, client: Client, terminal: Terminal) -> int:
    answer = client.post("control", "reload_jobs", query=[("dry_run", str(args.dry_run))], patience=SLOW)
    if args.format:
        sys.stdout.write(show.machine(answer, args.format))
        return 0
    if args.quiet:
        return 0
    changes = [(kind, answer[kind]) for kind in ("removed", "added", "changed") if answer[kind]]
    for kind, names in changes:
        print(terminal.heading(f"Jobs {kind}"))
        print("".join(f"- {plain(name)}\n" for name in names))
    if not changes:
        print("no changes")
    elif args.dry_run:
        print("Dry run; no changes made.")
    return 0


# -- making runs -----------------------------------------------------------------------------------


def schedule(args: Namespace, client: Client, terminal: Terminal) -> int:
    pairs = _pairs(args.args)
    return _make(args, client, terminal, {"job_id": args.job, "args": pairs}, args.count)


def adhoc(args: Namespace, client: Client, terminal: Terminal) -> int:
    if not args.words:
        raise Trouble("nothing to run: give a program and its arguments after TIME")
    program: dict[str, Any]
    if args.shell:
        program = {"type": "procstar-shell", "command": " ".join(args.words)}
    else:
        program = {"type": "procstar", "argv": args.words}
    if args.group:
        program["group_id"] = args.group
    return _make(args, client, terminal, {"job": {"program": program}}, None)


def rerun(args: Namespace, client: Client, terminal: Terminal) -> int:
    runs = [run for run_id in args.runs for run in _runs(client.post("v1", "runs", run_id, "rerun"))]
    return _print_runs(args, terminal, runs)


def _make(
    args: Namespace, client: Client, terminal: Terminal, body: dict[str, Any], count: int | None
) -> int:
    body["times"] = {"schedule": _time(args.time, args.utc)}
    if args.stop_time:
        body["times"]["stop"] = args.stop_time
    query = [] if count is None else [("count", str(count))]
    runs = _runs(client.post("v1", "runs", query=query, body=body, patience=SLOW))
    _print_runs(args, terminal, runs)
    if not args.wait:
        return 0
    ends = [_await_end(client, run["run_id"]) for run in runs]
    for run in ends:
        print(f"{run['run_id']} {run['state']}", file=sys.stderr)
    return 0 if all(run["state"] == "success" for run in ends) else 1


def _time(text: str, utc: bool) -> str:
    """TIME of the command line as the API takes it."""
    now = WallClock().wall()
    try:
        if text == "now":
            return text
        if text.startswith("+"):
            return format_time(now + parse_duration(text))
        try:
            seconds = parse_daytime(text)
        except ValueError:
            return format_time(parse_time(text))
        here = datetime.fromtimestamp(now, UTC) if utc else datetime.fromtimestamp(now, UTC).astimezone()
        at = datetime.combine(here.date(), time(), here.tzinfo) + timedelta(seconds=seconds)
        return format_time(at.timestamp() + (86400 if at.timestamp() <= now else 0))
    except ValueError as error:
        raise Trouble(f"not a time: {text!r}: {error}; write now, +10m, 09:30:00 or an ISO time") from None


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Trouble(f"not an arg: {text!r}; write it as NAME=VALUE")
        pairs[name] = value
    return pairs


# -- looking ---------------------------------------------------------------------------------------


def jobs(args: Namespace, client: Client, terminal: Terminal) -> int:
    query = [] if args.label is None else [("label", args.label)]
    found = sorted(client.get("v1", "jobs", query=query), key=lambda job: str(job["job_id"]))
    if args.format:
        sys.stdout.write(show.machine(found, args.format))
        return 0
    columns = [Column("job_id", JOB), Column("params"), Column("labels")]
    rows: list[list[str | Cell]] = [
        [job["job_id"], f"({', '.join(job['params'])})", " ".join(job["metadata"].get("labels", ()))]
        for job in found
    ]
    print("\n".join(table(terminal, columns, rows)))
    return 0


def job(args: Namespace, client: Client, terminal: Terminal) -> int:
    sys.stdout.write(show.machine(client.get("v1", "jobs", args.job), args.format or "yaml"))
    return 0


def runs(args: Namespace, client: Client, terminal: Terminal) -> int:
    if not args.job and not args.all:
        print("error: filter --job is required (or --all)", file=sys.stderr)
        return 1
    pairs = _pairs(args.args)
    if args.all:
        query = [("limit", str(args.limit or 100))]
        query += [("state", args.state)] if args.state else []
        found = list(client.get("v1", "search", "runs", query=query)["runs"])
        found = [run for run in found if pairs.items() <= run["args"].items()]
    else:
        query = [("job_id", args.job)] + ([("state", args.state)] if args.state else [])
        query += [(f"_{k}" if k in RESERVED else k, v) for k, v in pairs.items()]
        found = _runs(client.get("v1", "runs", query=query))
    if args.times:
        low, high = _span(args.times, args.utc)
        found = [run for run in found if low <= parse_time(show.start_of(run)) < high]
    found.sort(key=show.start_of)
    if args.limit:
        found = found[-args.limit :]
    if args.format:
        sys.stdout.write(show.machine({run["run_id"]: run for run in found}, args.format))
    elif not found:
        print("No runs.")
    elif args.summary:
        for run in found:
            print("\n".join(show.run_block(run, terminal, args.utc)))
    else:
        print("\n".join([*show.runs_table(found, terminal, args.utc), ""]))
    return 0


RESERVED = ("job_id", "run_id", "state", "since", "summary")


def _span(text: str, utc: bool) -> tuple[float, float]:
    """The instants between which SPAN lies: a day, a duration back from now, a time, or FROM..TO."""
    now = WallClock().wall()
    here = datetime.fromtimestamp(now, UTC) if utc else datetime.fromtimestamp(now, UTC).astimezone()
    try:
        if ".." in text:
            low, high = text.split("..", 1)
            return parse_time(low) if low else 0.0, parse_time(high) if high else float("inf")
        if text == "today" or re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            day = here.date() if text == "today" else datetime.fromisoformat(text).date()
            start = datetime.combine(day, time(), here.tzinfo)
            return start.timestamp(), (start + timedelta(days=1)).timestamp()
        try:
            return parse_time(text), float("inf")
        except ValueError:
            return now - parse_duration(text), float("inf")
    except ValueError:
        raise Trouble(f"not a span: {text!r}; write today, 2031-05-06, 2h, an ISO time or FROM..TO") from None


def run_(args: Namespace, client: Client, terminal: Terminal) -> int:
    found = [run for run_id in args.runs for run in _runs(client.get("v1", "runs", run_id))]
    if args.format:
        sys.stdout.write(show.machine(found, args.format))
        return 0
    for run in found:
        print("\n".join(show.run_block(run, terminal, args.utc)))
        if args.verbose:
            print(terminal.heading("Program"))
            print(show.machine(run.get("program"), "yaml"))
            print(terminal.heading("Log"))
            _print_log(client, run["run_id"], args.utc)
            print(terminal.heading("Run History"))
            query = [("job_id", run["job_id"])]
            query += [(f"_{k}" if k in RESERVED else k, v) for k, v in run["args"].items()]
            history = _runs(client.get("v1", "runs", query=query))
            print("\n".join([*show.runs_table(history, terminal, args.utc), ""]))
    return 0


def log(args: Namespace, client: Client, terminal: Terminal) -> int:
    if args.format:
        entries = client.get("v1", "runs", args.run_id, "log")["run_log"]
        sys.stdout.write(show.machine(entries, args.format))
    else:
        _print_log(client, args.run_id, args.utc)
    return 0


def _print_log(client: Client, run_id: str, utc: bool) -> None:
    for entry in client.get("v1", "runs", run_id, "log")["run_log"]:
        print(f"{show.when(entry['timestamp'], utc)} {plain(entry['message'])}")
    print()


def waiting(args: Namespace, client: Client, terminal: Terminal) -> int:
    answer = client.get("v1", "runs", args.run_id, "waiting")
    if args.format:
        sys.stdout.write(show.machine(answer, args.format))
        return 0
    if not answer["waiting"]:
        print(f"{args.run_id} waits for nothing: it is {answer['state']}")
    for row in answer["waiting"]:
        said = "holds" if row["holds"] else row.get("reason", "not looked at yet")
        print(f"{'[+]' if row['holds'] else '[|]'} {plain(row['condition'])}: {plain(said)}")
    return 0


# -- following -------------------------------------------------------------------------------------

ENDS = ("success", "failure", "error", "skipped")
LOOK = 0.3  # s between questions while following
PATIENCE = 60  # questions without an answer, the server being restarted, after which we give up


def output(args: Namespace, client: Client, terminal: Terminal) -> int:
    stream = sys.stdout.buffer
    at = 0
    if args.follow_new:
        at = _length(client, args.run_id)
    while True:
        ended = _state(client, args.run_id)["state"] in ENDS  # asked first: what ends now is read below
        try:
            for piece in client.download("v1", "runs", args.run_id, "output", "output", start=at):
                stream.write(piece)
                at += len(piece)
            stream.flush()
        except ApiError as error:
            if not (args.follow or args.follow_new) or error.status != 404:
                raise
        if ended or not (args.follow or args.follow_new):
            return 0
        _nap()


def watch(args: Namespace, client: Client, terminal: Terminal) -> int:
    seen = len(client.get("v1", "runs", args.run_id, "log")["run_log"])
    while True:
        run = _state(client, args.run_id)
        entries = client.get("v1", "runs", args.run_id, "log")["run_log"]
        for entry in entries[seen:]:
            if args.json:
                part = {"timestamp": entry["timestamp"], "message": entry["message"]}
                print(json.dumps({"run_log_append": part}))
            elif not args.silent:
                print(f"{show.when(entry['timestamp'], args.utc)}: {plain(entry['message'])}")
        seen = max(seen, len(entries))
        sys.stdout.flush()
        if run["state"] in ENDS and args.finish:
            return 0 if run["state"] == "success" else 1
        _nap()


def _length(client: Client, run_id: str) -> int:
    found = client.get("v1", "runs", run_id, "outputs")
    return next((int(o["output_len"]) for o in found if o["output_id"] == "output"), 0)


def _state(client: Client, run_id: str) -> dict[str, Any]:
    """The run; asked again for a while if the server is away, as in a restart."""
    for left in range(PATIENCE, -1, -1):
        try:
            return _runs(client.get("v1", "runs", run_id))[0]
        except Trouble:
            if not left:
                raise
            _nap()
    raise AssertionError


def _await_end(client: Client, run_id: str) -> dict[str, Any]:
    while (run := _state(client, run_id))["state"] not in ENDS:
        _nap()
    return run


def _nap() -> None:
    Event().wait(LOOK)


def _runs(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return list(answer["runs"].values())


def _print_runs(args: Namespace, terminal: Terminal, found: list[dict[str, Any]]) -> int:
    if args.format:
        sys.stdout.write(show.machine(found, args.format))
    else:
        for run in found:
            print("\n".join(show.run_block(run, terminal, args.utc)))
    return 0


COMMANDS: dict[str, Callable[[Namespace, Client, Terminal], int]] = {
    "adhoc": adhoc,
    "job": job,
    "jobs": jobs,
    "log": log,
    "mark": mark,
    "output": output,
    "reload-jobs": reload_jobs,
    "rerun": rerun,
    "restart": restart,
    "run": run_,
    "runs": runs,
    "schedule": schedule,
    "shut-down": shut_down,
    "signal": signal,
    "skip": skip,
    "start": start,
    "stop": stop,
    "version": version,
    "waiting": waiting,
    "watch": watch,
}
