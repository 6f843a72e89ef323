"""Starting programs: what they are given, what is told of them, what they write."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest
from agent_peer import STDERR, STDOUT, Agent, Link, Peer
from test_wire import FD_DATA, REGISTERED, SENT_BY_SERVER

RES_KEYS = [
    "state", "errors", "pid", "proc_stat", "proc_statm", "cgroup_accounting", "times", "status", "rusage",
    "fds",
]  # fmt: skip
CAPTURE = {"capture": {"attached": False}}
NO_SUCH_FILE = "No such file or directory (os error 2)"


@pytest.fixture
def gates(tmp_path: Path) -> tuple[Path, Path]:
    """Two named pipes: a program that opens one for writing waits for the test to pass it, and vice versa."""
    gates = tmp_path / "one", tmp_path / "two"
    for gate in gates:
        os.mkfifo(gate)
    return gates


def go_through(gate: Path) -> None:
    with open(gate):
        pass


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def shared(peer: Peer) -> Iterator[Link]:
    env = {"HERE": "yes", "PROCSTAR_AGENT_TOKEN": "", "PROCSTAR_AGENT_HOST": "elsewhere"}
    agent = Agent.of(peer, env=env | {"PROCSTAR_AGENT_CERT": "/none", "PROCSTAR_AGENT_KEY": "/none"})
    yield peer.link()
    agent.kill()


@pytest.fixture
def link(shared: Link) -> Iterator[Link]:
    yield shared
    # Leave nothing behind: whatever a test held is killed and deleted.
    shared.send("ProcidListRequest")
    for proc_id in shared.wait("ProcidList")["proc_ids"]:
        if shared.result(proc_id)["state"] == "running":
            shared.send("ProcSignalRequest", proc_id=proc_id, signum=9)
            shared.final(proc_id)
        shared.delete(proc_id)
    shared._passed.clear()


def test_a_program_is_told_running_then_terminated(link: Link) -> None:
    link.start("p", ["/bin/sh", "-c", "echo hi; echo bye >&2; exit 3"])
    first, last = (link.wait("ProcResult", proc_id="p")["res"] for _ in range(2))
    assert first["state"] == "running" and first["status"] is None and first["times"]["stop"] is None
    assert last["state"] == "terminated" and last["errors"] == []
    assert last["status"] == {
        "status": 768, "exit_code": 3, "signum": None, "signal": None, "core_dump": False,
    }  # fmt: skip
    assert last["fds"] == {"stderr": None, "stdout": {"type": "detached", "length": 7, "encoding": "base64"}}
    assert link.output("p") == b"hi\nbye\n"


def test_a_result_has_every_key_in_order(link: Link) -> None:
    res = link.run("p", ["/bin/sh", "-c", "exit 0"])
    assert list(res) == RES_KEYS
    assert list(res["times"]) == ["start", "now", "stop", "elapsed"]
    assert res["proc_stat"]["state"] == "Z" and res["proc_stat"]["pid"] == res["pid"]
    assert res["proc_statm"] is None and res["cgroup_accounting"] is None
    start, stop = (datetime.fromisoformat(res["times"][name]) for name in ("start", "stop"))
    assert (stop - start).total_seconds() == pytest.approx(res["times"]["elapsed"], abs=0.05)
    assert abs(datetime.fromisoformat(res["proc_stat"]["starttime"]).timestamp() - start.timestamp()) < 1


@pytest.mark.parametrize(("argv", "code"), [("/bin/true", 0), ("/bin/false", 1)])
def test_true_is_true_and_false_is_false(link: Link, argv: str, code: int) -> None:
    assert link.run("p", [argv])["status"]["exit_code"] == code


def test_a_missing_executable_is_an_error_with_code_63(link: Link) -> None:
    res = link.run("p", ["/no/such"])
    assert res["state"] == "error" and res["status"]["exit_code"] == 63
    assert res["errors"] == [f"execve failed: /no/such: {NO_SUCH_FILE}"]


def test_a_program_is_not_searched_on_the_path(link: Link) -> None:
    assert link.run("p", ["true"])["errors"] == [f"execve failed: true: {NO_SUCH_FILE}"]


def test_a_file_that_is_not_executable_is_refused_by_name(link: Link, tmp_path: Path) -> None:
    file = tmp_path / "no-program"
    file.touch()
    assert link.run("p", [str(file)])["errors"] == [f"execve failed: {file}: Permission denied (os error 13)"]


def test_exe_runs_under_another_name(link: Link) -> None:
    link.run("p", ["my-name", "-c", "echo $0"], exe="/bin/sh")
    assert link.output("p") == b"my-name\n"


def test_a_program_that_itself_exits_with_63_is_no_error(link: Link) -> None:
    res = link.run("p", ["/bin/sh", "-c", "exit 63"])
    assert res["state"] == "terminated" and res["errors"] == []


def test_a_program_leads_its_own_session_with_signals_as_a_shell_gives_them(link: Link) -> None:
    script = "import os; print(os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid())"
    link.run("p", ["/bin/cat", "/proc/self/status"])
    masks = dict(line.split(b"\t")[:2] for line in link.output("p").splitlines() if line.startswith(b"Sig"))
    status = Path("/proc/self/status").read_text()
    # Python's own, SIGPIPE and SIGXFSZ, are none of the program's; others come from who started the tests.
    inherited = int(re.findall(r"SigIgn:\s*(\w+)", status)[0], 16) & ~(1 << 12 | 1 << 24)
    assert int(masks[b"SigBlk:"], 16) == 0 and int(masks[b"SigIgn:"], 16) & ~inherited == 0
    link.run("q", [sys.executable, "-c", script])
    assert link.output("q").startswith(b"True True")


def test_a_program_gets_only_descriptors_that_it_was_given(link: Link) -> None:
    link.run("p", ["/bin/ls", "/proc/self/fd"])
    # 0, 1, 2, and the directory that ls itself reads.
    assert link.output("p").split() == [b"0", b"1", b"2", b"3"]


def test_a_program_gets_the_limits_that_the_agent_was_started_with(link: Link) -> None:
    link.run("p", ["/bin/sh", "-c", "ulimit -n; ulimit -Hn"])
    here = subprocess.run(["/bin/sh", "-c", "ulimit -n; ulimit -Hn"], capture_output=True, check=True).stdout
    assert link.output("p") == here


# -- environment


def environment(link: Link, **env: Any) -> dict[str, str]:
    link.run("env", ["/usr/bin/env"], env=env)
    return dict(line.split("=", 1) for line in link.output("env").decode().splitlines())


def test_the_environment_is_inherited_but_for_what_is_secret(link: Link) -> None:
    env = environment(link)
    assert env["HERE"] == "yes" and env["PROCSTAR_AGENT_HOST"] == "elsewhere"
    assert not {"PROCSTAR_AGENT_TOKEN", "PROCSTAR_AGENT_CERT", "PROCSTAR_AGENT_KEY"} & env.keys()


def test_nothing_is_inherited_when_told_so(link: Link) -> None:
    assert environment(link, inherit=False, vars={"A": "1", "B": "x=y ü"}) == {"A": "1", "B": "x=y ü"}


def test_names_are_inherited_if_they_exist_and_are_no_secret(link: Link) -> None:
    names = ["HERE", "NOT_THERE", "PROCSTAR_AGENT_KEY"]
    assert environment(link, inherit=names) == {"HERE": "yes"}


def test_variables_are_set_and_unset_last(link: Link) -> None:
    env = environment(link, inherit=True, vars={"HERE": None, "PROCSTAR_AGENT_TOKEN": "mine"})
    assert "HERE" not in env and env["PROCSTAR_AGENT_TOKEN"] == "mine"


# -- descriptors


def test_stdin_is_a_file_or_nothing(link: Link, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from a file")
    link.run("p", ["/bin/cat"], [["stdin", {"file": {"path": str(tmp_path / "in")}}], STDOUT])
    assert link.output("p") == b"from a file"
    link.run("q", ["/bin/cat"], [["stdin", {"null": {}}], STDOUT])
    assert link.output("q") == b""


def test_files_are_opened_as_their_flags_say(link: Link, tmp_path: Path) -> None:
    file = tmp_path / "out"

    def echo(proc_id: str, flags: str, **more: Any) -> dict[str, Any]:
        out = ["1", {"file": {"path": str(file), "flags": flags, **more}}]
        return link.run(proc_id, ["/bin/echo", proc_id], [out])

    assert echo("append", "Append")["errors"] == [f"failed to set up fd 1: {NO_SUCH_FILE}"]
    assert echo("replace", "Replace")["errors"] == [f"failed to set up fd 1: {NO_SUCH_FILE}"]
    echo("create", "Create", mode=0o640)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640 and file.read_text() == "create\n"
    assert echo("again", "Create")["errors"] == ["failed to set up fd 1: File exists (os error 17)"]
    echo("more", "CreateAppend")
    assert file.read_text() == "create\nmore\n"
    echo("new", "Default")
    assert file.read_text() == "new\n"
    echo("x", "ReadWrite")
    assert file.read_text() == "x\n"


def test_a_descriptor_is_closed_and_a_second_closing_is_an_error(link: Link) -> None:
    link.run("p", ["/bin/ls", "/proc/self/fd"], [STDOUT, ["stderr", "close"], ["stdin", {"inherit": None}]])
    assert link.output("p").split() == [b"0", b"1", b"2"]  # 2 is the directory now
    res = link.run("q", ["/bin/true"], [["77", "close"]])
    assert res["state"] == "error" and res["errors"] == [
        "failed to set up fd 77: Bad file descriptor (os error 9)"
    ]


def test_the_agents_own_descriptors_do_not_exist_for_a_program(link: Link) -> None:
    for fd in range(3, 12):
        proc_id = f"p{fd}"
        errors = link.run(proc_id, ["/bin/true"], [["stdout", {"dup": {"fd": fd}}]])["errors"]
        assert errors == ["failed to set up fd 1: Bad file descriptor (os error 9)"], fd
    assert link.run("p", ["/bin/true"], [["stdout", {"dup": {"fd": -1}}]])["state"] == "error"


def test_the_programs_descriptors_may_sit_where_the_agents_do(link: Link) -> None:
    fds = [[str(fd), CAPTURE] for fd in range(3, 40)]
    script = "; ".join(f"echo {fd} >&{fd}" for fd in range(3, 10))
    res = link.run("p", ["/bin/bash", "-c", script], fds)
    assert res["errors"] == []
    assert [link.output("p", str(fd)) for fd in range(3, 10)] == [f"{fd}\n".encode() for fd in range(3, 10)]


def test_a_dup_goes_by_the_order_of_the_entries(link: Link) -> None:
    link.run("p", ["/bin/sh", "-c", "echo out; echo err >&2"], [STDOUT, STDERR])
    assert link.output("p") == b"out\nerr\n"
    fds = [["5", CAPTURE], ["stderr", {"dup": {"fd": 5}}], ["stdout", {"dup": {"fd": 2}}]]
    res = link.run("q", ["/bin/sh", "-c", "echo out; echo err >&2"], fds)
    assert list(res["fds"]) == ["5", "stderr", "stdout"] and link.output("q", "5") == b"out\nerr\n"


def test_several_failures_are_all_told(link: Link) -> None:
    fds = [["5", "close"], ["stdin", {"file": {"path": "/no/such"}}]]
    errors = link.run("p", ["/bin/true"], fds)["errors"]
    assert errors == [
        "failed to set up fd 5: Bad file descriptor (os error 9)",
        f"failed to set up fd 0: {NO_SUCH_FILE}",
    ]


def test_programs_of_one_request_are_joined_by_a_pipe(link: Link) -> None:
    link.send(
        "ProcStartRequest",
        specs={
            "reader": {"argv": ["/usr/bin/tr", "a-z", "A-Z"], "fds": [
                ["stdin", {"pipe-read": {"proc_id": "writer", "fd": "1"}}], STDOUT]},
            "writer": {"argv": ["/bin/echo", "through a pipe"], "fds": [["stdout", "pipe-write"]]},
        },
    )  # fmt: skip
    assert link.final("writer")["state"] == link.final("reader")["state"] == "terminated"
    assert link.output("reader") == b"THROUGH A PIPE\n"


def test_captures_come_attached_as_text_or_base64(link: Link) -> None:
    fds: list[Any] = [
        ["stdout", {"capture": {"encoding": "utf-8"}}],
        ["stderr", {"capture": {"mode": "memory"}}],
        ["7", {"capture": {"mode": "memory", "encoding": "utf-8", "attached": False}}],
    ]
    res = link.run("p", ["/bin/sh", "-c", r"printf 'a\377b'; printf err >&2; printf seven >&7"], fds)
    assert res["fds"] == {
        "7": {"type": "detached", "length": 5, "encoding": "utf-8"},
        "stderr": {"type": "data", "data": "ZXJy", "encoding": "base64"},
        "stdout": {"type": "text", "text": "a�b", "encoding": "utf-8"},
    }
    data = link.data("p", "7")
    assert data["data"] == b"seven" and data["encoding"] == "utf-8"


def test_output_to_memory_may_be_larger_than_a_pipe(link: Link) -> None:
    fds = [["stdout", {"capture": {"mode": "memory", "attached": False}}]]
    res = link.run("p", ["/usr/bin/head", "-c", "3000000", "/dev/zero"], fds)
    assert res["fds"]["stdout"]["length"] == 3_000_000
    assert link.output("p") == bytes(3_000_000)


# -- output


def test_ranges_of_output_are_clamped_to_what_exists(link: Link) -> None:
    for proc_id, mode in (("disk", "tempfile"), ("memory", "memory")):
        fds = [["stdout", {"capture": {"mode": mode, "attached": False}}]]
        link.run(proc_id, ["/bin/echo", "-n", "0123456789"], fds)
        for start, stop, want in [
            (0, None, b"0123456789"), (3, 5, b"34"), (10, None, b""), (11, None, b""), (8, 99, b"89"),
            (99, 100, b""), (5, 3, b""), (0, 0, b""), (2**62, 2**63 - 1, b""),
        ]:  # fmt: skip
            data = link.data(proc_id, "stdout", start, stop)
            assert (data["start"], data["data"]) == (start, want)
            assert data["stop"] == start + len(want)
        link.send("ProcFdDataRequest", proc_id=proc_id, fd="stdout", start=-1, stop=None)
        assert link.error() == "Invalid argument (os error 22)"
        assert link.output(proc_id) == b"0123456789"


def test_reading_in_the_midst_does_not_move_the_programs_place(link: Link, gates: tuple[Path, Path]) -> None:
    one, two = gates
    link.start("p", ["/bin/sh", "-c", f"printf AAAAAAAAAA; : > {one}; : > {two}; printf BBBB"])
    go_through(one)
    assert link.data("p", stop=4)["data"] == b"AAAA"
    go_through(two)
    link.final("p")
    assert link.output("p") == b"AAAAAAAAAABBBB"


def test_an_fd_is_echoed_as_it_was_spelt(link: Link) -> None:
    link.run("p", ["/bin/echo", "hi"])
    assert link.data("p", "1")["fd"] == "1" and link.data("p", "stdout")["fd"] == "stdout"


def test_a_background_descendant_goes_on_writing_after_the_end(link: Link, gates: tuple[Path, Path]) -> None:
    one, two = gates
    res = link.run("p", ["/bin/sh", "-c", f"echo first; (: > {one}; echo second; : > {two}) &"])
    assert res["fds"]["stdout"]["length"] == 6
    go_through(one)
    go_through(two)
    assert link.output("p") == b"first\nsecond\n"


def test_large_output_is_sent_in_fragments_with_little_memory(link: Link, peer: Peer) -> None:
    agent = Agent.of(peer)
    other = peer.link()
    size = 200_000_000
    other.run("big", ["/usr/bin/head", "-c", str(size), "/dev/zero"])
    assert len(other.output("big")) == size
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    agent.kill()
    assert peak < 45_000  # KiB


# -- requests that cannot be met


def test_fd_data_errors_have_their_texts(link: Link) -> None:
    link.run("p", ["/bin/true"])
    for proc_id, fd, err in [
        ("p", "nonsense", "bad fd: nonsense"),
        ("unknown", "nonsense", None),
        ("p", "5", "no fd: 5"),
        ("p", "stderr", "no fd data"),
    ]:
        link.send("ProcFdDataRequest", proc_id=proc_id, fd=fd, start=0, stop=None)
        if err is not None:
            assert link.error() == err
        else:
            assert link.error() == "bad fd: nonsense"


def test_unknown_programs_are_unknown_to_every_request(link: Link) -> None:
    for kind, fields in [
        ("ProcResultRequest", {}),
        ("ProcSignalRequest", {"signum": 15}),
        ("ProcFdDataRequest", {"fd": "stdout", "start": 0, "stop": None}),
        ("ProcDeleteRequest", {}),
    ]:
        link.send(kind, proc_id="zz9", **fields)
        assert link.receive() == {"type": "ProcUnknown", "proc_id": "zz9"}


def test_a_duplicate_proc_id_is_refused_and_nothing_of_the_request_started(link: Link) -> None:
    link.run("p", ["/bin/true"])
    link.send("ProcStartRequest", specs={"a": {"argv": ["/bin/true"]}, "p": {"argv": ["/bin/true"]}})
    error = link.wait("RequestError")
    assert error["err"] == "duplicate proc id: p"
    assert error["msg"]["type"] == "ProcStartRequest" and sorted(error["msg"]["specs"]) == ["a", "p"]
    link.send("ProcidListRequest")
    assert link.wait("ProcidList")["proc_ids"] == ["p"]


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"argv": []},
        {"argv": [""]},
        {"argv": ["/bin/echo", "a\0b"]},
        {"argv": ["/bin/echo", 7]},
        {"argv": ["/bin/true"], "env": {"vars": {"A": "x\0"}}},
        {"argv": ["/bin/true"], "env": {"vars": {"A=B": "x"}}},
        {"argv": ["/bin/true"], "cwd": "/"},
        {"argv": ["/bin/true"], "fds": {"stdout": "close"}},
        {"argv": ["/bin/true"], "systemd_properties": {"slice": {"memory_max": 1.5}}},
    ],
)
def test_a_specification_that_cannot_be_meant_is_refused_and_the_agent_lives(link: Link, spec: Any) -> None:
    link.send("ProcStartRequest", specs={"p": spec})
    error = link.wait("RequestError")
    assert error["err"].startswith("bad spec: p: ") and error["msg"]["specs"] == {"p": spec}
    assert link.run("q", ["/bin/true"])["state"] == "terminated"


def test_what_is_not_a_request_is_ignored(link: Link) -> None:
    for raw in (b"", b"\xc1garbage", b"\x80", b"\x93\x01\x02\x03", b"\x81\xa4type\xa4Nope"):
        link.send_raw(raw)
    link.send("ProcSignalRequest", proc_id="p", signum="15")
    link.send("ProcSignalRequest", proc_id="p", signum=2**40)
    link.send("ProcResultRequest")
    link.send("ProcStartRequest", specs=7)
    link.send("Registered")
    assert link.receive() == {"type": "RequestError", "msg": {"type": "Registered"}, "err": "unexpected"}


def test_unknown_keys_of_a_message_are_ignored(link: Link) -> None:
    link.send("ProcidListRequest", future=1)
    assert link.receive() == {"type": "ProcidList", "proc_ids": []}


def test_every_request_of_the_protocols_description_is_served_and_output_has_its_bytes(link: Link) -> None:
    requests = {json.loads(text)["type"]: json.loads(text) for text, _ in SENT_BY_SERVER}
    link.send_raw(REGISTERED)
    assert link.error() == "unexpected"
    link.send_raw(msgpack.packb(requests["ProcStartRequest"]))
    assert link.wait("ProcResult", proc_id="a1f0")["res"]["state"] == "running"
    link.send_raw(msgpack.packb(requests["ProcidListRequest"]))
    assert link.wait("ProcidList")["proc_ids"] == ["a1f0"]
    link.send_raw(msgpack.packb(requests["ProcResultRequest"]))
    assert link.wait("ProcResult", proc_id="a1f0")["res"]["pid"] > 0
    link.send_raw(msgpack.packb(requests["ProcFdDataRequest"]))
    assert link.wait("ProcFdData")["start"] == 4096
    link.send_raw(msgpack.packb(requests["ProcSignalRequest"]))
    assert link.final("a1f0")["status"]["signal"] == "SIGTERM"
    link.send_raw(msgpack.packb(requests["ProcDeleteRequest"]))
    link.wait("ProcDelete", proc_id="a1f0")
    link.run("p1", ["/usr/bin/printf", "hi\\nbye\\n"])
    link.data("p1")
    assert link.last == FD_DATA


def test_an_empty_start_request_starts_nothing(link: Link) -> None:
    link.send("ProcStartRequest", specs={})
    link.send("ProcidListRequest")
    assert link.receive() == {"type": "ProcidList", "proc_ids": []}


def test_limits_are_accepted_where_they_cannot_be_applied(link: Link) -> None:
    res = link.run("p", ["/bin/true"], systemd_properties={
        "scope": {"oom_policy": None, "runtime_max_usec": None, "runtime_randomized_extra_usec": None},
        "slice": {"memory_accounting": True, "memory_max": 10**9, "memory_swap_max": 0, "tasks_max": None},
    })  # fmt: skip
    assert res["state"] == "terminated"
    if res["cgroup_accounting"] is None:
        text = "not applied: the agent has no cgroup delegated to it"
        assert res["warnings"] == [f"memory_max=1000000000 {text}", f"memory_swap_max=0 {text}"]


def test_no_swap_alone_is_no_limit_that_would_be_missed(link: Link) -> None:
    """Other servers ask for it with every program."""
    properties = {"slice": {"memory_accounting": True, "memory_max": None, "memory_swap_max": 0}}
    assert list(link.run("p", ["/bin/true"], systemd_properties=properties)) == RES_KEYS


# -- signals and deletion


def test_a_signal_ends_a_program_and_is_named_in_its_result(link: Link) -> None:
    link.start("p", ["/bin/sleep", "60"])
    link.send("ProcSignalRequest", proc_id="p", signum=0)
    link.send("ProcSignalRequest", proc_id="p", signum=15)
    status = link.final("p")["status"]
    assert (status["exit_code"], status["signum"], status["signal"]) == (None, 15, "SIGTERM")
    link.send("ProcSignalRequest", proc_id="p", signum=15)
    assert link.error() == "no process"


def test_a_real_time_signal_harms_nobody(link: Link) -> None:
    link.start("p", ["/bin/sleep", "60"])
    link.send("ProcSignalRequest", proc_id="p", signum=signal.SIGRTMIN + 3)
    assert link.final("p")["status"]["signal"] == "SIGRTMIN+3"


def test_a_signal_that_does_not_exist_is_an_invalid_argument(link: Link) -> None:
    link.start("p", ["/bin/sleep", "60"])
    for signum in (-1, 999):
        link.send("ProcSignalRequest", proc_id="p", signum=signum)
        assert link.error() == "Invalid argument (os error 22)"


def test_a_signal_goes_to_the_program_and_not_to_its_children(link: Link, gates: tuple[Path, Path]) -> None:
    one, two = gates
    # The shell waits for its child, which waits for us, after the shell's death too.
    link.start("p", ["/bin/sh", "-c", f"(: > {one}; echo child lived; : > {two}) & wait"])
    link.wait("ProcResult", proc_id="p")
    while not [c for c in Path(f"/proc/{link.result('p')['pid']}/task").glob("*/children") if c.read_text()]:
        pass
    link.send("ProcSignalRequest", proc_id="p", signum=9)
    assert link.final("p")["status"]["signal"] == "SIGKILL"
    go_through(one)
    go_through(two)
    assert link.output("p") == b"child lived\n"


def test_a_running_program_is_not_deleted(link: Link) -> None:
    link.start("p", ["/bin/sleep", "60"])
    link.send("ProcDeleteRequest", proc_id="p")
    assert link.error() == "process running: p"
    link.send("ProcSignalRequest", proc_id="p", signum=9)
    link.final("p")
    link.send("ProcDeleteRequest", proc_id="p")
    link.send("ProcResultRequest", proc_id="p")
    assert [link.receive()["type"] for _ in range(2)] == ["ProcDelete", "ProcUnknown"]


def test_a_program_whose_name_holds_a_parenthesis_is_no_trouble(link: Link, tmp_path: Path) -> None:
    program = tmp_path / "a) b ("
    program.symlink_to("/bin/sleep")
    link.start("p", [str(program), "60"])
    link.wait("ProcResult", proc_id="p")
    while (stat := link.result("p")["proc_stat"])["comm"] == "python":
        pass  # it has not become the program yet
    assert stat["comm"] == "a) b (" and stat["state"] in "RSD"


# -- many


def test_64_programs_in_one_request_start_in_the_order_of_their_ids(link: Link) -> None:
    specs = {f"p{n:02}": {"argv": ["/bin/true"]} for n in reversed(range(64))}
    link.send("ProcStartRequest", specs=specs)
    results = [link.wait("ProcResult") for _ in range(128)]
    firsts = list(dict.fromkeys(result["proc_id"] for result in results))
    assert firsts == sorted(specs)
    states = {result["proc_id"]: result["res"]["state"] for result in results}
    assert set(states.values()) == {"terminated"}


def test_1000_programs_run_at_once(link: Link, tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    hold = os.open(fifo, os.O_RDWR)
    for n in range(1000):
        link.start(f"p{n}", ["/bin/sh", "-c", f"read line < {fifo}; echo {n}"])
    for n in range(1000):
        assert link.wait("ProcResult", proc_id=f"p{n}")["res"]["state"] == "running"
    os.write(hold, b"\n" * 1000)
    for n in range(1000):
        assert link.final(f"p{n}")["status"]["exit_code"] == 0
        assert link.output(f"p{n}") == f"{n}\n".encode()
    os.close(hold)
