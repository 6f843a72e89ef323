"""Agents that connect, come back, misbehave and leave, over real sockets."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from certificates import certificate
from raw_agent import TIMEOUT, RawAgent
from test_wire import FD_DATA, REGISTERED, SENT_BY_AGENT
from websockets.exceptions import InvalidMessage

import agent_server
from agent_server import AgentServer
from apsislib import registering, roster, wire
from apsislib.clock import Deadline, SimClock, WallClock
from apsislib.config.keys import Server, Tls
from apsislib.errors import BadRequest
from apsislib.ports import Port, ports
from apsislib.sockets import Strangers, strangers


class Recorder:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.due: float | None = None
        self._changed = threading.Condition()

    def _tell(self, *what: Any) -> None:
        with self._changed:
            self.told.append(what)
            self._changed.notify_all()

    def wait(self, *what: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what in self.told, TIMEOUT), (what, self.told)

    def registered(self, listed: bool) -> None:
        self._tell("registered", listed)

    def lost(self) -> None:
        self._tell("lost")

    def gone(self) -> None:
        self._tell("gone")

    def result(self, res: Any) -> None:
        self._tell("result", res)

    def head(self, head: wire.FdHead) -> None:
        self._tell("head", head.start)

    def data(self, piece: bytes) -> None:
        self._tell("data", len(piece))

    def end(self) -> None:
        self._tell("end")

    def error(self, msg: Any, err: str) -> None:
        self._tell("error", err)

    def unknown(self) -> None:
        self._tell("unknown")

    def deleted(self) -> None:
        self._tell("deleted")

    def poll(self, now: float) -> float | None:
        self._tell("poll")
        return self.due


class Faulty(Recorder):
    def result(self, res: Any) -> None:
        raise RuntimeError("a bug")


class Changes:
    """What the summary stream would be given."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self._changed = threading.Condition()

    def __call__(self, change: dict[str, Any]) -> None:
        with self._changed:
            self.seen.append(change)
            self._changed.notify_all()

    def wait(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(holds, self.seen)), TIMEOUT), self.seen
            return next(change for change in self.seen if holds(change))

    def connected(self, value: bool) -> None:
        self.wait(lambda c: "conn" in c and c["conn"]["info"]["stats"]["connected"] is value)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AgentServer]]:
    monkeypatch.setattr(agent_server, "REFUSED", 0.05)
    servers: list[AgentServer] = []

    def start(*listen: Port, **options: Any) -> AgentServer:
        server = AgentServer(listen or [Port("127.0.0.1", 0)], WallClock(), **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        assert server.stop(Deadline(60)) == []


# -- registration ----------------------------------------------------------------------------------


def test_an_agent_that_registers_is_shown_and_chosen(serve):
    server = serve()
    RawAgent(server.address, "A", group_id="batch")
    got = threading.Event()
    server.when_available("batch", got.set)
    assert got.wait(TIMEOUT)
    assert server.choose("batch") == "A"
    assert server.choose("default") is None
    record = server.connections()["A"]
    assert record["shutdown_state"] == "active"
    assert record["info"]["conn"] == {"conn_id": "A", "group_id": "batch", "restricted_exe": None}
    assert record["info"]["proc"]["hostname"] == "node7"
    assert record["info"]["socket"]["address"].endswith("127.0.0.1")
    assert record["info"]["stats"]["connected"] and record["info"]["stats"]["num_connections"] == 1
    assert [r["info"]["conn"]["conn_id"] for r in server.groups()["batch"]] == ["A"]


@pytest.mark.parametrize(
    "fields",
    [
        {"access_token": "wrong"},
        {"access_token": "s3cret", "conn": {"conn_id": "", "group_id": "g", "restricted_exe": None}},
        {"access_token": "s3cret", "conn": {"conn_id": "A", "group_id": "a\nb", "restricted_exe": None}},
        {"access_token": "s3cret", "shutdown_state": "asleep"},
        {"access_token": "s3cret", "proc_ids": [""]},
        {"access_token": "s3cret", "proc": 3},
    ],
)
def test_whoever_is_refused_is_told_nothing_before_the_close(serve, fields):
    server = serve(Port("127.0.0.1", 0, token="s3cret"))
    agent = RawAgent(server.address, register=False)
    agent.register(**fields)
    with pytest.raises(Exception) as closed:
        agent.ws.recv(timeout=TIMEOUT)
    assert closed.value.rcvd.code == 1000
    assert server.connections() == {}


@pytest.mark.parametrize(
    "data", [b"\xff\xff", msgpack.packb({"type": "ProcidList", "proc_ids": []}), "text", b""]
)
def test_a_first_message_that_is_no_register_ends_the_connection(serve, data):
    agent = RawAgent(serve().address, register=False)
    agent.send_raw(data)
    assert agent.closed() in (1000, 1003)


def test_the_token_is_demanded_on_its_port_only(serve):
    server = serve(Port("127.0.0.1", 0, token="x"), Port("127.0.0.1", 0, token="y"))
    first, second = server.addresses()
    RawAgent(first, "A", access_token="x")
    RawAgent(second, "B", access_token="y")
    wrong = RawAgent(second, "C", register=False)
    wrong.register(access_token="x")
    assert wrong.closed() == 1000
    assert sorted(server.connections()) == ["A", "B"]


def test_the_newest_connection_of_a_conn_id_wins_and_its_facts_are_shown(serve):
    server, watcher = serve(), Recorder()
    old = RawAgent(server.address, "A", proc_ids=["p"])
    assert server.watch("p", "A", watcher, rejoin=True)
    watcher.wait("registered", True)
    new = RawAgent(server.address, "A", proc={**_proc(), "pid": 999})
    assert old.closed() == 1000
    watcher.wait("registered", False)
    told = [w for w in watcher.told if w[0] in ("registered", "lost")]
    assert told == [("registered", True), ("lost",), ("registered", False)]
    stats = server.connections()["A"]["info"]["stats"]
    assert stats["connected"] and stats["num_connections"] == 2
    assert server.connections()["A"]["info"]["proc"]["pid"] == 999
    assert server.send("A", wire.proc_result_request("p"))
    assert new.wait("ProcResultRequest")["proc_id"] == "p"


def _proc() -> dict[str, Any]:
    from raw_agent import PROC

    return PROC


def test_a_conn_id_that_is_connected_cannot_appear_in_another_group(serve):
    server = serve()
    RawAgent(server.address, "A", group_id="one")
    other = RawAgent(server.address, "A", register=False)
    other.register(group_id="two")
    assert other.closed() == 1000
    assert server.connections()["A"]["info"]["conn"]["group_id"] == "one"


def test_an_agent_that_says_nothing_after_connecting_delays_no_other(serve):
    server = serve()
    silent = [RawAgent(server.address, register=False) for _ in range(5)]
    RawAgent(server.address, "A").close()
    assert "A" in server.connections()
    for agent in silent:
        agent.close()


def test_who_does_not_register_cannot_keep_agents_out(serve, monkeypatch):
    monkeypatch.setitem(agent_server.Listener.__init__.__kwdefaults__, "max_connections", 4)
    server = serve(Port("127.0.0.1", 0, token="t"))
    good = RawAgent(server.address, "good", access_token="t")
    idlers = [RawAgent(server.address, register=False) for _ in range(6)]
    late = RawAgent(server.address, "late", access_token="t")
    assert idlers[0].closed() == 1006
    assert set(server.connections()) == {"good", "late"}
    for agent in (good, late):
        agent.ws.ping().wait(TIMEOUT)
    assert all(c["info"]["stats"]["connected"] for c in server.connections().values())


def test_nothing_precedes_registered_and_nothing_but_messages_and_pings_follows(serve):
    server = serve(ping=0.02)
    agent = RawAgent(server.address, register=False)
    heard, more = bytearray(), threading.Condition()
    receive = agent.ws.protocol.receive_data

    def listen(data: bytes) -> None:
        with more:
            heard.extend(data)
            more.notify_all()
        receive(data)

    agent.ws.protocol.receive_data = listen
    with pytest.raises(TimeoutError):
        agent.ws.recv(timeout=0.3)
    assert heard == b""
    agent.register()
    agent.wait("Registered")
    agent.ws.ping(b"from the agent")
    with more:
        assert more.wait_for(lambda: heard.count(b"\x89") > 3 and b"from the agent" in heard, TIMEOUT)
        frames = _frames(bytes(heard))
    assert frames[0] == (2, wire.encode(wire.registered()))
    pongs = [data for opcode, data in frames if opcode == 10]
    assert pongs == [b"from the agent"]  # an agent of version 0.4.3 leaves over any other
    assert {opcode for opcode, _ in frames} == {2, 9, 10}


def test_every_message_of_the_protocols_description_is_taken(serve):
    said = [json.loads(text) for text, _ in SENT_BY_AGENT]
    server = serve(Port("127.0.0.1", 0, token="s3cret"))
    watchers = {proc_id: Recorder() for proc_id in ("a1f0", "zz9", "p1")}
    for proc_id, watcher in watchers.items():
        server.watch(proc_id, said[0]["conn"]["conn_id"], watcher, rejoin=True)
    agent = RawAgent(server.address, register=False)
    agent.send_raw(msgpack.packb(said[0]))
    assert agent.ws.recv(timeout=TIMEOUT) == REGISTERED
    agent.send_raw(FD_DATA)
    for message in said[1:]:
        agent.send_raw(msgpack.packb(message))
    for watcher in watchers.values():
        watcher.wait("gone")
    first, second, third = (watcher.told for watcher in watchers.values())
    assert first[0] == ("registered", True)
    news = [told[0] for told in first if told[0] not in ("registered", "poll")]
    assert news == ["result", "deleted", "error", "gone"]
    assert ("unknown",) in second
    assert [told for told in third if told[0] in ("head", "data", "end")] == [
        ("head", 0),
        ("data", 7),
        ("end",),
    ]


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    """Of a server, whole and short: opcode and content."""
    frames = []
    while data:
        assert data[0] & 0xF0 == 0x80 and data[1] < 126
        frames.append((data[0] & 15, data[2 : 2 + data[1]]))
        data = data[2 + data[1] :]
    return frames


def test_a_refused_agent_is_kept_for_a_while_before_it_may_try_again(serve, monkeypatch):
    server = serve(Port("127.0.0.1", 0, token="t"))
    monkeypatch.setattr(agent_server, "REFUSED", 0.5)
    agent = RawAgent(server.address, register=False)
    began = WallClock().monotonic()
    agent.register(access_token="u")
    assert agent.closed() == 1000
    assert WallClock().monotonic() - began > 0.4


def test_who_does_not_register_in_time_is_closed(serve, monkeypatch, caplog):
    monkeypatch.setattr(registering, "REGISTER", 0.2)
    assert RawAgent(serve().address, register=False).closed() == 1000
    assert "no Register within 0.2 s" in caplog.text


def test_a_wrong_token_takes_no_conn_id_over(serve):
    server, watcher = serve(Port("127.0.0.1", 0, token="t")), Recorder()
    mine = RawAgent(server.address, "A", access_token="t", proc_ids=["p"])
    server.watch("p", "A", watcher, rejoin=True)
    watcher.wait("registered", True)
    thief = RawAgent(server.address, "A", register=False)
    thief.register(access_token="u", proc_ids=["p"])
    assert thief.closed() == 1000
    assert server.send("A", wire.proc_result_request("p"))
    assert mine.wait("ProcResultRequest")["proc_id"] == "p"
    assert [w for w in watcher.told if w[0] != "poll"] == [("registered", True)]
    assert server.connections()["A"]["info"]["stats"]["num_connections"] == 1


def test_an_agent_whose_older_connection_is_stuck_is_answered_in_time(serve, monkeypatch, caplog):
    monkeypatch.setattr(agent_server, "EVICT", 0.3)
    stuck, entered, release = Recorder(), threading.Event(), threading.Event()

    def block(res: Any) -> None:
        entered.set()
        release.wait(TIMEOUT)

    stuck.result = block  # type: ignore[method-assign]
    server = serve()
    old = RawAgent(server.address, "A", proc_ids=["p"])
    server.watch("p", "A", stuck, rejoin=True)
    old.result("p", {"state": "running"})
    assert entered.wait(TIMEOUT)
    new = RawAgent(server.address, "A", register=False)
    new.register(proc_ids=["p"])
    assert new.closed() == 1000
    assert "does not end" in caplog.text
    release.set()
    stuck.wait("lost")
    RawAgent(server.address, "A", proc_ids=["p"])  # asserts that it is registered


# -- choosing --------------------------------------------------------------------------------------


def test_the_least_loaded_agent_is_chosen_and_a_draining_one_is_not(serve):
    changes = Changes()
    server = serve(on_change=changes)
    agents = {name: RawAgent(server.address, name) for name in ("A", "B", "C")}
    for name in agents:
        changes.wait(lambda c, name=name: c["conn"]["info"]["conn"]["conn_id"] == name)
    assert sorted(str(server.choose("default")) for _ in range(3)) == ["A", "B", "C"]
    server.drain("A")
    agents["B"].send("ShutDown", shutdown_state="idling")
    changes.wait(lambda c: c["conn"]["shutdown_state"] == "idling")
    assert {server.choose("default") for _ in range(5)} == {"C"}


def test_who_waits_for_a_group_is_called_once_when_an_agent_of_it_comes(serve):
    server = serve()
    got: list[str | None] = []
    came, other = threading.Event(), threading.Event()

    def callback() -> None:
        got.append(server.choose("late"))
        came.set()

    server.when_available("late", callback)
    server.when_available("never", other.set, lambda: False)
    server.tidy()
    RawAgent(server.address, "A", group_id="late")
    assert came.wait(TIMEOUT)
    RawAgent(server.address, "B", group_id="late")
    RawAgent(server.address, "C", group_id="never")
    assert got == ["A"]
    assert not other.is_set()


# -- processes -------------------------------------------------------------------------------------


def test_what_is_said_about_a_process_reaches_its_watcher_and_nobody_else(serve):
    server, mine, other = serve(), Recorder(), Recorder()
    agent = RawAgent(server.address)
    fates: list[bool] = []
    assert server.watch("p", "A", mine, wire.proc_start_request({"p": {"argv": ["/bin/true"]}}), fates.append)
    assert server.watch("q", "A", other, rejoin=True)
    assert agent.wait("ProcStartRequest")["specs"] == {"p": {"argv": ["/bin/true"]}}
    agent.result("p", {"state": "running"})
    agent.data("p", 0, b"hello")
    agent.send("RequestError", msg={"type": "ProcSignalRequest", "proc_id": "p"}, err="no process")
    agent.send("RequestError", msg={"type": "ProcStartRequest", "specs": {"p": {}}}, err="bad fd: x")
    agent.send("ProcUnknown", proc_id="p")
    agent.send("ProcDelete", proc_id="p")
    mine.wait("deleted")
    assert [w for w in mine.told if w[0] != "poll"] == [
        ("result", {"state": "running"}),
        ("head", 0),
        ("data", 5),
        ("end",),
        ("error", "no process"),
        ("error", "bad fd: x"),
        ("unknown",),
        ("deleted",),
    ]
    assert fates == [True]
    assert [w for w in other.told if w[0] != "poll"] == [("registered", False)]


def test_a_fresh_process_is_not_watched_at_an_agent_that_is_not_here(serve):
    server = serve()
    assert not server.watch("p", "A", Recorder(), wire.proc_start_request({"p": {}}), pytest.fail)
    assert not server.send("A", wire.proc_result_request("p"), pytest.fail)


def test_a_process_of_an_earlier_life_is_watched_until_its_agent_comes(serve):
    server, watcher = serve(), Recorder()
    assert not server.watch("p", "A", watcher, rejoin=True)
    assert server.connections() == {}
    RawAgent(server.address, proc_ids=["p"])
    watcher.wait("registered", True)


def test_large_output_arrives_in_pieces(serve):
    server, watcher = serve(), Recorder()
    agent = RawAgent(server.address)
    server.watch("p", "A", watcher, rejoin=True)
    agent.data("p", 0, bytes(20_000_000))
    watcher.wait("end")
    pieces = [w[1] for w in watcher.told if w[0] == "data"]
    assert sum(pieces) == 20_000_000
    assert max(pieces) <= wire.MAX_PIECE


def test_while_the_disk_is_behind_an_agent_is_not_read_on(serve):
    full = threading.Event()
    full.set()
    server, watcher = serve(output_full=full.is_set), Recorder()
    agent = RawAgent(server.address)
    server.watch("p", "A", watcher, rejoin=True)
    sender = threading.Thread(target=agent.data, args=("p", 0, bytes(50_000_000)))
    sender.start()
    watcher.wait("head", 0)
    sender.join(0.3)
    assert sender.is_alive()
    assert ("end",) not in watcher.told
    full.clear()
    watcher.wait("end")
    sender.join(TIMEOUT)


def test_a_watcher_with_a_bug_costs_only_its_own_message(serve, caplog):
    server, faulty, good = serve(), Faulty(), Recorder()
    agent = RawAgent(server.address)
    server.watch("p", "A", faulty, rejoin=True)
    server.watch("q", "A", good, rejoin=True)
    agent.result("p", {"state": "running"})
    agent.result("q", {"state": "running"})
    good.wait("result", {"state": "running"})
    assert "a bug" in caplog.text


def test_garbage_and_unknown_messages_are_survived(serve):
    server, watcher = serve(), Recorder()
    agent = RawAgent(server.address)
    server.watch("p", "A", watcher, rejoin=True)
    agent.send_raw(b"\xff\x00garbage")
    agent.send("Gossip", about="p")
    agent.register()
    agent.send("ProcResult", proc_id="p")
    agent.send("ProcResult", proc_id="nobody's", res={})
    agent.result("p", {"state": "running"})
    watcher.wait("result", {"state": "running"})


def test_fields_and_processes_that_are_not_known_cost_nothing(serve):
    server, watcher = serve(), Recorder()
    conn = {"conn_id": "A", "group_id": "default", "restricted_exe": None, "zone": "b"}
    agent = RawAgent(server.address, conn=conn, proc={**_proc(), "cpus": 4}, version="9.9")
    server.watch("p", "A", watcher, rejoin=True)
    for kind in ("ProcUnknown", "ProcUnknown", "ProcDelete", "ProcDelete"):
        agent.send(kind, proc_id="nobody's", extra=1)
    agent.data("nobody's", 0, b"lost")
    agent.send("RequestError", msg={"type": "ProcSignalRequest", "proc_id": "nobody's"}, err="no process")
    agent.send("RequestError", msg={}, err="?")
    agent.send("ProcResult", proc_id="p", res={"state": "running", "novel": [1]}, extra=1)
    agent.send("ProcDelete", proc_id="p", extra={})
    watcher.wait("deleted")
    assert ("result", {"state": "running", "novel": [1]}) in watcher.told
    assert not {"head", "error", "unknown", "lost"} & {w[0] for w in watcher.told}
    assert server.connections()["A"]["info"]["stats"]["num_connections"] == 1


def test_text_ends_the_connection_and_nothing_else(serve):
    server, watcher = serve(), Recorder()
    agent = RawAgent(server.address, proc_ids=["p"])
    server.watch("p", "A", watcher, rejoin=True)
    agent.send_raw("text")
    assert agent.closed() == 1003
    watcher.wait("lost")
    RawAgent(server.address, proc_ids=["p"]).result("p", {"state": "running"})
    watcher.wait("result", {"state": "running"})


def test_pongs_come_late_twice_or_for_no_ping(serve):
    server, watcher = serve(ping=0.05), Recorder()
    agent = RawAgent(server.address)
    server.watch("p", "A", watcher, rejoin=True)
    for data in (b"", b"", b"1234", b"1234"):
        agent.ws.pong(data)
    agent.result("p", {"state": "running"})
    watcher.wait("result", {"state": "running"})
    assert ("lost",) not in watcher.told


def test_polls_come_when_they_are_due(serve):
    server, watcher = serve(), Recorder()
    watcher.due = 0.0  # at once, again and again
    RawAgent(server.address)
    server.watch("p", "A", watcher, rejoin=True)
    with watcher._changed:
        assert watcher._changed.wait_for(lambda: len(watcher.told) > 5, TIMEOUT)
    server.unwatch("p")


# -- losing and leaving ----------------------------------------------------------------------------


def test_a_lost_connection_is_told_and_shown_and_the_agent_comes_back(serve):
    changes, watcher = Changes(), Recorder()
    server = serve(on_change=changes)
    agent = RawAgent(server.address)
    server.watch("p", "A", watcher, rejoin=True)
    agent.cut()
    watcher.wait("lost")
    changes.connected(False)
    assert server.choose("default") is None
    assert server.connections()["A"]["info"]["stats"]["last_disconnect_time"] is not None
    RawAgent(server.address, proc_ids=["p"])
    watcher.wait("registered", True)


def test_connections_that_came_went_and_were_refused_are_remembered_within_bounds(serve, monkeypatch):
    changes = Changes()
    server = serve(on_change=changes)
    agent = RawAgent(server.address)
    changes.connected(True)
    agent.send("ShutDown", shutdown_state="idling")
    changes.wait(lambda c: "conn" in c and c["conn"]["shutdown_state"] == "idling")
    agent.cut()
    changes.connected(False)
    refused = RawAgent(server.address, register=False)
    refused.register(access_token="wrong")
    refused.closed()
    events = [(e["event"], e["conn_id"], e["hostname"]) for e in server.history()]
    assert events == [
        ("refused", None, None),
        ("lost", "A", "node7"),
        ("idling", "A", "node7"),
        ("connected", "A", "node7"),
    ]
    assert "token" in server.history()[0]["reason"]
    assert server._history.maxlen == roster.REMEMBERED


def test_a_silent_agent_is_dropped_and_one_that_answers_pings_is_not(serve):
    watcher, other = Recorder(), Recorder()
    server = serve(ping=0.3, silence=3.0)  # a busy machine may stop either side for a second
    dead = RawAgent(server.address, "A")
    RawAgent(server.address, "B")  # its library answers pings
    server.watch("p", "A", watcher, rejoin=True)
    server.watch("q", "B", other, rejoin=True)
    dead.ws.protocol.receive_data = lambda data: None  # hears nothing, so answers nothing
    watcher.wait("lost")
    assert ("lost",) not in other.told
    assert server.connections()["B"]["info"]["stats"]["connected"]


def test_messages_for_an_agent_that_reads_nothing_are_known_to_be_unwritten_when_it_goes(serve):
    server, watcher = serve(), Recorder()
    agent = RawAgent(server.address)
    agent.ws.protocol.receive_data = lambda data: _forever()
    server.watch("p", "A", watcher, rejoin=True)
    fates: list[bool] = []
    spec = {"argv": ["x" * 1_000_000]}
    for number in range(40):
        assert server.send("A", wire.proc_start_request({str(number): spec}), fates.append)
    agent.cut()
    watcher.wait("lost")
    assert len(fates) == 40
    assert False in fates
    assert fates == sorted(fates, reverse=True)


def _forever() -> None:
    threading.Event().wait(1.0)


def test_done_with_open_processes_is_told_and_the_agent_forgotten(serve):
    changes, watcher = Changes(), Recorder()
    server = serve(on_change=changes)
    agent = RawAgent(server.address)
    server.watch("p", "A", watcher, rejoin=True)
    agent.send("ShutDown", shutdown_state="done")
    watcher.wait("gone")
    agent.cut()
    changes.wait(lambda c: c["type"] == "agent_conn_delete" and c["conn_id"] == "A")
    assert server.connections() == {}


def test_a_lost_agent_is_forgotten_in_time_unless_a_run_waits_for_it(serve):
    changes, watcher = Changes(), Recorder()
    server = serve(on_change=changes, reconnect_timeout=0.0)
    for name in ("A", "B"):
        agent = RawAgent(server.address, name)
        if name == "A":
            server.watch("p", "A", watcher, rejoin=True)
        agent.cut()
        changes.wait(lambda c, name=name: _is_lost(c, name))
    server.tidy()
    assert list(server.connections()) == ["A"]
    server.forget("p", "A")
    server.tidy()
    assert server.connections() == {}


def _is_lost(change: dict[str, Any], name: str) -> bool:
    info = change.get("conn", {}).get("info")
    return bool(info) and info["conn"]["conn_id"] == name and not info["stats"]["connected"]


def test_stopping_the_server_closes_agents_and_tells_no_run_that_its_agent_is_lost(serve):
    server, watcher = serve(), Recorder()
    agent = RawAgent(server.address)
    server.watch("p", "A", watcher, rejoin=True)
    watcher.wait("registered", False)
    closer = threading.Thread(target=agent.closed)
    closer.start()
    assert server.stop(Deadline(60)) == []
    closer.join(TIMEOUT)
    assert ("lost",) not in watcher.told


# -- what is left over -----------------------------------------------------------------------------


def test_a_finished_process_that_no_run_knows_is_deleted_only_after_all_runs_are_restored(serve, caplog):
    server = serve()
    agent = RawAgent(server.address, proc_ids=["ended", "going", "mine"])
    mine = Recorder()
    server.watch("mine", "A", mine, rejoin=True)
    agent.result("ended", {"state": "terminated"})  # unasked, and too early
    agent.result("mine", {})
    mine.wait("result", {})
    server.restored()
    assert agent.receive() == {"type": "ProcResultRequest", "proc_id": "ended"}
    assert agent.receive() == {"type": "ProcResultRequest", "proc_id": "going"}
    agent.result("going", {"state": "running", "pid": 17})
    agent.result("ended", {"state": "terminated"})
    assert agent.receive() == {"type": "ProcDeleteRequest", "proc_id": "ended"}
    assert "belongs to no live run: proc_id=going pid=17" in caplog.text
    agent.result("going", {"state": "terminated"})
    assert agent.receive() == {"type": "ProcDeleteRequest", "proc_id": "going"}


def test_forgetting_a_process_deletes_it_now_or_when_its_agent_is_back(serve):
    server, watcher = serve(), Recorder()
    server.restored()
    agent = RawAgent(server.address, proc_ids=["p", "q"])
    for name in ("p", "q"):
        server.watch(name, "A", watcher, rejoin=True)
    server.forget("p", "A")
    assert agent.wait("ProcDeleteRequest")["proc_id"] == "p"
    agent.cut()
    watcher.wait("lost")
    server.forget("q", "A")
    agent = RawAgent(server.address, proc_ids=["q"])
    assert agent.receive() == {"type": "ProcResultRequest", "proc_id": "q"}
    agent.result("q", {"state": "terminated"})
    assert agent.receive() == {"type": "ProcDeleteRequest", "proc_id": "q"}


# -- ports -----------------------------------------------------------------------------------------


def test_other_hosts_may_connect_only_with_certificate_and_token():
    cert = Path("/etc/x.crt")
    closed, notes = ports(Server())
    assert closed == [Port("127.0.0.1", 59789)]
    assert "access_token" in notes[0]
    assert ports(Server(access_token="t", tls=Tls(cert_path=cert))) == (
        [Port("*", 59789, "t", cert, Path("/etc/x.key"))],
        [],
    )
    with pytest.raises(BadRequest, match="10.0.0.1"):
        ports(Server(host="10.0.0.1", tls=Tls(cert_path=cert)))
    assert ports(Server(host="::1"))[0] == [Port("::1", 59789)]
    opened, notes = ports(Server(host="10.0.0.1", plain=True))
    assert opened[0].host == "10.0.0.1"
    assert len(notes) == 2


def test_agents_connect_by_tls_and_a_renewed_certificate_is_used(serve, tmp_path):
    cert = certificate(tmp_path, "x")
    key = cert.with_suffix(".key")
    server = serve(Port("127.0.0.1", 0, "t", cert, key))
    first = ssl.create_default_context(cafile=str(cert))
    RawAgent(server.address, "A", first, access_token="t").close()
    certificate(tmp_path, "x")
    server.reload_certificate()
    with pytest.raises(ssl.SSLError):
        RawAgent(server.address, "B", first, access_token="t")
    second = ssl.create_default_context(cafile=str(cert))
    RawAgent(server.address, "C", second, access_token="t").close()
    key.write_text("half a key")
    with pytest.raises(BadRequest, match="x.pem"):
        server.reload_certificate()
    RawAgent(server.address, "D", second, access_token="t").close()
    with pytest.raises((InvalidMessage, OSError)):
        RawAgent(server.address, "E")


def test_a_missing_certificate_is_named():
    with pytest.raises(BadRequest, match="/no/such.crt"):
        AgentServer([Port("127.0.0.1", 0, "t", Path("/no/such.crt"), None)], WallClock()).start()


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


# -- strangers -------------------------------------------------------------------------------------


def test_a_scanner_does_not_fill_the_log_nor_the_history(serve, caplog):
    server = serve()
    caplog.set_level(logging.INFO)
    for _ in range(30):
        with socket.create_connection(server.address, TIMEOUT) as scanner:
            scanner.sendall(b"GET \x1b[2J\nforged: all is well HTTP/1.0\r\n\r\n")
            while scanner.recv(1000):
                pass
    for _ in range(3):
        refused = RawAgent(server.address, register=False)
        refused.register(access_token="wrong")
        refused.closed()
    assert len(server.history()) == 0  # there were enough about this address already
    assert server.stop(Deadline(60)) == []
    said = [r.getMessage() for r in caplog.records if "127.0.0.1" in r.getMessage() and "may" not in r.msg]
    assert len(said) == strangers.EACH + 1
    assert all(text.isprintable() for text in said)
    assert said[-1].startswith("… and 23 more in the last minute, 23 of them from ")


def test_what_a_stranger_says_as_it_leaves_stays_in_its_line(serve, caplog):
    server = serve()
    caplog.set_level(logging.INFO)
    agent = RawAgent(server.address, register=False)
    agent.ws.close(1000, "bye\n2026-11-27T10:00:00 apsis I all is well")
    assert server.stop(Deadline(60)) == []
    [said] = [r.getMessage() for r in caplog.records if "left before it registered" in r.getMessage()]
    assert "\n" not in said and r"bye\n2026" in said


def test_lines_about_strangers_are_counted_by_address_and_by_the_minute(caplog):
    caplog.set_level(logging.INFO)
    clock = SimClock()
    port = Strangers(clock)
    for _ in range(1234):
        port.say(logging.INFO, "10.0.0.1", "%s is wrong", "it")
    assert len(caplog.records) == strangers.EACH
    assert port.say(logging.INFO, "10.0.0.2", "another")  # is not hushed by the first
    assert port.sum_up() is None  # the minute is not over
    clock.advance(strangers.PERIOD)
    assert port.sum_up() == "… and 1,224 more in the last minute, 1,224 of them from 10.0.0.1"
    assert port.say(logging.INFO, "10.0.0.1", "here again")
    for number in range(3000):  # as many addresses as an IPv6 network has
        port.say(logging.INFO, f"fd00::{number:x}", "x")
    assert len(port._lines) <= strangers.ADDRESSES + 1 and len(port._more) <= strangers.ADDRESSES + 1
    assert len(caplog.records) == strangers.EACH + 2 + strangers.ALL
    clock.advance(strangers.PERIOD)
    assert port.say(logging.INFO, "10.0.0.1", "a minute later")  # sums up first, though nobody asked
    assert "… and 2,901 more" in caplog.records[-2].getMessage()
