"""Writing to shared descriptors without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from remote_runner.connection.workers import FILES
from remote_runner.machine.descriptors import MOST_BUFFERS, drop, widen, write_all

HELD_BYTES = 1 << 18
"""Up to which a writer takes more before it lets who feeds it wait."""
# What comes to a file within so long goes by one call of a thread, unless it is much.
_TOGETHER_S = 0.02
_MUCH_BYTES = 1 << 14


class Writer:
    """Writes to a pipe, a file, a terminal, a socket or /dev/null without changing its flags.

    asyncio's own transports refuse files, and set O_NONBLOCK for everybody who shares a pipe. A pipe or a terminal is
    opened once more through /proc, which gives flags of our own; where that is not possible, poll(2) says that
    PIPE_BUF bytes fit. `feed` takes any amount, `drain` waits until less than `HELD_BYTES` are held.

    `on_unread` is called once, when the last reader has gone or the descriptor can take nothing more (its argument says
    why: "" for a reader that has gone); from then on everything is dropped, as after `close`.
    """

    def __init__(self, fd: int) -> None:
        self.on_unread: Callable[[str], None] = lambda why: None
        self._fd = fd
        self._held: list[bytes | memoryview] = []
        self._held_bytes = 0
        self._is_dead = False
        self._is_waiting = False
        self._room: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        mode = os.fstat(fd).st_mode
        self._is_file = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        self._own = -1
        self._is_wide = False
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            with suppress(OSError):
                self._own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        self._watched = False
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            # Only an error makes the writing end of a pipe ready for reading: its last reader has gone.
            with suppress(OSError, ValueError):
                asyncio.get_running_loop().add_reader(self._write_fd, self._look)
                self._watched = True

    @property
    def _write_fd(self) -> int:
        return self._own if self._own >= 0 else self._fd

    def feed(self, data: bytes | memoryview) -> None:
        """Write it, as soon as that is possible, behind what was fed before."""
        if self._is_dead or not data:
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if not (self._is_waiting or self._is_file):
            self._write_some()
        if self._held:
            self._wait()

    async def drain(self) -> None:
        """Return once there is room for more."""
        if self._held_bytes > HELD_BYTES and self._own >= 0 and not self._is_wide:
            self._is_wide = True
            widen(self._own, HELD_BYTES)
        while self._held_bytes > HELD_BYTES and not self._is_dead:
            await self._wait_for_room()

    async def flush(self) -> None:
        """Return once everything is written, or cannot be."""
        while self._held and not self._is_dead:
            if self._timer is not None:
                self._write_file()
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._room)

    def close(self) -> None:
        """Let go of what is our own; the descriptor still belongs to the caller."""
        self._stop_waiting()
        if self._timer is not None:
            self._timer.cancel()
        self._is_dead = True
        self._unwatch()
        if self._own >= 0:
            os.close(self._own)
            self._own = -1
        self._held.clear()
        self._signal_room()

    def _write_some(self) -> None:
        """Write as much as the kernel takes without making us wait."""
        try:
            while self._held:
                if self._own >= 0:
                    written = os.writev(self._own, self._held[:MOST_BUFFERS])
                else:
                    poller = select.poll()
                    poller.register(self._fd, select.POLLOUT)
                    found = poller.poll(0)
                    if not found:
                        return
                    if found[0][1] & (select.POLLERR | select.POLLNVAL):
                        raise BrokenPipeError
                    written = os.write(self._fd, memoryview(self._held[0])[: select.PIPE_BUF])
                self._held_bytes -= written
                drop(self._held, written)
        except BlockingIOError:
            pass
        except OSError as error:
            self._die(error)

    def _wait(self) -> None:
        if not self._is_waiting:
            self._is_waiting = True
            loop = asyncio.get_running_loop()
            if self._is_file:
                self._timer = loop.call_later(_TOGETHER_S, self._write_file)
            else:
                loop.add_writer(self._write_fd, self._go_on)
        if self._timer is not None and self._held_bytes > _MUCH_BYTES:
            self._write_file()

    def _write_file(self) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._timer = None
        taken, size = self._held, self._held_bytes
        FILES.run(partial(write_all, self._fd, *taken)).add_done_callback(lambda done: self._file_written(done, size))
        # It counts as held until it is written.
        self._held = [b""]

    def _file_written(self, done: asyncio.Future[None], count: int) -> None:
        self._is_waiting = False
        self._held = self._held[1:]
        self._held_bytes -= count
        error = done.exception()
        if isinstance(error, OSError):
            self._die(error)
            return
        if self._held and not self._is_dead:
            self._wait()
        self._signal_room()

    def _go_on(self) -> None:
        self._write_some()
        if not self._held:
            self._stop_waiting()
        self._signal_room()

    def _stop_waiting(self) -> None:
        if self._is_waiting and not self._is_file:
            asyncio.get_running_loop().remove_writer(self._write_fd)
            self._is_waiting = False

    def _look(self) -> None:
        poller = select.poll()
        poller.register(self._write_fd, 0)
        found = dict(poller.poll(0)).get(self._write_fd, 0)
        if found & (select.POLLERR | select.POLLHUP):
            self._die(None)
        elif found:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watched:
            asyncio.get_running_loop().remove_reader(self._write_fd)
            self._watched = False

    def _die(self, error: OSError | None) -> None:
        if self._is_dead:
            return
        self._stop_waiting()
        self._unwatch()
        self._is_dead = True
        self._held.clear()
        self._held_bytes = 0
        self._signal_room()
        self.on_unread("" if error is None or isinstance(error, BrokenPipeError) else error.strerror or str(error))

    def _signal_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
