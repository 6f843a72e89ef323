"""A thousand no-op runs due in the same second: how late each begins, alone and while others query.

python benchmarks/due.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from serving import Client, Server, milliseconds, serving

from apsislib.clock import WallClock
from apsislib.runs import Note, Run, Save
from apsislib.states import State
from apsislib.store import Store

RUNS = 1000
HISTORY = 9_000  # finished runs that each query reads; the API refuses to answer with more than 10,000
QUERIES = 4
# A process of its own, so that what a client does with the answer is not the server's lateness.
QUERY = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=120)
print("ready", flush=True)
while True:
    connection.request("GET", "/api/v1/runs?job_id=old")
    answer = connection.getresponse()
    assert answer.status == 200
    while answer.read(1 << 20):
        pass
"""


def fill(path: Path) -> None:
    """A database with a history."""
    store = Store(path, WallClock())
    store.open()
    store.start()
    first = store.reserve(HISTORY)
    now = time.time() - HISTORY
    for number in range(first, first + HISTORY):
        when = now + number - first
        times = {"schedule": when, "starting": when, "running": when, "success": when + 1}
        run = Run(f"r{number}", "old", {"n": str(number)}, State.SUCCESS, when + 1, times, rev=4)
        ticket = store.put([Save(run), Note(run.run_id, when, "success")])
    store.wait(ticket)
    store.close()


def lateness(server: Server) -> list[float]:
    client = Client(server)
    due = int(time.time()) + 4
    body = {
        "job_id": "nothing",
        "args": {},
        "times": {"schedule": datetime.fromtimestamp(due).astimezone().isoformat()},
    }
    runs = list(client.ask("POST", f"/runs?count={RUNS}", body)["runs"])
    assert time.time() < due, "the machine is too slow to make the runs in time"
    time.sleep(due - time.time() + 3)
    late: list[float] = []
    for run_id in runs:
        run = client.ask("GET", f"/runs/{run_id}")["runs"][run_id]
        assert run["state"] == "success", run
        late.append(datetime.fromisoformat(run["times"]["running"]).timestamp() - due)
    client.close()
    return late


def main() -> None:
    with serving(fill) as server:
        lateness(server)  # warm
        print(f"{RUNS} no-op runs due in one second, alone:          late {milliseconds(lateness(server))}")
        queries = [
            subprocess.Popen([sys.executable, "-c", QUERY, str(server.port)], stdout=subprocess.PIPE)
            for _ in range(QUERIES)
        ]
        try:
            for query in queries:
                assert query.stdout is not None and query.stdout.readline() == b"ready\n"
            late = lateness(server)
            assert all(query.poll() is None for query in queries)
            print(f"{RUNS} no-op runs due in one second, {QUERIES} large queries: late {milliseconds(late)}")
        finally:
            for query in queries:
                query.kill()
                query.wait()


if __name__ == "__main__":
    main()
