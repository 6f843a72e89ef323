"""Output that has arrived and is not on disk yet."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection

from apsislib.store.outputs import CHUNK
from apsislib.store.records import Chunk

OVERHEAD = 512  # bytes; what a piece costs besides its data, so that a million tiny ones count too


class Backlog:
    """Queues of pieces, one an output, served in turn so that a loud run does not hush the others.

    No thread safety of its own: the store's lock guards it.
    """

    def __init__(self) -> None:
        self._queues: OrderedDict[tuple[str, str], deque[Chunk]] = OrderedDict()
        self._runs: Counter[str] = Counter()  # pieces a run, those being written included
        self._bytes: Counter[str] = Counter()  # the same in bytes
        self.size = 0  # bytes of memory, what is being written included

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, chunk: Chunk) -> None:
        for at in range(0, len(chunk.data), CHUNK):
            whole = len(chunk.data) <= CHUNK
            piece = (
                chunk
                if whole
                else Chunk(
                    chunk.run_id,
                    chunk.output_id,
                    chunk.offset + at,
                    chunk.data[at : at + CHUNK],
                    chunk.name,
                    chunk.content_type,
                )
            )
            self._queues.setdefault(piece.key, deque()).append(piece)
            self._runs[piece.run_id] += 1
            self._bytes[piece.run_id] += len(piece.data)
            self.size += len(piece.data) + OVERHEAD

    def take(self, limit: int, whole: Collection[str]) -> list[Chunk]:
        """Pieces for one transaction, to be given back to `done`.

        All of the outputs of the runs in `whole`; then, of others, as many as make `limit` bytes.
        """
        taken: list[Chunk] = []
        for key in [key for key in self._queues if key[0] in whole] if whole else ():
            taken += self._queues.pop(key)
        room = limit - sum(len(chunk.data) for chunk in taken)
        while room > 0 and self._queues:
            key = next(iter(self._queues))
            room -= self._take(key, taken, min(room, CHUNK))
            if key in self._queues:
                self._queues.move_to_end(key)
        return taken

    def _take(self, key: tuple[str, str], taken: list[Chunk], limit: int) -> int:
        queue = self._queues[key]
        size = 0
        while queue and size < limit:
            size += len(queue[0].data)
            taken.append(queue.popleft())
        if not queue:
            del self._queues[key]
        return size

    def done(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self.size -= len(chunk.data) + OVERHEAD
            self._runs[chunk.run_id] -= 1
            self._bytes[chunk.run_id] -= len(chunk.data)
            if not self._runs[chunk.run_id]:
                del self._runs[chunk.run_id], self._bytes[chunk.run_id]

    def pending(self, run_id: str) -> bool:
        """Whether output of the run is not on disk yet."""
        return run_id in self._runs

    def waiting(self, run_id: str) -> int:
        """How many bytes of the run's output are not on disk yet."""
        return self._bytes.get(run_id, 0)
