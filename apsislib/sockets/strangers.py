"""What is logged of those who come to a port and are not let in: enough to see who, never a full disk.

Anybody may connect, as often as they like, and much of what they send ends in a log line. So lines are
counted, by address and in all, and beyond a number in a minute only how many more there were is said.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter

from apsislib.clock import Clock

log = logging.getLogger(__name__)

PERIOD = 60.0  # seconds
EACH = 10  # lines in a period about one address: a scanner must not hush others
ALL = 100  # and about all of them
ADDRESSES = 1000  # whose surplus is told apart in a period; those after them count as one


class Strangers:
    """Any thread may use it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # protects all below; leaf
        self._since: float | None = None  # monotonic; the first line of the period
        self._lines: Counter[str] = Counter()  # by address
        self._more: Counter[str] = Counter()  # lines that were not written, by address

    def say(self, level: int, address: str, text: str, *args: object) -> bool:
        """Log a line about somebody at `address`, unless there were too many. Whether it was logged."""
        self.sum_up()
        with self._lock:
            if self._since is None:
                self._since = self._clock.monotonic()
            said = self._lines[address] < EACH and self._lines.total() < ALL
            if said:
                self._lines[address] += 1
            else:
                known = address in self._more or len(self._more) < ADDRESSES
                self._more[address if known else "others"] += 1
        if said:
            log.log(level, "%s", visible(text % args))
        return said

    def sum_up(self, now: bool = False) -> str | None:
        """Say how many more there were, once the period is over or, with `now`, so far; what was said."""
        with self._lock:
            over = self._since is not None and self._clock.monotonic() >= self._since + PERIOD
            if not (over or now):
                return None
            more, self._more = self._more, Counter()
            self._lines.clear()
            self._since = None
        if not more:
            return None
        [(who, most)] = more.most_common(1)
        text = f"… and {more.total():,} more in the last minute, {most:,} of them from {who}"
        log.warning("%s", text)
        return text


def visible(text: str) -> str:
    """A text in which others had a say, as one line of the log: no line breaks, nothing for terminals."""
    return "".join([c if c.isprintable() else repr(c)[1:-1] for c in text])
