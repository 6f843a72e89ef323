"""The client commands, as processes of their own against a real server with an agent."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from server import ENDS, Server, environment

from apsislib.cli import address, live, times
from apsislib.cli.client import Client, Misuse, Trouble, target
from apsislib.cli.terminal import Column, Terminal, plain, shorten, table, width

JOBS = {
    "greet": "params: [name]\nprogram: {type: procstar-shell, command: 'echo Hello {{ name }}'}\n"
    "metadata: {labels: [polite, quick]}\n",
    "fail": "program: {type: procstar, argv: [/bin/false]}\n",
    "nothing": "params: [a, state]\nprogram: {type: no-op}\n",
    "slow": "program: {type: no-op, duration: 600}\n",
    "odd [red]/jöb": "params: [p]\nprogram: {type: no-op}\n",
    "later/on": "program: {type: no-op}\ncondition:\n  - {type: dependency, job_id: never}\n",
    "never": "program: {type: no-op}\n",
    # Prints a line for each line that it is given.
    "echo": "params: [fifo]\nprogram: {type: procstar, argv: [/bin/cat, '{{ fifo }}']}\n",
}


DEBUG = ("--log-level", "DEBUG")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("cli"), JOBS).running() as server:
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may end."""
    with Server(tmp_path / "own", JOBS).running() as server:
        yield server


def made(server: Server, *words: str) -> str:
    """The ID of the run that a command makes."""
    done = server.command(*words, "--format", "json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    return str(json.loads(done.stdout)["run_id"])


class Fifo:
    """What the job `echo` prints, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self.end = -1

    def open(self) -> None:
        """Returns once the program reads."""
        self.end = os.open(self.path, os.O_WRONLY)

    def write(self, text: str) -> None:
        os.write(self.end, text.encode())

    def close(self) -> None:
        os.close(self.end)


@pytest.fixture
def fifo(tmp_path: Path) -> Fifo:
    return Fifo(tmp_path / "fifo")


# -- where the server is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port", "environ", "expected"),
    [
        (None, None, "", ("localhost", 5000)),
        (None, None, "there", ("there", 5000)),
        (None, None, "there:81", ("there", 81)),
        (None, None, "[::1]:81", ("::1", 81)),
        (None, None, "[::1]", ("::1", 5000)),
        (None, None, "fe80::1", ("fe80::1", 5000)),
        (None, 82, "there:81", ("there", 82)),
        ("here", None, "there:81", ("here", 5000)),
        ("there", None, "there:81", ("there", 81)),
        ("here:83", None, "there:81", ("here", 83)),
        ("here:83", 84, "", ("here", 84)),
        ("here", None, "http://there/", ("here", 5000)),
    ],
)
def test_options_go_before_the_environment(
    host: str | None, port: int | None, environ: str, expected: tuple[str, int]
) -> None:
    assert address.find(host, port, {"APSIS_HOST": environ}) == expected


@pytest.mark.parametrize("text", ["http://there:80", "there:x", "there:0", "a@b", "[::1", ":80", "a/b"])
def test_what_is_no_address_is_said_with_a_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="not an? (address|port)"):
        address.find(None, None, {"APSIS_HOST": text})


def test_paths_are_quoted_segment_by_segment() -> None:
    path = ("v1", "jobs", "a/b?c#d%41 é\udcff")
    assert target(path, [("q", "a&b=c d")]) == "/api/v1/jobs/a%2Fb%3Fc%23d%2541%20%C3%A9%FF?q=a%26b%3Dc%20d"


# -- times -----------------------------------------------------------------------------------------


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


NOW = at("2031-05-06T16:00:00+00:00")  # noon in New York


@pytest.mark.parametrize(
    ("text", "utc", "expected"),
    [
        ("+90m", False, "2031-05-06T17:30:00+00:00"),
        ("+1.5 h", False, "2031-05-06T17:30:00+00:00"),
        ("12:00:01", False, "2031-05-06T16:00:01+00:00"),
        ("12:00:00", False, "2031-05-07T16:00:00+00:00"),
        ("09:30:00", False, "2031-05-07T13:30:00+00:00"),
        ("16:00:01", True, "2031-05-06T16:00:01+00:00"),
        ("2031-05-06T07:08:09-04:00", False, "2031-05-06T11:08:09+00:00"),
        ("20310506T070809Z", False, "2031-05-06T07:08:09+00:00"),
    ],
)
def test_a_time_is_read_on_the_readers_clock(new_york: None, text: str, utc: bool, expected: str) -> None:
    assert times.read_time(text, NOW, utc) == at(expected)


def test_the_next_daytime_after_clocks_change_is_on_the_new_time(new_york: None) -> None:
    evening = at("2031-03-08T22:00:00-05:00")  # clocks jump at 2 in the night
    assert times.next_daytime("08:00:00", evening, False) == at("2031-03-09T08:00:00-04:00")
    assert times.next_daytime("02:30:00", evening, False) == at("2031-03-09T03:30:00-04:00")


@pytest.mark.parametrize(
    "text", ["", "soon", "9:30", "25:00:00", "+", "+1 week", "2031-05-06", "12", "+1e300"]
)
def test_what_is_no_time_is_said_with_a_remedy(text: str) -> None:
    with pytest.raises(Misuse, match="not a time: .*; write now, "):
        times.read_time(text, NOW, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", "90m"),
        ("60", "60"),
        ("+90m", "+90m"),
        ("13:00:00", "2031-05-06T17:00:00+00:00"),
        ("2031-05-06T20:00:00Z", "2031-05-06T20:00:00+00:00"),
    ],
)
def test_a_stop_time_is_after_the_schedule_time(new_york: None, text: str, expected: str) -> None:
    assert times.read_stop(text, NOW, False) == expected


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("today", "2031-05-06T04:00Z", "2031-05-07T04:00Z"),
        ("2031-03-09", "2031-03-09T05:00Z", "2031-03-10T04:00Z"),  # a day of 23 hours
        ("2h", "2031-05-06T14:00Z", None),
        ("2031-05-06T07:08:09Z", "2031-05-06T07:08:09Z", None),
        ("2031-05-01..2031-05-03", "2031-05-01T04:00Z", "2031-05-04T04:00Z"),
        ("2h..1h", "2031-05-06T14:00Z", "2031-05-06T15:00Z"),
        ("now..+1h", "2031-05-06T16:00Z", "2031-05-06T17:00Z"),
        ("..now", None, "2031-05-06T16:00Z"),
        ("09:00:00..", "2031-05-06T13:00Z", None),
    ],
)
def test_a_span_is_a_day_or_has_two_ends(
    new_york: None, text: str, low: str | None, high: str | None
) -> None:
    found = times.read_span(text, NOW, False)
    assert found == (at(low) if low else float("-inf"), at(high) if high else float("inf"))


@pytest.mark.parametrize("text", ["", "tomorrow", "2031-13-01", "a..b", "1..x"])
def test_what_is_no_span_is_said_with_a_remedy(text: str) -> None:
    with pytest.raises(Misuse, match="not a span: .*; write today"):
        times.read_span(text, NOW, True)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("etl since:today", "etl since:2031-05-06T04:00:00+00:00"),
        (
            "!since:yesterday until:09:00:00",
            "!since:2031-05-05T04:00:00+00:00 until:2031-05-06T13:00:00+00:00",
        ),
        ("since:2031-03-09", "since:2031-03-09T05:00:00+00:00"),
        ('a="x since:today" b=since:today', 'a="x since:today" b=since:today'),
        ("since:2h until:now since:2031-13-01 since:99:99:99 since:", None),
        ("since:2031-05-06T07:08:09Z", None),
    ],
)
def test_days_of_a_search_are_the_readers(new_york: None, query: str, expected: str | None) -> None:
    assert times.as_instants(query, NOW, False) == (expected or query)
    if expected and "today" in query:
        assert times.as_instants("since:today", NOW, True) == "since:2031-05-06T00:00:00+00:00"


def test_elapsed_grows_with_what_it_shows() -> None:
    shown = [times.show_elapsed(s) for s in (0.4, 12, 59.6, 3599, 3600, 86399.6, 180000)]
    assert shown == ["0:00", "0:12", "1:00", "59:59", "1:00:00", "1:00:00:00", "2:02:00:00"]


# -- text on a terminal ----------------------------------------------------------------------------


def test_widths_are_those_of_a_terminal() -> None:
    assert [width(text) for text in ("abc", "日本", "e\u0301", "ｱ", "é", "")] == [3, 4, 1, 1, 1, 0]


@pytest.mark.parametrize("text", ["short", "a long text of letters", "日本語日本語日本語日本語"])
def test_what_is_shortened_fits(text: str) -> None:
    for columns in range(1, 30):
        short = shorten(text, columns)
        assert width(short) <= columns
        assert short == text or short.endswith("…")


def test_control_characters_cannot_drive_the_terminal() -> None:
    assert plain("a\x1b[2Jb\nc\x9bd\u202ee日") == "a\\x1b[2Jb\\nc\\x9bd\\u202ee日"


def test_a_table_fits_the_terminal_and_is_whole_in_a_pipe() -> None:
    columns = [Column("id"), Column("job"), Column("args")]
    rows = [["r1", "a" * 30, "b" * 200], ["r22", "日本" * 10, "x"]]
    narrow = table(Terminal(width=60), columns, rows)  # type: ignore[arg-type]
    assert all(width(line) <= 60 for line in narrow)
    assert "a" * 30 in narrow[2] and narrow[2].endswith("…")
    assert "b" * 200 in table(Terminal(), columns, rows)[2]  # type: ignore[arg-type]
    assert narrow[0].split() == ["id", "job", "args"] and set(narrow[1]) == {"━", " "}


# -- new runs --------------------------------------------------------------------------------------


def test_a_scheduled_run_is_shown_as_a_block(server: Server) -> None:
    done = server.command(
        "schedule", "2099-01-02T03:04:05Z", "nothing", "a=1 2", "state=x", "--stop-time", "90m"
    )
    assert done.returncode == 0, done.stderr
    first, program, conditions, state, blank = done.stdout.split("\n")[:5]
    assert re.fullmatch(r"run r\d+ nothing\(a=1 2, state=x\)", first)
    assert program.endswith(": no-op")
    assert conditions == "none"
    assert (state, blank) == ("[O] for 2099-01-02 03:04:05 stop at 2099-01-02 04:34:05", "")
    run = server.run(first.split()[1])
    assert run["times"]["stop"] == "2099-01-02T04:34:05.000+00:00"
    assert run["args"] == {"a": "1 2", "state": "x"}


def test_args_may_go_on_behind_options(server: Server) -> None:
    run_id = made(server, "schedule", "+1h", "nothing", "a=1", "--stop-time", "2h", "state=2")
    assert server.run(run_id)["args"] == {"a": "1", "state": "2"}


def test_times_are_shown_in_the_local_zone_unless_utc_is_asked_for(server: Server) -> None:
    run_id = made(server, "schedule", "2099-07-02T03:04:05Z", "slow")
    zone = {"TZ": "America/New_York"}
    assert "for 2099-07-01 23:04:05" in server.command("run", run_id, **zone).stdout
    assert "for 2099-07-02 03:04:05" in server.command("run", run_id, "--utc", **zone).stdout
    assert "for 2099-07-02 03:04:05" in server.command("--utc", "run", run_id, **zone).stdout


def test_several_runs_are_one_list_for_machines(server: Server) -> None:
    words = ("schedule", "now", "nothing", "a=1", "state=2", "--count", "3", "--format")
    found = server.command(*words, "json").stdout
    assert len(json.loads(found)) == 3 and found.endswith("]\n")
    runs = yaml.safe_load(server.command(*words, "yaml").stdout)
    assert [run["job_id"] for run in runs] == ["nothing"] * 3
    several = json.loads(server.command("run", *[run["run_id"] for run in runs], "--format", "json").stdout)
    assert [run["run_id"] for run in several] == [run["run_id"] for run in runs]


@pytest.mark.parametrize(("job", "state", "status"), [("greet", "success", 0), ("fail", "failure", 1)])
def test_wait_tells_how_the_run_ended(server: Server, job: str, state: str, status: int) -> None:
    args = ["name=you"] if job == "greet" else []
    done = server.command("schedule", "now", job, *args, "--wait", "--format", "json")
    assert (done.returncode, json.loads(done.stdout)["state"]) == (status, state)
    done = server.command("schedule", "--wait", "now", job, *args)
    assert done.returncode == status
    assert ("[+] at " if status == 0 else "[X] at ") in done.stdout.splitlines()[-1]


def test_wait_for_several_fails_if_one_does(server: Server) -> None:
    done = server.command("schedule", "now", "fail", "--count", "2", "--wait", "--format", "json")
    assert [run["state"] for run in json.loads(done.stdout)] == ["failure", "failure"]
    assert done.returncode == 1


def test_adhoc_takes_words_or_a_shell_string(server: Server) -> None:
    plain_words = made_adhoc(server, "now", "/usr/bin/printf", "%s|", "a  b", "-x", "--wait")
    assert server.output(plain_words) == b"a  b|-x|--wait|"
    shell = made_adhoc(server, "--shell", "now", "echo one |", "tr", "a-z", "A-Z")
    assert server.output(shell) == b"ONE\n"
    assert server.command("adhoc", "now").returncode == 2


def made_adhoc(server: Server, *words: str) -> str:
    done = server.command("adhoc", "--format", "json", "--wait", *words)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return str(json.loads(done.stdout)["run_id"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["schedule", "soon", "slow"], "not a time: can't parse as time: 'soon'"),
        (["schedule", "now", "slow", "name"], "not an arg: 'name'"),
        (["schedule", "now", "slow", "a=1", "a=2"], "given twice"),
        (["schedule", "now", "slow", "--count", "-1"], "not a number of runs: '-1'"),
        (["schedule", "now", "slow", "--stop-time", "5 weeks"], "unknown unit weeks"),
        (["mark", "s", "r1"], "ambiguous state: 's'"),
        (["mark", "running", "r1"], "not a final state: 'running'"),
        (["runs", "-j", "slow", "-t", "soon"], "not a span"),
        (["runs", "-j", "slow", "--all"], "exclude each other"),
        (["watch", "r1", "--silent", "--json"], "not allowed with"),
        (["no-such-command"], "invalid choice"),
        ([], "error: no command"),
    ],
)
def test_what_is_typed_wrong_is_exit_status_2(server: Server, words: list[str], said: str) -> None:
    done = server.command(*words)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


# -- looking ---------------------------------------------------------------------------------------


def test_jobs_are_a_table_with_params_and_labels(server: Server) -> None:
    lines = server.command("jobs").stdout.split("\n")
    assert lines[0].split() == ["job_id", "params", "labels"]
    rows = [re.split(r"  +", line) for line in lines[2:-2]]
    assert [row[0] for row in rows] == sorted(JOBS)
    assert ["greet", "(name)", "polite quick"] in rows
    assert "greet" in server.command("jobs", "--label", "quick").stdout
    assert "slow" not in server.command("jobs", "--label", "quick").stdout
    found = json.loads(server.command("jobs", "--format", "json").stdout)
    assert [job["job_id"] for job in found] == sorted(JOBS)


def test_agents_are_a_table_by_group(server: Server) -> None:
    made(server, "schedule", "now", "greet", "name=agents", "--wait")  # so that there is one
    (found,) = json.loads(server.command("agents", "--format", "json").stdout).values()
    lines = server.command("agents").stdout.split("\n")
    assert lines[0].split() == ["group", "agent", "host", "user", "state", "since"]
    group, agent, host, user, state, *since = lines[2].split()
    assert (group, agent, state) == ("default", found["info"]["conn"]["conn_id"], "active")
    assert (host, user) == (found["info"]["proc"]["hostname"], found["info"]["proc"]["username"])
    assert since and len(lines) == 5


def test_a_job_is_found_by_words_of_its_id(server: Server) -> None:
    done = server.command("job", "on later")
    assert (done.returncode, yaml.safe_load(done.stdout)["job_id"]) == (0, "later/on")
    assert json.loads(server.command("job", "odd [red]/jöb", "--format", "json").stdout)["params"] == ["p"]
    done = server.command("job", "no such")
    assert (done.returncode, done.stdout) == (1, "Error: no job_id no%20such [API status: 404]\n")


def test_what_looks_like_markup_is_shown_as_it_is(server: Server) -> None:
    done = server.command("schedule", "now", "odd [red]/jöb", "p=[bold]x[/bold]\x1b[2J")
    assert done.stdout.startswith("run r")
    assert " odd [red]/jöb(p=[bold]x[/bold]\\x1b[2J)\n" in done.stdout
    done = server.command("runs", "-j", "odd [red]/jöb", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0 and "[bold]x[/bold]\\x1b[2J" in done.stdout


def test_runs_of_a_job_can_be_chosen_by_state_args_and_time(server: Server) -> None:
    early = made(server, "schedule", "2098-01-01T10:00:00Z", "nothing", "a=[1]", "state=s")
    late = made(server, "schedule", "2098-01-02T10:00:00Z", "nothing", "a=[2]", "state=s")

    def chosen(*words: str) -> list[str]:
        done = server.command("runs", "-j", "nothing", *words)
        assert done.returncode == 0, done.stderr
        return re.findall(r"^r\d+", done.stdout, re.MULTILINE)

    assert chosen("-s", "scheduled", "state=s")[-2:] == [early, late]
    assert chosen("a=[2]", "state=s") == [late]
    assert chosen("-t", "2098-01-01") == [early]
    assert chosen("-t", "2098-01-01..2098-01-02") == [early, late]
    assert chosen("-t", "2098-01-01T11:00:00Z..2098-12-31") == [late]
    assert chosen("-t", "2098-01-01", "-s", "success") == []
    assert chosen("-n", "1", "-t", "..2098-01-02") == [late]
    assert late not in chosen("-t", "..now")
    assert server.command("runs", "-j", "nothing", "a=no").stdout == "No runs.\n"
    found = json.loads(server.command("runs", "-j", "nothing", "a=[1]", "--format", "json").stdout)
    assert list(found) == [early]
    blocks = server.command("runs", "-j", "nothing", "a=[1]", "--summary").stdout
    assert blocks.startswith(f"run {early} nothing(a=[1], state=s)\n")


def test_a_runs_table_has_a_name_over_every_column(server: Server) -> None:
    run_id = made(server, "schedule", "now", "greet", "name=x", "--wait")
    lines = server.command("runs", "-j", "greet").stdout.split("\n")
    assert lines[0].split() == ["run_id", "ste", "start", "elapsed", "job_id", "args"]
    row = next(line for line in lines if line.startswith(f"{run_id} "))
    assert re.fullmatch(run_id + r" +\[\+\]  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d +0:\d\d  greet +name=x", row)
    assert lines[-2:] == ["", ""]


def test_runs_need_a_job_or_all(server: Server) -> None:
    done = server.command("runs")
    assert done.returncode == 1
    assert done.stderr.startswith("error: filter --job is required\n")


def test_runs_take_the_job_as_a_word_too(server: Server) -> None:
    run_id = made(server, "schedule", "now", "greet", "name=word", "--wait")
    short, long = (server.command("runs", *words, "name=word") for words in (("greet",), ("-j", "greet")))
    assert short.returncode == 0 and f"\n{run_id} " in short.stdout and short.stdout == long.stdout
    wrong = server.command("runs", "-j", "greet", "nothing")
    assert wrong.returncode == 2 and "not an arg: 'nothing'" in wrong.stderr


def test_runs_of_all_jobs_come_newest_last(server: Server) -> None:
    first = made(server, "schedule", "now", "nothing", "a=1", "state=1")
    second = made(server, "schedule", "now", "greet", "name=1", "--wait")
    due = made(server, "schedule", "2097-01-01T00:00:00Z", "slow")
    found = re.findall(r"^r\d+", server.command("runs", "--all", "-t", "1h..now").stdout, re.MULTILINE)
    assert found[-2:] == [first, second]
    assert due in server.command("runs", "--all", "-t", "2097-01-01").stdout
    newest = json.loads(server.command("runs", "--all", "-n", "2", "--format", "json").stdout)
    assert set(newest) == {first, second}
    assert due not in server.command("runs", "--all").stdout
    due_only = server.command("runs", "--all", "-n", "1", "-s", "scheduled", "--summary").stdout
    assert due in due_only and "elapsed" not in due_only
    assert server.command("runs", "--all", "-s", "success", "name=1").stdout.count("greet") == 1


def test_a_run_in_detail_has_program_log_output_and_history(server: Server) -> None:
    run_id = made(server, "schedule", "now", "greet", "name=detail", "--wait")
    text = server.command("run", run_id, "-v").stdout
    parts = re.split(r"^(Program|Conditions|Log|Output|Run History)$", text, flags=re.MULTILINE)
    assert parts[1::2] == ["Program", "Conditions", "Log", "Output", "Run History"]
    assert "echo Hello detail" in parts[2]
    assert parts[6].strip().endswith("success")
    assert parts[8].split() == ["output", "13", "bytes"]
    assert run_id in parts[10]
    log = server.command("log", run_id).stdout
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d scheduled: now\n", log) and log.endswith(" success\n")
    assert json.loads(server.command("log", run_id, "--format", "json").stdout)[-1]["message"] == "success"


def test_waiting_says_why(server: Server) -> None:
    run_id = made(server, "schedule", "now", "later/on", "--stop-time", "1h")
    assert server.until(run_id, "waiting", *ENDS)["state"] == "waiting"
    text = server.command("waiting", run_id).stdout
    assert "[|]" in text and "dependency never is success" in text
    assert json.loads(server.command("waiting", run_id, "--format", "json").stdout)["run_id"] == run_id
    assert f"{run_id} waits since " in server.command("run", run_id).stdout
    assert server.command("start", run_id).returncode == 0
    server.until(run_id, "success")
    assert server.command("waiting", run_id).stdout == f"{run_id} is success: it waits for nothing\n"


# -- operations ------------------------------------------------------------------------------------


def test_operations_say_nothing_and_go_on_after_one_that_fails(server: Server) -> None:
    one = made(server, "schedule", "+1h", "slow")
    two = made(server, "schedule", "+1h", "slow")
    done = server.command("skip", one, "r999999", two)
    assert (done.returncode, done.stdout) == (1, "Error: unknown run r999999 [API status: 404]\n")
    assert server.run(one)["state"] == server.run(two)["state"] == "skipped"
    done = server.command("skip", one)
    assert done.stdout == f"Error: can't skip {one} in state skipped [API status: 400]\n"
    done = server.command("mark", "SU", one, two)
    assert (done.returncode, done.stdout) == (0, "")
    assert server.run(two)["state"] == "success"
    assert server.command("mark", "sk", two).returncode == 0
    assert server.run(two)["state"] == "skipped"


def test_start_stop_and_signal(server: Server, fifo: Fifo) -> None:
    run_id = made(server, "schedule", "+1h", "echo", f"fifo={fifo.path}")
    assert server.command("start", run_id).returncode == 0
    fifo.open()
    server.until(run_id, "running")
    assert server.command("signal", "cont", run_id).returncode == 0
    done = server.command("signal", "nonsense", run_id)
    assert done.stdout == "Error: invalid signal: NONSENSE [API status: 400]\n"
    done = server.command("stop", run_id)
    assert (done.returncode, done.stdout) == (0, "")
    server.until(run_id, *ENDS)
    fifo.close()
    again = server.command("rerun", run_id)
    assert re.match(r"run r\d+ echo\(fifo=", again.stdout)
    new = again.stdout.split()[1]
    assert f"rerun of {run_id}\n" in server.command("run", new).stdout
    assert f"rerun as {new}\n" in server.command("run", run_id).stdout
    server.command("stop", new)


def test_rerun_for_machines(server: Server) -> None:
    one = made(server, "schedule", "now", "nothing", "a=r", "state=1")
    again = json.loads(server.command("rerun", one, "--format", "json").stdout)
    assert again["args"] == {"a": "r", "state": "1"} and again["run_id"] != one
    assert json.loads(server.command("rerun", one, "--format", "json", "--wait").stdout)["state"] == "success"
    several = server.command("rerun", one, "r999999", one, "--format", "yaml")
    assert several.returncode == 1 and "unknown run r999999" in several.stdout


# -- output ----------------------------------------------------------------------------------------


def test_output_is_given_byte_by_byte(server: Server) -> None:
    program = {"type": "procstar-shell", "command": r"printf '\377\000\r\n'; head -c 3000000 /dev/zero"}
    run_id = server.schedule({"job": {"program": program}})
    server.until(run_id, *ENDS)
    for option in ([], ["-f"]):
        done = subprocess.run(server.argv("output", run_id, *option), capture_output=True, timeout=60)
        assert done.returncode == 0
        assert done.stdout == b"\xff\0\r\n" + bytes(3_000_000)
    assert server.command("output", run_id, "-F").stdout == ""


def test_output_of_a_run_that_has_none_is_an_error_beside_the_bytes(server: Server) -> None:
    run_id = made(server, "schedule", "+1h", "slow")
    for words in (["output", run_id], ["output", "r999999", "-f"]):
        done = server.command(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"error: .* \[API status: 404\]\n", done.stderr)


def test_output_of_a_run_that_goes_on_is_said_to_be_a_part(server: Server, fifo: Fifo) -> None:
    run_id = made(server, "schedule", "now", "echo", f"fifo={fifo.path}")
    fifo.open()
    fifo.write("one\n")
    server.until_printed(run_id, b"one\n")
    done = server.command("output", run_id)
    assert (done.returncode, done.stdout) == (0, "one\n")
    more = f"more output may come, which apsis output -f {run_id} waits for"
    assert done.stderr == f"{run_id} is running: {more}\n"
    fifo.close()
    server.until(run_id, *ENDS)
    done = server.command("output", run_id)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")


def test_output_is_followed_to_the_end(server: Server, fifo: Fifo) -> None:
    run_id = made(server, "schedule", "now", "echo", f"fifo={fifo.path}")
    fifo.open()
    fifo.write("one\n")
    server.until_printed(run_id, b"one\n")
    follow = server.spawn(*DEBUG, "output", run_id, "-f")
    assert follow.stdout is not None
    assert follow.stdout.readline() == "one\n"
    new = server.spawn(*DEBUG, "output", run_id, "--follow-new")
    assert new.stdout is not None
    following(follow)
    following(new)
    fifo.write("two\n")
    assert follow.stdout.readline() == new.stdout.readline() == "two\n"
    fifo.write("three")
    fifo.close()
    for command in (follow, new):
        printed, said = command.communicate(timeout=60)
        assert (command.returncode, printed) == (0, "three")
        assert all(" D " in line for line in said.splitlines()), said


def following(process: subprocess.Popen[str], word: str = "following") -> None:
    """Returns once a command says that it is connected, or has been told all that there is."""
    assert process.stderr is not None
    while line := process.stderr.readline():
        if word in line:
            return
    raise AssertionError("not connected")


# -- watch -----------------------------------------------------------------------------------------


def test_watch_tells_what_is_new_and_how_it_ends(server: Server, fifo: Fifo) -> None:
    run_id = made(server, "schedule", "now", "echo", f"fifo={fifo.path}")
    fifo.open()
    server.until(run_id, "running")
    watches = [server.spawn(*DEBUG, "watch", run_id, *words) for words in ([], ["--silent"], ["--json"])]
    for watch in watches:
        following(watch)
    fifo.close()
    shown, silent, machine = [watch.communicate(timeout=60)[0] for watch in watches]
    assert [watch.returncode for watch in watches] == [0, 0, 0]
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00: success$", shown, re.MULTILINE)
    assert "scheduled: now" not in shown
    assert silent == ""
    parts = [json.loads(line) for line in machine.splitlines()]
    assert all(len(part) == 1 for part in parts)
    assert [next(iter(part)) for part in parts[:4]] == ["run", "meta", "run_log", "outputs"]
    assert parts[-1].get("run", {}).get("state") == "success"


def test_watch_of_a_run_that_has_ended_exits_at_once(server: Server) -> None:
    failed = json.loads(server.command("schedule", "now", "fail", "--wait", "--format", "json").stdout)
    done = server.command("watch", failed["run_id"])
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    server.command("mark", "success", failed["run_id"])
    assert server.command("watch", failed["run_id"]).returncode == 0


def test_watch_of_an_unknown_run_is_an_error(server: Server) -> None:
    for run_id in ("r999999", "r0", "x", "a b/c"):
        done = server.command("watch", run_id)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_ctrl_c_is_silent(server: Server) -> None:
    run_id = made(server, "schedule", "+1h", "slow")
    for words, status in (
        (["watch", run_id], 0),
        (["output", run_id, "-f"], 0),
        (["schedule", "+1h", "slow", "--wait"], 130),
    ):
        process = server.spawn(*DEBUG, *words)
        following(process, "connected")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (status, "")


def test_a_broken_pipe_is_silent(server: Server) -> None:
    program = {"type": "procstar-shell", "command": "yes | head -c 5000000"}
    run_id = server.schedule({"job": {"program": program}})
    server.until(run_id, *ENDS)
    for words in (["output", run_id], ["output", "-f", run_id], ["jobs"]):
        process = server.spawn(*words)
        assert process.stdout is not None and process.stderr is not None
        if words[0] == "output":
            process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


# -- a server that goes away -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_what_is_followed_goes_on_after_a_restart(own: Server, fifo: Fifo, how: str) -> None:
    run_id = made(own, "schedule", "now", "echo", f"fifo={fifo.path}")
    fifo.open()
    fifo.write("one\n")
    own.until_printed(run_id, b"one\n")
    follow, watch = own.spawn("output", run_id, "-f"), own.spawn(*DEBUG, "watch", run_id)
    assert follow.stdout is not None
    assert follow.stdout.readline() == "one\n"
    following(watch)
    if how == "kill":
        own.kill()
        own.start()
    else:
        assert own.command("restart").returncode == 0
    fifo.write("two\n")
    assert follow.stdout.readline() == "two\n"
    fifo.write("three\n")
    fifo.close()
    assert follow.communicate(timeout=60)[0] == "three\n" and follow.returncode == 0
    shown = watch.communicate(timeout=60)[0]
    assert watch.returncode == 0
    told = [line.partition("+00:00: ")[2] for line in shown.splitlines()]
    log = own.messages(run_id)
    assert told == log[len(log) - len(told) :] and "success" in told


def cut_off(own: Server, fifo: Fifo) -> tuple[str, subprocess.Popen[str]]:
    """A run that goes on, and a watch of it that stands still since before its server was killed."""
    run_id = made(own, "schedule", "now", "echo", f"fifo={fifo.path}")
    fifo.open()
    own.until(run_id, "running")
    watch = own.spawn(*DEBUG, "watch", run_id)
    following(watch)
    watch.send_signal(signal.SIGSTOP)
    own.kill()
    return run_id, watch


def caught_up(own: Server, fifo: Fifo, run_id: str, watch: subprocess.Popen[str]) -> list[str]:
    """What the watch tells that may go on when the server is back, and the run has ended."""
    own.start()
    fifo.close()
    own.until(run_id, *ENDS)
    watch.send_signal(signal.SIGCONT)
    shown = watch.communicate(timeout=60)[0]
    return [line.partition("+00:00: ")[2] for line in shown.splitlines()]


def test_what_happened_while_nobody_could_watch_is_told_before_the_end(own: Server, fifo: Fifo) -> None:
    run_id, watch = cut_off(own, fifo)
    told = caught_up(own, fifo, run_id, watch)
    assert "reconnecting" in told and told[-1] == "success"


def test_a_watch_misses_and_repeats_no_line_though_the_clock_was_set_back_meanwhile(
    own: Server, fifo: Fifo
) -> None:
    run_id, watch = cut_off(own, fifo)
    before = len(own_log(own, run_id, ahead=3600))
    told = caught_up(own, fifo, run_id, watch)
    assert told == own.messages(run_id)[before:] and "success" in told


def own_log(server: Server, run_id: str, ahead: float) -> list[str]:
    """The log of a run while no server runs, as if it had been written by a clock that was ahead, in s."""
    number = int(run_id[1:])
    with closing(sqlite3.connect(server.directory / "apsis.db")) as db, db:
        db.execute("UPDATE log SET time = time + ? WHERE number = ?", (ahead, number))
        found = db.execute("SELECT message FROM log WHERE number = ? ORDER BY seq", (number,))
        return [text for (text,) in found]


def test_patience_with_a_server_that_does_not_come_back_ends(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = made(own, "schedule", "+1h", "slow")
    told = live.updates(Client("127.0.0.1", own.port), run_id)
    assert next(told)[0] == "run"
    own.kill()
    monkeypatch.setattr(live, "PATIENCE", 0.5)
    with pytest.raises(Trouble, match=r"no server at .*, for 0.5 s; what runs goes on"):
        for _ in told:
            pass
    own.start()


def test_jobs_are_reloaded_all_or_none(own: Server) -> None:
    done = own.command("reload-jobs")
    assert (done.returncode, done.stdout) == (0, "no changes\n")
    own.write("new", "program: {type: no-op}\n")
    (own.jobs / "fail.yaml").write_text("program: {type: procstar, argv: [/bin/true]}\n")
    (own.jobs / "slow.yaml").unlink()
    dry = own.command("reload-jobs", "--dry-run").stdout
    changes = "Jobs removed\n- slow\n\nJobs added\n- new\n\nJobs changed\n- fail\n\n"
    assert dry == changes + "Dry run; no changes made.\n"
    assert own.command("reload-jobs", "--dry-run", "--quiet").stdout == ""
    assert json.loads(own.command("reload-jobs", "--format", "json").stdout)["added"] == ["new"]
    own.write("wrong", "program: {type: nonsense}\n")
    done = own.command("reload-jobs", "--quiet")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Error: ") and lines[0].endswith("[API status: 400]")
    assert lines[1] == "- wrong" and "unknown program type: nonsense" in lines[2]


def test_version_and_shut_down(tmp_path: Path) -> None:
    server = Server(tmp_path / "own", {})
    server.start()
    try:
        shown = server.command("version").stdout.splitlines()
        assert shown[0] == f"server address: localhost:{server.port}"
        assert [line.partition(":")[0] for line in shown[1:]] == ["server version", "client version"]
        assert set(json.loads(server.command("version", "--format", "json").stdout)) == {
            "server_address",
            "server_version",
            "client_version",
        }
        done = server.command("shut-down")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert server.process is not None and server.process.wait(60) == 0
        done = server.command("version")
        assert done.returncode == 1 and "client version: " in done.stdout
        assert done.stderr.startswith(
            f"error: no server at localhost:{server.port}; start one with apsis serve"
        )
        for words in (
            ["jobs"],
            ["watch", "r1"],
            ["output", "r1", "-f"],
            ["schedule", "now", "slow", "--wait"],
        ):
            done = server.command(*words)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.count("\n") == 1 and "no server at" in done.stderr
    finally:
        server.end_agent()


# -- servers that are none -------------------------------------------------------------------------


@pytest.fixture
def answering() -> Iterator[Callable[[bytes | None], int]]:
    """Starts a server that answers every connection with these bytes (None: with silence); its port."""
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: bytes | None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def serve() -> None:
            held = []
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                held.append(sock)
                if answer is not None:
                    sock.recv(65536)
                    sock.sendall(answer)
                    sock.shutdown(socket.SHUT_WR)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for listener in sockets:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(60)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OK % (5, b"hello"), "not as Apsis does"),
        (OK % (2, b"{}"), "not as Apsis does"),
        (OK % (9, b'["x",null'), "not as Apsis does"),
        (OK % (2, b"[]"), "not as Apsis does"),
        (OK % (500, b"{"), "ended the connection"),
        (b"SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        (b"", "ended the connection"),
    ],
)
def test_another_programs_answer_is_a_sentence(
    answering: Callable[[bytes | None], int], answer: bytes, said: str
) -> None:
    port = answering(answer)
    for words in (["run", "r1"], ["runs", "-j", "x"], ["watch", "r1"], ["version"]):
        done = command(port, *words)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        if words[0] == "runs":
            assert said in done.stderr


def command(port: int, *words: str) -> subprocess.CompletedProcess[str]:
    server = Server.__new__(Server)
    server.port = port
    return server.command("--host", "127.0.0.1", *words)


def test_an_error_without_json_is_an_unknown_one(answering: Callable[[bytes | None], int]) -> None:
    port = answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops")
    done = command(port, "jobs")
    assert (done.returncode, done.stdout) == (1, "Error: unknown error [API status: 502]\n")


def test_silence_is_a_sentence_after_a_while(answering: Callable[[bytes | None], int]) -> None:
    client = Client("127.0.0.1", answering(None))
    with pytest.raises(Trouble, match=r"timeout answering \(0.2 s\); see whether"):
        client.get("v1", "alive", patience=0.2)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid", "x..y"])
def test_a_host_that_is_none_is_a_sentence(host: str) -> None:
    done = command(5000, "--host", host, "jobs")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# -- colours ---------------------------------------------------------------------------------------


def on_terminal(server: Server, *words: str, **environ: str) -> str:
    """What a command writes to a terminal of 50 columns."""
    parent, child = pty.openpty()
    env = environment(TERM="xterm-256color", COLUMNS="50", **environ)
    process = subprocess.Popen(server.argv(*words), stdout=child, stderr=child, env=env)
    os.close(child)
    text = b""
    try:
        while piece := os.read(parent, 65536):
            text += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(parent)
    assert process.wait(60) == 0
    return text.decode()


def test_colours_and_short_lines_are_for_terminals(server: Server) -> None:
    server.command("schedule", "now", "nothing", f"a={'x' * 100}", "state=1")
    text = on_terminal(server, "runs", "-j", "nothing")
    assert "\x1b[38;5;29m[+]\x1b[0m" in text and "…" in text
    without = on_terminal(server, "runs", "-j", "nothing", NO_COLOR="1")
    assert "\x1b" not in without
    assert all(width(line) <= 50 for line in without.splitlines())
    piped = server.command("runs", "-j", "nothing", COLUMNS="50").stdout
    assert "\x1b" not in piped and "x" * 100 in piped


# -- help ------------------------------------------------------------------------------------------


def test_help_is_there_at_once_and_loads_nothing(server: Server) -> None:
    env = environment(PYTHONPROFILEIMPORTTIME="1")
    done = subprocess.run(server.argv("--help"), capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0 and "reload-jobs" in done.stdout
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert not loaded & {
        "http.client",
        "socket",
        "ssl",
        "yaml",
        "jinja2",
        "wsproto",
        "json",
        "apsislib.cli.commands",
    }


def test_the_next_daytime_is_today_or_tomorrow_on_the_real_clock() -> None:
    now = datetime.now(UTC).timestamp()
    assert 0 < times.next_daytime("12:00:00", now, True) - now <= 86400


def test_a_run_that_could_not_be_made_says_why_and_is_a_failure_of_the_command(server: Server) -> None:
    made = server.command("schedule", "now", "greet")
    assert made.returncode == 1
    assert "missing args (name) for job greet" in made.stderr
    run_id = made.stdout.split()[1]
    assert "missing args (name)" in server.command("run", run_id).stdout


def test_runs_of_all_jobs_leave_out_those_to_come_unless_asked(server: Server) -> None:
    made = server.command("schedule", "2098-01-01T00:00:00Z", "greet", "name=later", "--format", "json")
    run_id = json.loads(made.stdout)["run_id"]
    assert run_id not in server.command("runs", "--all").stdout
    assert run_id in server.command("runs", "--all", "-s", "scheduled").stdout
