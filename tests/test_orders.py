"""Signals and words: whichever thread the kernel gives a signal to, the process obeys."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Server

from apsislib.orders import Orders

WAIT = 60.0


def signal_thread(pid: int, tid: int, number: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.tgkill(pid, tid, number) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def orders() -> Iterator[Orders]:
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR2)}
    wakeup = signal.set_wakeup_fd(-1)
    yield Orders({signal.SIGHUP: "hangup"}, ("restart", "ready"))
    signal.set_wakeup_fd(wakeup)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_server_ends_whichever_of_its_threads_is_given_the_signal(tmp_path: Path) -> None:
    server = Server(tmp_path, {"one": "program: {type: no-op}\n"})
    for last in (False, True):
        server.start()
        try:
            assert server.process is not None
            pid = server.process.pid
            others = sorted({int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - {pid})
            signal_thread(pid, others[-1 if last else 0], signal.SIGTERM)
            assert server.process.wait(WAIT) == 0
            assert server.log().rstrip().endswith("stopped")
        finally:
            if server.process is not None and server.process.poll() is None:
                server.kill()
            server.end_agent()


def test_a_signal_that_another_thread_was_given_wakes_the_one_that_waits(orders: Orders) -> None:
    ready, done = threading.Event(), threading.Event()
    tids: list[int] = []

    def other() -> None:
        tids.append(threading.get_native_id())
        ready.set()
        done.wait(WAIT)

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait(WAIT)
    giver = threading.Timer(0.05, signal_thread, (os.getpid(), tids[0], signal.SIGHUP))
    giver.start()
    try:
        assert orders.get(WAIT) == "hangup"
    finally:
        done.set()
        thread.join()
        giver.join()


def test_words_come_in_order_and_signals_of_others_are_none(orders: Orders) -> None:
    signal.signal(signal.SIGUSR2, lambda *_: None)
    orders.put("ready")
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGHUP)
    orders.put("restart")
    assert [orders.get(WAIT), orders.get(WAIT), orders.get(WAIT)] == ["ready", "hangup", "restart"]
    assert orders.get(0.0) is None
    with pytest.raises(KeyError):
        orders.put("dance")


def test_more_orders_than_anybody_reads_neither_block_nor_fail(orders: Orders) -> None:
    for _ in range(100_000):
        orders.put("ready")
    assert orders.get(0.0) == "ready"
