"""The agent's loop: fair to descriptors, timers and posts, and not felled by what it calls."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from apsislib.agent.loop import READ, Loop
from apsislib.agent.procs import Proc, Procs
from apsislib.agent.spec import parse_specs
from apsislib.clock import WallClock


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(WallClock())
    yield loop
    loop.close()


def test_what_posts_itself_for_ever_leaves_room_for_descriptors_and_timers(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    seen: list[str] = []

    def again() -> None:
        loop.soon(again)

    def readable(events: int) -> None:
        os.read(reader, 1)
        seen.append("read")

    loop.watch(reader, READ, readable)
    loop.call_after(0.01, loop.stop)
    loop.soon(again)
    loop.run()
    loop.unwatch(reader)
    os.close(reader)
    os.close(writer)
    assert seen == ["read"]


def test_timers_fire_in_order_unless_cancelled(loop: Loop) -> None:
    seen: list[int] = []
    loop.call_after(0.02, lambda: seen.append(2))
    loop.call_after(0.01, lambda: seen.append(1))
    loop.call_after(0.015, lambda: seen.append(9)).cancel()
    loop.call_after(0.03, loop.stop)
    loop.run()
    assert seen == [1, 2]


def test_another_thread_and_a_signal_wake_it(loop: Loop) -> None:
    seen: list[str] = []

    def interrupt() -> None:
        seen.append("posted")
        os.kill(os.getpid(), signal.SIGUSR2)

    def interrupted() -> None:
        seen.append("signalled")
        loop.stop()

    loop.on_signals({signal.SIGUSR2: interrupted})
    thread = threading.Thread(target=loop.post, args=(interrupt,))
    thread.start()
    loop.run()
    thread.join()
    assert seen == ["posted", "signalled"]


def test_a_callback_that_fails_costs_only_itself(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    calls: list[int] = []

    def fail(events: int) -> None:
        calls.append(events)
        raise RuntimeError("a bug")

    loop.watch(reader, READ, fail)
    loop.soon(lambda: fail(0))
    loop.call_after(0.01, lambda: fail(0))
    loop.call_after(0.03, loop.stop)
    loop.run()
    os.close(reader)
    os.close(writer)
    assert len(calls) == 3 and caplog.text.count("RuntimeError: a bug") == 3


def test_the_end_of_a_program_that_fails_to_be_told_hides_no_other(loop: Loop) -> None:
    procs = Procs(loop, {})
    told: list[str] = []

    def observe(event: str, proc: Proc) -> None:
        if event == "stopped":
            told.append(proc.proc_id)
            raise MemoryError

    procs.observers.append(observe)
    procs.start(parse_specs({name: {"argv": ["/bin/true"]} for name in "abc"}), "active")
    for proc in procs.running:
        os.waitid(os.P_PID, proc.pid, os.WEXITED | os.WNOWAIT)
    procs.reap()
    assert sorted(told) == ["a", "b", "c"] and not procs.running
    for proc_id in "abc":
        procs.delete(proc_id)
