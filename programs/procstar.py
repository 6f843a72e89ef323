"""procstar and procstar-shell: one process a run, at an agent of a group.

Here is what is configured and what is sent; keys.py reads what other kinds have too, and process.py
follows the process to its end.
"""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from apsislib import wire
from apsislib.errors import FieldError
from apsislib.runs import Finished, Json, Limits, Lost, Placed, Remark, Run
from apsislib.states import FINISHED, State
from programs.base import (
    Bound,
    Expand,
    Host,
    OutputLimit,
    Settings,
    check_keys,
    deliverable,
    lasting,
    new_proc_id,
    optional,
    output_limit,
    plain,
    show,
    signal_name,
    sub_mapping,
)
from programs.keys import Ending, bind_argv, load_ending, parse_argv, parse_command, parse_ending
from programs.process import Process

log = logging.getLogger(__name__)

BOUND = "apsis.program.procstar.agent.BoundProcstarProgram"

_COMMON = ("group_id", "sudo_user", "stop", "timeout", "resources", "output")


def _parse_resources(mapping: Mapping[str, Any]) -> float | None:
    resources = sub_mapping(mapping, "resources")
    if resources is None:
        return None
    try:
        check_keys(resources, ("mem_max_gb",))
        value = resources.get("mem_max_gb")
        if value is None:
            return None
        try:
            amount = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, TypeError):
            amount = math.nan
        if not 1e-9 <= amount < 1e9:
            raise FieldError(f"mem_max_gb must be a number above 0, not {show(value)}", ["mem_max_gb"])
    except FieldError as error:
        raise error.under("resources") from None
    return amount


@dataclass(frozen=True, slots=True)
class Procstar(Bound):
    """`argv` holds the argument vector, or for the unbound shell kind only the command."""

    argv: tuple[str, ...]
    shell: bool = False
    group_id: str = "default"
    sudo_user: str | None = None
    ending: Ending = field(default_factory=Ending)
    mem_max_gb: float | None = None
    output: Json | None = None  # as configured; None: as in the server's file
    settings: Settings = field(default_factory=Settings, compare=False, repr=False)
    bound: bool = False

    def __str__(self) -> str:
        return self.argv[0] if self.shell and not self.bound else shlex.join(self.argv)

    def to_json(self) -> dict[str, Any]:
        json: dict[str, Any] = {
            "type": BOUND if self.bound else "procstar-shell" if self.shell else "procstar"
        }
        if self.shell and not self.bound:
            json["command"] = self.argv[0]
        else:
            json["argv"] = list(self.argv)
        json["group_id"] = self.group_id
        if self.sudo_user is not None:
            json["sudo_user"] = self.sudo_user
        json |= self.ending.to_json(self.bound)
        if self.mem_max_gb is not None:
            json["resources"] = {"mem_max_gb": self.mem_max_gb}
        if self.output is not None:
            json["output"] = dict(self.output)
        return json | {"str": str(self)}

    def bind(self, expand: Expand) -> Procstar:
        user = None if self.sudo_user is None else plain(expand(self.sudo_user), "sudo_user")
        group_id = plain(expand(self.group_id), "group_id")
        if not group_id:
            raise FieldError("group_id came out empty", ["group_id"])
        return replace(
            self,
            argv=bind_argv(self.argv, self.shell, expand),
            group_id=group_id,
            sudo_user=user or None,
            ending=self.ending.bind(expand),
            bound=True,
        )

    def limits(self) -> Limits:
        return self.ending.limits(self.settings)

    def output_limit(self) -> OutputLimit:
        return output_limit(self.output, self.settings.output)

    # -- what is sent --

    def spec(self, run: Run, proc_id: str) -> dict[str, Any]:
        """The process specification. stdout and stderr are one stream, kept at the agent until fetched."""
        argv = list(self.argv)
        if self.sudo_user is not None:
            argv = [*self.sudo(self.sudo_user), *argv]
        capture = {"mode": "tempfile", "encoding": None, "attached": False}
        spec: dict[str, Any] = {
            "argv": argv,
            "env": {"inherit": True, "vars": {"APSIS_RUN_ID": run.run_id, "APSIS_PROC_ID": proc_id}},
            "fds": [["stdout", {"capture": capture}], ["stderr", {"dup": {"fd": 1}}]],
        }
        limit = self.mem_max_gb if self.mem_max_gb is not None else self.settings.mem_max_gb
        if limit is not None:
            # Only where a limit applies: agents before 0.5.0 drop a start with this key in silence.
            scope = ("oom_policy", "runtime_max_usec", "runtime_randomized_extra_usec")
            unset = ("memory_min", "memory_low", "memory_high", "tasks_max")
            memory = {"memory_accounting": True, "memory_max": int(limit * 1e9), "memory_swap_max": 0}
            spec["systemd_properties"] = {
                "scope": dict.fromkeys(scope),
                "slice": {**dict.fromkeys(unset), **memory, "tasks_accounting": True},
            }
        return spec

    def sudo(self, user: str) -> list[str]:
        """What goes before an argv to run it as `user`. Never asks for a password."""
        return [*self.settings.sudo_argv, "--non-interactive", "--user", user, "--"]

    # -- what is done --

    def prepare(self, run: Run) -> dict[str, Any]:
        return {"proc_id": new_proc_id(run.run_id)}

    def at_agent(self, run: Run) -> Procstar:
        return self

    def launch(self, run: Run, host: Host) -> None:
        agents = host.agents
        if agents is None:
            text = "no agent server is running: set procstar.agent.enable in the server's file"
            host.report(run.run_id, Finished(State.ERROR, text))
            return
        conn_id = agents.choose(self.group_id)
        if conn_id is not None:
            state = {"proc_id": new_proc_id(run.run_id)} | lasting(run)
            host.report(run.run_id, Placed(state | {"conn_id": conn_id, "agent": agents.instance(conn_id)}))
            return
        if self.settings.start_timeout == 0:
            text = f"no connected agent in group: {self.group_id}"
            host.report(run.run_id, Finished(State.ERROR, text))
            return

        def wanted() -> bool:
            now = host.run(run.run_id)
            return (
                now is not None and now.state is State.STARTING and not (now.run_state or {}).get("conn_id")
            )

        def again() -> None:
            now = host.run(run.run_id)
            if now is not None and wanted():
                self.launch(now, host)

        host.report(run.run_id, Remark(f"waiting for an agent of group {self.group_id}"))
        agents.when_available(self.group_id, again, wanted)

    def send(self, run: Run, host: Host) -> None:
        process = self._process(run, host)
        if process is not None:
            process.start()

    def _process(self, run: Run, host: Host) -> Process | None:
        """The process of a run that is placed; None where that can't be followed, which is then reported."""
        state = run.run_state or {}
        proc_id, conn_id = state.get("proc_id"), state.get("conn_id")
        if host.agents is None:
            host.report(run.run_id, Lost(str(conn_id)))
        elif not isinstance(proc_id, str) or not isinstance(conn_id, str):
            text = "the run does not say which process it is: nothing can be asked about it"
            host.report(run.run_id, Finished(State.ERROR, text))
        else:
            return Process(run, proc_id, conn_id, host, host.agents, self)
        return None

    def signal(self, run: Run, host: Host, signum: int, stop: bool) -> None:
        state = run.run_state or {}
        proc_id, conn_id = state.get("proc_id"), state.get("conn_id")
        name = signal_name(signum)

        def say(text: str) -> None:
            if run.state in FINISHED:  # it was given up: a report on it would be ignored
                host.note(run.run_id, text)
            else:
                host.report(run.run_id, Remark(text))

        if not deliverable(signum):
            say(f"{name} was not sent: it would end agents too")
            return
        if host.agents is None or proc_id is None or conn_id is None:
            say(f"{name} was not sent: no agent has the process")
            return
        process = host.agents.watcher(proc_id)
        if isinstance(process, Process) and process.over:
            # Agents signal the number that the process had, whoever has it by now.
            say(f"{name} was not sent: the process has ended")
            return

        def fate(written: bool) -> None:
            if written:
                return
            # What is meant to end the run is sent again by Process.registered.
            later = "it will be sent when the agent is back" if stop else "it was not sent"
            say(f"{name}: agent {conn_id} is not connected, {later}")

        if isinstance(process, Process):
            process.signal(signum, fate)
        elif not host.agents.send(conn_id, wire.proc_signal_request(proc_id, signum), fate):
            fate(False)

    def forget(self, run: Run, host: Host) -> None:
        state = run.run_state or {}
        if host.agents is not None and state.get("proc_id") and state.get("conn_id"):
            # The truth about a run that was given up may still come: see late.py.
            waits = "given_up" in run.meta and "late_verdict" not in run.meta
            (host.agents.abandon if waits else host.agents.forget)(state["proc_id"], state["conn_id"])

    def connect(self, run: Run, host: Host) -> None:
        if run.state is State.STARTING and not (run.run_state or {}).get("conn_id"):
            self.launch(run, host)  # provably unsent
            return
        process = self._process(run, host)
        if process is not None:
            process.rejoin()


def _parse(mapping: Mapping[str, Any], settings: Settings, shell: bool) -> Procstar:
    own = "command" if shell else "argv"
    check_keys(mapping, (own, *_COMMON), (own,))
    output = sub_mapping(mapping, "output")
    try:
        output_limit(output, settings.output)
    except FieldError as error:
        raise error.under("output") from None
    group_id = optional(mapping, "group_id")
    if group_id == "":
        raise FieldError("group_id is empty", ["group_id"])
    sudo_user = optional(mapping, "sudo_user")
    if sudo_user == "":
        raise FieldError("sudo_user is empty", ["sudo_user"])
    return Procstar(
        (parse_command(mapping),) if shell else parse_argv(mapping),
        shell,
        "default" if group_id is None else group_id,
        sudo_user,
        parse_ending(mapping),
        _parse_resources(mapping),
        output,
        settings,
    )


def parse(mapping: Mapping[str, Any], settings: Settings) -> Procstar:
    return _parse(mapping, settings, shell=False)


def parse_shell(mapping: Mapping[str, Any], settings: Settings) -> Procstar:
    return _parse(mapping, settings, shell=True)


def _parse_old(mapping: Mapping[str, Any], settings: Settings, shell: bool) -> Procstar:
    """The kinds of Apsis 1, whose `user` is today's sudo_user. `host` has no meaning any more."""
    now = {key: value for key, value in mapping.items() if key not in ("host", "user")}
    if mapping.get("user") is not None:
        now.setdefault("sudo_user", mapping["user"])
    if isinstance(mapping.get("timeout"), int | float | str):
        now["timeout"] = {"duration": mapping["timeout"]}
    new = "procstar-shell" if shell else "procstar"
    log.warning("program type %s is deprecated: use %s", mapping.get("type"), new)
    if mapping.get("host") is not None:
        log.warning(
            "host %s of program type %s is ignored: use group_id", mapping["host"], mapping.get("type")
        )
    return _parse(now, settings, shell)


def parse_old(mapping: Mapping[str, Any], settings: Settings) -> Procstar:
    return _parse_old(mapping, settings, shell=False)


def parse_old_shell(mapping: Mapping[str, Any], settings: Settings) -> Procstar:
    return _parse_old(mapping, settings, shell=True)


def load(json: Json, settings: Settings) -> Procstar:
    """A stored bound program. Raises FieldError, KeyError, TypeError where it is none."""
    argv = tuple(str(item) for item in json["argv"])
    if not argv:
        raise FieldError("argv is empty", ["argv"])
    resources = json.get("resources") or {}
    user = json.get("sudo_user")
    return Procstar(
        argv,
        False,
        "default" if json.get("group_id") is None else str(json["group_id"]),
        None if user is None else str(user),
        load_ending(json),
        None if resources.get("mem_max_gb") is None else float(resources["mem_max_gb"]),
        json.get("output"),
        settings,
        bound=True,
    )
