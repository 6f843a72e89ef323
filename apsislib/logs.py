"""Log lines to a descriptor, never at the price of waiting: who does not read loses lines, not programs."""

from __future__ import annotations

import logging
import os
import select

LINE_MAX = 4096  # bytes; what a pipe that polls as writable takes at once


class Lines(logging.Handler):
    """Writes each record as one line to a descriptor; drops it where that would block, and says so later."""

    def __init__(self, fd: int, patience: float = 0.0, cut: bool = True) -> None:
        """`patience`: seconds that the first line waits for a reader who does not keep up, before lines
        are lost; those after it do not wait. `cut`: lines of more than LINE_MAX."""
        super().__init__()
        self._fd = fd
        self._patience = patience
        self._cut = cut
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if self._lost:
            text = f"({self._lost} lines lost)\n{text}"
        line = (text + "\n").encode("utf-8", "backslashreplace")
        if self._cut and len(line) > LINE_MAX:
            line = line[: LINE_MAX - 4] + b"...\n"
        try:
            for at in range(0, len(line), LINE_MAX):
                self._write(line[at : at + LINE_MAX])
            self._lost = 0
        except BlockingIOError:
            self._lost += 1
        except OSError:
            self._lost += 1
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nobody can read: there is nowhere to say so."""

    def _write(self, data: bytes) -> None:
        # Not O_NONBLOCK: the open file is shared, perhaps with the terminal of an operator.
        ready = self._poll.poll(0 if self._lost else self._patience * 1000)
        if not any(state & ~select.POLLNVAL for _, state in ready):
            raise BlockingIOError
        os.write(self._fd, data)
