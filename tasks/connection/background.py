"""An event loop in a thread of its own, for tasks of the user's own, which are functions that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

_R = TypeVar("_R")


class Background:
    """A context manager: at its end everything still running in the loop is cancelled."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="connections", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()

    def do(self, work: Coroutine[Any, Any, _R]) -> _R:
        """Do it in the loop and wait for its result; an interrupt meanwhile cancels it."""
        doing = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return doing.result()
        finally:
            doing.cancel()

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it in the loop without waiting; its errors are dropped."""
        asyncio.run_coroutine_threadsafe(work, self._loop)
