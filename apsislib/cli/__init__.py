"""The client commands: what an operator types, sent to a server by HTTP.

    address.py    where the server is
    client.py     requests, and what goes wrong with them, in sentences
    live.py       what the server tells as it happens
    terminal.py   widths, colours, tables
    times.py      the times that an operator writes, and those that are shown
    show.py       runs and jobs as text, JSON or YAML
    looking.py    commands that show what there is
    following.py  commands that go on while a run does
    completion.py what a shell offers at Tab
    commands.py   all the others, and how each command ends

Only the arguments are declared here; the rest is loaded by the command that is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Parser(argparse.ArgumentParser):
    """A parser of one command, whose last list of words may go on behind options.

    By itself argparse takes `a=1` of `schedule now JOB --wait a=1` for one word too many.
    """

    words = ""  # where that list is

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        found, left = super().parse_known_args(args, namespace)
        if self.words and not any(word.startswith("-") for word in left):
            setattr(found, self.words, [*getattr(found, self.words), *left])
            left = []
        return found, left


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options before the command."""
    parser.add_argument(
        "--host", metavar="HOST", help="the server: HOST or HOST:PORT (APSIS_HOST, localhost)"
    )
    parser.add_argument("--port", metavar="PORT", type=_port, help="the server's port (5000)")
    parser.add_argument(
        "--log-level", metavar="LEVEL", type=str.upper, choices=LEVELS, help=", ".join(LEVELS) + " (WARNING)"
    )
    parser.add_argument(
        "--utc", action="store_true", help="show and read times in UTC, not in the local zone"
    )


def _port(text: str) -> int:
    from apsislib.cli.address import parse_port

    try:
        return parse_port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _run(args: argparse.Namespace) -> int:
    from apsislib.cli import commands

    return commands.run(args)


def add_commands(subparsers: Any, version: str) -> None:
    """The commands that ask a server. Each sets `run`, from the arguments to the exit status."""

    def add(name: str, help: str, more: str = "") -> argparse.ArgumentParser:
        text = f"{help[0].upper()}{help[1:]}. {more}".strip()
        parser: argparse.ArgumentParser = subparsers.add_parser(name, help=help, description=text)
        parser.set_defaults(run=_run, version=version)
        return parser

    def add_words(parser: argparse.ArgumentParser, name: str, metavar: str, nargs: str, help: str) -> None:
        parser.add_argument(name, metavar=metavar, nargs=nargs, help=help)
        if isinstance(parser, Parser):
            parser.words = name

    def add_runs(parser: argparse.ArgumentParser) -> None:
        add_words(parser, "runs", "RUN", "+", "run IDs, such as r12")

    def add_format(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--format", choices=("json", "yaml"), help="for machines")
        parser.add_argument(
            "--utc",
            action="store_true",
            default=argparse.SUPPRESS,
            help="times in UTC, not in the local zone",
        )

    def add_many(parser: argparse.ArgumentParser) -> None:
        add_words(parser, "runs", "RUN", "*", "run IDs, such as r12")
        parser.add_argument(
            "--matching", metavar="QUERY", help="all runs that match a search, such as 'etl state:failure'"
        )
        parser.add_argument("--dry-run", action="store_true", help="only say to which runs it would be done")
        parser.add_argument(
            "-y", "--yes", action="store_true", help="with --matching on a terminal: do not ask whether to"
        )
        parser.add_argument("--reason", metavar="TEXT", help="why; for the log of each run")
        add_format(parser)

    when = "TIME is now, +DURATION from now, HH:MM:SS (the next), or such as 2031-05-06T07:08:09Z."
    command = add("schedule", "make a run of a job", when)
    command.add_argument("time", metavar="TIME")
    command.add_argument("job", metavar="JOB", help="job ID, or words of it")
    add_words(command, "args", "NAME=VAL", "*", "args of the run")
    _add_new(command)
    command.add_argument("--count", metavar="N", type=_count, help="make so many runs")
    add_format(command)

    command = add(
        "backfill",
        "make the runs that schedules would have made in a span",
        "SPAN is a day, or FROM..TO, such as 2031-05-01..2031-05-31. Runs are made now, with the args of"
        " then; left out is what succeeded, or is under way.",
    )
    command.add_argument("job", metavar="JOB", help="job ID, or words of it")
    command.add_argument("span", metavar="SPAN")
    command.add_argument("--again", action="store_true", help="also what succeeded, or is under way")
    command.add_argument("--every", metavar="DURATION", help="begin one each DURATION, not all at once")
    command.add_argument("--dry-run", action="store_true", help="only say what would be made")
    command.add_argument("-y", "--yes", action="store_true", help="on a terminal: do not ask whether to")
    add_format(command)

    command = add("adhoc", "make a run of a program without a job", f"{when} Options come before TIME.")
    command.add_argument("--shell", action="store_true", help="have a shell read the words, joined by blanks")
    command.add_argument("--group", metavar="GROUP", help="agents to run it on")
    _add_new(command)
    add_format(command)
    command.add_argument("time", metavar="TIME")
    command.add_argument("words", metavar="CMD", nargs=argparse.REMAINDER, help="program and arguments")

    command = add("jobs", "list the jobs")
    command.add_argument("--label", metavar="LABEL", help="only those with this label")
    add_format(command)

    command = add("job", "show a job")
    command.add_argument("job", metavar="JOB", help="job ID, or words of it")
    add_format(command)

    command = add("agents", "list the agents, those that are away too")
    add_format(command)

    command = add("runs", "list the runs of a job", "`runs JOB` is short for `runs --job JOB`.")
    command.add_argument("-j", "--job", metavar="JOB", help="job ID, or words of it")
    command.add_argument(
        "-a",
        "--all",
        action="store_true",
        help="of all jobs, the newest runs; those still to come with -s scheduled",
    )
    command.add_argument("-s", "--state", metavar="STATE", help="only those in this state")
    command.add_argument(
        "-t",
        "--times",
        metavar="SPAN",
        help="only those that started, or are due, in SPAN: a day (2031-05-06, today), since a TIME, in the"
        " last DURATION (2h) and later, or FROM..TO, either of which may be left out",
    )
    command.add_argument(
        "-n",
        "--limit",
        metavar="N",
        type=_count,
        help="only the last N of the list (with --all: the newest N, 100)",
    )
    command.add_argument("--summary", action="store_true", help="a block for each run, not a table")
    add_words(command, "args", "NAME=VAL", "*", "only those with these args")
    add_format(command)

    command = add(
        "search",
        "look for runs in the whole history",
        "A TERM is JOB (a part of the job ID), path:P (the job ID is P or below it), ARG=VAL (contains),"
        " ARG==VAL (is), ARG= (is given), state:S1,S2, label:L,"
        " alarm:A (late, missed, long), verdict:S (its end was told after it was given up; any: whichever),"
        " since:T, until:T, or any of them after ! for the contrary."
        " T is a time, a day (2031-05-06, today: its beginning), a daytime of today, or so long ago (2h).",
    )
    add_words(command, "terms", "TERM", "*", "what runs must be like; without any, the newest")
    command.add_argument("-n", "--limit", metavar="N", type=_count, default=100, help="the newest N (100)")
    add_format(command)

    command = add("upcoming", "show what schedules will do", "Computed for any span; nothing is made by it.")
    command.add_argument("job", metavar="JOB", nargs="?", help="job ID, or words of it (all jobs)")
    command.add_argument(
        "--since", metavar="T", default="now", help="a time, a day, or a daytime of today (now)"
    )
    command.add_argument("--until", metavar="T", default="1 day", help="so too, or a DURATION later (1 day)")
    command.add_argument("--skipped", action="store_true", help="also what is left out, and why")
    command.add_argument("-n", "--limit", metavar="N", type=_count, default=100, help="the first N (100)")
    add_format(command)

    command = add("run", "show runs")
    add_runs(command)
    command.add_argument("-v", "--verbose", action="store_true", help="with program, log and history")
    add_format(command)

    command = add("log", "show the log of a run")
    command.add_argument("run_id", metavar="RUN")
    add_format(command)

    command = add("waiting", "show what a run waits for")
    command.add_argument("run_id", metavar="RUN")
    add_format(command)

    command = add("output", "print the output of a run")
    command.add_argument("run_id", metavar="RUN")
    either = command.add_mutually_exclusive_group()
    either.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    either.add_argument("-F", "--follow-new", action="store_true", help="so, but only what is new")

    command = add("watch", "print what happens to a run", "Exits with 0 if it succeeds, else with 1.")
    command.add_argument("run_id", metavar="RUN")
    command.add_argument(
        "--finish", action=argparse.BooleanOptionalAction, default=True, help="exit when the run has ended"
    )
    either = command.add_mutually_exclusive_group()
    either.add_argument("-s", "--silent", action="store_true", help="print nothing")
    either.add_argument("--json", action="store_true", help="print all that the server tells, as JSON lines")
    command.add_argument("--utc", action="store_true", default=argparse.SUPPRESS, help="times in UTC")

    for name, help in (
        ("stop", "stop running runs: their program's stop signal, then SIGKILL"),
        ("skip", "skip runs that have not started"),
        ("start", "start runs now that are scheduled or waiting"),
    ):
        command = add(name, help)
        add_many(command)

    command = add("signal", "send a signal to the programs of runs")
    command.add_argument("signal", metavar="SIGNAL", help="name or number")
    add_many(command)

    command = add("mark", "change the final state of runs")
    command.add_argument("state", metavar="STATE", type=_final, help="success, failure, error or skipped")
    add_many(command)

    command = add("rerun", "run again: the same job and args, now")
    add_many(command)
    _add_wait(command)

    command = add("reload-jobs", "have the server read the job files again")
    command.add_argument("--dry-run", action="store_true", help="only say what would change")
    command.add_argument("--quiet", action="store_true", help="print nothing unless something is wrong")
    add_format(command)

    add("shut-down", "end the server; runs go on")
    add("restart", "end the server and start it again; runs go on")
    add_format(add("version", "show the versions of server and client"))

    command = add(
        "completion",
        "print what makes a shell complete commands",
        "For bash: `source <(apsis completion bash)` in ~/.bashrc; zsh likewise in ~/.zshrc, after compinit;"
        " fish: `apsis completion fish > ~/.config/fish/completions/apsis.fish`.",
    )
    command.add_argument("shell", choices=("bash", "zsh", "fish"))


def _add_new(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--stop-time", metavar="T", help="stop the run then: a TIME, or a DURATION after its schedule time"
    )
    _add_wait(command)


def _add_wait(command: argparse.ArgumentParser) -> None:
    command.add_argument("--wait", action="store_true", help="wait for the end; exit with 0 if all succeed")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError(f"not a number of runs: {text!r}")
    return int(text)


def _final(text: str) -> str:
    """The final state that starts with `text`."""
    from apsislib.states import FINISHED, State

    found = [state for state in State if state.value.startswith(text.lower())]
    exact = [state for state in found if state.value == text.lower()]
    if len(exact or found) > 1:
        raise argparse.ArgumentTypeError(f"ambiguous state: {text!r} ({', '.join(found)})")
    finals = [state for state in exact or found if state in FINISHED]
    if not finals:
        known = ", ".join(state for state in State if state in FINISHED)
        raise argparse.ArgumentTypeError(f"not a final state: {text!r} (known: {known})")
    return finals[0].value
