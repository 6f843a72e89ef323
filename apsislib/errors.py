"""The few errors of Apsis. Each knows its HTTP status; each message names the thing and the remedy.

ApsisError            500   anything of ours that is nobody's fault at the door
├── BadRequest        400   what was asked cannot be meant
│   ├── FieldError    400   ... because of one key of a mapping (a job file, the config, a body)
│   ├── JobError      400   ... because of one line of one file
│   └── JobErrors     400   ... because of several
├── NotFound          404
├── RunError          400   the run is in no state for this
└── Unavailable       503   try again later: the disk is full, the server is stopping
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# Exit status of a command that changes something, was interrupted, and may not have done all of it.
INTERRUPTED = 130


class ApsisError(Exception):
    """The root. `status` is what HTTP answers."""

    status = 500


class BadRequest(ApsisError):
    status = 400


class FieldError(BadRequest):
    """A value in a mapping is wrong.

    `keys` is the path from the mapping's root to the offending key or item, outermost first, e.g.
    ("schedule", 0, "tz"). A parser that is given a sub-mapping raises with the path below it; the
    caller puts its own keys in front with `under`.
    """

    def __init__(self, message: str, keys: Iterable[str | int] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.keys: tuple[str | int, ...] = tuple(keys)

    def under(self, *keys: str | int) -> FieldError:
        """The same error, seen from a mapping that holds this one at `keys`."""
        return FieldError(self.message, keys + self.keys)


def missing(key: str, mapping: Iterable[object], known: Iterable[object] = (), what: str = "") -> FieldError:
    """The error that says that `mapping` has no `key`, or which of its keys may have been meant by it.

    `known`: keys that have a meaning there. `what` is said instead of `missing key: KEY`.
    """
    strange = [str(name) for name in mapping if name not in set(known)]
    near = get_close_matches(key, strange, 1, 0.75)
    if near:
        return FieldError(f"unexpected key: {near[0]} (did you mean {key}?)", near)
    return FieldError(what or f"missing key: {key}")


class JobError(BadRequest):
    """A job file or the server's file is wrong at a line (1-based; None where no line can be named)."""

    def __init__(self, path: str, line: int | None, message: str, job_id: str | None = None) -> None:
        super().__init__(f"{path}:{line}: {message}" if line else f"{path}: {message}")
        self.path = path
        self.line = line
        self.message = message
        self.job_id = job_id

    def __reduce__(self) -> tuple[object, ...]:
        # Files are parsed in a child process; BaseException alone would lose path and line.
        return JobError, (self.path, self.line, self.message, self.job_id)


class JobErrors(BadRequest):
    """All that is wrong with a directory of job files, or with the server's file.

    The text is one sentence; `errors` has the details, sorted by path and line.
    """

    def __init__(self, message: str, errors: Iterable[JobError]) -> None:
        super().__init__(message)
        self.message = message
        self.errors = tuple(sorted(errors, key=lambda e: (e.path, e.line or 0)))

    def __reduce__(self) -> tuple[object, ...]:
        return JobErrors, (self.message, self.errors)


class NotFound(ApsisError):
    status = 404


class RunError(ApsisError):
    status = 400


class Unavailable(ApsisError):
    status = 503
