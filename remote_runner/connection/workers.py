"""Threads for disk access, which may block forever.

Few while nothing hangs: a hundred outputs at once cost a fifth more CPU with 64 threads than with 4, which compete with
the event loop for the interpreter. Nothing joins them, so a process exits although a disk hangs, which it would not
with the threads of `concurrent.futures`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

_R = TypeVar("_R")

_FEW = 4
_MOST = 64
# If nothing has started for this long although work waits, the running threads count as hanging.
_PATIENCE_S = 0.05


class Workers:
    """For all event loops of a process."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]]]
        self._waiting = SimpleQueue()
        self._threads = 0
        self._begun = 0
        self._watching: asyncio.AbstractEventLoop | None = None

    def run(self, work: Callable[[], _R]) -> asyncio.Future[_R]:
        """Call it in a thread; its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_R] = loop.create_future()
        self._waiting.put((loop, future, work))
        if self._threads < _FEW:
            self._start(1)
        elif self._watching is not loop:
            self._watching = loop
            loop.call_later(_PATIENCE_S, self._watch, loop, self._begun)
        return future

    def _watch(self, loop: asyncio.AbstractEventLoop, begun: int) -> None:
        waiting = self._waiting.qsize()
        if not waiting:
            self._watching = None
            return
        if self._begun == begun:
            self._start(min(waiting, self._threads, _MOST - self._threads))
        loop.call_later(_PATIENCE_S, self._watch, loop, self._begun)

    def _start(self, count: int) -> None:
        for _ in range(count):
            self._threads += 1
            threading.Thread(target=self._work, name=f"files-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        while True:
            loop, future, work = self._waiting.get()
            self._begun += 1
            if future.cancelled():
                continue
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:  # noqa: BLE001 (raised where it is waited for)
                error = caught
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(_settle, future, result, error)
            del future, work, result, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


FILES = Workers()
