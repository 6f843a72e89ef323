"""Classes as users write them: the example of the manual, and some that go wrong."""

from __future__ import annotations

import sys
import threading
from typing import Any


class Count:
    """Counts to `to`, one a step; a stop ends it, a signal is noted, a restart goes on."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.steps = threading.Semaphore(0)
        self.stopped = threading.Event()
        self.signals: list[int] = []
        self.names: dict[str, str] = {}

    @classmethod
    def from_config(cls, mapping: dict[str, Any]) -> Count:
        live = cls(int(mapping.pop("to")))
        assert not mapping, f"unexpected keys: {mapping}"
        LIVE.append(live)
        return live

    def bind(self, names: dict[str, str]) -> Count:
        self.names = names
        return self

    def run(self, run_id: str, cfg: dict[str, Any], report: Any) -> None:
        report.running({"to": self.to}, {"at": 0})
        self._count(report, 0)

    def connect(self, run_id: str, run_state: Any, cfg: dict[str, Any], report: Any) -> None:
        report.log(f"goes on to {run_state['to']}")
        self._count(report, 0)

    def _count(self, report: Any, at: int) -> None:
        while at < self.to:
            self.steps.acquire()
            if self.stopped.is_set():
                report.failure(f"stopped at {at}")
                return
            at += 1
            report.output(f"{at}\n")
            report.update({"at": at})

    def stop(self) -> None:
        self.stopped.set()
        self.steps.release()

    def signal(self, signum: int) -> None:
        self.signals.append(signum)
        self.steps.release()


LIVE: list[Count] = []  # as the server makes them, so that tests can reach in


class Plain:
    """The least that a class needs."""

    @classmethod
    def from_config(cls, mapping: dict[str, Any]) -> Plain:
        return cls()

    def run(self, run_id: str, cfg: dict[str, Any], report: Any) -> None:
        pass


class Broken(Plain):
    def run(self, run_id: str, cfg: dict[str, Any], report: Any) -> None:
        raise RuntimeError("out of luck")


class Leaves(Plain):
    """As scripts end, which have become classes."""

    def run(self, run_id: str, cfg: dict[str, Any], report: Any) -> None:
        report.running()
        sys.exit(3)


class NoProgram:
    pass
