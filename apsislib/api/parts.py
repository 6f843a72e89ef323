"""What the API is given: the server as seen from its HTTP door."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Protocol

from apsislib.api.catalog import Catalog, Later
from apsislib.clock import Clock
from apsislib.errors import Unavailable
from apsislib.jobs import JobSet
from apsislib.metrics import Tally
from apsislib.runs import Args, Job, Json, Run
from apsislib.states import State
from apsislib.store import Store


class Engine(Protocol):
    """The driver. Whatever changes a run answers after its commit, or raises an ApsisError."""

    @property
    def jobs(self) -> JobSet: ...
    @property
    def is_running(self) -> Event: ...
    @property
    def tally(self) -> Tally: ...

    def match(self, job_id: str) -> Job:
        """The job of this ID, or the only one that it abbreviates. Raises NotFound or BadRequest."""

    def expected(self, job_id: str | None = None) -> Sequence[Run]:
        """Runs that schedules have made ahead of time: in memory only, in no order."""

    def next_runs(self) -> Mapping[str, Run]:
        """Of each job that has any, the expected run that is due first."""

    def expected_run(self, run_id: str) -> Run | None: ...
    def find_run(self, run_id: str) -> Run: ...

    def create(
        self,
        job_id: str,
        args: Args,
        schedule: float | None = None,
        stop: float | None = None,
        count: int = 1,
    ) -> list[Run]: ...

    def create_ad_hoc(
        self,
        mapping: Json,
        args: Args,
        schedule: float | None = None,
        stop: float | None = None,
        count: int = 1,
    ) -> list[Run]: ...

    def skip(self, run_id: str, reason: str = "") -> Run: ...
    def start_run(self, run_id: str, reason: str = "") -> Run: ...
    def stop_run(self, run_id: str, reason: str = "") -> Run: ...
    def signal(self, run_id: str, signum: int, reason: str = "") -> Any: ...
    def mark(self, run_id: str, state: State, reason: str = "") -> Any: ...
    def rerun(self, run_id: str, reason: str = "") -> Run: ...

    def bulk(
        self,
        verb: str,
        run_ids: Sequence[str],
        *,
        signum: int = 0,
        state: State | None = None,
        dry_run: bool = False,
        reason: str = "",
    ) -> tuple[dict[str, str], dict[str, str]]:
        """(run ID -> run ID, or of its rerun; run ID -> why not)."""

    def waiting(self, run_id: str) -> Iterable[Json]:
        """Each condition of a waiting run: what it is, whether it holds, why not, since when."""

    def stats(self) -> Json: ...
    def ailments(self) -> list[str]:
        """What keeps runs from starting in time; empty: nothing."""

    def reload(self, dry_run: bool) -> Json: ...
    @property
    def last_reload(self) -> Json:
        """What the last reload, or the start, made of the job directory."""


WAITING = 4  # large answers that wait for their turn; each keeps a thread, of which there are 64


class Turns:
    """Large answers are made one at a time: four at once would leave the scheduler a fifth of the
    interpreter, and its runs would begin late."""

    def __init__(self) -> None:
        self._lock = Lock()  # protects _asked; leaf
        self._asked = 0  # answers that are being made or wait
        self._turn = Lock()

    @contextmanager
    def take(self, large: bool = True) -> Iterator[None]:
        """Wait for the turn of an answer. Unavailable, at once: too many wait already."""
        if not large:
            yield
            return
        with self._lock:
            if self._asked > WAITING:
                raise Unavailable("too many large answers are being made; ask for less, or try again later")
            self._asked += 1
        try:
            with self._turn:
                yield
        finally:
            with self._lock:
                self._asked -= 1


class Places:
    """Files that are being made of runs: a few at once, as each keeps a thread while it is sent."""

    def __init__(self, count: int = 3) -> None:
        self._lock = Lock()  # protects _taken; leaf
        self._count = count
        self._taken = 0

    def are_full(self) -> bool:
        return self._taken >= self._count

    @contextmanager
    def take(self) -> Iterator[None]:
        with self._lock:
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1


@dataclass(frozen=True, slots=True)
class Parts:
    driver: Engine
    store: Store
    clock: Clock
    # Agent connections by conn_id, as 2.2 of the API shows them; None: this server takes no agents.
    connections: Callable[[], Mapping[str, Json]] | None = None
    # Ends the server; with True it is started again. Called once the answer has been sent.
    shut_down: Callable[[bool], None] = lambda restart: None
    version: str = "0"
    # Seconds. Runs that last changed longer ago are left out of lists; None: none are.
    lookback: float | None = None
    # Agents' connections that came and went, as agent_server.history() has them.
    history: Callable[[], Sequence[Json]] = lambda: ()
    # The points of a ring of samples.
    series: Callable[[str], Json] = lambda name: {"end": "", "step": 0.0, "series": {}}
    # The configuration in force, without secrets.
    config: Callable[[], Json] = dict
    turns: Turns = field(default_factory=Turns)
    files: Places = field(default_factory=Places)
    catalog: Catalog = field(default_factory=Catalog)
    later: Later = field(default_factory=Later)

    def oldest(self) -> float | None:
        """The instant before which lists do not reach."""
        return None if self.lookback is None else self.clock.wall() - self.lookback
