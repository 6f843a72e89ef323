"""What is told about a program: the `res` map, whose keys, order and units the protocol fixes."""

from __future__ import annotations

import os
import resource
import signal
from datetime import UTC, datetime
from typing import Any

from apsislib.clock import Clock

PAGE = resource.getpagesize()
TICKS = os.sysconf("SC_CLK_TCK")  # a second

_RT_FIRST, _RT_LAST = int(signal.SIGRTMIN), int(signal.SIGRTMAX)


def format_time(t: float) -> str:
    """An instant as RFC 3339 with microseconds, which is what a float can hold."""
    return datetime.fromtimestamp(t, UTC).isoformat(timespec="microseconds")


def signal_name(signum: int) -> str:
    """SIGTERM for 15; real-time signals by their distance from the first."""
    if _RT_FIRST < signum < _RT_LAST:
        return f"SIGRTMIN+{signum - _RT_FIRST}"
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"SIG{signum}"


def status_map(status: int) -> dict[str, Any]:
    """A raw wait status, taken apart."""
    exited = os.WIFEXITED(status)
    signum = None if exited else os.WTERMSIG(status)
    return {
        "status": status,
        "exit_code": os.WEXITSTATUS(status) if exited else None,
        "signum": signum,
        "signal": None if signum is None else signal_name(signum),
        "core_dump": os.WCOREDUMP(status),
    }


def rusage_map(usage: resource.struct_rusage) -> dict[str, Any]:
    """What wait4 says of a program and the children that it awaited; seconds and bytes."""
    return {
        "utime": usage.ru_utime,
        "stime": usage.ru_stime,
        "maxrss": usage.ru_maxrss * 1024,  # the kernel counts KiB
        "minflt": usage.ru_minflt,
        "majflt": usage.ru_majflt,
        "nswap": usage.ru_nswap,
        "inblock": usage.ru_inblock,
        "oublock": usage.ru_oublock,
        "nvcsw": usage.ru_nvcsw,
        "nivcsw": usage.ru_nivcsw,
    }


def times_map(clock: Clock, start: float, stop: float | None, elapsed: float) -> dict[str, Any]:
    """Wall-clock instants of start, now and stop, and how long the program has run in seconds."""
    return {
        "start": format_time(start),
        "now": format_time(clock.wall()),
        "stop": None if stop is None else format_time(stop),
        "elapsed": elapsed,
    }


def proc_statm(pid: int) -> dict[str, int] | None:
    """/proc/PID/statm in bytes; None where there is none."""
    raw = _read(f"/proc/{pid}/statm")
    fields = [int(field) * PAGE for field in raw.split()]
    if len(fields) < 6:
        return None
    return dict(zip(("size", "resident", "shared", "text", "data"), (*fields[:4], fields[5]), strict=True))


def proc_stat(pid: int, clock: Clock) -> dict[str, Any] | None:
    """/proc/PID/stat in seconds, bytes and names; None where there is none."""
    raw = _read(f"/proc/{pid}/stat")
    # The name stands in parentheses and may hold any byte, parentheses and spaces too.
    head, _, tail = raw.rpartition(b")")
    if not tail:
        return None
    f = tail.split()
    state, n = (
        f[0].decode(),
        [0, 0, 0, *(int(field) for field in f[1:])],
    )  # n[k] is field k of proc(5), less one
    if len(n) < 44:
        return None
    booted = clock.wall() - clock.boot()
    return {
        "pid": pid,
        "comm": head.partition(b"(")[2].decode("utf-8", "replace"),
        "state": state,
        "ppid": n[3],
        "pgrp": n[4],
        "session": n[5],
        "tty_nr": [n[6] >> 8 & 0xFF, n[6] >> 12 & 0xFFF00 | n[6] & 0xFF],
        "tpgid": None if n[7] == -1 else n[7],
        "flags": n[8],
        "minflt": n[9],
        "cminflt": n[10],
        "majflt": n[11],
        "cmajflt": n[12],
        "utime": n[13] / TICKS,
        "stime": n[14] / TICKS,
        "cutime": n[15] / TICKS,
        "cstime": n[16] / TICKS,
        "priority": n[17],
        "nice": n[18],
        "num_threads": n[19],
        "starttime": format_time(booted + n[21] / TICKS),
        "vsize": n[22],
        "rss": n[23] * PAGE,
        "rsslim": n[24],
        "signal": _signal_set(n[30]),
        "blocked": _signal_set(n[31]),
        "sigignore": _signal_set(n[32]),
        "sigcatch": _signal_set(n[33]),
        "wchan": n[34],
        "exit_signal": signal_name(n[37]) if n[37] > 0 else None,
        "processor": n[38],
        "rt_priority": n[39],
        "policy": n[40],
        "delayacct_blkio_ticks": n[41] / TICKS,
        "guest_time": n[42] / TICKS,
        "cguest_time": n[43],  # the one that agents leave in ticks
        "exit_code": n[51] if len(n) > 51 else 0,
    }


def _signal_set(bits: int) -> list[str]:
    return [signal_name(bit + 1) for bit in range(64) if bits >> bit & 1]


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:  # ESRCH: it went while we looked
        return b""
    finally:
        os.close(fd)
