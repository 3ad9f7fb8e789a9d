"""One client of the embedded sync service: from the bytes of its socket to frames for the core, and back."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterable

from testground.sync import websocket
from testground.sync.core import Connection, SyncCore
from testground.sync.protocol import Close

LIMIT_BYTES = 2**20
"""The longest frame that is read: 32 times what the official service reads, and a bound on what a client can fill."""
CLOSE_TIMEOUT_S = 2.0
"""So long a client may take to answer that it is closed."""
WRITE_TIMEOUT_S = 10.0
"""So long a client may take nothing of what it is sent; the official service gives it as much for a message."""
_OPEN_TIMEOUT_S = 60.0
_TURN_BYTES = 64 * 1024  # about so much is handed to a socket before other clients have their turn


class Peer:
    """A client's connection, from its first byte to its last. Its owner calls `read`, `resume` and `write`.

    `interest` says what to wait for, `until_s` (of the monotonic clock) when to give the client up. Once `has_ended` is
    true, it is to be dropped.
    """

    def __init__(self, connected: socket.socket, core: SyncCore, *, write_timeout_s: float = WRITE_TIMEOUT_S) -> None:
        connected.setblocking(False)
        with contextlib.suppress(OSError):  # macOS, where it is gone already
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.port = 0  # of the client's end
        with contextlib.suppress(OSError):  # it is gone already
            self.port = connected.getpeername()[1]
        self.connection = core.connect()
        self.until_s: float | None = time.monotonic() + _OPEN_TIMEOUT_S
        self.has_ended = False
        self._core = core
        self._write_timeout_s = write_timeout_s
        self._head: bytearray | None = bytearray()  # until hands are shaken
        self._reader = websocket.FrameReader(masked=True, limit_bytes=LIMIT_BYTES)
        self._out = bytearray()
        self._is_full = False  # the socket takes no more now
        self._has_more = False  # in the core, for the next turn
        self._is_closing = False  # the closing frame is on its way, or there will be none: nothing comes after it
        self._is_deaf = False  # what still comes is thrown away
        self._is_leaving = False  # the client has said or sent its last

    @property
    def interest(self) -> int:
        """The events of `selectors` to wait for."""
        # A client that does not read is read again once it has taken some answers; its kernel buffers meanwhile.
        is_heard = not self._is_leaving and (self._is_deaf or not self._core.is_behind(self.connection))
        reading = selectors.EVENT_READ if is_heard else 0
        return reading | (selectors.EVENT_WRITE if self._is_full or self._has_more else 0)

    def read(self, buffer: memoryview) -> Iterable[Connection]:
        """Take what has come, by way of `buffer`; returns whom to `write` to because of it."""
        woken = {self.connection: None}
        try:
            count = self.socket.recv_into(buffer)
        except BlockingIOError:
            return woken
        except OSError:
            self.has_ended = True
            return woken
        if count == 0:
            self._leave()
        elif not self._is_deaf:
            data = buffer[:count] if self._head is None else self._shake_hands(self._head, buffer[:count])
            try:
                for opcode, payload in self._reader.feed(data):
                    if opcode in (websocket.TEXT, websocket.BINARY):
                        for connection in self._core.receive(self.connection, payload):
                            woken[connection] = None
                    elif opcode == websocket.PING and not self._is_full:  # who reads nothing waits for no pong
                        self._out += websocket.frame(websocket.PONG, payload)
                    elif opcode == websocket.CLOSE:
                        self._take()
                        if not self._is_closing:
                            self._out += websocket.frame(websocket.CLOSE, payload)
                        self._leave()
                        break
            except websocket.WebSocketError as error:
                self._is_deaf = True
                self._core.end(self.connection, Close(error.code, error.reason))
        return woken

    def resume(self) -> None:
        """The socket takes something again."""
        self._is_full = False

    def write(self) -> None:
        """Hand the socket what the core has for this client, as far as it takes it now."""
        if self._is_full or self.has_ended:
            return
        self._take()
        sent = 0
        try:
            if self._out:
                sent = self.socket.send(self._out)
                del self._out[:sent]
            if not self._out and self._is_closing and self._is_deaf and not self._is_leaving:
                # Its answer cannot be told from what it still sends of a frame: the end of the stream has to do.
                self.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self.has_ended = True
        self._is_full = bool(self._out)
        if self._head is None and not self._is_closing:
            if not self._out:
                self.until_s = None
            elif sent or self.until_s is None:
                self.until_s = time.monotonic() + self._write_timeout_s
        self.has_ended = self.has_ended or (self._is_leaving and not self._out)

    def end(self, close: Close) -> None:
        """End the connection from this side, after what was answered already."""
        if self._head is None:
            self._core.end(self.connection, close)
            self.write()
        else:
            self.has_ended = True

    def _take(self) -> None:
        """Put what the core has for this client behind what is to be sent, as much as one turn may have."""
        self._has_more = False
        while not self._is_closing:
            if len(self._out) > _TURN_BYTES:
                self._has_more = True
                return
            found = self._core.take(self.connection)
            if found is None:
                return
            if isinstance(found, Close):
                payload = websocket.close_payload(found.code, found.reason)
                self._out += websocket.frame(websocket.CLOSE, payload)
                self._is_closing = True
                self.until_s = time.monotonic() + CLOSE_TIMEOUT_S
            else:
                self._out += websocket.frame(websocket.TEXT, found.encode())

    def _leave(self) -> None:
        self._is_deaf = self._is_closing = self._is_leaving = True
        self._has_more = False
        self.until_s = time.monotonic() + CLOSE_TIMEOUT_S

    def _shake_hands(self, head: bytearray, data: memoryview) -> bytes:
        """Answer the client's first lines once they are here; returns what has come behind them."""
        head += data
        try:
            request = websocket.take_head(head)
        except websocket.WebSocketError:
            self._leave()
            return b""
        if request is None:
            return b""
        is_taken, answer = websocket.response_head(request)
        self._out += answer
        if not is_taken:
            self._leave()
            return b""
        self._head, self.until_s = None, None
        return bytes(head)
