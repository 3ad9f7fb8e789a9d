"""Writing to file descriptors."""

from __future__ import annotations

import os
import select


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything, also where somebody who shares the descriptor has made it non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
