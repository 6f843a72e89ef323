"""Libraries for LD_PRELOAD, compiled from the C files beside this one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def build(name: str, directory: Path) -> Path:
    """NAME.c, compiled into `directory`."""
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is missing: install Debian's packages gcc and libc6-dev"
    library = directory / f"{name}.so"
    source = str(HERE / f"{name}.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"], check=True)
    return library
