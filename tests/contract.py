"""What openapi.json promises, and whether answers keep it: judged by jsonschema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import requests
from jsonschema import Draft202012Validator

from apsislib.api import openapi
from apsislib.api.routes import ROUTES

DOCUMENT: dict[str, Any] = json.loads(openapi.document(ROUTES, "0"))
LARGE = 300_000  # bytes; of what is larger, one like it has been seen
seen: set[tuple[str, str]] = set()  # method and path of what has been answered with 200 or 206


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": name, "components": DOCUMENT["components"]})


def complain(name: str, value: Any) -> None:
    """Fail, with what is wrong, unless the value is one of this schema."""
    errors = sorted(validator(name).iter_errors(value), key=lambda error: list(error.path))
    if errors:
        first = errors[0]
        deepest = min(first.context or [first], key=lambda error: -len(error.path))
        where = "/".join(map(str, [*first.path, *deepest.path]))
        raise AssertionError(f"{name}: {where}: {deepest.message[:2000]}")


@cache
def _paths() -> list[tuple[re.Pattern[str], str, dict[str, Any]]]:
    found = []
    for path, operations in DOCUMENT["paths"].items():
        pattern = re.sub(r"\\\{job_id\\\}", ".+", re.escape(path))
        found.append((re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", pattern) + "/?"), path, operations))
    return found


def _operations(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for pattern, name, operations in _paths():
        if pattern.fullmatch(path):
            yield name, operations


def check(answer: requests.Response) -> None:
    """Fail unless the answer is one that the description has."""
    assert answer.request.url is not None
    path = urlsplit(answer.request.url).path
    if (
        not path.startswith(("/api/", "/metrics"))
        or answer.request.method == "HEAD"
        or len(answer.content) > LARGE
    ):
        return
    if answer.status_code == 304:
        assert answer.content == b""
        return
    if answer.status_code not in (200, 206):
        complain("#/components/schemas/Error", answer.json())
        return
    name, operations = next(_operations(path))
    operation = operations[str(answer.request.method).lower()]
    seen.add((str(answer.request.method), name))
    (content,) = operation["responses"][str(answer.status_code)]["content"].items()
    if content[0] == "application/json":
        complain(content[1]["schema"]["$ref"], answer.json())
