"""Classes of users' own, found by their dotted paths on PYTHONPATH.

Whoever calls into one does so within unleaving(), or by way of called(): what was written as a script may
call sys.exit(), which ends a thread without a word, or the server.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from apsislib.errors import FieldError

T = TypeVar("T")


@contextmanager
def unleaving() -> Iterator[None]:
    """sys.exit() in the block raises RuntimeError, as other mistakes do."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"it called sys.exit({error.code!r})") from error


def locate(path: str) -> Any:
    """The object at a dotted path: the longest importable prefix is the module, the rest attributes.

    Raises whatever importing a module raises, or AttributeError.
    """
    holder, _, name = path.rpartition(".")
    try:
        with unleaving():
            found = importlib.import_module(holder)
    except ModuleNotFoundError as error:
        # Missing is the module itself, perhaps a class; else it is something that the module imports.
        if "." not in holder or not f"{holder}.".startswith(f"{error.name}."):
            raise
        found = locate(holder)
    return getattr(found, name)


def find(path: str, what: str, needs: Iterable[str]) -> type:
    """The class at a dotted path, which is to be a `what` and to have the methods `needs`.

    Raises FieldError at `type`.
    """
    a = "an" if what[0] in "aeiou" else "a"
    try:
        found = locate(path)
    except Exception as error:  # a module of somebody else's may raise anything
        raise FieldError(f"unknown {what} type: {path}: {error or type(error).__name__}", ["type"]) from error
    if not isinstance(found, type):
        raise FieldError(f"type {path} not {a} {what}: it is not a class", ["type"])
    for method in needs:
        if not callable(getattr(found, method, None)):
            raise FieldError(f"type {path} not {a} {what}: it has no {method}()", ["type"])
    return found


def called(path: str, method: Callable[..., T], *args: Any) -> T:
    """What a user's class says of its keys. Raises FieldError."""
    try:
        with unleaving():
            return method(*args)
    except FieldError:
        raise
    except Exception as error:  # whatever it raises is an error of the file that has the keys
        raise FieldError(f"{path}: {type(error).__name__}: {error}") from error
