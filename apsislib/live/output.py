"""The bytes of one output, as they come."""

from __future__ import annotations

from collections.abc import Mapping

from apsislib import sockets
from apsislib.errors import NotFound
from apsislib.live.subscriber import PING, Room, Subscriber
from apsislib.runs import Drop, Output, Save
from apsislib.states import FINISHED
from apsislib.store import Grew

WINDOW = 2**20  # bytes of output of a frame
LOOK = 1.0  # seconds; what ended is looked at so often where the rest of its output can't be written


class OutputUpdates(Subscriber):
    limit = 10_000

    def __init__(self, live: Room, params: Mapping[str, str], query: str) -> None:
        super().__init__(live, params, query)
        self._type = "application/octet-stream"
        start = self._start()
        # Without a start, "from now on" is from before the handshake is answered.
        self._at = self._length() if start is None else start

    def run(self) -> None:
        assert self.run_id is not None
        run = self.live.driver.find_run(self.run_id)
        if run.run_id != self.run_id:
            raise NotFound(f"unknown run {self.run_id}")
        start = self._start()
        if run.state in FINISHED:
            self._end()
        # Also of what was printed after __init__() and before we were told of it.
        self._send_to(self._length(), even_if_empty=start is not None)
        while True:
            found = self.changes(PING)
            ended = any(isinstance(e, Save) and e.run.state in FINISHED for e in found)
            if ended:
                self._end()
            if any(isinstance(e, Grew | Output) and e.output_id == self.params["output_id"] for e in found):
                self._send_to(self._length())
            if any(isinstance(e, Drop) for e in found):
                self.close(sockets.NORMAL)

    def _end(self) -> None:
        """Send the rest and close, also of what came after the verdict and is not on disk yet."""
        while self.live.store.has_pending(self.params["run_id"]):
            self._send_to(self._length())
            self.changes(LOOK)
        self._send_to(self._length())
        self.close(sockets.NORMAL)

    def _start(self) -> int | None:
        for item in self.query:
            name, _, value = item.partition("=")
            if name == "start" and value.isascii() and value.isdigit() and len(value) < 18:
                return int(value)
        return None

    def _length(self) -> int:
        with self.live.store.read() as reader:
            for output in reader.outputs(self.params["run_id"]):
                if output.output_id == self.params["output_id"]:
                    self._type = output.content_type
                    return output.length
        return 0

    def _send_to(self, length: int, even_if_empty: bool = False) -> None:
        """Send what there is beyond what was sent, a window a frame."""
        if even_if_empty and 0 < self._at == length:
            self._part(b"", length)
        while self._at < length:
            stop = min(self._at + WINDOW, length)
            with self.live.store.read() as reader:
                pieces = reader.output(self.params["run_id"], self.params["output_id"], self._at, stop)
                data = b"".join(pieces)
            if len(data) != stop - self._at:
                raise NotFound("the output is no more")
            self._part(data, length)

    def _part(self, data: bytes, length: int) -> None:
        last = self._at + len(data) - 1
        head = (
            f"Content-Type: {self._type}\r\n"
            f"Content-Range: bytes={self._at}-{last}/{length}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        self._at += len(data)
        self.send(head.encode("latin-1", "replace") + data)
