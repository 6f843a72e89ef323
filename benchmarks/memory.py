"""What a server takes: memory with nothing to do, and with an output of 1 GB that arrives.

python benchmarks/memory.py
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import requests
from serving import Client, Server, serving

SIZE = 1_000_000_000  # bytes
JOB = f"""
program:
  type: procstar-shell
  command: yes 'a line of a program that has a lot to say' | head -c {SIZE}
  output: {{max_size: 2 GB}}
"""


def memory(server: Server, name: str) -> float:
    """VmRSS or VmHWM (the most that it ever was), in MB."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024 / 1e6


def main() -> None:
    with serving() as server:
        client = Client(server)
        server.until(server.schedule({"job_id": "echo", "args": {"n": "1"}}), "success")
        print(f"idle: {memory(server, 'VmRSS'):6.1f} MB")
        server.write("much", JOB)
        requests.post(f"{server.url.removesuffix('/v1')}/control/reload_jobs", timeout=60).raise_for_status()
        before = memory(server, "VmHWM")
        begin = perf_counter()
        run_id = server.schedule({"job_id": "much"})
        run = server.until(run_id, "success", "failure", "error")
        assert run["state"] == "success", server.messages(run_id)
        while client.ask("GET", f"/runs/{run_id}/outputs")[0]["output_len"] < SIZE:
            pass
        seconds = perf_counter() - begin
        grown = memory(server, "VmHWM") - before
        size = (server.directory / "apsis.db").stat().st_size / 1e6
        rate = SIZE / 1e6 / seconds
        print(f"1 GB of output: {rate:.0f} MB/s, {grown:.0f} MB more memory, {size:.0f} MB of file")
        client.close()


if __name__ == "__main__":
    main()
