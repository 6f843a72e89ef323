"""Runs and jobs as people read them, and as machines do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from apsislib.cli.terminal import JOB, RUN, Cell, Column, Terminal, plain, table
from apsislib.runs import instance
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
    "success": ("[+]", "38;5;36"),
    "failure": ("[X]", "38;5;124"),
    "error": ("[!]", "38;5;127"),
    "skipped": ("[-]", "38;5;245"),
}


def machine(data: Any, form: str) -> str:
    """JSON or YAML, with a newline at its end."""
    if form == "json":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    from apsislib import yamlio

    return yamlio.dump(data)


def when(text: str | None, utc: bool) -> str:
    """An API time in the zone of the reader, to the second."""
    if not text:
        return ""
    at = datetime.fromtimestamp(parse_time(text), UTC)
    return (at if utc else at.astimezone()).strftime("%Y-%m-%d %H:%M:%S")


def elapsed(run: Json) -> str:
    """H:MM:SS that a run has taken; empty where it did not run."""
    seconds = (run.get("meta") or {}).get("elapsed")
    if seconds is None:
        return ""
    minutes, rest = divmod(round(float(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}:{hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def start_of(run: Json) -> str:
    times = run.get("times") or {}
    return str(times.get("running") or times.get("schedule") or "")


def runs_table(runs: Iterable[Json], terminal: Terminal, utc: bool) -> list[str]:
    columns = [
        Column("run_id", RUN),
        Column("ste"),
        Column("start"),
        Column("elapsed", align="right"),
        Column("job_id", JOB),
        Column("args"),
    ]
    rows: list[list[str | Cell]] = []
    for run in sorted(runs, key=start_of):
        args = " ".join(f"{k}={v}" for k, v in (run.get("args") or {}).items())
        look = Cell(*LOOKS.get(run["state"], (run["state"], "")))
        rows.append([run["run_id"], look, when(start_of(run), utc), elapsed(run), run["job_id"], args])
    return table(terminal, columns, rows)


def run_block(run: Json, terminal: Terminal, utc: bool) -> list[str]:
    """A run in a few lines: what it is, what it waits for, where it has got to."""
    name = terminal.paint(plain(instance(run["job_id"], run.get("args") or {})), JOB)
    lines = [f"run {terminal.paint(run['run_id'], RUN)} {name}"]
    program = run.get("program")
    if program:
        lines.append(plain(f"{program.get('type')}: {program.get('str', '')}"))
    lines += [plain(f"- {cond.get('str', cond.get('type'))}") for cond in run.get("conds") or ()]
    state, times = run["state"], run.get("times") or {}
    symbol, colour = LOOKS.get(state, (state, ""))
    if state == "scheduled":
        said = f"for {when(times.get('schedule'), utc)}"
    elif state == "running":
        said = f"since {when(times.get('running'), utc)}"
    else:
        said = f"at {when(times.get(state), utc)}"
    took = elapsed(run)
    return [*lines, f"{terminal.paint(symbol, colour)} {said}" + (f" elapsed {took}" if took else ""), ""]
