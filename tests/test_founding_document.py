"""What the founding document says of programs, sentence by sentence, on a running server.

ROWS has each sentence of it that implies behaviour, with the tests that show the behaviour: here, or in a
file whose tests run a server process too. A row whose test is gone fails.
"""

from __future__ import annotations

import ast
import getpass
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
from server import ENDS, Server, environment

HERE = Path(__file__).parent
LIFE, ECS, INTERNAL = "test_ecs_life", "test_ecs", "test_internal"
STATS = f"{INTERNAL}.test_statistics_are_printed_and_appended_to_a_file"
ELSEWHERE = "test_config_effects.test_an_agent_of_elsewhere_connects_by_address_and_token"
ASKED = f"{LIFE}.test_aws_is_asked_for_what_the_job_and_the_servers_file_say"
ARCHIVED = f"{INTERNAL}.test_old_runs_move_to_the_archive_and_everybody_sees_them_go"
VACUUM = f"{INTERNAL}.test_a_vacuum_gives_space_back_while_the_server_goes_on"
OWN_TASK = f"{LIFE}.test_a_job_runs_in_a_task_of_its_own_from_schedule_to_output"
SUDO = "test_sudo.test_a_program_of_another_user_runs_is_stopped_killed_and_times_out"
FORBIDDEN = "test_sudo.test_what_is_not_permitted_is_said_and_a_program_that_goes_on_keeps_its_run"
PARTS = "test_an_archive_goes_by_age_count_chunks_and_pauses"
FILE = "test_an_archive_is_an_sqlite_file_but_no_database"
SHELL = "test_a_shell_program_is_a_text_that_a_new_bash_is_given_as_it_stands"
VECTOR = "test_a_program_without_a_shell_gets_each_argument_as_it_stands"
MISTAKES = "test_mistakes_are_named_before_anything_runs"
STOP = "test_a_stop_is_a_signal_then_patience_then_sigkill"
TIMEOUT = "test_a_timeout_is_a_signal_after_so_long_and_a_failure"
ROWS = {
    # programs
    1: ("every job has a program", MISTAKES),
    2: ("type is its kind, the other keys belong to the kind", MISTAKES),
    3: ("there are no-op, procstar, procstar-shell, procstar-ecs", MISTAKES),
    4: ("and kinds of one's own", "test_config_effects.test_pythons_collector_is_set"),
    5: ("and kinds that work on the server itself", STATS),
    6: ("a no-op is over at once, with success", "test_a_no_op_is_over_at_once"),
    # procstar
    7: ("agents may be on other hosts", ELSEWHERE),
    8: ("an agent of the group must be connected", "test_a_run_goes_to_one_agent_of_its_group"),
    9: ("to one of which the run goes", "test_a_run_goes_to_one_agent_of_its_group"),
    10: ("or it is starting until there is one", "test_a_run_goes_to_one_agent_of_its_group"),
    11: ("procstar-shell runs its command", SHELL),
    12: ("a text, in any style of YAML", SHELL),
    13: ("by a new shell", SHELL),
    14: ("which is bash", SHELL),
    15: ("of one line or more, with all that bash knows", SHELL),
    16: ("after its templates are expanded", SHELL),
    17: ("procstar runs an executable without a shell", VECTOR),
    18: ("argv, whose first item it is", VECTOR),
    19: ("without any substitution", VECTOR),
    20: ("but that of templates", VECTOR),
    21: ("as the agent's user", "test_a_program_runs_as_the_agents_user_and_knows_its_run"),
    22: ("or by sudo as another", SUDO),
    23: ("for which no password may be needed", FORBIDDEN),
    24: ("group_id: default is what is meant without it", "test_a_run_goes_to_one_agent_of_its_group"),
    25: ("a program may have a timeout", TIMEOUT),
    26: ("after which it is sent a signal", TIMEOUT),
    27: ("300 is five minutes", TIMEOUT),
    28: ("SIGTERM, or another", TIMEOUT),
    # ECS
    29: ("a task for each run", OWN_TASK),
    30: ("in whose container an agent connects, runs it and leaves", OWN_TASK),
    31: ("apart from all other runs", OWN_TASK),
    32: ("a command or an argument vector", ASKED),
    33: ("mem_gb: 2 and vcpu: 1", ASKED),
    34: ("launched, awaited, run", f"{LIFE}.test_runs_in_every_state_are_taken_up_after_a_restart"),
    35: ("and over, the task ends", OWN_TASK),
    36: ("command or argv, not both", MISTAKES),
    37: ("mem_gb is the memory", ASKED),
    38: ("vcpu the processors", ASKED),
    39: ("disk_gb the volume", ASKED),
    40: ("which have defaults for the whole server", ASKED),
    41: ("GB becomes GiB", ASKED),
    42: ("the volume goes with the task", ASKED),
    43: ("unless retain_ebs is set", ASKED),
    44: ("gp3, as fast as its size allows", ASKED),
    45: ("500 operations for each GiB, up to 16000", ASKED),
    46: ("a quarter of that in MiB/s, up to 1000", ASKED),
    47: ("32 GiB and 10 GiB, for example", ASKED),
    48: ("or disk_gb: 100", ASKED),
    49: ("role is taken on", ASKED),
    50: ("by its name in the account", ASKED),
    51: ("the task definition is the server's", ASKED),
    52: ("or the job's own", ASKED),
    53: ("with another image", ASKED),
    54: ("timeout and stop are the same", f"{LIFE}.test_a_timeout_ends_the_program"),
    55: ("as in the example", f"{LIFE}.test_a_stop_reaches_the_program"),
    56: ("the container has the name that the server's file says", ASKED),
    57: ("its agent has --wait and --wait-timeout", OWN_TASK),
    58: ("and leaves when the run is over", OWN_TASK),
    59: ("or when no work comes", f"{LIFE}.test_a_task_whose_agent_does_not_come_is_stopped"),
    60: ("after 900 s", f"{ECS}.test_the_documented_task_definition_fits_the_image_and_what_we_ask_for"),
    61: ("PROCSTAR_GROUP_ID is aws-ecs-RUN", OWN_TASK),
    62: ("APSIS_RUN_ID is the run's", "test_a_program_runs_as_the_agents_user_and_knows_its_run"),
    63: ("the container reaches the server", OWN_TASK),
    64: (
        "tasks that are left behind cost money",
        f"{LIFE}.test_of_two_servers_on_a_cluster_each_stops_what_itself_has_left_behind",
    ),
    65: ("a group for each run", OWN_TASK),
    66: ("no run disturbs another", OWN_TASK),
    67: ("and nothing is left", f"{LIFE}.test_all_that_was_made_is_gone_at_the_end"),
    68: ("group_id is a mistake", MISTAKES),
    # stopping
    69: ("many programs can be stopped", STOP),
    70: ("and some cannot", "test_a_stop_of_what_works_on_the_server_ends_between_two_chunks"),
    71: ("it may take a while", STOP),
    72: ("and fail", FORBIDDEN),
    73: ("a schedule or a user asks for it", "test_a_stop_time_stops_a_run"),
    74: ("the run is stopping first", STOP),
    75: ("then a success or a failure, by its exit code", STOP),
    76: ("SIGTERM at once", STOP),
    77: ("a minute of patience", STOP),
    78: ("then SIGKILL", STOP),
    79: ("or as stop says", STOP),
    80: ("only exit code 0 is a success", STOP),
    # programs that work on the server
    81: ("programs that work on the server", STATS),
    82: ("stats, as JSON", STATS),
    83: ("are the output", STATS),
    84: ("and added to a file", STATS),
    85: ("with the date in its name, on a schedule", "test_statistics_are_kept_in_a_file_for_each_day"),
    86: ("archive moves old runs to another file", ARCHIVED),
    87: ("so that the database stays small", VACUUM),
    88: ("out of memory first", ARCHIVED),
    89: ("and out of everybody's sight", ARCHIVED),
    90: ("once they have ended", PARTS),
    91: ("so old, so many, in chunks, with pauses", PARTS),
    92: ("on a schedule whose daytime is called time", "test_a_daily_schedule_may_call_its_daytime_time"),
    93: ("a chunk holds others up", VACUUM),
    94: ("by chunk_size, chunk_sleep and count", PARTS),
    95: ("without chunk_size it is one", PARTS),
    96: ("without chunk_sleep there is no pause", PARTS),
    97: ("the archive is an SQLite file with the same tables", FILE),
    98: ("but no database of a server", FILE),
    99: ("vacuum gives space back", VACUUM),
    100: ("and may hold others up", VACUUM),
}  # fmt: skip


@cache
def functions_of(name: str) -> set[str]:
    tree = ast.parse((HERE / f"{name}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_sentence_has_a_test_on_a_running_server() -> None:
    assert list(ROWS) == list(range(1, 101))
    for number, (sentence, place) in ROWS.items():
        module, _, test = place.rpartition(".")
        assert test in functions_of(module or Path(__file__).stem), (number, sentence)


# -- the server ------------------------------------------------------------------------------------

NOOP = "program: {type: no-op}\n"
DAY = """
params: [date]
schedule: {type: interval, interval: 1}
program: {type: stats, path: "stats-{{ date }}"}
"""
JOBS = {
    "noop": NOOP,
    "archived": NOOP,
    "days": DAY,
    "nightly": "schedule: {type: daily, tz: UTC, time: 01:30:00}\n" + NOOP,
}
AGENTS = "procstar: {agent: {local: true, enable: true, server: {host: 127.0.0.1, port: 0, plain: true}}}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("founding")
    config = "runs: {retention: off}\njob_dir: jobs\ndatabase: {path: apsis.db}\n"
    (directory / "apsis.yaml").write_text(config + AGENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        with Server(directory, JOBS).running() as server:
            yield server


def start(server: Server, **program: Any) -> str:
    return server.schedule({"job": {"program": program}})


def ended(server: Server, **program: Any) -> dict[str, Any]:
    """The run of a program, at its end."""
    return server.until(start(server, **program), *ENDS)


def printed(server: Server, run: Mapping[str, Any]) -> str:
    return server.output(run["run_id"]).decode()


def refused(server: Server, job: Any) -> str:
    answer = requests.post(f"{server.url}/runs", json={"job": job}, timeout=60)
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"])


# -- programs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({}, "missing key: program"),
        ({"program": None}, "program"),
        ({"program": {"command": "x"}}, "missing type"),
        ({"program": {"type": "no-op", "bogus": 1}}, "bogus"),
        ({"program": {"type": "procstar", "argv": ["/bin/true"], "command": "x"}}, "command"),
        ({"program": {"type": "procstar-shell", "command": "x", "argv": ["/bin/true"]}}, "argv"),
        *(({"program": {"type": t}}, f"unknown program type: {t}") for t in ("No-Op", "bash", "PROCSTAR")),
        *(({"program": {"type": "procstar-shell", "command": c}}, "command") for c in (None, {}, ["x"])),
        *(({"program": {"type": "procstar", "argv": a}}, "argv") for a in (None, [], "/bin/true", {})),
        ({"program": {"type": "procstar-shell"}}, "command"),
        ({"program": {"type": "procstar"}}, "argv"),
        ({"program": {"type": "procstar-ecs"}}, "command"),
        ({"program": {"type": "procstar-ecs", "command": "x", "argv": ["x"]}}, "argv"),
        ({"program": {"type": "procstar-ecs", "command": "x", "group_id": "g"}}, "group_id"),
        ({"program": {"type": "procstar-shell", "command": "x", "timeout": {"signal": "INT"}}}, "duration"),
        ({"program": {"type": "procstar-shell", "command": "x", "stop": {"signal": "SIGFOO"}}}, "SIGFOO"),
    ],
)
def test_mistakes_are_named_before_anything_runs(server: Server, job: Any, said: str) -> None:
    assert said in refused(server, job)


def test_a_no_op_is_over_at_once(server: Server) -> None:
    run = server.post("/runs", {"job_id": "noop"})["runs"]
    (run_id,) = run
    assert run[run_id]["state"] == "success" and server.get(f"/runs/{run_id}/outputs") == []
    assert ended(server, type="no-op", success=False)["state"] == "failure"
    assert ended(server, type="no-op", duration=0.2)["meta"]["elapsed"] >= 0.2


# -- agents ----------------------------------------------------------------------------------------


def agents_port(server: Server) -> str:
    """Where agents connect that are not the server's own."""
    local = json.loads((server.directory / "apsis.db.agent.json").read_text())["port"]
    lines = [line for line in server.log().splitlines() if "agents may connect" in line]
    (port,) = {line.split("port=")[1].split()[0] for line in lines} - {str(local)}
    return port


def test_a_run_goes_to_one_agent_of_its_group(server: Server) -> None:
    early = start(server, type="procstar-shell", group_id="pair", command="echo $PPID")
    server.until(early, "starting")
    argv = [*server.program, "agent", "--agent", "--plain", "--agent-host", "127.0.0.1"]
    argv += ["--agent-port", agents_port(server), "--group-id", "pair"]
    agents = [subprocess.Popen(argv, env=environment()) for _ in range(2)]
    try:
        # It was starting for as long as there was no agent.
        assert server.until(early, *ENDS)["state"] == "success"
        while len(requests.get(server.url.replace("v1", "procstar/groups"), timeout=60).json()["pair"]) < 2:
            time.sleep(0.05)
        wanted = {"type": "procstar-shell", "group_id": "pair", "command": "echo $PPID; sleep 0.2"}
        runs = [start(server, **wanted) for _ in range(8)]
        parents = [printed(server, server.until(run_id, *ENDS)) for run_id in runs]
        assert {int(parent) for parent in parents} == {process.pid for process in agents}
        # One that drains gets no more.
        waits = [start(server, **wanted | {"command": "sleep 1"}) for _ in range(4)]
        for run_id in waits:
            server.until(run_id, "running", *ENDS)
        agents[0].send_signal(signal.SIGUSR1)
        connections = server.url.replace("v1", "procstar/connections")
        while not any(
            c["shutdown_state"] != "active" for c in requests.get(connections, timeout=60).json().values()
        ):
            if agents[0].poll() is not None:
                break
            time.sleep(0.05)
        for _ in range(4):
            assert printed(server, ended(server, **wanted)) == f"{agents[1].pid}\n"
    finally:
        for process in agents:
            process.send_signal(signal.SIGQUIT)
            process.wait(60)
    # The default group is the same by its name and without it; the server's own agent is in it.
    for group in ({}, {"group_id": "default"}):
        run = ended(server, type="procstar", argv=["/bin/true"], **group)
        assert run["state"] == "success" and run["program"]["group_id"] == "default"


# -- shells and executables ------------------------------------------------------------------------

STYLES = r"""
params: [name]
program:
  type: procstar-shell
  command: %s
"""
LITERAL = r"""|
    # A comment, and flow control.
    declare -A seen=([a]=1)
    for n in 1 2 3; do
      if (( n == 2 )); then continue; fi
      echo "$n {{ name }}"
    done
    false
    echo 'after "false"' | tr a-z A-Z
    [[ -v seen[a] ]] && exit 7
"""


def test_a_shell_program_is_a_text_that_a_new_bash_is_given_as_it_stands(server: Server) -> None:
    styles = {
        "plain": ("echo {{ name }} $((1 + 1))", "x y 2\n", 0),
        "single": ("'echo \"{{ name }}\"; echo it''s'", None, 2),
        "double": ("\"printf '%s\\\\n' {{ name }}\"", "x\ny\n", 0),
        "folded": (">\n    echo one\n    two\n    {{ name }}\n", "one two x y\n", 0),
        "literal": (LITERAL, '1 x y\n3 x y\nAFTER "FALSE"\n', 7),
    }
    for name, (text, _, _) in styles.items():
        server.write(f"styles/{name}", STYLES % text)
    reload = f"{server.url[:-3]}/control/reload_jobs"
    requests.post(reload, timeout=60).raise_for_status()
    for name, (_, output, code) in styles.items():
        run_id = server.schedule({"job_id": f"styles/{name}", "args": {"name": "x y"}})
        run = server.until(run_id, *ENDS)
        assert run["state"] == ("failure" if code else "success"), name
        assert run["meta"]["program"]["status"]["exit_code"] == code, name
        assert output is None or printed(server, run) == output, name
        assert run["program"]["argv"][:2] == ["/usr/bin/bash", "-c"]
    # A number is a text too. Each run has a shell of its own, no login shell, which goes on after errors.
    assert ended(server, type="procstar-shell", command=1)["meta"]["program"]["status"]["exit_code"] == 127
    probe = "shopt -q login_shell && echo login; echo $BASHPID $-; x=1"
    (first, second) = (printed(server, ended(server, type="procstar-shell", command=probe)) for _ in range(2))
    assert first.split()[0] != second.split()[0] and "e" not in first.split()[1] and "login" not in first


def test_a_program_without_a_shell_gets_each_argument_as_it_stands(server: Server) -> None:
    server.write(
        "vector",
        "params: [n]\nprogram:\n  type: procstar\n"
        "  argv: [/usr/bin/printf, '<%s>', a b, '$HOME *', '\"q\"', '{{ n }} {{ n }}', '', 5]\n",
    )
    requests.post(f"{server.url[:-3]}/control/reload_jobs", timeout=60).raise_for_status()
    run_id = server.schedule({"job_id": "vector", "args": {"n": "{{ 1 }}"}})
    run = server.until(run_id, *ENDS)
    assert printed(server, run) == '<a b><$HOME *><"q"><{{ 1 }} {{ 1 }}><><5>'
    # There is no search for it.
    run = ended(server, type="procstar", argv=["true"])
    assert run["state"] in ("failure", "error")
    assert "true" in server.messages(run["run_id"])[-1]


def test_a_program_runs_as_the_agents_user_and_knows_its_run(server: Server) -> None:
    user = getpass.getuser()
    run = ended(server, type="procstar-shell", command="id -un; echo $APSIS_RUN_ID")
    assert printed(server, run) == f"{user}\n{run['run_id']}\n"
    run = ended(server, type="procstar", argv=["/usr/bin/printenv", "APSIS_RUN_ID"])
    assert printed(server, run) == f"{run['run_id']}\n"


def test_a_timeout_is_a_signal_after_so_long_and_a_failure(server: Server) -> None:
    for duration in (300, "300", "5 min", "5m"):
        run = ended(server, type="procstar-shell", command="true", timeout={"duration": duration})
        assert run["program"]["timeout"] == {"duration": 300.0, "signal": "SIGTERM"}, duration
    trap = "trap 'echo told; exit 0' %s; echo ready; while true; do sleep 0.05; done"
    for name in ("SIGUSR1", "USR1", int(signal.SIGUSR1)):
        timeout = {"duration": 0.5, "signal": name}
        run = ended(server, type="procstar-shell", command=trap % "USR1", timeout=timeout)
        assert run["state"] == "failure" and printed(server, run) == "ready\ntold\n"
        assert server.messages(run["run_id"])[-1].endswith("(timeout after 0.5 s)")
    deaf = "trap '' TERM; while true; do sleep 0.05; done"
    run = ended(
        server,
        type="procstar-shell",
        command=deaf,
        timeout={"duration": 0.3},
        stop={"grace_period": 0.3},
    )
    assert run["state"] == "failure" and "SIGKILL" in server.messages(run["run_id"])[-1]


# -- stopping --------------------------------------------------------------------------------------


def stopped(server: Server, command: str, **keys: Any) -> tuple[dict[str, Any], list[str]]:
    """A run that was stopped once it had printed "ready", and its log."""
    run_id = start(server, type="procstar-shell", command=f"echo ready; {command}", **keys)
    server.until_printed(run_id, b"ready\n")
    assert server.post(f"/runs/{run_id}/stop")["runs"][run_id]["state"] == "stopping"
    run = server.until(run_id, *ENDS)
    return run, server.messages(run_id)


def test_a_stop_is_a_signal_then_patience_then_sigkill(server: Server) -> None:
    loop = "while true; do sleep 0.05; done"
    run, log = stopped(server, loop)
    assert "stop" not in run["program"]  # which means SIGTERM and a minute
    assert run["state"] == "failure" and "killed by SIGTERM" in log[-1]
    assert log.index("stopping") < log.index("sending SIGTERM")
    assert run["meta"]["program"]["stop"]["signals"] == ["SIGTERM"]
    for code, state in ((0, "success"), (3, "failure")):
        run, log = stopped(server, f"trap 'exit {code}' TERM; {loop}")
        assert run["state"] == state and run["meta"]["program"]["status"]["exit_code"] == code
    deaf = f"trap '' USR2; {loop}"
    run, log = stopped(server, deaf, stop={"signal": "SIGUSR2", "grace_period": "0.5s"})
    assert run["state"] == "failure" and "killed by SIGKILL" in log[-1]
    assert run["meta"]["program"]["stop"]["signals"] == ["SIGUSR2", "SIGKILL"]
    for code in (1, 255):
        assert ended(server, type="procstar-shell", command=f"exit {code}")["state"] == "failure"
    # A no-op can be stopped too, and is a success.
    run_id = start(server, type="no-op", duration=600)
    server.until(run_id, "running")
    server.post(f"/runs/{run_id}/stop")
    assert server.until(run_id, *ENDS)["state"] == "success"


def test_a_stop_time_stops_a_run(server: Server) -> None:
    program = {"type": "procstar-shell", "command": "sleep 600"}
    run_id = server.schedule({"job": {"program": program}, "times": {"stop": "+0.5s"}})
    run = server.until(run_id, *ENDS)
    assert run["state"] == "failure" and "killed by SIGTERM" in server.messages(run_id)[-1]
    assert set(run["times"]) >= {"stop", "stopping"}


# -- programs that work on the server --------------------------------------------------------------


def test_a_stop_of_what_works_on_the_server_ends_between_two_chunks(server: Server) -> None:
    for _ in range(3):
        ended(server, type="no-op")
    program = {"type": "archive", "age": 0, "count": 1000, "path": "stopped.db"}
    run_id = start(server, **program, chunk_size=1, chunk_sleep="10 min")
    server.until(run_id, "running")
    while not (server.directory / "stopped.db").exists() or not archived(server, "stopped.db"):
        assert server.run(run_id)["state"] == "running"
        time.sleep(0.05)
    server.post(f"/runs/{run_id}/stop")
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert len(archived(server, "stopped.db")) == 1


def archived(server: Server, name: str) -> list[str]:
    with closing(sqlite3.connect(server.directory / name)) as db:
        return [run_id for (run_id,) in db.execute("SELECT run_id FROM runs ORDER BY rowid")]


def test_statistics_are_kept_in_a_file_for_each_day(server: Server) -> None:
    while not (found := list(server.directory.glob("stats-20??-??-??"))):
        time.sleep(0.05)
    line = found[0].read_text().splitlines()[0]
    assert json.loads(line)["tasks"]["num_running"] >= 1
    server.write("days", NOOP)
    requests.post(f"{server.url[:-3]}/control/reload_jobs", timeout=60).raise_for_status()


def test_an_archive_goes_by_age_count_chunks_and_pauses(server: Server) -> None:
    ended(server, type="archive", age=0, count=10_000, path="before.db")
    waiting = server.schedule(
        {"job": {"program": {"type": "no-op"}, "condition": {"type": "const", "value": False}}}
    )
    ids = [server.schedule({"job_id": "archived"}) for _ in range(5)]
    young = ended(server, type="archive", age="14d", count=10_000, path="parts.db")
    assert young["state"] == "success" and young["meta"]["program"]["run count"] == 0
    program = {"type": "archive", "age": 0, "path": "parts.db"}
    parts = ended(server, **program, count=4, chunk_size=2, chunk_sleep=0.5)
    assert parts["state"] == "failure" and "raise count" in server.messages(parts["run_id"])[-1]
    chunks = parts["meta"]["program"]["run_ids"]
    assert [len(chunk) for chunk in chunks] == [2, 2] and parts["meta"]["elapsed"] >= 0.5
    rest = ended(server, **program, count=1000)["meta"]["program"]["run_ids"]
    assert len(rest) == 1 and {*ids} <= {*sum(chunks, []), *rest[0]}
    assert server.run(waiting)["state"] == "waiting"
    server.post(f"/runs/{waiting}/skip")


def test_a_daily_schedule_may_call_its_daytime_time(server: Server) -> None:
    (schedule,) = server.get("/jobs/nightly")["schedule"]
    assert schedule["daytime"] == ["01:30:00"] and schedule["tz"] == "UTC"
    (run, *_) = server.get("/runs", job_id="nightly", state="scheduled")["runs"].values()
    assert run["times"]["schedule"][11:] == "01:30:00.000+00:00"


def test_an_archive_is_an_sqlite_file_but_no_database(server: Server, tmp_path: Path) -> None:
    ended(server, type="no-op")
    ended(server, type="archive", age=0, count=10_000, path=str(tmp_path / "old.db"))
    with closing(sqlite3.connect(tmp_path / "old.db")) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {"runs", "run_history", "output"} <= tables and "clock" not in tables
        assert db.execute("SELECT count(*) FROM runs").fetchone()[0] > 0
    (tmp_path / "apsis.yaml").write_text("job_dir: jobs\ndatabase: {path: old.db}\n")
    (tmp_path / "jobs").mkdir()
    before = (tmp_path / "old.db").read_bytes()
    argv = [*server.program, "serve", "--config", str(tmp_path / "apsis.yaml"), "--port", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, env=os.environ)
    assert done.returncode == 1 and "old.db" in done.stderr and "archive" in done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / "old.db").read_bytes() == before
