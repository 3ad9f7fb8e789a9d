"""A short dialogue with a host: one brief session, a script of ours, lines that it marks, and bytes for its input."""

from __future__ import annotations

import math
import os
import select
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, FarShellError
from remote_runner.far_shell import far_command, far_script, new_nonce
from remote_runner.host import Host, Session

_READ_BYTES = 1 << 16
_LOOK_S = 1.0  # how often it is seen whether anything can come
_KEPT_BYTES = 8192
_MOST_BYTES = _KEPT_BYTES + _READ_BYTES
# In a dialogue, where every byte counts: what may have come before it is read.
_MOST_BYTES_AHEAD = 64 << 20


class BriefSession:
    """Runs `script` on the host; what it prints as `$nonce WORD REST` are its answers, all else is noise.

    Nothing waits for the session to open: the script is on its way with the request for it.
    """

    def __init__(self, host: Host, script: str, values: Mapping[str, str], deadline: Deadline, what: str) -> None:
        """`what` names the whole for the deadline's message."""
        self.sent_bytes = 0
        self._host = host
        self._deadline = deadline
        self._what = what
        self._nonce = new_nonce()
        self._first = far_script(script, {**values, "nonce": self._nonce})
        self._said = bytearray()
        self._stderr = bytearray()
        self._open: set[int] = set()
        self._session: Session | None = None
        self._answered = False
        self._keeps_all = False

    def __enter__(self) -> Self:
        self._session = self._host.start_session(far_command(), brief=True)
        self._open = {self._session.stdout_fd, self._session.stderr_fd}
        os.set_blocking(self._session.stdin_fd, False)
        self._send(iter((self._first,)))
        self.sent_bytes = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._session.close()

    def send(self, chunks: Iterable[bytes], *, more: bool = False) -> None:
        """Send bytes, and but for `more` the end of input; less, when the far side answers or ends before that."""
        self._send(iter(chunks))
        if not more:
            self._opened().close_stdin()

    def answer(self) -> tuple[str, str]:
        """The next marked line: its first word and the rest.

        Raises `FarShellError` when the output ends without one, and the session's own errors.
        """
        while True:
            line = self._marked_line()
            if line is not None:
                self._answered = True
                word, _, rest = line.partition(" ")
                return word, rest.strip()
            if self._opened().stdout_fd not in self._open:
                self._fail()
            self._wait(writable=False)

    # Behind an answer may come a protocol of its own, which is not searched for lines of ours.

    def write(self, data: bytes) -> bool:
        """Send bytes; False when nobody there takes them any more."""
        self._keeps_all = True
        return self._put(data)

    def splice(self, pipe: int, count: int) -> int | None:
        """Send at most `count` of the bytes that a pipe holds, past this process: how many, 0 where the pipe has ended.

        `None` when nobody there takes them any more. Linux only.
        """
        assert sys.platform == "linux"
        self._keeps_all = True
        while True:
            try:
                moved = os.splice(pipe, self._opened().stdin_fd, count, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                if not self._wait(writable=True):
                    return None
                continue
            except BrokenPipeError:
                return None
            self.sent_bytes += moved
            return moved

    def read_some(self, count: int) -> bytes:
        """The next bytes behind the last answer: at least one and at most `count`; none at the end of the output."""
        self._keeps_all = True
        while not self._said and self._opened().stdout_fd in self._open:
            self._wait(writable=False)
        data = bytes(self._said[:count])
        del self._said[:count]
        return data

    def end(self) -> tuple[int, str]:
        """Wait until the far side has ended; its exit status, and the last it said on stderr (at most 8 KiB)."""
        self.finish()
        return self._opened().wait_exit(self._deadline), self._stderr.decode(errors="replace")

    def finish(self, deadline: Deadline | None = None) -> None:
        """Wait until the far side has ended, so that its place on the connection is free."""
        if deadline is not None:
            self._deadline = deadline
        self._opened().close_stdin()
        while self._open:
            self._wait(writable=False)
        self._opened().wait_exit(self._deadline)

    def _opened(self) -> Session:
        assert self._session is not None
        return self._session

    def _send(self, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            if not self._put(chunk, until_answered=True):
                return

    def _put(self, data: bytes, *, until_answered: bool = False) -> bool:
        session = self._opened()
        view = memoryview(data)
        while view:
            try:
                written = os.write(session.stdin_fd, view)
            except BlockingIOError:
                if (until_answered and self._has_answer()) or not self._wait(writable=True):
                    return False
                continue
            except BrokenPipeError:
                return False  # its answer, or the reason why there is none, is on its way
            self.sent_bytes += written
            view = view[written:]
        return True

    def _wait(self, *, writable: bool) -> bool:
        """Take in what has come; with `writable`, return when more can be sent: False when nobody listens any more."""
        session = self._opened()
        # Before that a session's pipes have no end (`Session.wait_opened`); what they hold is on its way already.
        session.wait_opened(self._deadline)
        poller = select.poll()
        for fd in self._open:
            poller.register(fd, select.POLLIN)
        if writable:
            poller.register(session.stdin_fd, select.POLLOUT)
        while not (events := poller.poll(math.ceil(min(_LOOK_S, self._deadline.remaining_s) * 1000))):
            if self._deadline.expired:
                break
            session.check_carrier()
        if self._deadline.expired:  # also where the host has always something to say
            raise self._too_late()
        for fd, event in events:
            if fd in self._open:
                self._take(fd)
            elif event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                return False
        return True

    def _take(self, fd: int) -> None:
        data = os.read(fd, _READ_BYTES)
        if not data:
            self._open.discard(fd)
            return
        kept = self._said if fd == self._opened().stdout_fd else self._stderr
        kept += data
        # Of noise only the end is kept, and of what follows an answer the beginning; an answer is shorter than that.
        if kept is self._said and self._keeps_all:
            if len(kept) > _MOST_BYTES_AHEAD:
                raise FarShellError(self._host.name, f"{self._what}: it says much that nobody asked for")
        elif len(kept) > _KEPT_BYTES:
            if self._has_answer():
                del kept[_MOST_BYTES:]
            else:
                del kept[:-_KEPT_BYTES]

    def _has_answer(self) -> bool:
        start = self._said.find(self._nonce.encode() + b" ")
        return start >= 0 and self._said.find(b"\n", start) >= 0

    def _marked_line(self) -> str | None:
        mark = self._nonce.encode() + b" "
        start = self._said.find(mark)
        end = self._said.find(b"\n", start)
        if start < 0 or end < 0:
            return None
        line = bytes(self._said[start + len(mark) : end])
        del self._said[: end + 1]
        return os.fsdecode(line)

    def _too_late(self) -> DeadlineError:
        said = (self._said + self._stderr).decode(errors="replace")
        # Without an answer nothing tells a slow line from a host that runs something else than our script.
        next_step = (
            None
            if self._answered
            else f"see whether `ssh {self._host.name} /bin/sh -c true` ends at once (a ForceCommand, or a start-up "
            "file that waits for something, cannot be used); if it does, give it longer: `timeouts` in inventory.yaml"
        )
        return DeadlineError(self._what, self._deadline.budget_s, said=said, next_step=next_step)

    def _fail(self) -> None:
        session = self._opened()
        while self._open:
            self._wait(writable=False)
        status = session.wait_exit(self._deadline)
        said = (self._said + self._stderr).decode(errors="replace")
        raise FarShellError(
            self._host.name,
            f"the command ended with status {status} before our script had answered",
            stderr=said,
            next_step=f"see what `ssh {self._host.name} /bin/sh -c true` does: "
            "a ForceCommand, or a login shell that runs no command, cannot be used",
        )
