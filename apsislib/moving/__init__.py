"""Moving in: what other schedulers have, made into what Apsis has.

database.py   apsis import-db: the database of Apsis 2
records.py    its rows as runs
fromcron.py   apsis import-crontab: a crontab made into job files
crontab.py    crontabs, read as cron does
jobfiles.py   their entries as jobs

Here is only what the commands are called; the rest is loaded by the one that is given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """`commands`: what add_subparsers() answered."""
    text = "bring the database of Apsis 2 into a new one"
    add = commands.add_parser(
        "import-db",
        help=text,
        description="Bring the database of Apsis 2 into a new one: clock, run IDs, runs, logs, outputs and ad"
        " hoc jobs. The old one is left as it is; its server must have been stopped. An import that was cut"
        " off goes on when it is repeated.",
    )
    add.add_argument("old", metavar="OLD.db", type=Path)
    add.add_argument(
        "new", metavar="NEW.db", type=Path, nargs="?", help="a new file (database.path of --config)"
    )
    add.add_argument("--config", metavar="FILE", help="the new server's file, for its time limits and types")
    add.add_argument(
        "--stale",
        metavar="DURATION",
        default="21d",
        help="runs that have been starting, running or stopping for longer are errors (21d)",
    )
    add.add_argument("--format", choices=("json",), help="the report for machines")
    add.set_defaults(run=_run, way="database")

    add = commands.add_parser(
        "import-crontab",
        help="make job files out of a crontab",
        description="Make a job file out of each entry of a crontab. Without -o they are only printed. What"
        " has no equivalent is named.",
    )
    add.add_argument("file", metavar="FILE", help="the crontab; - reads it from standard input")
    add.add_argument("-o", "--output", metavar="DIR", type=Path, help="the directory to write job files into")
    add.add_argument(
        "--system",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a user stands before each command, as in /etc/crontab (found out if not given)",
    )
    add.add_argument(
        "--tz", metavar="ZONE", help="such as Europe/London, where there is no CRON_TZ (the system's)"
    )
    add.add_argument("--agent-user", metavar="USER", help="as whom agents run: without sudo for this user")
    add.add_argument("--group", metavar="GROUP", help="agents to run the programs on")
    add.add_argument(
        "--config", metavar="FILE", help="the server's file; with smtp in it, failures are mailed"
    )
    add.add_argument("--mail-from", metavar="ADDRESS", help="sender of mails, where there is no MAILFROM")
    add.add_argument("--force", action="store_true", help="overwrite files")
    add.add_argument("--dry-run", action="store_true", help="only print")
    add.set_defaults(run=_run, way="fromcron")


def _run(args: argparse.Namespace) -> int:
    from importlib import import_module

    from apsislib.errors import ApsisError

    try:
        return int(import_module(f"apsislib.moving.{args.way}").run(args))
    except (ApsisError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        for detail in getattr(error, "errors", ()):
            print(f"  {detail}", file=sys.stderr)
        return 1
