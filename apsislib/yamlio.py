"""YAML, as job files and the server's file use it. The only importer of yaml.

The dialect is YAML 1.2: `yes`, `on` and `09:30:00` are strings, `012` is twelve. The file is read
event by event instead of through PyYAML's composer and constructor: so every key keeps its line,
duplicate keys are seen, nothing is ever constructed from a tag, and neither nesting nor aliases
can take the process down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import yaml

from apsislib.errors import JobError

MAX_DEPTH = 100  # levels; hand-written files have about 8, and every reader of the result recurses
MAX_EXPANDED = 100_000  # nodes made by aliases in one file; ends a "billion laughs" within 0.1 s

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is about 10 times as fast
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Map(dict[Any, Any]):
    """A mapping that knows where it stands: its own line, and the line of each key (1-based)."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int = 1) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[Any, int] = {}

    def put(self, key: Any, value: Any, line: int | None = None) -> None:
        self[key] = value
        self.lines[key] = self.line if line is None else line


class Seq(list[Any]):
    """A list that knows where it stands: its own line, and the line of each item (1-based)."""

    __slots__ = ("line", "lines")

    def __init__(self, line: int = 1) -> None:
        super().__init__()
        self.line = line
        self.lines: list[int] = []

    def put(self, value: Any, line: int) -> None:
        self.append(value)
        self.lines.append(line)


def line_of(node: Any, keys: Iterable[str | int]) -> int | None:
    """The line of the deepest key of the path `keys` that exists in `node`; None if it has no lines."""
    line: int | None = getattr(node, "line", None)
    for key in keys:
        if isinstance(node, Map):
            # A key that is not a string (`1: x`) is named by its text in error paths.
            found = key if key in node.lines else next((k for k in node.lines if str(k) == str(key)), None)
            if found not in node.lines:
                break
            line, node = node.lines[found], node[found]
        elif isinstance(node, Seq) and isinstance(key, int) and key < len(node):
            line, node = node.lines[key], node[key]
        else:
            break
    return line


# -- reading -------------------------------------------------------------------------------------


def load(text: bytes | str, path: str) -> Any:
    """The one document in `text`: Map, Seq or a scalar; None if it is empty.

    `path` is only said in errors. Raises JobError with the line.
    """
    try:
        text = _decoded(text)
        return _Document(text).read()
    except _Wrong as wrong:
        raise JobError(path, wrong.line, wrong.message) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = None if mark is None else mark.line + 1
        raise JobError(path, line, _explained(error, mark, text)) from None


class _Wrong(Exception):
    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


# What YAML calls printable, negated.
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _decoded(text: bytes | str) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            message = f"not UTF-8: byte 0x{error.object[error.start]:02x}; save the file as UTF-8"
            raise _Wrong(line, message) from None
    text = text.removeprefix("\ufeff")
    if bad := _CONTROL.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise _Wrong(line, f"control character U+{ord(bad[0]):04X}; remove it, or write it in double quotes")
    return text


def _explained(error: yaml.YAMLError, mark: Any, text: bytes | str) -> str:
    problem = getattr(error, "problem", None) or str(error)
    if "nesting depth" in problem:  # libyaml has a limit too, and meets it first as it looks ahead
        return f"nested more than {MAX_DEPTH} levels deep; flatten it"
    context = getattr(error, "context", None)
    message = f"not valid YAML: {problem}" + (f" {context}" if context else "")
    lines = str(text).split("\n")
    here = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in here[: len(here) - len(here.lstrip())]:
        return f"{message}; indent with spaces, not tabs"
    if "cannot start any token" in problem:
        return f"{message}; put quotes around the value"
    if "mapping values are not allowed" in problem:
        return f"{message}; put quotes around a value that has a colon in it"
    return message


class _Document:
    """One reading of one text: the parser and what is left of its allowances."""

    def __init__(self, text: str) -> None:
        self._parser = _Parser(text)
        self._anchors: dict[str, Any] = {}
        self._open: set[str] = set()  # anchors of nodes that are still being read
        self._expanded = 0  # nodes copied for aliases so far

    def read(self) -> Any:
        try:
            result: Any = None
            documents = 0
            while True:
                event = self._parser.get_event()
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        raise _Wrong(_line(event), "more than one document in the file; split it into files")
                elif isinstance(event, yaml.StreamEndEvent):
                    return result
                elif isinstance(event, yaml.NodeEvent):
                    result = self._node(event, 0)
        finally:
            self._parser.dispose()

    def _node(self, event: Any, depth: int) -> Any:
        """The node that begins with `event`. Recurses at most MAX_DEPTH times."""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        if isinstance(event, yaml.ScalarEvent):
            node = _scalar(event)
        else:
            line = _line(event)
            if depth >= MAX_DEPTH:
                raise _Wrong(line, f"nested more than {MAX_DEPTH} levels deep; flatten it")
            if event.anchor:
                self._open.add(event.anchor)
            if isinstance(event, yaml.MappingStartEvent):
                _refuse_tag(event, "tag:yaml.org,2002:map")
                node = self._mapping(line, depth + 1)
            else:
                _refuse_tag(event, "tag:yaml.org,2002:seq")
                node = self._sequence(line, depth + 1)
            self._open.discard(event.anchor)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _sequence(self, line: int, depth: int) -> Seq:
        seq = Seq(line)
        while not isinstance(event := self._parser.get_event(), yaml.SequenceEndEvent):
            seq.put(self._node(event, depth), _line(event))
        return seq

    def _mapping(self, line: int, depth: int) -> Map:
        node = Map(line)
        merged: list[Any] | None = None  # the mappings that `<<` names
        while not isinstance(event := self._parser.get_event(), yaml.MappingEndEvent):
            key_line = _line(event)
            merge = isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.value == "<<"
            key = "<<" if merge else self._node(event, depth)
            if isinstance(key, dict | list):
                raise _Wrong(
                    key_line, "a key must be a plain value; put quotes around a value that begins with {{"
                )
            event = self._parser.get_event()
            value = self._node(event, depth)
            if merge:
                if merged is not None:
                    raise _Wrong(key_line, 'found duplicate key "<<"; give one list of mappings')
                merged = value if isinstance(value, list) else [value]
                if not all(isinstance(m, Map) for m in merged):
                    raise _Wrong(key_line, "<< merges mappings only; give it an alias of a mapping")
            elif key in node:
                new, old = _short(value), _short(node[key])
                raise _Wrong(
                    key_line, f'found duplicate key "{key}" with value "{new}" (original value: "{old}")'
                )
            else:
                node.put(key, value, key_line)
        for source in merged or ():
            for key in source:
                if key not in node:  # what is written here wins, then the earlier of several sources
                    node.put(key, source[key], source.lines[key])
        return node

    def _alias(self, event: Any, depth: int) -> Any:
        name = event.anchor
        if name in self._open:
            raise _Wrong(_line(event), f"alias *{name} contains itself")
        if name not in self._anchors:
            raise _Wrong(_line(event), f"alias *{name} has no anchor &{name} before it")
        return self._copy(self._anchors[name], _line(event), depth)

    def _copy(self, node: Any, line: int, depth: int) -> Any:
        """`node` anew, so that whoever changes one use of an anchor leaves the others alone."""
        self._expanded += 1
        if self._expanded > MAX_EXPANDED:
            raise _Wrong(line, f"aliases expand to more than {MAX_EXPANDED} values; write less")
        if isinstance(node, Map | Seq) and depth >= MAX_DEPTH:
            raise _Wrong(line, f"nested more than {MAX_DEPTH} levels deep by aliases; flatten it")
        if isinstance(node, Map):
            copy = Map(node.line)
            for key, value in node.items():
                copy.put(key, self._copy(value, line, depth + 1), node.lines[key])
            return copy
        if isinstance(node, Seq):
            items = Seq(node.line)
            for value, at in zip(node, node.lines, strict=True):
                items.put(self._copy(value, line, depth + 1), at)
            return items
        return node


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse_tag(event: Any, own: str) -> None:
    if event.tag is not None and event.tag not in ("!", own):
        name = event.tag.replace("tag:yaml.org,2002:", "!!")
        raise _Wrong(_line(event), f"tag {name} is not supported; remove it")


# -- scalars -------------------------------------------------------------------------------------

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_FIRST = frozenset("0123456789+-.")  # of every number and date
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*")
_BASED = re.compile(r"([-+]?)0(?:b([01_]+)|o([0-7_]+)|x([0-9a-fA-F_]+))")
_FLOAT = re.compile(
    r"[-+]? (?: [0-9][0-9_]* \. [0-9_]* (?:[eE][-+]?[0-9]+)? | [0-9][0-9_]* [eE][-+]?[0-9]+"
    r" | \. [0-9][0-9_]* (?:[eE][-+]?[0-9]+)? )",
    re.VERBOSE,
)
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
_TIME = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)(?:[Tt]|[ \t]+)(\d\d?):(\d\d):(\d\d)(?:\.(\d*))?"
    r"(?:[ \t]*(?:(Z)|([-+])(\d\d?)(?::?(\d\d))?))?",
    re.ASCII,
)


def _scalar(event: Any) -> Any:
    text: str = event.value
    if event.tag is not None:
        _refuse_tag(event, "tag:yaml.org,2002:str")
        return text
    if not event.implicit[0]:  # quoted, or a block
        return text
    try:
        return plain(text)
    except ValueError as error:
        message = f"{text[:40]!r} looks like a number or date but is none: {error}"
        raise _Wrong(_line(event), f"{message}; put quotes around it") from None


def plain(text: str) -> Any:
    """What a scalar without quotes means. Raises ValueError for 2024-02-30 and the like."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _FIRST:
        return text
    if _DECIMAL.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if found := _DATE.fullmatch(text):
        return date(*map(int, found.groups()))
    if found := _BASED.fullmatch(text):
        sign, *digits = found.groups()
        for base, based in zip((2, 8, 16), digits, strict=True):
            if based is not None and (bare := based.replace("_", "")):
                if len(bare) > 1000:  # Python refuses to write out integers beyond 4,300 digits
                    raise ValueError("too many digits")
                return int(sign + bare, base)
        return text
    if found := _TIME.fullmatch(text):
        return _timestamp(*found.groups())
    return text


def _timestamp(*parts: str | None) -> datetime:
    """An aware datetime; a naive one where no zone is written."""
    year, month, day, hour, minute, second = (int(p or 0) for p in parts[:6])
    fraction, z, sign, hours, minutes = parts[6:]
    micro = int(((fraction or "") + "000000")[:6])
    zone = None
    if z:
        zone = UTC
    elif sign:
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        zone = timezone(-offset if sign == "-" else offset)
    return datetime(year, month, day, hour, minute, second, micro, zone)


# -- writing -------------------------------------------------------------------------------------


def dump(value: Any, sort: bool = True) -> str:
    """`value` as YAML, keys sorted (or in their order), no anchors; load() gives it back."""
    return str(
        yaml.dump(_plainly(value), Dumper=_Writer, sort_keys=sort, allow_unicode=True, width=110, indent=2)
    )


class _Writer(_Dumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    """PyYAML decides by YAML 1.1 what needs quotes; our reader goes by 1.2, where `1e3` is a number."""
    style = None
    if "\n" in text and not any(line.endswith(" ") for line in text.split("\n")):
        style = "|"
    else:
        try:
            if not isinstance(plain(text), str):
                style = "'"
        except ValueError:
            style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _represent_text)


def _plainly(value: Any) -> Any:
    """Without subclasses (Map, State, ...), which PyYAML would not know; tuples and sets as lists."""
    if isinstance(value, dict):
        return {_plainly(k): _plainly(v) for k, v in value.items()}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Iterator | list | tuple):
        return [_plainly(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(_plainly(v) for v in value)
    return value
