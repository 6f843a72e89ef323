"""A whole server whose surroundings fail: nothing is lost, nothing is doubled, and it goes on by itself."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from doubles import ended, result
from raw_agent import RawAgent
from server import ENDS, Server

SIZE = 300_000_000  # bytes

JOBS = {
    "nothing": "program: {type: no-op}\n",
    "echo": "program: {type: procstar, argv: [/bin/echo, here]}\n",
    "count": ("program:\n  type: procstar-shell\n  command: for i in `seq 9`; do echo $i; sleep 0.3; done\n"),
    "sleeps": "program: {type: procstar, argv: [/bin/sleep, '600']}\n",
    "elsewhere": "program: {type: procstar, argv: [x], group_id: far, output: {max_size: 1 GB}}\n",
    "much": (
        "program:\n  type: procstar-shell\n  command: yes 0123456789 | head -c 250000000\n"
        "  output: {max_size: 400 MB}\n"
    ),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, JOBS).running() as server:
        yield server


def peak(server: Server) -> int:
    """Bytes of memory that the server's process has had at most."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def await_stored(server: Server, run_id: str, size: int) -> None:
    """Returns once the server says that nothing more of the output is to come."""
    end = time.monotonic() + 60
    while True:
        (output,) = server.get(f"/runs/{run_id}/outputs")
        if output["complete"]:
            break
        assert time.monotonic() < end, output
    assert output["output_len"] == size


def limit_files(server: Server, size: int) -> None:
    """No file of the server may grow beyond `size` bytes: to SQLite this is a disk that is full."""
    assert server.process is not None
    hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, hard))


def until_refused(server: Server) -> tuple[list[str], str]:
    """Makes runs until the server makes none; those that it made, and why it does not go on."""
    made: list[str] = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = requests.post(f"{server.url}/runs", json={"job_id": "nothing"}, timeout=60)
        if answer.status_code == 503:
            return made, answer.json()["error"]
        assert answer.status_code == 200, answer.text
        made += answer.json()["runs"]
    raise AssertionError("the server goes on making runs on a full disk")


def until_made(server: Server) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = requests.post(f"{server.url}/runs", json={"job_id": "nothing"}, timeout=60)
        if answer.status_code == 200:
            return str(next(iter(answer.json()["runs"])))
        assert answer.status_code == 503, answer.text
        time.sleep(0.1)  # the server tries again at its own pace, and tells nobody that it will
    raise AssertionError("the server does not go on")


def test_a_full_disk_starts_nothing_loses_nothing_and_is_over_by_itself(server: Server) -> None:
    going, stopped = (server.schedule({"job_id": job_id}) for job_id in ("count", "sleeps"))
    server.until(going, "running")
    server.until(stopped, "running")
    server.write("tick", "schedule: {type: interval, interval: 1}\nprogram: {type: no-op}\n")
    assert server.command("reload-jobs").returncode == 0
    limit_files(server, 64 * 1024)
    made, why = until_refused(server)
    assert "can't be written" in why or "not on disk" in why
    ill = requests.get(f"{server.url}/health", timeout=60)
    assert ill.status_code == 503
    assert ill.json()["reasons"][0].startswith("the database can't be written: ")
    assert server.get("/alive") == {} and len(server.get("/jobs")) == len(JOBS) + 1
    assert requests.post(f"{server.url}/runs", json={"job_id": "echo"}, timeout=60).status_code == 503
    stop = requests.post(f"{server.url}/runs/{stopped}/stop", timeout=60)
    assert (
        stop.status_code == 503
        and "the stop is passed on if the agent is connected, but not on disk yet" in stop.json()["error"]
    )
    time.sleep(2.5)  # what is due meanwhile is late by more than a second
    limit_files(server, resource.RLIM_INFINITY)
    after = until_made(server)
    while not (late := server.get("/search/runs", q="tick alarm:late")["runs"]):
        pass
    reasons = {run["reasons"]["late"] for run in late.values()}
    assert any(reason.startswith("the database could not be written from ") for reason in reasons), reasons
    assert server.get("/health") == {"reasons": []}
    assert server.until(going, *ENDS)["state"] == "success"
    assert server.output(going) == b"".join(b"%d\n" % i for i in range(1, 10))
    assert server.until(stopped, *ENDS)["state"] == "failure", server.messages(stopped)
    for run_id in (*made, after):
        assert server.until(run_id, *ENDS)["state"] == "success"
    echo = server.schedule({"job_id": "echo"})
    assert server.until(echo, *ENDS)["state"] == "success"
    assert server.end() == 0
    server.start()
    for run_id in (going, *made, after, echo):
        assert server.run(run_id)["state"] == "success"


def test_a_group_without_agents_is_an_ailment_as_long_as_runs_wait_for_one(server: Server) -> None:
    assert server.get("/health") == {"reasons": []}
    run_id = server.schedule({"job_id": "elsewhere"})
    end = time.monotonic() + 60
    while (ill := requests.get(f"{server.url}/health", timeout=60)).status_code == 200:
        assert time.monotonic() < end
    assert ill.json()["reasons"] == ["no agent takes runs of group far: 1 wait for one"]
    server.post(f"/runs/{run_id}/stop")
    assert server.get("/health") == {"reasons": []}


def test_a_large_output_costs_little_memory_and_is_whole(server: Server) -> None:
    server.until(server.schedule({"job_id": "echo"}), *ENDS)
    before = peak(server)
    run_id = server.schedule({"job_id": "much"})
    assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
    await_stored(server, run_id, 250_000_000)
    assert peak(server) - before < 50 << 20


def test_a_thousand_runs_at_once_all_end_once(server: Server) -> None:
    made = server.post("/runs", {"job_id": "echo"}, count="1000")["runs"]
    assert len(made) == 1000
    end = time.monotonic() + 60
    states: set[str] = set()
    while states != {"success"} and time.monotonic() < end:
        server.until(max(made, key=lambda run_id: int(run_id[1:])), *ENDS)
        states = {run["state"] for run in server.get("/runs", job_id="echo")["runs"].values()}
    assert states == {"success"}
    session = requests.Session()
    for run_id in made:
        output = session.get(f"{server.url}/runs/{run_id}/output/output", timeout=30)
        assert output.content == b"here\n", run_id


def secret(server: Server) -> tuple[int, str]:
    """Port and token of the server's agents."""
    identity = json.loads((server.directory / "apsis.db.agent.json").read_text())
    return identity["port"], identity["token"]


def test_what_connects_and_is_no_agent_keeps_nobody_waiting(server: Server) -> None:
    port, token = secret(server)
    half = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    garbage = [b"\x16\x03\x01\xff\xff" * 50, b"\0" * 100_000, half, b"", half + b"X: " + b"y" * 100_000]
    strangers = []
    for text in garbage * 5:
        stranger = socket.create_connection(("127.0.0.1", port))
        strangers.append(stranger)
        with suppress(ConnectionError):  # it was shown the door already
            stranger.sendall(text)
    mad = RawAgent(("127.0.0.1", port), "mad", group_id="far", access_token=token)
    mad.send_raw(b"\xc1 is no message")
    half_said = RawAgent(("127.0.0.1", port), "half", group_id="far", access_token=token)
    half_said.ws.socket.sendall(b"\x82\xff" + (1 << 20).to_bytes(8, "big") + b"mask" + b"x" * 1000)
    run_id = server.schedule({"job_id": "echo"})
    assert server.until(run_id, *ENDS)["state"] == "success"
    assert "agent mad sent what can't be read" in server.log()
    mad.cut()
    half_said.cut()
    for stranger in strangers:
        stranger.close()


def test_a_message_of_300_megabytes_is_stored_while_others_are_served(server: Server) -> None:
    port, token = secret(server)
    agent = RawAgent(("127.0.0.1", port), "far", group_id="far", access_token=token)
    run_id = server.schedule({"job_id": "elsewhere"})
    proc_id = next(iter(agent.wait("ProcStartRequest")["specs"]))
    agent.result(proc_id, result(length=SIZE))
    server.until(run_id, "running")
    agent.wait("ProcFdDataRequest")
    before = peak(server)
    sender = threading.Thread(target=agent.data, args=(proc_id, 0, bytes(SIZE)))
    sender.start()
    other = server.schedule({"job_id": "echo"})
    assert server.until(other, *ENDS)["state"] == "success"
    sender.join()

    def answer() -> None:
        """There is no more, if the server looks for more before it hears of the end."""
        with suppress(Exception):  # the connection's end
            while request := agent.wait("ProcFdDataRequest"):
                agent.data(proc_id, request["start"], b"")

    answers = threading.Thread(target=answer, daemon=True)
    answers.start()
    agent.result(proc_id, ended(length=SIZE))
    assert server.until(run_id, *ENDS)["state"] == "success", server.messages(run_id)
    await_stored(server, run_id, SIZE)
    assert peak(server) - before < 80 << 20
    agent.close()


def test_a_job_directory_that_vanishes_is_named_and_the_jobs_stay(server: Server) -> None:
    server.jobs.rename(server.directory / "elsewhere")
    base = server.url.removesuffix("/v1")
    answer = requests.post(f"{base}/control/reload_jobs", timeout=60)
    assert answer.status_code == 400 and str(server.jobs) in answer.json()["error"]
    run_id = server.schedule({"job_id": "echo"})
    assert server.until(run_id, *ENDS)["state"] == "success"
