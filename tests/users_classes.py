"""Conditions and actions as users write them: the examples of the manual, and some that go wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


class FileExists:
    """Holds once there is a file."""

    interval = 0.1

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    @classmethod
    def from_config(cls, mapping: dict[str, Any]) -> FileExists:
        found = cls(mapping.pop("path"))
        assert not mapping, f"unexpected keys: {mapping}"
        return found

    def check(self, runs: Any) -> bool | str:
        return self.path.exists() or f"{self.path} is not there"


class Plain:
    @classmethod
    def from_config(cls, mapping: dict[str, Any]) -> Plain:
        return cls()


class Asks(Plain):
    """Waits for as many runs of `first` as the run's arg `count` says; then gives up the run."""

    interval = 0.1

    def bind(self, names: dict[str, str]) -> Asks:
        self.names = names
        return self

    def check(self, runs: Any) -> Any:
        found = runs("first", args={}, states=["success"])
        if len(found) < int(self.names["count"]):
            return False
        return "skipped", f"{self.names['run_id']} has seen {found[-1]['run_id']} {found[-1]['state']}"


class Fickle(Plain):
    monotonic = False
    interval = 5.0

    def check(self, runs: Any) -> bool:
        return True


class Fails(Plain):
    def check(self, runs: Any) -> bool:
        raise RuntimeError("out of luck")

    def run(self, snapshot: Any) -> None:
        raise RuntimeError("out of luck")


class Leaves(Plain):
    """As scripts end, which have become classes."""

    def check(self, runs: Any) -> bool:
        sys.exit("no more")

    def run(self, snapshot: Any) -> None:
        sys.exit("no more")


class Odd(Plain):
    def check(self, runs: Any) -> Any:
        return 3


class Write:
    """Writes what it is given to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    @classmethod
    def from_config(cls, mapping: dict[str, Any]) -> Write:
        return cls(mapping["path"])

    def run(self, snapshot: Any) -> str:
        lines = [
            f"{snapshot.run_id} {snapshot.job_id} {dict(snapshot.args)} {snapshot.state}",
            f"{list(snapshot.labels)} {sorted(snapshot.times)}",
            f"{snapshot.program['type']} {snapshot.job['job_id'] if snapshot.job else None}",
            f"{snapshot.output()!r} {[text for _, text in snapshot.log()]}",
        ]
        self.path.write_text("\n".join(lines))
        return f"wrote {self.path.name}"
