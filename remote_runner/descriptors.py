"""Writing to file descriptors."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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


@contextmanager
def when_unread(fd: int, call: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Within the block `call` is called, from a thread and once, when the last reader of a pipe closes its end.

    A write would tell as well, but who is silent for an hour does not write. Other kinds of files never call.
    Yields what ends the watch before the block does: as long as it goes on, poll(2) holds the pipe open, whatever
    becomes of the descriptor.
    """
    wake_read, wake_write = os.pipe()
    poller = select.poll()
    poller.register(fd, 0)  # errors only
    poller.register(wake_read, select.POLLIN)

    def watch() -> None:
        found = dict(poller.poll())
        if wake_read not in found and found.get(fd, 0) & (select.POLLERR | select.POLLHUP):
            call()

    def end() -> None:
        os.write(wake_write, b"x")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield end
    finally:
        end()
        thread.join()
        os.close(wake_read)
        os.close(wake_write)
