"""Programs print while servers are killed, restarted and connections cut: no byte is lost."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import requests
from chaos.world import World
from server import Server

PROGRAMS = 200
LINES = 300
# Half of the lines, and then the rest, once a line comes through a FIFO.
COMMAND = (
    'i=0; while [ $i -lt 150 ]; do echo "$APSIS_RUN_ID $i"; i=$((i+1)); done; read x < "$GATE";'
    ' while [ $i -lt 300 ]; do echo "$APSIS_RUN_ID $i"; i=$((i+1)); done'
)
JOBS = {"print": f"program:\n  type: procstar\n  argv: [/bin/sh, -c, '{COMMAND}']\n"}


def states(world: World) -> dict[str, int]:
    return dict(world.query("SELECT state, count(*) FROM runs GROUP BY state"))


def until(world: World, state: str) -> None:
    end = time.monotonic() + 120
    while states(world) != {state: PROGRAMS}:
        assert time.monotonic() < end, (states(world), world.log())
        time.sleep(0.1)  # the database tells nobody that it has changed


@pytest.mark.timeout(400)
def test_output_is_the_same_byte_by_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("GATE", str(gate))
    with World(tmp_path, JOBS, 60.0) as world:
        made = world.post("/runs", {"job_id": "print"}, count=str(PROGRAMS))["runs"]
        until(world, "running")
        for agent in world.agents:
            agent.proxy.cut()
        world.kill_server()
        world.start_server()
        world.await_serving()
        holder = os.open(gate, os.O_RDWR)  # each line that is written lets one of them go on
        for round_ in range(4):
            world.agents[round_ % 2].proxy.cut()
            if round_ == 1:
                world.kill_server()
                world.start_server()
            elif round_ == 2:
                world.await_serving()
                control = f"{world.url.removesuffix('/v1')}/control/shut_down"
                requests.post(control, params={"restart": "true"}, timeout=30).raise_for_status()
            os.write(holder, b"\n" * (PROGRAMS // 4))
        world.await_serving()
        until(world, "success")
        os.close(holder)
        for run_id in made:
            whole = b"".join(b"%s %d\n" % (run_id.encode(), n) for n in range(LINES))
            found = world.output(run_id)
            assert hashlib.sha256(found).digest() == hashlib.sha256(whole).digest(), (run_id, found)
            assert world.messages(run_id).count("starting") == 1


def test_a_verdict_that_is_on_disk_has_its_output_there_too(tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = f"head -c {24 << 20} /dev/urandom > {said}; cat {said}"
    jobs = {"loud": f"program: {{type: procstar-shell, command: '{command}'}}\n"}
    server = Server(tmp_path, jobs)
    with server.running():
        run_id = server.schedule({"job_id": "loud"})
        with closing(sqlite3.connect(f"file:{tmp_path}/apsis.db?mode=ro", uri=True, timeout=30)) as db:
            end = time.monotonic() + 120
            sql = f"SELECT state FROM runs WHERE number = {int(run_id[1:])}"
            while db.execute(sql).fetchone() != ("success",):
                assert time.monotonic() < end, server.messages(run_id)
                time.sleep(0.002)  # the database tells nobody that it has changed
        server.kill()  # nobody asks the agent for what is missing then
        server.start()
        (shown,) = server.get(f"/runs/{run_id}/outputs")
        assert shown["complete"] and shown["output_len"] == 24 << 20
        assert hashlib.sha256(server.output(run_id)).digest() == hashlib.sha256(said.read_bytes()).digest()
