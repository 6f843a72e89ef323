"""How long `apsis import-db` takes, and how much memory.

python benchmarks/moving.py [runs, 100000 if not given]: each with four lines of log, a tenth with 2 kB of
output. The old database is made in a temporary directory, in the form of Apsis 2.4.3.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from olddb import CLOCK, OldDb, written  # noqa: E402

MEASURED = (
    "import resource, sys, apsis; status = apsis.main(sys.argv[1:]);"
    " print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(status)"
)


def filled(path: Path, runs: int) -> Path:
    old = OldDb(path)
    old.db.execute("BEGIN")
    names = ("scheduled", "schedule", "starting", "running", "success")
    output = random.Random(1).randbytes(1000) * 2
    for number in range(1, runs + 1):
        at = CLOCK - 3 * runs + 3 * number - 100
        args = {"date": f"{2000 + number % 30}-01-01", "region": "eu"}
        times = {name: at + 0.1 * i for i, name in enumerate(names)}
        meta = {"job": {"labels": ["night"]}, "program": {"pid": number}, "elapsed": 0.1}
        run_id = old.run(number, args=args, job_id=f"job/{number % 500}", at=at, times=times, meta=meta)
        for text in (f"scheduled: {written(at)}", "starting", "running", "success"):
            old.line(run_id, text, at)
        if number % 10 == 0:
            old.output(run_id, output)
    old.db.execute("COMMIT")
    return old.close()


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as directory:
        old, new = filled(Path(directory) / "old.db", runs), Path(directory) / "new.db"
        size = old.stat().st_size >> 20
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "import-db", str(old), str(new), "--format", "json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        took = time.monotonic() - began
        report = json.loads(done.stdout)
        assert report["runs"] == {"success": runs} and report["log"] == 4 * runs
        peak = int(done.stderr.split()[-1]) >> 10
        print(f"{runs:,} runs, {size:,} MiB: {took:.1f} s, {runs / took:,.0f} runs a second, peak {peak} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
