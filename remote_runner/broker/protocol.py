"""The protocol between a launcher (exec-go/, or `handover.py`) and the broker, over a Unix socket.

The broker speaks first: `rrb1` and a letter, whether it takes the instance. Then the launcher sends the request:
`rrb1`, a length (four bytes, big-endian), and fields that end with a zero byte each: the umask in octal, the working
directory, the variables as NAME=VALUE. Its descriptors 0, 1 and 2 come with the first bytes (SCM_RIGHTS). After that
each byte from the launcher is the number of a signal it got, and the one byte to it is the instance's exit status. The
instance begins only when the whole request is there, so a launcher that hears nothing can begin it by itself.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

MAGIC = b"rrb1"
TAKES = MAGIC + b"y"
STALE = MAGIC + b"s"
"""The code has changed; another broker will listen."""
ANSWER_BYTES = len(TAKES)
HEAD_BYTES = len(MAGIC) + 4
MOST_BYTES = 64 << 20  # of a request; execve(2) takes less of variables


class BrokerProtocolError(Exception):
    """The bytes received are not a launcher's request."""


@dataclass(frozen=True)
class Request:
    """What an instance gets from its launcher, beside the descriptors."""

    umask: int
    directory: str
    environ: Mapping[str, str]

    def encode(self) -> bytes:
        """The request as it is sent, head and fields."""
        fields = [f"{self.umask:o}", self.directory, *(f"{name}={value}" for name, value in self.environ.items())]
        body = b"".join(os.fsencode(field) + b"\0" for field in fields)
        return MAGIC + len(body).to_bytes(4) + body


def body_bytes(head: bytes) -> int:
    """How long the fields behind this head are. Raises `BrokerProtocolError`."""
    magic, length = struct.unpack(f">{len(MAGIC)}sI", head)
    if magic != MAGIC or length > MOST_BYTES:
        raise BrokerProtocolError(f"a request begins with {head!r}")
    return int(length)


def parse_request(body: bytes) -> Request:
    """The request of these fields. Raises `BrokerProtocolError`."""
    umask, *fields = body.split(b"\0")
    try:
        directory, *variables, end = fields
        pairs = [variable.partition(b"=") for variable in variables]
        if end or not all(equals for _, equals, _ in pairs):
            raise BrokerProtocolError("a request whose fields are not whole")
        environ = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
        return Request(int(umask, 8), os.fsdecode(directory), environ)
    except ValueError as error:
        raise BrokerProtocolError(f"a request without its fields: {error}") from error
