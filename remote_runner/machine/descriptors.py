"""File descriptors of this process: how many there may be, and writing to them."""

from __future__ import annotations

import fcntl
import os
import resource
import select
from contextlib import suppress

_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", None)  # Linux only
MOST_BUFFERS = 512
"""Of one writev; IOV_MAX is 1024 at least."""


def widen(pipe: int, size_bytes: int) -> bool:
    """Let a pipe hold so much, where the system has that and the user's share of pipe memory is not used up."""
    if _PIPE_SIZE is not None:
        with suppress(OSError):
            fcntl.fcntl(pipe, _PIPE_SIZE, size_bytes)
            return True
    return False


def write_all(fd: int, *pieces: bytes | memoryview) -> None:
    """Write everything, even if another process that shares the descriptor has made it non-blocking."""
    left = [piece for piece in pieces if piece]
    while left:
        try:
            drop(left, os.writev(fd, left[:MOST_BUFFERS]))
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()


def drop(buffers: list[bytes | memoryview], size: int) -> None:
    """Take so many bytes, which have been written, from the front."""
    whole = 0
    for buffer in buffers:
        if len(buffer) > size:
            break
        size -= len(buffer)
        whole += 1
    del buffers[:whole]
    if size:
        buffers[0] = memoryview(buffers[0])[size:]


def raise_limit() -> None:
    """Let this process have as many as it may: instances and connections have some each, and hosts may be hundreds.

    `ssh` and builds have the limit as well, and need no more than they did.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS has a limit below its "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
