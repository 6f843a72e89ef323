"""Peers that break every rule: a server under a malicious agent, and an agent under a malicious server."""

from __future__ import annotations

import copy
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from agent_peer import Agent, Link, Peer
from doubles import FakeHost, ended
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_agent import PROC, RawAgent
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from agent_server import AgentServer
from apsislib.clock import Deadline, WallClock
from apsislib.ports import Port
from apsislib.runs import Finished, Run
from apsislib.states import State
from programs import procstar
from programs.base import Settings

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CALM = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# -- what can be said ------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from(["p", "stdout", "running", "terminated", "error", "done", "Registered", 0, 1, -1, 15]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a message."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*path, key))
    return found


@st.composite
def altered(draw: st.DrawFn, messages: list[dict[str, Any]]) -> bytes:
    """One of `messages`, as it is or with some of its parts left out, replaced or added."""
    message = copy.deepcopy(draw(st.sampled_from(messages)))
    for _ in range(draw(st.integers(0, 3))):
        *above, key = draw(st.sampled_from(paths(message)))
        place: Any = message
        with suppress(LookupError, TypeError):
            for step in above:
                place = place[step]
            if draw(st.booleans()):
                place[key] = draw(VALUES)
            else:
                del place[key]
        if not message:
            break
    data: bytes = msgpack.packb(message)
    return data


def wire(data: bytes, opcode: Opcode = Opcode.BINARY, fin: bool = True, mask: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=mask, extensions=[])


@st.composite
def fragmented(draw: st.DrawFn, data: bytes) -> bytes:
    """A message in frames, perhaps with pings and pongs between them."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    sent = b""
    for at, piece in enumerate(pieces):
        last = at == len(pieces) - 1
        sent += wire(piece, Opcode.CONT if at else Opcode.BINARY, fin=last)
        if not last and draw(st.booleans()):
            sent += wire(draw(st.binary(max_size=125)), draw(st.sampled_from([Opcode.PING, Opcode.PONG])))
    return sent


BROKEN = st.sampled_from(
    [
        wire(b"x", mask=False),
        b"\xc2\x81\0\0\0\0x",  # a reserved bit
        wire(b"x", Opcode.CONT),
        wire(b"\xff\xfe", Opcode.TEXT),
        wire(b"text", Opcode.TEXT),
        wire(b"", Opcode.CLOSE),
        wire(struct.pack(">H", 1005), Opcode.CLOSE),
        wire(struct.pack(">H", 1000) + b"\xff", Opcode.CLOSE),
        wire(b"half", fin=False),
        b"\x8b\x80\0\0\0\0",  # an opcode that does not exist
        b"\x89\xfe\x00\x7e" + bytes(4) + b"x" * 126,  # a ping that is too long
        b"\x82\xff" + b"\xff" * 8 + bytes(4),  # a length beyond all
        b"\x82\xff" + (2**40).to_bytes(8, "big") + bytes(4) + b"\x87",  # a terabyte, of which one byte comes
        b"\x82\xfe\x00\x05" + bytes(4) + b"12345",  # a length written longer than need be
        b"\x82\x85\x01\x02",  # half a head, then silence
    ]
)
GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"\x91" * 1200,  # lists in lists
            b"\xdf\xff\xff\xff\xff",  # a map of four thousand million entries
            b"\xdd\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xc1",
            msgpack.packb([1, 2]),
            msgpack.packb({"type": 7}),
            msgpack.packb({"type": "ProcResult"}) * 2,
        ]
    ),
)

# -- to a server -----------------------------------------------------------------------------------

RES = ended(0, length=5)
FROM_AGENTS: list[dict[str, Any]] = [
    {"type": "ProcidList", "proc_ids": ["p", "q"]},
    {"type": "ProcResult", "proc_id": "p", "res": RES | {"state": "running", "status": None}},
    {"type": "ProcResult", "proc_id": "p", "res": RES},
    {"type": "ProcResult", "proc_id": "p", "res": RES | {"state": "error", "errors": ["no"]}},
    {
        "type": "ProcFdData",
        "proc_id": "p",
        "fd": "stdout",
        "start": 0,
        "stop": 5,
        "encoding": None,
        "data": b"12345",
    },
    {"type": "ProcDelete", "proc_id": "p"},
    {"type": "ProcUnknown", "proc_id": "p"},
    {
        "type": "RequestError",
        "msg": {"type": "ProcSignalRequest", "proc_id": "p", "signum": 15},
        "err": "no process",
    },
    {"type": "RequestError", "msg": {"type": "ProcStartRequest", "specs": {"p": {}}}, "err": "no"},
    {"type": "ShutDown", "shutdown_state": "idling"},
    {"type": "ShutDown", "shutdown_state": "done"},
    {
        "type": "Register",
        "conn": {"conn_id": "bad", "group_id": "bad", "restricted_exe": None},
        "proc": PROC,
        "proc_ids": ["p"],
        "access_token": "",
        "shutdown_state": "active",
    },
]


class Heard:
    """Watches a process of the agent that behaves."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._changed = threading.Condition()

    def result(self, res: Any) -> None:
        with self._changed:
            self._numbers.append(res["number"])
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: number in self._numbers, 60)

    def poll(self, now: float) -> float | None:
        return None

    def registered(self, listed: bool) -> None: ...
    def lost(self) -> None: ...


@pytest.fixture
def server() -> Iterator[AgentServer]:
    server = AgentServer([Port("127.0.0.1", 0)], WallClock())
    server.start()
    server.restored()
    yield server
    assert server.stop(Deadline(60)) == []


def attack(server: AgentServer, sent: bytes, sizes: list[int]) -> None:
    """Connect, say all that in pieces of these sizes, one after the other for ever, and leave."""
    with socket.create_connection(server.address, timeout=60) as sock, suppress(OSError):
        # All at once where it does not matter: the server may have ended the connection meanwhile.
        at = 0
        for index in range(len(sent)):
            size = sizes[index % len(sizes)] if at < 500 else len(sent)
            if at >= len(sent):
                break
            sock.sendall(sent[at : at + size])
            at += size
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def test_an_agent_that_breaks_every_rule_costs_nobody_else_anything(
    server: AgentServer, caplog: pytest.LogCaptureFixture
) -> None:
    good, heard = RawAgent(server.address, "good"), Heard()
    server.watch("g", "good", heard, rejoin=True)  # type: ignore[arg-type]
    program = procstar.parse({"argv": ["/bin/work"], "group_id": "bad"}, Settings(output_interval=0.01))
    bound = program.bind(lambda text: text)
    count, server_clock = 0, WallClock()

    said = st.one_of(
        altered(FROM_AGENTS).flatmap(fragmented), GARBAGE.flatmap(fragmented), BROKEN, st.binary(max_size=20)
    )

    @CALM
    @given(
        register=altered(FROM_AGENTS[-1:]) | st.just(msgpack.packb(FROM_AGENTS[-1])),
        deeds=st.lists(said, max_size=8),
        sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    )
    def attacked(register: bytes, deeds: list[bytes], sizes: list[int]) -> None:
        nonlocal count
        count += 1
        # A run whose process is at the bad agent, as far as the server knows.
        host = FakeHost(server, WallClock())
        run = host.add(Run("r1", "job", {}, State.STARTING, run_state={"proc_id": "p", "conn_id": "bad"}))
        bound.connect(run, host)
        attack(server, UPGRADE + wire(register) + b"".join(deeds), sizes)
        good.result("g", {"number": count})
        heard.wait(count)
        # It comes back and behaves: the run has its end, unless it has been told another.
        agent = RawAgent(server.address, "bad", group_id="bad", proc_ids=["p"])
        try:
            deadline = Deadline(20, server_clock)
            while not host.of(Finished):
                assert not deadline.passed(), host.reports
                try:
                    message = msgpack.unpackb(agent.ws.recv(timeout=0.01))
                except TimeoutError:
                    continue
                except ConnectionClosed:
                    # What it had said before was cut off, but read later than this: as real agents do.
                    agent.close()
                    agent = RawAgent(server.address, "bad", group_id="bad", proc_ids=["p"])
                    continue
                if message["type"] in ("ProcResultRequest", "ProcStartRequest", "ProcDeleteRequest"):
                    agent.result("p", ended(0, length=len(host.outputs.get("r1", b""))))
                elif message["type"] == "ProcFdDataRequest":
                    agent.data("p", message["start"], b"")
        finally:
            server.unwatch("p")
            agent.close()

    attacked()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors, errors


# -- to an agent -----------------------------------------------------------------------------------

CAPTURE = ["stdout", {"capture": {"mode": "tempfile", "encoding": None, "attached": False}}]
SPEC = {
    "argv": ["/bin/echo", "here"],
    "env": {"inherit": True, "vars": {"A": "b"}},
    "fds": [CAPTURE, ["stderr", {"dup": {"fd": 1}}], ["5", {"null": {"flags": "Default"}}]],
    "systemd_properties": {"scope": {"oom_policy": None}, "slice": {"memory_max": 10**9}},
}
MEMORY = {"argv": ["/bin/cat", "/proc/self/stat"], "fds": [["stdout", {"capture": {"mode": "memory"}}]]}
FROM_SERVERS: list[dict[str, Any]] = [
    {"type": "Registered"},
    {"type": "ProcStartRequest", "specs": {"p": SPEC}},
    {"type": "ProcStartRequest", "specs": {"q": MEMORY, "p": SPEC}},
    {
        "type": "ProcStartRequest",
        "specs": {
            "p": {"argv": ["/bin/echo"], "fds": [["stdout", "pipe-write"]]},
            "q": {
                "argv": ["/bin/cat"],
                "fds": [["stdin", {"pipe-read": {"proc_id": "p", "fd": "stdout"}}], CAPTURE],
            },
        },
    },
    {"type": "ProcidListRequest"},
    {"type": "ProcResultRequest", "proc_id": "p"},
    {"type": "ProcSignalRequest", "proc_id": "p", "signum": 15},
    {"type": "ProcFdDataRequest", "proc_id": "p", "fd": "stdout", "start": 0, "stop": None},
    {"type": "ProcFdDataRequest", "proc_id": "q", "fd": "stdout", "start": 2**40, "stop": 2**41},
    {"type": "ProcFdDataRequest", "proc_id": "p", "fd": "stdout", "start": 3, "stop": 1},
    {"type": "ProcDeleteRequest", "proc_id": "p"},
]


def test_an_agent_survives_whatever_a_server_asks(tmp_path: Path) -> None:
    peer = Peer()
    # In a directory of its own: an altered request may well make a file.
    agent = Agent.of(peer, "--connect-interval-start", "0.01", "--connect-interval-max", "0.02", cwd=tmp_path)
    link = peer.link()
    descriptors = Path(f"/proc/{agent.process.pid}/fd")

    @CALM
    @given(st.lists(altered(FROM_SERVERS) | GARBAGE, max_size=10))
    def asked(requests: list[bytes]) -> None:
        for request in requests:
            link.send_raw(request)
        link.send("ProcResultRequest", proc_id="nobody's")  # its answer comes after all others
        link.wait("ProcUnknown", proc_id="nobody's")
        link.forget()
        link.send("ProcidListRequest")
        for proc_id in link.wait("ProcidList")["proc_ids"]:
            clear(link, proc_id)

    def clear(link: Link, proc_id: str) -> None:
        link.send("ProcSignalRequest", proc_id=proc_id, signum=9)
        while link.result(proc_id)["status"] is None:
            pass
        link.delete(proc_id)

    try:
        # What it holds at rest, once everything that is made only once has been made.
        link.run("first", ["/bin/echo"])
        clear(link, "first")
        at_rest = len(os.listdir(descriptors))
        asked()
        assert agent.process.poll() is None
        link.run("last", ["/bin/echo"])
        clear(link, "last")
        assert len(os.listdir(descriptors)) == at_rest, "descriptors are left over"
    except BaseException:
        agent.process.kill()
        print(agent.end()[2])
        raise
    finally:
        agent.kill()
        peer.close()
