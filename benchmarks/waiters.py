"""Ten thousand runs that wait: for one run, and for one slot. On a real server and its disk.

python benchmarks/waiters.py
"""

from __future__ import annotations

import time
from datetime import datetime
from statistics import median
from typing import Any

import requests
from serving import Client, Server, serving

MANY = 10_000  # as many as a list of the API holds
FEW = 10
CHAIN = 200  # completions that are looked at
SLOW = "program: {type: no-op, duration: 3600}\n"
SLOT = "condition: {type: max_running, count: 1}\nprogram: {type: no-op}\n"
JOBS = {
    "gate": SLOW,
    "after": "condition: {type: dependency, job_id: gate}\nprogram: {type: no-op}\n",
}
HOLDER = "condition: {type: max_running, count: 1}\nprogram: {type: no-op, duration: 3600}\n"


def reload(server: Server) -> None:
    requests.post(f"http://127.0.0.1:{server.port}/api/control/reload_jobs", timeout=120).raise_for_status()


def instant(run: Any, state: str) -> float:
    return datetime.fromisoformat(run["times"][state]).timestamp()


def make(client: Client, job_id: str, count: int) -> list[str]:
    made: list[str] = []
    while len(made) < count:
        some = min(1000, count - len(made))
        made += client.ask("POST", f"/runs?count={some}", {"job_id": job_id, "args": {}})["runs"]
    return made


def all_of(client: Client, job_id: str, more: str = "") -> list[Any]:
    return list(client.ask("GET", f"/runs?job_id={job_id}{more}")["runs"].values())


def release(client: Client) -> None:
    (gate,) = make(client, "gate", 1)
    make(client, "after", MANY)
    assert {run["state"] for run in all_of(client, "after")} == {"waiting"}
    client.ask("POST", f"/runs/{gate}/stop")
    while True:
        runs = all_of(client, "after")
        if all(run["state"] == "success" for run in runs):
            break
        time.sleep(0.5)
    done = instant(client.ask("GET", f"/runs/{gate}")["runs"][gate], "success")
    begun = sorted(instant(run, "starting") - done for run in runs)
    ended = max(instant(run, "success") for run in runs) - done
    print(
        f"{MANY} runs that wait for one:  released after {begun[0] * 1000:.0f} ms (the first),"
        f" {begun[MANY // 2] * 1000:.0f} ms (median), {begun[-1] * 1000:.0f} ms (the last);"
        f" all have succeeded after {ended:.2f} s"
    )


def chain(server: Server, client: Client, count: int) -> float:
    """Seconds from the end of a run to the start of the one that waits for its slot: the median."""
    job_id = f"slot{count}"
    server.write(job_id, HOLDER)
    reload(server)
    (holder,) = make(client, job_id, 1)
    server.write(job_id, SLOT)
    reload(server)
    make(client, job_id, count)
    client.ask("POST", f"/runs/{holder}/stop")
    while True:
        ended = all_of(client, job_id, "&state=success")
        if len(ended) > min(count, CHAIN):
            break
        time.sleep(0.2)
    ended.sort(key=lambda run: int(run["run_id"][1:]))
    pairs = list(zip(ended, ended[1:], strict=False))[:CHAIN]
    waits = [instant(after, "starting") - instant(before, "success") for before, after in pairs]
    whole = (instant(pairs[-1][1], "success") - instant(pairs[0][0], "success")) / len(pairs)
    print(
        f"{count:6} runs that wait for one slot: the next begins {median(waits) * 1000:.1f} ms after an end"
        f" (median), {max(waits) * 1000:.1f} ms at most; {whole * 1000:.1f} ms from end to end (mean)"
    )
    return median(waits)


def main() -> None:
    with serving() as server:
        for job_id, text in JOBS.items():
            server.write(job_id, text)
        client = Client(server)
        reload(server)
        release(client)
        chain(server, client, FEW)
        chain(server, client, MANY)
        client.close()


if __name__ == "__main__":
    main()
