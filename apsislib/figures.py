"""What the operating system and the interpreter say of this process."""

from __future__ import annotations

import gc
import os
import resource
import threading
from pathlib import Path
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


def process() -> dict[str, Any]:
    """Memory in bytes, processor time in seconds; /proc/self/statm where there is one."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    try:
        size, resident = (int(pages) * _PAGE for pages in Path("/proc/self/statm").read_text().split()[:2])
    except OSError:
        size = resident = 0
    return {
        "rusage_maxrss": used.ru_maxrss * 1024,
        "rusage_utime": used.ru_utime,
        "rusage_stime": used.ru_stime,
        "statm_size": size,
        "statm_resident": resident,
        "threads": threading.active_count(),
        "gc": gc.get_stats(),
    }
