"""What is told of a program: statuses, signal names, /proc."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from apsislib.agent.results import format_time, proc_stat, proc_statm, signal_name, status_map
from apsislib.clock import WallClock

PROC_STAT_KEYS = [
    "pid", "comm", "state", "ppid", "pgrp", "session", "tty_nr", "tpgid", "flags", "minflt", "cminflt",
    "majflt", "cmajflt", "utime", "stime", "cutime", "cstime", "priority", "nice", "num_threads", "starttime",
    "vsize", "rss", "rsslim", "signal", "blocked", "sigignore", "sigcatch", "wchan", "exit_signal",
    "processor", "rt_priority", "policy", "delayacct_blkio_ticks", "guest_time", "cguest_time", "exit_code",
]  # fmt: skip


def test_a_wait_status_is_either_an_exit_code_or_a_signal() -> None:
    assert list(status_map(768).values()) == [768, 3, None, None, False]
    assert list(status_map(15).values()) == [15, None, 15, "SIGTERM", False]
    assert list(status_map(11 | 0x80).values()) == [139, None, 11, "SIGSEGV", True]


@pytest.mark.parametrize("signum", range(1, 65))
def test_every_signal_has_a_name(signum: int) -> None:
    assert signal_name(signum).startswith("SIG")
    assert signal_name(16) == "SIGSTKFLT" and signal_name(signal.SIGRTMIN + 1) == "SIGRTMIN+1"


def test_times_are_rfc_3339_with_microseconds() -> None:
    assert format_time(1_772_600_767.123456) == "2026-03-04T05:06:07.123456+00:00"
    assert format_time(0.0) == "1970-01-01T00:00:00.000000+00:00"


def test_this_very_process_is_described_as_the_kernel_does() -> None:
    stat = proc_stat(os.getpid(), WallClock())
    assert stat is not None and list(stat) == PROC_STAT_KEYS
    assert (stat["pid"], stat["ppid"], stat["session"]) == (os.getpid(), os.getppid(), os.getsid(0))
    assert stat["comm"] == Path("/proc/self/comm").read_text().rstrip("\n")
    assert "SIGPIPE" in stat["sigignore"] and "SIGINT" in stat["sigcatch"]
    assert stat["exit_signal"] == "SIGCHLD" and stat["rss"] % 4096 == 0 and stat["rss"] > 1_000_000
    statm = proc_statm(os.getpid())
    assert statm is not None and list(statm) == ["size", "resident", "shared", "text", "data"]
    assert statm["resident"] == pytest.approx(stat["rss"], rel=0.2)


def test_a_process_that_is_gone_has_no_description() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert proc_stat(pid, WallClock()) is None and proc_statm(pid) is None
