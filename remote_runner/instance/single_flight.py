"""Work that several coroutines need, done once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_END_S = 10.0
_K = TypeVar("_K", bound=Hashable)
_R = TypeVar("_R")


class _Flight(Generic[_R]):
    def __init__(self, task: asyncio.Task[_R]) -> None:
        self.task = task
        self.waiters = 0


class SingleFlight(Generic[_K, _R]):
    """The first caller for a key starts the work; all others wait for it and share its result or failure.

    It is cancelled when the last who waits is. `keeps`: how many results stay for those who ask later; failures stay
    with them only where `keeps_failures` says so.
    """

    def __init__(self, *, keeps: int = 0, keeps_failures: bool = False) -> None:
        self._flights: OrderedDict[_K, _Flight[_R]] = OrderedDict()
        self._keeps = keeps
        self._keeps_failures = keeps_failures

    def peek(self, key: _K) -> _R | None:
        """The result, where the work was done and has succeeded."""
        flight = self._flights.get(key)
        if flight is None or not flight.task.done() or flight.task.cancelled() or flight.task.exception():
            return None
        return flight.task.result()

    async def get(self, key: _K, start: Callable[[], Awaitable[_R]]) -> _R:
        """The result of the work that `start` begins, unless it has begun; raises what it raises."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(_run(start)))
        elif flight.task.done():
            return flight.task.result()
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.task.done():
                if not flight.waiters:
                    flight.task.cancel()
                    self._drop(key, flight)
                    # Nothing of it may continue once the last waiter has ended.
                    await asyncio.wait({flight.task}, timeout=_END_S)
            elif not self._is_kept(flight):
                self._drop(key, flight)
            else:
                self._make_room()

    def asked(self) -> list[_K]:
        """What was asked for, and is kept or still running."""
        return list(self._flights)

    def forget(self, key: _K) -> None:
        """The next caller starts it anew."""
        self._flights.pop(key, None)

    def _is_kept(self, flight: _Flight[_R]) -> bool:
        if not self._keeps or flight.task.cancelled():
            return False
        return self._keeps_failures or flight.task.exception() is None

    def _drop(self, key: _K, flight: _Flight[_R]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _make_room(self) -> None:
        if len(self._flights) > self._keeps:
            for key, flight in list(self._flights.items()):
                if flight.task.done():
                    del self._flights[key]
                if len(self._flights) <= self._keeps:
                    return


async def _run(start: Callable[[], Awaitable[_R]]) -> _R:
    return await start()
