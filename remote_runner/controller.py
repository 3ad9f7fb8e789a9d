"""This machine's own directories and locks.

Testground starts an instance without `HOME` and `XDG_*`, so nothing here depends on them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import random
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from remote_runner.deadline import NEVER, Deadline
from remote_runner.errors import ControllerError, DeadlineError

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.06
_MOST_LINKS = 40  # as Linux


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
        cache = environ.get("REMOTE_RUNNER_CACHE_DIR") or _default_cache(environ, uid)
        return cls(own_directory(Path(runtime)), own_directory(Path(cache)))

    def lock(self, name: str, *, shared: bool = False) -> FileLock:
        """A lock called `name` (a file name), shared by all processes of this user; released when its holder dies."""
        return FileLock(self.runtime / "locks" / name, shared=shared)


class Controllers:
    """Those of many environments; the directories of each are checked once for as long as they are the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | None, ...], tuple[Controller, object]] = {}

    def of(self, environ: Mapping[str, str]) -> Controller:
        """As `Controller.from_environ`, which takes 0.3 ms."""
        key = tuple(environ.get(name) for name in ("REMOTE_RUNNER_RUNTIME_DIR", "REMOTE_RUNNER_CACHE_DIR", "HOME"))
        known = self._known.get(key)
        if known is None or known[1] != _identity(known[0]):
            controller = Controller.from_environ(environ)
            known = self._known[key] = (controller, _identity(controller))
        return known[0]


def _identity(controller: Controller) -> object:
    try:
        found = [path.lstat() for path in (controller.runtime, controller.cache)]
    except OSError:
        return object()  # none of before
    return [(one.st_dev, one.st_ino, one.st_mode, one.st_uid) for one in found]


def home_directory(environ: Mapping[str, str]) -> str | None:
    """This user's home by passwd; `HOME` for a user id that passwd does not know (a container's), else `None`."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = environ.get("HOME", "")
        return home if home.startswith("/") else None


def with_home(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program here: with the home that it keeps caches and settings in (Testground gives none)."""
    home = home_directory(environ)
    return {"PATH": os.defpath, **({} if home is None else {"HOME": home}), **environ}


def _default_cache(environ: Mapping[str, str], uid: int) -> str:
    home = home_directory(environ)
    return f"/tmp/remote-runner-cache-{uid}" if home is None else f"{home}/.cache/remote-runner"


def _default_runtime(uid: int) -> str:
    # Socket paths are short (104 bytes on macOS), so a directory below the home or TMPDIR will not do.
    run_user = Path(f"/run/user/{uid}")
    if run_user.is_dir() and run_user.stat().st_uid == uid:
        return f"{run_user}/remote-runner"
    return f"/tmp/remote-runner-{uid}"  # 0700 and ours, checked by own_directory


def own_directory(path: Path) -> Path:
    """Make a directory, 0700, or take one that is ours alone and below nothing that others may change.

    Raises `ControllerError`, before anything is made or changed where others could have a hand in it.
    """
    another = "name another with REMOTE_RUNNER_RUNTIME_DIR or REMOTE_RUNNER_CACHE_DIR"

    def refused(problem: str, next_step: str = f"remove it, or {another}") -> ControllerError:
        return ControllerError(f"{path}: {problem}", next_step=next_step)

    path = path.absolute()
    owners = _trusted_owners()
    try:
        for place, found in _way_to(path.parent):
            if found.st_uid not in owners:
                # As in sshd's safe_path: the owner of a directory or a link on the way can redirect it.
                raise refused(f"user {found.st_uid} owns {place} and could replace it")
            # In a sticky one (/tmp) nobody else can rename what is ours.
            open_to = 0 if stat.S_ISLNK(found.st_mode) or found.st_mode & stat.S_ISVTX else found.st_mode
            if open_to & stat.S_IWOTH:
                raise refused(f"any user could replace it: {place} is writable by all")
            # A group that has the number of the directory's user is that user's own.
            if open_to & stat.S_IWGRP and found.st_gid != found.st_uid:
                raise refused(f"group {found.st_gid} could replace it: it may write to {place}")
        _make(path)
        found = path.lstat()
    except OSError as error:
        raise refused(f"cannot be made: {error.strerror}", f"make room or access there, or {another}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise refused(f"is not a directory of user {os.getuid()}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # A socket or lock in it may be anybody's, so taking the permission away now would come too late.
        raise refused("other users may write to it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def _make(path: Path) -> None:
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for place in reversed(missing):  # whatever the umask says
        place.mkdir(mode=0o700, exist_ok=True)


def _way_to(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Each directory and each link that is passed on the way to `path` and is there, itself included."""
    here = Path(path.anchor)
    yield here, here.lstat()
    todo = [*reversed(path.parts[1:])]
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            here = here.parent
            continue
        try:
            found = (here / part).lstat()
        except FileNotFoundError:
            return
        yield here / part, found
        if not stat.S_ISLNK(found.st_mode):
            here = here / part
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = (here / part).readlink()
        if target.is_absolute():
            here = Path(target.anchor)
        todo += reversed(target.parts[target.is_absolute() :])


def _trusted_owners() -> set[int]:
    """Whose directories ours may lie below: root's and this user's."""
    owners = {0, os.getuid()}
    try:
        mapped = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return owners
    # In a user namespace all that is outside of it, root's too, shows as one owner: it cannot be told apart.
    return owners if mapped == ["0", "0", "4294967295"] else owners | {overflow}


class FileLock:
    """An flock(2) on a file of its own; a context manager. The kernel releases it when the process dies.

    Its directory is made where it is missing. Taking it raises `ControllerError` where the file cannot be made.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path = path
        self._how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock without waiting; returns whether it was taken."""
        try:
            return self._try()
        except OSError as error:
            next_step = "make room there, or name another directory with REMOTE_RUNNER_RUNTIME_DIR"
            raise ControllerError(f"{self.path}: cannot be locked: {error.strerror}", next_step=next_step) from error

    def _try(self) -> bool:
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # at first, and after a logout, with which /run/user/UID goes
                _make(self.path.parent)
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, self._how | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if isinstance(error, BlockingIOError):
                    return False
                raise
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

    def __exit__(self, *_: object) -> None:
        self.release()
