"""Log lines that nobody reads."""

from __future__ import annotations

import logging
import os
import time

from apsislib.logs import Lines


def line(text: str) -> logging.LogRecord:
    return logging.LogRecord("agent", logging.INFO, "", 0, text, None, None)


def test_a_full_pipe_costs_lines_and_no_time() -> None:
    reader, writer = os.pipe()
    lines = Lines(writer)
    for _ in range(1000):
        lines.emit(line("x" * 1000))
    os.set_blocking(reader, False)
    taken = 0
    while True:
        try:
            taken += len(os.read(reader, 1 << 20))
        except BlockingIOError:
            break
    assert 0 < taken < 1_000_000
    lines.emit(line("again"))
    assert os.read(reader, 4096) == f"({1000 - taken // 1001} lines lost)\nagain\n".encode()
    os.close(reader)
    lines.emit(line("nobody is there"))
    os.close(writer)


def test_a_long_line_is_cut() -> None:
    reader, writer = os.pipe()
    Lines(writer).emit(line("é" * 9000))
    data = os.read(reader, 10_000)
    assert len(data) == 4096 and data.endswith(b"...\n")
    os.close(reader)
    os.close(writer)


def test_a_reader_who_does_not_keep_up_is_waited_for_once() -> None:
    reader, writer = os.pipe()
    lines = Lines(writer, patience=0.2, cut=False)
    lines.emit(line("x" * 50_000))
    os.read(reader, 1 << 20)
    began = time.monotonic()
    for _ in range(100):
        lines.emit(line("x" * 50_000))
    assert 0.2 <= time.monotonic() - began < 10
    os.close(reader)
    os.close(writer)
