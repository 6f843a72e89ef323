"""The ledger: what programs themselves have written down, the truth that all else is measured by."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    run_id: str
    occurrence: str  # as the job passed it on
    agent: str  # conn_id and life: "a1.3" is the third process of a1
    pid: int
    boot: float  # CLOCK_BOOTTIME
    code: str = ""  # of an end
    printed: int = 0  # lines of output, of an end


@dataclass(slots=True)
class Acts:
    """All that programs did in the name of one run. More than one `begin` is one too many."""

    begins: list[Line] = field(default_factory=list)
    ends: list[Line] = field(default_factory=list)


def read(path: Path) -> dict[str, Acts]:
    """run ID -> what its programs wrote. A torn last line cannot be: each is one write, synced."""
    acts: dict[str, Acts] = defaultdict(Acts)
    if not path.exists():
        return acts
    for text in path.read_text().splitlines():
        what, run_id, occurrence, agent, pid, boot, *rest = text.split(" ")
        line = Line(run_id, occurrence, agent, int(pid), float(boot))
        if what == "begin":
            acts[run_id].begins.append(line)
        else:
            code, printed = rest
            end = Line(run_id, occurrence, agent, int(pid), float(boot), code, int(printed))
            acts[run_id].ends.append(end)
    return acts
