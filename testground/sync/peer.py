"""One client of the embedded sync service: from the bytes of its socket to frames for the core, and back."""

from __future__ import annotations

import asyncio

from testground.sync import websocket
from testground.sync.core import Connection, SyncCore
from testground.sync.protocol import Close

LIMIT_BYTES = 2**20
"""The longest frame that is read: 32 times what the official service reads, and a bound on what a client can fill."""
CLOSE_TIMEOUT_S = 2.0
"""So long a client may take to answer that it is closed."""
_OPEN_TIMEOUT_S = 60.0
_TURN_BYTES = 64 * 1024  # about so much is handed to a socket before other clients have their turn


class Peer(asyncio.BufferedProtocol):
    """A client's connection, from its first byte to its last. Enters itself into `peers`, and takes itself out.

    A client has no task and no queue of its own: what comes at once is answered at once, with one write to each socket.
    Nor a buffer: all of an event loop read into `buffer`, one after the other. (Where a protocol has none, asyncio
    asks for 256 KiB at each read and gives most of it back: 37 us for a signal_entry instead of 16, whenever malloc
    maps and unmaps such pieces.)
    """

    def __init__(self, core: SyncCore, peers: dict[Connection, Peer], buffer: bytearray) -> None:
        self._core, self._peers, self._buffer = core, peers, memoryview(buffer)
        self._connection = core.connect()
        self._loop = asyncio.get_running_loop()
        self._head: bytearray | None = bytearray()  # until hands are shaken
        self._reader = websocket.FrameReader(masked=True, limit_bytes=LIMIT_BYTES)
        self._is_full = False  # the socket takes no more now
        self._is_waiting = False  # for its next turn
        self._is_closing = False  # the closing frame is sent
        self._is_deaf = False  # nothing more is read
        self.gone = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peers[self._connection] = self
        self._timer = self._loop.call_later(_OPEN_TIMEOUT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._core.disconnect(self._connection)
        del self._peers[self._connection]
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self.pump()

    def eof_received(self) -> None:
        self._end_soon()  # asyncio closes the transport now, once it has sent everything

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_deaf:
            return
        data: bytes | memoryview = self._buffer[:nbytes]
        if self._head is not None:
            data = self._shake_hands(self._head, data)
        woken: dict[Connection, None] = {}
        try:
            for opcode, payload in self._reader.feed(data):
                if opcode in (websocket.TEXT, websocket.BINARY):
                    for connection in self._core.receive(self._connection, payload):
                        woken[connection] = None
                elif opcode == websocket.PING:
                    self._transport.write(websocket.frame(websocket.PONG, payload))
                elif opcode == websocket.CLOSE:
                    self._answer_close(payload)
                    break
        except websocket.WebSocketError as error:
            self._is_deaf = True
            self._core.end(self._connection, Close(error.code, error.reason))
            woken[self._connection] = None
        for connection in woken:
            self._peers[connection].pump()

    def pump(self) -> None:
        """Hand the socket what the core has for this client, as far as it takes it now."""
        if self._is_full or self._is_waiting or self._is_closing or self._transport.is_closing():
            return
        frames: list[bytes] = []
        size_bytes = 0
        while (found := self._core.take(self._connection)) is not None:
            if isinstance(found, Close):
                payload = websocket.close_payload(found.code, found.reason)
                frames.append(websocket.frame(websocket.CLOSE, payload))
                self._is_closing = True
                break
            frames.append(websocket.frame(websocket.TEXT, found.encode()))
            size_bytes += len(frames[-1])
            if size_bytes > _TURN_BYTES:
                self._is_waiting = True
                self._loop.call_soon(self._pump_on)
                break
        if frames:
            self._transport.write(b"".join(frames))
        if self._is_closing:
            self._end_soon()
            if self._is_deaf:
                # Its answer cannot be told from what it still sends of a frame: the end of the stream has to do.
                self._transport.write_eof()

    def end(self, close: Close) -> None:
        """End the connection from this side, after what was answered already."""
        if self._head is not None:
            self._transport.abort()
            return
        self._core.end(self._connection, close)
        self.pump()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def _shake_hands(self, head: bytearray, data: bytes | memoryview) -> bytes:
        """Answer the client's first lines once they are here; returns what has come behind them."""
        head += data
        try:
            request = websocket.take_head(head)
        except websocket.WebSocketError:
            self._is_deaf = True
            self._transport.close()
            return b""
        if request is None:
            return b""
        is_taken, answer = websocket.response_head(request)
        self._transport.write(answer)
        if not is_taken:
            self._is_deaf = True
            self._transport.close()
            return b""
        self._timer.cancel()
        self._head = None
        return bytes(head)

    def _answer_close(self, payload: bytes) -> None:
        self._is_deaf = True
        if not self._is_closing:
            self.pump()
            self._is_closing = True
            self._transport.write(websocket.frame(websocket.CLOSE, payload))
            self._end_soon()
        self._transport.close()

    def _pump_on(self) -> None:
        self._is_waiting = False
        self.pump()

    def _end_soon(self) -> None:
        """Cut the client off, unless it takes what is still to come, and answers the closing, within a time."""
        self._timer.cancel()
        self._timer = self._loop.call_later(CLOSE_TIMEOUT_S, self._transport.abort)
