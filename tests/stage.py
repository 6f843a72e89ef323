"""A server in miniature that fails at a chosen place: kernel, programs, agent server and database are real.

Left out are threads, sockets and time: one loop does in a fixed order what the driver's and the agents'
threads do, bytes go from hand to hand, and the clock is moved. So the n-th commit, the n-th message to
an agent and the n-th message from one are always the same, and a failure, or the death of the server,
can be put before or after each of them. Agents and their programs live on, as those of a server that
was killed do; what they did is written down by them (`Model.starts`), as in a ledger.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from agent_model import Line, Model
from faultpoints import Fault, Killed

from agent_server import AgentServer
from apsislib import binding, jobs, wire
from apsislib.calendars import Calendars
from apsislib.clock import SimClock
from apsislib.config.keys import Config
from apsislib.jobs import Kinds
from apsislib.runs import (
    Bind,
    Connect,
    Forget,
    Job,
    Launch,
    Lookup,
    Owe,
    Report,
    Run,
    Save,
    Send,
    SetClock,
    Settle,
    Signal,
    Wake,
)
from apsislib.scheduler import Scheduler, Settings
from apsislib.sockets import Data
from apsislib.states import FINISHED, State
from apsislib.store import files
from apsislib.store.batches import write
from apsislib.store.reader import Damage, Reader
from apsislib.store.records import Chunk, Written
from programs import Table

CALLS = (Launch, Connect, Send, Signal, Wake, Forget)
START = 1_767_225_600.0  # 2026-01-01T00:00:00Z
FULL = 5.0  # seconds that a disk stays full
BACK = 1.0  # seconds after which an agent connects again


class Host:
    """The server, as programs see it (apsis.Host)."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.clock = stage.clock
        self.agents = stage.agents

    def report(self, run_id: str, report: Report) -> None:
        stage = self._stage
        stage.kernel.report(run_id, report, stage.clock.wall(), stage.clock.boot())

    def run(self, run_id: str) -> Run | None:
        return self._stage.kernel.runs.get(run_id)

    def note(self, run_id: str, text: str) -> None: ...

    def put_output(self, run_id: str, output_id: str, offset: int, data: bytes, **kind: str) -> None:
        self._stage.chunks.append(Chunk(run_id, output_id, offset, bytes(data), **kind))

    def output_length(self, run_id: str, output_id: str) -> int:
        info = self._stage.reader().output_info(run_id, output_id)
        return 0 if info is None else info.length

    def output_full(self) -> bool:
        return False

    def output_waiting(self, run_id: str) -> int:
        return 0


class Stage:
    """A server with the jobs of `files` (job ID -> mapping) and two agents, over `path`."""

    def __init__(self, path: Path, files_: Mapping[str, Any], fault: Fault | None = None) -> None:
        random.seed(1)  # which of several agents is chosen
        self.path = path
        self.fault = fault or Fault()
        self.clock = SimClock(START)
        self.models = [Model(name, self.clock) for name in ("A", "B")]
        self.kills = 0
        self._calendars = Calendars()
        self._table = Table(Config())
        kinds = Kinds(self._table.parse, self._calendars)
        self.jobs = {job_id: jobs.parse_job(mapping, job_id, kinds) for job_id, mapping in files_.items()}
        self._begin()

    # -- a life of the server ------------------------------------------------------------------------

    def _begin(self) -> None:
        self.db = files.open_database(self.path)
        self.db.execute("PRAGMA synchronous = OFF")  # the machine goes on
        self._batch = int(self.reader().meta("batch") or 0)
        self.chunks: list[Chunk] = []
        self._owing: list[Any] = []  # decided, and not on disk
        self._full_until: float | None = None
        self._acted: set[int] = set()  # ids of signals that have overtaken a full disk
        self._bound: dict[str, Any] = {}
        self._links: dict[str, Any] = {}
        reader, now = self.reader(), self.clock.wall()
        stored = reader.clock()
        start = now if stored is None else stored
        self.kernel = Scheduler(Settings(), start, reader.occurrences(start))
        if stored is None:
            self.kernel.outbox.append(SetClock(start))
        else:
            self.kernel.lost(stored, now, "the server was down")
        self._next_id = reader_number(self.db)
        self.agents = AgentServer([], self.clock)
        self._host = Host(self)
        active, owed = [self._limited(run) for run in reader.active()], reader.owed()
        self.kernel.set_jobs(self.jobs.values())
        self.kernel.restore(active, now, self.clock.boot())
        try:
            self._commit()
            for owe in owed:
                self._do(owe)
            self.agents.restored()
            self._tick()
            self.kernel.restored()
        except Killed:
            self._die()

    def close(self) -> None:
        self.db.close()

    def _die(self) -> None:
        """Nothing is left but the disk, and what was written to agents, who notice that it has ended."""
        self.kills += 1
        assert self.kills < 5
        for model in self.models:
            self._hang_up(model, killed=True)
        self.db.close()
        self.clock.advance(0.5)
        self._begin()

    def _limited(self, run: Run) -> Run:
        return run.but(limits=self._table.load(run.program or {}).limits())

    def reader(self) -> Reader:
        reader = Reader(self.db, self.clock, Damage(), 1e9)
        reader._end = float("inf")
        return reader

    # -- time ----------------------------------------------------------------------------------------

    def run_for(self, seconds: float) -> None:
        end = self.clock.boot() + seconds
        while True:
            try:
                self._settle()
            except Killed:
                self._die()
                continue
            then = min((t for t in self._nexts() if t is not None), default=end)
            if then > end:
                self.clock.advance(max(0.0, end - self.clock.boot()))
                return
            # What is due by the wall clock is so a hair later, for what rounding has eaten.
            self.clock.advance(max(1e-6, then - self.clock.boot()))

    def _nexts(self) -> Iterator[float | None]:
        wall, boot = self.kernel.next_wake()
        shift = self.clock.boot() - self.clock.wall()
        if self._full_until is None:
            yield None if wall is None else wall + shift
        yield boot
        yield self._full_until
        for model in self.models:
            yield model.next_event()
        for link in self._links.values():
            yield link._next_due()

    def _settle(self) -> None:
        """Do all that is due at this instant."""
        moved = True
        while moved:
            self._tick()
            moved = self._commit()
            for model in self.models:
                moved |= self._serve(model)

    def _tick(self) -> None:
        kernel, now = self.kernel, self.clock.boot()
        if self._full_until is not None and now >= self._full_until:
            self._full_until = None
        kernel.tick(self.clock.wall(), now, brake=self._full_until is not None)

    # -- the writer, and what follows a commit -------------------------------------------------------

    def _commit(self) -> bool:
        """Whether something was written."""
        self._owing += self.kernel.outbox
        if self._full_until is not None:
            self._overtake(self.kernel.outbox)
        self.kernel.outbox = []
        if self._full_until is not None or not (self._owing or self.chunks):
            return False
        mode = self.fault.at("commit")
        if mode == "fails":
            self._full_until = self.clock.boot() + FULL
            self._overtake(self._owing)
            return False
        if mode == "before":
            raise Killed
        entries, self._owing = self._owing, []
        chunks, self.chunks = self.chunks, []
        written = Written()
        self._batch += 1
        write(self.db, self._batch, entries, chunks, written)
        assert not written.refused, written.refused
        if mode == "after":
            raise Killed
        for effect in written.effects:
            match effect:
                case Bind():
                    self._bind(effect)
                case Lookup(key):
                    self.kernel.outcome(key, self.reader().ended(key))
                case Owe():
                    self._do(effect)
                case _ if isinstance(effect, CALLS) and id(effect) not in self._acted:
                    self._call(effect)
        saves = [e.run for e in written.effects if isinstance(e, Save)]
        self.kernel.evict([run for run in saves if run.state in FINISHED])
        return True

    def _overtake(self, effects: Iterable[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Signal):
                self._acted.add(id(effect))
                self._call(effect)

    def _call(self, effect: Any) -> None:
        run = effect.run
        program = self._bound.get(run.run_id) or self._table.load(run.program or {})
        self._bound[run.run_id] = program
        match effect:
            case Launch():
                program.launch(run, self._host)
            case Connect():
                program.connect(run, self._host)
            case Send():
                program.send(run, self._host)
            case Signal():
                program.signal(run, self._host, effect.signum, effect.stop)
            case Wake():
                program.wake(run, self._host)
            case Forget():
                del self._bound[run.run_id]
                program.forget(run.but(run_state=effect.run_state), self._host)

    def _bind(self, effect: Bind) -> None:
        now = self.clock.wall()
        runs = []
        for occurrence, args, identity in effect.occurrences:
            times = {"scheduled": now, "schedule": occurrence.time}
            if occurrence.stop is not None:
                times["stop"] = occurrence.stop
            runs.append(self._made(effect.job, args, times, expected=True, occurrence=identity))
        notes = [occurrence.note for occurrence, _, _ in effect.occurrences]
        self.kernel.expect(effect.token, runs, notes)

    def _do(self, owe: Owe) -> None:
        now = self.clock.wall()
        job = self.jobs[owe.action["job_id"]]
        run = self._made(job, {}, {"scheduled": now, "schedule": now}, cause=owe.cause)
        self.kernel.outbox.append(Settle(owe.cause))
        self.kernel.add(run, [f"scheduled by action of {owe.run.run_id}"], now, self.clock.boot())

    def _made(self, job: Job, args: Any, times: Any, **more: Any) -> Run:
        run_id = f"r{self._next_id}"
        self._next_id += 1
        bound = binding.bind(job, args, run_id, self.jobs.__getitem__, self._calendars.get)
        run = Run(
            run_id,
            job.job_id,
            args,
            State.SCHEDULED,
            self.clock.wall(),
            times,
            program=bound.program,
            conds=bound.conds,
            actions=bound.actions,
            limits=bound.limits,
            judged=bound.judged,
            meta={"job": {"labels": []}},
            **more,
        )
        return run.but(run_state=self._table.load(bound.program).prepare(run))

    # -- agents --------------------------------------------------------------------------------------

    def _serve(self, model: Model) -> bool:
        """A round of the agent's and of its link's thread. Whether anything was said."""
        if model.line is None:
            if self.clock.boot() < model.back_at:
                return False
            self._welcome(model)
        line, link = model.line, self._links.get(model.conn_id)
        assert line is not None and link is not None
        link._do_posted()
        link._poll_watchers(self.clock.monotonic())
        link._fill_socket()
        moved = bool(line.sent)
        for data in line.sent:
            model.handle(wire.decode(data))
        line.sent.clear()
        model.tell_ends()
        while line.said and not line.broken:
            moved = True
            data = line.said.pop(0)
            match self.fault.at("receive"):
                case "cut":
                    line.broken = True
                    continue
                case "before":
                    raise Killed
                case "after":
                    link._feed(Data(data))
                    raise Killed
            link._feed(Data(data))
        if line.broken:
            self._hang_up(model, killed=False)
            return True
        return moved

    def _welcome(self, model: Model) -> None:
        model.line = line = Line(model, self.clock, self.fault)
        register = wire.decode(wire.encode(model.register()))
        link, problem = self.agents._take_over(register, line)  # type: ignore[arg-type]
        assert link is not None, problem
        self._links[model.conn_id] = link
        assert line.send(wire.encode(wire.registered())) or line.broken
        link._greet()

    def _hang_up(self, model: Model, killed: bool) -> None:
        line, model.line = model.line, None
        model.back_at = self.clock.boot() + BACK
        if line is None:
            return
        for data in line.sent:  # what was written before the end is read before the end
            model.handle(wire.decode(data))
        link = self._links.pop(model.conn_id, None)
        if not killed and link is not None:
            link.leave(silently=False)
            link.agent.free.set()


def reader_number(db: sqlite3.Connection) -> int:
    """The first run number that is free, a block further on, as after a crash."""
    with closing(db.execute("SELECT coalesce(max(number), 0) FROM runs")) as rows:
        return int(rows.fetchone()[0]) + 256
