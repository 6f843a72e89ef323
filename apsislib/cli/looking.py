"""Commands that show what there is."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from apsislib.cli import show
from apsislib.cli.client import ApiError, Client, Misuse
from apsislib.cli.terminal import ARGS, JOB, RED, RUN, Cell, Column, Terminal, plain, table
from apsislib.cli.times import as_instant, as_instants, read_span, show_time
from apsislib.clock import WallClock
from apsislib.states import State
from apsislib.times import format_instant, parse_time

NEWEST = 100  # runs of all jobs that are listed unless so many are asked for
PAGE = 1000  # runs of a page, at most
# Names that mean something to the API, so that an arg of this name is sent with a _ before it.
FIXED = ("job_id", "run_id", "state", "since", "summary")


def pairs(words: Iterable[str]) -> dict[str, str]:
    """The args of NAME=VAL. Raises Misuse."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise Misuse(f"not an arg: {word!r}; write NAME=VALUE")
        if name in found:
            raise Misuse(f"arg {name} is given twice; leave one out")
        found[name] = value
    return found


def print_data(args: Namespace, data: Any) -> int:
    sys.stdout.write(show.machine(data, args.format))
    return 0


# -- jobs ------------------------------------------------------------------------------------------


def jobs(args: Namespace, client: Client, terminal: Terminal) -> int:
    query = [] if args.label is None else [("label", args.label)]
    found = client.get("v1", "jobs", query=query)
    if not isinstance(found, list):
        raise client.strange()
    found.sort(key=lambda job: str(job["job_id"]))
    if args.format:
        return print_data(args, found)
    columns = [Column("job_id", JOB), Column("params"), Column("labels")]
    rows: list[list[str | Cell]] = [
        [job["job_id"], f"({', '.join(job['params'])})", " ".join(job["metadata"]["labels"])] for job in found
    ]
    print("\n".join([*table(terminal, columns, rows), ""]))
    return 0


def job(args: Namespace, client: Client, terminal: Terminal) -> int:
    found = client.get("v1", "jobs", args.job)
    sys.stdout.write(show.machine(found, args.format or "yaml"))
    return 0


# -- agents ----------------------------------------------------------------------------------------


def agents(args: Namespace, client: Client, terminal: Terminal) -> int:
    """All that the server knows of, by group; those that are away too."""
    found = client.get("procstar", "connections")
    if not isinstance(found, dict):
        raise client.strange()
    if args.format:
        return print_data(args, found)
    rows: list[list[str | Cell]] = []
    for record in found.values():
        conn, proc, stats = (record["info"][key] for key in ("conn", "proc", "stats"))
        here = stats["connected"]
        state = record["shutdown_state"] if here else "away"
        since = show_time(stats["last_connect_time" if here else "last_disconnect_time"], args.utc)
        words = (conn["group_id"], conn["conn_id"], proc["hostname"], proc["username"] or "")
        rows.append([*map(plain, words), state if here else Cell(state, RED), since])
    rows.sort(key=lambda row: row[:2])
    columns = [
        Column("group"),
        Column("agent"),
        Column("host"),
        Column("user"),
        Column("state"),
        Column("since"),
    ]
    print("\n".join([*table(terminal, columns, rows), ""]))
    return 0


# -- runs ------------------------------------------------------------------------------------------


def runs(args: Namespace, client: Client, terminal: Terminal) -> int:
    if args.job is None and not args.all and args.args and "=" not in args.args[0]:
        args.job, *args.args = args.args  # as all other commands take it
    if args.job is None and not args.all:
        print("error: filter --job is required", file=sys.stderr)
        print("Or --all, for the newest runs of all jobs.", file=sys.stderr)
        return 1
    if args.job is not None and args.all:
        raise Misuse("--job and --all exclude each other")
    chosen = _Choice(args, client)
    found = chosen.of_all_jobs() if args.all else chosen.of_job()
    if args.format:
        return print_data(args, {run["run_id"]: run for run in found})
    if not found:
        print("No runs.")
    elif args.summary:
        for run in found:
            print("\n".join(show.run_block(run, chosen.now, terminal, args.utc)))
    else:
        print("\n".join(show.runs_table(found, chosen.now, terminal, args.utc)))
    return 0


def search(args: Namespace, client: Client, terminal: Terminal) -> int:
    words = as_instants(" ".join(quoted_term(word) for word in args.terms), WallClock().wall(), args.utc)
    found: dict[str, Any] = {}
    before, now = None, ""
    while len(found) < args.limit:
        query = [("q", words), ("limit", str(min(args.limit - len(found), PAGE)))]
        if before is not None:
            query.append(("before", before))
        answer = client.get("v1", "search", "runs", query=query)
        found |= answer["runs"]
        before, now = answer["next"], answer["when"]
        if before is None:
            break
    if args.format:
        return print_data(args, found)
    print("\n".join(show.runs_table(found.values(), now, terminal, args.utc)) if found else "No runs.")
    return 0


def quoted_term(word: str) -> str:
    """A word of the command line as one term: a value with blanks in it is put in quotes."""
    if '"' in word or not any(char.isspace() for char in word):
        return word
    marks = [place for place in (word.find("="), word.find(":")) if place >= 0]
    place = min(marks, default=-1) + 1
    negated = word[:1] if not place and word.startswith("!") else ""
    rest = word[place or len(negated) :].replace("\\", "\\\\")
    return f'{word[:place] or negated}"{rest}"'


def upcoming(args: Namespace, client: Client, terminal: Terminal) -> int:
    path = ("v1", "upcoming") if args.job is None else ("v1", "jobs", args.job, "upcoming")
    now = WallClock().wall()
    since, until = (as_instant(text, now, args.utc) for text in (args.since, args.until))
    found: list[Any] = []
    cursor = None
    while len(found) < args.limit:
        query = [("since", since), ("until", until), ("skipped", str(args.skipped))]
        query.append(("limit", str(min(args.limit - len(found), PAGE))))
        if cursor is not None:
            query.append(("cursor", cursor))
        answer = client.get(*path, query=query)
        found += answer["upcoming"]
        cursor = answer["next"]
        if cursor is None:
            break
    if args.format:
        return print_data(args, found)
    if not found:
        print("Nothing.")
        return 0
    columns = [Column("time"), Column("run_id", RUN), Column("job_id", JOB), Column("args", ARGS)]
    columns.append(Column("note"))
    rows: list[list[str | Cell]] = [
        [
            show_time(entry["time"], args.utc),
            entry["run_id"] or "",
            entry["job_id"],
            " ".join(f"{name}={value}" for name, value in entry["args"].items()),
            f"skipped: {entry['skipped']}" if entry["skipped"] else entry["note"] or "",
        ]
        for entry in found
    ]
    print("\n".join([*table(terminal, columns, rows), ""]))
    return 0


class _Choice:
    """Which runs are asked for, by start, those without one first."""

    def __init__(self, args: Namespace, client: Client) -> None:
        self.now = ""  # the server's time at its last answer
        self._client = client
        self._job = args.job
        self._args = pairs(args.args)
        self._state = args.state
        self._limit = args.limit
        self._full = args.summary  # whole records
        self._span = None if args.times is None else read_span(args.times, WallClock().wall(), args.utc)
        # (query for runs of some states, ...), which together find all in the span
        wanted = [] if args.state is None else [args.state]
        if args.all and args.state is None and args.times is None:
            # The newest are those made last: with a day of runs to come, one would see nothing else.
            wanted = [state for state in State if state not in (State.NEW, State.SCHEDULED)]
        self._states: list[list[tuple[str, str]]] = [[("state", state) for state in wanted]]
        if self._span is not None and self._span[0] > 0 and args.state != "scheduled":
            # What has started since then has changed since then. What is yet to start may be older.
            self._states[0].append(("since", format_instant(self._span[0])))
            if args.state is None:
                self._states.append([("state", "scheduled")])

    def of_job(self) -> list[Any]:
        wanted = [
            (f"_{name}" if name in FIXED or name[0] == "_" else name, value)
            for name, value in self._args.items()
        ]
        found: dict[str, Any] = {}
        for states in self._states:
            answer = self._client.get("v1", "runs", query=[("job_id", self._job), *states, *wanted])
            found |= answer["runs"]
            self.now = answer["when"]
        chosen = sorted(filter(self._admits, found.values()), key=show.start_of)
        return chosen if self._limit is None else chosen[-self._limit :] if self._limit else []

    def of_all_jobs(self) -> list[Any]:
        limit = NEWEST if self._limit is None else self._limit
        found: dict[str, Any] = {}
        for states in self._states:
            count, before = 0, None
            while count < limit:
                query = [("limit", str(min(limit - count, PAGE) if not self._args else PAGE)), *states]
                answer = self._client.get(
                    "v1", "search", "runs", query=query if before is None else [*query, ("before", before)]
                )
                page = {run_id: run for run_id, run in answer["runs"].items() if self._admits(run)}
                found |= page
                count += len(page)
                before, self.now = answer["next"], answer["when"]
                if before is None:
                    break
        newest = sorted(found.values(), key=lambda run: int(run["run_id"][1:]), reverse=True)[:limit]
        if self._full:
            newest = [self._record(run) for run in newest]
        return sorted(newest, key=show.start_of)

    def _record(self, run: Any) -> Any:
        """All of a run of which only a summary is known."""
        try:
            return self._client.get("v1", "runs", run["run_id"])["runs"][run["run_id"]]
        except ApiError:
            return run  # gone meanwhile

    def _admits(self, run: Any) -> bool:
        if any(run["args"].get(name) != value for name, value in self._args.items()):
            return False
        if self._span is None:
            return True
        start = show.start_of(run)
        return start != "" and self._span[0] <= parse_time(start) < self._span[1]


def errors(client: Client, runs: Iterable[Any]) -> list[str]:
    """Why those of the runs that are errors are, a line each."""
    lines = []
    for run in runs:
        if run["state"] == "error":
            entries = client.get("v1", "runs", run["run_id"], "log")["run_log"]
            said = [e["message"] for e in entries if e["message"].startswith("error")]
            lines.append(plain(f"{run['run_id']} {said[-1] if said else 'error'}"))
    return lines


def print_runs(args: Namespace, terminal: Terminal, found: Sequence[Any], now: str, several: bool) -> None:
    """Runs as blocks; for machines one run, or a list where `several` were asked for."""
    if not args.format:
        for run in found:
            print("\n".join(show.run_block(run, now, terminal, args.utc)))
    elif several:
        print_data(args, list(found))
    elif found:
        print_data(args, found[0])


def run(args: Namespace, client: Client, terminal: Terminal) -> int:
    found: list[tuple[Any, str]] = []
    unknown: list[ApiError] = []
    for run_id in args.runs:
        try:
            answer = client.get("v1", "runs", run_id)
            found.append((answer["runs"][run_id], answer["when"]))
        except ApiError as error:
            unknown.append(error)
    if args.format or not args.verbose:
        shown = [run for run, _ in found]
        print_runs(args, terminal, shown, found[-1][1] if found else "", len(args.runs) > 1)
        if not args.format:
            for line in [*errors(client, shown), *waits(client, shown, args.utc)]:
                print(line)
    else:
        for one, now in found:
            _print_all(one, now, client, terminal, args.utc)
    for wrong in unknown:  # after those that are known, and beside what machines read
        print(terminal.paint(f"Error: {plain(wrong)}", RED), file=sys.stderr if args.format else sys.stdout)
    return 1 if unknown else 0


def alike(client: Client, job_id: str, args: Mapping[str, str]) -> list[Any]:
    """The runs of an instance."""
    wanted = [(f"_{n}" if n in FIXED or n[0] == "_" else n, v) for n, v in args.items()]
    return list(client.get("v1", "runs", query=[("job_id", job_id), *wanted])["runs"].values())


def _print_all(run: Any, now: str, client: Client, terminal: Terminal, utc: bool) -> None:
    run_id = run["run_id"]
    entries = client.get("v1", "runs", run_id, "log")["run_log"]
    outputs = client.get("v1", "runs", run_id, "outputs")
    history = alike(client, run["job_id"], run["args"])

    def part(name: str, lines: Iterable[str]) -> None:
        print("\n".join([terminal.heading(name), *lines, ""]))

    print(show.title(run, terminal) + "\n")
    program = run.get("program") or {}
    part("Program", show.values(program, terminal))
    lines: list[str] = []
    for cond in run.get("conds") or ():
        others = {name: value for name, value in cond.items() if name != "str"}
        lines += [f"- {plain(cond.get('str', cond.get('type')))}", *show.values(others, terminal, "  ")]
    part("Conditions", lines or ["none"])
    part("Log", show.log_lines(entries, utc))
    part(
        "Output", [f"{plain(o['output_id']):{show.KEY}} {o['output_len']} bytes" for o in outputs] or ["none"]
    )
    print(terminal.heading("Run History"))
    print("\n".join(show.runs_table(history, now, terminal, utc)))


def log(args: Namespace, client: Client, terminal: Terminal) -> int:
    entries = client.get("v1", "runs", args.run_id, "log")["run_log"]
    if args.format:
        return print_data(args, entries)
    for line in show.log_lines(entries, args.utc):
        print(line)
    return 0


def waiting(args: Namespace, client: Client, terminal: Terminal) -> int:
    answer = client.get("v1", "runs", args.run_id, "waiting")
    if args.format:
        return print_data(args, answer)
    rows = answer["waiting"]
    if not rows:
        print(f"{plain(answer['run_id'])} is {answer['state']}: it waits for nothing")
        return 0
    columns = [Column(""), Column("condition"), Column("since"), Column("reason"), Column("runs", RUN)]
    cells: list[list[str | Cell]] = []
    for row in rows:
        holds = row["holds"]
        symbol, colour = show.LOOKS["success" if holds else "waiting"]
        reason = row.get("reason") or ("" if holds else "not looked at yet")
        since = show_time(row.get("since"), args.utc)
        cells.append([Cell(symbol, colour), row["condition"], since, reason, named(row.get("runs") or ())])
    print("\n".join([*table(terminal, columns, cells), ""]))
    return 0


def named(runs: Sequence[Mapping[str, str]], most: int = 4) -> str:
    """Runs with their states, the latest `most` of them."""
    shown = [f"{run['run_id']} {run['state']}" for run in runs[-most:]]
    return ", ".join([*(["..."] if len(runs) > most else []), *shown])


def waits(client: Client, runs: Iterable[Any], utc: bool) -> Iterator[str]:
    """What those of the runs that wait are waiting for."""
    for run in runs:
        if run["state"] == "waiting":
            for row in client.get("v1", "runs", run["run_id"], "waiting")["waiting"]:
                if "since" in row:
                    runs_named = named(row.get("runs") or ())
                    said = f"{row['condition']}: {row['reason']}" + (f" ({runs_named})" if runs_named else "")
                    yield f"{run['run_id']} waits since {show_time(row['since'], utc)} for {plain(said)}"
