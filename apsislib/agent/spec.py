"""What a server may ask to be started: specifications, decoded and checked before the first fork.

A specification that does not decode, and one that cannot be meant, are both a BadRequest whose text
becomes the `err` of a RequestError. The texts that servers match on are fixed by the protocol; ours
begin with "bad spec".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from apsislib.errors import BadRequest

STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
NAMES = {number: name for name, number in STANDARD.items()}

OPEN_FLAGS = {
    "Read": os.O_RDONLY,
    "Write": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "Create": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "Replace": os.O_WRONLY | os.O_TRUNC,
    "CreateAppend": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "Append": os.O_WRONLY | os.O_APPEND,
    "ReadWrite": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
}

SLICE_LIMITS = ("memory_min", "memory_low", "memory_high", "memory_max", "memory_swap_max", "tasks_max")
SLICE_SWITCHES = ("memory_accounting", "tasks_accounting")
SCOPE_TIMES = ("runtime_max_usec", "runtime_randomized_extra_usec")
OOM_POLICIES = ("continue", "stop", "kill")

# Withheld from every program: the token is a secret, the other two tell where secrets lie.
WITHHELD = (b"PROCSTAR_AGENT_CERT", b"PROCSTAR_AGENT_KEY", b"PROCSTAR_AGENT_TOKEN")


@dataclass(frozen=True)
class Inherit:
    """Leave the descriptor as the agent has it."""


@dataclass(frozen=True)
class Close:
    """Close it; an error if it was not open."""


@dataclass(frozen=True)
class Open:
    """Open a file in the child; `flags` are those of open(2)."""

    path: bytes
    flags: int
    mode: int


@dataclass(frozen=True)
class Dup:
    """A second name for a descriptor that the child has at that moment."""

    fd: int


@dataclass(frozen=True)
class Captured:
    """Keep what is written. `mode` is tempfile or memory; `attached` puts it whole into every result."""

    mode: str = "tempfile"
    encoding: str | None = None
    attached: bool = True


@dataclass(frozen=True)
class PipeWrite:
    """The write end of a pipe whose other end a program of the same request reads."""


@dataclass(frozen=True)
class PipeRead:
    """The read end of the pipe that program `proc_id` writes as descriptor `fd`, spelled `name`."""

    proc_id: str
    fd: int
    name: str


FdSpec = Inherit | Close | Open | Dup | Captured | PipeWrite | PipeRead


@dataclass(frozen=True)
class Limits:
    """systemd's names: slice limits in bytes and tasks, scope times in microseconds; absent is no limit."""

    slice: Mapping[str, int] = field(default_factory=dict)
    scope: Mapping[str, int] = field(default_factory=dict)
    oom_policy: str | None = None

    @property
    def worth_a_word(self) -> dict[str, int]:
        """What is missed where it is not applied. Servers forbid swap to every program, limited or not."""
        return {**self.slice, **self.scope} if set(self.slice) - {"memory_swap_max"} else dict(self.scope)


@dataclass(frozen=True)
class Spec:
    """One program to start: everything the child needs, as bytes where the kernel wants bytes."""

    argv: tuple[bytes, ...]
    exe: bytes
    inherit: bool | tuple[bytes, ...]
    vars: Mapping[bytes, bytes | None]
    fds: tuple[tuple[int, FdSpec], ...]
    limits: Limits

    def environment(self, own: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """What the program sees, given the agent's own environment."""
        if self.inherit is True:
            env = dict(own)
        elif self.inherit is False:
            env = {}
        else:
            env = {name: own[name] for name in self.inherit if name in own}
        for name in WITHHELD:
            env.pop(name, None)
        for name, value in self.vars.items():
            if value is None:
                env.pop(name, None)
            else:
                env[name] = value
        return env


def fd_name(fd: int) -> str:
    """stdin, stdout, stderr or the number: how results name a descriptor."""
    return NAMES.get(fd, str(fd))


def parse_fd(name: str) -> int:
    """The descriptor that a name or number in a string means."""
    if name in STANDARD:
        return STANDARD[name]
    if name.isascii() and name.isdigit() and len(name) < 11 and int(name) < 2**31:
        return int(name)
    raise BadRequest(f"bad fd: {name}")


def parse_specs(specs: Mapping[Any, Any]) -> dict[str, Spec]:
    """Every specification of a start request, by proc ID, sorted: the order in which they start."""
    decoded = {}
    for proc_id, value in specs.items():
        try:
            decoded[_text(proc_id, "proc ID")] = _spec(value)
        except _Undecodable as error:
            raise BadRequest(f"bad spec: {_shown(proc_id)}: {error}") from None
    return dict(sorted(decoded.items()))


def check(specs: Mapping[str, Spec], held: Collection[str], shutdown_state: str) -> None:
    """Refuse what cannot be started, in the order of checks that servers rely on."""
    for proc_id in specs:
        if proc_id in held:
            raise BadRequest(f"duplicate proc id: {proc_id}")
    _check_fds(specs)
    if shutdown_state != "active":
        raise BadRequest(f"agent shutting down: {shutdown_state}")


def _check_fds(specs: Mapping[str, Spec]) -> None:
    written = set()
    for proc_id, spec in specs.items():
        seen = set()
        for fd, what in spec.fds:
            if fd in seen:
                raise BadRequest(f"duplicate fd: {fd_name(fd)}")
            seen.add(fd)
            if isinstance(what, PipeWrite):
                written.add((proc_id, fd))
    for spec in specs.values():
        for _, what in spec.fds:
            if isinstance(what, PipeRead):
                if (what.proc_id, what.fd) not in written:
                    raise BadRequest(f"unmatched read pipe: {what.proc_id} {what.name}")
                written.remove((what.proc_id, what.fd))
    for proc_id, fd in sorted(written):
        raise BadRequest(f"unmatched write pipe: {proc_id} {fd}")


# -- decoding. Unknown keys are refused: a limit that was misspelt must not be silently absent.


class _Undecodable(Exception):
    pass


def _spec(value: Any) -> Spec:
    items = _map(value, "spec", ("argv", "exe", "id", "env", "fds", "systemd_properties"))
    argv = tuple(_bytes(arg, "argv") for arg in _list(items.get("argv", []), "argv"))
    if not argv or not argv[0]:
        raise _Undecodable("argv is empty, or its first element is")
    exe = items.get("exe")
    if items.get("id") is not None:
        _text(items["id"], "id")
    inherit, variables = _env(items.get("env", {}))
    return Spec(
        argv=argv,
        exe=argv[0] if exe is None else _bytes(exe, "exe"),
        inherit=inherit,
        vars=variables,
        fds=tuple(_fd(pair) for pair in _list(items.get("fds", []), "fds")),
        limits=_limits(items.get("systemd_properties", {})),
    )


def _env(value: Any) -> tuple[bool | tuple[bytes, ...], dict[bytes, bytes | None]]:
    items = _map(value, "env", ("inherit", "vars"))
    inherit = items.get("inherit", True)
    if not isinstance(inherit, bool):
        inherit = tuple(_bytes(name, "env.inherit") for name in _list(inherit, "env.inherit"))
    variables: dict[bytes, bytes | None] = {}
    for key, text in _map(items.get("vars", {}), "env.vars").items():
        name = _bytes(key, "env.vars")
        if not name or b"=" in name:
            raise _Undecodable(f"env.vars: not a name for a variable: {key!r}")
        variables[name] = None if text is None else _bytes(text, f"env.vars.{key}")
    return inherit, variables


def _fd(pair: Any) -> tuple[int, FdSpec]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise _Undecodable("fds: each must be a pair of name and kind")
    fd = parse_fd(_text(pair[0], "fds"))
    kind, value = pair[1], None
    if isinstance(kind, Mapping):
        if len(kind) != 1:
            raise _Undecodable("fds: a kind is a map with exactly one key")
        kind, value = next(iter(kind.items()))
        bare = value is None or value == {}
    else:
        bare = True
    decode = _KINDS.get(kind) if isinstance(kind, str) else None
    if decode is not None and isinstance(value, Mapping):
        return fd, decode(fd, value)
    if isinstance(kind, str) and kind in _BARE_KINDS and bare:
        return fd, _BARE_KINDS[kind]
    raise _Undecodable(f"fds: {fd_name(fd)}: unknown kind of descriptor, or a bad value for it: {kind!r}")


def _null(fd: int, value: Any) -> FdSpec:
    items = _map(value, "null", ("flags",))
    return Open(b"/dev/null", _flags(items.get("flags", "Default"), fd), 0o666)


def _file(fd: int, value: Any) -> FdSpec:
    items = _map(value, "file", ("path", "flags", "mode"))
    if "path" not in items:
        raise _Undecodable("file: path is missing")
    mode = _integer(items.get("mode", 0o666), "file.mode", 0, 2**32 - 1)
    return Open(_bytes(items["path"], "file.path"), _flags(items.get("flags", "Default"), fd), mode & 0o7777)


def _dup(fd: int, value: Any) -> FdSpec:
    items = _map(value, "dup", ("fd",))
    return Dup(_integer(items.get("fd"), "dup.fd", -(2**31), 2**31 - 1))


def _capture(fd: int, value: Any) -> FdSpec:
    items = _map(value, "capture", ("mode", "encoding", "attached"))
    mode, encoding = items.get("mode", "tempfile"), items.get("encoding")
    if mode not in ("tempfile", "memory"):
        raise _Undecodable(f"capture.mode: not tempfile or memory: {mode!r}")
    if encoding not in (None, "utf-8"):
        raise _Undecodable(f"capture.encoding: not utf-8 or nil: {encoding!r}")
    return Captured(mode, encoding, _switch(items.get("attached", True), "capture.attached"))


def _pipe_read(fd: int, value: Any) -> FdSpec:
    items = _map(value, "pipe-read", ("proc_id", "fd"))
    name = _text(items.get("fd"), "pipe-read.fd")
    return PipeRead(_text(items.get("proc_id"), "pipe-read.proc_id"), parse_fd(name), name)


_KINDS: dict[str, Callable[[int, Any], FdSpec]] = {
    "null": _null,
    "file": _file,
    "dup": _dup,
    "capture": _capture,
    "pipe-read": _pipe_read,
}
_BARE_KINDS: dict[str, FdSpec] = {"inherit": Inherit(), "close": Close(), "pipe-write": PipeWrite()}


def _flags(value: Any, fd: int) -> int:
    if value == "Default":
        value = "Read" if fd == 0 else "Write" if fd in (1, 2) else "ReadWrite"
    if not isinstance(value, str) or value not in OPEN_FLAGS:
        raise _Undecodable(f"unknown open flags: {value!r} (known: Default, {', '.join(OPEN_FLAGS)})")
    return OPEN_FLAGS[value]


def _limits(value: Any) -> Limits:
    items = _map(value, "systemd_properties", ("scope", "slice"))
    scope = _map(_some(items, "scope", {}), "scope", ("oom_policy", *SCOPE_TIMES))
    within = _map(_some(items, "slice", {}), "slice", SLICE_SWITCHES + SLICE_LIMITS)
    for name in SLICE_SWITCHES:
        _switch(_some(within, name, False), name)
    policy = scope.get("oom_policy")
    if policy is not None and policy not in OOM_POLICIES:
        raise _Undecodable(f"oom_policy: not one of {', '.join(OOM_POLICIES)}: {policy!r}")
    return Limits(_amounts(within, SLICE_LIMITS), _amounts(scope, SCOPE_TIMES), policy)


def _amounts(items: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, int]:
    given = {name: items[name] for name in names if items.get(name) is not None}
    return {name: _integer(amount, name, 0, 2**64 - 1) for name, amount in given.items()}


def _some(items: Mapping[str, Any], key: str, default: Any) -> Any:
    value = items.get(key)
    return default if value is None else value


def _map(value: Any, what: str, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _Undecodable(f"{what}: not a map: {_shown(value)}")
    items = {_text(key, what): item for key, item in value.items()}
    if keys is not None:
        for key in items:
            if key not in keys:
                raise _Undecodable(f"{what}: unknown key: {key} (known: {', '.join(keys)})")
    return items


def _list(value: Any, what: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _Undecodable(f"{what}: not an array: {_shown(value)}")
    return value


def _text(value: Any, what: str) -> str:
    # Agents take bin where a string is due, as long as it is UTF-8.
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _Undecodable(f"{what}: not UTF-8") from None
    if not isinstance(value, str):
        raise _Undecodable(f"{what}: not a string: {_shown(value)}")
    return value


def _bytes(value: Any, what: str) -> bytes:
    try:
        raw = _text(value, what).encode()
    except UnicodeEncodeError:
        raise _Undecodable(f"{what}: not UTF-8") from None
    if b"\0" in raw:
        raise _Undecodable(f"{what}: holds a NUL byte, which no program can be given")
    return raw


def _integer(value: Any, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _Undecodable(f"{what}: not an integer from {low} to {high}: {_shown(value)}")
    return value


def _switch(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise _Undecodable(f"{what}: not true or false: {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
