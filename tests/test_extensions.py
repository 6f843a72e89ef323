"""Users' own conditions and actions, and e-mail: in the kernel, and on a whole server."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import requests
from aiosmtpd.controller import Controller
from server import ENDS, ROOT, Server
from sim import Sim
from storing import a_run, opened, put

from apsislib import actions, conditions
from apsislib.conditions import HOLDS, Const, MaxRunning, Verdict
from apsislib.config.keys import Smtp
from apsislib.errors import FieldError
from apsislib.extensions import OwnCondition, check, parse_condition
from apsislib.outside import Outside
from apsislib.runs import Note, Output, Owe, Save
from apsislib.scheduler import Settings
from apsislib.states import State

FILE = OwnCondition("users_classes.FileExists", {"path": "/nowhere"})
FICKLE = OwnCondition("users_classes.Fickle", {})
NOT_YET = Verdict(False, "not yet")
NAMES = {"run_id": "r7", "job_id": "j", "count": "2"}


# -- parsing ---------------------------------------------------------------------------------------


def no_runs(*args: Any, **options: Any) -> list[Any]:
    return []


def bound(mapping: dict[str, Any], **types: str) -> Any:
    condition = parse_condition(mapping, types)
    return condition.bind(conditions.Binding(None, {}, "r1", lambda text: "/", None))  # type: ignore[arg-type]


def test_a_class_is_named_by_its_path_or_by_a_short_name() -> None:
    for kind in ("users_classes.FileExists", "file"):
        condition = parse_condition({"type": kind, "path": "/x", "enabled": "{{ a }}"}, {"file": FILE.path})
        assert condition == OwnCondition(FILE.path, {"path": "/x"}, conditions.Enabled("{{ a }}"))
        assert parse_condition(condition.to_json() | {"str": "..."}, {}) == condition
    assert actions.parse({"type": "w", "path": "a"}, {"w": "users_classes.Write"}).to_json() == {
        "type": "users_classes.Write",
        "path": "a",
        "str": "users_classes.Write path=a",
    }


def test_a_short_name_may_hide_a_built_in_kind() -> None:
    condition = parse_condition({"type": "const"}, {"const": "users_classes.Fickle"})
    assert condition == OwnCondition("users_classes.Fickle", {})


def test_templates_are_expanded_and_the_bound_condition_survives_the_database() -> None:
    cond = bound({"type": "users_classes.FileExists", "path": "{{ root }}"})
    assert cond == conditions.BoundOwn("users_classes.FileExists", {"path": "/"}, 0.1)
    assert conditions.load(cond.to_json()) == cond
    assert check(cond, {}, no_runs) == HOLDS
    assert bound({"type": "users_classes.Fickle"}).monotonic is False


@pytest.mark.parametrize(
    ("mapping", "text", "keys"),
    [
        ({"type": "users_classes.Missing"}, "has no attribute 'Missing'", ("type",)),
        (
            {"type": "users_classes.Write"},
            "type users_classes.Write not a condition: it has no check",
            ("type",),
        ),
        ({"type": "users_classes.FILE"}, "unknown condition type: users_classes.FILE", ("type",)),
        ({"type": "nowhere.Thing"}, "No module named 'nowhere'", ("type",)),
        ({"type": "users_classes.FileExists", "path": "a", "b": 1}, "unexpected keys: {'b': 1}", ()),
        ({"type": "users_classes.FileExists"}, "users_classes.FileExists: KeyError: 'path'", ()),
        (
            {"type": "fil"},
            "known: dependency, max_running, skip_duplicate, const, file, or a class",
            ("type",),
        ),
        ({"type": 3}, "unknown condition type: 3", ("type",)),
    ],
)
def test_mistakes_in_users_conditions_are_found_at_load(
    mapping: dict[str, Any], text: str, keys: tuple[str, ...]
) -> None:
    with pytest.raises(FieldError) as caught:
        parse_condition(mapping, {"file": "users_classes.FileExists"})
    assert text in caught.value.message and caught.value.keys == keys


@pytest.mark.parametrize(
    ("mapping", "text", "keys"),
    [
        (
            {"type": "users_classes.Fickle"},
            "type users_classes.Fickle not an action: it has no run()",
            ("type",),
        ),
        ({"type": "mail"}, "unknown action type: mail (known: schedule, email, own, or a class", ("type",)),
        ({"type": "email", "to": "a@b"}, "missing key: from", ()),
        ({"type": "email", "to": ["a@b", 3], "from": "c@d"}, "to must be a text: 3", ("to",)),
        ({"type": "email", "to": [], "from": "c@d"}, "to must be an address", ("to",)),
        ({"type": "email", "to": "a", "from": "b", "body": "c"}, "unexpected keys: body", ("body",)),
        ({"type": "own", "if": {"states": "done"}, "path": "p"}, "not a state: 'done'", ("if", "states")),
    ],
)
def test_mistakes_in_actions_are_found_at_load(
    mapping: dict[str, Any], text: str, keys: tuple[str, ...]
) -> None:
    with pytest.raises(FieldError) as caught:
        actions.parse(mapping, {"own": "users_classes.Write"})
    assert text in caught.value.message and caught.value.keys == keys


@pytest.mark.parametrize(
    ("path", "verdict"),
    [
        ("users_classes.FileExists", Verdict(False, "/nowhere is not there")),
        ("users_classes.Asks", Verdict(False, "users_classes.Asks says not yet")),
    ],
)
def test_a_condition_may_say_why_not_yet(path: str, verdict: Verdict) -> None:
    config = {"path": "/nowhere"} if path.endswith("Exists") else {}
    assert check(conditions.BoundOwn(path, config, 1.0), NAMES, no_runs) == verdict


def test_an_answer_that_means_nothing_is_named() -> None:
    with pytest.raises(Exception, match=r"Odd\.check\(\) answered 3; it can be True, False, a text"):
        check(conditions.BoundOwn("users_classes.Odd", {}, 1.0), NAMES, no_runs)


# -- the kernel ------------------------------------------------------------------------------------


def answer(sim: Sim, verdict: Verdict, output: str | None = None) -> None:
    """Answer the oldest question."""
    asked = sim.checks.pop(0)
    wall, boot = sim.clock.wall(), sim.clock.boot()
    sim.kernel.answer(asked.run.run_id, asked.index, verdict, wall, boot, output)
    sim.settle()


def test_a_condition_is_asked_off_the_lock_and_again_after_its_interval() -> None:
    sim = Sim()
    sim.add_job("j", conditions=(FILE,))
    run_id = sim.schedule("j")
    assert [(c.run.run_id, c.index) for c in sim.checks] == [(run_id, 0)]
    sim.run_for(60)
    assert len(sim.checks) == 1  # not before it has answered
    answer(sim, NOT_YET)
    assert sim.kernel.waiting(run_id)[0]["reason"] == "not yet"
    assert sim.checks == []
    sim.run_for(0.1)
    answer(sim, HOLDS)
    assert sim.state(run_id) is State.SUCCESS
    sim.run_for(60)
    assert sim.checks == []


def test_conditions_of_users_stand_in_order_with_others() -> None:
    sim = Sim()
    sim.add_job("j", conditions=(Const(True), FILE, Const(False)))
    run_id = sim.schedule("j")
    answer(sim, HOLDS)
    assert [row["holds"] for row in sim.kernel.waiting(run_id)] == [True, True, False]
    assert [m for m in sim.log[run_id] if "until" in m] == [
        "waiting until: const true",
        "waiting until: users_classes.FileExists path=/nowhere",
        "waiting until: const false",
    ]


def test_a_condition_can_end_the_run() -> None:
    sim = Sim()
    sim.add_job("j", conditions=(FILE,))
    run_id = sim.schedule("j")
    answer(sim, Verdict(False, "not on a Monday", move=State.SKIPPED))
    assert sim.state(run_id) is State.SKIPPED and sim.log[run_id][-1] == "not on a Monday"


def test_an_answer_that_comes_too_late_means_nothing() -> None:
    sim = Sim()
    sim.add_job("j", conditions=(FILE,))
    run_id = sim.schedule("j")
    sim.kernel.skip(run_id, sim.clock.wall())
    sim.commit()
    answer(sim, HOLDS)
    assert sim.state(run_id) is State.SKIPPED


def test_a_fickle_condition_is_asked_again_when_others_held_the_run_up() -> None:
    sim = Sim()
    sim.add_job("j", conditions=(FICKLE, MaxRunning()), program=None)
    sim.programs["j"].seconds = None
    first, second = sim.schedule("j"), sim.schedule("j")
    answer(sim, HOLDS)
    assert sim.state(first) is State.RUNNING
    answer(sim, HOLDS)
    assert sim.state(second) is State.WAITING
    sim.run_for(60)  # its answer is old by now
    while sim.checks:
        answer(sim, NOT_YET)
    sim.finish(first)
    assert sim.state(second) is State.WAITING
    sim.run_for(5)
    answer(sim, HOLDS)
    assert sim.state(second) is State.RUNNING


def test_two_slow_fickle_conditions_do_not_wait_for_each_other_for_ever() -> None:
    sim = Sim()
    sim.add_job("j", conditions=(FICKLE, FICKLE))
    run_id = sim.schedule("j")
    for _ in range(10):
        if sim.state(run_id) is State.SUCCESS:
            break
        sim.run_for(20)  # each takes longer to answer than its answer counts
        answer(sim, HOLDS)
    assert sim.state(run_id) is State.SUCCESS


def test_waiting_max_time_waits_a_little_for_an_answer_and_asks_once_more() -> None:
    sim = Sim(settings=Settings(max_waiting=30.0))
    sim.add_job("j", conditions=(FILE,))
    held, late, never = sim.schedule("j"), sim.schedule("j"), sim.schedule("j")
    sim.run_for(31)
    answer(sim, HOLDS)
    assert sim.state(held) is State.SUCCESS
    answer(sim, NOT_YET)
    assert sim.state(late) is State.ERROR
    assert sim.log[late][-1] == (
        "error: waiting for users_classes.FileExists path=/nowhere: timeout after 30 s"
    )
    sim.run_for(8)
    assert sim.state(never) is State.WAITING
    sim.run_for(2)
    assert sim.state(never) is State.ERROR


def test_after_a_restart_conditions_are_asked_anew() -> None:
    sim = Sim()
    sim.add_job("j", conditions=(FILE,))
    run_id = sim.schedule("j")
    answer(sim, NOT_YET)
    sim.crash()
    answer(sim, HOLDS)
    assert sim.state(run_id) is State.SUCCESS


# -- a whole server --------------------------------------------------------------------------------


class Inbox:
    """What an SMTP server is given."""

    def __init__(self) -> None:
        self.messages: Queue[tuple[list[str], EmailMessage]] = Queue()

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address == "moved@example.com":
            return "550 has left us"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if "refused@example.com" in envelope.rcpt_tos:
            return "550 no such user"
        self.messages.put((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))  # type: ignore[arg-type]
        return "250 OK"


@pytest.fixture(scope="module")
def inbox() -> Iterator[tuple[Inbox, int]]:
    inbox = Inbox()
    controller = Controller(inbox, hostname="127.0.0.1", port=0)
    # A Controller connects to its own port to see whether it works, so it has to be told which.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        controller.port = free.getsockname()[1]
    controller.start()
    try:
        yield inbox, controller.port
    finally:
        controller.stop()


CONFIG = """\
smtp: {{host: 127.0.0.1, port: {port}}}
condition_types: {{file: users_classes.FileExists}}
action_types: {{write: users_classes.Write}}
program_types: {{nothing: users_programs.Plain}}
schedule_types: {{odd: our_times.Odd}}
action:
- {{type: write, path: "{dir}/global-{{{{ run_id }}}}", if: {{states: failure}}}}
"""
TIMES = """
import sys


class Odd:
    @classmethod
    def from_config(cls, mapping):
        return cls()

    def after(self, start):
        yield start + 86000 - start % 86000


class Leaves(Odd):
    def after(self, start):
        yield start + 5000
        sys.exit(0)
"""
JOBS = {
    "first": "program: {type: no-op}\n",
    "file": "params: [name]\n"
    "condition: {type: file, path: '{{ name }}'}\nprogram: {type: nothing}\nschedule:\n"
    "  {type: odd, args: {name: x}}\n",
    "leaves": "program: {type: users_programs.Leaves}\n"
    "action: {type: users_classes.Leaves, if: {states: error}}\nschedule: {type: our_times.Leaves}\n",
    "leaving": "condition: {type: users_classes.Leaves}\nprogram: {type: no-op}\n",
    "asks": "params: [count]\ncondition: {type: users_classes.Asks}\nprogram: {type: no-op}\n",
    "fails": "condition: {type: users_classes.Fails}\nprogram: {type: no-op}\n",
    "writes": "params: [where, a]\nmetadata: {labels: [blue]}\n"
    "program: {type: procstar-shell, command: echo $((6 * 7))}\n"
    "action: {type: users_classes.Write, path: '{{ where }}', if: {states: success}}\n",
    "unlucky": "program: {type: no-op}\n"
    "action: {type: users_classes.Fails, if: {states: [running, success]}}\n",
    "broken": "program: {type: procstar-shell, command: exit 3}\n",
    "mails": "params: [to]\nmetadata: {labels: [blue]}\n"
    "program: {type: procstar-shell, command: echo out of luck; exit 3}\n"
    "action:\n- {type: email, to: ops@example.com, from: apsis@example.com, if: {states: failure}}\n"
    "- {type: email, to: [a@example.com, b@example.com], from: apsis@example.com, subject: 'for {{ to }}',\n"
    "   if: {states: failure}}\n",
    "partly": "program: {type: no-op}\n"
    "action: {type: email, to: [moved@example.com, c@example.com], from: a@example.com,\n"
    "  if: {states: success}}\n",
    "refused": "program: {type: no-op}\n"
    "action: {type: email, to: refused@example.com, from: a@example.com, if: {states: success}}\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, inbox: tuple[Inbox, int]) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("own")
    (directory / "modules").mkdir()
    (directory / "modules" / "our_times.py").write_text(TIMES)
    server = Server(directory, JOBS, CONFIG.format(port=inbox[1], dir=directory))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'tests'}:{directory / 'modules'}")
        with server.running():
            yield server


def until_logged(server: Server, run_id: str, text: str) -> list[str]:
    end = time.monotonic() + 60
    while True:
        messages = server.messages(run_id)
        if any(text in message for message in messages):
            return messages
        assert time.monotonic() < end, messages
        time.sleep(0.02)  # nobody is told of the end of an action


def test_classes_by_short_names_from_the_config_wait_and_run(server: Server) -> None:
    path = server.directory / "signal"
    run_id = server.schedule({"job_id": "file", "args": {"name": str(path)}})
    until_logged(server, run_id, "waiting until: users_classes.FileExists")
    end = time.monotonic() + 60
    while "is not there" not in str(server.get(f"/runs/{run_id}/waiting")):
        assert time.monotonic() < end
    (row,) = server.get(f"/runs/{run_id}/waiting")["waiting"]
    assert row["reason"] == f"{path} is not there" and not row["holds"] and row["since"]
    path.touch()
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert any(
        run["expected"] for run in server.get("/runs", job_id="file")["runs"].values() if "expected" in run
    )


def test_a_condition_sees_other_runs_and_may_skip_its_own(server: Server) -> None:
    run_id = server.schedule({"job_id": "asks", "args": {"count": "2"}})
    server.schedule({"job_id": "first"})
    last = server.schedule({"job_id": "first"})
    assert server.until(run_id, *ENDS)["state"] == "skipped"
    assert server.messages(run_id)[-1] == f"{run_id} has seen {last} success"


def test_a_condition_that_raises_is_an_error_of_its_run(server: Server) -> None:
    run_id = server.schedule({"job_id": "fails"})
    assert server.until(run_id, *ENDS)["state"] == "error"
    assert server.messages(run_id)[-1] == "error: RuntimeError: out of luck"
    (output,) = server.get(f"/runs/{run_id}/outputs")
    assert output["output_id"] == "traceback"


def test_an_action_is_given_the_run_as_the_transition_left_it(server: Server) -> None:
    path = server.directory / "written"
    run_id = server.schedule({"job_id": "writes", "args": {"where": str(path), "a": "1"}})
    messages = until_logged(server, run_id, "action: wrote written")
    assert messages[-1] == "action: wrote written"
    lines = path.read_text().splitlines()
    assert lines[0] == f"{run_id} writes {{'a': '1', 'where': '{path}'}} success"
    assert lines[1].startswith("['blue'] ['running', 'schedule', 'scheduled', 'starting', 'success'")
    assert lines[2].endswith("BoundProcstarProgram writes")
    # In between, on a slow machine: that the server stood still just then, that the run waited for an agent,
    # and that either made it late.
    told = r"b'42\\n' \['scheduled: now', .*'starting', .*'running', 'success'\]"
    assert re.fullmatch(told, lines[3]), lines[3]


def test_an_actions_failure_is_in_the_log_and_changes_nothing(server: Server) -> None:
    run_id = server.schedule({"job_id": "unlucky"})
    assert server.until(run_id, *ENDS)["state"] == "success"
    end = time.monotonic() + 60
    while server.messages(run_id).count("error: action: out of luck") < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert server.run(run_id)["state"] == "success"


def test_a_class_that_calls_sys_exit_ends_its_run_and_neither_thread_nor_server(server: Server) -> None:
    run_id = server.schedule({"job_id": "leaves"})
    messages = until_logged(server, run_id, "error: action: it called sys.exit('no more')")
    assert "error: RuntimeError: it called sys.exit(3)" in messages
    assert server.until(server.schedule({"job_id": "leaving"}), *ENDS)["state"] == "error"
    assert "a schedule of job leaves ends, as it failed: RuntimeError: it called sys.exit(0)" in server.log()


def test_a_module_that_calls_sys_exit_is_an_error_of_the_job_that_names_it(server: Server) -> None:
    (server.directory / "modules" / "a_script.py").write_text("import sys\nsys.exit(0)\n")
    for line in (
        "schedule: {type: a_script.Some}\nprogram: {type: no-op}",
        "program: {type: a_script.Some}",
        "condition: {type: a_script.Some}\nprogram: {type: no-op}",
    ):
        server.write("script", line + "\n")
        found = server.command("check-jobs", str(server.jobs), PYTHONPATH=os.environ["PYTHONPATH"])
        assert found.returncode == 1 and "it called sys.exit(0)" in found.stdout
    (server.jobs / "script.yaml").unlink()


def test_an_action_of_the_servers_file_follows_every_run(server: Server) -> None:
    run_id = server.schedule({"job_id": "broken"})
    until_logged(server, run_id, "action: wrote global")
    assert (server.directory / f"global-{run_id}").read_text().startswith(f"{run_id} broken {{}} failure")


def test_email_says_what_an_operator_asks_first(server: Server, inbox: tuple[Inbox, int]) -> None:
    run_id = server.schedule({"job_id": "mails", "args": {"to": "you"}})
    found = sorted((inbox[0].messages.get(timeout=60) for _ in range(2)), key=lambda m: -len(m[0]))
    assert found[0][0] == ["a@example.com", "b@example.com"] and found[0][1]["Subject"] == "for you"
    to, message = found[1]
    assert to == ["ops@example.com"] and message["From"] == "apsis@example.com"
    assert message["Subject"] == f"{run_id} mails(to=you): failure"
    text = message.get_content()
    for line in ("state: failure", "labels: blue", "out of luck", "failure: exit"):
        assert line in text, text
    until_logged(server, run_id, "action sent e-mail to ops@example.com")


def test_a_mail_server_that_refuses_is_said_in_the_log(server: Server) -> None:
    run_id = server.schedule({"job_id": "refused"})
    messages = until_logged(server, run_id, "error: action")
    assert "no such user" in messages[-1]
    assert server.run(run_id)["state"] == "success"


def test_of_several_addresses_those_that_are_refused_are_said_in_the_log(
    server: Server, inbox: tuple[Inbox, int]
) -> None:
    run_id = server.schedule({"job_id": "partly"})
    messages = until_logged(server, run_id, "action")
    assert inbox[0].messages.get(timeout=60)[0] == ["c@example.com"]
    assert messages[-1] == (
        "error: action: sent e-mail to c@example.com, but the mail server refused moved@example.com:"
        " 550 has left us"
    )


def test_an_output_that_is_damaged_keeps_no_email_from_being_sent(
    tmp_path: Path, inbox: tuple[Inbox, int]
) -> None:
    run = a_run(1, state=State.FAILURE)
    with opened(tmp_path / "apsis.db") as (store, _):
        put(store, Save(run), Note("r1", 1e9, "failure: exit 3"), Output("r1", b"out of luck\n" * 100))
        with closing(sqlite3.connect(store.path)) as db, db:
            db.execute("UPDATE chunks SET data = x'00'")
        outside = Outside(
            store, Smtp(host="127.0.0.1", port=inbox[1]), lambda name: None, lambda job_id: None, lambda j: ()
        )
        action = {"type": "email", "to": ["ops@example.com"], "from": "apsis@example.com"}
        said = outside.act(Owe("r1/0/failure", run, action))
    assert said == "action sent e-mail to ops@example.com"
    text = inbox[0].messages.get(timeout=60)[1].get_content()
    assert "failure: exit 3" in text and "output of r1 is damaged at byte 0" in text


def test_a_reload_knows_the_same_classes(server: Server) -> None:
    url = server.url.removesuffix("/v1") + "/control/reload_jobs"
    answer = requests.post(url, timeout=60)
    assert answer.status_code == 200 and answer.json()["changed"] == [], answer.text
    run_id = server.schedule({"job_id": "file", "args": {"name": str(server.directory)}})
    assert server.until(run_id, *ENDS)["state"] == "success"


def test_what_is_owed_when_the_server_is_killed_is_done_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = (
        "import os, time\n"
        "class Slow:\n"
        "    @classmethod\n"
        "    def from_config(cls, mapping): return cls()\n"
        "    def run(self, snapshot):\n"
        f"        with open({str(tmp_path / 'began')!r}, 'a') as file: file.write(snapshot.state + '\\n')\n"
        f"        while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
    )
    (tmp_path / "slow_action.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = "program: {type: no-op}\naction: {type: slow_action.Slow, if: {states: success}}\n"
    server = Server(
        tmp_path, {"slow": job, "next": JOBS["first"] + "successors: first\n", "first": JOBS["first"]}
    )
    with server.running():
        run_id = server.schedule({"job_id": "slow"})
        assert server.until(run_id, *ENDS)["state"] == "success"
        end = time.monotonic() + 60
        while not (tmp_path / "began").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        # A class that blocks does not delay what actions schedule.
        source = server.schedule({"job_id": "next"})
        until_logged(server, source, "action scheduling first")
        server.kill()
        (tmp_path / "go").touch()
        server.start()
        while (tmp_path / "began").read_text() != "success\nsuccess\n":
            assert time.monotonic() < end
            time.sleep(0.01)
        assert server.end(signal.SIGTERM) == 0
        server.start()
    assert (tmp_path / "began").read_text() == "success\nsuccess\n"
