"""A cancellation flag with a reason: work polls it, waits for it, or registers a callback."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

_R = TypeVar("_R")


class WorkCancelledError(Exception):
    """The work was ended before it was done, on request; never kept or shared as a failure of the work itself."""


class Cancellation:
    """Unset at first; `cancel` sets it once, from any thread. A context manager that gives its pipe back."""

    def __init__(self) -> None:
        self.reason = ""
        self._lock = threading.Lock()
        self._is_set = False
        self._calls: list[Callable[[], None]] = []
        self._pipe: tuple[int, int] | None = None

    @property
    def is_set(self) -> bool:
        return self._is_set

    def cancel(self, reason: str) -> None:
        """Set it; only the first reason counts."""
        with self._lock:
            if self._is_set:
                return
            self.reason, self._is_set = reason, True
            calls, self._calls = self._calls, []
            if self._pipe is not None:
                with suppress(BlockingIOError):
                    os.write(self._pipe[1], b"x")
        for call in calls:
            call()

    def then(self, call: Callable[[], None]) -> None:
        """Call this once, when it is set: in the thread that sets it, or now."""
        with self._lock:
            if not self._is_set:
                self._calls.append(call)
                return
        call()

    def forget(self, call: Callable[[], None]) -> None:
        """What `then` was given is not called any more."""
        with self._lock, suppress(ValueError):
            self._calls.remove(call)

    @contextmanager
    def telling(self, call: Callable[[], object]) -> Iterator[None]:
        """In the body, and never behind it, the running loop calls this, once it is set."""
        loop = asyncio.get_running_loop()
        is_over = False

        def call_in_body() -> None:
            if not is_over:  # it was set in the body's last turn of the loop
                call()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(call_in_body)

        self.then(tell)
        try:
            yield
        finally:
            is_over = True
            self.forget(tell)

    def fileno(self) -> int:
        """A descriptor that is readable once it is set, for threads that wait in select(2)."""
        with self._lock:
            if self._pipe is None:
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[1], False)
                if self._is_set:
                    os.write(self._pipe[1], b"x")
            return self._pipe[0]

    def check(self) -> None:
        """Raise `WorkCancelledError` if it is set."""
        if self._is_set:
            raise WorkCancelledError(self.reason)

    def __enter__(self) -> Cancellation:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._pipe is not None:
                os.close(self._pipe[0])
                os.close(self._pipe[1])
                self._pipe = None


async def in_thread(work: Callable[[Cancellation], _R], reason: str) -> _R:
    """Call it in a thread. When the task that waits is cancelled, so is the work, by that reason, and it ends first."""
    with Cancellation() as cancellation:
        working = asyncio.create_task(asyncio.to_thread(work, cancellation))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            cancellation.cancel(reason)
            with suppress(Exception):  # its own error no longer matters
                await working
            raise
