"""Commands on the database file: those that move, delete and vacuum need it for themselves, so no server
may run; backup and check-db, unless it is to repair, do not.

Here is only what they are called: what they do is in chores.py, loaded when one of them is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from apsislib.states import State

ALL = sys.maxsize


def add_commands(commands: Any) -> None:
    """`commands`: what add_subparsers() answered."""
    add = _command(commands, "archive", "move old runs to an archive, while no server runs")
    add.add_argument("--age", metavar="DURATION", help="of runs to be moved, such as 90d")
    add.add_argument("--path", metavar="ARCHIVE", type=Path, help="the archive; it is made if it is missing")
    add.add_argument("--count", metavar="N", type=int, default=ALL, help="move at most N runs")
    ask = add.add_subparsers(metavar="query").add_parser("query", help="list runs of an archive")
    ask.add_argument("path", metavar="ARCHIVE", type=Path)
    ask.add_argument("-j", "--job", metavar="JOB_ID", help="only those of this job")
    ask.add_argument("-s", "--state", metavar="STATE", type=State, choices=list(State))
    ask.add_argument("-r", "--run", dest="run_id", metavar="RUN_ID", help="one run, with its log")
    ask.add_argument("-n", "--limit", metavar="N", type=int, help="only the newest N")
    ask.add_argument("--output", action="store_true", help="print the run's output and nothing else")
    ask.add_argument("--format", choices=("json",), help="for machines")
    ask.set_defaults(run=_run, chore="query")

    add = _command(commands, "purge", "delete old runs, while no server runs")
    add.add_argument("--age", metavar="DURATION", required=True, help="such as 90d")
    add.add_argument("--count", metavar="N", type=int, default=ALL, help="delete at most N runs")

    _command(commands, "vacuum", "give free space of the database back, while no server runs")

    add = _command(commands, "backup", "copy the database, also while a server uses it")
    add.add_argument("target", metavar="PATH", type=Path, help="the copy, a new file")

    add = _command(commands, "check-db", "look for damage in the database, also while a server uses it")
    add.add_argument("path", metavar="PATH", type=Path, nargs="?", help="the database; as with --database")
    add.add_argument(
        "--repair",
        action="store_true",
        help="mend rows that can't be read, while no server runs; what stood there is kept in a file",
    )


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    add: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
    add.add_argument("--config", metavar="FILE", help="the server's file, which says where the database is")
    add.add_argument("-d", "--database", metavar="PATH", type=Path, help="the database; instead of --config")
    add.set_defaults(run=_run, chore=name)
    return add


def _run(args: argparse.Namespace) -> int:
    from apsislib.errors import INTERRUPTED, ApsisError
    from apsislib.offline import chores

    try:
        return chores.CHORES[args.chore](args)
    except (ApsisError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
