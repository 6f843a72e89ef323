"""The format language of dates, daytimes and times: `%Y-%m-%d`, `%~D`, `%.3S`.

An escape is `%`, modifiers, a letter: `~` short, `^` upper case, `_` lower case, digits a width, `#c`
what to fill it with, `.3` the digits of a fraction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def exact(seconds: float) -> Decimal:
    """The decimal that a float is written as."""
    return Decimal(repr(seconds))


class Parts(NamedTuple):
    """What is formatted; what the value has not is None, and no escape of its kind asks for it."""

    date: Any = None
    daytime: Any = None
    offset: int = 0  # of the zone, in seconds


class _Modifiers(NamedTuple):
    """Of one escape: `%~^#x6.3S`."""

    short: bool
    pad: str | None
    width: int | None
    digits: int | None  # of the fraction of a second

    def number(self, value: int, width: int) -> str:
        return str(value).rjust(width if self.width is None else self.width, self.pad or "0")

    def word(self, text: str) -> str:
        return text.rjust(self.width or 0, self.pad or " ")


_ESCAPE = re.compile(r"%((?:[~^_]|#.|[0-9]+|\.[0-9]*)*)(.?)", re.DOTALL)
_MODIFIER = re.compile(r"([~^_])|#(.)|([0-9]+)|\.([0-9]*)", re.DOTALL)
_LETTERS = "YXWVUTSRQPONZABCDEFGHIKLM"  # military zones, from -12 h to 12 h

Escapes = Mapping[str, Callable[[Parts, _Modifiers], str]]


def formatted(spec: str, escapes: Escapes, kind: str, parts: Parts) -> str:
    """`spec` with each `%` escape replaced. Raises ValueError."""

    def replaced(found: re.Match[str]) -> str:
        modifiers, letter = found.groups()
        if letter == "%":
            return "%"
        if letter not in escapes:
            known = " ".join(f"%{c}" for c in escapes)
            raise ValueError(f"unknown {kind} escape {found[0]!r} in format {spec!r} (known: {known})")
        signs, pad, width, digits = "", None, None, None
        for sign, new_pad, new_width, new_digits in _MODIFIER.findall(modifiers):
            signs += sign
            pad = new_pad or pad
            width = int(new_width[:4]) if new_width else width
            if not (sign or new_pad or new_width):
                digits = int(new_digits[:4] or 0)
        if (width or 0) > 999 or (digits or 0) > 15:
            raise ValueError(
                f"too wide an escape {found[0]!r} in format {spec!r} (999 characters, 15 digits)"
            )
        text = escapes[letter](parts, _Modifiers("~" in signs, pad, width, digits))
        return text.upper() if "^" in signs else text.lower() if "_" in signs else text

    return _ESCAPE.sub(replaced, spec)


def _second(p: Parts, m: _Modifiers) -> str:
    second = exact(p.daytime.ssm) % 60
    text = m.number(int(second), 2)
    return text if m.digits is None else f"{text}.{_fraction(second, m.digits)}"


def _fraction(seconds: Decimal, digits: int) -> str:
    """Truncated, so that no rounding reaches the minutes."""
    return f"{int(seconds % 1 * 10**digits):0{digits}}" if digits else ""


def _iso_date(p: Parts, m: _Modifiers) -> str:
    text = str(p.date)
    return text.replace("-", "") if m.short else text


def _iso_daytime(p: Parts, m: _Modifiers) -> str:
    colon = "" if m.short else ":"
    second = _second(p, _Modifiers(False, None, None, m.digits))
    return f"{p.daytime.hour:02}{colon}{p.daytime.minute:02}{colon}{second}"


def _offset(p: Parts, m: _Modifiers, colon: str) -> str:
    hours, minutes = divmod(abs(p.offset) // 60, 60)
    # Padded with zeros always: `+xx5` is no offset.
    parts = (str(n).rjust(2 if m.width is None else m.width, "0") for n in (hours, minutes))
    return f"{'-' if p.offset < 0 else '+'}{colon.join(parts)}"


def _zone_letter(p: Parts, m: _Modifiers) -> str:
    hours, rest = divmod(p.offset, 3600)
    return _LETTERS[hours + 12] if rest == 0 and -12 <= hours <= 12 else "?"


def _iso_time(p: Parts, m: _Modifiers, zone: str) -> str:
    return f"{_iso_date(p, m)}T{_iso_daytime(p, m)}{zone}"


_NARROW = _Modifiers(False, None, None, None)

DATE_ESCAPES: Escapes = {
    "Y": lambda p, m: m.number(p.date.year, 4),
    "y": lambda p, m: m.number(p.date.year % 100, 2),
    "m": lambda p, m: m.number(int(p.date.month), 2),
    "d": lambda p, m: m.number(p.date.day, 2),
    "j": lambda p, m: m.number(p.date.ordinal, 3),
    "a": lambda p, m: m.word(str(p.date.weekday)),
    "A": lambda p, m: m.word(str(p.date.weekday) if m.short else _WEEKDAYS[p.date.weekday]),
    "b": lambda p, m: m.word(str(p.date.month)),
    "B": lambda p, m: m.word(str(p.date.month) if m.short else _MONTHS[p.date.month - 1]),
    "u": lambda p, m: m.number(p.date.weekday + 1, 1),  # Sunday is 7
    "w": lambda p, m: m.number((p.date.weekday + 1) % 7, 1),  # Sunday is 0
    "G": lambda p, m: m.number(p.date.week_year, 4),
    "g": lambda p, m: m.number(p.date.week_year % 100, 2),
    "V": lambda p, m: m.number(p.date.week, 2),
    "D": _iso_date,
}
DAYTIME_ESCAPES: Escapes = {
    "H": lambda p, m: m.number(p.daytime.hour, 2),
    "I": lambda p, m: m.number((p.daytime.hour + 11) % 12 + 1, 2),
    "M": lambda p, m: m.number(p.daytime.minute, 2),
    "S": _second,
    "f": lambda p, m: _fraction(exact(p.daytime.ssm), 6),  # always six digits
    "p": lambda p, m: m.word("AM" if p.daytime.hour < 12 else "PM"),
    "C": _iso_daytime,
}
TIME_ESCAPES: Escapes = {
    **DATE_ESCAPES,
    **DAYTIME_ESCAPES,
    "i": lambda p, m: _iso_time(p, m, _offset(p, _NARROW, "" if m.short else ":")),
    "T": lambda p, m: _iso_time(p, m, _zone_letter(p, m)),
    "z": lambda p, m: _offset(p, m, ""),
    "E": lambda p, m: _offset(p, m, ":"),
    "e": _zone_letter,
}
