"""Crontabs, read as cron does: entries, what they inherit from the lines above, and comments.

Source: crontab(5) of Vixie cron and of cronie, which Debian and Red Hat have. What cron itself would
refuse, and what nothing of ours is like, is a Left, with its line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from apsislib import cron

_VARIABLE = re.compile(r"""\s*(["']?)([A-Za-z_][A-Za-z0-9_]*)\1\s*=\s*(.*?)\s*""", re.DOTALL)
_FIELDS = re.compile(r"-?((?:\S+\s+){4}\S+)\s+(.*)", re.DOTALL)
_NICKNAME = re.compile(r"(@\S+)\s+(.*)", re.DOTALL)
_USER = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*\$?)\s+(.*)", re.DOTALL)
# What distributions put into every crontab, to explain its columns.
_EXPLAINED = re.compile(
    r"[|.\s]*-{4,}\s*(?:minute|hour|day|month|week).*|(?:[|]\s*)+|m\s+h\s+dom\s+mon\s+dow\b.*"
    r"|Example of job definition:|.*\bcommand to be executed",
    re.IGNORECASE,
)
_MORE = {"@every_minute": "* * * * *"}  # of FreeBSD
# Those that cron itself heeds; the others are for commands alone.
SCHEDULING = ("CRON_TZ", "MAILTO", "MAILFROM", "RANDOM_DELAY", "CONTENT_TYPE", "CONTENT_TRANSFER_ENCODING")
_FIXED = ("LOGNAME", "USER")  # cron sets them itself


@dataclass(frozen=True, slots=True)
class Entry:
    line: int  # 1-based
    text: str  # as written
    cron: str  # five fields, or @daily and its like
    command: str  # a percent sign is one again
    stdin: str | None = None  # what followed the first percent sign
    user: str | None = None
    comment: str = ""  # what stands above it
    variables: Mapping[str, str] = field(default_factory=dict)  # set by the lines above it


@dataclass(frozen=True, slots=True)
class Left:
    """What is not taken over, and why."""

    line: int
    text: str
    reason: str


@dataclass(slots=True)
class Crontab:
    system: bool  # entries name their users
    entries: list[Entry] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


def is_system(text: str, users: Collection[str]) -> bool:
    """Whether every entry names one of these users where a crontab of the whole system does."""
    rests = [rest for line in _lines(text) if (rest := _rest(line)) is not None]
    named = [found[1] if (found := _USER.match(rest)) else None for rest in rests]
    return bool(named) and all(name in users for name in named)


def _lines(text: str) -> list[str]:
    """As cron has them: what else Python takes for the end of a line may stand in a command."""
    return text.replace("\r\n", "\n").split("\n")


def _rest(line: str) -> str | None:
    """What follows the schedule in an entry; None: it is none."""
    line = line.strip()
    if not line or line.startswith("#") or _VARIABLE.fullmatch(line):
        return None
    found = _NICKNAME.match(line) or _FIELDS.match(line)
    return found[2] if found else None


def read(text: str, system: bool) -> Crontab:
    """`system`: a user stands before each command."""
    reading = _Reading(Crontab(system))
    for number, line in enumerate(_lines(text), 1):
        reading.line(number, line)
    reading.end()
    return reading.found


class _Reading:
    def __init__(self, found: Crontab) -> None:
        self.found = found
        self._variables: dict[str, str] = {}
        self._comment: list[tuple[int, str]] = []
        self._used = False  # an entry has taken the comment
        self._above = ""  # what kind of line came before

    def line(self, number: int, text: str) -> None:
        stripped = text.strip()
        if not stripped:
            kind = "blank"
            self._forget_comment()
        elif stripped.startswith("#"):
            kind = "comment"
            if self._above != "comment":
                self._forget_comment()
            self._remark(number, stripped)
        elif (found := _VARIABLE.fullmatch(stripped)) is not None:
            kind = self._above  # between a comment and its entry, these are as if they were not there
            self._set(number, text, found[2], found[3])
        else:
            kind = "entry"
            self._entry(number, text, stripped)
        self._above = kind

    def end(self) -> None:
        self._forget_comment()

    def _leave(self, number: int, text: str, reason: str) -> None:
        self.found.left.append(Left(number, text.strip(), reason))

    # -- comments --

    def _remark(self, number: int, text: str) -> None:
        said = text.lstrip("#").strip()
        if _EXPLAINED.fullmatch(said):
            return
        if _rest(said) is not None and _schedule(said)[1] == "":
            self._leave(number, text, "commented out: it is left out")
        else:
            self._comment.append((number, said))

    def _forget_comment(self) -> None:
        if not self._used:
            for number, said in self._comment:
                if any(char.isalnum() for char in said):
                    self._leave(number, f"# {said}", "a comment with no entry below it")
        self._comment, self._used = [], False

    def _description(self) -> str:
        self._used = True
        return "\n".join(said for _, said in self._comment).strip()

    # -- variables --

    def _set(self, number: int, text: str, name: str, value: str) -> None:
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if name in _FIXED:
            self._leave(number, text, f"cron sets {name} itself")
        elif name in ("RANDOM_DELAY", "CONTENT_TYPE", "CONTENT_TRANSFER_ENCODING"):
            self._leave(number, text, "there is no such thing in Apsis")
        else:
            self._variables[name] = value

    # -- entries --

    def _entry(self, number: int, text: str, stripped: str) -> None:
        description = self._description()
        schedule, problem, rest = _schedule(stripped)
        if problem:
            self._leave(number, text, problem)
            return
        user = None
        if self.found.system:
            named = _USER.match(rest)
            if named is None:
                self._leave(number, text, "there is no user before the command")
                return
            user, rest = named[1], named[2]
        command, stdin = _percents(rest)
        if not command.strip():
            self._leave(number, text, "there is no command")
            return
        self.found.entries.append(
            Entry(
                number, stripped, schedule, command.strip(), stdin, user, description, dict(self._variables)
            )
        )


def _schedule(line: str) -> tuple[str, str, str]:
    """(five fields or a nickname, what is wrong with it, the rest of the line)."""
    found = _NICKNAME.match(line) if line.startswith("@") else _FIELDS.match(line)
    if found is None:
        word = line.split()[0]
        return "", "there is no command" if word.startswith("@") else "this is no line of a crontab", ""
    written = " ".join(_MORE.get(found[1].lower(), found[1]).split())
    if written.lower() == "@reboot":
        why = "nothing in Apsis happens at boot: make it a systemd unit, WantedBy=multi-user.target"
        return written, why, found[2]
    if "~" in written:
        return written, "random times (~) have no equivalent: write one", found[2]
    try:
        cron.parse(written)
    except ValueError as error:
        return written, str(error), found[2]
    return written, "", found[2]


def _percents(text: str) -> tuple[str, str | None]:
    r"""The command, and what it is given on stdin: `\%` is a percent sign, `%` the end of a line."""
    parts = [part.replace("\\%", "%") for part in re.split(r"(?<!\\)%", text)]
    if len(parts) == 1:
        return parts[0], None
    lines = "\n".join(parts[1:])
    return parts[0], lines if lines.endswith("\n") else f"{lines}\n"
