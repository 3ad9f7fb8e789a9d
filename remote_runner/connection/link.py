"""One session with a host's agent: attached, attached again after a cut, and given up after `tolerate_s`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from remote_runner.connection.frames import Message
from remote_runner.connection.transport import Transport
from remote_runner.deadline import NEVER, Deadline
from remote_runner.inventory.systems import System


@dataclass(frozen=True)
class Greeting:
    """What the agent says of itself and its host."""

    agent: str
    epoch: int
    received: int
    base: PurePosixPath
    uid: int
    user: str
    system: System
    hostname: str
    boot: str
    pid: int
    address: str


class StreamClosed(Exception):  # noqa: N818 (the end of a stream is no error by itself)
    """The agent has closed the stream; `kind` is "" where nothing failed, else one of docs/protocol.md's table."""

    def __init__(self, kind: str = "", text: str = "", more: Mapping[str, Any] | None = None) -> None:
        super().__init__(text or kind or "closed")
        self.kind = kind
        self.text = text
        self.more = dict(more or {})


class Stream:
    """One request, or one connection that the agent has accepted. Everything raises `HostLostError` once the link is
    given up. Several tasks may use one stream, one for each lane and direction, and one that receives.
    """

    id: int
    head: dict[str, Any]  # of the OPEN

    async def send(self, head: Mapping[str, Any], *fields: bytes) -> None:
        """Send a message. Does not wait. Raises `StreamClosed`."""
        raise NotImplementedError

    async def receive(self) -> Message:
        """The next message of the agent. Raises `StreamClosed` once it has closed the stream and all were received."""
        raise NotImplementedError

    async def read(self, lane: int) -> bytes:
        """The next bytes of that lane, b"" at its end. What was returned is taken for consumed at the next call."""
        raise NotImplementedError

    def grant(self, lane: int, size: int) -> None:
        """Let the agent send that much more on the lane, for bulk (at most 8 MiB in all)."""
        raise NotImplementedError

    async def write(self, lane: int, data: bytes, *, bulk: bool = False) -> None:
        """Send bytes, waiting for credit and for the window. Raises `StreamClosed`."""
        raise NotImplementedError

    async def end(self, lane: int) -> None:
        """Say that nothing more comes on that lane. Does not wait."""
        raise NotImplementedError

    async def close(self) -> None:
        """Be done with the stream: a request that goes on is cancelled there. Does not wait; harmless when repeated."""
        raise NotImplementedError

    async def wait_closed(self) -> None:
        """Return once the agent has closed the stream as well."""
        raise NotImplementedError


class Link:
    """A session with the agent of one host."""

    name: str
    greeting: Greeting
    attempts: int  # to log in, since the link was opened
    address: str  # where this machine reached it
    lost: asyncio.Future[BaseException]  # its result is the HostLostError

    @classmethod
    async def open(
        cls,
        transport: Transport,
        *,
        name: str,
        directory: str = "",
        tolerate_s: float = 60.0,
        connect_s: float = 30.0,
        program: Callable[[System], Awaitable[Path]],
        on_open: Callable[[Stream], None] | None = None,
        deadline: Deadline = NEVER,
    ) -> Link:
        """Connect. `directory` is the inventory's, `on_open` gets each stream that the agent opens (and must close it).

        Raises the `HostError` that says why there is no connection, `DeadlineError`.
        """
        raise NotImplementedError

    async def request(self, head: Mapping[str, Any], *fields: bytes) -> Stream:
        """Open a stream with that head and those fields (argv, then variables). During a cut it just waits its turn."""
        raise NotImplementedError

    async def close(self) -> None:
        """End the session: the agent ends what still runs there, and itself; waits shortly for that."""
        raise NotImplementedError
