"""A Linux of the test's own, with the controllers of cgroup v2, whatever the machine's kernel offers.

User Mode Linux (Debian's package user-mode-linux) is a kernel that runs as a process, without rights. Its
root file system is this machine's, read only; /run is its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
KERNEL = "linux.uml"
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
export PATH={path} HOME=/run TMPDIR=/run PYTHONDONTWRITEBYTECODE=1
cd {root}
{command} < /dev/null
echo "exit status $?"
echo o > /proc/sysrq-trigger
sleep 60
"""


def run(command: str, directory: Path, timeout: float, **environ: str) -> tuple[int, str]:
    """Boot, run a command of the shell as root in the project's directory: its exit status, and all it said.

    `directory` is for files of the kernel's; `timeout` in seconds, for all of it; `environ`: of the kernel.
    """
    assert shutil.which(KERNEL), f"{KERNEL} is needed: apt-get install user-mode-linux"
    init = directory / "init"
    init.write_text(INIT.format(path=os.environ["PATH"], root=ROOT, command=command))
    init.chmod(0o755)
    done = subprocess.run(
        [KERNEL, "mem=768M", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}", "quiet", "loglevel=1"]
        + ["con=null", "con0=null,fd:1", f"uml_dir={directory}", f"umid={os.getpid()}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"TMPDIR": str(directory)} | environ,
        timeout=timeout,
        check=False,
    )
    said = done.stdout.decode(errors="replace").replace("\r", "")
    status = re.search(r"^exit status (\d+)$", said, re.MULTILINE)
    assert status, f"the kernel did not come to the end of its work:\n{said}"
    return int(status[1]), said


def pytest_command(scenario: str) -> str:
    """What runs the tests of a file there, and names each that passed."""
    options = "--color=no -rp -o addopts= -o timeout=0 -p no:cacheprovider -p no:xdist --basetemp=/run/tests"
    return f"{sys.executable} -m pytest tests/{scenario} {options}"
