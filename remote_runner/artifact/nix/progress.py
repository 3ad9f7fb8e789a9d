"""Progress of a long copy or wait, reported now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from remote_runner.sizes import size

INTERVAL_S = 5.0
WAITING_S = 15.0


@asynccontextmanager
async def told_while_waiting(words: str, report: Callable[[str], None]) -> AsyncIterator[None]:
    """Tell `report` every `WAITING_S` that it still takes, and how long it has taken."""
    began_s = time.monotonic()

    async def tell() -> None:
        while True:
            await asyncio.sleep(WAITING_S)
            report(f"{words} ({time.monotonic() - began_s:.0f} s)")

    teller = asyncio.create_task(tell())
    try:
        yield
    finally:
        teller.cancel()


Moved = Callable[[int, int | None], None]
"""Hears at each piece how many bytes are sent, and of how many, where that is known."""


class Progress:
    """Counts what a copy to `host` sends: told to `report` every `INTERVAL_S`, to `moved` at once."""

    def __init__(
        self,
        host: str,
        paths: int,
        report: Callable[[str], None],
        moved: Moved | None,
        *,
        total_bytes: int | None = None,
    ) -> None:
        self.sent_bytes = 0
        self._host = host
        self._paths = paths
        self._report = report
        self._moved = moved
        self._total_bytes = total_bytes
        self._of = "" if total_bytes is None else f" of {size(total_bytes)}"
        self._reported_s = time.monotonic()

    def sent(self, size_bytes: int, number: int) -> None:
        """Count further bytes, of the path with that number (from 1)."""
        self.sent_bytes += size_bytes
        if self._moved is not None:
            self._moved(self.sent_bytes, self._total_bytes)
        if time.monotonic() - self._reported_s >= INTERVAL_S:
            self._reported_s = time.monotonic()
            self._report(f"{self._host}: path {number} of {self._paths}, {size(self.sent_bytes)}{self._of} sent")
