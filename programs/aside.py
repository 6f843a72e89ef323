"""Short programs of our own at an agent, for what its protocol has no request for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from apsislib import wire
from apsislib.runs import Json
from programs.base import Agents

MAX_SAID = 200  # characters of what such a program says that are repeated


class Aside:
    """One of them: it belongs to no run; a base.Watcher.

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
