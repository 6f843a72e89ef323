"""The tables of docs/config.md, from the classes that the configuration is read by.

python tests/config_page.py      writes them into the page anew
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from apsislib.config.keys import Config, Timeout  # noqa: E402
from apsislib.times import format_duration  # noqa: E402

PAGE = ROOT / "docs" / "config.md"
KEYS = ROOT / "apsislib" / "config" / "keys.py"
BEGIN, END = "<!-- from apsislib/config/keys.py -->\n", "<!-- end -->\n"


def comments() -> dict[tuple[str, str], str]:
    """What stands above a key in keys.py, or beside it: (class, key) -> text."""
    lines = KEYS.read_text().splitlines()
    found = {}
    for cls in ast.parse("\n".join(lines)).body:
        for entry in cls.body if isinstance(cls, ast.ClassDef) else ():
            if not (isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)):
                continue
            above: list[str] = []
            while (line := lines[entry.lineno - 2 - len(above)].strip()).startswith("#"):
                above.insert(0, line[1:].strip())
            beside = lines[entry.lineno - 1].partition("  # ")[2]
            found[cls.name, entry.target.id] = beside or " ".join(above)
    return found


def keys(cls: type, above: str = "") -> Iterator[tuple[str, type, Field[Any]]]:
    """(its full name, class, field) of every key."""
    for one in fields(cls):
        if "section" in one.metadata:
            yield from keys(one.metadata["section"], f"{above}{one.name}.")
        elif "parse" in one.metadata:
            yield f"{above}{one.name}", cls, one


def tables() -> str:
    said = comments()
    sections: dict[str, list[str]] = {}
    for name, cls, one in keys(Config):
        parts = name.split(".")[:-1]
        section = ".".join(parts[: 3 if name.startswith("procstar") else 1])
        text = said[cls.__name__, one.name]
        text = re.sub(r"None, (?:also )?written (`[^.:]*):", r"\1:", text)
        text = re.sub(r"\bNone:", "Not given:", text)
        if env := one.metadata.get("env"):
            text += f"{' ' if text else ''}Environment: `{env}`."
        shown = default(cls, one, text.startswith("Seconds"))
        row = f"| `{name}` | {shown} | {text or ('' if shown else 'Likewise.')} |".replace("|  |", "| |")
        sections.setdefault(section, []).append(row)
    head = ["", "| key | default | meaning |", "|---|---|---|"]
    found = [[f"## {section or 'Files and classes'}", *head, *rows, ""] for section, rows in sections.items()]
    return "\n".join(line for lines in found for line in lines)


def default(cls: type, one: Field[Any], seconds: bool) -> str:
    value = one.default
    if value is MISSING:
        value = one.default_factory() if one.default_factory is not MISSING else MISSING
    if value is MISSING:
        return "required"
    if value is None or value in ((), {}):
        return ""
    if (cls, one.name) == (Timeout, "signal"):
        return "`SIGTERM`"
    if hasattr(value, "policy"):
        return f"`{value.policy}`"
    if isinstance(value, bool | tuple):
        return f"`{json.dumps(value)}`"
    if seconds:
        return f"`{format_duration(value)}`"
    if isinstance(value, int | float):
        return f"`{value:g}`" if value < 1e6 else f"`{value:.0f}`"
    return f"`{value}`" if str(value) else ""


def page() -> str:
    """All of the page, with the tables as they are to be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
