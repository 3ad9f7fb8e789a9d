"""An event loop in a thread of its own, for functions that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Self, TypeVar

_R = TypeVar("_R")


class Background:
    """A context manager: at its end everything still running in the loop is cancelled."""

    def __init__(self, name: str) -> None:
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()

    def do(self, work: Coroutine[Any, Any, _R], timeout_s: float | None = None) -> _R:
        """Do it in the loop and wait for its result; an interrupt meanwhile cancels it."""
        doing = self.begin(work)
        try:
            return doing.result(timeout_s)
        finally:
            doing.cancel()

    def begin(self, work: Coroutine[Any, Any, _R]) -> Future[_R]:
        """Do it in the loop without waiting."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)
