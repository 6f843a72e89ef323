"""The table of program types, what job files may say, and the kinds that need no agent."""

from __future__ import annotations

import logging
import signal
from dataclasses import replace
from typing import Any

import pytest
import users_programs
from doubles import FakeHost
from hypothesis import given, settings
from hypothesis import strategies as st

from apsislib.clock import SimClock
from apsislib.config.keys import Config
from apsislib.errors import FieldError, Unavailable
from apsislib.runs import Finished, Placed, Remark, Run, Running, Update
from apsislib.states import State
from programs import Table, extension
from programs.base import Bound

TABLE = Table(Config())


def expand(text: str) -> str:
    return text.replace("{{ x }}", "7").replace("{{ sig }}", "HUP").replace("{{ nul }}", "a\0b")


def bound(**mapping: Any) -> Bound:
    return TABLE.parse(mapping).bind(expand)


# -- what job files may say ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "text", "keys"),
    [
        (None, "must be a mapping with a type", ()),
        ({}, "missing type", ()),
        ({"type": "shel"}, "unknown program type: shel .known: no-op, procstar, procstar-shell", ("type",)),
        ({"type": 3}, "unknown program type: 3", ("type",)),
        ({"type": "no.such.Thing"}, "unknown program type: no.such.Thing", ("type",)),
        ({"type": "no-op", "time": 3}, "unexpected keys: time", ("time",)),
        ({"type": "no-op", "duration": "3 weeks"}, "weeks", ("duration",)),
        ({"type": "no-op", "duration": -1}, "negative", ("duration",)),
        ({"type": "no-op", "success": "maybe"}, "true, false or null", ("success",)),
        ({"type": "procstar"}, "missing key: argv", ()),
        ({"type": "procstar", "argv": "ls -l"}, "must be a list, not a string", ("argv",)),
        ({"type": "procstar", "argv": []}, "argv is empty", ("argv",)),
        ({"type": "procstar", "argv": [""]}, "it is empty", ("argv", 0)),
        ({"type": "procstar", "argv": ["a", None]}, "argv item 1 must be a string, not null", ("argv", 1)),
        ({"type": "procstar", "argv": ["a", ["b"]]}, "item 1 must be a string, not a list", ("argv", 1)),
        ({"type": "procstar", "command": "x"}, "unexpected keys: command", ("command",)),
        ({"type": "procstar-shell", "command": None}, "must be a string, not null", ("command",)),
        ({"type": "procstar-shell", "command": " "}, "command is empty", ("command",)),
        ({"type": "procstar-shell", "command": "{{ x"}, "unexpected end", ("command",)),
        ({"type": "procstar-shell", "command": "x", "group_id": ""}, "group_id is empty", ("group_id",)),
        ({"type": "procstar-shell", "command": "x", "timeout": 300}, "duration: 300", ("timeout",)),
        ({"type": "procstar-shell", "command": "x", "timeout": {}}, "missing key: duration", ("timeout",)),
        (
            {"type": "procstar-shell", "command": "x", "timeout": {"duration": 3, "signal": "KILLIT"}},
            "not a signal: KILLIT",
            ("timeout", "signal"),
        ),
        (
            {"type": "procstar-shell", "command": "x", "stop": {"signal": 34}},
            "not a signal: 34",
            ("stop", "signal"),
        ),
        ({"type": "procstar-shell", "command": "x", "stop": {"grace": 1}}, "unexpected", ("stop", "grace")),
        ({"type": "procstar-shell", "command": "x", "stop": "15s"}, "must be a mapping", ("stop",)),
        (
            {"type": "procstar-shell", "command": "x", "resources": {"mem_max_gb": 0}},
            "above 0",
            ("resources", "mem_max_gb"),
        ),
        (
            {"type": "procstar-shell", "command": "x", "output": {"max_size": "1 PB"}},
            "such as 10 MB",
            ("output", "max_size"),
        ),
        (
            {"type": "procstar-shell", "command": "x", "output": {"on_max_size": "stop"}},
            "truncate or kill",
            ("output", "on_max_size"),
        ),
    ],
)
def test_mistakes_are_named_with_their_keys(mapping, text, keys):
    with pytest.raises(FieldError, match=text) as error:
        TABLE.parse(mapping)
    assert error.value.keys == keys


@pytest.mark.parametrize(
    ("mapping", "text", "keys"),
    [
        ({"type": "procstar", "argv": ["a", "{{ nul }}"]}, "NUL", ("argv", 1)),
        ({"type": "procstar", "argv": ["{{ x }}", "\ud800"]}, "surrogate", ("argv", 1)),
        ({"type": "procstar-shell", "command": "{{ nul }}"}, "NUL", ("command",)),
        (
            {"type": "procstar-shell", "command": "x", "timeout": {"duration": "{{ sig }}"}},
            "HUP",
            ("timeout", "duration"),
        ),
        ({"type": "no-op", "duration": "{{ sig }}"}, "HUP", ("duration",)),
    ],
)
def test_what_templates_make_is_checked_when_a_run_is_made(mapping, text, keys):
    with pytest.raises(FieldError, match=text) as error:
        TABLE.parse(mapping).bind(expand)
    assert error.value.keys == keys


def test_an_unbound_program_is_shown_as_it_was_written():
    shown = TABLE.parse(
        {
            "type": "procstar-shell",
            "command": "echo {{ x }}",
            "sudo_user": "app",
            "stop": {"signal": "SIGTERM", "grace_period": "15s"},
            "timeout": {"duration": 300},
            "resources": {"mem_max_gb": 2},
        }
    ).to_json()
    assert shown == {
        "type": "procstar-shell",
        "command": "echo {{ x }}",
        "group_id": "default",
        "sudo_user": "app",
        "stop": {"grace_period": "15s"},
        "timeout": {"duration": "300", "signal": "SIGTERM"},
        "resources": {"mem_max_gb": 2.0},
        "str": "echo {{ x }}",
    }
    assert TABLE.parse(shown).to_json() == shown
    shown = TABLE.parse({"type": "procstar", "argv": ["/bin/echo", "a b", 3]}).to_json()
    assert shown == {
        "type": "procstar",
        "argv": ["/bin/echo", "a b", "3"],
        "group_id": "default",
        "str": "/bin/echo 'a b' 3",
    }


def test_a_bound_program_has_the_form_that_databases_have_always_held():
    program = bound(
        type="procstar-shell",
        command="echo {{ x }}",
        group_id="g{{ x }}",
        stop={"signal": "SIGUSR2", "grace_period": "15s"},
        timeout={"duration": "5 min", "signal": "{{ sig }}"},
    )
    assert program.to_json() == {
        "type": "apsis.program.procstar.agent.BoundProcstarProgram",
        "argv": ["/usr/bin/bash", "-c", "echo 7"],
        "group_id": "g7",
        "stop": {"signal": 12, "grace_period": 15.0},
        "timeout": {"duration": 300.0, "signal": "SIGHUP"},
        "str": "/usr/bin/bash -c 'echo 7'",
    }
    limits = program.limits()
    assert (limits.timeout, limits.timeout_signal, limits.stop_signal, limits.grace) == (300.0, 1, 12, 15.0)
    assert limits.reconnect_timeout == 3600.0
    assert bound(type="no-op", duration=1.5).to_json() == {
        "type": "apsis.program.noop.BoundNoOpProgram",
        "duration": "1.5",
        "success": True,
        "str": "no-op for 1.5 s",
    }


@pytest.mark.parametrize("grace", [None, 0, 0.25, 15, "1.5 min"])
def test_grace_periods_survive_the_database(grace):
    program = bound(type="procstar-shell", command="x", stop={"grace_period": grace})
    again = TABLE.load(program.to_json())
    assert again.limits().grace == program.limits().grace
    assert again.to_json() == program.to_json()
    assert program.limits().grace == {None: None, "1.5 min": 90.0}.get(grace, grace)


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=100)
@given(
    st.lists(_TEXT, min_size=1, max_size=4).filter(lambda argv: argv[0]),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1e6),
    st.sampled_from([1, 2, 9, 12, 15]),
    st.none() | _TEXT.filter(bool),
)
def test_bound_programs_survive_the_database(argv, grace, after, signum, user):
    mapping: dict[str, Any] = {"type": "procstar", "argv": ["x"] * len(argv), "sudo_user": "u"}
    mapping |= {"stop": {"grace_period": grace, "signal": signum}}
    if after is not None:
        mapping["timeout"] = {"duration": after, "signal": signum}
    program = replace(TABLE.parse(mapping).bind(expand), argv=tuple(argv), sudo_user=user)
    assert TABLE.load(program.to_json()) == program
    assert TABLE.load({k: v for k, v in program.to_json().items() if k != "str"}) == program


def test_defaults_of_the_servers_file_apply_where_a_job_says_nothing():
    base = Config()
    agent = base.procstar.agent
    config = replace(
        base,
        program=replace(base.program, timeout=replace(base.program.timeout, duration=7.0, signal=2)),
        procstar=replace(
            base.procstar, agent=replace(agent, connection=replace(agent.connection, start_timeout=9.0))
        ),
    )
    limits = Table(config).parse({"type": "procstar", "argv": ["x"]}).bind(expand).limits()
    assert (limits.timeout, limits.timeout_signal, limits.start_timeout) == (7.0, 2, 9.0)
    own = {"type": "procstar", "argv": ["x"], "timeout": {"duration": 1}}
    limits = Table(config).parse(own).bind(expand).limits()
    assert (limits.timeout, limits.timeout_signal) == (1.0, signal.SIGTERM)


@pytest.mark.parametrize(
    ("value", "argv"),
    [
        ("echo hi", ["/usr/bin/bash", "-c", "echo hi"]),
        (["/bin/echo", "hi"], ["/bin/echo", "hi"]),
        ({"type": "shell", "command": "echo hi", "host": "h"}, ["/usr/bin/bash", "-c", "echo hi"]),
        ({"type": "program", "argv": ["/bin/echo"], "user": "app", "timeout": 5}, ["/bin/echo"]),
    ],
)
def test_forms_of_older_releases_are_read_with_a_warning(value, argv, caplog):
    caplog.set_level(logging.WARNING)
    program = TABLE.parse(value).bind(expand)
    json = program.to_json()
    assert json["argv"] == argv
    assert "deprecated" in caplog.text
    if "user" in value:
        assert json["sudo_user"] == "app"
        assert program.limits().timeout == 5.0


def test_a_stored_program_of_an_unknown_kind_is_kept_and_an_error_when_run():
    json = {"type": "apsis.program.gone.BoundThing", "colour": "red", "n": [1]}
    program = TABLE.load(json)
    assert program.to_json() == json
    host = FakeHost()
    host.add(Run("r1", "j", {}, State.STARTING))
    program.launch(host.runs["r1"], host)
    finished = host.of(Finished)[0]
    assert finished.state is State.ERROR
    assert "cannot run unavailable program type: apsis.program.gone.BoundThing" in str(finished.message)


@pytest.mark.parametrize(
    "json",
    [
        {"type": "apsis.program.procstar.agent.BoundProcstarProgram"},
        {"type": "apsis.program.procstar.agent.BoundProcstarProgram", "argv": []},
        {"type": "apsis.program.procstar.agent.BoundProcstarProgram", "argv": ["x"], "stop": {"signal": "?"}},
        {"type": "apsis.program.procstar.agent.BoundProcstarProgram", "argv": ["x"], "stop": 3},
        {},
    ],
)
def test_a_stored_program_that_cannot_be_read_is_kept_as_it_is(json):
    assert TABLE.load(json).to_json() == json


# -- no-op -----------------------------------------------------------------------------------------


def _no_op(**fields: Any) -> tuple[Bound, FakeHost]:
    host = FakeHost(clock=SimClock(wall=1000.0))
    host.add(Run("r1", "j", {}, State.STARTING))
    return bound(type="no-op", **fields), host


@pytest.mark.parametrize(
    ("success", "state", "message"),
    [
        (True, State.SUCCESS, None),
        (False, State.FAILURE, "failed"),
        (None, State.ERROR, "error"),
        (1, "success", None),
    ],
)
def test_a_no_op_is_over_at_once_as_it_was_told(success, state, message):
    program, host = _no_op(success=success)
    program.launch(host.runs["r1"], host)
    assert host.of(Running)[0].wake is None
    assert host.of(Finished) == [Finished(State(state), message)]


def test_a_no_op_takes_as_long_as_it_was_told_across_restarts():
    program, host = _no_op(duration="{{ x }}")
    program.launch(host.runs["r1"], host)
    assert host.of(Running)[0].wake == 7.0
    assert host.of(Finished) == []
    host.change("r1", times={"running": 1000.0})
    host.clock.advance(3.0)
    TABLE.load(program.to_json()).connect(host.runs["r1"], host)
    assert host.of(Running)[1].wake == 4.0
    host.clock.step(3600)
    host.change("r1", run_state={"stepped": 3600.0})
    TABLE.load(program.to_json()).connect(host.runs["r1"], host)
    assert host.of(Running)[2].wake == 4.0
    host.clock.advance(5.0)
    TABLE.load(program.to_json()).connect(host.runs["r1"], host)
    assert host.of(Finished) == [Finished(State.SUCCESS)]


def test_stopping_a_no_op_is_a_clean_end_and_other_signals_are_ignored():
    program, host = _no_op(duration=100, success=False)
    program.launch(host.runs["r1"], host)
    program.signal(host.runs["r1"], host, 10, False)
    assert host.of(Finished) == []
    program.signal(host.runs["r1"], host, 15, True)
    assert host.of(Finished) == [Finished(State.SUCCESS)]


# -- users' own classes ----------------------------------------------------------------------------


def _own(name: str, **keys: Any) -> tuple[Bound, FakeHost]:
    users_programs.LIVE.clear()
    program = TABLE.parse({"type": f"users_programs.{name}", **keys}).bind(expand)
    host = FakeHost(clock=SimClock())
    host.add(Run("r1", "j", {"colour": "red"}, State.STARTING))
    return program, host


def _go(program: Bound, host: FakeHost) -> None:
    program.launch(host.runs["r1"], host)
    host.wait(Placed)
    program.send(host.runs["r1"], host)


def test_a_users_program_runs_tells_and_ends():
    program, host = _own("Count", to="{{ x }}")
    assert program.to_json() == {
        "type": "users_programs.Count",
        "to": "7",
        "str": "users_programs.Count to=7",
    }
    _go(TABLE.load(program.to_json()), host)
    assert host.wait(Running).run_state == {"program": {"to": 7}}
    live = users_programs.LIVE[-1]
    assert live.names == {"colour": "red", "run_id": "r1", "job_id": "j"}
    live.steps.release(7)
    assert host.wait(Finished) == Finished(State.SUCCESS)
    assert bytes(host.outputs["r1"]) == b"1\n2\n3\n4\n5\n6\n7\n"
    assert host.of(Update)[-1].meta == {"at": 7}


def test_a_users_program_is_stopped_and_signalled():
    program, host = _own("Count", to=3)
    _go(program, host)
    host.wait(Running)
    live = users_programs.LIVE[-1]
    program.signal(host.runs["r1"], host, 12, False)
    host.until(lambda: live.signals == [12] and len(host.of(Update)) == 1)
    program.signal(host.runs["r1"], host, 15, True)
    assert host.wait(Finished) == Finished(State.FAILURE, "stopped at 1")


def test_a_users_program_goes_on_after_a_restart_if_it_can():
    program, host = _own("Count", to=3)
    run = host.change("r1", state=State.RUNNING, run_state={"program": {"to": 3}})
    program.connect(run, host)
    assert host.wait(Remark).message == "goes on to 3"
    users_programs.LIVE[-1].steps.release(3)
    assert host.wait(Finished) == Finished(State.SUCCESS)
    program, host = _own("Plain")
    program.connect(host.change("r1", state=State.RUNNING), host)
    assert "has no connect()" in str(host.wait(Finished).message)
    program, host = _own("Count", to=3)
    program.connect(host.runs["r1"], host)
    assert "it may have begun" in str(host.wait(Finished).message)


def test_a_users_program_is_run_and_goes_on_though_the_database_can_not_be_read_at_first(monkeypatch):
    monkeypatch.setattr(extension, "RETRY", 0.01)
    program, host = _own("Count", to=1)
    refusals = [Unavailable("no disk")] * 3

    def output_length(run_id, output_id):
        if refusals:
            raise refusals.pop()
        return len(host.outputs.get(run_id, b""))

    monkeypatch.setattr(host, "output_length", output_length)
    _go(program, host)
    host.wait(Running)
    users_programs.LIVE[-1].steps.release()
    assert host.wait(Finished) == Finished(State.SUCCESS) and len(refusals) == 3  # it did not ask
    program.connect(host.change("r1", state=State.RUNNING), host)
    host.until(lambda: any("goes on" in remark.message for remark in host.of(Remark)))
    users_programs.LIVE[-1].steps.release()
    host.wait(Finished, 2)
    assert not refusals and bytes(host.outputs["r1"]) == b"1\n1\n"


def test_the_least_class_suffices_and_an_exception_is_an_error_with_its_traceback():
    program, host = _own("Plain")
    _go(program, host)
    assert host.wait(Finished) == Finished(State.SUCCESS)
    assert len(host.of(Running)) == 1
    program.signal(host.runs["r1"], host, 15, True)
    assert "has no stop()" in host.wait(Remark).message
    program, host = _own("Broken")
    _go(program, host)
    finished = host.wait(Finished)
    assert (finished.state, finished.message) == (State.ERROR, "RuntimeError: out of luck")
    assert b"Traceback" in host.outputs["r1"]


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"type": "users_programs.Missing"}, "unknown program type: users_programs.Missing"),
        ({"type": "users_programs.NoProgram"}, "type users_programs.NoProgram not a program"),
        ({"type": "users_programs.Count", "to": "many"}, "invalid literal"),
        ({"type": "users_programs.Count", "to": "1", "too": 2}, "unexpected keys"),
        ({"type": "users_programs.Count", "to": "{{ x"}, "template|expected"),
    ],
)
def test_mistakes_in_users_programs_are_found_at_load(mapping, text):
    with pytest.raises(FieldError, match=text):
        TABLE.parse(mapping)


def test_users_classes_have_short_names_by_configuration():
    table = Table(replace(Config(), program_types={"count": "users_programs.Count"}))
    program = table.parse({"type": "count", "to": 2}).bind(expand)
    assert program.to_json()["type"] == "users_programs.Count"
    assert TABLE.load(program.to_json()).to_json() == program.to_json()
    with pytest.raises(
        FieldError,
        match="known: no-op, procstar, procstar-shell, procstar-ecs, stats, archive, purge, vacuum, count",
    ):
        table.parse({"type": "cuont"})
