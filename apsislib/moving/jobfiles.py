"""Entries of a crontab as job files: what a job says, and what its file is called."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apsislib import templates, yamlio
from apsislib.moving.crontab import SCHEDULING, Entry

BASH = ("/bin/bash", "/usr/bin/bash")
SH = ("/bin/sh", "/usr/bin/sh")
_KIN = ("sh", "bash", "dash", "ash", "ksh", "mksh", "zsh")
# What bash reads just as sh does: plain words, quotes, variables, pipes, lists and redirections. Others,
# such as backslashes (echo!), &> and [[, are given to the shell that cron would have given them to.
_ALIKE = re.compile(r"""(?:[\w\s/.,:=@%+\-"'|;()*?^~#]|&&|&(?![>&])|>{1,2}|<(?![(<])|\$\{?\w+\}?|\$\()*""")
_OF_BASH = re.compile(r"\b(?:function|select|source|time|coproc|declare|typeset|local)\b|[<>]\(|\(\(")
# Words before the one that says what a command is about.
_WRAPPERS = {
    *("nice", "ionice", "chrt", "nohup", "setsid", "time", "timeout", "stdbuf", "env", "sudo", "exec"),
    *("flock", "chronic", "cronic", "systemd-cat", "run-parts", "command", "sleep", "if", "then"),
    *("sh", "bash", "dash", "python", "python3", "perl", "ruby", "node", "php"),
}
# Options of these that a word belongs to: of sudo whom, of the others a program in itself.
_VALUED = {("sudo", "-u"), ("sudo", "-g"), ("perl", "-e"), ("ruby", "-e"), ("node", "-e"), ("php", "-r")}
_LONGEST = 40  # characters of a name
_SCRIPT = (".sh", ".bash", ".py", ".pl", ".rb", ".js", ".php", ".bin", ".exe")


@dataclass(frozen=True, slots=True)
class Mail:
    """How failures are mailed; see MAILTO in crontab(5)."""

    sender: str


@dataclass(frozen=True, slots=True)
class JobFile:
    job_id: str
    entry: Entry
    job: Mapping[str, Any]
    source: str  # the crontab

    def text(self) -> str:
        """What stands in the file."""
        line = self.entry.text.encode("utf-8", "replace").decode()
        return f"# {self.source}:{self.entry.line}: {line}\n{yamlio.dump(self.job, sort=False)}"


def job_of(entry: Entry, tz: str, mail: Mail | None, agent_user: str | None) -> dict[str, Any]:
    """The job. `agent_user`: as whom agents run, so that this user's entries need no sudo."""
    job: dict[str, Any] = {}
    if entry.comment:
        job["metadata"] = {"description": entry.comment}
    job["schedule"] = {"type": "cron", "cron": entry.cron, "tz": entry.variables.get("CRON_TZ") or tz}
    job["program"] = _program(entry)
    if entry.user is not None and entry.user != agent_user:
        job["program"]["sudo_user"] = entry.user
    to = [address.strip() for address in entry.variables.get("MAILTO", "").split(",") if address.strip()]
    if to and mail is not None:
        sender = entry.variables.get("MAILFROM") or mail.sender
        job["action"] = {"type": "email", "to": to, "from": sender, "if": {"states": ["failure", "error"]}}
    return job


def _program(entry: Entry) -> dict[str, Any]:
    shell = entry.variables.get("SHELL", "/bin/sh")
    lines = [
        f"export {name}={shlex.quote(value)}"
        for name, value in entry.variables.items()
        if name not in SCHEDULING and name != "SHELL"
    ]
    # cron begins in the user's home directory, an agent wherever it is.
    lines.append("cd")
    command, sh = entry.command, shell in SH
    if shell.rpartition("/")[2] not in _KIN:  # which have other words for `export`
        command, shell, sh = f"exec {shlex.quote(shell)} -c {shlex.quote(command)}", BASH[0], False
    if entry.stdin is not None:
        mark = "END"
        while mark in entry.stdin:
            mark += "_"
        command = f"{{ {command}\n}} <<'{mark}'\n{entry.stdin}{mark}"
    text = as_template("\n".join([*lines, command]))
    alike = sh and _ALIKE.fullmatch(entry.command) and not _OF_BASH.search(entry.command)
    if shell in BASH or alike:
        return {"type": "procstar-shell", "command": f"{text}\n"}
    return {"type": "procstar", "argv": [as_template(shell), "-c", text]}


def as_template(text: str) -> str:
    """A template that expands to `text`."""
    if not templates.has_template(text):
        return text
    if "{%" in text and "endraw" in text:
        return re.sub(r"\{[{%#]", lambda found: "{{ '" + found[0] + "' }}", text)
    return "{% raw %}" + text + "{% endraw %}"


# -- names -----------------------------------------------------------------------------------------


def name_of(command: str) -> str:
    """What a file with this command is called: after the program, or the script, that it runs."""
    for word in _telling(_words(command)):
        name = word.rstrip("/").rpartition("/")[2]
        for ending in _SCRIPT:
            name = name.removesuffix(ending)
        name = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-_").lower()[:_LONGEST].strip("-_")
        if name:
            return name
    return "job"


def _words(command: str) -> list[str]:
    spaced = re.sub(r"&&|\|\|?|;", lambda found: f" {found[0]} ", command)
    try:
        return shlex.split(spaced)
    except ValueError:  # quotes that do not match
        return spaced.split()


def _telling(words: Sequence[str]) -> Iterator[str]:
    """The words that say what is run, the best first."""
    rest: list[str] = []
    wrapper = ""  # the last of these
    passed = 0  # words to be passed over, or all up to the end of a test
    for word in words:
        base = word.rpartition("/")[2]
        if word in ("&&", "||", ";", "|", "]", "]]"):
            passed, wrapper = 0, ""
        elif passed:
            passed -= 1
        elif base in ("cd", ".", "source"):
            passed = 1
        elif base in ("test", "[", "[["):
            passed = len(words)
        elif word.startswith("-"):
            passed = int((wrapper, word) in _VALUED)
        elif "=" in word.partition("/")[0] or not any(map(str.isalnum, word)):
            continue
        elif base in _WRAPPERS:
            rest.append(base)
            wrapper, passed = base, 0
        elif wrapper == "flock":  # its lock file
            wrapper = "flocked"
        elif word[0].isdigit() and wrapper:  # of nice and timeout
            continue
        elif " " in word and wrapper:  # what a shell is to run
            yield from _telling(_words(word))
        else:
            yield word
    yield from rest


def named(names: Iterable[str], taken: Collection[str] = ()) -> list[str]:
    """The names, those that came before with -2, -3, ... behind them."""
    used = set(taken)
    found = []
    for name in names:
        number, chosen = 1, name
        while chosen in used:
            number += 1
            chosen = f"{name}-{number}"
        used.add(chosen)
        found.append(chosen)
    return found
