"""Receiving outputs: the agent's tar stream is unpacked in a thread while the event loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from remote_runner.connection.link import Stream, StreamClosed
from remote_runner.connection.verbs import faults
from remote_runner.connection.verbs.validation import pairs, part, texts
from remote_runner.connection.workers import FILES
from remote_runner.errors import OutputsError
from remote_runner.outputs import LeftOut, OutputsReport, unpack

OUTPUTS_LANE = 3
# Up to here outputs are unpacked when all are there: one call to a thread.
_SMALL_BYTES = 256 << 10
# Of larger ones a thread is woken for so much, so much may wait for it, and so much may be on its way, for all of a
# connection.
_TOGETHER_BYTES = 256 << 10
_WAITING_BYTES = 1 << 20
_ON_THE_WAY_BYTES = 8 << 20


class Allowance:
    """How many bytes of bulk may be on their way to here beyond each stream's first window, shared by a connection."""

    def __init__(self) -> None:
        self._left_bytes = 2 * _ON_THE_WAY_BYTES

    def take(self, most_bytes: int = _ON_THE_WAY_BYTES) -> int:
        """Take a part of what is left, and return its size."""
        taken_bytes = min(most_bytes, self._left_bytes // 2)
        self._left_bytes -= taken_bytes
        return taken_bytes

    def give_back(self, size_bytes: int) -> None:
        self._left_bytes += size_bytes


@dataclass(frozen=True)
class Source:
    """Whose outputs come: a run's name, and its outputs directory on the host; `umask` holds for what is made here."""

    host: str
    run_id: str
    far_outputs: str
    umask: int | None = None


async def receive_outputs(
    stream: Stream,
    source: Source,
    outputs_dir: Path,
    limit_bytes: int,
    allowance: Allowance,
    taken: Callable[[int], None] | None = None,
    sent: Callable[[], None] | None = None,
) -> OutputsReport:
    """Unpack what comes on the outputs lane, and read the report after it.

    `taken` hears how much of a large one came; `sent` is called when the host has sent all that it could.

    Raises an `OutputsError` for what is not whole (what came is kept), the host's fault, `HostLostError`.
    """
    first: list[bytes] = []
    size_bytes = 0
    while size_bytes < _SMALL_BYTES and (data := await stream.read(OUTPUTS_LANE)):
        first.append(data)
        size_bytes += len(data)
    if size_bytes < _SMALL_BYTES:
        said = await _hear(stream, source, sent)
        report = await _start(iter(first), source, outputs_dir, limit_bytes)
        return _judged(source, said, report)
    granted_bytes = allowance.take()
    stream.grant(OUTPUTS_LANE, granted_bytes)
    feed = _Feed(first)
    unpacking = _start(iter(feed), source, outputs_dir, limit_bytes)
    unpacking.add_done_callback(feed.abandon)
    try:
        while not unpacking.done() and (data := await stream.read(OUTPUTS_LANE)):
            await feed.put(data)
            size_bytes += len(data)
            if taken is not None:
                taken(size_bytes)
        if unpacking.done():
            await unpacking  # it has not waited for the end: raises why
        said = await _hear(stream, source, sent)
        feed.end()
        return _judged(source, said, await unpacking)
    finally:
        feed.end()
        allowance.give_back(granted_bytes)


def _start(
    chunks: Iterator[bytes], source: Source, outputs_dir: Path, limit_bytes: int
) -> asyncio.Future[OutputsReport]:
    def work() -> OutputsReport:
        try:
            return unpack(
                chunks,
                outputs_dir,
                host=source.host,
                far_outputs=source.far_outputs,
                limit_bytes=limit_bytes,
                umask=source.umask,
            )
        except OutputsError as error:
            raise error.of_run(source.run_id) from error.__cause__

    return FILES.run(work)


async def _hear(stream: Stream, source: Source, sent: Callable[[], None] | None) -> dict[str, Any]:
    try:
        message = await stream.receive()
    except StreamClosed as closed:
        raise faults.outputs_fault(source.host, source.run_id, closed) from closed
    said = part(source.host, message.head, "fetched")
    if sent is not None:
        sent()
    return said


def _judged(source: Source, said: Mapping[str, Any], report: OutputsReport) -> OutputsReport:
    """What came, with the host's own words about it; raises where something that is there did not come."""
    unread = pairs(said.get("unread"))
    if unread or said.get("whole") is not True:
        raise faults.unread_outputs(source.host, source.run_id, report.files, unread)
    left_out = (*report.left_out, *(LeftOut(path, why) for path, why in pairs(said.get("left_out"))))
    changed = tuple(f"{path}: changed while it was read" for path in texts(said.get("changed")))
    return replace(report, left_out=left_out, far_messages=changed)


class _Feed:
    """Bytes on their way from the event loop to one thread, which takes all that wait at once, and not for little."""

    def __init__(self, first: list[bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting = first
        self._size_bytes = sum(map(len, first))
        self._is_over = False
        self._changed = threading.Condition()
        self._has_room = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Hand over bytes; waits while too many are waiting."""
        with self._changed:
            self._waiting.append(data)
            self._size_bytes += len(data)
            if self._size_bytes >= _WAITING_BYTES:
                self._has_room.clear()
            else:
                self._has_room.set()
            if self._size_bytes >= _TOGETHER_BYTES:
                self._changed.notify()
        await self._has_room.wait()

    def end(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def abandon(self, taker: asyncio.Future[OutputsReport]) -> None:
        """The reader has gone: let a waiting writer continue."""
        if not taker.cancelled():
            taker.exception()  # looked at, also where the stream's own fault is raised instead
        self._has_room.set()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                while not self._waiting and not self._is_over:
                    self._changed.wait()
                taken, self._waiting = self._waiting, []
                was_full, self._size_bytes = self._size_bytes >= _WAITING_BYTES, 0
            if not taken:
                return
            if was_full:
                with suppress(RuntimeError):  # the loop has been closed
                    self._loop.call_soon_threadsafe(self._has_room.set)
            yield from taken
