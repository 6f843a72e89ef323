"""The jobs of a server: those of its directory, checked, and those that its file asks for."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import programs
from apsislib import itself, jobs
from apsislib.calendars import Calendars
from apsislib.clock import WallClock
from apsislib.config.keys import Config
from apsislib.errors import ApsisError
from apsislib.jobs import JobSet, Kinds
from apsislib.runs import Job
from apsislib.store import is_imported

RETENTION = 90 * 86400.0  # s; of databases of our own, where the server's file says nothing
RETIRED = 1_000_000  # runs that retention moves in a day at most: more than a server makes


def load_jobs(config: Config, kinds: Kinds | None = None) -> JobSet:
    """The job directory, read and checked. Raises JobErrors."""
    if kinds is None:
        types = (config.schedule_types, config.condition_types, config.action_types)
        kinds = Kinds(programs.Table(config).parse, Calendars(config.calendars), *types)
    found, errors = jobs.read_dir(config.job_dir, kinds)
    found = found.with_jobs(own_jobs(config, kinds))
    now = WallClock().wall()
    errors += jobs.check(found, now, kinds.calendars.get, {error.job_id for error in errors})
    if errors:
        raise jobs.JobErrors(f"errors loading jobs in {config.job_dir}", errors)
    retired = jobs.check_retention(found, now, kinds.calendars.get, retention(config))
    return found.with_warnings(map(str, retired))


def own_jobs(config: Config, kinds: Kinds) -> list[Job]:
    """The jobs that the server's file asks for."""
    age = retention(config)
    if age is None:
        return []
    path = config.database.path.absolute()
    target = config.runs.archive or path.with_name(f"{path.stem}-archive{path.suffix}")
    program: dict[str, Any] = {"type": "purge", "age": age, "count": RETIRED}
    does = "Deletes old runs"
    if config.runs.on_retention == "archive":
        program |= {"type": "archive", "path": str(target.absolute())}
        does = "Moves old runs to an archive"
    job = {
        "metadata": {"description": f"{does}, as runs.retention of the server's file says."},
        "schedule": {"type": "daily", "daytime": "03:30:00", "tz": "UTC"},
        "program": program,
        "condition": {"type": "max_running", "count": 1},
    }
    return [jobs.parse_job(job, "apsis-retention", kinds)]


def retention(config: Config) -> float | None:
    """Seconds after which finished runs leave the database; None: they stay."""
    age = config.runs.retention
    if age is None:  # what was brought along is kept until somebody has decided
        return None if is_imported(config.database.path) else RETENTION
    return None if age == "off" else float(age)


def load_jobs_apart(config: Config) -> JobSet:
    """The same, by a process of its own: to parse thousands of files takes seconds of the interpreter,
    in which runs would begin late. Raises JobErrors; ApsisError where the process fails."""
    child = subprocess.run(
        itself.command(itself.LOAD), input=pickle.dumps(config), stdout=subprocess.PIPE, check=False
    )
    if child.returncode:
        raise ApsisError(f"the jobs could not be read: process ended with {child.returncode}, see the log")
    found: JobSet
    found, error = pickle.loads(child.stdout)
    if error is not None:
        raise error
    return found


def answer_with_jobs() -> int:
    """What the process of load_jobs_apart does: a config on stdin, jobs or an error on stdout."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what users' modules print goes to the server's log
    found = error = None
    try:
        found = load_jobs(pickle.load(sys.stdin.buffer))
    except ApsisError as wrong:
        error = wrong
    with answer:
        pickle.dump((found, error), answer)
    return 0
