"""`python -m chaos --seconds 60 --seed 1`, in tests/: a campaign, and what came of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from chaos.campaign import campaign


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="leave ledger, logs and database there")
    given = parser.parse_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="apsis-chaos-") as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        outcome = campaign(directory, given.seed, given.seconds, say)
    print(f"chaos: seed={given.seed} {outcome}")
    return 0 if outcome.verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
