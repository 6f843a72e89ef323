"""Noticing that files have changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from apsislib import watch
from apsislib.watch import Watcher


class Changes:
    """Counts what a watcher tells of."""

    def __init__(self, root: Path) -> None:
        self.told = threading.Semaphore(0)
        self.watcher = Watcher(root, ".yaml", self.tell, 0.05)

    def tell(self) -> None:
        self.told.release()

    def one(self) -> bool:
        return self.told.acquire(timeout=30)

    def none(self) -> bool:
        return not self.told.acquire(timeout=0.3)


@pytest.fixture(params=["told", "looking"])
def changes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Changes]:
    monkeypatch.setattr(watch, "QUIET", 0.05)
    if request.param == "looking":
        monkeypatch.setattr(watch._Notifier, "make", classmethod(lambda cls: None))
    root = tmp_path / "jobs"
    (root / "a").mkdir(parents=True)
    (root / "a" / "one.yaml").write_text("1")
    changes = Changes(root)
    changes.watcher.start()
    yield changes
    assert changes.watcher.stop(10) == []


def test_changes_of_files_are_told_of(changes: Changes, tmp_path: Path) -> None:
    root = tmp_path / "jobs"
    (root / "a" / "one.yaml").write_text("12")
    assert changes.one()
    (root / "two.yaml").write_text("2")
    assert changes.one()
    (root / "two.yaml").unlink()
    assert changes.one()
    (root / "a" / "one.yaml").rename(root / "three.yaml")
    assert changes.one()


def test_files_in_new_directories_are_told_of(changes: Changes, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "b" / "c").mkdir(parents=True)
    (tmp_path / "jobs" / "b" / "c" / "one.yaml").write_text("1")
    assert changes.one()
    (tmp_path / "jobs" / "b" / "c" / "one.yaml").write_text("12")
    assert changes.one()


def test_a_directory_that_is_put_in_the_place_of_another_is_told_of(changes: Changes, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "one.yaml").write_text("1")
    (tmp_path / "jobs").rename(tmp_path / "old")
    new.rename(tmp_path / "jobs")
    assert changes.one()
    changes.none()  # it may have been looked at between the two steps
    (tmp_path / "jobs" / "one.yaml").write_text("12")
    assert changes.one()


def test_what_is_no_job_file_is_not_told_of(changes: Changes, tmp_path: Path) -> None:
    (tmp_path / "apsis.db").write_text("beside it")
    (tmp_path / "jobs" / "one.txt").write_text("1")
    (tmp_path / "jobs" / ".one.yaml").write_text("1")
    (tmp_path / "jobs" / ".git").mkdir()
    (tmp_path / "jobs" / ".git" / "one.yaml").write_text("1")
    assert changes.none()


def test_what_changed_before_the_start_is_told_of(tmp_path: Path) -> None:
    changes = Changes(tmp_path)
    (tmp_path / "one.yaml").write_text("1")
    changes.watcher.start()
    assert changes.one()
    assert changes.watcher.stop(10) == []


def test_a_change_that_can_not_be_taken_up_does_not_end_the_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUIET", 0.05)
    changes = Changes(tmp_path)

    def fail() -> None:
        changes.told.release()
        raise RuntimeError("out of luck")

    changes.watcher._changed = fail
    changes.watcher.start()
    for text in ("1", "12"):
        (tmp_path / "one.yaml").write_text(text)
        assert changes.one()
    assert changes.watcher.stop(10) == []
    assert "out of luck" in caplog.text
