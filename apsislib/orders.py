"""What a process is told to do, by signals and by its own threads, one word after the other."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

_FIRST = 128  # codes of words that no signal stands for; signals' numbers are smaller


class Orders:
    """A queue of words that its maker's thread, the main one, waits at.

    The kernel may give a signal to any thread, and does where the main one has just been stopped and
    continued. Python runs handlers in the main thread alone: while that waits for a lock or a queue it would
    not hear of the signal until something else wakes it. So it waits at a pipe, into which Python's part of
    the signal's handler, in whatever thread, writes the number.
    """

    def __init__(self, signals: Mapping[signal.Signals, str], words: Sequence[str] = ()) -> None:
        """In the main thread. `signals`: what each of them says; `words`: what else can be put."""
        self._words = {int(number): word for number, word in signals.items()}
        self._words |= {_FIRST + n: word for n, word in enumerate(words)}
        self._codes = {word: code for code, word in self._words.items()}
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, _heard)

    def put(self, word: str) -> None:
        """From any thread. Raises KeyError for a word that was not announced."""
        code = self._codes[word]
        with suppress(BlockingIOError):  # thousands wait already: one more changes nothing
            os.write(self._writer, bytes((code,)))

    def get(self, timeout: float | None = None) -> str | None:
        """The next word; None after `timeout` seconds without one (never, where that is None)."""
        while select.select([self._reader], [], [], timeout)[0]:
            if word := self._words.get(os.read(self._reader, 1)[0]):
                return word  # the pipe is told of signals with other handlers too: SIGUSR1, say
        return None


def _heard(number: int, frame: object) -> None:
    """The pipe has it."""
