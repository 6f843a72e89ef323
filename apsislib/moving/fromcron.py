"""`apsis import-crontab`: a crontab made into job files."""

from __future__ import annotations

import argparse
import os
import platform
import pwd
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import programs
from apsislib import config as configs
from apsislib import jobs
from apsislib.calendars import Calendars
from apsislib.config.keys import Config, Smtp
from apsislib.errors import ApsisError, BadRequest, FieldError
from apsislib.jobs.parsing import described
from apsislib.moving import jobfiles
from apsislib.moving.crontab import Crontab, Left, is_system, read
from apsislib.moving.jobfiles import JobFile, Mail
from apsislib.times import zone

LARGEST = 10 << 20  # bytes of a crontab; cron itself takes no more than some thousand lines
SYSTEM = ("/etc/crontab", "/etc/cron.d/")
ZONES = "/zoneinfo/"  # in the path that /etc/localtime leads to


def run(args: argparse.Namespace) -> int:
    """Raises ApsisError, OSError."""
    config = configs.load(args.config)
    source, text = _text(args.file)
    system = args.system
    if system is None:
        system = _is_system_file(args.file) or is_system(text, {user.pw_name for user in pwd.getpwall()})
    crontab = read(text, system)
    tz = _zone(args.tz)
    mail = None
    if config.smtp != Smtp():
        mail = Mail(args.mail_from or f"apsis@{platform.node() or 'localhost'}")
    files = _files(crontab, source, args, tz, mail, config)
    remarks = sorted(_remarks(crontab, mail, args.config), key=lambda left: left.line)
    dry = args.output is None or args.dry_run
    if not dry:
        _write(files, args.output, args.force)
    else:
        for file in files:
            print(f"--- # {file.job_id}{jobs.SUFFIX}\n{file.text()}", end="")
    sys.stdout.flush()
    for left in remarks:
        print(f"{source}:{left.line}: {left.reason}: {left.text}", file=sys.stderr)
    if dry:
        said = "written with -o DIR" if args.output is None else f"written into {args.output}"
        print(f"{len(files)} job files would be {said}", file=sys.stderr)
    else:
        print(f"{len(files)} job files written into {args.output}", file=sys.stderr)
    return 0


def _text(file: str) -> tuple[str, str]:
    """(what to call it, what it says)."""
    if file == "-":
        data, source = sys.stdin.buffer.read(LARGEST + 1), "crontab"
    else:
        with open(file, "rb") as opened:
            data, source = opened.read(LARGEST + 1), file
    if len(data) > LARGEST:
        raise BadRequest(f"{source} has more than {LARGEST >> 20} MiB: it is no crontab")
    try:
        return source, data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadRequest(f"{source}:{line} is not UTF-8: convert it, with iconv say") from None


def _is_system_file(file: str) -> bool:
    path = str(Path(file).resolve()) if file != "-" else ""
    return path == SYSTEM[0] or path.startswith(SYSTEM[1])


def _zone(named: str | None) -> str:
    """Raises BadRequest."""
    if named is None:
        named = _system_zone()
    if named is None:
        raise BadRequest("the system does not say its time zone: give --tz, such as --tz Europe/London")
    try:
        zone(named)
    except ValueError as error:
        raise BadRequest(f"--tz: {error}") from None
    return named


def _system_zone() -> str | None:
    """What cron goes by."""
    path = os.path.realpath("/etc/localtime")
    if ZONES in path:
        return path.partition(ZONES)[2].removeprefix("posix/")
    try:
        return Path("/etc/timezone").read_text("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _files(
    crontab: Crontab, source: str, args: argparse.Namespace, tz: str, mail: Mail | None, config: Config
) -> list[JobFile]:
    """The files; entries that are no jobs are added to what is left."""
    table = programs.Table(config)
    types = config.schedule_types, config.condition_types, config.action_types
    kinds = jobs.Kinds(table.parse, Calendars(config.calendars), *types)
    found = []
    for entry in crontab.entries:
        job = jobfiles.job_of(entry, tz, mail, args.agent_user)
        if args.group is not None:
            job["program"]["group_id"] = args.group
        try:
            jobs.parse_job(job, "crontab", kinds)
        except FieldError as error:
            crontab.left.append(Left(entry.line, entry.text, described(error)))
            continue
        found.append((entry, job))
    names = jobfiles.named(jobfiles.name_of(entry.command) for entry, _ in found)
    return [JobFile(name, entry, job, source) for name, (entry, job) in zip(names, found, strict=True)]


def _remarks(crontab: Crontab, mail: Mail | None, config: str | None) -> Iterable[Left]:
    """What is left, and what is not quite as it was."""
    yield from crontab.left
    said: set[str] = set()
    for entry in crontab.entries:
        to = entry.variables.get("MAILTO")
        if to is None or to in said:
            continue
        said.add(to)
        if not to:
            continue
        if mail is None:
            why = "no mails: give --config with smtp in the server's file, or add e-mail actions"
        else:
            why = "failures are mailed, where cron mails all output"
        yield Left(entry.line, f"MAILTO={to}", why)
    if crontab.entries and any("MAILTO" not in entry.variables for entry in crontab.entries):
        first = next(entry for entry in crontab.entries if "MAILTO" not in entry.variables)
        why = "no mails: without MAILTO, cron mails all output to the crontab's owner"
        yield Left(first.line, first.text, why)


def _write(files: Sequence[JobFile], directory: Path, force: bool) -> None:
    """All of the files, or none where one is there already. Raises ApsisError."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [(directory / f"{file.job_id}{jobs.SUFFIX}", file.text()) for file in files]
    there = [path for path, text in paths if path.exists() and path.read_bytes() != text.encode()]
    if there and not force:
        raise ApsisError(
            f"{', '.join(map(str, there))} would be overwritten: nothing is written; take another"
            " directory, or --force"
        )
    for path, text in paths:
        part = path.with_name(f".{path.name}.part")  # hidden, so that no server reads half of it
        part.write_text(text, "utf-8")
        os.replace(part, path)
