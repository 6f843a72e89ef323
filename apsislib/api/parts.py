"""What the API is given: the server as seen from its HTTP door."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Protocol

from apsislib.clock import Clock
from apsislib.jobs import JobSet
from apsislib.runs import Args, Job, Json, Run
from apsislib.states import State
from apsislib.store import Store


class Engine(Protocol):
    """The driver. Whatever changes a run answers after its commit, or raises an ApsisError."""

    @property
    def jobs(self) -> JobSet: ...
    @property
    def is_running(self) -> Event: ...

    def match(self, job_id: str) -> Job:
        """The job of this ID, or the only one that it abbreviates. Raises NotFound or BadRequest."""

    def expected(self, job_id: str | None = None) -> Sequence[Run]:
        """Runs that schedules have made ahead of time: in memory only, in no order."""

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

    def skip(self, run_id: str) -> Run: ...
    def start_run(self, run_id: str) -> Run: ...
    def stop_run(self, run_id: str) -> Run: ...
    def signal(self, run_id: str, signum: int) -> Any: ...
    def mark(self, run_id: str, state: State) -> Any: ...
    def rerun(self, run_id: str) -> Run: ...

    def waiting(self, run_id: str) -> Iterable[Json]:
        """Each condition of a waiting run: what it is, whether it holds, why not, since when."""

    def stats(self) -> Json: ...
    def ailments(self) -> list[str]:
        """What keeps runs from starting in time; empty: nothing."""

    def reload(self, dry_run: bool) -> Json: ...


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
    # Held while a large answer is made, so that there is one at a time: four would leave the scheduler
    # a fifth of the interpreter, and its runs would begin late.
    turn: Lock = field(default_factory=Lock)

    def oldest(self) -> float | None:
        """The instant before which lists do not reach."""
        return None if self.lookback is None else self.clock.wall() - self.lookback
