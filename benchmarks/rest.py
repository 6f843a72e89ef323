"""No-op runs by REST: from the request to the answer that says success, each committed on the way.

python benchmarks/rest.py
"""

from __future__ import annotations

import threading
from time import perf_counter

from serving import Client, milliseconds, serving

RUNS = 2000


def load(server: object, clients: int) -> tuple[float, list[float]]:
    """Seconds of the whole, and of each run."""
    took: list[float] = []

    def work() -> None:
        client = Client(server)  # type: ignore[arg-type]
        for _ in range(RUNS // clients):
            begin = perf_counter()
            made = client.ask("POST", "/runs", {"job_id": "nothing", "args": {}})["runs"]
            ((run_id, run),) = made.items()
            while run["state"] != "success":
                run = client.ask("GET", f"/runs/{run_id}")["runs"][run_id]
            took.append(perf_counter() - begin)
        client.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    begin = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return perf_counter() - begin, took


def main() -> None:
    with serving() as server:
        load(server, 8)  # warm
        for clients in (1, 8, 32):
            seconds, took = load(server, clients)
            print(
                f"POST /runs, no-op to success, {clients:2} clients: {len(took) / seconds:7,.0f} runs/s"
                f"  {milliseconds(took)}"
            )


if __name__ == "__main__":
    main()
