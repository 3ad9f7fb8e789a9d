"""Starting ssh as a master: the one process here that is meant to outlive us.

Not through the door to local programs (`process.py`): that one waits for programs and ends them with us.
"""

from __future__ import annotations

import math
import os
import select
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from remote_runner.deadline import Deadline
from remote_runner.errors import LocalProgramError

_EXIT_S = 2.0
_LOOK_S = 0.1
MOST_LOG_BYTES = 4 << 20  # a server may send banners for as long as it likes, and ssh writes them all down


def find_ssh(environ: Mapping[str, str]) -> str:
    """ssh's path by that environment's PATH. Raises `LocalProgramError`."""
    for directory in environ["PATH"].split(os.pathsep):
        path = Path(directory) / "ssh"
        if os.access(path, os.X_OK) and path.is_file():
            return str(path)
    raise LocalProgramError(["ssh"], f"not found on PATH ({environ['PATH']})", next_step="install OpenSSH's client")


class Starting:
    """The master that a host object is just starting, so that another thread can end it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._socket_path = Path()
        self._is_abandoned = False

    def abandon(self) -> None:
        """End the one that is being started; from now on each ends as it begins."""
        with self._lock:
            self._is_abandoned = True
            self._end()

    def begin(self, pid: int, socket_path: Path) -> None:
        """It was started, and will listen there."""
        with self._lock:
            self._pid, self._socket_path = pid, socket_path
            if self._is_abandoned:
                self._end()

    def end(self) -> None:
        """It is ready, or about to be waited for."""
        with self._lock:
            self._pid = None

    def _end(self) -> None:
        # One that listens is ready, and others may use it already.
        if self._pid is not None and not self._socket_path.exists():
            with suppress(ProcessLookupError, PermissionError):  # it ended by itself
                os.killpg(self._pid, signal.SIGTERM)


def run_until_ready(
    argv: Sequence[str],
    environ: Mapping[str, str],
    log: Path,
    socket_path: Path,
    deadline: Deadline,
    starting: Starting | None = None,
) -> int | None:
    """Start the master in a session of its own and return its exit status once it is in the background (0) or failed.

    stderr, its own and its proxies', is appended to the log: a file, so that nobody who stays holds a pipe of ours.
    `None` when the deadline came first, or the log was longer than `MOST_LOG_BYTES` (it is ended then).
    """
    ready, stdout = os.pipe()
    with open(os.devnull, "r+b") as null, log.open("ab") as errors:  # noqa: PTH123 (a device, for its descriptor)
        actions = [
            (os.POSIX_SPAWN_DUP2, null.fileno(), 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
        ]
        try:
            pid = os.posix_spawn(
                argv[0], list(argv), environ, file_actions=actions, setsid=True, setsigdef=[signal.SIGPIPE]
            )
        except OSError as error:
            os.close(ready)
            raise LocalProgramError(argv, f"cannot be started: {error.strerror}") from error
        finally:
            os.close(stdout)
    # ssh gives up its stdout when it has logged in and its socket listens, and when it ends: both are an end of
    # file here, so nothing is polled.
    starting = starting or Starting()
    starting.begin(pid, socket_path)
    try:
        poller = select.poll()
        poller.register(ready, select.POLLIN)
        while not (said := poller.poll(math.ceil(min(_LOOK_S, deadline.remaining_s) * 1000))):
            if deadline.expired or log.stat().st_size > MOST_LOG_BYTES:
                break
    finally:
        starting.end()  # from here on its number may be given back
        os.close(ready)
    if not said:
        _end(pid)
        return None
    status = _wait(pid, _EXIT_S)
    if status is None:
        # It stays in the foreground when another master took the socket first: that one serves us.
        _end(pid)
        return 0 if socket_path.exists() else None
    return status


def run_at_terminal(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Start the master in this process's terminal, where it may ask; its exit status, negative for a signal."""
    pid = os.posix_spawn(argv[0], list(argv), environ)
    while True:
        try:
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status)
        except KeyboardInterrupt:
            continue  # the terminal sent it to ssh as well, which ends by it


def _wait(pid: int, seconds: float) -> int | None:
    end_s = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end_s:
            return None
        time.sleep(0.001)  # it has closed its stdout and is about to exit


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
    if _wait(pid, _EXIT_S) is None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
