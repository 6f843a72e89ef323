"""Keeping the database small: old runs leave it, in steps that nobody has to wait for.

The same for the programs of a server and for the commands that do it while no server runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

from apsislib.clock import Clock
from apsislib.runs import Run
from apsislib.store import CANT_READ, Archive, Reader, Store, Version

log = logging.getLogger(__name__)

STEP = 50  # runs a transaction: some 5 ms, which a transition may have to wait
SWEPT = 32  # chunks a transaction, 8 MiB at most
LISTED = 1000  # IDs of retired runs that are told, for they go into the record of a run


@dataclass(slots=True)
class Retired:
    """What has been done so far."""

    runs: int = 0
    log: int = 0  # rows
    outputs: int = 0  # rows
    chunks: list[list[str]] = field(default_factory=list)  # run IDs, the first LISTED of them
    left: dict[str, str] = field(default_factory=dict)  # run ID -> why it stays
    seconds: dict[str, float] = field(default_factory=lambda: {"get runs": 0.0, "archive runs": 0.0})

    def to_json(self) -> dict[str, Any]:
        return {
            "run count": self.runs,
            "run_ids": self.chunks,
            "row counts": {"run_history": self.log, "output": self.outputs, "runs": self.runs},
            "time": {name: round(seconds, 6) for name, seconds in self.seconds.items()},
        }


class Upkeep:
    """Chores on a store that is open and whose writer runs. Any thread; one chore at a time."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        is_live: Callable[[str], bool] = lambda run_id: False,
        retired: Callable[[set[str]], None] = lambda job_ids: None,
    ) -> None:
        """`is_live`: whether a run is in memory. `retired` is told the jobs of runs that are gone."""
        self._store = store
        self._clock = clock
        self._is_live = is_live
        self._told = retired
        self._lock = Lock()  # held for the whole of a chore

    def count(self, before: float) -> int:
        """How many runs are finished since before the instant `before`."""
        with self._store.read() as reader:
            return reader.count_retirable(before)

    def retire(
        self,
        before: float,
        count: int,
        archive: Path | None,
        *,
        chunk: int | None = None,
        pause: float = 0.0,
        progress: Callable[[Retired], None] = lambda retired: None,
        stop: Event | None = None,
    ) -> Retired:
        """Move up to `count` of the runs that finished before an instant to the archive; None: delete them.

        The oldest first; `pause` seconds after every `chunk` runs. `progress` is called after each step;
        `stop` ends it after the step under way. Wherever this is cut off, each run is in the database or
        in the archive, and the next call goes on. ApsisError: it cannot go on.
        """
        stop = stop or Event()
        done = Retired()
        with self._lock:
            target = None if archive is None else Archive(archive, self._store.path)
            try:
                self._retire(before, count, target, chunk or count, pause, progress, stop, done)
                self._sweep()
            finally:
                if target is not None:
                    target.close()
        return done

    def vacuum(self) -> tuple[int, int]:
        """Rewrite the database without gaps: its size before and after, in bytes. Nobody waits for it.

        ApsisError: it cannot be done.
        """
        with self._lock:
            return self._store.vacuum()

    def _retire(
        self,
        before: float,
        count: int,
        archive: Archive | None,
        chunk: int,
        pause: float,
        progress: Callable[[Retired], None],
        stop: Event,
        done: Retired,
    ) -> None:
        after: tuple[float, int] | None = None
        taken = in_chunk = 0
        done.chunks.append([])
        while taken < count and not stop.is_set():
            start = self._clock.monotonic()
            with self._store.read() as reader:
                found = reader.retirable(before, after, min(STEP, count - taken, chunk - in_chunk))
                if not found:
                    break
                after = found[-1]
                taken += len(found)
                in_chunk += len(found)
                run_ids = [f"r{number}" for _, number in found]
                readable = reader.runs(run_ids=run_ids)
                for run_id in {*run_ids} - {run.run_id for run in readable}:
                    done.left[run_id] = CANT_READ
                runs = self._settled(readable, done)
                read = self._clock.monotonic()
                done.seconds["get runs"] += read - start
                self._retire_step(reader, runs, archive, done)
            done.seconds["archive runs"] += self._clock.monotonic() - read
            self._told({run.job_id for run in runs})
            progress(done)
            if in_chunk >= chunk and taken < count:
                in_chunk = 0
                done.chunks.append([])
                stop.wait(pause)

    def _settled(self, runs: Sequence[Run], done: Retired) -> list[Run]:
        """Those that nothing is being written of any more."""
        settled = []
        for run in runs:
            if self._is_live(run.run_id) or self._store.has_pending(run.run_id):
                done.left[run.run_id] = "it has only just finished"
            else:
                settled.append(run)
        return settled

    def _retire_step(self, reader: Reader, runs: list[Run], archive: Archive | None, done: Retired) -> None:
        if archive is None:
            versions = [Version(run.run_id, run.rev) for run in runs]
        else:
            copied = archive.copy(reader, runs)
            versions = copied.versions
            done.left |= copied.left
            for run_id, reason in copied.left.items():
                log.warning("run %s stays in the database: %s", run_id, reason)
            done.log += copied.log
            done.outputs += copied.outputs
        self._store.wait(self._store.delete_runs(versions))
        still = {run.run_id for run in reader.runs(run_ids=[version.run_id for version in versions])}
        for run_id in still:
            done.left[run_id] = "it changed meanwhile"
        gone = [version.run_id for version in versions if version.run_id not in still]
        done.runs += len(gone)
        done.chunks[-1] += gone[: max(0, LISTED - sum(map(len, done.chunks)))]

    def _sweep(self) -> None:
        """Free what large outputs took, of this chore and of any that was cut off."""
        with self._store.read() as reader:
            while not reader.is_swept():
                self._store.wait(self._store.sweep(SWEPT))


def describe(done: Retired) -> list[str]:
    """Why runs stay, a line for each reason."""
    reasons: dict[str, list[str]] = {}
    for run_id, reason in done.left.items():
        reasons.setdefault(reason, []).append(run_id)
    return [
        f"{len(run_ids)} runs stay ({', '.join(run_ids[:5])}{', ...' if len(run_ids) > 5 else ''}): {reason}"
        for reason, run_ids in reasons.items()
    ]
