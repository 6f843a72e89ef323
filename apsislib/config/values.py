"""What the values of the server's file may be.

Each parser raises ValueError, in words that follow the key's name.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

from apsislib.errors import FieldError
from apsislib.times import parse_duration, parse_time


def text(value: Any) -> str:
    if isinstance(value, bool | dict | list) or str(value) == "":
        raise ValueError(f"must be a text: {value!r}")
    return str(value)


def secret(value: Any) -> str:
    if isinstance(value, bool | dict | list):
        raise ValueError("must be a text; put quotes around it")  # and is not repeated here
    return str(value)


def path(value: Any) -> Path:
    if not isinstance(value, str) or value == "" or "\0" in value:
        raise ValueError(f"must be a path: {value!r}")
    return Path(value).expanduser()


def boolean(value: Any) -> bool:
    # YAML 1.2 has no `yes` and `off`; taken as texts, both would be true.
    known = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
    found = known.get(str(value).lower()) if isinstance(value, str | bool) else None
    if found is None:
        raise ValueError(f"must be true or false: {value!r}")
    return found


def _is_off(value: Any) -> bool:
    return value is False or value == "off"


def duration(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"has negative duration: {value}")
    return seconds


def duration_or_zero(value: Any) -> float | None:
    return None if _is_off(value) else 0.0 if parse_duration(value) == 0 else duration(value)


def duration_or_off(value: Any) -> float | None:
    return None if _is_off(value) else duration(value)


def retention(value: Any) -> float | Literal["off"]:
    return "off" if _is_off(value) else duration(value)


def watch(value: Any) -> float | None:
    return 5.0 if value is True or value == "on" else duration_or_off(value)


def sweep(value: Any) -> float | None:
    return 300.0 if value is True or value == "on" else duration_or_off(value)


def since(value: Any) -> float | Literal["now"]:
    if isinstance(value, date) and not hasattr(value, "hour"):
        raise ValueError(f"must be a time, not a date: write {value}T00:00:00Z")
    return "now" if value == "now" else parse_time(value)


def whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        digits = str(value)
        ok = not isinstance(value, bool) and digits.isascii() and digits.isdigit() and len(digits) < 19
        if not ok or not low <= int(digits) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}: {value!r}")
        return int(digits)

    return parse


port = whole(0, 65535)


def positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        raise ValueError(f"must be a number above 0: {value!r}")
    return float(value)


_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def size(value: Any) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value), re.ASCII)
    if isinstance(value, bool) or not found or found[2].lower() not in _SIZES:
        raise ValueError(f"must be a number of bytes, or like 100 MB (units: kB, MB, GB, KiB ...): {value!r}")
    size = int(float(found[1]) * _SIZES[found[2].lower()])
    if not 0 < size <= 2**50:
        raise ValueError(f"must be above 0 and below 1 PB: {value!r}")
    return size


def parse_signal(value: Any) -> int:
    """The number of a signal given as number or name, with or without SIG. Raises ValueError."""
    text = str(value)
    try:
        if text.isascii() and text.isdigit():
            return int(signal.Signals(int(text[:9])))
        return int(signal.Signals[text if text.startswith("SIG") else f"SIG{text}"])
    except (ValueError, KeyError):
        raise ValueError(f"not a signal: {value}") from None


def host(value: Any) -> str | None:
    return None if value in ("*", "") else text(value)


def one_of(*names: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}: {value!r}")
        return str(value)

    return parse


def texts(value: Any) -> tuple[str, ...]:
    return tuple(text(v) for v in (value if isinstance(value, list) else [value]))


def argv(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list, of an executable and its arguments: {value!r}")
    return texts(value)


def three(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"must be a list of three whole numbers: {value!r}")
    a, b, c = map(whole(0, 2**31 - 1), value)
    return a, b, c


def mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping: {value!r}")
    return dict(value)


def capacity_providers(value: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(value, str) and value:
        return ({"capacityProvider": value},)
    known = {"capacityProvider", "weight", "base"}
    for item in value if isinstance(value, list) and value else [None]:
        if not isinstance(item, dict) or not item.get("capacityProvider") or not item.keys() <= known:
            raise ValueError(f"must be a name, or a list of {{capacityProvider, weight, base}}: {value!r}")
    return tuple(dict(item) for item in value)


def types(value: Any) -> Mapping[str, str]:
    for name, target in mapping(value).items():
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", str(target)):
            raise FieldError(f"must be a class like package.module.Class: {target!r}", [str(name)])
    return {str(name): str(target) for name, target in value.items()}


def items(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def account(value: Any) -> str:
    # 012345678901 without quotes is a number to YAML, and loses its zero.
    text = f"{value:012d}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if not re.fullmatch(r"\d{12}", text, re.ASCII):
        raise ValueError(f"must be an AWS account number, of 12 digits: {value!r}")
    return text


def ssl(value: Any) -> str:
    return "starttls" if value == "starttls" else "on" if boolean(value) else "off"
