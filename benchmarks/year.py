"""How long a simulated year takes: 200 jobs in five zones, through kernel, conditions and actions.

python benchmarks/year.py
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sim import Sim, instant  # noqa: E402
from test_year import END, START, build  # noqa: E402

from apsis import GC_THRESHOLD  # noqa: E402


def main() -> None:
    sim = Sim(START)
    counts = build(sim)
    gc.collect()
    gc.freeze()  # as a server does once its jobs are read
    gc.set_threshold(*GC_THRESHOLD)
    begin = perf_counter()
    sim.run_until(instant(END) - 1)
    took = perf_counter() - begin
    print(
        f"jobs {len(counts)}  runs {len(sim.rows):,}  seconds {took:.2f}  runs/s {len(sim.rows) / took:,.0f}"
    )


if __name__ == "__main__":
    main()
