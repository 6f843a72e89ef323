"""The n-th-fault loop on a real server: it kills itself at the n-th commit, send or receive of its life.

Lives follow each other in one campaign, whose verdict is that of any other. `python -m chaos.kills`, in
tests/, plays every n up to 60 (tests/test_nth_fault.py plays a sample; and every n without processes).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from subprocess import TimeoutExpired

from chaos import campaign
from chaos.nemesis import History
from chaos.world import PATIENCE, World

Point = tuple[str, str, int]  # kind, mode, n: see launch.py
KINDS = ("commit", "send", "receive")
LIFE = 10.0  # seconds after which a life that has not come to its n-th is ended


def points(numbers: Iterable[int]) -> list[Point]:
    return [(kind, mode, n) for n in numbers for kind in KINDS for mode in ("before", "after")]


def wreck(world: World, lives: Iterable[Point], say: Callable[[str], None]) -> History:
    history, begun = History(), time.monotonic()
    world.kill_server()
    for kind, mode, n in lives:
        world.launch["die"] = (kind, mode, n)
        world.start_server()
        assert world.server is not None
        try:
            status = world.server.wait(LIFE)
            if status != -9:
                history.wrongs.append(f"the server, to die {mode} {kind} {n}, ended with status {status}")
            history.counts[f"{mode} {kind}"] += 1
        except TimeoutExpired:
            world.kill_server()
            history.counts["by the clock"] += 1
        say(f"{time.monotonic() - begun:6.1f} died {mode} {kind} {n}")
    del world.launch["die"]
    world.start_server()
    world.await_serving()
    return history


def play(directory: Path, lives: Iterable[Point], say: Callable[[str], None]) -> campaign.Outcome:
    # On a slow machine it takes minutes until a server lives long enough to hear of a program.
    return campaign.run(
        directory, lambda world: wreck(world, lives, say), reconnect=60.0, patience=PATIENCE, over=900
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="kills", description=__doc__)
    parser.add_argument("--to", type=int, default=60, metavar="N", help="the last n")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="apsis-chaos-") as directory:
        lives = points(range(1, given.to + 1))
        outcome = play(Path(directory), lives, lambda text: print(text, file=sys.stderr, flush=True))
    print(f"kills: {outcome}")
    return 0 if outcome.verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
