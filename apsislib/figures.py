"""Figures of a server, and what the operating system and the interpreter say of its process."""

from __future__ import annotations

import errno
import gc
import os
import resource
import threading
from pathlib import Path
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Extent:
    """The last, largest and mean of a figure."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._max = self._last = self._peak = 0.0

    def add(self, value: float) -> None:
        self._count += 1
        self._sum += value
        self._last = value
        self._max = max(self._max, value)
        self._peak = max(self._peak, value)

    def take_peak(self) -> float:
        """The largest since this was last asked; for one asker."""
        peak, self._peak = self._peak, 0.0
        return peak

    def json(self) -> dict[str, float]:
        mean = self._sum / self._count if self._count else 0.0
        return {"count": self._count, "last": self._last, "max": self._max, "mean": mean}


def process() -> dict[str, Any]:
    """Memory in bytes, processor time in seconds; /proc/self/statm where there is one."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    try:
        size, resident = (int(pages) * _PAGE for pages in Path("/proc/self/statm").read_text().split()[:2])
    except OSError:
        size = resident = 0
    try:
        files = len(os.listdir("/proc/self/fd")) - 1  # but for the one that lists
    except OSError as error:  # there is none left to list them by
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if error.errno == errno.EMFILE else 0
    return {
        "rusage_maxrss": used.ru_maxrss * 1024,
        "rusage_utime": used.ru_utime,
        "rusage_stime": used.ru_stime,
        "statm_size": size,
        "statm_resident": resident,
        "open_files": files,
        "threads": threading.active_count(),
        "gc": gc.get_stats(),
    }


def shortage() -> str | None:
    """Why this process can open no files, and so take no connections; None: it can."""
    try:
        os.close(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return f"can't open files or take connections: {error.strerror}; raise the limit of open files"
    return None
