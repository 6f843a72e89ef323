"""The summary: everything, for a page that shows everything."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from apsislib.clock import Deadline
from apsislib.jobs import JobSet
from apsislib.live.subscriber import PING, Subscriber
from apsislib.runs import Drop, Expect, Run, Save, late_verdict
from apsislib.shapes import encode, job_object, run_summary

FRAME = 4096  # messages of a summary's frame
NEWEST = 20_000  # runs that a summary begins with, besides all that are unfinished
PAGE = 1000  # runs read from the database in one go


class Summaries:
    """Run summaries as JSON, kept for a while: a hundred open tabs are told the same."""

    SIZE = 4096

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, str], bytes] = {}  # single operations on it are atomic; no lock

    def __call__(self, run: Run) -> bytes:
        key = run.run_id, run.rev, run.state.value
        found = self._known.get(key)
        if found is None:
            found = encode(run_summary(run))
            if len(self._known) >= self.SIZE:
                self._known.clear()
            self._known[key] = found
        return found


class Summary(Subscriber):
    limit = 100_000

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._jobs = self.live.driver.jobs

    def run(self) -> None:
        if "init" in self.query:
            self._send_all(self._initial())
        while True:
            found = self.changes(PING)
            if found:
                self._gather(found)
                self._send_all(self._messages(found))

    def _gather(self, found: list[Any]) -> None:
        """What else happens within a moment goes into the same frame."""
        deadline = Deadline(self.live.batch, self.connection.clock)
        while left := deadline.left():
            self.poll(left)
            found += self.events.get(0)

    def _messages(self, events: Iterable[Any]) -> Iterator[bytes]:
        jobs = self.live.driver.jobs
        if jobs is not self._jobs:
            yield from self._job_changes(self._jobs, jobs)
            self._jobs = jobs
        for event in events:
            match event:
                case Save(run=run, transition=True) | Expect(run=run):
                    yield b'{"type":"run_transition","run_summary":%b}' % self.live.summaries(run)
                case Save(run=run) if late_verdict(run.meta):
                    yield b'{"type":"run_transition","run_summary":%b}' % self.live.summaries(run)
                case Drop(run_id):
                    yield encode({"type": "run_delete", "run_id": run_id})
                case {"type": _}:  # of the agent server
                    yield encode(event)

    @staticmethod
    def _job_changes(old: JobSet, new: JobSet) -> Iterator[bytes]:
        for job_id in old.jobs:
            if job_id not in new.jobs:
                yield encode({"type": "job_delete", "job_id": job_id})
        for job_id, job in new.jobs.items():
            before = old.jobs.get(job_id)
            if before is None or before is not job and before.json != job.json:
                kind = "job_add" if before is None else "job"
                yield encode({"type": kind, "job": job_object(job, new.get)})

    def _initial(self) -> Iterator[bytes]:
        for job in self._jobs.jobs.values():
            yield b'{"type":"job","job":%b}' % encode(job_object(job, self._jobs.get))
        if self.live.connections is not None:
            for connection in self.live.connections().values():
                yield encode({"type": "agent_conn", "conn": connection})
        sent: set[str] = set()
        for run in self._initial_runs():
            if run.run_id not in sent:
                sent.add(run.run_id)
                yield b'{"type":"run_summary","run_summary":%b}' % self.live.summaries(run)

    def _initial_runs(self) -> Iterator[Run]:
        yield from self.live.driver.expected()
        with self.live.store.read() as reader:
            unfinished = reader.active()
        yield from unfinished
        lookback = self.live.lookback
        since = None if lookback is None else self.live.clock.wall() - lookback
        before: int | None = None
        left = NEWEST
        while left > 0:
            # A transaction a page: none lasts as long as the sending.
            with self.live.store.read() as reader:
                page, before = reader.newest(since, before, min(PAGE, left))
            yield from page
            if before is None:
                return
            left -= len(page)

    def _send_all(self, messages: Iterable[bytes]) -> None:
        for batch in _batched(messages, FRAME):
            self.send((b"[" + b",".join(batch) + b"]").decode("ascii"))


def _batched(items: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
