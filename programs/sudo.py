"""Signals for a program that runs as another user, by sudo.

The process that an agent signals is then sudo, not the program. sudo passes on what it can catch, but
not SIGKILL and SIGSTOP: they would end or stop sudo alone, and the program would go on unseen. And where
sudo has become the program itself, the agent's user may not signal it at all (EPERM). In both cases the
program is looked for below sudo, and signalled by a `kill` as its user, through sudo again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from signal import SIGKILL, SIGSTOP
from typing import Any
from uuid import uuid4

from apsislib import wire
from apsislib.runs import Json
from programs.base import Agents

UNCATCHABLE = (SIGKILL, SIGSTOP)
KILL = "/bin/kill"
MAX_SAID = 200  # characters of what sudo said that are repeated

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
        _Aside(self._agents, self._conn_id, argv, ended).start()


class _Aside:
    """A short program of our own at the agent, that belongs to no run; a base.Watcher.

    `ended` is given why it failed, or None, and what it printed.
    """

    def __init__(
        self, agents: Agents, conn_id: str, argv: list[str], ended: Callable[[str | None, str], None]
    ) -> None:
        self._agents = agents
        self._conn_id = conn_id
        self._argv = argv
        self._ended: Callable[[str | None, str], None] | None = ended
        self._proc_id = str(uuid4())

    def start(self) -> None:
        capture = {"mode": "tempfile", "encoding": "utf-8", "attached": True}
        spec = {
            "argv": self._argv,
            "env": {"inherit": True, "vars": {}},
            "fds": [
                ["stdin", {"null": {"flags": "Default"}}],
                ["stdout", {"capture": capture}],
                ["stderr", {"dup": {"fd": 1}}],
            ],
        }
        message = wire.proc_start_request({self._proc_id: spec})
        if not self._agents.watch(self._proc_id, self._conn_id, self, message):
            self.lost()

    def _end(self, failure: str | None, output: str = "") -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            self._agents.forget(self._proc_id, self._conn_id)
            ended(failure, output)

    def result(self, res: Json) -> None:
        if res.get("state") == "running":
            return
        stdout = (res.get("fds") or {}).get("stdout") or {}
        output = str(stdout.get("text") or "")
        status = res.get("status") or {}
        errors = "; ".join(str(error) for error in res.get("errors") or ())
        if errors or status.get("exit_code") != 0:
            self._end(errors or output.strip()[:MAX_SAID] or f"exit code {status.get('exit_code')}")
        else:
            self._end(None, output)

    def error(self, msg: Json, err: str) -> None:
        self._end(err)

    def lost(self) -> None:
        self._end("the agent's connection was lost")

    def gone(self) -> None:
        self.lost()

    def unknown(self) -> None:
        self._end("the agent did not start it")

    def deleted(self) -> None:
        self._end("the agent's record of it was deleted")

    def registered(self, listed: bool) -> None: ...
    def head(self, head: Any) -> None: ...
    def data(self, piece: bytes) -> None: ...
    def end(self) -> None: ...

    def poll(self, now: float) -> float | None:
        return None


def refusal(said: bytes) -> str | None:
    """Why sudo ran nothing, from all that a failed program has printed; None if not all of it was sudo's."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    if not lines or not all(line.startswith(("sudo: ", "Sorry, user ")) for line in lines):
        return None
    return lines[-1].removeprefix("sudo: ")[:MAX_SAID]
