"""`/bin/echo` on one local agent: one after the other, many at a time, and a thousand asked for at once.

From the request until the run is shown as a success.

python benchmarks/echo.py
"""

from __future__ import annotations

from time import perf_counter, sleep

from serving import Client, Server, milliseconds, serving

RUNS = 1000
LOOK = 0.002  # s; between two looks at the runs that are going on
OUTPUT = len("number 0000\n")


def load(server: Server, together: int, runs: int) -> tuple[float, list[float]]:
    """Seconds of the whole, and of each run, when so many are kept going `together`."""
    client = Client(server)
    begun: dict[str, float] = {}
    took: dict[str, float] = {}
    begin = perf_counter()
    while len(took) < runs:
        while len(begun) < together and len(begun) + len(took) < runs:
            now = perf_counter()
            number = f"{len(begun) + len(took):04}"
            begun[
                next(iter(client.ask("POST", "/runs", {"job_id": "echo", "args": {"n": number}})["runs"]))
            ] = now
        query = "&".join(f"run_id={run_id}" for run_id in begun)
        for run_id, run in client.ask("GET", f"/runs?summary=true&{query}")["runs"].items():
            assert run["state"] not in ("failure", "error"), run
            if run["state"] == "success":
                took[run_id] = perf_counter() - begun.pop(run_id)
        sleep(LOOK)
    seconds = perf_counter() - begin
    for run_id in took:
        (output,) = client.ask("GET", f"/runs/{run_id}/outputs")
        assert output["output_len"] == OUTPUT
    client.close()
    return seconds, list(took.values())


def at_once(server: Server) -> float:
    """Seconds until RUNS runs of one request have succeeded."""
    client = Client(server)
    begin = perf_counter()
    made = client.ask("POST", f"/runs?count={RUNS}", {"job_id": "echo", "args": {"n": "once"}})["runs"]
    last = max(made, key=lambda run_id: int(run_id[1:]))
    while client.ask("GET", f"/runs/{last}")["runs"][last]["state"] != "success":
        sleep(0.02)
    while len(client.ask("GET", "/runs?job_id=echo&n=once&state=success")["runs"]) < RUNS:
        sleep(0.02)
    client.close()
    return perf_counter() - begin


def main() -> None:
    with serving() as server:
        load(server, 8, 200)  # warm
        for together, runs in ((1, 200), (8, RUNS), (32, RUNS)):
            seconds, took = load(server, together, runs)
            print(
                f"echo on one agent, {together:4} in flight: {len(took) / seconds:6,.0f} runs/s"
                f"  {milliseconds(took)}",
                flush=True,
            )
        print(f"echo on one agent, {RUNS} at once:    {RUNS / at_once(server):6,.0f} runs/s")


if __name__ == "__main__":
    main()
