"""`/bin/echo` on one local agent: one after the other, many at a time, and a thousand asked for at once.

From the request until the run is shown as a success and its output is on disk.

python benchmarks/echo.py
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from time import perf_counter, sleep

from serving import Client, Server, milliseconds, serving

RUNS = 1000
LOOK = 0.005  # s; between two looks at a run
OUTPUT = len("number 0000\n")


def load(server: Server, clients: int, runs: int) -> tuple[float, list[float]]:
    """Seconds of the whole, and of each run."""
    numbers: SimpleQueue[int] = SimpleQueue()
    for number in range(runs):
        numbers.put(number)
    took: list[float] = []

    def work() -> None:
        client = Client(server)
        try:
            while True:
                number = numbers.get_nowait()
                begin = perf_counter()
                made = client.ask("POST", "/runs", {"job_id": "echo", "args": {"n": f"{number:04}"}})["runs"]
                ((run_id, run),) = made.items()
                while run["state"] != "success":
                    assert run["state"] not in ("failure", "error"), run
                    sleep(LOOK)
                    run = client.ask("GET", f"/runs/{run_id}")["runs"][run_id]
                took.append(perf_counter() - begin)
                (output,) = client.ask("GET", f"/runs/{run_id}/outputs")
                assert output["output_len"] == OUTPUT
        except Empty:
            client.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begin = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == runs
    return perf_counter() - begin, took


def at_once(server: Server) -> float:
    """Seconds until RUNS runs of one request have succeeded."""
    client = Client(server)
    begin = perf_counter()
    made = client.ask("POST", f"/runs?count={RUNS}", {"job_id": "echo", "args": {"n": "once"}})["runs"]
    done = 0
    while done < RUNS:
        sleep(0.05)
        run = client.ask("GET", f"/runs/{max(made, key=lambda run_id: int(run_id[1:]))}")
        if next(iter(run["runs"].values()))["state"] == "success":
            found = client.ask("GET", "/runs?job_id=echo&n=once")["runs"].values()
            done = sum(run["state"] == "success" for run in found)
    seconds = perf_counter() - begin
    client.close()
    return seconds


def main() -> None:
    with serving() as server:
        load(server, 8, 200)  # warm
        for clients, runs in ((1, 200), (8, RUNS), (32, RUNS)):
            seconds, took = load(server, clients, runs)
            print(
                f"echo on one agent, {clients:4} in flight: {len(took) / seconds:6,.0f} runs/s"
                f"  {milliseconds(took)}",
                flush=True,
            )
        print(f"echo on one agent, {RUNS} at once:    {RUNS / at_once(server):6,.0f} runs/s")


if __name__ == "__main__":
    main()
