"""What an expression may cost: how big a value may be, and how much work is done in all.

Whoever may post an ad hoc job may write a template, and the server expands it. Every operation of a
template costs a little, plus the size of what it reads and of what it makes; what could grow by more
than its operands (`'x' * 10**9`, `'%99999d'`, `ljust`, `replace`) is estimated before it is done.
All sizes are in characters. Everything here raises FieldError, or ValueError, with one line.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from apsislib.errors import FieldError

# Linux passes no argument longer than this many bytes to a program, so nothing useful is longer.
SIZE = 131_072  # of a text; of a list: its texts plus ITEM for each item
WORK = 1_000_000  # in one expansion: 50 to 100 ms at worst, some 10,000 turns of a loop
DEPTH = 50  # levels of nested lists: hashing deep tuples would overflow the C stack
BITS = 4_096  # of an integer
WIDTH = 9_999  # of a field in a format
FORMAT = 1_000  # the length of a format: strftime makes up to 256 times as much of it

ITEM = 4  # the size of an item of a list
WALK = 8  # the work of looking at an item of a list
STEP = 32  # the work of any operation: up to half a microsecond
METHOD = 100  # the work of a call of a method of a text, list or dict: a microsecond or two
CALL = 200  # the work of any other call: a few microseconds

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[type, ...] = (list, tuple, dict, range, *_VIEWS)


class Meter:
    """What one expansion may still cost."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = WORK

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise FieldError("the template loops or repeats too much, and was stopped")

    def reserve(self, size: int) -> None:
        """Before a value of at most `size` is made."""
        if size > SIZE:
            raise too_big()
        self.spend(max(size, 0) // 4)

    def weigh(self, value: Any, factor: int = 1) -> int:
        """The size of `value`; reading it is charged `factor` times."""
        if isinstance(value, str):
            size = len(value)
            if size > SIZE:
                raise too_big()
            self.spend(size * factor // 4)
            return size
        if isinstance(value, _CONTAINERS):
            return self._walk(value, factor)
        if isinstance(value, int):
            check_int(value)
        return len(value) if isinstance(value, bytes) else ITEM

    def _walk(self, value: Any, factor: int) -> int:
        size = items = 0
        todo = [(value, 1)]
        while todo:
            node, depth = todo.pop()
            items += len(node)
            if depth > DEPTH:
                raise FieldError(f"a list in the template is nested more than {DEPTH} levels deep")
            if size + ITEM * items > SIZE:  # also ends the walk of a list that holds itself
                raise too_big()
            if isinstance(node, range):
                continue
            for part in (node, node.values()) if isinstance(node, dict) else (node,):
                for item in part:
                    if isinstance(item, str):
                        size += len(item)
                    elif isinstance(item, _CONTAINERS):
                        todo.append((item, depth + 1))
                    elif isinstance(item, int):
                        check_int(item)
                    elif isinstance(item, bytes):
                        size += len(item)
        self.spend(factor * (WALK * items + size // 4))
        if size + ITEM * items > SIZE:
            raise too_big()
        return size + ITEM * items

    def listed(self, items: Iterator[Any]) -> list[Any]:
        """What a lazy filter yields, paid for item by item: a list can be weighed, shown and read twice."""
        made = []
        size = 0
        for item in items:
            self.spend(STEP)
            size += ITEM + self.weigh(item)
            if size > SIZE:
                raise too_big()
            made.append(item)
        return made


def check_int(value: int) -> None:
    if value.bit_length() > BITS:
        raise FieldError(f"a number in the template has more than {BITS} bits")


def too_big() -> FieldError:
    return FieldError(f"a value in the template is bigger than {SIZE} characters")


# -- operators -------------------------------------------------------------------------------------


def before_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Pays for `left operator right`; raises if that would be too much."""
    meter.spend(STEP)
    left_size, right_size = meter.weigh(left), meter.weigh(right)
    if operator == "*":
        for times, size, other in ((left, right_size, right), (right, left_size, left)):
            if isinstance(times, int) and isinstance(other, (str, bytes, list, tuple)):
                meter.reserve(times * size)
                if isinstance(other, (list, tuple)):
                    meter.reserve(times * len(other) * ITEM)
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and (abs(left) - 1).bit_length() * right > BITS:
            raise FieldError(f"a number in the template has more than {BITS} bits")
    elif operator == "%" and isinstance(left, (str, bytes)):
        meter.reserve(percent_size(str(left), right))


_NUMBERS = re.compile(r"[0-9]+")


def check_format(spec: str) -> None:
    """Refuses a format with huge fields. Raises ValueError."""
    if any(len(width) > 4 for width in _NUMBERS.findall(spec)):
        raise ValueError(f"a width in a format may be at most {WIDTH}")


def format_value(value: Any, spec: str = "") -> str:
    """`format(value, spec)`: the `%` language of dates for dates, Python's for the rest."""
    if len(spec) > FORMAT:
        raise ValueError(f"a format may have at most {FORMAT} characters")
    check_format(spec)
    return format(value, spec)


def percent_size(text: str, operands: Any) -> int:
    """The most that `text % operands` can become."""
    check_format(text)
    if re.search(r"%[^a-zA-Z%]*\*", text):
        raise ValueError("a width of '*' is not available in templates")
    fields = text.count("%")
    wide = max(map(int, _NUMBERS.findall(text)), default=0)
    # A mapping's values may be taken again and again, a tuple's items only once.
    times = max(fields, 1) if isinstance(operands, Mapping) else 1
    return fields * wide + Meter().weigh(operands) * times * 10  # repr may write \U00010000 for a character


# -- filters, tests and methods ----------------------------------------------------------------------
#
# What each makes at most beyond what it reads (its size), and what it does beyond reading each
# character and item once (its work), as far as templates can make much of it.

Cost = Callable[..., int]


def _width(text: Any, width: Any = 80, *rest: Any) -> int:
    return int(width)


def _indent(text: str, width: Any = 4, *rest: Any, **more: Any) -> int:
    each: int = width if isinstance(width, int) else len(width)
    return each * (len(text.splitlines()) + 1)


def _tabs(text: str, tabsize: int = 8) -> int:
    return text.count("\t") * tabsize


def _replace(text: Any, old: Any, new: Any, *count: Any, **more: Any) -> int:
    return str(text).count(str(old)) * len(str(new))


def _join(items: Any, d: Any = "", attribute: Any = None) -> int:
    return len(items) * len(str(d))


def _batch(items: Any, linecount: int, fill_with: Any = None) -> int:
    return ITEM * linecount


def _slice(items: Any, slices: int, fill_with: Any = None) -> int:
    return 20 * ITEM * slices  # a list of no items takes 56 bytes


def _percent(text: Any, *args: Any, **kwargs: Any) -> int:
    return percent_size(str(text), kwargs or args)


def _json(value: Any, indent: Any = None) -> int:
    if indent is None:
        return 0
    each: int = indent if isinstance(indent, int) else len(indent)
    return each * Meter().weigh(value)


def _round(value: Any, precision: int = 0, method: str = "common") -> int:
    if abs(precision) > 300:
        raise ValueError(f"can't round to {precision} digits")
    return 0


def _sum(items: Any, attribute: Any = None, start: Any = 0) -> int:
    # Adding lists up copies each again and again.
    return 0 if isinstance(start, (int, float)) else WALK * len(items) * Meter().weigh(items)


def _squared(text: Any, *args: Any, **kwargs: Any) -> int:
    return len(str(text)) ** 2 // 64


def _letters(items: Any, *args: Any, **kwargs: Any) -> int:
    # A text is taken letter by letter here.
    return 16 * WALK * len(items) if isinstance(items, str) else 0


def _search(text: Any, part: Any = "", *rest: Any, sep: Any = "", **more: Any) -> int:
    part = part or sep
    return len(text) * len(part) // 16 if isinstance(text, str) and isinstance(part, str) else 0


def _member(value: Any, seq: Any) -> int:
    return _search(seq, value)


def _strip(text: Any, chars: Any = None) -> int:
    return len(str(text)) * len(chars) // 64 if isinstance(chars, str) else 0


def cost(table: Mapping[str, Cost], name: str, *args: Any, **kwargs: Any) -> int:
    """What the table says of `name`; 0 where it says nothing. Raises TypeError."""
    found = table.get(name)
    if found is None:
        return 0
    try:
        return found(*args, **kwargs)
    except TypeError:
        raise TypeError(f"wrong arguments for {name}") from None


FILTER_SIZES: Mapping[str, Cost] = {
    "batch": _batch,
    "center": _width,
    "format": _percent,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "slice": _slice,
    "tojson": _json,
}
FILTER_WORK: Mapping[str, Cost] = {
    **dict.fromkeys(("groupby", "max", "min", "sort", "unique"), _letters),
    "replace": _search,
    "round": _round,
    "striptags": _squared,
    "sum": _sum,
    "trim": _strip,
    "urlize": _squared,
    "wordwrap": _squared,
}
TEST_WORK: Mapping[str, Cost] = {"in": _member}
# More than a few nanoseconds a character, or 100 an item.
SLOW_FILTERS = frozenset(
    ("dictsort", "groupby", "max", "min", "pprint", "sort", "title", "unique", "urlencode", "urlize")
    + ("wordcount", "xmlattr")
)

_METHOD_SIZES: Mapping[str, Cost] = {
    "center": _width,
    "expandtabs": _tabs,
    "join": lambda d, items: len(items) * len(d),
    "ljust": _width,
    "replace": _replace,
    "rjust": _width,
    "zfill": _width,
}
_METHOD_WORK: Mapping[str, Cost] = {
    **dict.fromkeys(("strip", "lstrip", "rstrip"), _strip),
    **dict.fromkeys(
        (
            "count",
            "find",
            "index",
            "partition",
            "replace",
            "rfind",
            "rindex",
            "rpartition",
            "rsplit",
            "split",
        ),
        _search,
    ),
}
_MOMENT_SIZES: Mapping[str, Cost] = {"strftime": lambda moment, format: 256 * len(format)}
# These take the same time however big the list or dict is.
_QUICK = frozenset(("append", "get", "items", "keys", "setdefault", "values"))


def before_call(meter: Meter, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Pays for `function(*args, **kwargs)`; raises if that would be too much."""
    for arg in args:
        meter.weigh(arg)
    for arg in kwargs.values():
        meter.weigh(arg)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, str):
        name = function.__name__
        meter.spend(METHOD)
        meter.weigh(owner, 4)
        meter.reserve(cost(_METHOD_SIZES, name, owner, *args, **kwargs))
        meter.spend(cost(_METHOD_WORK, name, owner, *args, **kwargs))
    elif isinstance(owner, (list, tuple, dict)):
        meter.spend(METHOD)
        if function.__name__ not in _QUICK:
            meter.weigh(owner, 4)
    else:
        meter.spend(CALL)
        if isinstance(owner, (datetime.date, datetime.time)):
            meter.reserve(cost(_MOMENT_SIZES, function.__name__, owner, *args, **kwargs))
