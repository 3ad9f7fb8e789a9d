"""The warm process: has imported what an instance needs, and forks a process of its own for each.

A launcher (exec-go/) makes the listening socket, so that all others wait in its queue, and starts this behind it. The
parent here never reads a byte of a request and keeps no connection: nothing that an instance does reaches it or
another instance. A child answers its launcher by itself, and goes on when the parent is gone.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from remote_runner.controller import FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError
from remote_runner.job import supervisor_script
from remote_runner.stop import Stop
from remote_runner.warm_protocol import (
    HEAD_BYTES,
    REFUSES,
    STALE,
    TAKES,
    Request,
    WarmPlace,
    WarmProtocolError,
    body_bytes,
    parse_request,
)

IDLE_S = 60.0
_LISTENER_FD = 3
_LOCK_S = 5.0
# What an instance imports, much of it only where it is needed.
MODULES = (
    *(
        "remote_runner.instance.instance",
        "remote_runner.masters",
        "remote_runner.local_host",
        "remote_runner.instance.addresses",
    ),
    *("remote_runner.artifact.nix.builder", "remote_runner.artifact.nix.push", "testground.sync.client"),
    *("encodings.ascii", "encodings.idna", "shlex", "shutil", "yaml"),
)
_ROOMS = ("remote_runner", "testground")
_PYTHONS = sys.stdlib_module_names


def main(place: str, run: Callable[[Stop], int], *, idle_s: float = IDLE_S) -> int:
    """Serve launchers until none has come for so long; the exit status.

    `place` is what a launcher says of the socket that it leaves here as descriptor 3: its inode and its path.
    `run` is an instance, in a process of its own with the launcher's directory, environment and descriptors, whose
    signals are requests to stop.
    """
    inode, _, path = place.partition(" ")
    code = Code()
    for module in MODULES:
        importlib.import_module(module)
    supervisor_script()
    code.add_loaded()
    with socket.socket(fileno=_LISTENER_FD) as listener:
        listener.set_inheritable(False)
        print(f"process {os.getpid()} takes instances", flush=True)
        Warm(listener, WarmPlace(Path(path)), int(inode), code, run).serve(idle_s)
    return 0


class Code:
    """The files that this process's code is, as they were when it was loaded: first ours, then all that came along."""

    def __init__(self) -> None:
        here = Path(__file__).parent.parent
        ours = [path for room in _ROOMS for kind in ("*.py", "*.sh") for path in (here / room).rglob(kind)]
        self._seen = {path: _state(path) for path in ours}

    def add_loaded(self) -> None:
        """Add what is loaded now, but for Python's own library: its interpreter stands for that."""
        modules = [module for name, module in sys.modules.items() if name.partition(".")[0] not in _PYTHONS]
        files = [getattr(module, "__file__", None) for module in modules]
        for path in (Path(file) for file in (*files, sys.executable) if file):
            self._seen.setdefault(path, _state(path))

    def is_changed(self) -> bool:
        """Whether one of them is another file now, or gone."""
        return any(_state(path) != state for path, state in self._seen.items())


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Warm:
    """The parent: takes connections on the listener until there is a reason to end. For a process without threads."""

    def __init__(
        self, listener: socket.socket, place: WarmPlace, inode: int, code: Code, run: Callable[[Stop], int]
    ) -> None:
        """`inode` is that of the socket's file, which another launcher may have replaced by its own since."""
        self._listener = listener
        self._place = place
        self._inode = inode
        self._code = code
        self._run = run
        self._children: set[int] = set()
        self._stale: list[socket.socket] = []

    def serve(self, idle_s: float) -> None:
        """Fork for whoever comes, until nobody has for so long, or the code changes and the last child has ended."""
        self._listener.setblocking(False)
        gc.collect()
        gc.freeze()  # what is here by now is shared with the children as long as nobody writes to it
        ended_fd, wake_fd = os.pipe()
        for fd in (ended_fd, wake_fd):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        poller.register(ended_fd, select.POLLIN)
        until_s = time.monotonic() + idle_s
        while not self._stale and (self._children or time.monotonic() < until_s):
            timeout_s = None if self._children else max(0.0, until_s - time.monotonic())
            ready = poller.poll(None if timeout_s is None else timeout_s * 1000)
            self._reap(ended_fd)
            self._take_all()
            if ready:
                until_s = time.monotonic() + idle_s
        self._leave()
        poller.unregister(self._listener)
        self._listener.close()
        while self._children:
            poller.poll()
            self._reap(ended_fd)

    def _reap(self, ended_fd: int) -> None:
        with suppress(BlockingIOError):
            os.read(ended_fd, 4096)
        self._children -= {pid for pid in self._children if os.waitpid(pid, os.WNOHANG)[0]}

    def _waiting(self) -> Iterator[socket.socket]:
        while True:
            try:
                yield self._listener.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                return

    def _take_all(self) -> None:
        for connection in self._waiting():
            if self._code.is_changed():
                self._stale.append(connection)
                return
            with connection:
                if _peer_uid(connection) == os.getuid():
                    self._fork(connection)

    def _fork(self, connection: socket.socket) -> None:
        try:
            pid = os.fork()
        except OSError:
            _say(connection, REFUSES)
            return
        if pid:
            self._children.add(pid)
            return
        try:
            self._listener.close()
            _be_an_instance(connection, self._run)
        except BaseException:  # noqa: BLE001 (a child never goes on as its parent)
            traceback.print_exc()
        finally:
            os._exit(1)

    def _leave(self) -> None:
        """Let nobody come any more, and send away who has: they start another."""
        with suppress(DeadlineError, FileNotFoundError), FileLock(self._place.lock).acquire(Deadline.after(_LOCK_S)):
            if self._place.socket.stat().st_ino == self._inode:
                for path in (self._place.socket, self._place.log, self._place.lock):
                    path.unlink()
        for connection in (*self._stale, *self._waiting()):
            _say(connection, STALE)
            connection.close()


def _say(connection: socket.socket, answer: bytes) -> None:
    with suppress(OSError):  # it has gone
        connection.sendall(answer)


def _peer_uid(connection: socket.socket) -> int:
    if sys.platform == "darwin":  # LOCAL_PEERCRED, struct xucred
        return int(struct.unpack_from("=II", connection.getsockopt(0, 1, 76))[1])
    return int(struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])


# The child


def _be_an_instance(connection: socket.socket, run: Callable[[Stop], int]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    connection.setblocking(True)
    try:
        connection.sendall(TAKES)
        request = _receive(connection)
    except (ConnectionError, EOFError):
        return  # somebody who only looked whether anybody listens
    os.umask(request.umask)
    os.chdir(request.directory)
    os.environ.clear()  # noqa: TID251 (the edge of the process)
    os.environb.update(request.environ)
    stop = Stop()
    stop.on_signals()
    threading.Thread(target=_follow_launcher, args=(connection, stop), daemon=True).start()
    status = run(stop)
    _close_outputs()
    _say(connection, bytes([status]))


def _receive(connection: socket.socket) -> Request:
    """The whole request; its descriptors are this process's from then on. Raises `EOFError` where it breaks off."""
    head, fds, _, _ = socket.recv_fds(connection, HEAD_BYTES, 3)
    head += _exactly(connection, HEAD_BYTES - len(head))
    body = _exactly(connection, body_bytes(head))
    if len(fds) != 3:
        raise WarmProtocolError(f"a request with {len(fds)} descriptors")
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    return parse_request(body)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def _follow_launcher(connection: socket.socket, stop: Stop) -> None:
    """Pass on the signals that the launcher gets; when it was killed, end the outputs, for which the daemon waits."""
    with suppress(ConnectionError):
        while numbers := connection.recv(16):
            for number in numbers:
                os.kill(os.getpid(), number)
    _close_outputs()
    stop.request("its launcher was killed (Testground's cancel)")


def _close_outputs() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(null, fd)
    os.close(null)
