"""The table of client commands, those that change something, and how each of them ends."""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

from apsislib.cli import address, completion, following, looking, show
from apsislib.cli.backfill import backfill
from apsislib.cli.client import SLOW, ApiError, Client, Misuse, Trouble, Unwanted
from apsislib.cli.terminal import RED, Terminal, forgiving, plain
from apsislib.cli.times import as_instants, read_stop, read_time, show_time
from apsislib.clock import WallClock
from apsislib.errors import INTERRUPTED
from apsislib.runs import instance
from apsislib.times import format_instant

log = logging.getLogger(__name__)

FUTURE = 20  # runs that a reload says appear, disappear or change; --format has more
REASONS = 20  # refusals that are shown: of a search there may be thousands
SHOWN = 20  # runs that are shown before it is asked whether they are meant


def run(args: Namespace) -> int:
    """The command that `args` name; its exit status."""
    for stream in (sys.stdout, sys.stderr):
        forgiving(stream)
    try:
        status = _run(args, Terminal.of(sys.stdout))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED if args.command in CHANGING else 0
    except BrokenPipeError:
        # Nobody reads any more; nor may the interpreter complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: Namespace, terminal: Terminal) -> int:
    try:
        host, port = address.find(args.host, args.port, os.environ)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    client = Client(host, port)
    try:
        try:
            return COMMANDS[args.command](args, client, terminal)
        except (KeyError, TypeError):
            # Some other program may speak JSON too. Who looks for more than that is told.
            log.debug("%s", args.command, exc_info=True)
            raise client.strange() from None
    except ApiError as error:
        if args.command == "output":  # whose standard output is bytes of the program
            print(f"error: {plain(error)}", file=sys.stderr)
        else:
            say(error, terminal)
        return 1
    except Unwanted:
        print("nothing is done", file=sys.stderr)
        return 1
    except Trouble as error:
        sys.stdout.flush()
        print(f"error: {plain(error)}", file=sys.stderr)
        return error.status


def say(error: ApiError, terminal: Terminal) -> None:
    """What the server says can't be done, with the jobs that are the reason."""
    for line in f"Error: {error}".splitlines():
        print(terminal.paint(plain(line), RED))
    for job_id, message in error.job_errors:
        print(f"- {plain(job_id)}")
        for line in message.splitlines():
            print(f"  {plain(line)}")


def each(runs: Iterable[str], terminal: Terminal, call: Callable[[str], object]) -> int:
    """Call for every run, also for those after one that can't be served; the exit status."""
    status = 0
    for run_id in runs:
        try:
            call(run_id)
        except ApiError as error:
            say(error, terminal)
            status = 1
    return status


# -- what is done to runs --------------------------------------------------------------------------


def many(args: Namespace) -> bool:
    """Whether one request does it: of a search, a dry run, for machines. Raises Misuse: no runs are named."""
    if bool(args.runs) == (args.matching is not None):
        raise Misuse("name runs, or give a search with --matching, but not both")
    machine = bool(args.format) and args.command != "rerun"
    return args.matching is not None or bool(args.dry_run) or machine


def bulk(args: Namespace, client: Client, terminal: Terminal, verb: str, **more: str) -> Any:
    """The same done to many runs at once; says to which, and answers what the server does.

    Raises Unwanted.
    """
    body = {"operation": verb, "dry_run": args.dry_run, **more}
    if args.reason:
        body["reason"] = args.reason
    if args.matching is None:
        body |= {"runs": args.runs}
    else:
        query = as_instants(args.matching, WallClock().wall(), args.utc)
        if args.dry_run or args.yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
            body |= {"query": query}
        else:  # those that were shown, not what the search would find by now
            body |= {"runs": _confirmed(args, client, body | {"query": query, "dry_run": True})}
    answer = client.post("v1", "bulk", body=body, patience=SLOW)
    if args.format:
        # Of a rerun, it is the new runs that are shown.
        if verb != "rerun" or args.dry_run:
            looking.print_data(args, answer)
        return answer
    done, refused = answer["done"], answer["refused"]
    if args.dry_run and terminal.width is not None:
        _preview(args, client, done, terminal, sys.stdout)
    else:
        for run_id in done:
            made = answer["made"].get(run_id)
            print(f"{plain(run_id)} as {plain(made)}" if made else plain(run_id))
    for said in list(refused.values())[:REASONS]:
        print(terminal.paint(plain(said), RED))
    would = "would be " if args.dry_run else ""
    rest = f", {len(refused)} can't" if refused else ""
    print(f"{verb} {would}done to {counted(done)}{rest}")
    return answer


def counted(runs: Sequence[str]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}"


def _confirmed(args: Namespace, client: Client, body: dict[str, Any]) -> list[str]:
    """The runs that a search finds, once somebody has said that they are meant. Raises Unwanted, Misuse."""
    found: list[str] = client.post("v1", "bulk", body=body, patience=SLOW)["done"]
    if not found:
        raise Misuse(f"no run that could be served matches: {args.matching}")
    _preview(args, client, found, Terminal.of(sys.stderr), sys.stderr)
    print(f"{body['operation']} {counted(found)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Unwanted
    return found


def _preview(args: Namespace, client: Client, runs: Sequence[str], terminal: Terminal, to: TextIO) -> None:
    if not runs:
        return
    query = [("summary", "true"), *(("run_id", run_id) for run_id in runs[:SHOWN])]
    answer = client.get("v1", "runs", query=query)
    table = show.runs_table(answer["runs"].values(), answer["when"], terminal, args.utc)
    if len(runs) > SHOWN:
        table[-1] = f"... and {len(runs) - SHOWN} more"
    print("\n".join(table), file=to)


def in_bulk(args: Namespace, client: Client, terminal: Terminal, verb: str, **more: str) -> int:
    answer = bulk(args, client, terminal, verb, **more)
    # A search finds what it finds; a run that is named is meant.
    return 1 if args.matching is None and answer["refused"] else 0


def why(args: Namespace) -> list[tuple[str, str]]:
    return [("reason", args.reason)] if args.reason else []


def skip(args: Namespace, client: Client, terminal: Terminal) -> int:
    if many(args):
        return in_bulk(args, client, terminal, "skip")
    return each(
        args.runs, terminal, lambda run_id: client.post("v1", "runs", run_id, "skip", query=why(args))
    )


def start(args: Namespace, client: Client, terminal: Terminal) -> int:
    if many(args):
        return in_bulk(args, client, terminal, "start")
    return each(
        args.runs, terminal, lambda run_id: client.post("v1", "runs", run_id, "start", query=why(args))
    )


def stop(args: Namespace, client: Client, terminal: Terminal) -> int:
    if many(args):
        return in_bulk(args, client, terminal, "stop")
    query = why(args)
    return each(args.runs, terminal, lambda run_id: client.put("v1", "runs", run_id, "stop", query=query))


def signal(args: Namespace, client: Client, terminal: Terminal) -> int:
    name = args.signal.upper()
    if many(args):
        return in_bulk(args, client, terminal, "signal", signal=name)
    path = ("signal", name)
    return each(args.runs, terminal, lambda run_id: client.put("v1", "runs", run_id, *path, query=why(args)))


def mark(args: Namespace, client: Client, terminal: Terminal) -> int:
    if many(args):
        return in_bulk(args, client, terminal, "mark", state=args.state)
    path = ("mark", args.state)
    return each(args.runs, terminal, lambda run_id: client.post("v1", "runs", run_id, *path, query=why(args)))


# -- new runs --------------------------------------------------------------------------------------


def schedule(args: Namespace, client: Client, terminal: Terminal) -> int:
    body = {"job_id": args.job, "args": looking.pairs(args.args)}
    return _make(args, client, terminal, body, args.count)


def adhoc(args: Namespace, client: Client, terminal: Terminal) -> int:
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise Misuse("nothing to run; write the program and its arguments after TIME")
    program: dict[str, Any]
    if args.shell:
        program = {"type": "procstar-shell", "command": " ".join(words)}
    else:
        program = {"type": "procstar", "argv": words}
    if args.group is not None:
        program["group_id"] = args.group
    return _make(args, client, terminal, {"job": {"program": program}}, None)


def _make(
    args: Namespace, client: Client, terminal: Terminal, body: dict[str, Any], count: int | None
) -> int:
    now = WallClock().wall()
    when = read_time(args.time, now, args.utc)
    times = {"schedule": "now" if when is None else format_instant(when)}
    if args.stop_time is not None:
        times["stop"] = read_stop(args.stop_time, now if when is None else when, args.utc)
    query = [] if count is None else [("count", str(count))]
    answer = client.post("v1", "runs", query=query, body={**body, "times": times}, patience=SLOW)
    return _made(args, client, terminal, list(answer["runs"].values()), answer["when"], count is not None)


def rerun(args: Namespace, client: Client, terminal: Terminal) -> int:
    if many(args):
        answer = bulk(args, client, terminal, "rerun")
        if args.dry_run:
            return 0 if args.matching is not None or not answer["refused"] else 1
        new = [client.get("v1", "runs", run_id) for run_id in answer["made"].values()]
        found = [run for one in new for run in one["runs"].values()]
        return _made(args, client, terminal, found, new[-1]["when"] if new else "", True)
    made: list[Any] = []
    now = ""

    def call(run_id: str) -> None:
        nonlocal now
        answer = client.post("v1", "runs", run_id, "rerun", query=why(args))
        made.extend(answer["runs"].values())
        now = answer["when"]

    status = each(args.runs, terminal, call)
    return max(status, _made(args, client, terminal, made, now, len(args.runs) > 1))


def _made(
    args: Namespace, client: Client, terminal: Terminal, runs: Sequence[Any], now: str, several: bool
) -> int:
    """Show new runs and, if so asked, await their ends. Machines are told of them once, as they ended."""
    if not args.format:
        looking.print_runs(args, terminal, runs, now, several)
        sys.stdout.flush()
    if not args.wait:
        if args.format:
            looking.print_runs(args, terminal, runs, now, several)
        wrong = looking.errors(client, runs)
        for line in wrong:
            print(line, file=sys.stderr)
        return 1 if wrong else 0
    ended = following.await_ends(client, runs)
    if args.format:
        looking.print_runs(args, terminal, [run for run, _ in ended], now, several)
    else:
        for run, when in ended:
            print(f"{show.title(run, terminal)}\n{show.state_line(run, when, terminal, args.utc)}")
    for line in looking.errors(client, [run for run, _ in ended]):
        print(line, file=sys.stderr)
    return 0 if all(run["state"] == "success" for run, _ in ended) else 1


# -- the server ------------------------------------------------------------------------------------


def reload_jobs(args: Namespace, client: Client, terminal: Terminal) -> int:
    answer = client.post("control", "reload_jobs", query=[("dry_run", str(args.dry_run))], patience=SLOW)
    if args.quiet:
        return 0
    if args.format:
        sys.stdout.write(show.machine(answer, args.format))
        return 0
    changes = [(kind, answer[kind]) for kind in ("removed", "added", "changed") if answer[kind]]
    for kind, job_ids in changes:
        print(terminal.heading(f"Jobs {kind}"))
        for job_id in job_ids:
            print(f"- {plain(job_id)}")
        print()
    for name, kind in (("appear", "new"), ("disappear", "gone"), ("change", "changed")):
        found = answer["runs"][name]
        if found["count"]:
            print(terminal.heading(f"Future runs {kind}: {found['count']}"))
            for run in found["runs"][:FUTURE]:
                print(
                    f"- {show_time(run['schedule'], args.utc)} {plain(instance(run['job_id'], run['args']))}"
                )
            if found["count"] > FUTURE:
                print("- ...")
            print()
    if not changes:
        print("no changes")
    elif args.dry_run:
        print("Dry run; no changes made.")
    return 0


def shut_down(args: Namespace, client: Client, terminal: Terminal) -> int:
    client.post("control", "shut_down")
    return 0


def restart(args: Namespace, client: Client, terminal: Terminal) -> int:
    client.post("control", "shut_down", query=[("restart", "true")])
    return 0


def version(args: Namespace, client: Client, terminal: Terminal) -> int:
    known = {"server address": client.address, "server version": None, "client version": args.version}
    try:
        known["server version"] = client.get("control", "version")["version"]
    except Trouble:
        if not args.format:
            print(f"server address: {client.address}\nclient version: {args.version}")
        raise
    if args.format:
        names = {name.replace(" ", "_"): value for name, value in known.items()}
        sys.stdout.write(show.machine(names, args.format))
    else:
        for name, value in known.items():
            print(f"{name}: {plain(value)}")
    return 0


def print_completion(args: Namespace, client: Client, terminal: Terminal) -> int:
    print(completion.SCRIPTS[args.shell], end="")
    return 0


COMMANDS: dict[str, Callable[[Namespace, Client, Terminal], int]] = {
    "adhoc": adhoc,
    "backfill": backfill,
    "completion": print_completion,
    "job": looking.job,
    "jobs": looking.jobs,
    "agents": looking.agents,
    "log": looking.log,
    "mark": mark,
    "output": following.output,
    "reload-jobs": reload_jobs,
    "rerun": rerun,
    "restart": restart,
    "run": looking.run,
    "runs": looking.runs,
    "schedule": schedule,
    "search": looking.search,
    "shut-down": shut_down,
    "signal": signal,
    "skip": skip,
    "start": start,
    "stop": stop,
    "upcoming": looking.upcoming,
    "version": version,
    "waiting": looking.waiting,
    "watch": following.watch,
}
CHANGING = {
    "adhoc",
    "backfill",
    "mark",
    "reload-jobs",
    "rerun",
    "restart",
    "schedule",
    "shut-down",
    "signal",
    "skip",
    "start",
    "stop",
}
