"""Completion at the shell, and the commands that look ahead and back."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from server import PROGRAM, Server, environment

import apsis
from apsislib.cli import completion
from apsislib.cli.looking import quoted_term

JOBS = {
    "etl/load": "params: [date]\nprogram: {type: no-op}\n",
    "etl/get": "program: {type: no-op, success: false}\n",
    "ops": "program: {type: no-op}\n"
    "schedule: {type: daily, tz: UTC, calendar: Mon-Fri, daytime: '12:00:00'}\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("complete"), JOBS).running() as server:
        yield server


def offered(*words: str) -> list[str]:
    def ask(given: object, what: str) -> list[str]:
        return {"JOB": ["etl/load", "ops"], "RUN stop": ["r7"]}.get(what, ["r7", "r8"])

    return completion.complete(apsis.parser("apsis"), words, ask)


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (["sch"], ["schedule"]),
        (["--ut"], ["--utc"]),
        (["--host", "h", "wat"], ["watch"]),
        (["schedule", ""], ["now"]),
        (["schedule", "now", "et"], ["etl/load"]),
        (["schedule", "now", "etl/load", "date=1", "--wa"], ["--wait"]),
        (["runs", "--job", ""], ["etl/load", "ops"]),
        (["runs", "-s", "run"], ["running"]),
        (["jobs", "--format", ""], ["json", "yaml"]),
        (["stop", ""], ["r7"]),
        (["stop", "r7", "r"], ["r7"]),
        (["mark", "s"], ["skipped", "success"]),
        (["mark", "success", "r8"], ["r8"]),
        (["signal", "KI"], ["KILL"]),
        (["log", "r7", ""], []),
        (["serve", "--config", "ap"], []),
        (["nonsense", ""], []),
    ],
)
def test_what_may_follow_is_offered(words: list[str], some: list[str]) -> None:
    assert offered(*words) == some


def test_every_command_is_offered_and_none_that_is_inward() -> None:
    found = offered("")
    assert {"serve", "runs", "search", "upcoming", "completion", "reload-jobs"} <= set(found)
    assert not [name for name in found if name.startswith("_")]


@pytest.fixture(scope="module")
def typed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a shell in which `apsis` is ours, and means the server."""
    home = tmp_path_factory.mktemp("home")
    (home / "apsis").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAM}" "$@"\n')
    (home / "apsis").chmod(0o755)
    for shell in ("bash", "zsh", "fish"):
        assert shutil.which(shell), f"completion is tested in {shell}: install it"
        (home / f"apsis.{shell}").write_text(completion.SCRIPTS[shell])
    assert server.command("completion", "fish").stdout == completion.SCRIPTS["fish"]
    (home / "some-file.yaml").touch()
    return environment(
        PATH=f"{home}:{os.environ['PATH']}",
        APSIS_HOST=f"localhost:{server.port}",
        HOME=str(home),
        ZDOTDIR=str(home),
        XDG_CONFIG_HOME=str(home),
        TERM="dumb",
    )


def test_bash_completes_jobs_and_runs_of_the_server(server: Server, typed: dict[str, str]) -> None:
    run_id = server.schedule({"job_id": "etl/get"})

    def tab(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        asked = f"source ~/apsis.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _apsis"
        done = subprocess.run(
            ["bash", "-c", f"{asked}; printf '%s\\n' \"${{COMPREPLY[@]}}\""],
            capture_output=True,
            text=True,
            timeout=60,
            env=typed,
        )
        assert done.returncode == 0 and done.stderr == ""
        return done.stdout.split()

    assert tab("apsis", "schedule", "now", "etl/") == ["etl/get", "etl/load"]
    assert run_id in tab("apsis", "log", "")
    assert tab("apsis", "--port", "1", "job", "") == []


def test_fish_completes_jobs_states_and_files(typed: dict[str, str]) -> None:
    lines = ["apsis schedule now etl/", "apsis runs -s run", "apsis serve --config some", "apsisctl watc"]
    asked = "; echo ==; ".join(f"complete -C '{line}'" for line in lines)
    done = subprocess.run(
        ["fish", "-c", f"cd; source apsis.fish; function apsisctl; apsis $argv; end; {asked}"],
        capture_output=True,
        text=True,
        timeout=60,
        env=typed,
    )
    assert done.stderr == ""
    found = [part.split() for part in done.stdout.split("==")]
    assert found == [["etl/get", "etl/load"], ["running"], ["some-file.yaml"], ["watch"]]


def test_zsh_completes_jobs_states_and_files(typed: dict[str, str]) -> None:
    """On a terminal, as only there it completes anything."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(typed["HOME"])
        os.execvpe("zsh", ["zsh", "-f", "-i"], typed)

    def type_(keys: str, shown: str) -> None:
        os.write(terminal, keys.encode())
        seen, end = b"", time.monotonic() + 60
        while shown.encode() not in seen:
            assert select.select([terminal], [], [], end - time.monotonic())[0], seen
            seen += os.read(terminal, 65536)

    try:
        load = "autoload -U compinit; compinit -D -u; source ~/apsis.zsh; echo re''ady\n"
        type_(load, "ready")
        type_("apsis schedule now etl/g\t", "etl/get")
        type_("\x15apsis runs -s run\t", "running")
        type_("\x15apsis serve --config some\t", "some-file.yaml")
    finally:
        os.close(terminal)  # which ends it
        os.waitpid(child, 0)


def test_search_finds_runs_in_the_whole_history(server: Server) -> None:
    made = [server.schedule({"job_id": "etl/load", "args": {"date": f"a b{n}"}}) for n in range(3)]
    done = server.command("search", "LOAD", "date=A b", "state:succ", "--format", "json")
    assert done.returncode == 0 and set(json.loads(done.stdout)) == set(made)
    assert made[2] in server.command("search", "-n", "1", "load").stdout
    assert made[0] not in server.command("search", "-n", "1", "load").stdout
    assert server.command("search", "!load", "!get", "state:succ").stdout == "No runs.\n"
    wrong = server.command("search", "state:s")
    assert wrong.returncode == 1 and wrong.stdout.startswith("Error: ambiguous state: s")


@pytest.mark.parametrize(
    ("word", "term"),
    [
        ("etl", "etl"),
        ("a=b", "a=b"),
        ("a=b c", 'a="b c"'),
        ("label:x y", 'label:"x y"'),
        ("!my job", '!"my job"'),
        ("my job", '"my job"'),
        ('a="b c"', 'a="b c"'),
    ],
)
def test_a_word_of_the_command_line_is_one_term(word: str, term: str) -> None:
    assert quoted_term(word) == term


def test_upcoming_shows_what_will_be_and_why_not(server: Server) -> None:
    span = ("--since", "2031-03-07", "--until", "4 days")
    done = server.command("upcoming", "ops", *span)
    assert [line[:19] for line in done.stdout.splitlines()[2:4]] == [
        "2031-03-07 12:00:00",
        "2031-03-10 12:00:00",
    ]
    left_out = server.command("upcoming", *span, "--skipped").stdout
    assert "skipped: 2031-03-08 is not in calendar Mon-Fri" in left_out
    every = json.loads(server.command("upcoming", *span, "--format", "json").stdout)
    assert [entry["job_id"] for entry in every] == ["ops", "ops"]
    assert server.command("upcoming", "etl/get").stdout == "Nothing.\n"
    assert server.command("upcoming", "nope").returncode == 1
