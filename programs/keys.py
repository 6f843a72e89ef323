"""Keys that several kinds of programs share: argv or command, stop and timeout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from signal import SIGTERM
from typing import Any

from apsislib.errors import FieldError
from apsislib.runs import Json, Limits
from programs.base import (
    Expand,
    Settings,
    check_keys,
    duration,
    is_static,
    number,
    optional,
    plain,
    show,
    signal_name,
    signal_number,
    sub_mapping,
    template,
)

SHELL = ("/usr/bin/bash", "-c")
GRACE = 60.0  # seconds from the stop signal to SIGKILL
MAX_SPEC = 8 * 1024 * 1024  # bytes of argv: an agent drops a connection with a frame of 16 MiB
ITEM = 8  # bytes that an item of argv counts besides its text: short ones grow most on the wire


@dataclass(frozen=True, slots=True)
class Ending:
    """`stop` and `timeout`. Before binding the values are template texts, afterwards as written here."""

    stop_signal: str | int = SIGTERM.name
    grace: str | float | None = GRACE  # None: never killed
    timeout: str | float | None = None
    timeout_signal: str | int = SIGTERM.name

    def bind(self, expand: Expand) -> Ending:
        def seconds(value: str | float | None, *keys: str) -> float | None:
            if not isinstance(value, str):
                return value
            try:
                return duration(expand(value), keys[-1])
            except FieldError as error:
                raise error.under(*keys[:-1]) from None

        def signum(value: str | int, key: str) -> int:
            try:
                return signal_number(expand(value) if isinstance(value, str) else value)
            except FieldError as error:
                raise error.under(key) from None

        return Ending(
            signum(self.stop_signal, "stop"),
            seconds(self.grace, "stop", "grace_period"),
            seconds(self.timeout, "timeout", "duration"),
            signum(self.timeout_signal, "timeout"),
        )

    def to_json(self, bound: bool) -> dict[str, Any]:
        """`stop` and `timeout`, each only where it says something.

        A bound stop signal is a number, a bound timeout signal a name: so it was always stored.
        """
        json: dict[str, Any] = {}
        stop: dict[str, Any] = {}
        if signal_or_text(self.stop_signal) != SIGTERM.name:
            stop["signal"] = self.stop_signal
        if (
            self.grace is None
            or (bound and self.grace != GRACE)
            or not bound
            and self.grace not in (GRACE, number(GRACE))
        ):
            stop["grace_period"] = self.grace
        if stop:
            json["stop"] = stop
        if self.timeout is not None:
            json["timeout"] = {"duration": self.timeout, "signal": signal_or_text(self.timeout_signal)}
        return json

    def limits(self, settings: Settings) -> Limits:
        """(Bound only.)"""
        assert not isinstance(self.timeout, str) and not isinstance(self.grace, str)
        own = self.timeout is not None
        return Limits(
            start_timeout=settings.start_timeout,
            reconnect_timeout=settings.reconnect_timeout,
            timeout=self.timeout if own else settings.timeout,
            timeout_signal=int(self.timeout_signal) if own else settings.timeout_signal,
            stop_signal=int(self.stop_signal),
            grace=self.grace,
        )


def signal_or_text(value: str | int) -> str:
    return signal_name(value) if isinstance(value, int) else value


def parse_ending(mapping: Mapping[str, Any]) -> Ending:
    """The keys `stop` and `timeout` of a program. Raises FieldError."""
    ending = Ending()
    stop = sub_mapping(mapping, "stop")
    try:
        if stop is not None:
            check_keys(stop, ("signal", "grace_period"))
            if stop.get("signal") is not None:
                ending = replace(ending, stop_signal=template(stop["signal"], "signal"))
            if "grace_period" in stop:
                ending = replace(ending, grace=optional(stop, "grace_period"))
        if isinstance(ending.stop_signal, str) and is_static(ending.stop_signal):
            signal_number(ending.stop_signal)
        if isinstance(ending.grace, str) and is_static(ending.grace):
            duration(ending.grace, "grace_period")
    except FieldError as error:
        raise error.under("stop") from None
    timeout = mapping.get("timeout")
    if timeout is None:
        return ending
    if not isinstance(timeout, Mapping):
        text = f"timeout must be a mapping: timeout: {{duration: {timeout}}}"
        raise FieldError(text if not isinstance(timeout, list) else "timeout must be a mapping", ["timeout"])
    try:
        check_keys(timeout, ("duration", "signal"), ("duration",))
        after = template(timeout["duration"], "duration")
        signum = optional(timeout, "signal") or SIGTERM.name
        if is_static(after):
            duration(after, "duration")
        if is_static(signum):
            signal_number(signum)
    except FieldError as error:
        raise error.under("timeout") from None
    return replace(ending, timeout=after, timeout_signal=signum)


def load_ending(json: Json) -> Ending:
    """The bound `stop` and `timeout` of a stored program: numbers, whatever they were stored as."""
    stop, timeout = json.get("stop") or {}, json.get("timeout") or {}
    grace = stop.get("grace_period", GRACE)
    after = timeout.get("duration")
    return Ending(
        signal_number(stop.get("signal", SIGTERM.name)),
        None if grace is None else duration(grace, "grace_period"),
        None if after is None else duration(after, "duration"),
        signal_number(timeout.get("signal") or SIGTERM.name),
    )


def parse_command(mapping: Mapping[str, Any]) -> str:
    command = template(mapping["command"], "command")
    if not command.strip():
        raise FieldError("command is empty", ["command"])
    return command


def parse_argv(mapping: Mapping[str, Any]) -> tuple[str, ...]:
    argv = mapping["argv"]
    if isinstance(argv, str):
        remedy = "put each argument into an item of its own, or use procstar-shell with command"
        raise FieldError(f"argv must be a list, not a string: {remedy}", ["argv"])
    if not isinstance(argv, list | tuple):
        raise FieldError(f"argv must be a list of strings, not {show(argv)}", ["argv"])
    if not argv:
        raise FieldError("argv is empty: its first item is the program", ["argv"])
    items = []
    for index, item in enumerate(argv):
        try:
            items.append(template(item, "item"))
        except FieldError as error:
            raise FieldError(
                error.message.replace("item", f"argv item {index}", 1), ["argv", index]
            ) from None
    if not items[0]:
        raise FieldError("the first item of argv is the program, and it is empty", ["argv", 0])
    if is_static(items[0]):
        _check_name(items[0])
    return tuple(items)


def bind_argv(texts: tuple[str, ...], shell: bool, expand: Expand) -> tuple[str, ...]:
    """The expanded argv, safe to send. Raises FieldError."""
    argv: tuple[str, ...]
    if shell:
        argv = (*SHELL, plain(expand(texts[0]), "command"))
    else:
        argv = tuple(plain(expand(text), "argv", index) for index, text in enumerate(texts))
        if not argv[0]:
            raise FieldError("the first item of argv is the program, and it came out empty", ["argv", 0])
        _check_name(argv[0])
    if sum(len(text.encode()) + ITEM for text in argv) > MAX_SPEC:
        raise FieldError(f"more than {MAX_SPEC} bytes of arguments", ["command" if shell else "argv"])
    return argv


def _check_name(program: str) -> None:
    if ")" in program.rpartition("/")[2]:
        text = f"agents can crash over a program whose file name holds ')': {program}"
        raise FieldError(f"{text} (start it by another name, such as a symbolic link)", ["argv", 0])
