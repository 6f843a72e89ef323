"""How long a simulated year takes: 200 jobs in five zones, through kernel, conditions and actions.

python benchmarks/year.py [TIMES]

Prints each of so many simulations, and the best. CPU seconds are what to compare on a machine that does
other things as well.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from time import perf_counter, process_time

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sim import Sim, instant  # noqa: E402
from test_year import END, START, build  # noqa: E402

from apsis import GC_THRESHOLD  # noqa: E402


def simulate() -> tuple[int, int, float, float]:
    """How many jobs and runs there were; seconds by the clock, and of the processor."""
    sim = Sim(START)
    counts = build(sim)
    gc.collect()
    gc.freeze()  # as a server does once its jobs are read
    begin, cpu = perf_counter(), process_time()
    start, end = instant(START), instant(END) - 1
    for month in range(1, 13):
        sim.run_until(start + (end - start) * month / 12)
        # What Sim holds as its disk: a server's is a file, which the collector never looks at.
        gc.freeze()
    return len(counts), len(sim.rows), perf_counter() - begin, process_time() - cpu


def main() -> None:
    gc.set_threshold(*GC_THRESHOLD)
    found = []
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
        jobs, runs, wall, cpu = simulate()
        found.append((wall, cpu))
        each = f"{cpu / runs * 1e6:.1f} us of CPU a run"
        print(f"jobs {jobs}  runs {runs:,}  seconds {wall:.2f}  CPU seconds {cpu:.2f}  {each}", flush=True)
    if len(found) > 1:
        walls, cpus = zip(*found, strict=True)
        print(f"best: seconds {min(walls):.2f}  CPU seconds {min(cpus):.2f}")


if __name__ == "__main__":
    main()
