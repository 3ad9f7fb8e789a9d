"""An agent that a test plays: streams in memory, with what happened on them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, cast

from remote_runner.connection.frames import Message
from remote_runner.connection.link import Greeting, Link, Stream, StreamClosed
from remote_runner.errors import HostLostError
from remote_runner.inventory.systems import System

Play = Callable[["FakeStream"], Awaitable[None]]

GREETING = Greeting(
    agent="0123456789abcdef",
    epoch=1,
    received=0,
    base=PurePosixPath("/home/u/.cache/remote-runner"),
    uid=1000,
    user="u",
    system=System("x86_64", "linux"),
    hostname="dex",
    boot="boot",
    pid=4711,
    address="192.0.2.1",
)


class FakeStream:
    """Both ends of one stream: what the code under test calls, and `says`, `heard`, `data`, … for the test's agent."""

    def __init__(self, link: FakeLink, number: int, head: Mapping[str, Any], fields: tuple[bytes, ...] = ()) -> None:
        self.id = number
        self.head = dict(head)
        self.fields = fields
        self.granted: dict[int, int] = defaultdict(int)
        self.is_closed = asyncio.Event()
        self._link = link
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self._lanes: dict[int, asyncio.Queue[bytes | Exception]] = defaultdict(asyncio.Queue)
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._written: dict[int, asyncio.Queue[bytes]] = defaultdict(lambda: asyncio.Queue(4))
        self._end: Exception | None = None

    # --- the agent's end ---

    def says(self, **head: Any) -> None:
        self._messages.put_nowait(Message(head))

    def data(self, lane: int, *pieces: bytes, end: bool = True) -> None:
        for piece in (*pieces, b"") if end else pieces:
            self._lanes[lane].put_nowait(piece)

    def fails(self, kind: str = "", text: str = "", **more: Any) -> None:
        """Close the stream, with an error or plainly."""
        self._finish(StreamClosed(kind, text, more))

    def lose(self) -> None:
        """As when the link is given up."""
        self._finish(HostLostError("dex", "the connection is lost"))

    async def heard(self) -> dict[str, Any]:
        """The next message of the client."""
        return await self._sent.get()

    async def got(self, lane: int) -> bytes:
        """All that the client writes on a lane."""
        whole = bytearray()
        while piece := await self._written[lane].get():
            whole += piece
        return bytes(whole)

    def _finish(self, error: Exception) -> None:
        self._end = error
        self._messages.put_nowait(error)
        for lane in range(4):
            self._lanes[lane].put_nowait(b"" if isinstance(error, StreamClosed) else error)

    # --- the client's end ---

    async def send(self, head: Mapping[str, Any], *fields: bytes) -> None:
        if self._end is not None:
            raise self._end
        self._sent.put_nowait(dict(head))

    async def receive(self) -> Message:
        item = await self._messages.get()
        if isinstance(item, Exception):
            self._messages.put_nowait(item)
            raise item
        return item

    async def read(self, lane: int) -> bytes:
        item = await self._lanes[lane].get()
        if not item or isinstance(item, Exception):
            self._lanes[lane].put_nowait(item)
        if isinstance(item, Exception):
            raise item
        return item

    def grant(self, lane: int, size: int) -> None:
        self.granted[lane] += size

    async def write(self, lane: int, data: bytes, *, bulk: bool = False) -> None:
        putting = asyncio.ensure_future(self._written[lane].put(data))
        while not putting.done():
            await asyncio.wait({putting}, timeout=0.01)
            if self._end is not None and not putting.done():
                putting.cancel()
                raise self._end
        if self._end is not None:
            raise self._end

    async def end(self, lane: int) -> None:
        await self._written[lane].put(b"")

    async def close(self) -> None:
        if not self.is_closed.is_set():
            self.is_closed.set()
            if self._end is None:
                self.fails()

    @property
    def stream(self) -> Stream:
        """It as what it stands for."""
        return cast(Stream, self)

    async def wait_closed(self) -> None:
        await self.is_closed.wait()


class FakeLink:
    """A link whose agent is the function `play`, called for each request."""

    def __init__(self, play: Play) -> None:
        self.name = "dex"
        self.greeting = GREETING
        self.attempts = 1
        self.address = "192.0.2.1"
        self.lost = asyncio.get_running_loop().create_future()
        self.streams: list[FakeStream] = []
        self._play = play
        self._plays: list[asyncio.Future[None]] = []

    async def request(self, head: Mapping[str, Any], *fields: bytes) -> FakeStream:
        stream = FakeStream(self, 2 * len(self.streams) + 1, head, fields)
        self.streams.append(stream)
        self._plays.append(asyncio.ensure_future(self._play(stream)))
        return stream

    @property
    def link(self) -> Link:
        """It as what it stands for."""
        return cast(Link, self)

    async def close(self) -> None:
        for play in self._plays:
            if play.done():
                play.result()
            play.cancel()
