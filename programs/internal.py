"""Programs that work on the server itself: its statistics, and the keeping of its database.

They are programs like those of users (see programs/extension.py), each in a thread of its own, and are
given the server as `report.host`. Cut off by a restart, those of the database begin again: each run
is moved whole or not at all, so they only go on where they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

from apsislib.errors import ApsisError, FieldError
from apsislib.upkeep import Retired, describe
from programs.base import check_keys, duration, plain, show
from programs.extension import Reporter

TELL = 1.0  # s between two lines of progress


class Stats:
    """Writes the server's statistics as one JSON object; with `path`, also as a line of that file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def check(cls, mapping: Mapping[str, Any]) -> None:
        check_keys(mapping, ("path",))

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> Stats:
        path = mapping.get("path")
        return cls(None if path is None else _path(path))

    def run(self, run_id: str, cfg: Mapping[str, Any], report: Reporter) -> None:
        text = json.dumps(report.host.stats())
        report.output(text)
        if self._path is not None:
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(text + "\n")
            except OSError as error:
                report.error(
                    f"stats: can't append to {self._path}: {error.strerror}; its directory must exist"
                )


class Archive:
    """Moves runs that finished longer than `age` ago to the archive file at `path`."""

    name, done = "archive", "archived"

    def __init__(self, age: float, count: int, path: Path | None, chunk: int | None, pause: float) -> None:
        self._age = age
        self._count = count
        self._path = path
        self._chunk = chunk
        self._pause = pause
        self._stop = Event()

    @classmethod
    def check(cls, mapping: Mapping[str, Any]) -> None:
        required = ("age", "count", "path")
        check_keys(mapping, (*required, "chunk_size", "chunk_sleep"), required)

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> Archive:
        age = duration(mapping["age"], "age")
        chunk, pause = mapping.get("chunk_size"), mapping.get("chunk_sleep")
        return cls(
            age,
            _whole(mapping["count"], "count"),
            _path(mapping["path"]) if "path" in mapping else None,
            None if chunk is None else _whole(chunk, "chunk_size"),
            0.0 if pause is None else duration(pause, "chunk_sleep"),
        )

    def run(self, run_id: str, cfg: Mapping[str, Any], report: Reporter) -> None:
        report.running()
        host, upkeep = report.host, report.host.upkeep
        before = host.clock.wall() - self._age
        try:
            total = min(self._count, upkeep.count(before))
            told = host.clock.monotonic()

            def progress(done: Retired) -> None:
                nonlocal told
                if host.clock.monotonic() - told >= TELL:
                    told = host.clock.monotonic()
                    report.output(f"{done.runs:,} of {total:,} runs {self.done}\n")
                    report.update(done.to_json())

            done = upkeep.retire(
                before,
                self._count,
                self._path,
                chunk=self._chunk,
                pause=self._pause,
                progress=progress,
                stop=self._stop,
            )
            remaining = upkeep.count(before) - len(done.left)
        except ApsisError as error:
            report.error(str(error))
            return
        report.output("".join(f"{line}\n" for line in describe(done)))
        where = "" if self._path is None else f" in {self._path}"
        report.output(f"{done.runs:,} runs {self.done}{where}\n")
        meta = done.to_json()
        if done.runs + len(done.left) >= self._count and remaining > 0:
            left = f"{remaining} eligible runs remaining"
            text = f"{self.name} count {self._count} exhausted with {left}: raise count"
            report.failure(text, meta)
        else:
            if self._stop.is_set() and remaining > 0:
                report.log(f"{self.name} stopped with {remaining} eligible runs remaining")
            report.success(meta)

    def connect(self, run_id: str, run_state: Any, cfg: Mapping[str, Any], report: Reporter) -> None:
        report.log("goes on after the restart")
        self.run(run_id, cfg, report)

    def stop(self) -> None:
        self._stop.set()


class Purge(Archive):
    """Deletes runs that finished longer than `age` ago."""

    name, done = "purge", "deleted"

    @classmethod
    def check(cls, mapping: Mapping[str, Any]) -> None:
        required = ("age", "count")
        check_keys(mapping, (*required, "chunk_size", "chunk_sleep"), required)


class Vacuum:
    """Rewrites the database file without gaps, and gives the free space back."""

    @classmethod
    def check(cls, mapping: Mapping[str, Any]) -> None:
        check_keys(mapping, ())

    @classmethod
    def from_config(cls, mapping: Mapping[str, Any]) -> Vacuum:
        return cls()

    def run(self, run_id: str, cfg: Mapping[str, Any], report: Reporter) -> None:
        report.running()
        start = report.host.clock.monotonic()
        try:
            before, after = report.host.upkeep.vacuum()
        except ApsisError as error:
            report.error(str(error))
            return
        took = report.host.clock.monotonic() - start
        report.output(f"{before:,} bytes before, {after:,} bytes after\n")
        report.success({"time": round(took, 6), "bytes_before": before, "bytes_after": after})

    def connect(self, run_id: str, run_state: Any, cfg: Mapping[str, Any], report: Reporter) -> None:
        report.log("begins again after the restart")
        self.run(run_id, cfg, report)


def _path(value: Any) -> Path:
    if not isinstance(value, str) or value == "":
        raise FieldError(f"path must be a path, not {show(value)}", ["path"])
    return Path(plain(value, "path"))


def _whole(value: Any, key: str) -> int:
    text = str(value)
    if (
        isinstance(value, bool)
        or not (text.isascii() and text.isdigit() and len(text) <= 18)
        or not int(text)
    ):
        raise FieldError(f"{key} must be a whole number above 0, not {show(value)}", [key])
    return int(text)
