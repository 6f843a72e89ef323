"""Every benchmark, or those that are named, one after the other: `make bench`.

python benchmarks/run.py [NAME]...      the names are in ALL, below
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ALL = ("year", "store", "rest", "due", "waiters", "echo", "memory", "upkeep", "moving", "agents", "recovery")


def main() -> int:
    names = sys.argv[1:] or ALL
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no such benchmark: {' '.join(unknown)} (there are: {' '.join(ALL)})", file=sys.stderr)
        return 2
    print(f"Python {platform.python_version()}, {platform.machine()}", flush=True)
    failed = 0
    for name in names:
        print(f"\n# {name}", flush=True)
        failed |= subprocess.run(
            [sys.executable, str(HERE / f"{name}.py")], cwd=HERE.parent, check=False
        ).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
