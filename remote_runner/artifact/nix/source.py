"""This machine's Nix store, asked over Nix's serve protocol."""

from __future__ import annotations

import os
import select
import tempfile
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from remote_runner.artifact.nix.here import Nix
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, LocalProgramError
from remote_runner.marks import widen_pipe
from remote_runner.process import end, start

if TYPE_CHECKING:
    from subprocess import Popen  # noqa: TID251 (a type only)


class LocalServer:
    """A `nix-store --serve` on this machine, which writes nothing; a `Stream` for `ServeClient`.

    Raises `LocalProgramError` where it cannot be started or ends with an error, `DeadlineError`.
    """

    def __init__(self, nix: Nix, deadline: Deadline) -> None:
        self._argv = (nix.nix_store, "--serve")
        self._environ = nix.environ
        self._deadline = deadline
        self._process: Popen[bytes] | None = None
        self._stderr: BinaryIO | None = None
        self._stdin_fd = self._stdout_fd = -1

    def __enter__(self) -> Self:
        theirs_in, self._stdin_fd = os.pipe()
        self._stdout_fd, theirs_out = os.pipe()
        try:
            self._stderr = tempfile.TemporaryFile()
            self._process = start(
                self._argv, stdin=theirs_in, stdout=theirs_out, stderr=self._stderr.fileno(), environ=self._environ
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        os.set_blocking(self._stdin_fd, False)
        os.set_blocking(self._stdout_fd, False)
        widen_pipe(self._stdout_fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for fd in (self._stdin_fd, self._stdout_fd):
            if fd >= 0:
                os.close(fd)
        self._stdin_fd = self._stdout_fd = -1
        if self._process is not None:
            end(self._process)
            self._process = None
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._stdin_fd, view) :]
            except BlockingIOError:
                self._wait(self._stdin_fd, select.POLLOUT)
            except BrokenPipeError:
                raise self._ended() from None

    def read_some(self, count: int) -> bytes:
        while True:
            try:
                data = os.read(self._stdout_fd, count)
            except BlockingIOError:
                self._wait(self._stdout_fd, select.POLLIN)
                continue
            if not data:
                raise self._ended()
            return data

    def pipe(self) -> int:
        """The pipe that what it says comes through, once something is in it or it has ended."""
        self._wait(self._stdout_fd, select.POLLIN)
        return self._stdout_fd

    def _wait(self, fd: int, event: int) -> None:
        timeout_s = self._deadline.timeout_s
        poller = select.poll()
        poller.register(fd, event)
        if not poller.poll(None if timeout_s is None else timeout_s * 1000 + 1) and self._deadline.expired:
            raise DeadlineError("reading from the Nix store of this machine", self._deadline.budget_s)

    def _ended(self) -> LocalProgramError:
        assert self._process is not None
        assert self._stderr is not None
        status = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace")
        return LocalProgramError(
            self._argv,
            f"ended with status {status} before it had answered",
            stderr=said,
            next_step="see what `nix-store --verify` says",
        )
