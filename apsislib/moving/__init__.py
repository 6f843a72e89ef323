"""Moving in: what other schedulers have, made into what Apsis has.

database.py   apsis import-db: the database of Apsis 2
records.py    its rows as runs
crontab.py    apsis import-crontab: crontabs as jobs

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
    add.set_defaults(run=_run_import_db)


def _run_import_db(args: argparse.Namespace) -> int:
    from apsislib.errors import ApsisError
    from apsislib.moving import database

    try:
        return database.run(args)
    except (ApsisError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        for detail in getattr(error, "errors", ()):
            print(f"  {detail}", file=sys.stderr)
        return 1
