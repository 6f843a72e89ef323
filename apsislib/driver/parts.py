"""What the driver is given from above, where its layer may not look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from apsislib.config.keys import Smtp
from apsislib.jobs import JobSet
from apsislib.runs import Job, Json, Run


class Program(Protocol):
    """A bound program, as the driver calls it (programs/base.py says what each call means)."""

    def limits(self) -> Any: ...
    def prepare(self, run: Run) -> Json | None: ...
    def launch(self, run: Run, host: Any) -> None: ...
    def connect(self, run: Run, host: Any) -> None: ...
    def send(self, run: Run, host: Any) -> None: ...
    def signal(self, run: Run, host: Any, signum: int, stop: bool) -> None: ...
    def wake(self, run: Run, host: Any) -> None: ...
    def forget(self, run: Run, host: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    load_program: Callable[[Json], Program]
    parse_ad_hoc: Callable[[Mapping[str, Any], str], Job]
    load_jobs: Callable[[], JobSet]  # reads and checks the job directory; raises JobErrors
    get_calendar: Callable[[str], Any]
    host: Callable[[Any], Any]  # makes the Host that programs are given, of the driver
    die: Callable[[str], None]  # the process cannot go on: exits with status 70
    smtp: Smtp = field(default_factory=Smtp)  # how e-mail actions send
