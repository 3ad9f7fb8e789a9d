"""Starting programs on this machine: with an argv and a deadline, and ended with everything that they started."""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import shlex
import signal
import subprocess  # noqa: TID251 (this is the door)
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from remote_runner.cancellation import Cancellation
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, LocalProgramError
from remote_runner.machine.shell_words import needs_shell, shell_line

_log = logging.getLogger(__name__)
_LONGEST_WORD = 120
_GRACE_S = 2.0
_LOOK_S = 0.2  # for a cancellation, where nothing tells both
# Outlives us: reads the number of a process group, and ends that group when we die before it has ended.
_GUARD = f"""
IFS= read -r group || exit 0
IFS= read -r ended && exit 0
kill -s TERM -- "-$group"
sleep {_GRACE_S:g}
kill -s KILL -- "-$group"
"""


def run_logged(
    argv: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    log: Path,
    deadline: Deadline,
    cancellation: Cancellation | None = None,
    stdout: Path | None = None,
) -> int:
    """Run a program to its end, everything it says appended to `log`; its exit status, negative for a signal.

    With `stdout`, standard output goes to that file, and only standard error to `log`.
    It gets no input, and a process group of its own, which is ended (TERM, then KILL) with the deadline, with
    `cancellation` or another exception here, and with this process, however that dies. Raises `LocalProgramError` when
    it cannot be started, `DeadlineError`, `WorkCancelledError`.
    """
    process: subprocess.Popen[bytes] | None = None
    guard: subprocess.Popen[bytes] | None = None
    try:
        with ExitStack() as opened, _interrupts_held_off():
            words = opened.enter_context(log.open("ab"))  # files: no pipe that a forgotten child could keep open
            guard = _start_guard()
            process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=words if stdout is None else opened.enter_context(stdout.open("wb")),
                stderr=words,
                start_new_session=True,
            )
            _tell(guard, str(process.pid))
        _log.debug("process %d started: %s", process.pid, _Argv(argv))
        if not ends_within(process, deadline.timeout_s, cancellation):
            if cancellation is not None:
                cancellation.check()
            deadline.check(" ".join(argv[:3]))
    except OSError as error:
        if process is not None:
            raise
        raise _not_started(argv, cwd, error) from error
    finally:
        if process is not None and process.returncode is None:
            _end_group(process)
        if guard is not None:
            _dismiss(guard)
    _log.debug("process %d ended with %s", process.pid, how_ended(process.returncode))
    return process.returncode


def _start_guard() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    )


def _tell(guard: subprocess.Popen[bytes], line: str) -> None:
    assert guard.stdin is not None
    with suppress(BrokenPipeError):  # somebody killed it
        guard.stdin.write(f"{line}\n".encode())


def _dismiss(guard: subprocess.Popen[bytes]) -> None:
    _tell(guard, "ended\nended")  # it may not have heard of a group
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait()


@contextmanager
def _interrupts_held_off() -> Iterator[None]:
    """Here Ctrl-C raises nothing, but at the end: between fork and assignment it would lose a process."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


@dataclass(frozen=True)
class Finished:
    """A program that ran to its end: what was asked, how it ended (negative: a signal), and all it said."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes


def run(
    argv: Sequence[str],
    *,
    deadline: Deadline,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
) -> Finished:
    """Run a program to its end and keep what it says; for programs that say little.

    Raises `LocalProgramError` when it cannot be started, `DeadlineError` (its group has then been ended).
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with _interrupts_held_off():
            process = start(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                environ=environ,
                cwd=None if cwd is None else str(cwd),
            )
        stdout, stderr = process.communicate(stdin, deadline.timeout_s)
    except subprocess.TimeoutExpired:
        raise DeadlineError(" ".join(argv[:3]), deadline.budget_s) from None
    finally:
        if process is not None:
            if process.returncode is None:
                _end_group(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
    _log.debug("process %d ended with %s", process.pid, how_ended(process.returncode))
    return Finished(tuple(argv), process.returncode, stdout, stderr)


def start(
    argv: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    environ: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program on these descriptors (they stay the caller's), in a session of its own.

    Raises `LocalProgramError` when it cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=None if environ is None else dict(environ),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise _not_started(argv, cwd or ".", error) from error
    _log.debug("process %d started: %s", process.pid, _Argv(argv))
    return process


class _Argv:
    """An argv as a log has it, made only where one is written."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv

    def __str__(self) -> str:
        # The bootstrap that ssh gets as its command is one word of 4,000 characters.
        return shlex.join(word if len(word) <= _LONGEST_WORD else f"{word[:_LONGEST_WORD]}…" for word in self._argv)


def _not_started(argv: Sequence[str], cwd: Path | str, error: OSError) -> LocalProgramError:
    """Why the system did not start a program; what to do about it, where that is a file that somebody wrote."""
    reason, next_step = f"cannot be started: {error.strerror}", None
    path = Path(cwd, argv[0])
    if needs_shell(argv):
        next_step = f"there is no shell; to have one: {shell_line(argv)}"
    if "/" in argv[0] and path.is_file():
        with suppress(OSError), path.open("rb") as file:
            first = file.readline(200)
            if first.endswith(b"\r\n"):
                reason = "is a script with Windows line ends (CRLF)"
                next_step = f"save {path} with Unix line ends (perl -pi -e 's/\\r$//' FILE)"
            elif error.errno == errno.ENOEXEC:
                next_step = f"name its interpreter in the first line of {path}: #!/bin/sh"
            elif error.errno == errno.ENOENT and first.startswith(b"#!"):
                reason = f"cannot be started: its first line names {first[2:].strip().decode(errors='replace')}"
                next_step = f"install that, or name another interpreter in {path}"
        if error.errno == errno.EACCES:
            next_step = f"make it executable: chmod +x {path}"
    elif "/" in argv[0] and error.errno == errno.ENOENT:
        next_step = f"{path} is not there: correct its name"
    return LocalProgramError(argv, reason, next_step=next_step)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program that `start` has started, with all that it started (TERM, then KILL)."""
    if process.poll() is None:
        _end_group(process)


def run_at_terminal(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a program in this process's terminal, where it may ask; its exit status, negative for a signal."""
    with subprocess.Popen(list(argv), env=dict(environ)) as process:
        _log.debug("process %d started: %s", process.pid, _Argv(argv))
        while True:
            with suppress(KeyboardInterrupt):  # the terminal sent it to the program as well, which ends by it
                return process.wait()


def how_ended(status: int) -> str:
    """A status of `run_logged` in words."""
    return f"status {status}" if status >= 0 else f"signal {-status}"


def last_lines(log: Path, count: int = 20) -> str:
    """The last lines of a log, of at most 8 KiB; "" where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-count:])


def ends_within(
    process: subprocess.Popen[bytes], timeout_s: float | None, cancellation: Cancellation | None = None
) -> bool:
    """Wait for a program: whether it ended before the time was over, and before anybody cancelled."""
    # Popen.wait with a timeout polls every 50 ms, which a build of 0.1 s would feel; Linux can tell.
    if (timeout_s is not None or cancellation is not None) and hasattr(os, "pidfd_open"):
        pidfd = os.pidfd_open(process.pid)
        try:
            poller = select.poll()  # select(2) takes no descriptor above 1023
            poller.register(pidfd, select.POLLIN)
            if cancellation is not None:
                poller.register(cancellation.fileno(), select.POLLIN)
            ready = poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000))
            ended = pidfd in dict(ready)
        finally:
            os.close(pidfd)
        if ended:
            process.wait()
        return ended
    end_s = None if timeout_s is None else time.monotonic() + timeout_s
    while end_s is None or time.monotonic() < end_s:
        if cancellation is not None and cancellation.is_set:
            return False
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_S if end_s is None else min(_LOOK_S, max(0.0, end_s - time.monotonic())))
            return True
    return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if ends_within(process, _GRACE_S):
            break
    # Its children may ignore TERM; the group is gone, or goes now.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
