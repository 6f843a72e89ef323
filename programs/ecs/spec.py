"""What a procstar-ecs program is: its keys, checked, and what becomes of the kernel's calls.

The task is the business of tasks.py; once its agent has connected, the program is a procstar program
at that agent, in a group of its own.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from signal import SIGKILL
from typing import Any

from apsislib.errors import FieldError
from apsislib.runs import Finished, Json, Limits, Run
from apsislib.states import State
from programs.base import (
    Bound,
    Expand,
    Host,
    Settings,
    check_keys,
    is_static,
    new_proc_id,
    optional,
    output_limit,
    plain,
    show,
    sub_mapping,
)
from programs.ecs import request
from programs.ecs.tasks import Tasks
from programs.keys import Ending, bind_argv, load_ending, parse_argv, parse_command, parse_ending
from programs.procstar import Procstar

BOUND = "apsis.program.procstar.aws.ecs_agent.BoundProcstarECSProgram"
KEYS = (
    "command",
    "argv",
    "mem_gb",
    "vcpu",
    "disk_gb",
    "role",
    "task_definition",
    "timeout",
    "stop",
    "output",
)
AMOUNTS = ("mem_gb", "vcpu", "disk_gb")
KILLED = 30.0  # seconds after SIGKILL until a task that still goes on is stopped
NOT_CONFIGURED = (
    "procstar-ecs needs procstar.agent.ecs in the server's file"
    " (check-jobs reads that file if it is given with --config)"
)


@dataclass(frozen=True, slots=True)
class Ecs(Bound):
    """`argv` holds the argument vector, or for an unbound command only the command.

    Unbound, amounts are template texts; bound, numbers. None is the default of the server's file.
    """

    argv: tuple[str, ...]
    shell: bool = False
    mem_gb: Any = None  # 10^9 bytes
    vcpu: Any = None
    disk_gb: Any = None  # 10^9 bytes
    role: str | None = None
    task_definition: str | None = None
    ending: Ending = field(default_factory=Ending)
    output: Json | None = None  # as configured; None: as in the server's file
    settings: Settings = field(default_factory=Settings, compare=False, repr=False)
    bound: bool = False

    def __str__(self) -> str:
        return self.argv[0] if self.shell and not self.bound else shlex.join(self.argv)

    @property
    def tasks(self) -> Tasks | None:
        """None where the server's file does not say where tasks are to run."""
        tasks: Tasks | None = self.settings.ecs
        return tasks

    def to_json(self) -> dict[str, Any]:
        json: dict[str, Any] = {"type": BOUND if self.bound else "procstar-ecs"}
        if self.shell and not self.bound:
            json["command"] = self.argv[0]
        else:
            json["argv"] = list(self.argv)
        for name in (*AMOUNTS, "role", "task_definition"):
            if getattr(self, name) is not None:
                json[name] = getattr(self, name)
        json |= self.ending.to_json(self.bound)
        if self.output is not None:
            json["output"] = dict(self.output)
        return json | {"str": str(self)}

    def bind(self, expand: Expand) -> Ecs:
        amounts: dict[str, Any] = {}
        for name in AMOUNTS:
            text = getattr(self, name)
            amounts[name] = None if text is None else _amount(expand(text), name)
        bound = replace(
            self,
            argv=bind_argv(self.argv, self.shell, expand),
            shell=False,
            role=None if self.role is None else _role(expand(self.role)),
            task_definition=None
            if self.task_definition is None
            else _task_definition(expand(self.task_definition)),
            ending=self.ending.bind(expand),
            bound=True,
            **amounts,
        )
        if self.tasks is not None:
            _check(self.tasks, amounts)
        return bound

    def limits(self) -> Limits:
        # How long a task may take to bring its agent is watched by Tasks, who can say what it is doing.
        return replace(self.ending.limits(self.settings), start_timeout=None)

    def at_agent(self, run: Run) -> Procstar:
        """What the agent in the task is to run. Without sudo, and without limits: the task has its own."""
        settings = replace(self.settings, start_timeout=None, mem_max_gb=None)
        return Procstar(
            self.argv,
            group_id=request.group_id(run.run_id),
            ending=self.ending,
            output=self.output,
            settings=settings,
            bound=True,
        )

    # -- what is done --

    def prepare(self, run: Run) -> dict[str, Any]:
        return {"proc_id": new_proc_id(run.run_id), "group_id": request.group_id(run.run_id)}

    def launch(self, run: Run, host: Host) -> None:
        problem = None
        if self.tasks is None:
            problem = NOT_CONFIGURED
        elif host.agents is None:
            problem = "no agent server is running: set procstar.agent.enable in the server's file"
        else:
            problem = request.excess(self.tasks.config, self.mem_gb, self.vcpu, self.disk_gb)
        if problem is None and self.tasks is not None:
            self.tasks.launch(run, self, host)
        else:
            host.report(run.run_id, Finished(State.ERROR, problem))

    def send(self, run: Run, host: Host) -> None:
        self.at_agent(run).send(run, host)

    def signal(self, run: Run, host: Host, signum: int, stop: bool) -> None:
        self.at_agent(run).signal(run, host, signum, stop)
        if stop and signum == SIGKILL and self.tasks is not None:
            self.tasks.kill(run, host, KILLED)

    def forget(self, run: Run, host: Host) -> None:
        self.at_agent(run).forget(run, host)
        if self.tasks is not None:
            self.tasks.release(run, host)

    def connect(self, run: Run, host: Host) -> None:
        if self.tasks is not None:
            self.tasks.adopt(run, self, host)
        self.at_agent(run).connect(run, host)


def parse(mapping: Mapping[str, Any], settings: Settings) -> Ecs:
    """Raises FieldError."""
    if "group_id" in mapping:
        why = "each run of procstar-ecs has a group of its own, aws-ecs-RUN_ID, for the one agent in its task"
        raise FieldError(f"unexpected keys: group_id ({why})", ["group_id"])
    check_keys(mapping, KEYS)
    if "command" in mapping and "argv" in mapping:
        raise FieldError("specify either command or argv, not both", ["argv"])
    shell = "command" in mapping
    if not shell and "argv" not in mapping:
        raise FieldError("must specify either command or argv")
    if settings.ecs is None:
        raise FieldError(NOT_CONFIGURED, ["type"])
    output = sub_mapping(mapping, "output")
    try:
        output_limit(output, settings.output)
    except FieldError as error:
        raise error.under("output") from None
    texts: dict[str, Any] = {}
    amounts: dict[str, float | None] = {}
    for name in AMOUNTS:
        if isinstance(mapping.get(name), bool):
            raise FieldError(f"{name} must be a number above 0, not {show(mapping[name])}", [name])
        text = texts[name] = optional(mapping, name)
        amounts[name] = _amount(text, name) if text is not None and is_static(text) else None
    role, definition = optional(mapping, "role"), optional(mapping, "task_definition")
    if role is not None and is_static(role):
        _role(role)
    if definition is not None and is_static(definition):
        _task_definition(definition)
    _check(settings.ecs, amounts)
    return Ecs(
        (parse_command(mapping),) if shell else parse_argv(mapping),
        shell,
        **texts,
        role=role,
        task_definition=definition,
        ending=parse_ending(mapping),
        output=output,
        settings=settings,
    )


def load(json: Json, settings: Settings) -> Ecs:
    """A stored bound program. Raises FieldError, KeyError, TypeError where it is none."""
    argv = tuple(str(item) for item in json["argv"])
    if not argv:
        raise FieldError("argv is empty", ["argv"])
    # Apsis 2 stored 0 where the default was meant.
    amounts = {name: float(json[name]) if json.get(name) else None for name in AMOUNTS}
    return Ecs(
        argv,
        False,
        **amounts,
        role=json.get("role") or None,
        task_definition=json.get("task_definition") or None,
        ending=load_ending(json),
        output=json.get("output"),
        settings=settings,
        bound=True,
    )


def _amount(text: str, key: str) -> float | None:
    """A number above 0; None where a template came out empty, which means the default. Raises FieldError."""
    if not text.strip():
        return None
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount < 1e9:
        raise FieldError(f"{key} must be a number above 0, not {text.strip()}", [key])
    return amount


def _check(tasks: Tasks, amounts: Mapping[str, float | None]) -> None:
    """Raises FieldError where the cluster or AWS has no room for so much."""
    why = request.excess(tasks.config, amounts["mem_gb"], amounts["vcpu"], amounts["disk_gb"])
    if why is not None:
        named = [name for name in AMOUNTS if amounts[name] is not None]
        most = next((n for n, w in (("mem_gb", "memory"), ("vcpu", "vCPU")) if f"Requested {w}" in why), None)
        raise FieldError(why, [most] if most in named else named[:1])


def _role(text: str) -> str | None:
    role = plain(text, "role").strip()
    if role.startswith("arn:"):
        name = role.rpartition("/")[2]
        raise FieldError(f"role must be the name of the role, not its ARN: {name}", ["role"])
    if role and not re.fullmatch(r"[\w+=,.@/-]{1,512}", role, re.ASCII):
        raise FieldError(f"role is not the name of an IAM role: {show(role)}", ["role"])
    return role or None


def _task_definition(text: str) -> str | None:
    name = plain(text, "task_definition").strip()
    if name and not re.fullmatch(r"[\w:/.-]{1,512}", name, re.ASCII):
        raise FieldError(
            f"task_definition is not a name, name:revision or ARN: {show(name)}", ["task_definition"]
        )
    return name or None
