"""What can be handed to the store besides the kernel's effects, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from apsislib.runs import Effect, Json


@dataclass(frozen=True, slots=True)
class SaveJob:
    """Write an ad hoc job."""

    job_id: str
    job: Json


@dataclass(frozen=True, slots=True)
class DropJob:
    """Remove an ad hoc job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class SetMeta:
    """Write one of the database's few named values."""

    name: str
    value: str | int | float


@dataclass(frozen=True, slots=True)
class Version:
    """What was seen of a finished run: it is the same run still if this is."""

    run_id: str
    rev: int
    entries: int | None = None  # of its log; None: no matter
    lengths: tuple[int, ...] | None = None  # of its outputs, by their IDs; None: no matter


@dataclass(frozen=True, slots=True)
class DeleteRuns:
    """Remove runs with their logs and outputs, if they are as seen. Actions that they owe stay owed."""

    runs: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Free some of what large outputs of deleted runs take: so many chunks at most."""

    chunks: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """These runs are gone from the database."""

    run_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an output, as it arrived."""

    run_id: str
    output_id: str
    offset: int  # of the first byte within the output
    data: bytes = field(repr=False)
    name: str = "combined stdout & stderr"
    content_type: str = "application/octet-stream"

    @property
    def key(self) -> tuple[str, str]:
        return self.run_id, self.output_id


@dataclass(frozen=True, slots=True)
class Grew:
    """An output is longer now, on disk: `length` bytes."""

    run_id: str
    output_id: str
    length: int


@dataclass(frozen=True, slots=True)
class OutputInfo:
    """An output without its bytes."""

    output_id: str
    name: str
    content_type: str
    length: int  # bytes


@dataclass(slots=True)
class Copied:
    """What became of runs that were to be copied to an archive."""

    versions: list[Version] = field(default_factory=list)  # of those that are there
    log: int = 0  # rows
    outputs: int = 0  # rows
    left: dict[str, str] = field(default_factory=dict)  # run ID -> why it was not copied


Entry = Effect | SaveJob | DropJob | SetMeta | DeleteRuns | Sweep


@dataclass(slots=True)
class Written:
    """What became of a batch."""

    # Stored, or not to be stored; in order of decision.
    effects: list[Entry | Deleted] = field(default_factory=list)
    grew: list[Grew] = field(default_factory=list)
    refused: list[tuple[Entry | Chunk, Exception]] = field(default_factory=list)


def run_id_of(entry: Any) -> str | None:
    """The run that an effect is about, if it is about one."""
    run = getattr(entry, "run", None)
    run_id = run.run_id if run is not None else getattr(entry, "run_id", None)
    return run_id if isinstance(run_id, str) else None
