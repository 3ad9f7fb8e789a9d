"""Work that begins before its result is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_R = TypeVar("_R")


class Later(Generic[_R]):
    """The result of work that somebody else does; an error in it comes out of `result`."""

    def __init__(self) -> None:
        self._result: list[_R] = []
        self._error: BaseException | None = None
        # Not Thread.join: up to Python 3.12 a thread counts as ended when a signal handler's exception cuts that short.
        self._ended = threading.Event()

    def settle(self, work: Callable[[], _R]) -> None:
        """Do the work, once, in this thread; nothing is raised here."""
        try:
            self._result.append(work())
        except BaseException as error:  # noqa: BLE001 (raised again by result, in the thread that asks)
            self._error = error
        finally:
            self._ended.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return once the work has ended, however it did; with a timeout at the latest then: whether it has."""
        return self._ended.wait(timeout_s)

    def result(self) -> _R:
        """What the work returned; raises what it raised."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]


class Ahead(Later[_R]):
    """Runs `work` in a thread from now on."""

    def __init__(self, work: Callable[[], _R]) -> None:
        super().__init__()
        threading.Thread(target=self.settle, args=(work,), daemon=True).start()
