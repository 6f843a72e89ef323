"""The output of one process, fetched from its agent into the store, piece by piece.

While the process runs, what there is is asked for now and then; after its end, up to the length that its
result tells. Everything is for the thread of the agent's connection, save resume().
"""

from __future__ import annotations

from signal import SIGKILL
from typing import Protocol

from apsislib import wire
from apsislib.errors import Unavailable
from apsislib.wire import FdHead
from programs.base import OUTPUT, OUTPUT_NAME, OUTPUT_TYPE, Agents, Host, OutputLimit

ANSWER = 60.0  # seconds without a byte of the output that was asked for
ATTEMPTS = 3  # times that output is asked for in vain, before the verdict goes without it
SLICE = 4 * 1024 * 1024  # bytes asked for at once after the end: what may wait in memory for the disk
ROOM = 0.25  # seconds until it is looked again whether output can be stored
TOGETHER = 1024 * 1024  # bytes of output that are written with the verdict, while all else waits
STORED = 0.05  # seconds until it is looked again whether so little is left to be written


class Followed(Protocol):
    """The process whose output it is, as process.Process knows it."""

    run_id: str
    proc_id: str
    conn_id: str
    here: bool  # its agent is connected
    started: bool
    ended: bool  # its verdict is reported

    @property
    def over(self) -> bool: ...
    def conclude(self) -> None: ...
    def remark(self, text: str) -> None: ...
    def signal(self, signum: int) -> None: ...


class Fetching:
    def __init__(
        self,
        process: Followed,
        host: Host,
        agents: Agents,
        limit: OutputLimit,
        interval: float | None,
        keep: int,
    ) -> None:
        self._process = process
        self._host = host
        self._agents = agents
        self._limit = limit
        self._interval = interval  # seconds from one look at a running process to the next
        self.said = bytearray()  # the first `keep` bytes
        self._keep = keep
        self._received = 0  # bytes of output handed to the store, the marker not counted
        self._end = 0  # bytes of output in all, once it has ended
        self._mute = False  # no more output is wanted, or to be had
        self._at = 0  # offset of the next piece of an answer
        self._asked: float | None = None  # monotonic; an answer with output is outstanding since
        self._progress = 0  # _received when that was asked for
        self._fenced = False  # a result was asked for, to see whether an answer with output still comes
        self._vain = 0  # answers in a row that brought nothing of what must be there
        self._due: float | None = None  # monotonic; when to ask next
        self.missing: str | None = None  # why not all of it could be had

    # -- what the process has come to ----------------------------------------------------------------

    def resume(self) -> None:
        """Go on where the store ends, after a restart of the server."""
        try:
            stored = self._host.output_length(self._process.run_id, OUTPUT)
        except Unavailable:
            return  # from its beginning: what is stored is not stored again
        limit = self._limit.max_size
        if limit is not None and stored > limit:  # with its marker
            stored, self._mute = limit, True
        self._received = stored

    def started(self, now: float) -> None:
        self._due = None if self._interval is None else now + self._interval

    def lost(self) -> None:
        """The connection has ended."""
        self._asked, self._fenced = None, False

    def back(self, now: float) -> None:
        """Its agent is here again."""
        self._due = now
        if self._mute and self._limit.kill and self._limit.max_size is not None and not self._process.over:
            self._process.signal(SIGKILL)

    def ended(self, length: int) -> None:
        """The process has ended, with so many bytes of output."""
        self._end = length

    @property
    def whole(self) -> bool:
        """All of it that is wanted, and can be had, is here; of a process that has ended."""
        return self._mute or self._received >= self._goal

    @property
    def left(self) -> int:
        """Bytes of it that are wanted and not here; of a process that has ended."""
        return max(0, self._goal - self._received)

    @property
    def _goal(self) -> int:
        """Bytes of it that are wanted, once the process has ended."""
        limit = self._limit.max_size
        return self._end if limit is None else min(self._end, limit)

    def finish(self) -> None:
        """Nothing more is to come: the verdict may be given."""
        if not self._mute and self._end > self._received:
            self._truncate(b"")
        self._process.conclude()

    def close(self) -> None:
        """Its verdict is given now, with what there is of it."""
        if not self._mute and self._received < self._end:
            lost = f"{self._end - self._received} of its {self._end} bytes were lost with the agent"
            self.give_up(lost)

    def refused(self, err: str) -> None:
        self._asked = None
        self.give_up(f"the output can't be read: {err}")

    def give_up(self, why: str) -> None:
        if not self._mute:
            self._mute, self.missing = True, why
            self._process.remark(f"output is incomplete: {why}")

    # -- asking --------------------------------------------------------------------------------------

    def pull(self) -> None:
        """Ask for output, if it is wanted and can be stored; conclude where all of it is here."""
        process, over = self._process, self._process.over
        if process.ended or self._asked is not None or not process.here or not (process.started or over):
            return
        now = self._now()
        if over and self.whole:
            if self._host.output_waiting(process.run_id) > TOGETHER:
                self._due = now + STORED
                self._agents.poll(process.proc_id)
            else:
                self.finish()
            return
        if self._mute:
            return
        if self._host.output_full():
            self._due = now + ROOM
            self._agents.poll(process.proc_id)
            return
        # Bounds are safe only after the end, and within the length: an agent would damage the output else.
        stop = min(self._goal, self._received + SLICE) if over else None
        message = wire.proc_fd_data_request(process.proc_id, "stdout", self._received, stop)
        if self._agents.send(process.conn_id, message):
            self._asked = now
            self._at = self._received
            self._progress = self._received
            self._agents.poll(process.proc_id)

    def overdue(self, now: float) -> bool:
        """Whether a result is to be asked for, since no answer with output has come for long.

        The agent may be busy with the output of others. Its answer to this comes after what was asked before.
        """
        if self._asked is None or now < self._asked + ANSWER:
            return False
        self._asked, self._fenced = now, True
        return True

    def pull_if_due(self, now: float) -> None:
        if self._due is not None and now >= self._due:
            again = self._interval is not None and not self._process.over and not self._mute
            self._due = now + (self._interval or 0.0) if again else None
            self.pull()

    def next_due(self) -> float | None:
        """When overdue() or pull_if_due() has something to do; monotonic."""
        dues = (self._due, None if self._asked is None else self._asked + ANSWER)
        return min((due for due in dues if due is not None), default=None)

    # -- answers -------------------------------------------------------------------------------------

    def head(self, head: FdHead) -> None:
        self._at = head.start if head.fd in ("stdout", "1") else -1

    def data(self, piece: bytes) -> None:
        if self._asked is not None:
            self._asked, self._fenced = self._now(), False
        if self._process.ended or self._mute or self._at < 0:
            return
        begin, self._at = self._at, self._at + len(piece)
        if begin > self._received:
            return  # a gap: what is missing is asked for again
        piece = piece[self._received - begin :]
        if not piece:
            return
        limit = self._limit.max_size
        if limit is not None and self._received + len(piece) > limit:
            self._truncate(piece[: limit - self._received])
        else:
            self._store(piece)

    def answered(self) -> None:
        """The last piece of an answer was given to data()."""
        self._asked, self._fenced = None, False
        if self._process.ended:
            return
        if self._received > self._progress:
            self._vain = 0
        elif self._process.over and not self._mute:
            self._vain += 1
            if self._vain >= ATTEMPTS:
                self.give_up(f"the agent sends {self._received} of {self._end} bytes of output")
        if self._process.over:
            self.pull()

    def result_came(self) -> None:
        """Agents answer in order: what was asked for before this result will not come."""
        if not self._fenced:
            return
        self._asked, self._fenced = None, False
        if self._process.ended or self._mute:
            return
        self._vain += 1
        if self._vain >= ATTEMPTS:
            self.give_up("the agent does not answer")
        self.pull()

    def _store(self, data: bytes) -> None:
        run_id = self._process.run_id
        self._host.put_output(
            run_id, OUTPUT, self._received, data, name=OUTPUT_NAME, content_type=OUTPUT_TYPE
        )
        self._received += len(data)
        if len(self.said) < self._keep:
            self.said += data[: self._keep - len(self.said)]

    def _truncate(self, last: bytes) -> None:
        """Keep `last`, and say at the end of the output that there was more."""
        self._mute = True
        limit = self._limit.max_size
        # In one piece with the last bytes: so the store's length tells, after a restart, that this was done.
        self._store(last + f"\n[apsis: output truncated after {limit} bytes]\n".encode())
        self._received = limit or 0
        if self._limit.kill and not self._process.over:
            self._process.remark(f"output exceeds {limit} bytes: sending SIGKILL")
            self._process.signal(SIGKILL)
        else:
            self._process.remark(f"output truncated after {limit} bytes")

    def _now(self) -> float:
        return self._host.clock.monotonic()
