"""Log lines to stderr, never at the price of waiting: who does not read them loses lines, not programs."""

from __future__ import annotations

import logging
import os
import select

LINE_MAX = 4096  # bytes; what a pipe that polls as writable takes at once


class Lines(logging.Handler):
    """Writes each record as one line to a descriptor; drops it where that would block, and says so later."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if self._lost:
            text = f"({self._lost} lines lost)\n{text}"
        line = (text + "\n").encode("utf-8", "backslashreplace")
        if len(line) > LINE_MAX:
            line = line[: LINE_MAX - 4] + b"...\n"
        try:
            # Not O_NONBLOCK: the open file is shared, perhaps with the terminal of an operator.
            if not any(state & select.POLLOUT for _, state in self._poll.poll(0)):
                raise BlockingIOError
            os.write(self._fd, line)
            self._lost = 0
        except OSError:
            self._lost += 1
