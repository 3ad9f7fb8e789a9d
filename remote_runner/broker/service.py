"""The broker: takes instances from launchers over a Unix socket, runs each as a coroutine, and ends when none comes.

A launcher makes the listening socket, so that all others wait in its queue, and starts this process behind it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from remote_runner import debug
from remote_runner.broker.place import BrokerPlace
from remote_runner.broker.protocol import (
    HEAD_BYTES,
    STALE,
    TAKES,
    BrokerProtocolError,
    body_bytes,
    parse_request,
)
from remote_runner.cancellation import Cancellation
from remote_runner.controller import Controller, Controllers, FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError
from remote_runner.instance.instance import MANY_OBJECTS, run_instance
from remote_runner.instance.shared import Shared
from remote_runner.instance.writer import Writer
from remote_runner.machine.descriptors import raise_limit
from remote_runner.records.attending import Attending

RunInstance = Callable[..., Awaitable[int]]

IDLE_S = 60.0
_LISTENER_FD = 3
_LOCK_S = 5.0
_LOOK_S = 1.0
_ROOMS = ("remote_runner", "testground", "agent")
_KINDS = (".py", ".sh", ".go")
_PYTHONS = sys.stdlib_module_names
_PR_SET_DUMPABLE = 4


def main(place: str, environ: Mapping[str, str], *, run: RunInstance = run_instance, idle_s: float = IDLE_S) -> int:
    """Serve launchers until none has come for so long; the exit status.

    `place` is what a launcher says of the socket that it leaves here as descriptor 3: its inode and its path. `run` is
    an instance.
    """
    inode, _, path = place.partition(" ")
    code = Code()
    os.umask(0o077)  # noqa: TID251 (for what is its own; an instance's umask is a value)
    _keep_memory_private()
    raise_limit()
    code.add_loaded()
    gc.freeze()  # what is loaded stays: no later collection looks at it
    gc.set_threshold(MANY_OBJECTS)
    gc.enable()
    with socket.socket(fileno=_LISTENER_FD) as listener:
        listener.set_inheritable(False)
        listener.setblocking(False)
        print(f"process {os.getpid()} takes instances", flush=True)
        broker = Broker(listener, BrokerPlace(Path(path)), int(inode), code, run, logs=debug.is_wanted(environ))
        with asyncio.Runner() as runner:
            runner.run(broker.serve(idle_s))
    return 0


def _keep_memory_private() -> None:
    """It holds the variables of all its instances: nobody else's debugger, and no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Code:
    """The files that this process's code is, as they were when it was loaded: first ours, then all that came along."""

    def __init__(self) -> None:
        here = Path(__file__).parent.parent.parent
        # A Path for each of them takes five times as long, and so long each first instance waits.
        found = (place for room in _ROOMS for place in os.walk(here / room))
        ours = [f"{directory}/{name}" for directory, _, names in found for name in names if name.endswith(_KINDS)]
        self._seen = {path: _state(path) for path in ours}
        self._directories: dict[str, tuple[int, int, int] | None] = {}
        self._looked_s = 0.0

    def add_loaded(self) -> None:
        """Add what is loaded now, but for Python's own library: its interpreter stands for that."""
        modules = [module for name, module in sys.modules.items() if name.partition(".")[0] not in _PYTHONS]
        files = [getattr(module, "__file__", None) for module in modules]
        for path in (file for file in (*files, sys.executable) if file):
            self._seen.setdefault(path, _state(path))
        self._directories = dict.fromkeys(path.rpartition("/")[0] for path in self._seen)

    def is_changed(self) -> bool:
        """Whether one of them is another file now, or gone; what is written in place is seen a second later at most."""
        # Of a file that is replaced its directory tells. Looking at all files takes 0.5 ms.
        directories = {path: _state(path) for path in self._directories}
        now_s = time.monotonic()
        if directories == self._directories and now_s < self._looked_s + _LOOK_S:
            return False
        self._directories, self._looked_s = directories, now_s
        return any(_state(path) != state for path, state in self._seen.items())


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 (of many files; a Path takes twice as long)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Broker:
    """Takes connections on the listener until there is a reason to end."""

    def __init__(
        self,
        listener: socket.socket,
        place: BrokerPlace,
        inode: int,
        code: Code,
        run: RunInstance,
        *,
        logs: bool = False,
    ) -> None:
        """`inode` is that of the socket's file, which another launcher may have replaced by its own since.

        logs: write a debug log, where the first instance keeps its cache.
        """
        self._listener = listener
        self._place = place
        self._inode = inode
        self._code = code
        self.run = run
        self._launchers: set[_Launcher] = set()
        self._shared: dict[Controller, Shared] = {}
        self._logs = logs
        self._debug_log = ""
        self.records = Attending()
        self.controllers = Controllers()
        self._is_stale = False
        self._wake = asyncio.Event()

    async def serve(self, idle_s: float) -> None:
        """Run instances until none has come for `IDLE_S`, or the code has changed."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end_all, "the broker was ended (SIGTERM)")
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        loop.add_reader(self._listener, self._accept)
        while not self._is_stale:
            self._wake.clear()
            try:
                async with asyncio.timeout(None if self._launchers else idle_s):
                    await self._wake.wait()
            except TimeoutError:
                if not self._launchers:
                    break
        loop.remove_reader(self._listener)
        self._leave()
        while self._launchers:
            self._wake.clear()
            await self._wake.wait()
        for shared in self._shared.values():
            await shared.close()
        await self.records.close()

    def shared(self, controller: Controller) -> Shared:
        """What the instances with these directories share."""
        if self._logs and not self._debug_log:
            self._debug_log = debug.started_log(controller)
        if controller not in self._shared:
            self._shared[controller] = Shared(controller, debug_log=self._debug_log)
        return self._shared[controller]

    def ended(self, launcher: _Launcher) -> None:
        """It is served."""
        self._launchers.discard(launcher)
        self._wake.set()

    def _accept(self) -> None:
        # One look for all who wait: a hundred of them come within a few milliseconds.
        self._is_stale |= self._code.is_changed()
        if self._is_stale:
            # They are sent away when the socket is gone: else they would come here again.
            asyncio.get_running_loop().remove_reader(self._listener)
            self._wake.set()
            return
        for connection in self._waiting():
            if _peer_uid(connection) != os.getuid():
                connection.close()
            else:
                connection.setblocking(False)
                self._launchers.add(_Launcher(self, connection))
        self._wake.set()

    def _waiting(self) -> Iterator[socket.socket]:
        while True:
            try:
                yield self._listener.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                return

    def _end_all(self, reason: str) -> None:
        self._is_stale = True
        for launcher in self._launchers:
            launcher.stop.cancel(reason)
        self._wake.set()

    def _leave(self) -> None:
        """Accept no more launchers and send waiting ones away: they start another broker."""
        with suppress(DeadlineError, OSError), FileLock(self._place.lock).acquire(Deadline.after(_LOCK_S)):
            if self._place.socket.stat().st_ino == self._inode:
                for path in (self._place.socket, self._place.log, self._place.lock):
                    path.unlink(missing_ok=True)
        for connection in self._waiting():
            _say(connection, STALE)
            connection.close()
        self._listener.close()


class _Launcher:
    """A launcher's connection: first the request, then the numbers of signals; at the end the status goes back."""

    def __init__(self, broker: Broker, connection: socket.socket) -> None:
        self.stop = Cancellation()
        self._broker = broker
        self._connection = connection
        self._data = bytearray()
        self._fds: list[int] = []
        self._writers: list[Writer] = []
        self._length: int | None = None
        self._task: asyncio.Task[None] | None = None
        _say(connection, TAKES)
        asyncio.get_running_loop().add_reader(connection, self._read)

    def _read(self) -> None:
        try:
            if self._task is None:
                self._read_request()
            else:
                self._read_signals()
        except BlockingIOError:
            return
        except (OSError, EOFError, BrokerProtocolError):
            self._lost()

    def _read_request(self) -> None:
        # Descriptors come with the first bytes; the rest of a large environment in pieces.
        data, ancillary, flags, _ = self._connection.recvmsg(1 << 16, socket.CMSG_SPACE(3 * 4))
        for level, kind, values in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._fds += struct.unpack(f"={len(values) // 4}i", values[: len(values) // 4 * 4])
        if not data:
            raise EOFError
        if flags & socket.MSG_CTRUNC:
            raise BrokerProtocolError("a request whose descriptors did not all come")
        self._data += data
        if self._length is None and len(self._data) >= HEAD_BYTES:
            self._length = body_bytes(bytes(self._data[:HEAD_BYTES]))
        if self._length is None or len(self._data) < HEAD_BYTES + self._length:
            return
        if len(self._fds) != 3:
            raise BrokerProtocolError(f"a request with {len(self._fds)} descriptors")
        body = bytes(self._data[HEAD_BYTES : HEAD_BYTES + self._length])
        early, self._data = self._data[HEAD_BYTES + self._length :], bytearray()
        for fd in self._fds:
            os.set_inheritable(fd, False)
        self._writers = [Writer(fd) for fd in self._fds[1:]]
        self._task = asyncio.create_task(self._run(body))
        if early:
            self._signals(early)

    def _read_signals(self) -> None:
        numbers = self._connection.recv(16)
        if not numbers:
            raise EOFError
        self._signals(numbers)

    def _signals(self, numbers: bytes | bytearray) -> None:
        for number in numbers:
            with suppress(ValueError):
                self.stop.cancel(f"received {signal.Signals(number).name}")

    def _lost(self) -> None:
        """The launcher is gone, or never was one."""
        asyncio.get_running_loop().remove_reader(self._connection)
        if self._task is None:
            self._close()
            self._broker.ended(self)
            return
        # The daemon waits for the end of its outputs; now it need not any longer.
        self._close_outputs()
        self.stop.cancel("its launcher was killed (Testground's cancel)")

    async def _run(self, body: bytes) -> None:
        status = 1
        try:
            request = parse_request(body)
            controller = self._broker.controllers.of(request.environ)
            attended = self._broker.records.instance(request.environ, Path(request.directory), controller)
            with self.stop:
                async with attended:
                    status = await self._broker.run(
                        request.environ,
                        Path(request.directory),
                        umask=request.umask,
                        shared=self._broker.shared(controller),
                        stop=self.stop,
                        stdout=self._writers[0],
                        stderr=self._writers[1],
                    )
        finally:
            self._close(bytes([status]))
            self._broker.ended(self)

    def _close(self, answer: bytes = b"") -> None:
        with suppress(ValueError, OSError):
            asyncio.get_running_loop().remove_reader(self._connection)
        self._close_outputs()
        if answer:
            _say(self._connection, answer)
        self._connection.close()

    def _close_outputs(self) -> None:
        for writer in self._writers:
            writer.close()
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)


def _say(connection: socket.socket, answer: bytes) -> None:
    with suppress(OSError):  # it has gone
        connection.send(answer)


def _peer_uid(connection: socket.socket) -> int:
    if sys.platform == "darwin":  # LOCAL_PEERCRED, struct xucred
        return int(struct.unpack_from("=II", connection.getsockopt(0, 1, 76))[1])
    return int(struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
