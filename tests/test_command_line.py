"""docs/command-line.md: each of its commands, in order, on a real server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from server import ROOT, Server

from apsis import parser
from apsislib.cli import completion

PAGE = (ROOT / "docs" / "command-line.md").read_text()
JOBS = {
    "report": "params: [date]\nprogram: {type: procstar-shell, command: 'echo {{ date }}'}\n",
    "nightly": "schedule: {type: daily, tz: UTC, daytime: '01:00:00'}\nprogram: {type: no-op}\n",
}


def test_its_commands_succeed(tmp_path: Path) -> None:
    commands = [
        shlex.split(line)
        for fence in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        for line in fence.splitlines()
    ]
    assert len(commands) > 25
    first = ""
    with Server(tmp_path, JOBS).running() as server:
        for name, *words in commands:
            assert name == "apsis"
            done = server.command(*[first if word == "r1" else word for word in words])
            assert done.returncode == 0 and done.stderr == "", (words, done.stdout, done.stderr)
            if not first and words[0] == "schedule":
                first = done.stdout.split()[1]
                server.until(first, "success")
            elif words[:2] == ["skip", "--matching"]:
                assert "skip done to 1 run\n" in done.stdout


def test_every_command_is_found_in_a_page() -> None:
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for command in completion._commands(parser("apsis")):
        assert re.search(rf"(?:apsis|apsisctl) {command}\b|`{command}`", pages), command
