"""This machine's own directories and locks.

Testground starts an instance without `HOME` and `XDG_*`, so nothing here depends on them.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import random
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from remote_runner.deadline import NEVER, Deadline
from remote_runner.errors import ControllerError, DeadlineError

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.06


@dataclass(frozen=True)
class Controller:
    """Where this machine keeps its sockets and locks (`runtime`) and what may be built again (`cache`)."""

    runtime: Path
    cache: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Controller:
        """The directories that `REMOTE_RUNNER_RUNTIME_DIR` and `REMOTE_RUNNER_CACHE_DIR` name, else this user's own.

        Both are made, 0700. Raises `ControllerError` where one cannot be made, is a link, belongs to somebody else, or
        where others could have put something in its place or into it.
        """
        uid = os.getuid()
        runtime = environ.get("REMOTE_RUNNER_RUNTIME_DIR") or _default_runtime(uid)
        cache = environ.get("REMOTE_RUNNER_CACHE_DIR") or f"{pwd.getpwuid(uid).pw_dir}/.cache/remote-runner"
        return cls(_own_directory(Path(runtime)), _own_directory(Path(cache)))

    def lock(self, name: str, *, shared: bool = False) -> FileLock:
        """A lock called `name` (a file name), shared by all processes of this user; released when its holder dies."""
        directory = self.runtime / "locks"
        directory.mkdir(mode=0o700, exist_ok=True)
        return FileLock(directory / name, shared=shared)


def _default_runtime(uid: int) -> str:
    # Socket paths are short (104 bytes on macOS), so a directory below the home or TMPDIR will not do.
    run_user = Path(f"/run/user/{uid}")
    if run_user.is_dir() and run_user.stat().st_uid == uid:
        return f"{run_user}/remote-runner"
    return f"/tmp/remote-runner-{uid}"  # 0700 and ours, checked by _own_directory


def _own_directory(path: Path) -> Path:
    next_step = "remove it, or name another with REMOTE_RUNNER_RUNTIME_DIR or REMOTE_RUNNER_CACHE_DIR"

    def refused(place: Path, problem: str) -> ControllerError:
        return ControllerError(f"{place}: {problem}", next_step=next_step)

    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        parents = [(parent, parent.stat().st_mode) for parent in path.parent.resolve().joinpath(path.name).parents]
    except OSError as error:
        raise refused(path, f"cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise refused(path, f"is not a directory of user {os.getuid()}")
    for parent, mode in parents:
        # In a sticky one (/tmp) nobody else can rename what is ours.
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise refused(path, f"any user may put another in its place, for {parent} is writable by all")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # A socket or lock in it may be anybody's, so taking the permission away now would come too late.
        raise refused(path, "other users may write to it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path


class FileLock:
    """An flock(2) on a file of its own; a context manager. The kernel releases it when the process dies."""

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path = path
        self._how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if nobody is in the way; says whether it was taken."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, self._how | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            if self._is_still(fd):
                self._fd = fd
                return True
            os.close(fd)  # `fab clean` removed the file between the two calls

    def _is_still(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.path.stat())
        except FileNotFoundError:
            return False

    def acquire(self, deadline: Deadline = NEVER) -> FileLock:
        """Wait for the lock; raises `DeadlineError` when the time is over."""
        self.acquire_unless(lambda: False, deadline)
        return self

    def acquire_unless(self, is_settled: Callable[[], bool], deadline: Deadline = NEVER) -> bool:
        """Wait for the lock, or until nothing is left to be done under it; says whether it was taken.

        Raises `DeadlineError` when the time is over.
        """
        pause_s = _FIRST_PAUSE_S
        while not self.try_acquire():
            if is_settled():
                return False
            if deadline.expired:
                raise DeadlineError(f"waiting for the lock {self.path}", deadline.budget_s)
            # flock(2) has no timeout. Jitter keeps a hundred waiters from asking in step; to ask takes 0.1 ms of CPU.
            time.sleep(min(deadline.remaining_s, random.uniform(0.5, 1.0) * pause_s))
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.2)
        return True

    def release(self) -> None:
        """Let go; harmless when not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        return self.acquire() if self._fd is None else self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
