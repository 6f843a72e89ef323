"""A systemd that runs for a test: process 1 of namespaces of its own, in which /etc, /run, /tmp, what is
written of /var, and the network are its own too. Of the machine's units it has a few targets.

It needs root, or a sudo that asks for no password, and a mounted cgroup v2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

NEEDED = {"/lib/systemd/systemd": "systemd", "/bin/ip": "iproute2", "/bin/ps": "procps"}
AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]

# $1: cgroup, $2: directory with boot.sh, passwd, group, files and, made here, the upper layer of /etc
START = """
mkdir "$1"
echo $$ > "$1/cgroup.procs"
exec unshare --mount --propagation private --pid --cgroup --uts --ipc --net --fork --kill-child \\
    /bin/sh -eu "$2/boot.sh" "$2"
"""
BOOT = """
mount -t proc proc /proc
umount --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "$1/top"
mount -t tmpfs tmpfs "$1/top"
mkdir "$1/top/etc" "$1/top/work" "$1/top/units" "$1/top/bin" "$1/top/tmp" "$1/top/work2"
chmod 1777 "$1/top/tmp"
for target in sysinit basic multi-user network-online shutdown umount; do
  cp /lib/systemd/system/$target.target "$1/top/units"
done
cp /lib/systemd/system/*.slice "$1/top/units"
mount -t overlay overlay -o lowerdir=/etc,upperdir="$1/top/etc",workdir="$1/top/work" /etc
rm -rf /etc/systemd/system
cp -r "$1/files/etc/." /etc
cat "$1/passwd" >> /etc/passwd
cat "$1/group" >> /etc/group
cp "$1/files/bin/"* "$1/top/bin"
mount --bind "$1/top/bin" /usr/local/bin
mount --bind "$1/top/units" /lib/systemd/system
for directory in /var/lib /var/cache /var/log /var/tmp /run; do mount -t tmpfs tmpfs $directory; done
mount -t overlay overlay -o lowerdir=/tmp,upperdir="$1/top/tmp",workdir="$1/top/work2" /tmp
ip link set lo up
exec env --ignore-environment container=apsis PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \\
    /lib/systemd/systemd --unit=multi-user.target --show-status=0
"""


class Booted:
    """`files`: what lies in /etc, and `bin`: in /usr/local/bin; `users`: names, from uid 61300 on."""

    def __init__(
        self, directory: Path, files: Mapping[str, str], programs: Mapping[str, Path], users: tuple[str, ...]
    ) -> None:
        self.directory = directory
        for name, text in files.items():
            path = directory / "files" / "etc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (directory / "files" / "bin").mkdir()
        for name, program in programs.items():
            shutil.copy(program, directory / "files" / "bin" / name)
        numbered = list(enumerate(users, 61300))
        (directory / "passwd").write_text(
            "".join(f"{u}:x:{n}:{n}::/var/lib/{u}:/bin/sh\n" for n, u in numbered)
        )
        (directory / "group").write_text("".join(f"{u}:x:{n}:\n" for n, u in numbered))
        (directory / "boot.sh").write_text(BOOT)
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroup = _cgroups() / f"apsis-test-systemd-{os.getpid()}"
        self.pid = 0  # of systemd

    def boot(self) -> None:
        for path, package in NEEDED.items():
            assert Path(path).exists(), f"{path} is needed: apt-get install {package}"
        assert subprocess.run([*AS_ROOT, "true"], check=False).returncode == 0, "it takes root, or sudo"
        argv = [*AS_ROOT, "/bin/sh", "-euc", START, "sh", str(self._cgroup), str(self.directory)]
        with open(self.directory / "systemd.log", "wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while self.run("systemctl", "is-active", "multi-user.target", check=False).strip() != "active":
            assert time.monotonic() < end and self._process.poll() is None, self.log()
            time.sleep(0.05)

    def end(self) -> None:
        if self._process is not None:
            if self.pid:
                subprocess.run([*AS_ROOT, "kill", "-KILL", str(self.pid)], check=False)  # and so all in it
            self._process.wait(60)
        for path in sorted(self._cgroup.rglob("*"), reverse=True):
            if path.is_dir():
                subprocess.run([*AS_ROOT, "rmdir", str(path)], check=False)
        subprocess.run([*AS_ROOT, "rmdir", str(self._cgroup)], check=False)

    def log(self) -> str:
        return (self.directory / "systemd.log").read_text()

    def run(self, *argv: str, check: bool = True) -> str:
        """What a command prints, that root runs there."""
        if not self.pid:
            self.pid = self._find()
        if not self.pid:
            return ""
        enter = [*AS_ROOT, "nsenter", "--target", str(self.pid), "--all", "--", *argv]
        done = subprocess.run(enter, capture_output=True, text=True, timeout=100, cwd="/")
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def await_property(self, unit: str, name: str, *values: str) -> None:
        end = time.monotonic() + 60
        while self.show(unit, name) not in values:
            assert time.monotonic() < end, self.run("systemctl", "status", "--no-pager", unit, check=False)
            time.sleep(0.05)

    def _find(self) -> int:
        """The process with pid 1 there, once it is systemd; or 0."""
        assert self._process is not None
        parents = [self._process.pid]
        while parents:
            parent = parents.pop()
            try:
                if os.readlink(f"/proc/{parent}/exe").endswith("/systemd"):
                    return parent
                parents += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
            except OSError:
                continue
        return 0


@contextmanager
def booted(
    directory: Path, files: Mapping[str, str], programs: Mapping[str, Path], users: tuple[str, ...]
) -> Iterator[Booted]:
    """It, while the block lasts."""
    host = Booted(directory, files, programs, users)
    try:
        host.boot()
        yield host
    finally:
        host.end()


def _cgroups() -> Path:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    raise AssertionError("a mounted cgroup v2 is needed")
