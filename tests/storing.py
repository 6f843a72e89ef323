"""A store on a real file, and what it told: for the tests of the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apsislib.clock import Deadline, WallClock
from apsislib.runs import Run
from apsislib.states import State
from apsislib.store import Grew, Store

PATIENCE = 60.0  # s; for what takes milliseconds


class Told:
    """The callbacks of a store, and what they were called with."""

    def __init__(self) -> None:
        self.committed: list[Any] = []
        self.grew: list[Grew] = []
        self.unwritable: list[tuple[Any, Exception]] = []
        self.failing: list[str | None] = []
        self.deaths: list[BaseException] = []
        self.commits = 0
        self.threads: set[str] = set()
        self._changed = threading.Condition()

    def attach(self, store: Store) -> None:
        store.committed = self._on_commit
        store.unwritable = lambda effect, error: self._note(self.unwritable, (effect, error))
        store.failing = lambda message: self._note(self.failing, message)
        store.on_death = lambda error: self._note(self.deaths, error)

    def _note(self, to: list[Any], value: Any) -> None:
        with self._changed:
            to.append(value)
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def _on_commit(self, effects: list[Any], grew: list[Grew]) -> None:
        with self._changed:
            self.committed += effects
            self.grew += grew
            self.commits += 1
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], Any]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)


@contextmanager
def opened(path: Path, *, start: bool = True, **options: Any) -> Iterator[tuple[Store, Told]]:
    store, told = Store(path, WallClock(), **options), Told()
    told.attach(store)
    store.open()
    if start:
        store.start()
    try:
        yield store, told
    finally:
        store.close(Deadline(PATIENCE))


def put(store: Store, *effects: Any) -> None:
    """Put, and wait for the disk."""
    store.wait(store.put(effects), PATIENCE)


def output_of(store: Store, run_id: str, output_id: str = "output", **span: Any) -> bytes:
    with store.read() as reader:
        return b"".join(reader.output(run_id, output_id, **span))


def a_run(number: int, state: State = State.SUCCESS, job_id: str = "etl/load", **fields: Any) -> Run:
    """A run with something in every field."""
    values: dict[str, Any] = {
        "args": {"date": f"2031-05-{number % 28 + 1:02}", "region": "eu"},
        "timestamp": 1e9 + number,
        "times": {"schedule": 1e9 + number, state.value: 1e9 + number + 0.123456789},
        "program": {"type": "procstar", "argv": ["/bin/echo", "naïve ☃"]},
        "conds": ({"type": "const", "value": True},),
        "actions": ({"type": "schedule", "job_id": "next", "args": {}},),
        "meta": {"job": {"labels": ["etl"]}, "elapsed": 9.5},
        "run_state": {"conn_id": "c", "proc_id": f"p{number}"},
        "rev": 3,
    }
    return Run(f"r{number}", job_id, state=state, **values | fields)
