"""Where stage.py puts a fault, and in which way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

# At which kind of event, and in which way. "before" and "after": the server is killed then; "fails": the
# disk is full for a while; "lost": the connection was gone already, and nothing is written; "cut": it is
# written, and lost with the connection.
MODES = [
    *(("commit", mode) for mode in ("fails", "before", "after")),
    *(("send", mode) for mode in ("lost", "cut", "before", "after")),
    *(("receive", mode) for mode in ("cut", "before", "after")),
]


class Killed(Exception):
    """SIGKILL."""


@dataclass(slots=True)
class Fault:
    """Happens once, at the n-th event of its kind."""

    kind: str = ""
    mode: str = ""
    n: int = 0
    hit: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def at(self, kind: str) -> str | None:
        """The mode, if the fault is to happen at this event."""
        self.counts[kind] += 1
        if kind == self.kind and self.counts[kind] == self.n:
            self.hit = True
            return self.mode
        return None
