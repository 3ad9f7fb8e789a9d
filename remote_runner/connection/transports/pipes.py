"""A transport's process and the pipes to it, none of which blocks the loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from remote_runner.errors import LocalProgramError
from remote_runner.machine.descriptors import MOST_BUFFERS, drop, widen
from remote_runner.machine.process import start

if TYPE_CHECKING:
    from subprocess import Popen  # noqa: TID251 (a type only)

_READ_BYTES = 256 << 10
_READS = 4  # of so much in one turn of the loop
_WORDS_BYTES = 16 << 10
MOST_SAID_BYTES = 4 << 20  # before the login: a server may send banners for as long as it likes
_PIPE_BYTES = 256 << 10
_FULL_PIPE_BYTES = 1 << 20  # once as much as it holds has come at once
# After a read of so much, or a write that filled the pipe, the next is as much later: ssh takes and gives 32 KiB at a
# time, and a turn for each costs more than ssh. Only where nothing has happened by then, the pipe is watched again.
_MUCH_BYTES = 16 << 10
_PAUSE_S = 0.001
_TURN_BYTES = 1 << 20  # written in one turn of the loop
_ENDING_S = 2.0
_WORDS_S = 0.5  # a proxy may say why when ssh has ended already


class Pipes:
    """A transport's process in a session of its own, and this side's ends of its streams, none of which blocks.

    What it says on stderr is kept, the first and the last of it. `opening` is what it has to be sent first, `answer_s`
    how long its first answer may take, where that is less than the deadline.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str] | None,
        *,
        opening: bytes = b"",
        answer_s: float | None = None,
    ) -> None:
        """Start it, in the running loop. Raises `LocalProgramError`."""
        self.opening = opening
        self.answer_s = answer_s
        self.said_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._words = bytearray()
        self._out: list[bytes | memoryview] = []
        self._ready: asyncio.Future[None] | None = None
        self._has_said_all = asyncio.Event()
        self._is_writing = False
        self._is_watched = False  # for room to write
        self._is_wide: bool | None = None  # what is written to; None as long as it was never full
        self._is_closed = False
        self._is_over = False
        self._pause: asyncio.TimerHandle | None = None  # of reading
        self._writing_pause: asyncio.TimerHandle | None = None
        self._ended: Callable[[str], None] = lambda reason: None
        self._pull: Callable[[], list[bytes | memoryview]] = list
        theirs_in, self._stdin = os.pipe()
        self._stdout, theirs_out = os.pipe()
        self._stderr, theirs_err = os.pipe()
        widen(self._stdout, _PIPE_BYTES)
        try:
            self._process: Popen[bytes] = start(
                argv, stdin=theirs_in, stdout=theirs_out, stderr=theirs_err, environ=environ, cwd="/"
            )
        except LocalProgramError:
            self._close_ours()
            raise
        finally:
            for fd in (theirs_in, theirs_out, theirs_err):
                os.close(fd)
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        self._loop.add_reader(self._stderr, self._keep_words)

    # One after the other, as long as the host's shell is spoken to

    async def read(self) -> bytes:
        """What has come, b"" at its end, and when it says more than `MOST_SAID_BYTES` on stderr."""
        while True:
            if self.said_bytes > MOST_SAID_BYTES:
                return b""
            try:
                return os.read(self._stdout, _READ_BYTES)
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader, self._stdout)
            except OSError:
                return b""

    async def write(self, data: bytes, progressed: Callable[[], None] = lambda: None) -> None:
        """Write all of it; `progressed` is called whenever some went. Raises `OSError` (the reader has gone)."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._stdin, rest) :]
                progressed()
            except BlockingIOError:
                await self._wait(self._loop.add_writer, self._loop.remove_writer, self._stdin)

    async def _wait(
        self, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], object], fd: int
    ) -> None:
        self._ready = self._loop.create_future()
        add(fd, self._go_on)
        try:
            await self._ready
        finally:
            remove(fd)

    def _go_on(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    # Both ways at once, once the agent has answered

    def carry(
        self,
        receive: Callable[[memoryview], None],
        pull: Callable[[], list[bytes | memoryview]],
        ended: Callable[[str], None],
    ) -> None:
        """Hand what comes to `receive`, which may not keep it; `flush` writes what `pull` gives.

        `ended` is called once.
        """
        self._pull = pull
        self._ended = ended

        buffer = memoryview(bytearray(_READ_BYTES))
        is_wide = False
        is_watched = True

        def readable() -> None:
            nonlocal is_wide, is_watched
            size = 0
            for _ in range(_READS):
                try:
                    size = os.readv(self._stdout, [buffer])
                except BlockingIOError:
                    break
                except OSError as error:
                    self._end(f"cannot be read: {error.strerror}")
                    return
                if not size:
                    self._end("")
                    return
                receive(buffer[:size])
                if self._is_over:
                    return
                if size < _READ_BYTES:
                    break
                if not is_wide:
                    is_wide = True
                    widen(self._stdout, _FULL_PIPE_BYTES)
            if size >= _MUCH_BYTES:
                self._pause = self._loop.call_later(_PAUSE_S, readable)
            if is_watched != (size < _MUCH_BYTES):
                is_watched = not is_watched
                if is_watched:
                    self._loop.add_reader(self._stdout, readable)
                else:
                    self._loop.remove_reader(self._stdout)

        self._loop.add_reader(self._stdout, readable)

    def flush(self) -> None:
        """Write what there is; what the pipe does not take goes when it does."""
        if self._is_closed or self._is_writing:
            return
        self._flush()

    def _flush(self) -> None:
        written_bytes, is_full = 0, False
        while written_bytes < _TURN_BYTES:
            if not self._out:
                self._out = self._pull()
                if not self._out:
                    break
            try:
                written = os.writev(self._stdin, self._out[:MOST_BUFFERS])
            except BlockingIOError:
                if self._is_wide is None:
                    self._is_wide = widen(self._stdin, _FULL_PIPE_BYTES)
                    continue
                is_full = True
                break
            except OSError as error:
                self._end(f"takes nothing more: {error.strerror}")
                return
            written_bytes += written
            drop(self._out, written)
        self._is_writing = is_full or written_bytes >= _TURN_BYTES
        watch = is_full and not (self._is_wide and written_bytes)
        if self._is_writing and not watch:
            self._writing_pause = self._loop.call_later(_PAUSE_S, self._flush)
        if watch != self._is_watched:
            self._is_watched = watch
            if watch:
                self._loop.add_writer(self._stdin, self._flush)
            else:
                self._loop.remove_writer(self._stdin)

    def _end(self, reason: str) -> None:
        ended, self._ended = self._ended, lambda reason: None
        self._is_over = True
        for pause in (self._pause, self._writing_pause):
            if pause is not None:
                pause.cancel()
        self._loop.remove_reader(self._stdout)
        self._loop.remove_writer(self._stdin)
        self._is_writing = self._is_watched = False
        ended(reason)

    # Its words and its end

    def _keep_words(self) -> None:
        try:
            data = os.read(self._stderr, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._stderr)
            self._has_said_all.set()
            return
        self.said_bytes += len(data)
        if self.said_bytes > MOST_SAID_BYTES:
            self._go_on()
        self._words += data
        if len(self._words) > 2 * _WORDS_BYTES:
            del self._words[_WORDS_BYTES : len(self._words) - _WORDS_BYTES]

    def words(self) -> str:
        """What it has said on stderr."""
        if not self._is_closed:
            self._keep_words()
        return self._words.decode(errors="replace")

    async def close(self, *, wait_s: float = 0.0) -> int | None:
        """End it with all that it started, after `wait_s` for its own end; its status, `None` where it was killed."""
        if self._is_closed:
            await _wait_for(self._process, _ENDING_S)
            return self._process.poll()
        if wait_s:
            await _wait_for(self._process, wait_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, _WORDS_S)):
                    await self._has_said_all.wait()
        status = self._process.poll()
        with suppress(ProcessLookupError, PermissionError):  # its proxies are of its group
            os.killpg(self._process.pid, signal.SIGKILL)
        self._keep_words()
        self._loop.remove_reader(self._stderr)
        self._end("")
        self._is_closed = True
        self._close_ours()
        await _wait_for(self._process, _ENDING_S)
        return status

    def _close_ours(self) -> None:
        for fd in (self._stdin, self._stdout, self._stderr):
            os.close(fd)


async def _wait_for(process: Popen[bytes], seconds: float) -> None:
    """Return once it has ended, or after that time."""
    if process.poll() is not None:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            if not hasattr(os, "pidfd_open"):
                while process.poll() is None:
                    await asyncio.sleep(0.01)  # nothing tells, but on Linux
                return
            loop = asyncio.get_running_loop()
            pidfd = os.pidfd_open(process.pid)
            ended = loop.create_future()
            loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
            try:
                await ended
                process.wait()
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)
