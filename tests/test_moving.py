"""docs/moving.md, read as a user does: its commands do what it says, one after the other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server import PROGRAM, ROOT, Server, environment

PAGE = (ROOT / "docs" / "moving.md").read_text()
FENCE = re.compile(r"^```sh ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CRONTAB = "MAILTO=me@example.com\n# Greets.\n@daily echo hello\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with what the page speaks of, and a PATH on which its commands are."""
    shutil.copytree(ROOT / "tests" / "apsis-2.4.3" / "jobs", tmp_path / "jobs")
    shutil.copy(ROOT / "tests" / "apsis-2.4.3" / "apsis.db", tmp_path / "old.db")
    (tmp_path / "apsis.yaml").write_text("job_dir: jobs\ndatabase: {path: new.db}\nschedule: {since: now}\n")
    (tmp_path / "bin").mkdir()
    scripts = {name: f'exec {sys.executable} {PROGRAM} "$@"' for name in ("apsis", "apsisctl")}
    scripts["crontab"] = f"printf '%s' '{CRONTAB}'"
    for name, line in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def test_its_commands_lead_where_it_says(place: Path) -> None:
    fences = FENCE.findall(PAGE)
    assert [kind for kind, _ in fences] == ["", "", "serve", ""]
    server = Server(place)
    for kind, commands in fences:
        if kind == "serve":
            assert commands.split() == ["apsis", "serve", "--config", "apsis.yaml"]
            with server.running():
                assert len(server.get("/search/runs", limit="1000", q="until:2026-11-24T00:00:00Z")["runs"])
                stopped = server.command("shut-down")
                assert stopped.returncode == 0 and server.process is not None
                assert server.process.wait(60) == 0
                server.start()
            continue
        done = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=place,
            env=environment(PATH=f"{place / 'bin'}:{os.environ['PATH']}"),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (commands, done.stdout, done.stderr)
    assert (place / "trial.db").exists() and (place / "jobs" / "cron" / "echo.yaml").exists()
    assert "Greets." in (place / "jobs" / "cron" / "echo.yaml").read_text()


@pytest.mark.parametrize("command", ["import-db", "import-crontab"])
def test_every_option_that_it_names_exists(command: str) -> None:
    helped = subprocess.run(
        [sys.executable, PROGRAM, command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    part = PAGE.partition("## From crontab")[0 if command == "import-db" else 2]
    others = {"--config", "--database", "--times"}
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", part)) - others:
        assert option in helped, option
