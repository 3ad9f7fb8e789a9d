"""A lock whose file is removed, as `fab clean` does with free ones, still has one holder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_runner.controller import FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError


def test_who_opened_the_removed_file_takes_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    opened = os.open
    removals = iter((True,))

    def open_and_lose(name: Path, flags: int, mode: int) -> int:
        fd = opened(name, flags, mode)
        if next(removals, False):
            path.unlink()  # between open and flock
        return fd

    monkeypatch.setattr(os, "open", open_and_lose)
    first = FileLock(path)
    assert first.try_acquire()
    assert not FileLock(path).try_acquire(), "both would hold it"
    first.release()
    assert FileLock(path).try_acquire()


def test_who_waits_goes_on_when_the_work_is_done_though_the_lock_is_held(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock") as held:
        answers = iter((False, False, True))
        other = FileLock(held.path)
        assert not other.acquire_unless(lambda: next(answers))
        assert list(answers) == []
        with pytest.raises(DeadlineError):
            other.acquire_unless(lambda: False, Deadline.after(0.05))
    assert other.acquire_unless(lambda: pytest.fail("the lock is free"))
