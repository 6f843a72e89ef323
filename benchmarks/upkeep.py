"""Archiving and vacuuming while runs go on: how late these begin, and how long requests take.

python benchmarks/upkeep.py [FINISHED RUNS]...     (100,000 and 1,000,000)

Also: how long a server takes to start, and its memory, with so many runs in its history.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import requests
from serving import Client, Server, milliseconds, serving

from apsislib.clock import WallClock
from apsislib.runs import Note, Run, Save
from apsislib.states import State
from apsislib.store import Store

ARCHIVED = 10_000
OUTPUT = 2000  # bytes
RATE = 50  # runs a second
QUIET = 10  # s; measured alone first
DAY = 86400.0
JOBS = {
    "tick": f"schedule: {{type: interval, interval: {1 / RATE}}}\nprogram: {{type: no-op}}\n",
    "archive": "params: [age, path]\n"
    "program: {type: archive, age: '{{ age }}', count: 1000000, path: '{{ path }}'}\n",
    "vacuum": "program: {type: vacuum}\n",
}


def fill(path: Path, runs: int) -> None:
    """A history of which the oldest ARCHIVED runs, a hundred days old, have outputs."""
    store = Store(path, WallClock())
    store.open()
    store.start()
    first = store.reserve(runs) if runs else 0
    now = time.time()
    dice = random.Random(1)
    ticket = 0
    for number in range(first, first + runs):
        old = number - first < ARCHIVED
        when = now - (100 if old else 20) * DAY + (number - first) / runs * DAY
        times = {"schedule": when, "waiting": when, "starting": when, "running": when, "success": when + 1}
        run = Run(
            f"r{number}", f"jobs/{number % 300}", {"n": str(number)}, State.SUCCESS, when + 1, times,
            program={"type": "no-op"}, meta={"job": {"labels": ["nightly"]}, "elapsed": 1.0}, rev=4,
        )  # fmt: skip
        lines = [Note(run.run_id, when, text) for text in ("scheduled", "starting", "running", "success")]
        ticket = store.put([Save(run), *lines])
        if old:
            store.put_output(run.run_id, "output", 0, dice.randbytes(OUTPUT // 2).hex().encode())
        if number % 5000 == 0:
            store.wait(ticket, 300)
    store.wait(ticket, 300)
    store.close()


def memory(server: Server) -> float:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


class Asking(threading.Thread):
    """A client that asks for small things, one after the other, and notes how long it took."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._client = Client(server)
        self.took: list[float] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.01):
            for path in ("/running", "/search/runs?limit=20", "/jobs"):
                begin = time.perf_counter()
                self._client.ask("GET", path)
                self.took.append(time.perf_counter() - begin)
        self._client.close()


def lateness(server: Server, since: float, until: float) -> list[float]:
    """Of the ticks that were due in between."""
    client = Client(server)
    late: list[float] = []
    before = ""
    while True:
        page = client.ask("GET", f"/search/runs?job_id=tick&state=success&limit=1000{before}")
        for run in page["runs"].values():
            due = datetime.fromisoformat(run["times"]["schedule"]).timestamp()
            if since <= due < until:
                late.append(datetime.fromisoformat(run["times"]["running"]).timestamp() - due)
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    client.close()
    return late


def measured(server: Server, name: str, job_id: str = "", **args: str) -> None:
    asking = Asking(server)
    asking.start()
    begin = time.time()
    said = ""
    if job_id:
        run_id = server.schedule({"job_id": job_id, "args": args})
        run = server.until(run_id, "success", "failure", "error")
        assert run["state"] == "success", server.messages(run_id)
        told, took = run["meta"]["program"], run["meta"]["elapsed"]
        if job_id == "archive":
            said = f"{told['run count']:,} runs in {took:.1f} s, {told['run count'] / took:,.0f} a second"
        else:
            before, after = told["bytes_before"] / 1e6, told["bytes_after"] / 1e6
            said = f"{before - after:,.1f} of {before:,.1f} MB returned in {took:.1f} s"
    else:
        time.sleep(QUIET)
    end = time.time()
    asking.ended.set()
    asking.join()
    time.sleep(1.0)
    late = lateness(server, begin, end)
    print(f"{name:12} starts ({len(late)}) late {milliseconds(late)}")
    print(f"{'':12} requests ({len(asking.took)})  {milliseconds(asking.took)}")
    if said:
        print(f"{'':12} {said}", flush=True)


def main() -> None:
    for runs in [int(text) for text in sys.argv[1:]] or [0, 100_000, 1_000_000]:
        began = 0.0

        def prepare(path: Path, runs: int = runs) -> None:
            nonlocal began
            fill(path, runs)
            subprocess.run(["sync"], check=True)
            began = time.perf_counter()

        with serving(prepare) as server:
            started = time.perf_counter() - began
            size = (server.directory / "apsis.db").stat().st_size / 1e6
            took = f"started in {started:.2f} s, {memory(server):.0f} MB of memory"
            print(f"\n{runs:,} finished runs, {size:,.0f} MB: {took}")
            if not runs:
                continue
            for job_id, text in JOBS.items():
                server.write(job_id, text)
            requests.post(
                f"{server.url.removesuffix('/v1')}/control/reload_jobs", timeout=60
            ).raise_for_status()
            time.sleep(3)
            measured(server, "alone")
            measured(server, "archiving", "archive", age="50 days", path=str(server.directory / "old.db"))
            measured(server, "vacuuming", "vacuum")
            print(f"{'':12} {memory(server):.0f} MB of memory at the end")


if __name__ == "__main__":
    main()
