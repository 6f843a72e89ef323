"""A server is killed, and restarted as for an upgrade, with a thousand live runs: how soon it has them again.

python benchmarks/recovery.py

serving: until the API answers that runs are started; reconciled: until the agent, which is another
process and goes on, has told of every run. At the end every run must have ended well, once, with the
output that it should have. "At work" is what the new process has computed till then, which a busy machine
makes take longer (after `restart`, in all its life).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import requests
from serving import Client, Server, serving

RUNS = 1000
WAIT = 300.0  # seconds; only a failure takes so long
JOB = """
program:
  type: procstar
  argv: [/bin/sh, -c, 'echo "$APSIS_RUN_ID begun"; read x < "$GATE"; echo "$APSIS_RUN_ID done"']
"""


def ask(server: Server, sql: str, *values: object) -> int:
    with closing(sqlite3.connect(f"file:{server.directory}/apsis.db?mode=ro", uri=True, timeout=60)) as db:
        return int(db.execute(sql, values).fetchone()[0])


def until(what: Callable[[], bool]) -> float:
    """When it was so."""
    end = time.perf_counter() + WAIT
    while not what():
        assert time.perf_counter() < end, "this takes too long"
        time.sleep(0.02)
    return time.perf_counter()


def work(server: Server) -> float:
    """Seconds that its process has computed since it began."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill(server: Server) -> None:
    server.kill()
    server.start()


def upgrade(server: Server) -> None:
    assert server.end() == 0
    server.start()


def restart(server: Server) -> None:
    """As `apsisctl restart` does: the process stays the same."""
    base = server.url.removesuffix("/v1")
    began = server.get("/stats")["start_time"]
    requests.post(f"{base}/control/shut_down", params={"restart": "true"}, timeout=60).raise_for_status()

    def again() -> bool:
        try:
            return bool(server.get("/stats")["start_time"] != began)
        except requests.ConnectionError:
            return False

    until(again)
    server.await_running()


def main() -> None:
    with serving() as server:
        gate = server.directory / "gate"
        os.mkfifo(gate)
        server.end()
        server.end_agent()
        os.environ["GATE"] = str(gate)  # the agent passes it on
        server.write("held", JOB)
        server.start()
        client = Client(server)
        made = client.ask("POST", f"/runs?count={RUNS}", {"job_id": "held"})["runs"]
        running = "SELECT count(*) FROM runs WHERE state = 'running'"
        until(lambda: ask(server, running) == RUNS)
        for name, act in (
            ("kill -9", kill),
            ("SIGTERM, as systemctl restart", upgrade),
            ("restart", restart),
        ):
            back = "SELECT count(DISTINCT number) FROM log WHERE message LIKE 'agent % is back' AND time >= ?"
            wall, begin = time.time(), time.perf_counter()
            act(server)
            served, worked = time.perf_counter() - begin, work(server)
            reconciled = until(lambda: ask(server, back, wall) == RUNS) - begin  # noqa: B023
            assert ask(server, running) == RUNS
            print(
                f"{name}: {RUNS} live runs: serving after {served:.2f} s ({worked:.2f} s of it at work),"
                f" reconciled after {reconciled:.2f} s"
            )
        holder = os.open(gate, os.O_RDWR)
        for _ in range(RUNS):
            os.write(holder, b"\n")
        until(lambda: ask(server, "SELECT count(*) FROM runs WHERE state = 'success'") == RUNS)
        os.close(holder)
        wrong = sum(server.output(i) != f"{i} begun\n{i} done\n".encode() for i in made)
        again = ask(server, "SELECT count(*) FROM log WHERE message = 'starting'") - RUNS
        print(f"aborted 0, doubled {again}, outputs that differ {wrong}")
        assert not wrong and not again


if __name__ == "__main__":
    main()
