"""Signals for a program that runs as another user, by sudo.

The process that an agent signals is then sudo, not the program. sudo passes on what it can catch, but
not SIGKILL and SIGSTOP: they would end or stop sudo alone, and the program would go on unseen. And where
sudo has become the program itself, the agent's user may not signal it at all (EPERM). In both cases the
program is looked for below sudo, and signalled by a `kill` as its user, through sudo again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePath
from signal import SIGKILL, SIGSTOP

from programs.aside import MAX_SAID, Aside
from programs.base import Agents

UNCATCHABLE = (SIGKILL, SIGSTOP)
KILL = "/bin/kill"

# Prints the processes at or below $1 that are not sudo (by name, $2), of each branch the first. Only what
# every shell has built in, since nothing else need be there. A `children` file ends without a newline,
# so that `read` fails though it has read.
LOOK = """\
look() {
  name=; read -r name < /proc/$1/comm || return
  [ "$name" = "$2" ] || { echo $1; return; }
  for task in /proc/$1/task/*; do
    children=; read -r children < $task/children
    for child in $children; do look $child "$2"; done
  done
}
look "$1" "$2" 2>/dev/null
"""


class Signalling:
    """Sends one signal to the program below a process of sudo; everything on the agent's thread.

    `ended` is told why it failed, or None. Looking needs /bin/sh, which an agent with --restrict-exe does
    not run: then the process itself is tried, and after it the group that it leads.
    """

    def __init__(
        self,
        agents: Agents,
        conn_id: str,
        sudo: Sequence[str],
        signum: int,
        pid: int,
        ended: Callable[[str | None], None],
    ) -> None:
        self._agents = agents
        self._conn_id = conn_id
        self._sudo = sudo  # with its options, up to what it is to run
        self._signum = signum
        self._pid = pid
        self._ended = ended

    def start(self) -> None:
        # The kernel keeps 15 bytes of a name.
        name = PurePath(self._sudo[0]).name.encode()[:15].decode(errors="replace")
        self._run(["/bin/sh", "-c", LOOK, "sh", str(self._pid), name], self._looked)

    def _looked(self, failure: str | None, output: str) -> None:
        pids = output.split()
        if failure is None and pids and all(pid.isdecimal() for pid in pids):
            self._kill(pids, self._ended)
            return

        def tried(failure: str | None) -> None:
            if failure is None:
                self._ended(None)
            else:
                self._kill([f"-{self._pid}"], self._ended)

        self._kill([str(self._pid)], tried)

    def _kill(self, targets: list[str], ended: Callable[[str | None], None]) -> None:
        argv = [*self._sudo, KILL, "-s", str(int(self._signum)), "--", *targets]
        self._run(argv, lambda failure, output: ended(failure))

    def _run(self, argv: list[str], ended: Callable[[str | None, str], None]) -> None:
        Aside(self._agents, self._conn_id, argv, ended).start()


class BySudo:
    """The signals to one process that go through sudo, each on its way once at a time."""

    def __init__(
        self,
        agents: Agents,
        conn_id: str,
        sudo: Sequence[str],
        ended: Callable[[int, str | None], None],
    ) -> None:
        self._agents = agents
        self._conn_id = conn_id
        self._sudo = sudo
        self._ended = ended  # is told the signal, and why it was not sent, or None
        self._waiting: deque[int] = deque()
        self._under_way: set[int] = set()

    def put(self, signum: int) -> None:
        """(any thread)"""
        self._waiting.append(signum)

    def send(self, pid: int) -> None:
        """(the agent's thread) Send what waits; `pid`: sudo's number."""
        while self._waiting:
            signum = self._waiting.popleft()
            if signum not in self._under_way:
                self._under_way.add(signum)
                ended = partial(self._sent, signum)
                Signalling(self._agents, self._conn_id, self._sudo, signum, pid, ended).start()

    def _sent(self, signum: int, failure: str | None) -> None:
        self._under_way.discard(signum)
        self._ended(signum, failure)


def refusal(said: bytes) -> str | None:
    """Why sudo ran nothing, from all that a failed program has printed; None if not all of it was sudo's."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    if not lines or not all(line.startswith(("sudo: ", "Sorry, user ")) for line in lines):
        return None
    return lines[-1].removeprefix("sudo: ")[:MAX_SAID]
