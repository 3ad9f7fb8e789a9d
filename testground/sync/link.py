"""A client's connection to the sync service: blocking, one thread reads, any may send."""

from __future__ import annotations

import base64
import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Self

from testground.sync import websocket
from testground.sync.protocol import endpoint
from testground.sync.websocket import WebSocketError

# A cable pulled for a minute is survived (TCP needs up to twice the outage), a dead peer noticed within three.
PING_INTERVAL_S = 30.0
PING_TIMEOUT_S = 150.0
# A message of 1 MiB, which the embedded service takes, comes back quoted twice: at worst four times as long.
_LIMIT_BYTES = 2**22 + 2**10
_READ_BYTES = 64 * 1024


class Link:
    """An open WebSocket connection; made by `open`.

    Whoever iterates over `messages` owns the socket, and closes it when they end. Afterwards `code` and `reason` are
    those of the closing that was received; None and "" where there was none.
    """

    def __init__(self, connected: socket.socket, early: bytes) -> None:
        self._socket = connected
        self._early = early
        self._sending = threading.Lock()
        self._has_ended = False
        self.code: int | None = None
        self.reason = ""

    @classmethod
    def open(cls, host: str, port: int, timeout_s: float) -> Self:
        """Connect and shake hands within `timeout_s`, once and without retries.

        Raises OSError (TimeoutError), and WebSocketError when something else answers.
        """
        until_s = time.monotonic() + timeout_s
        connected = socket.create_connection((host, port), timeout_s)
        try:
            early = _shake_hands(connected, endpoint(host, port), until_s)
        except BaseException:
            connected.close()
            raise
        return cls(connected, early)

    def send(self, text: str) -> None:
        """Send a message. Raises OSError when the connection has ended."""
        self._send(websocket.TEXT, text.encode())

    def end(self) -> None:
        """Tell the service that this is the end; it answers, and `messages` ends."""
        self._has_ended = True
        with contextlib.suppress(OSError):
            self._send(websocket.CLOSE, websocket.close_payload(websocket.NORMAL))

    def cut(self) -> None:
        """End the connection without a closing frame; wakes readers and senders."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def messages(self) -> Iterator[bytes]:
        """The messages that come, until the connection ends.

        Raises WebSocketError for what is no message.
        """
        reader = websocket.FrameReader(masked=False, limit_bytes=_LIMIT_BYTES)
        data = self._early
        try:
            while True:
                for opcode, payload in reader.feed(data):
                    if opcode == websocket.CLOSE:
                        self.code, self.reason = websocket.close_reason(payload)
                        if not self._has_ended:
                            self._send(websocket.CLOSE, payload)
                        return
                    if opcode == websocket.PING:
                        self._send(websocket.PONG, payload)
                    elif opcode != websocket.PONG:
                        yield payload
                data = self._receive()
                if not data:
                    return
        except OSError:
            return  # without a word
        finally:
            self.cut()
            self._socket.close()

    def _receive(self) -> bytes:
        """What has come; b"" at the end, which a service is at as well that answers no ping."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        # Looks are counted and not seconds: in these this process may have been stopped.
        for _ in range(1 + round(PING_TIMEOUT_S / PING_INTERVAL_S)):
            if waiting.poll(PING_INTERVAL_S * 1000):
                return self._socket.recv(_READ_BYTES)
            self._ping()
        return b""

    def _ping(self) -> None:
        """Ask for a sign of life, unless the socket is full: waiting here would keep a dead service unnoticed."""
        if self._sending.acquire(blocking=False):
            try:
                with contextlib.suppress(BlockingIOError):
                    self._socket.send(websocket.frame(websocket.PING, b"", os.urandom(4)), socket.MSG_DONTWAIT)
            finally:
                self._sending.release()

    def _send(self, opcode: int, payload: bytes) -> None:
        frame = websocket.frame(opcode, payload, os.urandom(4))
        with self._sending:
            self._socket.sendall(frame)


def _shake_hands(connected: socket.socket, host: str, until_s: float) -> bytes:
    """Open the WebSocket; returns what has come behind the service's answer."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    connected.sendall(websocket.request_head(host, key))
    buffer = bytearray()
    while (head := websocket.take_head(buffer)) is None:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connected.settimeout(left_s)
        data = connected.recv(_READ_BYTES)
        if not data:
            raise WebSocketError(websocket.PROTOCOL_ERROR, f"it hung up after {bytes(buffer[:100])!r}")
        buffer += data
    websocket.check_response(head, key)
    connected.settimeout(None)
    return bytes(buffer)
