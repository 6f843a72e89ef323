"""When calls to AWS are made: never faster than AWS allows, and again after a while where that may help.

One thread, `apsis-ecs`, gives each call to a hand once its time has come, and never waits for AWS itself.
So a hundred calls that wait for their turn, or for their next attempt, keep no hand.
"""

from __future__ import annotations

import heapq
import logging
import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apsislib.clock import Clock
from programs.ecs.aws import AwsError

log = logging.getLogger(__name__)

RATE = 10.0  # calls a second; AWS lets through 20 and more of those that we make
BURST = 10.0  # calls that may be made at once after a quiet time
HANDS = 5  # calls at the same time: of eight hands, some stay free for users' classes
FIRST = 1.0  # seconds before the second attempt, at most; doubles
PAUSE = 0.5  # seconds without any call, after AWS has said that they are too many
LONGEST = 30.0  # seconds between attempts, at most
ATTEMPTS = 12  # of a call that says nothing else: some four minutes


@dataclass(eq=False, slots=True)
class Call:
    """`do` is called by a hand, then `done` with its answer, or `failed` with an AwsError.

    `wanted` is asked before each attempt; a call that nobody wants any more is dropped. `retrying` is
    told of each failure that is to be tried again. `launch`: it comes after those that are none.
    """

    name: str
    do: Callable[[], Any]
    done: Callable[[Any], None]
    failed: Callable[[AwsError], None]
    wanted: Callable[[], bool] = lambda: True
    retrying: Callable[[AwsError, int], None] = lambda error, attempt: None
    attempts: float = ATTEMPTS
    launch: bool = False
    tried: int = 0


_Entry = tuple[float, int, Call]


class Calls:
    def __init__(self, clock: Clock, spawn: Callable[[Callable[[], None]], None], tick: Callable[[], float]):
        """`tick` is called by the thread now and then; it answers after how many seconds to be called."""
        self._clock = clock
        self._spawn = spawn
        self._tick = tick
        self._lock = threading.Lock()  # protects what follows
        self._changed = threading.Condition(self._lock)
        # Heaps, by when a call may be made: those that look and stop, and those that launch, which come
        # second. A hundred launches would else hold up for ten seconds the stop of what costs money.
        self._waiting: tuple[list[_Entry], list[_Entry]] = ([], [])
        self._seq = 0
        self._busy = 0  # hands that are at it
        self._tokens, self._filled = BURST, 0.0  # calls that may be made at `_filled`, an instant
        self._paused = 0.0  # until then, no calls: AWS has complained
        self._stale = True  # something has changed since the thread last looked
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="apsis-ecs")

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None) -> list[str]:
        """Make no more calls. Answers the thread's name if it does not end in time."""
        with self._lock:
            self._stopping = True
            self._change_locked()
        if self._thread.ident is None:
            return []
        self._thread.join(timeout)
        return [self._thread.name] if self._thread.is_alive() else []

    def put(self, call: Call, delay: float = 0.0) -> None:
        with self._lock:
            self._put_locked(call, delay)

    def _put_locked(self, call: Call, delay: float) -> None:
        self._seq += 1
        heapq.heappush(self._waiting[call.launch], (self._clock.monotonic() + delay, self._seq, call))
        self._change_locked()

    def _change_locked(self) -> None:
        self._stale = True
        self._changed.notify()

    def wake(self) -> None:
        """Have `tick` called soon."""
        with self._lock:
            self._change_locked()

    def _run(self) -> None:
        """(apsis-ecs) Ends when stop() was called."""
        while True:
            with self._lock:
                self._stale = False
            calls: list[Call] = []
            try:
                calls, nap = self._take(self._tick())
                for call in calls:
                    self._spawn(lambda call=call: self._attempt(call))  # type: ignore[misc]
            except Exception:
                log.error("ECS tasks could not be looked after:\n%s", traceback.format_exc())
                nap = FIRST
            with self._lock:
                if self._stopping:
                    return
                if not calls and not self._stale:
                    self._changed.wait(nap)

    def _take(self, nap: float) -> tuple[list[Call], float]:
        """The calls to be made now; if there are none, the seconds until there may be, at most `nap`."""
        taken: list[Call] = []
        with self._lock:
            now = self._clock.monotonic()
            self._tokens = min(BURST, self._tokens + (now - self._filled) * RATE)
            self._filled = now
            while any(self._waiting) and not self._stopping and self._busy < HANDS:
                wait = max(min(heap[0][0] for heap in self._waiting if heap), self._paused) - now
                wait = max(wait, (1 - self._tokens) / RATE)
                if wait > 0:
                    nap = min(nap, wait)
                    break
                self._tokens -= 1
                self._busy += 1
                ready = next(heap for heap in self._waiting if heap and heap[0][0] <= now)
                taken.append(heapq.heappop(ready)[2])
        return taken, nap

    def _attempt(self, call: Call) -> None:
        """(a hand)"""
        try:
            if not call.wanted():
                return
            call.tried += 1
            try:
                answer = call.do()
            except AwsError as error:
                self._after(call, error)
            else:
                call.done(answer)
        except Exception:
            log.error("%s failed:\n%s", call.name, traceback.format_exc())
            call.failed(AwsError(call.name, "internal error, see the server's log"))
        finally:
            with self._lock:
                self._busy -= 1
                self._change_locked()

    def _after(self, call: Call, error: AwsError) -> None:
        if not error.later or call.tried >= min(call.attempts, error.attempts):
            call.failed(error)
            return
        # Full jitter: calls that were refused together are not to come back together.
        most = min(LONGEST, FIRST * 2 ** (call.tried - 1))
        delay = PAUSE + random.uniform(most / 4, most)
        log.info("%s; attempt %d, the next in %.1f s", error, call.tried, delay)
        call.retrying(error, call.tried)
        with self._lock:
            if "hrottl" in error.code or "LimitExceeded" in error.code:
                self._paused = self._clock.monotonic() + PAUSE
                self._tokens = -PAUSE * RATE  # none has gathered when the pause is over
            self._put_locked(call, delay)
