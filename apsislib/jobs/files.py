"""A directory of job files -> a JobSet, or every error of every file, each with its line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apsislib import yamlio
from apsislib.errors import JobError, JobErrors
from apsislib.jobs.parsing import Kinds, Reading, described
from apsislib.jobs.sets import JobSet, Keys, Lines
from apsislib.runs import Job
from apsislib.yamlio import Map, Seq

SUFFIX = ".yaml"


def load_dir(path: Path | str, kinds: Kinds) -> JobSet:
    """All jobs of the directory. Raises JobErrors with everything that is wrong in any file."""
    found, errors = read_dir(path, kinds)
    if errors:
        raise JobErrors(f"errors loading jobs in {path}", errors)
    return found


def read_dir(path: Path | str, kinds: Kinds) -> tuple[JobSet, list[JobError]]:
    """The jobs of the directory that can be read, and everything that is wrong in any file."""
    root = Path(path)
    jobs: list[Job] = []
    lines: dict[str, Lines] = {}
    warnings: list[str] = []
    errors: list[JobError] = []
    shared: dict[Keys, Keys] = {}  # most files have the same keys
    for job_id, file in _files(root, errors):
        try:
            job, where, doubtful = _read_file(job_id, file, kinds, shared)
        except JobErrors as wrong:
            errors.extend(wrong.errors)
        else:
            jobs.append(job)
            lines[job_id] = where
            warnings.extend(doubtful)
    if not root.is_dir():
        # Asked last: if the directory goes away while it is read, this says it better than a thousand files.
        errors = [JobError(str(root), None, "not a directory; say where the job files are with job_dir")]
    return JobSet(jobs, lines, warnings), errors


def _files(root: Path, errors: list[JobError]) -> Iterator[tuple[str, Path]]:
    """(job ID, file) of every job file, in order. What cannot be listed is an error, never no jobs."""

    def unreadable(error: OSError) -> None:
        errors.append(JobError(str(error.filename), None, f"can't be listed: {error.strerror}"))

    for directory, inner, names in os.walk(root, onerror=unreadable):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(SUFFIX) and not name.startswith("."):
                file = Path(directory, name)
                job_id = file.relative_to(root).as_posix().removesuffix(SUFFIX)
                if job_id.isascii() or _is_text(job_id):
                    yield job_id, file
                else:
                    shown = os.fsencode(file).decode("utf-8", "backslashreplace")
                    errors.append(JobError(shown, None, "the file's name is not UTF-8; rename it"))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate stands for a byte that is none
        return False
    return True


def _lines(node: Map | Seq, key: Any, above: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """(path, line) of a key or item, and of all below it."""
    keys = (*above, key)
    yield keys, node.lines[key]
    inner = node[key]
    if isinstance(inner, Map | Seq):
        for name in inner if isinstance(inner, Map) else range(len(inner)):
            yield from _lines(inner, name, keys)


def _read_file(
    job_id: str, file: Path, kinds: Kinds, shared: dict[Keys, Keys]
) -> tuple[Job, Lines, list[str]]:
    path = str(file)
    try:
        if not file.is_file() and file.exists():
            raise JobError(path, None, "not a file; remove it or rename it", job_id)  # a pipe would block
        root = yamlio.load(file.read_bytes(), path)
        if not isinstance(root, Map):
            raise JobError(path, getattr(root, "line", 1), "job file must be a mapping", job_id)
    except OSError as error:
        raise JobErrors(path, [JobError(path, None, f"can't be read: {error.strerror}", job_id)]) from None
    except JobError as error:
        raise JobErrors(path, [JobError(path, error.line, error.message, job_id)]) from None
    reading = Reading(job_id, kinds, path)
    job = reading.job(root)
    if job is None:
        raise JobErrors(
            path,
            [JobError(path, yamlio.line_of(root, e.keys), described(e), job_id) for e in reading.errors],
        )
    lines: dict[Keys, int] = {}
    for name in root:
        for keys, line in _lines(root, name):
            lines[shared.setdefault(keys, keys)] = line
    for place, keys in reading.places.items():
        if place != keys:
            inner = {keys_: line for keys_, line in lines.items() if keys_[: len(keys)] == keys}
            lines |= {place + keys_[len(keys) :]: line for keys_, line in inner.items()}
    return job, lines, [f"{path}:{yamlio.line_of(root, e.keys)}: {described(e)}" for e in reading.doubts]
