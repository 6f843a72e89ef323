"""Runs and jobs as people read them, and as machines do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from apsislib.cli.terminal import ARGS, JOB, RUN, Cell, Column, Terminal, plain, table
from apsislib.cli.times import show_elapsed, show_time
from apsislib.states import FINISHED
from apsislib.times import parse_time

Json = Mapping[str, Any]

# State -> its symbol and colour.
LOOKS = {
    "new": ("[.]", ""),
    "scheduled": ("[O]", "38;5;243"),
    "waiting": ("[|]", "38;5;241"),
    "starting": ("[›]", "38;5;243"),
    "running": ("[»]", "38;5;136"),
    "stopping": ("[≯]", "38;5;243"),
    "success": ("[+]", "38;5;29"),
    "failure": ("[X]", "38;5;124"),
    "error": ("[!]", "38;5;127"),
    "skipped": ("[-]", "38;5;102"),
}
ENDS = ("success", "failure", "error")  # of a run that has run
KEY = 12  # columns of the names before values


def machine(data: Any, form: str) -> str:
    """JSON or YAML, with a newline at its end."""
    if form == "json":
        return json.dumps(data, indent=2) + "\n"
    from apsislib import yamlio

    return yamlio.dump(data)


def start_of(run: Json) -> str:
    """When a run began to run, or is due; empty where neither is known."""
    times = run["times"]
    return str(times.get("running") or times.get("schedule") or "")


def elapsed(run: Json, now: str) -> str:
    """How long a run has run; empty where it has not. `now`: the server's time."""
    seconds = (run.get("meta") or {}).get("elapsed")
    times = run["times"]
    if seconds is None and "running" in times:
        start = parse_time(times["running"])
        ends = [parse_time(times[state]) for state in ENDS if state in times]
        # A mark adds another end, later than the real one.
        end = min(ends, default=None)
        if end is None and run["state"] in ("running", "stopping"):
            end = parse_time(now)
        seconds = None if end is None else max(0.0, end - start)
    return "" if seconds is None else show_elapsed(seconds)


def look(terminal: Terminal, state: str) -> str:
    return terminal.paint(*LOOKS.get(state, (f"[{state}]", "")))


def runs_table(runs: Iterable[Json], now: str, terminal: Terminal, utc: bool) -> list[str]:
    """By start, those without one first; a blank line at the end."""
    columns = [
        Column("run_id", RUN),
        Column("ste"),
        Column("start"),
        Column("elapsed", align="right"),
        Column("job_id", JOB),
        Column("args", ARGS),
    ]
    found = sorted(runs, key=start_of)
    if any(_marks(run) for run in found):
        columns.append(Column("alarms"))
    rows: list[list[str | Cell]] = [
        [
            run["run_id"],
            Cell(*LOOKS.get(run["state"], (f"[{run['state']}]", ""))),
            show_time(start_of(run), utc),
            elapsed(run, now),
            run["job_id"],
            " ".join(f"{name}={value}" for name, value in run["args"].items()),
        ]
        for run in found
    ]
    for row, run in zip(rows, found, strict=True):
        row += [_marks(run)] * (len(columns) - len(row))
    return [*table(terminal, columns, rows), ""]


def _marks(run: Json) -> str:
    """Alarms, and how its program ended after it was given up, in the words of searches."""
    late = run.get("late_verdict")
    return " ".join([*run.get("alarms", ()), *([f"verdict:{late}"] if late else [])])


def title(run: Json, terminal: Terminal) -> str:
    args = ", ".join(f"{name}={value}" for name, value in run["args"].items())
    job = terminal.paint(plain(run["job_id"]), JOB)
    return f"run {terminal.paint(run['run_id'], RUN)} {job}" + (
        terminal.paint(f"({plain(args)})", ARGS) if args else ""
    )


def state_line(run: Json, now: str, terminal: Terminal, utc: bool) -> str:
    state, times = run["state"], run["times"]
    if state == "scheduled":
        said = f"for {show_time(times.get('schedule'), utc)}"
    elif state == "running":
        said = f"since {show_time(times.get('running'), utc)}"
    else:
        said = f"at {show_time(times.get(state), utc)}"
    took = elapsed(run, now)
    stop = times.get("stop") if state not in FINISHED else None
    parts = [f"elapsed {took}"] if took else []
    parts += [f"stop at {show_time(stop, utc)}"] if stop else []
    return " ".join([look(terminal, state), said, *parts])


def run_block(run: Json, now: str, terminal: Terminal, utc: bool) -> list[str]:
    """A run in a few lines: what it is, what it waits for, where it has got to."""
    lines = [title(run, terminal)]
    program = run.get("program")
    if program:
        lines.append(plain(f"{program.get('type')}: {program.get('str', '')}"))
    lines += [plain(f"- {cond.get('str', cond.get('type'))}") for cond in run.get("conds") or ()] or ["none"]
    lines.append(state_line(run, now, terminal, utc))
    if "rerun_of" in run:
        lines.append(f"rerun of {run['rerun_of']}")
    if "reruns" in run:
        lines.append(f"rerun as {' '.join(run['reruns'])}")
    reasons = run.get("reasons", {})
    lines += [
        plain(f"{alarm}: {reasons[alarm]}" if alarm in reasons else alarm) for alarm in run.get("alarms", ())
    ]
    meta = run.get("meta") or {}
    late, was = meta.get("late_verdict"), meta.get("given_up")
    if not late and isinstance(was, dict):
        ending = was.get("state") == "stopping" or was.get("stop_asked")
        what = "and is to end" if ending else f"until apsis stop {run['run_id']} ends it"
        lines.append(f"given up: its program may still run, {what}")
    if late and late["state"] not in ("error", run["state"]):
        lines.append(f"late verdict: {late['state']} (apsis mark {late['state']} {run['run_id']} accepts it)")
    return [*lines, ""]


def values(mapping: Json, terminal: Terminal, indent: str = "") -> list[str]:
    """A line for each key and its value; nested values as JSON."""
    lines = []
    for name, value in mapping.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"{indent}{plain(name):{KEY}} {plain(text)}")
    return lines


def log_lines(entries: Iterable[Json], utc: bool) -> list[str]:
    return [f"{show_time(entry['timestamp'], utc)} {plain(entry['message'])}" for entry in entries]
