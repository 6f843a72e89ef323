"""The terminal: how wide it is, whether it takes colours, and text that can't upset it."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

# Numbers of the 256-colour palette.
RED, BOLD, UNDERLINE = "38;5;124", "1", "4"
JOB, RUN, ARGS = "38;5;30", "38;5;36", "38;5;60"


@dataclass(frozen=True, slots=True)
class Terminal:
    """What the standard output is."""

    colours: bool = False
    width: int | None = None  # columns; None where there is no terminal, and nothing is shortened

    @staticmethod
    def of(stream: TextIO, environ: Mapping[str, str] = os.environ) -> Terminal:
        if not stream.isatty():
            return Terminal()
        colours = not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"
        return Terminal(colours, max(20, shutil.get_terminal_size().columns))

    def paint(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.colours and style and text else text

    def heading(self, text: str) -> str:
        return self.paint(text, UNDERLINE)


def forgiving(stream: TextIO) -> None:
    """Have what the encoding of `stream` lacks written as escapes rather than fail."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def plain(text: object) -> str:
    """One line of printable text: control characters, which might drive a terminal, become escapes."""
    line = str(text)
    return line if line.isprintable() else "".join(map(_printable, line))


def _printable(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) in ("Zs", "Co"):
        return char
    return repr(char)[1:-1]


# -- widths ----------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Columns that `text` takes: two for wide characters of East Asia, none for combining ones."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def shorten(text: str, columns: int) -> str:
    """`text`, its end replaced by an ellipsis if it takes more than so many columns."""
    if width(text) <= columns:
        return text
    taken, kept = 0, []
    for char in text:
        taken += _width(char)
        if taken > columns - 1:
            break
        kept.append(char)
    return "".join(kept) + "…" if columns > 0 else ""


# -- tables ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    style: str = ""
    align: Literal["left", "right"] = "left"


@dataclass(frozen=True, slots=True)
class Cell:
    """Text with a style of its own, in place of the column's."""

    text: str
    style: str


GAP = 2  # blanks between columns
NARROW = 6  # columns below which no column is shortened, nor its name
NARROWEST = 2  # ... unless the terminal has no room for that


def table(terminal: Terminal, columns: list[Column], rows: list[list[str | Cell]]) -> list[str]:
    """Lines of a table, with a heavy rule under the names; the last columns shorten to fit a terminal."""
    cells = [
        [c if isinstance(c, Cell) else Cell(c, k.style) for c, k in zip(r, columns, strict=True)]
        for r in rows
    ]
    cells = [[Cell(plain(cell.text), cell.style) for cell in row] for row in cells]
    widths = [
        max([width(column.name), *(width(row[index].text) for row in cells)])
        for index, column in enumerate(columns)
    ]
    if terminal.width is not None:
        excess = sum(widths) + GAP * (len(widths) - 1) - terminal.width
        least = [max(NARROW, width(column.name)) for column in columns]
        for limits in (least, [NARROWEST] * len(columns)):
            for index in range(len(widths) - 1, -1, -1):
                cut = min(max(0, excess), max(0, widths[index] - limits[index]))
                widths[index] -= cut
                excess -= cut

    def line(row: list[Cell]) -> str:
        parts = []
        for index, (cell, column) in enumerate(zip(row, columns, strict=True)):
            text = shorten(cell.text, widths[index])
            blanks = " " * (widths[index] - width(text))
            painted = terminal.paint(text, cell.style)
            if column.align == "right":
                parts.append(blanks + painted)
            else:
                parts.append(painted + (blanks if index < len(row) - 1 else ""))
        return (" " * GAP).join(parts).rstrip()

    head = line([Cell(column.name, BOLD) for column in columns])
    rule = (" " * GAP).join("━" * size for size in widths)
    return [head, rule, *(line(row) for row in cells)]
