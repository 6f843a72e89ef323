"""Specifications: what is refused, in which order, with which text; and what the rest comes to."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apsislib.agent.spec import (
    Captured,
    Close,
    Dup,
    Inherit,
    Limits,
    Open,
    PipeWrite,
    check,
    parse_fd,
    parse_specs,
)
from apsislib.errors import BadRequest


def parsed(**spec: Any) -> Any:
    return parse_specs({"p": {"argv": ["/bin/true"]} | spec})["p"]


def refusal(specs: Any, held: tuple[str, ...] = (), state: str = "active") -> str:
    with pytest.raises(BadRequest) as caught:
        check(parse_specs(specs), held, state)
    return str(caught.value)


def with_fds(*fds: Any) -> dict[str, Any]:
    return {"argv": ["/bin/true"], "fds": list(fds)}


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("inherit", Inherit()),
        ({"inherit": None}, Inherit()),
        ("close", Close()),
        ({"close": {}}, Close()),
        ("pipe-write", PipeWrite()),
        ({"null": {}}, Open(b"/dev/null", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)),
        ({"null": {"flags": "Read"}}, Open(b"/dev/null", os.O_RDONLY, 0o666)),
        (
            {"file": {"path": "/f", "flags": "Append", "mode": 438}},
            Open(b"/f", os.O_WRONLY | os.O_APPEND, 0o666),
        ),
        ({"file": {"path": b"/f"}}, Open(b"/f", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)),
        ({"dup": {"fd": 1}}, Dup(1)),
        ({"capture": {}}, Captured("tempfile", None, True)),
        (
            {"capture": {"mode": "memory", "encoding": "utf-8", "attached": False}},
            Captured("memory", "utf-8", False),
        ),
    ],
)
def test_every_kind_of_descriptor_is_understood(kind: Any, want: Any) -> None:
    assert parsed(fds=[["5", kind]]).fds == ((5, want),)


@pytest.mark.parametrize(
    "kind",
    ["null", "capture", "file", "dup", "pipe-read", "other", None, 7, [], {}, {"null": {}, "close": {}},
     {"close": 1}, {"dup": {}}, {"dup": {"fd": "1"}}, {"dup": {"fd": 1.0}}, {"dup": {"fd": True}},
     {"capture": {"mode": "disk"}}, {"capture": {"encoding": "latin-1"}}, {"capture": {"attached": None}},
     {"file": {}}, {"file": {"path": "/f", "flags": "read"}}, {"file": {"path": "/f", "mode": "438"}},
     {"pipe-read": {"proc_id": "w"}}],
)  # fmt: skip
def test_other_kinds_are_refused(kind: Any) -> None:
    assert refusal({"p": with_fds(["5", kind])}).startswith("bad spec: p: ")


@pytest.mark.parametrize(("name", "fd"), [("stdin", 0), ("stdout", 1), ("stderr", 2), ("1", 1), ("17", 17)])
def test_descriptors_have_names_and_numbers(name: str, fd: int) -> None:
    assert parse_fd(name) == fd


@pytest.mark.parametrize("name", ["", "-1", "+1", "1.0", "STDOUT", "stdout ", "２", "2147483648", "9" * 5000])
def test_a_bad_name_of_a_descriptor_is_said_in_the_agreed_words(name: str) -> None:
    assert refusal({"p": with_fds([name, "close"])}) == f"bad fd: {name}"


def test_refusals_come_in_the_agreed_order_and_words() -> None:
    twice = with_fds(["1", "close"], ["stdout", "inherit"])
    assert refusal({"p": twice}, held=("p",)) == "duplicate proc id: p"
    assert refusal({"p": twice}, state="idling") == "duplicate fd: stdout"
    assert refusal({"p": with_fds()}, state="idling") == "agent shutting down: idling"
    assert refusal({"p": with_fds()}, state="done") == "agent shutting down: done"


def test_each_pipe_needs_exactly_two_ends() -> None:
    def read(proc_id: str, fd: str) -> list[Any]:
        return ["stdin", {"pipe-read": {"proc_id": proc_id, "fd": fd}}]

    write = ["1", "pipe-write"]
    assert refusal({"r": with_fds(read("w", "stdout"))}) == "unmatched read pipe: w stdout"
    assert refusal({"w": with_fds(write)}) == "unmatched write pipe: w 1"
    two_readers = {"w": with_fds(write), "r": with_fds(read("w", "1")), "s": with_fds(read("w", "1"))}
    assert refusal(two_readers) == "unmatched read pipe: w 1"
    assert refusal({"r": with_fds(read("w", "out"))}) == "bad fd: out"
    check(parse_specs({"w": with_fds(write), "r": with_fds(read("w", "stdout"))}), (), "active")


def test_specs_are_sorted_by_proc_id() -> None:
    assert list(parse_specs({"b": with_fds(), "a": with_fds(), "a1": with_fds()})) == ["a", "a1", "b"]


def test_limits_are_taken_where_given() -> None:
    assert parsed(systemd_properties={"scope": None, "slice": {"memory_max": None}}).limits == Limits()
    limits = parsed(
        systemd_properties={"slice": {"memory_accounting": True, "memory_max": 10, "memory_swap_max": 0}}
    ).limits
    assert limits and limits.slice == {"memory_max": 10, "memory_swap_max": 0}


@pytest.mark.parametrize(
    "value",
    [None, [], {"slice": {"memory_max": -1}}, {"slice": {"memory_max": 2**64}}, {"slice": {"tasks_max": 1.5}},
     {"slice": {"memory_accounting": 1}}, {"scope": {"oom_policy": "die"}}, {"slice": {"cpu_max": 1}},
     {"unit": {}}],
)  # fmt: skip
def test_bad_limits_are_refused(value: Any) -> None:
    assert refusal({"p": {"argv": ["/bin/true"], "systemd_properties": value}}).startswith("bad spec: p: ")


def test_a_value_as_long_as_it_likes_makes_a_short_message() -> None:
    assert len(refusal({"p": {"argv": "x" * 100_000}})) < 200


any_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
KEYS = ["argv", "exe", "id", "env", "fds", "systemd_properties"]


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), any_value, max_size=4))
def test_whatever_is_asked_is_either_understood_or_refused_politely(spec: dict[str, Any]) -> None:
    try:
        specs = parse_specs({"p": spec})
        check(specs, (), "active")
    except BadRequest:
        return
    assert specs["p"].argv and specs["p"].environment({b"A": b"1"}) is not None
