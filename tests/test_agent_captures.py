"""Captured output: stores that reading cannot disturb."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apsislib.agent.captures import Capture
from apsislib.agent.spec import Captured


@pytest.fixture(params=["tempfile", "memory"])
def capture(request: pytest.FixtureRequest, tmp_path: Path) -> Capture:
    return Capture(Captured(request.param, None, False), tmp_path)


def write(capture: Capture, data: bytes) -> None:
    os.write(capture.child_fd, data)
    capture.drain()


def test_what_is_written_is_read_in_ranges(capture: Capture) -> None:
    write(capture, b"0123456789")
    assert capture.length() == 10
    assert capture.read(2, 5) == b"234"
    write(capture, b"abc")
    assert capture.read(0, capture.clamp(0, None)) == b"0123456789abc"
    assert capture.clamp(20, None) == 20 and capture.clamp(3, 99) == 13 and capture.clamp(5, 2) == 5
    capture.close()


def test_the_file_has_no_name_anywhere(capture: Capture, tmp_path: Path) -> None:
    write(capture, b"x")
    assert list(tmp_path.iterdir()) == []
    capture.close()


def test_pieces_outlive_the_record(capture: Capture) -> None:
    write(capture, b"0123456789")
    pieces, unused = capture.pieces(1, 9, 3), capture.pieces(0, 5, 5)
    assert next(pieces) == b"123"
    before = len(os.listdir("/proc/self/fd"))
    capture.close()
    assert list(pieces) == [b"456", b"78"]
    assert len(os.listdir("/proc/self/fd")) == before - (capture.spec.mode == "memory")  # the end of its pipe
    del unused
    assert len(os.listdir("/proc/self/fd")) == before - 1 - (capture.spec.mode == "memory")


def test_output_that_its_program_truncated_keeps_its_announced_length(tmp_path: Path) -> None:
    capture = Capture(Captured(), tmp_path)
    write(capture, b"0123456789")
    pieces = capture.pieces(0, 10, 4)
    assert next(pieces) == b"0123"
    os.ftruncate(capture.child_fd, 0)
    assert list(pieces) == [bytes(4), bytes(2)]
    capture.close()


def test_a_pipe_tells_empty_from_ended(tmp_path: Path) -> None:
    capture = Capture(Captured("memory"), tmp_path)
    assert capture.drain() == 0
    os.write(capture.child_fd, b"abc")
    assert capture.drain() == 3
    capture.started()
    assert capture.drain() is None
    capture.close()


def test_a_pipe_is_drained_into_nothing_once_its_record_is_gone(tmp_path: Path) -> None:
    capture = Capture(Captured("memory"), tmp_path)
    descendant = os.dup(capture.child_fd)
    capture.started()
    capture.close()
    os.write(descendant, b"still here")
    assert capture.drain() == 10
    os.close(descendant)
    assert capture.drain() is None


def test_a_directory_that_is_not_there_is_an_error_of_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Capture(Captured(), tmp_path / "missing")
