"""The server's file -> Config: frozen, and right, or every error with its line.

values.py says what a value may be, keys.py what the keys are; here the file is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from apsislib import actions, yamlio
from apsislib.config.keys import Config, Ecs, Tls
from apsislib.config.values import parse_signal
from apsislib.errors import FieldError, JobError, JobErrors
from apsislib.yamlio import Map

__all__ = ["Config", "load", "parse_signal"]

Keys = tuple[str | int, ...]

# Other spellings. Manuals show `jobs`, `jobdir` and `job_dirs`; the last two lines are from older releases.
_ALIASES: dict[Keys, Keys] = {
    ("jobs",): ("job_dir",),
    ("jobdir",): ("job_dir",),
    ("job_dirs",): ("job_dir",),
    ("runs_lookback",): ("runs", "lookback"),
    ("schedule_max_age",): ("schedule", "max_age"),
}
# What manuals show but no release has ever read: keys -> what to do about it.
_UNREAD: dict[Keys, str] = {
    ("host_groups",): "has no effect; agents are grouped by the group ID they connect with",
    (
        "procstar",
        "agent",
        "server",
        "reconnect_timeout",
    ): "has no effect here; write it under procstar.agent.connection",
}


def load(
    path: Path | str | None,
    overrides: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The configuration of the file at `path`; None: all defaults, relative to the working directory.

    `overrides` are texts NAME=VALUE; NAME is like `a.b.c`, and VALUE is YAML. They replace what the
    file says before anything is checked. `environ` (default: the process's) stands in for some keys
    that neither gives. Raises JobErrors with everything that is wrong.
    """
    source = None if path is None else Path(path)
    try:
        reader = _Reader(source, os.environ if environ is None else environ)
        root = reader.merged(list(overrides))
        config = reader.checked(reader.section(Config, root, ()))
    except JobError as error:
        raise JobErrors(_sentence(source), [error]) from None
    if reader.errors:
        raise JobErrors(_sentence(source), reader.errors)
    return replace(config, source=source, warnings=tuple(reader.warnings))


def _sentence(source: Path | None) -> str:
    return "errors in the configuration" if source is None else f"errors in the configuration {source}"


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


class _Reader:
    """One reading: the merged mapping, and what was wrong or doubtful in it."""

    def __init__(self, source: Path | None, environ: Mapping[str, str]) -> None:
        self.name = "configuration" if source is None else str(source)
        self.source = source
        self.base = Path() if source is None else source.parent
        self.environ = environ
        self.errors: list[JobError] = []
        self.warnings: list[str] = []
        self.root = Map()
        self.overridden: set[Keys] = set()

    # -- where --

    def error(self, keys: Keys, message: str, *, env: str | None = None) -> None:
        path, line = (f"${env}", None) if env else self.place(keys)
        self.errors.append(JobError(path, line, message))

    def warn(self, keys: Keys, message: str) -> None:
        path, line = self.place(keys)
        self.warnings.append(str(JobError(path, line, f"{_dotted(keys)} {message}")))

    def place(self, keys: Keys) -> tuple[str, int | None]:
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.overridden:
                return f"override {_dotted(keys[:end])}", None
        return self.name, yamlio.line_of(self.root, keys) if self.source else None

    # -- file and overrides into one mapping --

    def merged(self, overrides: Sequence[str]) -> Map:
        if self.source is not None:
            try:
                root = yamlio.load(self.source.read_bytes(), self.name)
            except OSError as error:
                raise JobError(self.name, None, f"can't be read: {error.strerror}") from None
            if root is not None and not isinstance(root, Map):
                raise JobError(self.name, 1, "must be a mapping of keys to values")
            self.root = Map() if root is None else root
        # `database: PATH` is short for `database: {path: PATH}`, and has to be spelled out before an
        # override of database.timeout.
        if isinstance(self.root.get("database"), str):
            section = Map(self.root.lines["database"])
            section.put("path", self.root["database"])
            self.root["database"] = section
        for alias, keys in _ALIASES.items():
            if alias[0] in self.root:
                self.rename(str(alias[0]), keys)
        for text in overrides:
            self.override(text)
        return self.root

    def rename(self, alias: str, keys: Keys) -> None:
        line, value = self.root.lines.pop(alias), self.root.pop(alias)
        here = f"{self.name}:{line}: {alias}"
        section = self.inner(self.root, keys[:-1])
        if section is None or keys[-1] in section:
            self.warnings.append(f"{here} is ignored, as {_dotted(keys)} is given")
        else:
            self.warnings.append(f"{here} is an old name; write {_dotted(keys)}")
            if alias == "job_dirs" and isinstance(value, list) and len(value) == 1:
                value = value[0]
            section.put(keys[-1], value, line)

    def override(self, text: str) -> None:
        name, equals, value = text.partition("=")
        keys: Keys = tuple(name.strip().split("."))
        if not equals or not all(keys):
            raise JobError(f"override {text}", None, "write it as NAME=VALUE, e.g. schedule.horizon=12h")
        keys = _ALIASES.get(keys, keys)
        if keys == ("database",):
            keys = ("database", "path")
        section = self.inner(self.root, keys[:-1])
        if section is None:
            raise JobError(f"override {text}", None, f"{_dotted(keys[:-1])} is no section in {self.name}")
        try:
            section.put(keys[-1], yamlio.load(value, ""))
        except JobError as error:
            raise JobError(f"override {name}", None, error.message) from None
        self.overridden.add(keys)

    def inner(self, section: Map, keys: Keys) -> Map | None:
        """The section at `keys`, made where it is missing; None if something else is there."""
        for key in keys:
            if section.get(key) is None:
                section.put(key, Map(section.line), section.lines.get(key))
            if not isinstance(section[key], Map):
                return None
            section = section[key]
        return section

    # -- mapping into records --

    def section(self, cls: type, mapping: Any, keys: Keys) -> Any:
        """A `cls` of `mapping`. What is wrong is noted, and its default stands in until the end."""
        if mapping is None:
            mapping = {}
        if not isinstance(mapping, dict):
            self.error(keys, f"{_dotted(keys)} must be a mapping of keys to values: {mapping!r}")
            mapping = {}
        known = _keys_of(cls)
        for key in mapping:
            if (*keys, key) in _UNREAD:
                self.warn((*keys, key), _UNREAD[(*keys, key)])
            elif key not in known:
                self.error((*keys, key), _unknown(keys, str(key), known))
        values: dict[str, Any] = {}
        missing = []
        for name, f in known.items():
            here = (*keys, name)
            value = mapping.get(name)
            if (inner := f.metadata.get("section")) is not None:
                if not (f.metadata.get("optional") and not value):
                    values[name] = self.section(inner, value, here)
            elif (found := self.value(f, value, here)) is not None:
                values[name] = found[0]
            elif f.default is MISSING and f.default_factory is MISSING:
                values[name] = None
                if value is None:
                    missing.append(name)
        if missing:
            self.error(keys, f"{_dotted(keys)} config is missing required keys: {', '.join(missing)}")
        return cls(**values)

    def value(self, f: Field[Any], value: Any, keys: Keys) -> tuple[Any] | None:
        """The parsed value; None where there is none, or a wrong one, so that the default counts."""
        env = f.metadata.get("env") if value is None else None
        if env:
            value = self.environ.get(env) or None
        in_dir = f.metadata.get("in_dir", False)
        if value is None:
            if in_dir and isinstance(f.default, Path):
                return (self.base / f.default,)
            return None
        try:
            parsed = f.metadata["parse"](value)
        except FieldError as error:
            self.error(keys + error.keys, f"{_dotted(keys)}: {error.message}", env=env)
            return None
        except ValueError as error:
            link = " " if str(error).startswith(("has ", "must ")) else ": "
            self.error(keys, f"{_dotted(keys)}{link}{error}", env=env)
            return None
        # An environment variable is relative to where the process runs, as always.
        return (self.base / parsed if in_dir and not env else parsed,)

    # -- what keys mean together --

    def checked(self, config: Config) -> Config:
        agent = config.procstar.agent
        if agent.enable and not agent.server.plain:
            tls = self.tls(agent.server.tls, ("procstar", "agent", "server", "tls"))
            agent = replace(agent, server=replace(agent.server, tls=tls))
        if agent.ecs is not None:
            self.check_ecs(agent.ecs, agent.enable, ("procstar", "agent", "ecs"))
        if config.http.host not in ("127.0.0.1", "::1", "localhost"):
            self.warnings.append(
                f"http.host is {config.http.host}: whoever reaches it may run commands as the agents' user"
            )
        own = self.actions(config.action, config.action_types)
        return replace(config, procstar=replace(config.procstar, agent=agent), action=own)

    def actions(self, given: Sequence[Any], types: Mapping[str, str]) -> tuple[actions.Action, ...]:
        many = isinstance(self.root.get("action"), list)
        parsed = []
        for i, item in enumerate(given):
            try:
                parsed.append(actions.parse(item, types))
            except FieldError as error:
                here: Keys = ("action", i) if many else ("action",)
                self.error(here + error.keys, f"action: {error.message}")
        return tuple(parsed)

    def check_ecs(self, ecs: Ecs, enabled: bool, keys: Keys) -> None:
        if ecs.launch_type and ecs.capacity_provider_strategy:
            here = (*keys, "capacity_provider_strategy")
            text = "can't be given together with launch_type: AWS takes one of them"
            self.error(here, f"{_dotted(here)} {text}")
        for name, unit in (("mem_gb", " GB"), ("vcpu", "")):
            default, most = getattr(ecs, f"default_{name}"), getattr(ecs, f"max_{name}")
            if default is not None and most is not None and default > most:
                text = f"default_{name}: {default:g}{unit} is more than max_{name}, {most:g}{unit}"
                self.error((*keys, f"default_{name}"), f"{_dotted(keys)}.{text}")
        if not enabled:
            text = "has no effect without procstar.agent.enable: agents in ECS tasks could not connect"
            self.warn(keys, text)

    def tls(self, tls: Tls, keys: Keys) -> Tls:
        cert, key = tls.cert_path, tls.key_path
        if cert is None:
            if key is not None:
                self.error((*keys, "key_path"), f"{_dotted(keys)}.key_path is given without cert_path")
            return tls
        cert = self.found(cert, (*keys, "cert_path"))
        if cert.is_file():  # else that has been said, and where its key would be is no news
            key = self.found(key or cert.with_suffix(".key"), (*keys, "key_path"))
        return Tls(cert, key)

    def found(self, path: Path, keys: Keys) -> Path:
        """`path` if it is there. Upstream takes it from the working directory, so that counts, too."""
        if path.is_file():
            return path
        if not path.is_absolute() or path.is_relative_to(self.base):
            other = Path(os.path.relpath(path, self.base))
            if other.is_file():
                self.warn(keys, f"is in the working directory, not beside the file; write {other.absolute()}")
                return other
        self.error(keys, f"{_dotted(keys)}: no such file: {path}")
        return path


def _keys_of(cls: type) -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(cls) if f.metadata}


def _all_keys(cls: type, keys: Keys = ()) -> Iterator[Keys]:
    for name, f in _keys_of(cls).items():
        yield (*keys, name)
        if f.metadata.get("section"):
            yield from _all_keys(f.metadata["section"], (*keys, name))


def _unknown(keys: Keys, key: str, known: Iterable[str]) -> str:
    """What is said of an unknown key: with the nearest name beside it, else the same name elsewhere."""
    message = f"unknown key: {_dotted((*keys, key))}"
    if near := get_close_matches(key, known, 1, 0.6):
        return f"{message} (did you mean {_dotted((*keys, near[0]))}?)"
    elsewhere = [_dotted(k) for k in _all_keys(Config) if k[-1] == key]
    if elsewhere:
        return f"{message} (did you mean {' or '.join(elsewhere[:3])}?)"
    return f"{message} (known here: {', '.join(known)})"
