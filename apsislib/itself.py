"""How this very installation is run again, for processes of its own: by a checkout, a wheel or apsis.pyz."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # what holds apsis.py, and in apsis.pyz all that it needs
UNPACKED = ".unpacked"  # lies in a root that apsis.pyz has made
LOAD = "_load-jobs"  # the command of the process that reads jobs for a server: see loading.py

# Not by PYTHONPATH: programs of an agent, which may run by another Python, would inherit it. A root that
# is on the path already is that of installed packages, and stays behind the standard library.
_START = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from apsis import main; sys.exit(main())"
)


def command(*words: str) -> list[str]:
    """What runs `apsis WORDS`, whatever the environment is and whatever lies in the working directory."""
    return [sys.executable, "-P", "-c", _START, str(ROOT), *words]


def hold() -> None:
    """For as long as this process lives, nobody tidies away the files that it has been unpacked to.

    The lock is heeded by systemd-tmpfiles, and by an apsis.pyz that removes what older ones have left.
    """
    if (ROOT / UNPACKED).exists():
        # Left open, and closed in children: they hold a lock of their own.
        descriptor = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):  # a file system without locks, or somebody else's files
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(ROOT)
