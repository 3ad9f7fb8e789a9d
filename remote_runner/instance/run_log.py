"""A run's logs, written as the lines come: each instance's `stdout` and `stderr`, and the run's `run.log`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections import Counter, deque
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from remote_runner.connection.workers import FILES
from remote_runner.machine.descriptors import write_all
from remote_runner.outputs import SAMPLES_FILE, STREAM_FILES

LOG_FILE = "run.log"
# A thread takes what has come in this time from all instances at once: an instance costs no thread and no descriptor.
_TOGETHER_S = 0.05
_HELD_BYTES = 4 << 20
_LONGEST_LINE = 64 * 1024
_PATIENCE_S = 0.2  # for a disk, before the others go on without its file
_NEW = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
# NFS gives a shared lock to those who may read, and an exclusive one to those who may write.
NEW_LOG = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

_Pieces = dict[Path, list[bytes | memoryview]]
"""What is to be written, by file."""


class _Writing:
    """What a thread writes, file after file; the event loop may take back what that has not come to."""

    def __init__(self, held: _Pieces) -> None:
        self.taken = held
        self.path: Path | None = None  # the file that is being written
        self._left = deque(held.items())
        self._lock = threading.Lock()

    def next(self) -> tuple[Path, list[bytes | memoryview]] | None:
        with self._lock:
            if not self._left:
                self.path = None
                return None
            found = self._left.popleft()
            self.path = found[0]
            return found

    def take_back(self) -> _Pieces:
        with self._lock:
            rest = dict(self._left)
            self._left.clear()
        self.taken = {path: pieces for path, pieces in self.taken.items() if path not in rest}
        return rest


class RunLog:
    """The files of one run, whose directory is `directory` (`None`: there is none, and no `run.log`).

    While it is open it has a shared lock on `run.log`, by which others know that the run goes on. What cannot be
    written is dropped, and `problems` says of which file and why. `umask` holds for what is made. Only writers
    to the same file wait for one whose disk hangs.
    """

    def __init__(self, directory: Path | None, umask: int | None) -> None:
        self.directory = directory
        self.path = None if directory is None else directory / LOG_FILE
        self.problems: dict[Path, str] = {}
        self._umask = umask
        self._lock_fd = -1
        self._held: _Pieces = {}
        self._held_bytes = 0
        # Of each file that is not all written: pieces, and who waits until so many are.
        self._came: Counter[Path] = Counter()
        self._done: Counter[Path] = Counter()
        self._waiting: dict[Path, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._writing: _Writing | None = None
        self._hanging: set[_Writing] = set()
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.path is not None:
            self.add(self.path, b"")

    def add(self, path: Path, *pieces: bytes | memoryview) -> None:
        """Append to a file, which is made where it is missing."""
        if path in self.problems:
            return
        self._held.setdefault(path, []).extend(pieces)
        self._held_bytes += sum(map(len, pieces))
        self._came[path] += len(pieces)
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(_TOGETHER_S, self._write)

    async def drain(self, *files: Path) -> None:
        """Return once there is room for more in these: while so much is written, so much more may come."""
        while self._held_bytes > _HELD_BYTES and any(map(self._is_unwritten, files)):
            self._write()
            if self._held_bytes > _HELD_BYTES:
                await asyncio.shield(self._changed)

    async def flush(self, *files: Path) -> None:
        """Return once all that has come for these is written, or cannot be; what comes meanwhile is not waited for."""
        self._write()
        waiters = [self._waiter(file) for file in files if self._is_unwritten(file)]
        for waiter in waiters:
            await waiter

    def _is_unwritten(self, file: Path) -> bool:
        return self._came[file] > self._done[file]

    def _waiter(self, file: Path) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(file, deque()).append((self._came[file], waiter))
        return waiter

    def close(self) -> None:
        """Write what is left and close the files: readers of `run.log` see that it has ended."""
        self._is_closed = True
        self._write()
        self._unlock()

    def _unlock(self) -> None:
        if self._is_closed and self._writing is None and self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            return
        hanging = {writing.path for writing in self._hanging}
        ready = {path: pieces for path, pieces in self._held.items() if path not in hanging}
        if not ready:
            return
        self._held = {path: pieces for path, pieces in self._held.items() if path in hanging}
        self._held_bytes = _size_bytes(self._held)
        writing = self._writing = _Writing(ready)
        FILES.run(partial(self._append, writing)).add_done_callback(partial(self._written, writing))
        asyncio.get_running_loop().call_later(_PATIENCE_S, self._look, writing)

    def _look(self, writing: _Writing) -> None:
        """Let the other files go on without the one that hangs."""
        if writing is not self._writing:
            return
        for path, pieces in writing.take_back().items():
            self._held[path] = pieces + self._held.get(path, [])
        self._held_bytes = _size_bytes(self._held)
        self._settle(writing, writing.path)
        self._hanging.add(writing)
        self._writing = None
        self._write()

    def _written(self, writing: _Writing, done: asyncio.Future[None]) -> None:
        self._settle(writing, None)
        self._hanging.discard(writing)
        if writing is self._writing:
            self._writing = None
        self._write()
        self._unlock()
        if not done.cancelled():
            done.result()

    def _settle(self, writing: _Writing, but: Path | None) -> None:
        """What it has taken is written, but for that file."""
        for path, pieces in writing.taken.items():
            if path != but:
                self._note_done(path, len(pieces))
        writing.taken = {path: pieces for path, pieces in writing.taken.items() if path == but}
        self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()

    def _note_done(self, file: Path, pieces: int) -> None:
        self._done[file] += pieces
        waiting = self._waiting.get(file)
        while waiting and waiting[0][0] <= self._done[file]:
            waiter = waiting.popleft()[1]
            if not waiter.done():  # whoever waited may be gone
                waiter.set_result(None)
        if not self._is_unwritten(file):
            del self._came[file], self._done[file]
            self._waiting.pop(file, None)

    def _append(self, writing: _Writing) -> None:
        """Write it, in a thread; why a file took nothing is noted."""
        while (found := writing.next()) is not None:
            path, pieces = found
            try:
                fd = os.open(path, NEW_LOG if path == self.path else _NEW, 0o666)
                try:
                    if self._umask is not None and os.fstat(fd).st_size == 0:
                        os.fchmod(fd, 0o666 & ~self._umask)
                    if path == self.path and self._lock_fd < 0:
                        self._lock_fd = os.dup(fd)
                        with suppress(OSError):  # a file system without locks
                            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    write_all(fd, *pieces)
                finally:
                    os.close(fd)
            except OSError as error:
                self.problems[path] = error.strerror or str(error)


def _size_bytes(held: _Pieces) -> int:
    return sum(len(piece) for pieces in held.values() for piece in pieces)


class InstanceLog:
    """One instance's part of it; `name` stands before each of its lines in `run.log`, as in `single[003]`."""

    def __init__(self, log: RunLog, outputs: Path, name: str) -> None:
        self._log = log
        self._name = name
        self._stdout, self._stderr = (outputs / stream for stream in STREAM_FILES)
        self._files = [self._stdout, self._stderr, outputs / SAMPLES_FILE]
        if log.path is not None:
            self._files.append(log.path)
        self._begun = b""  # the line on stderr whose end has not come

    def start(self) -> None:
        """Its application has started: there are its files, though it may say nothing."""
        for file in (self._stdout, self._stderr):
            self._log.add(file, b"")

    def stdout(self, data: bytes) -> None:
        """Whole lines of the application (its last one may lack the newline)."""
        self._log.add(self._stdout, data)
        self._lines("stdout", data)

    def stderr(self, data: bytes) -> None:
        """The application's next bytes on stderr."""
        self._log.add(self._stderr, data)
        end = data.rfind(b"\n") + 1
        if end:
            self._lines("stderr", self._begun + data[:end])
            self._begun = data[end:]
        else:
            self._begun += data
        if len(self._begun) > _LONGEST_LINE:  # as lines go that long on stdout
            self.end_of_streams()

    def end_of_streams(self) -> None:
        """The application says no more."""
        if self._begun:
            self._lines("stderr", self._begun)
            self._begun = b""

    def words(self, text: str) -> None:
        """Words of remote-runner's own."""
        self._lines("runner", text.encode("utf-8", "replace"))

    async def drain(self) -> None:
        """Return once there is room for more."""
        await self._log.drain(*self._files)

    async def flush(self) -> list[str]:
        """Return once everything is written; what of it could not be, as sentences."""
        await self._log.flush(*self._files)
        found = [(path, self._log.problems[path]) for path in self._files if path in self._log.problems]
        return [f"{path}: what comes for it cannot be kept: {why}" for path, why in found]

    def _lines(self, stream: str, data: bytes) -> None:
        if self._log.path is None or not data:
            return
        now = datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
        prefix = f"{now}Z {self._name} {stream} ".encode()
        lines = memoryview(data.replace(b"\n", b"\n" + prefix))
        if data.endswith(b"\n"):
            self._log.add(self._log.path, prefix, lines[: -len(prefix)])
        else:
            self._log.add(self._log.path, prefix, lines, b"\n")


def run_directory(outputs: Path, run: str, group: str) -> Path | None:
    """The run's directory above an instance's outputs, where these are `<run>/<group>/<index>`.

    A group's name may have a `/`. Elsewhere a directory that is called as the run is another's.
    """
    depth = len(Path(group).parts)
    if not (run and group and outputs.name.isdecimal() and depth < len(outputs.parents)):
        return None
    above = outputs.parents[depth]
    return above if above.name == run and outputs.parent == above / group else None
