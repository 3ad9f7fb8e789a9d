"""Passing this process's standard input to commands on hosts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING

from remote_runner.errors import HostLostError
from tasks.say import say

if TYPE_CHECKING:
    from remote_runner.connection.verbs.run import Run

_PIECE_BYTES = 1 << 16
_HELD_PIECES = 16


class Input:
    """All of it goes to each command, as quickly as the slowest takes it.

    A thread reads it from the first `feed` on. One that still waits for input does not keep the process from ending.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._waiting = {host: asyncio.Queue[bytes](_HELD_PIECES) for host in hosts}
        self._reader: threading.Thread | None = None

    async def feed(self, host: str, run: Run) -> None:
        """Hand it to the command that a host has started, until either ends."""
        from remote_runner.connection.link import StreamClosed

        if self._reader is None:
            self._reader = threading.Thread(
                target=self._read, args=(asyncio.get_running_loop(),), name="stdin", daemon=True
            )
            self._reader.start()
        try:
            with suppress(StreamClosed, HostLostError):  # `follow` tells why
                while data := await self._waiting[host].get():
                    await run.write_stdin(data)
                await run.end_stdin()
        finally:
            self.forget(host)

    def forget(self, host: str) -> None:
        """This host takes nothing, or no more."""
        pieces = self._waiting.pop(host, None)
        while pieces is not None and not pieces.empty():  # lets go who waits for room
            pieces.get_nowait()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        data = b"-"
        while data:
            try:
                data = os.read(0, _PIECE_BYTES)
            except OSError as error:
                data = b""
                if not os.isatty(0):  # a job in the background has none of its terminal
                    say(f"standard input cannot be read: {error.strerror}; the command there gets its end")
            sharing = self._share(data)
            try:
                asyncio.run_coroutine_threadsafe(sharing, loop).result()
            except (RuntimeError, CancelledError):  # the loop has ended
                sharing.close()
                return

    async def _share(self, data: bytes) -> None:
        for pieces in [*self._waiting.values()]:
            await pieces.put(data)
