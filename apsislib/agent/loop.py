"""The one thread of an agent: waits for descriptors, timers and signals, and calls what is due.

Nothing is polled. A signal, and another thread that posts, write a byte into a pipe that the loop
waits for like any other descriptor.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import signal
from collections import deque
from collections.abc import Callable, Collection
from types import FrameType

from apsislib.clock import Clock

log = logging.getLogger(__name__)

READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
WRITE = select.EPOLLOUT
URGENT = select.EPOLLPRI


class Timer:
    """Something to be called once, unless cancelled."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    @property
    def cancelled(self) -> bool:
        return self._call is None

    def cancel(self) -> None:
        self._call = None

    def fire(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class Loop:
    """Calls back from run(), in the thread that called it; only post() is for other threads."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._seq = itertools.count()  # breaks ties, so that a Timer is never compared
        self._posted: deque[Callable[[], None]] = deque()  # append and popleft are atomic: no lock
        self._on_signal: dict[int, Callable[[], None]] = {}
        self._stopped = False
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.watch(self._wake_reader, READ, self._woken)

    # -- what may be waited for

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call with the events that came; again each time, until unwatch()."""
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)
        self._calls[fd] = call

    def unwatch(self, fd: int) -> None:
        """Best before the descriptor is closed, at the latest before its number is used again."""
        if self._calls.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed already: the kernel has forgotten it
                self._epoll.unregister(fd)

    def call_after(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (self.clock.monotonic() + seconds, next(self._seq), timer))
        return timer

    def soon(self, call: Callable[[], None]) -> None:
        """Call after what is being called now."""
        self._posted.append(call)

    def post(self, call: Callable[[], None]) -> None:
        """(any thread) Call from the loop, soon."""
        self._posted.append(call)
        with contextlib.suppress(BlockingIOError):  # full: it is about to wake anyway
            os.write(self._wake_writer, b"\0")

    def on_signals(self, calls: dict[signal.Signals, Callable[[], None]]) -> Collection[int]:
        """Call from the loop when a signal comes. Returns the signals, which a child must reset."""
        for signum, call in calls.items():
            self._on_signal[signum] = call
            signal.signal(signum, self._signalled)
        # The C handler writes, so that the wait ends even if the signal came just before it.
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        return tuple(self._on_signal)

    # -- the thread

    def run(self) -> None:
        """Until stop(). What fails in a callback is logged and costs only what it was about.

        An agent that ended over it would take the output of every program with it.
        """
        while not self._stopped:
            for _ in range(len(self._posted)):  # not what these post in turn: descriptors come first
                _try(self._posted.popleft())
                if self._stopped:
                    return
            self._fire_timers()
            if self._stopped:
                break
            for fd, events in self._epoll.poll(self._wait()):
                call = self._calls.get(fd)
                if call is None:  # one that came before in this batch has unwatched it
                    continue
                if not _try(call, events) and self._calls.get(fd) is call:
                    self.unwatch(fd)  # or it would fail again at once, for ever

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """Give back the signals and descriptors."""
        if self._on_signal:
            signal.set_wakeup_fd(-1)
            for signum in self._on_signal:
                signal.signal(signum, signal.SIG_DFL)
        self._epoll.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _wait(self) -> float | None:
        """Seconds until something is due; None to wait for ever."""
        if self._posted:
            return 0.0
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - self.clock.monotonic())

    def _fire_timers(self) -> None:
        now = self.clock.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _try(heapq.heappop(self._timers)[2].fire)

    def _woken(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 65536)

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        # Runs between any two instructions of the loop's thread: note it, act from the loop.
        self.post(self._on_signal[signum])


def _try(call: Callable[..., None], *args: int) -> bool:
    """Call; False if it failed."""
    try:
        call(*args)
    except Exception:
        log.error("internal error", exc_info=True)
        return False
    return True
