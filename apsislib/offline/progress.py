"""A progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Event, Thread

WIDTH = 30
EVERY = 0.1  # s


class Progress:
    """`with Progress(total, "runs") as progress: progress(done)`; or, with `measure`, it looks by itself."""

    def __init__(self, total: int, unit: str, measure: Callable[[], int] | None = None) -> None:
        self._total = total
        self._unit = unit
        self._measure = measure
        self._shown = sys.stderr.isatty() and total > 0
        self._ended = Event()
        self._looks = Thread(target=self._look, name="apsis-progress")

    def __call__(self, done: int) -> None:
        if self._shown:
            done = min(done, self._total)
            full = WIDTH * done // self._total
            bar = "#" * full + "." * (WIDTH - full)
            print(f"\r[{bar}] {done:,} of {self._total:,} {self._unit}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        self(0)
        if self._measure is not None:
            self._looks.start()
        return self

    def _look(self) -> None:
        while self._measure is not None and not self._ended.wait(EVERY):
            self(self._measure())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if self._measure is not None:
            self._looks.join()
            if kind is None:
                self(self._total)
        if self._shown:
            print(file=sys.stderr)
