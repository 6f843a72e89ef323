"""The table of program types: the names that job files and databases use, and who reads them.

A new kind is a module with `parse(mapping, settings)` for job files and `load(json, settings)` for
stored programs, and a line for each of its names below. Modules are imported when first needed.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from apsislib.clock import Deadline
from apsislib.config.keys import Config
from apsislib.errors import ApsisError, FieldError
from apsislib.runs import Json
from programs.base import Bound, Host, OutputLimit, Settings, Unavailable, show
from programs.extension import Extensions

log = logging.getLogger(__name__)

# In job files: name -> module:function(mapping, settings). The first few are shown to who mistypes one.
KINDS: dict[str, str] = {
    "no-op": "programs.noop:parse",
    "procstar": "programs.procstar:parse",
    "procstar-shell": "programs.procstar:parse_shell",
    "procstar-ecs": "programs.ecs.spec:parse",
}
# Older and dotted names of the same.
ALIASES: dict[str, str] = {
    "apsis.program.noop.NoOpProgram": "programs.noop:parse",
    "apsis.program.procstar.agent.ProcstarProgram": "programs.procstar:parse",
    "apsis.program.procstar.agent.ProcstarShellProgram": "programs.procstar:parse_shell",
    "apsis.program.procstar.aws.ecs_agent.ProcstarECSProgram": "programs.ecs.spec:parse",
    "program": "programs.procstar:parse_old",
    "shell": "programs.procstar:parse_old_shell",
    "apsis.program.process.ProcessProgram": "programs.procstar:parse_old",
    "apsis.program.process.ShellCommandProgram": "programs.procstar:parse_old_shell",
    "apsis.program.agent.AgentProgram": "programs.procstar:parse_old",
    "apsis.program.agent.AgentShellProgram": "programs.procstar:parse_old_shell",
}
# Programs that work on the server itself: type as stored and shown -> its class.
INTERNAL: dict[str, str] = {
    "apsis.program.internal.stats.StatsProgram": "programs.internal.Stats",
    "apsis.program.internal.archive.ArchiveProgram": "programs.internal.Archive",
    "apsis.program.internal.purge.PurgeProgram": "programs.internal.Purge",
    "apsis.program.internal.vacuum.VacuumProgram": "programs.internal.Vacuum",
}
# Each of these also by its short name, its module, or its class alone.
INTERNAL_NAMES = {
    name: kind
    for kind in INTERNAL
    for name in (kind, kind.split(".")[3], kind.rpartition(".")[0], kind.rpartition(".")[2])
}
# Stored with runs: type -> module:function(json, settings).
BOUND: dict[str, str] = {
    "no-op": "programs.noop:load",
    "apsis.program.noop.NoOpProgram": "programs.noop:load",
    "apsis.program.noop.BoundNoOpProgram": "programs.noop:load",
    "procstar": "programs.procstar:load",
    "apsis.program.procstar.agent.ProcstarProgram": "programs.procstar:load",
    "apsis.program.procstar.agent.BoundProcstarProgram": "programs.procstar:load",
    "procstar-ecs": "programs.ecs.spec:load",
    "apsis.program.procstar.aws.ecs_agent.ProcstarECSProgram": "programs.ecs.spec:load",
    "apsis.program.procstar.aws.ecs_agent.BoundProcstarECSProgram": "programs.ecs.spec:load",
}


def settings(config: Config) -> Settings:
    """What the server's file says about programs."""
    agent = config.procstar.agent
    tasks = None
    if agent.ecs is not None:
        from programs.ecs.tasks import Tasks

        tasks = Tasks(agent.ecs)
    return Settings(
        timeout=config.program.timeout.duration,
        timeout_signal=config.program.timeout.signal,
        start_timeout=agent.connection.start_timeout,
        reconnect_timeout=agent.connection.reconnect_timeout,
        update_interval=agent.run.update_interval,
        output_interval=agent.run.output_interval,
        sudo_argv=tuple(agent.sudo.argv),
        mem_max_gb=agent.resource_defaults.mem_max_gb,
        output=OutputLimit(config.output.max_size, config.output.on_max_size == "kill"),
        ecs=tasks,
    )


class Table:
    """Program types, those of users included, with what the server's file says about them."""

    def __init__(self, config: Config) -> None:
        self._settings = settings(config)
        self._types = dict(config.program_types)  # users' short names -> package.module.Class
        self._extensions = Extensions()

    def parse(self, value: Any) -> Bound:
        """The program that a job file means, its templates not expanded. Raises FieldError."""
        if isinstance(value, str):
            log.warning("a program given as a string is deprecated: use type procstar-shell with command")
            value = {"type": "procstar-shell", "command": value}
        elif isinstance(value, list | tuple):
            log.warning("a program given as a list is deprecated: use type procstar with argv")
            value = {"type": "procstar", "argv": list(value)}
        elif not isinstance(value, Mapping):
            raise FieldError(f"program must be a mapping with a type, not {show(value)}")
        if value.get("type") is None:
            raise FieldError(f"missing type (known: {', '.join(KINDS)})")
        kind = value["type"]
        if not isinstance(kind, str):
            raise FieldError(f"unknown program type: {show(kind)}", ["type"])
        where = None if kind in self._types else KINDS.get(kind) or ALIASES.get(kind)
        if where is not None:
            program: Bound = _function(where)(value, self._settings)
            return program
        if kind in INTERNAL_NAMES and kind not in self._types:
            shown = INTERNAL_NAMES[kind]
            return self._extensions.parse(INTERNAL[shown], value, kind, shown)
        dotted = self._types.get(kind, kind)
        if "." not in dotted:
            internal = [name.split(".")[3] for name in INTERNAL]
            known = ", ".join([*KINDS, *internal, *self._types])
            raise FieldError(
                f"unknown program type: {kind} (known: {known}, or a class: package.module.Class)", ["type"]
            )
        return self._extensions.parse(dotted, value, kind)

    def load(self, json: Json) -> Bound:
        """A stored program. One that can't be read becomes an error when it is run, and stays as it is."""
        kind = str(json.get("type"))
        where = None if kind in self._types else BOUND.get(kind)
        try:
            if where is not None:
                program: Bound = _function(where)(json, self._settings)
                return program
            if kind in INTERNAL and kind not in self._types:
                return self._extensions.load(INTERNAL[kind], json, kind)
            dotted = self._types.get(kind, kind)
            if "." in dotted:
                return self._extensions.load(dotted, json)
        except ApsisError as error:
            return Unavailable(json, str(error))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            return Unavailable(json, f"{type(error).__name__}: {error}")
        return Unavailable(json)

    def start(self, host: Host, installation: str) -> None:
        """Runs of earlier times have been taken up. `installation`: the UUID of the database."""
        if self._settings.ecs is not None:
            self._settings.ecs.start(host, installation)

    def close(self, timeout: float | None) -> list[str]:
        """Wait for programs that run inside the server; answers the names of threads still alive."""
        deadline = Deadline(timeout)
        left: list[str] = [] if self._settings.ecs is None else self._settings.ecs.close(deadline.left())
        return left + self._extensions.close(deadline.left())


def _function(where: str) -> Callable[..., Any]:
    module, name = where.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
