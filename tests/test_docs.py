"""What the documents promise: examples load and end as they say, and links lead somewhere."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import requests
from server import ENDS, ROOT, Server, environment

from apsislib.calendars import Calendars
from apsislib.schedules import parse
from apsislib.times import format_instant, parse_time
from apsislib.yamlio import load

PAGES = ("jobs", "programs", "schedules", "operations", "agents")
ARGS = {"date": "2026-06-05", "name": "world", "region": "eu", "why": "all"}
FENCE = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = 5  # instants under an example
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@dataclass(frozen=True)
class Example:
    job_id: str
    promise: str
    text: str


def fences(page: str) -> list[tuple[str, str, str]]:
    """(language, rest of its line, text) of each block."""
    return [(m[1], m[2] or "", m[3]) for m in FENCE.finditer((ROOT / "docs" / f"{page}.md").read_text())]


def examples() -> list[Example]:
    return [
        Example(named or f"{page}-{number}", promise, text)
        for page in PAGES
        for number, (language, rest, text) in enumerate(fences(page))
        for promise, _, named in [rest.partition(" as ")]  # `success as etl/load`
        if language == "yaml" and promise != "server"
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    jobs = {example.job_id: example.text for example in examples()}
    with Server(tmp_path_factory.mktemp("docs"), jobs).running() as server:
        yield server


def test_every_example_says_what_becomes_of_it() -> None:
    assert len(examples()) > 20
    assert {example.promise for example in examples()} <= {*ENDS, "stopped", "loaded"}


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.job_id)
def test_an_example_ends_as_the_page_says(server: Server, example: Example) -> None:
    params = server.get(f"/jobs/{example.job_id}")["params"]
    if example.promise == "loaded":
        return
    run_id = server.schedule({"job_id": example.job_id, "args": {name: ARGS[name] for name in params}})
    if example.promise == "stopped":
        server.until_printed(run_id, b"working\n")  # it is ready to be stopped
        server.post(f"/runs/{run_id}/stop")
    promised = "success" if example.promise == "stopped" else example.promise
    assert server.until(run_id, *ENDS)["state"] == promised, server.messages(run_id)


def instants(job: Any, start: str) -> list[str]:
    """As the page writes them: when, and until when or which date."""
    schedule = parse(job["schedule"], Calendars(None))
    lines = []
    for occurrence in islice(schedule.after(parse_time(start)), SHOWN):
        line = format_instant(occurrence.time).replace("+00:00", "Z")
        if occurrence.stop is not None:
            line += f" to {format_instant(occurrence.stop).replace('+00:00', 'Z')}"
        elif "date" in job.get("params", ()):
            line += f" date={occurrence.args['date']}"
        lines.append(line)
    return lines


def shown() -> list[tuple[Any, str, list[str]]]:
    found = []
    job: Any = None
    for language, rest, text in fences("schedules"):
        if language == "yaml":
            job = load(text, "schedules.md")
        elif language != "text":
            assert language == "next", language
            found.append((job, rest, text.splitlines()))
    return found


@pytest.mark.parametrize(("job", "start", "lines"), shown(), ids=lambda value: str(value)[:40])
def test_the_instants_under_a_schedule_are_its_next(job: Any, start: str, lines: list[str]) -> None:
    assert lines == instants(job, start)


def anchors(text: str) -> set[str]:
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", re.sub(FENCE, "", text), re.MULTILINE)
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(FENCE, "", path.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{path.name}: {target}"


class Guide:
    """The commands of docs/agents.md, in order, with this machine in the place of the example's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as free, socket.socket() as other:
            free.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.agents, self.http = free.getsockname()[1], other.getsockname()[1]
        self.going: list[subprocess.Popen[bytes]] = []
        self.environ = environment(
            PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin", APSIS_HOST=f"127.0.0.1:{self.http}"
        )
        (directory / "jobs").mkdir()

    def follow(self, label: str, text: str) -> str:
        """Do what a block says; what it printed, if it comes to an end."""
        text = text.replace("apsis.example.com", "localhost")
        if label == "server":
            more = f"http: {{port: {self.http}}}\nruns: {{retention: off}}\n"
            text = text.replace("    server:\n", f"    server:\n      port: {self.agents}\n")
            (self.directory / "apsis.yaml").write_text(text + more)
            return ""
        argv = ["/bin/sh", "-ec", text.replace("--agent-host", f"--agent-port {self.agents} --agent-host")]
        if label == "run":
            done = subprocess.run(argv, cwd=self.directory, env=self.environ, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout
        with open(self.directory / f"{label}.log", "wb") as log:
            process = subprocess.Popen(
                argv, cwd=self.directory, env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        self.going.append(process)
        return ""

    def until_there(self, path: str, holds: Callable[[Any], bool]) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(requests.ConnectionError):
                if holds(requests.get(f"http://127.0.0.1:{self.http}/api/{path}", timeout=30).json()):
                    return
            time.sleep(0.05)
        raise AssertionError([file.read_text() for file in self.directory.glob("*.log")])

    def end(self) -> None:
        for process in reversed(self.going):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def test_the_guide_to_agents_leads_to_one_that_runs_programs(tmp_path: Path) -> None:
    guide = Guide(tmp_path)
    (tmp_path / "jobs" / "host.yaml").write_text(
        "program: {type: procstar-shell, group_id: batch, command: hostname}\n"
    )
    shown = ""
    try:
        for language, label, text in fences("agents"):
            if language != "sh" and label != "server":
                continue
            shown = guide.follow(label, text)
            if label == "serve":
                guide.until_there("v1/running", lambda found: True)
            elif label == "agent":
                guide.until_there("procstar/connections", bool)
        assert "batch" in shown and "active" in shown
        guide.follow("run", "apsis schedule now host --wait")  # fails unless the run is a success
    finally:
        guide.end()


def test_the_guide_to_agents_names_every_option() -> None:
    text = (ROOT / "docs" / "agents.md").read_text()
    argv = [sys.executable, str(ROOT / "apsis.py"), "agent", "--help"]
    help = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"--[a-z-]+", help)) - {"--help"}
    shortened = {f"--connect-interval-{end}" for end in ("mult", "max")}  # written as `-mult`, `-max`
    assert {
        option for option in options - shortened if f"`{option}" not in text and option not in text
    } == set()
