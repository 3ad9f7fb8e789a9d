"""File descriptors of this process: how many there may be, and writing to them."""

from __future__ import annotations

import os
import resource
import select
from contextlib import suppress


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything, even if another process that shares the descriptor has made it non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


def raise_limit() -> None:
    """Let this process have as many as it may: instances and connections have some each, and hosts may be hundreds.

    `ssh` and builds have the limit as well, and need no more than they did.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS has a limit below its "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
