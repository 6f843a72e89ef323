"""Two users who exist for a test: one runs an agent, and may become the other by a real sudo.

Their names and rights are in files that lie over /etc's in a mount namespace of the agent's own, so that
the machine's are never touched. Where no namespace may be made, as in many containers, the users are
made on the machine, and removed afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent_peer import ROOT

RUNNER, OTHER = "apsisrun", "apsisother"
UID = 61_234  # of the first; the second has the next
# How to become root.
AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "--non-interactive", "--preserve-env"]

MAKE_FILES = """
cd "$1"
for name in passwd shadow group; do cp -p /etc/$name $name; done
i=$4
for user in "$2" "$3"; do
  echo "$user:x:$i:$i::/:/bin/sh" >> passwd
  echo "$user:!:19000::::::" >> shadow
  echo "$user:x:$i:" >> group
  i=$((i + 1))
done
install -m 440 -o root -g root rules sudoers
"""
MAKE_USERS = """
useradd --no-create-home --uid $4 "$2"
useradd --no-create-home --uid $(($4 + 1)) "$3"
install -m 440 -o root -g root "$1/rules" /etc/sudoers.d/apsis-test
"""
REMOVE_USERS = 'rm -f /etc/sudoers.d/apsis-test; for user in "$2" "$3"; do userdel $user || true; done'
ENTER = """
for name in passwd shadow group sudoers; do mount --bind "$0/$name" /etc/$name; done
exec "$@"
"""
# What a process is given to do, as RUNNER: everything that it imports is read before, by root.
AGENT = """
import os, sys
from apsislib.agent.program import main
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
os.chdir("/")
sys.exit(main(sys.argv[1:]))
"""


class Users:
    def __init__(self, directory: Path, rules: str) -> None:
        self.directory = directory
        self._rules = directory / "rules"
        self._rules.write_text(rules)
        self._private = False

    def make(self) -> None:
        self._private = not self._as_root("unshare --mount true").returncode
        done = self._as_root(MAKE_FILES if self._private else MAKE_USERS)
        assert done.returncode == 0, done.stderr.decode()

    def remove(self) -> None:
        self._as_root('rm -f "$1"/shadow' if self._private else REMOVE_USERS)

    def _as_root(self, script: str) -> subprocess.CompletedProcess[bytes]:
        argv = ["/bin/sh", "-ec", script, "sh", str(self.directory), RUNNER, OTHER, str(UID)]
        return subprocess.run([*AS_ROOT, *argv], capture_output=True, check=False)

    @contextmanager
    def agent(self, *options: str) -> Iterator[None]:
        """An agent that runs as RUNNER, while the block lasts."""
        argv = [sys.executable, "-c", AGENT.format(uid=UID), "--agent", "--plain", *options]
        if self._private:
            enter = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", ENTER]
            argv = [*enter, str(self.directory), *argv]
        process = subprocess.Popen([*AS_ROOT, *argv], cwd=ROOT, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def users(directory: Path, rules: str) -> Iterator[Users]:
    """The users, with these lines of sudoers, while the block lasts."""
    remedy = "to make users it takes root, or a sudo that asks for no password"
    assert shutil.which("sudo"), "sudo is needed: apt-get install sudo"
    assert Path("/bin/kill").exists(), "/bin/kill is needed: apt-get install procps"
    assert subprocess.run([*AS_ROOT, "/bin/true"], check=False).returncode == 0, remedy
    made = Users(directory, rules)
    try:
        made.make()
        yield made
    finally:
        made.remove()
