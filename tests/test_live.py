"""Live streams, followed by an independent client (websockets) and by sockets that do not read."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import contract
import pytest
from installation import AGENT, PROGRAM, SLOW, Installation, every
from server import PROGRAM as APSIS
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from apsislib.clock import Deadline
from apsislib.runs import Note

GONE = {"type": "agent_conn_delete", "conn_id": "x"}
JOBS = {
    "noop": PROGRAM,
    "slow": SLOW,
    "every": "",  # has runs ahead
}


@pytest.fixture(autouse=True)
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JOBS, "every", every(600) + PROGRAM)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Installation]:
    site = Installation(tmp_path, JOBS, connections=lambda: {"c1": AGENT}).start()
    yield site
    site.stop()


def follow(site: Installation, path: str, **options: Any) -> ClientConnection:
    return connect(site.ws + path, max_size=None, compression=None, proxy=None, **options)


def receive(ws: ClientConnection) -> Any:
    frame = json.loads(ws.recv(timeout=60))
    kind = "SummaryFrame" if isinstance(frame, list) else "RunFrame"
    if len(frame) <= 100:
        contract.complain(f"#/components/schemas/{kind}", frame)
    return frame


def until(ws: ClientConnection, holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Messages of a summary up to the first for which it holds."""
    found: list[dict[str, Any]] = []
    while True:
        frame = receive(ws)
        assert isinstance(frame, list) and frame
        for message in frame:
            found.append(message)
            if holds(message):
                return found


def transition(run_id: str, state: str) -> Callable[[dict[str, Any]], bool]:
    return lambda m: (
        m["type"] == "run_transition"
        and ((m["run_summary"]["run_id"], m["run_summary"]["state"]) == (run_id, state))
    )


def running(site: Installation) -> str:
    run_id = str(site.make("slow")["run_id"])
    with follow(site, f"/runs/{run_id}/updates?init") as ws:
        while receive(ws).get("run", {}).get("state") != "running":
            pass
    return run_id


# -- the summary -----------------------------------------------------------------------------------


def test_a_summary_begins_with_jobs_agents_and_runs_and_goes_on_with_transitions(site: Installation) -> None:
    done = site.make("noop")["run_id"]
    with follow(site, "/summary?init") as ws:
        first = until(ws, lambda m: m["type"] == "run_summary" and m["run_summary"]["run_id"] == done)
        kinds = [m["type"] for m in first]
        assert kinds[:4] == ["job", "job", "job", "agent_conn"]
        assert {m["job"]["job_id"] for m in first[:3]} == set(JOBS)
        assert first[3]["conn"] == AGENT
        expected = [m["run_summary"] for m in first[4:-1]]
        assert {run["state"] for run in expected} == {"scheduled"} and len(expected) >= 6
        run_id = site.make("noop")["run_id"]
        after = until(ws, transition(run_id, "success"))
        states = [m["run_summary"]["state"] for m in after if m["run_summary"]["run_id"] == run_id]
        assert states == ["scheduled", "starting", "running", "success"] or states == [
            "starting",
            "running",
            "success",
        ]
        assert set(after[-1]["run_summary"]) == {"job_id", "args", "run_id", "state", "times", "labels"}


def test_without_init_a_summary_tells_only_what_happens_from_now_on(site: Installation) -> None:
    site.make("noop")
    with follow(site, "/summary?initx&path=etl") as ws:
        site.feed.publish([{"type": "agent_conn_delete", "conn_id": "c0"}])
        assert receive(ws) == [{"type": "agent_conn_delete", "conn_id": "c0"}]


def test_no_run_is_told_twice_at_the_beginning_and_none_is_left_out(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.live.summary.PAGE", 7)
    monkeypatch.setattr("apsislib.live.summary.FRAME", 5)
    made = set(site.post("/api/v1/runs?count=40", {"job_id": "noop"}).json()["runs"])
    made.add(running(site))
    with follow(site, "/summary?init") as ws:
        found: list[str] = []
        while not made <= set(found):
            frame = receive(ws)
            assert len(frame) <= 5
            found += [m["run_summary"]["run_id"] for m in frame if m["type"] == "run_summary"]
        assert len(found) == len(set(found))


def test_a_summary_begins_with_so_many_runs_only_and_all_that_are_unfinished(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.live.summary.NEWEST", 10)
    monkeypatch.setattr("apsislib.live.summary.PAGE", 4)
    old = running(site)
    with follow(site, "/summary") as ws:
        made = list(site.post("/api/v1/runs?count=20", {"job_id": "noop"}).json()["runs"])
        left = set(made)
        while left:
            left -= {
                m["run_summary"]["run_id"] for m in receive(ws) if m["run_summary"]["state"] == "success"
            }
    with follow(site, "/summary?init") as ws:
        last = until(ws, lambda m: m["type"] == "run_summary" and m["run_summary"]["run_id"] == made[10])
        found = [m["run_summary"]["run_id"] for m in last if m["type"] == "run_summary"]
        assert old in found
        assert [run_id for run_id in found if run_id in made] == made[:9:-1]
        site.feed.publish([{"type": "agent_conn_delete", "conn_id": "x"}])
        assert receive(ws) == [{"type": "agent_conn_delete", "conn_id": "x"}]


def test_a_row_that_cannot_be_read_hides_no_other_run_from_a_summary(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.live.summary.PAGE", 4)
    made = list(site.post("/api/v1/runs?count=20", {"job_id": "noop"}).json()["runs"])
    with closing(sqlite3.connect(site.store.path)) as db, db:
        db.execute("UPDATE runs SET times = '{' WHERE number = ?", (int(made[-2][1:]),))
    del made[-2]
    with follow(site, "/summary?init") as ws:
        site.feed.publish([GONE])
        messages = until(ws, lambda m: m == GONE)
        found = [m["run_summary"]["run_id"] for m in messages if m["type"] == "run_summary"]
        assert [run_id for run_id in found if run_id in made] == made[::-1]


def test_a_reload_tells_jobs_and_runs_that_came_and_went(site: Installation) -> None:
    with follow(site, "/summary") as ws:
        site.write("noop", SLOW)
        site.write("new", PROGRAM)
        (site.job_dir / "every.yaml").unlink()
        expected = {run.run_id for run in site.driver.expected()}
        site.post("/api/control/reload_jobs?dry_run=False")
        found: list[dict[str, Any]] = []
        gone: set[str] = set()
        while len([m for m in found if m["type"].startswith("job")]) < 3 or gone != expected:
            found += receive(ws)
            gone = {m["run_id"] for m in found if m["type"] == "run_delete"}
        jobs = {
            (m["type"], m.get("job_id") or m["job"]["job_id"]) for m in found if m["type"].startswith("job")
        }
        assert jobs == {("job_delete", "every"), ("job_add", "new"), ("job", "noop")}


def test_what_happens_within_a_moment_comes_in_one_frame(tmp_path: Path) -> None:
    site = Installation(tmp_path, JOBS, live={"batch": 0.3}).start()
    try:
        with follow(site, "/summary") as ws:
            begun = time.monotonic()
            runs = set(site.post("/api/v1/runs?count=50", {"job_id": "noop"}).json()["runs"])
            frames, told = 0, []
            while len([run for run in told if run["state"] == "success"]) < 50:
                told += [m["run_summary"] for m in receive(ws)]
                frames += 1
            assert {run["run_id"] for run in told} == runs
            # One, unless the machine is so slow that the runs take longer.
            assert frames * 0.3 <= time.monotonic() - begun
    finally:
        site.stop()


# -- a run -----------------------------------------------------------------------------------------


def test_updates_of_a_run_begin_with_all_of_it_and_go_on_to_its_end(site: Installation) -> None:
    run_id = running(site)
    with follow(site, f"/runs/{run_id}/updates?init") as ws:
        first = receive(ws)
        assert list(first) == ["run", "meta", "run_log", "outputs"]
        assert first["run"]["state"] == "running" and first["outputs"] == {}
        assert [line["message"] for line in first["run_log"]] == ["scheduled: now", "starting", "running"]
        site.print(run_id, [b"hello"])
        assert receive(ws) == {
            "outputs": {
                "output": {
                    "name": "combined stdout & stderr",
                    "length": 5,
                    "content_type": "application/octet-stream",
                }
            }
        }
        site.post(f"/api/v1/runs/{run_id}/stop")
        log: list[str] = []
        states: list[str] = []
        while "success" not in states:
            frame = receive(ws)
            assert set(frame) <= {"run", "meta", "run_log_append", "outputs"}
            log += [frame["run_log_append"]["message"]] if "run_log_append" in frame else []
            states += [frame["run"]["state"]] if "run" in frame else []
        assert states == ["stopping", "success"]
        whole = site.get(f"/api/v1/runs/{run_id}/log").json()["run_log"]
        assert [line["message"] for line in first["run_log"]] + log == [line["message"] for line in whole]
        site.post(f"/api/v1/runs/{run_id}/mark/failure")  # the stream does not end with the run
        while receive(ws).get("run", {}).get("state") != "failure":
            pass


def test_no_line_of_a_log_is_told_twice_or_lost_while_a_run_goes_on(site: Installation) -> None:
    """Followers come at any moment of a run's short life; each sees the log as it was written."""
    for _ in range(15):
        run_id = site.make("noop", times={"schedule": "2131-01-01T00:00:00Z"})["run_id"]
        starter = threading.Thread(target=site.post, args=(f"/api/v1/runs/{run_id}/start",))
        starter.start()
        with follow(site, f"/runs/{run_id}/updates?init") as ws:
            first = receive(ws)
            log, state = list(first["run_log"]), first["run"]["state"]
            while state != "success":
                frame = receive(ws)
                log += [frame["run_log_append"]] if "run_log_append" in frame else []
                state = frame["run"]["state"] if "run" in frame else state
        starter.join()
        whole = site.get(f"/api/v1/runs/{run_id}/log").json()["run_log"]
        assert [line["message"] for line in log] == [line["message"] for line in whole]


def test_without_init_updates_of_a_run_tell_only_what_happens(site: Installation) -> None:
    run_id = running(site)
    with follow(site, f"/runs/{run_id}/updates") as ws:
        site.feed.publish([Note(run_id, 1.5, "hi"), Note("r999", 1.5, "not for you")])
        entry = {"timestamp": "1970-01-01T00:00:01.500+00:00", "message": "hi"}
        assert receive(ws) == {"run_log_append": entry}
    site.post(f"/api/v1/runs/{run_id}/stop")


@pytest.mark.parametrize("run_id", ["r999999", "bogus", "r007", "%2e%2e", "<script>"])
@pytest.mark.parametrize("path", ["updates?init", "updates", "output/output/updates?start=0"])
def test_streams_of_a_run_that_is_not_close_in_order(site: Installation, run_id: str, path: str) -> None:
    with follow(site, f"/runs/{run_id}/{path}") as ws, pytest.raises(ConnectionClosedOK) as closed:
        ws.recv(timeout=60)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000


def test_an_expected_run_that_a_reload_drops_ends_its_stream(site: Installation) -> None:
    run_id = site.driver.expected()[0].run_id
    with follow(site, f"/runs/{run_id}/updates?init") as ws:
        assert receive(ws)["run"]["expected"] is True
        (site.job_dir / "every.yaml").unlink()
        site.post("/api/control/reload_jobs?dry_run=False")
        with pytest.raises(ConnectionClosedOK):
            ws.recv(timeout=60)


# -- an output -------------------------------------------------------------------------------------

HEAD = re.compile(
    rb"Content-Type: ([^\r]+)\r\nContent-Range: bytes=(\d+)-(\d+)/(\d+)\r\nContent-Length: (\d+)\r\n\r\n"
)


def parts(ws: ClientConnection) -> Iterator[tuple[int, bytes, int]]:
    """(offset, data, length of the whole) of each frame until the stream is closed in order."""
    while True:
        try:
            frame = ws.recv(timeout=60)
        except ConnectionClosedOK:
            return
        assert isinstance(frame, bytes)
        head = HEAD.match(frame)
        assert head is not None
        data = frame[head.end() :]
        first, last, whole, length = (int(head[n]) for n in (2, 3, 4, 5))
        assert len(data) == length == last - first + 1
        yield first, data, whole


def joined(found: list[tuple[int, bytes, int]]) -> bytes:
    at = found[0][0] if found else 0
    for first, data, _ in found:
        assert first == at
        at += len(data)
    return b"".join(data for _, data, _ in found)


def test_output_is_followed_from_its_beginning_to_the_last_byte(site: Installation) -> None:
    run_id = running(site)
    site.print(run_id, [b"one "])
    with follow(site, f"/runs/{run_id}/output/output/updates?start=0") as ws:
        stream = parts(ws)
        assert next(stream) == (0, b"one ", 4)
        site.print(run_id, [b"two "], at=4)
        assert next(stream) == (4, b"two ", 8)
        # A tail of more than 16 KiB that arrives with the verdict.
        tail = os.urandom(100_000)
        site.store.put_output(run_id, "output", 8, tail)
        site.post(f"/api/v1/runs/{run_id}/stop")
        assert joined([(8, b"", 8), *stream]) == tail


def test_a_finished_output_of_any_size_is_delivered_and_the_stream_closed(site: Installation) -> None:
    data = b"".join(b"line %09d\n" % n for n in range(250_000))
    run_id = site.make("noop")["run_id"]
    site.print(run_id, [data])
    for start in (0, 7, 20_000, len(data) - 1, len(data), len(data) + 5):
        with follow(site, f"/runs/{run_id}/output/output/updates?start={start}") as ws:
            assert joined(list(parts(ws))) == data[start:]
    for query in ("", "?start=", "?start=x", "?start=-1"):
        with follow(site, f"/runs/{run_id}/output/output/updates{query}") as ws:
            assert list(parts(ws)) == []


def test_a_stream_goes_on_after_the_verdict_until_the_output_is_on_disk(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_pending(run_id: str) -> bool:
        with site.store.read() as reader:
            return sum(output.length for output in reader.outputs(run_id)) % 10 != 0

    monkeypatch.setattr(site.store, "has_pending", is_pending)
    ended = site.make("noop")["run_id"]
    site.print(ended, [b"one "])
    ends = running(site)
    site.print(ends, [b"one "])
    for run_id in (ended, ends):
        with follow(site, f"/runs/{run_id}/output/output/updates?start=0") as ws:
            stream = parts(ws)
            assert next(stream) == (0, b"one ", 4)
            if run_id == ends:
                site.post(f"/api/v1/runs/{run_id}/stop")
                with follow(site, f"/runs/{run_id}/updates?init") as updates:
                    while receive(updates).get("run", {}).get("state") != "success":
                        pass
            site.print(run_id, [b"two "], at=4)
            assert next(stream) == (4, b"two ", 8)
            site.print(run_id, [b"3\n"], at=8)
            assert list(stream) == [(8, b"3\n", 10)]


def test_the_output_command_waits_for_the_end_of_what_a_run_that_has_ended_printed(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def is_pending(run_id: str) -> bool:
        asked.set()
        with site.store.read() as reader:
            return reader.outputs(run_id)[0].length < 10

    monkeypatch.setattr(site.store, "has_pending", is_pending)
    run_id = site.make("noop")["run_id"]
    site.print(run_id, [b"one "])
    argv = [sys.executable, APSIS, "--port", str(site.port), "output", run_id]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert asked.wait(60)
        site.print(run_id, [b"two 3\n"], at=4)
        assert command.communicate(timeout=60) == (b"one two 3\n", b"") and command.returncode == 0


def test_to_follow_an_output_that_is_damaged_ends_with_a_sentence(site: Installation) -> None:
    run_id = site.make("noop")["run_id"]
    site.print(run_id, [b"0123456789" * 100])
    with closing(sqlite3.connect(site.store.path)) as db, db:
        db.execute("UPDATE chunks SET data = x'00'")
    argv = [sys.executable, APSIS, "--port", str(site.port), "output", "-f", run_id]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"output output of {run_id} is damaged at byte 0" in done.stderr


def test_without_a_start_only_new_output_is_told(site: Installation) -> None:
    run_id = running(site)
    site.print(run_id, [b"old"])
    with follow(site, f"/runs/{run_id}/output/output/updates") as ws:
        site.print(run_id, [b"new"], at=3)
        site.post(f"/api/v1/runs/{run_id}/stop")
        assert list(parts(ws)) == [(3, b"new", 6)]


def test_what_is_printed_just_as_a_follower_comes_is_told_without_more(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = running(site)
    site.print(run_id, [b"old"])
    subscribe = site.feed.subscribe

    def late(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(site.feed, "subscribe", subscribe)
        site.print(run_id, [b"new"], at=3)
        return subscribe(*args, **options)

    monkeypatch.setattr(site.feed, "subscribe", late)
    with follow(site, f"/runs/{run_id}/output/output/updates") as ws:
        assert next(parts(ws)) == (3, b"new", 6)


def test_a_follower_goes_on_where_it_was_and_is_told_where_that_is(site: Installation) -> None:
    run_id = running(site)
    site.print(run_id, [b"0123456789"])
    with follow(site, f"/runs/{run_id}/output/output/updates?start=10") as ws:
        frame = ws.recv(timeout=60)
        assert isinstance(frame, bytes) and b"bytes=10-9/10" in frame
        site.print(run_id, [b"ab"], at=10)
        assert next(parts(ws)) == (10, b"ab", 12)
    site.post(f"/api/v1/runs/{run_id}/stop")


def test_outputs_of_one_run_are_not_mixed(site: Installation) -> None:
    run_id = running(site)
    with follow(site, f"/runs/{run_id}/output/output/updates?start=0") as ws:
        site.store.put_output(run_id, "other", 0, b"not this")
        site.print(run_id, [b"this"])
        site.post(f"/api/v1/runs/{run_id}/stop")
        assert joined(list(parts(ws))) == b"this"


# -- load ------------------------------------------------------------------------------------------


def test_over_the_bound_a_subscriber_is_told_503_and_others_go_on(tmp_path: Path) -> None:
    site = Installation(tmp_path, JOBS, live={"limit": 2}).start()
    try:
        with follow(site, "/summary") as one:
            with follow(site, "/summary"):
                with pytest.raises(InvalidStatus) as refused:
                    follow(site, "/summary")
                assert refused.value.response.status_code == 503
                assert b"too many live connections" in (refused.value.response.body or b"")
            while site.live.stats()["subscribers"] > 1:
                pass
            with follow(site, "/summary") as again:
                site.feed.publish([GONE])
                assert receive(again) == receive(one) == [GONE]
    finally:
        site.stop()


def upgraded(site: Installation, path: str, buffer: int = 4096) -> socket.socket:
    """A WebSocket by hand, which will not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", site.port))
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET /api/v1{path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    return sock


def test_who_reads_too_slowly_is_dropped_and_told_while_others_are_served(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.live.subscriber.AHEAD", 50_000)
    monkeypatch.setattr("apsislib.live.updates.RunUpdates.limit", 100)
    monkeypatch.setattr("apsislib.live.subscriber.GOODBYE", 0.5)
    run_id = running(site)
    slow = upgraded(site, f"/runs/{run_id}/updates")
    with follow(site, f"/runs/{run_id}/updates") as quick:
        answer = slow.recv(1000)
        assert answer.startswith(b"HTTP/1.1 101 ")
        for number in range(600):
            site.feed.publish([Note(run_id, float(number), "x" * 50_000)])
            assert receive(quick)["run_log_append"]["timestamp"].startswith("1970-01-01T00:")
        received = b""
        while piece := slow.recv(1_000_000):
            received += piece
        # A close frame ends it: 1013, try again later.
        assert (1013).to_bytes(2, "big") + b"too slow" in received[-20:]
        assert len(received) < 600 * 50_000
    slow.close()
    site.post(f"/api/v1/runs/{run_id}/stop")


def test_a_large_output_waits_for_its_reader_in_bounded_memory(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.live.subscriber.GOODBYE", 0.5)
    data = os.urandom(1_000_000) * 24
    run_id = site.make("noop")["run_id"]
    site.print(run_id, [data])
    sock = upgraded(site, f"/runs/{run_id}/output/output/updates?start=0")
    assert sock.recv(20).startswith(b"HTTP/1.1 101 ")
    while not site.live.stats()["subscribers"]:
        pass
    (subscriber,) = site.live._open.values()
    for _ in range(100):
        assert subscriber.connection.pending < 8_000_000
        threading.Event().wait(0.002)
    sock.settimeout(60)
    total = 0
    while piece := sock.recv(1_000_000):
        total += len(piece)
    assert total > len(data)
    sock.close()


def test_a_silent_subscriber_is_pinged_and_then_given_up(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.live.subscriber.PING", 0.1)
    monkeypatch.setattr("apsislib.live.subscriber.DEAD", 0.4)
    sock = upgraded(site, "/summary", buffer=65536)
    received = b""
    while piece := sock.recv(1000):
        received += piece
    assert b"\x89\x00" in received.partition(b"\r\n\r\n")[2]
    sock.close()


def test_stopping_says_goodbye_to_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apsislib.live.subscriber.GOODBYE", 0.3)
    site = Installation(tmp_path, JOBS).start()
    ws = follow(site, "/summary?init", legacy=True)
    receive(ws)
    other = upgraded(site, "/summary")
    other.recv(20)
    closed: list[int] = []

    def read() -> None:
        try:
            while True:
                ws.recv(timeout=60)
        except ConnectionClosed as end:
            closed.append(end.rcvd.code if end.rcvd else 0)

    reader = threading.Thread(target=read)
    reader.start()
    site.stop()
    reader.join()
    assert closed == [1001]
    other.close()


def test_what_a_subscriber_says_is_ignored_up_to_a_limit(
    site: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apsislib.sockets.connection.CLOSE_TIMEOUT", 0.3)
    with follow(site, "/summary") as ws:
        ws.send("hello")
        ws.send(b"\x00" * 1000)
        site.feed.publish([GONE])
        assert receive(ws) == [GONE]
        with pytest.raises(ConnectionClosed):
            ws.send("x" * 3_000_000)
            while True:
                ws.recv(timeout=60)
    assert Deadline(1).left() and site.get("/api/v1/alive").ok
