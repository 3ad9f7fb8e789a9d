"""What a launcher (exec-go/warm.go) and the warm process say to each other over a Unix socket, and where that lies.

The warm process speaks first: `rrw1` and a letter, whether it takes the instance. Then the launcher sends the request:
`rrw1`, a length (four bytes, big-endian), and fields that end with a zero byte each: the umask in octal, the working
directory, the variables as NAME=VALUE. Its descriptors 0, 1 and 2 come with the first bytes (SCM_RIGHTS). After that
each byte from the launcher is the number of a signal it got, and the one byte to it is the instance's exit status. The
instance begins only when the whole request is there, so a launcher that hears nothing can begin it by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"rrw1"
TAKES = MAGIC + b"y"
STALE = MAGIC + b"s"
"""The code has changed; somebody else will listen."""
REFUSES = MAGIC + b"n"
HEAD_BYTES = len(MAGIC) + 4
MOST_BYTES = 64 << 20  # of a request; execve(2) takes less of variables


class WarmProtocolError(Exception):
    """What came is no request of a launcher."""


@dataclass(frozen=True)
class Request:
    """What an instance gets from its launcher, beside the descriptors."""

    umask: int
    directory: bytes
    environ: Mapping[bytes, bytes]


def body_bytes(head: bytes) -> int:
    """How long the fields behind this head are. Raises `WarmProtocolError`."""
    magic, length = struct.unpack(f">{len(MAGIC)}sI", head)
    if magic != MAGIC or length > MOST_BYTES:
        raise WarmProtocolError(f"a request begins with {head!r}")
    return int(length)


def parse_request(body: bytes) -> Request:
    """The request of these fields. Raises `WarmProtocolError`."""
    umask, *fields = body.split(b"\0")
    try:
        directory, *variables, end = fields
        pairs = [variable.partition(b"=") for variable in variables]
        if end or not all(equals for _, equals, _ in pairs):
            raise WarmProtocolError("a request whose fields are not whole")
        return Request(int(umask, 8), directory, {name: value for name, _, value in pairs})
    except ValueError as error:
        raise WarmProtocolError(f"a request without its fields: {error}") from error


@dataclass(frozen=True)
class WarmPlace:
    """Where a warm process listens, what it says, and the lock under which the socket is made and removed."""

    socket: Path

    @property
    def log(self) -> Path:
        """What it and its interpreter said."""
        return self.socket.with_name(f"{self.socket.name}.log")

    @property
    def lock(self) -> Path:
        """Held while its socket comes or goes."""
        return self.socket.parent.parent / "locks" / self.lock_name

    @property
    def lock_name(self) -> str:
        """The lock's name among those of `Controller.lock`."""
        return f"warm-{self.socket.name}"
