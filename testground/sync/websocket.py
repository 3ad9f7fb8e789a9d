"""WebSocket (RFC 6455) without I/O, as much as the sync service and its client need: no extensions.

The library `websockets` does all of it and more, and is what the tests have at the other end. An instance opens one
connection and asks for one number: importing the library costs it 45 ms of processor time, this 2 ms. The embedded
service takes 15 us for a request; on the library's server and a task for each client it took 32 to 39.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_CONTINUATION = 0x0
_DATA, _CONTROL = frozenset({TEXT, BINARY, _CONTINUATION}), frozenset({CLOSE, PING, PONG})
_FINAL, _RESERVED, _OPCODE = 0x80, 0x70, 0x0F
_MASKED, _LENGTH = 0x80, 0x7F
_CONTROL_LIMIT_BYTES = 125
_MASK_BYTES = 4

NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_CODE, TOO_BIG = 1000, 1001, 1002, 1005, 1009

_HEAD_LIMIT_BYTES = 16 * 1024
_HEAD_END = b"\r\n\r\n"
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocketError(Exception):
    """The other end sent what is no WebSocket, or more than is read; a `code` to close the connection with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of an HTTP request or response; the names of its fields in lower case."""

    first_line: str
    fields: Mapping[str, str]

    def has_token(self, name: str, token: str) -> bool:
        """Whether a field that holds a list of words holds this one."""
        return token in (word.strip().lower() for word in self.fields.get(name, "").split(","))


def take_head(buffer: bytearray) -> Head | None:
    """The head at the start of what has come, taken out of it; None until it is whole.

    Raises WebSocketError for what is too long to be one.
    """
    end = buffer.find(_HEAD_END)
    if end > _HEAD_LIMIT_BYTES or (end < 0 and len(buffer) > _HEAD_LIMIT_BYTES):
        raise WebSocketError(PROTOCOL_ERROR, "a head of more than 16 KiB")
    if end < 0:
        return None
    first_line, *lines = buffer[:end].decode("latin-1").split("\r\n")
    del buffer[: end + len(_HEAD_END)]
    fields: dict[str, str] = {}
    for line in lines:
        name, _, text = line.partition(":")
        name, text = name.strip().lower(), text.strip()
        fields[name] = f"{fields[name]}, {text}" if name in fields else text
    return Head(first_line, fields)


def request_head(host: str, key: str) -> bytes:
    """What a client says first; `key` is 16 random bytes in base64."""
    lines = ("GET / HTTP/1.1", f"Host: {host}", *_UPGRADE, f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13")
    return _lines(lines)


def response_head(request: Head) -> tuple[bool, bytes]:
    """Whether a service takes the client that said this, and what it answers."""
    method, _, _ = request.first_line.partition(" ")
    key = request.fields.get("sec-websocket-key", "")
    is_upgrade = request.has_token("upgrade", "websocket") and request.has_token("connection", "upgrade")
    if method == "GET" and is_upgrade and key and request.fields.get("sec-websocket-version") == "13":
        return True, _lines(("HTTP/1.1 101 Switching Protocols", *_UPGRADE, f"Sec-WebSocket-Accept: {_accept(key)}"))
    refusal = ("HTTP/1.1 426 Upgrade Required", "Sec-WebSocket-Version: 13", "Connection: close", "Content-Length: 0")
    return False, _lines(refusal)


def check_response(response: Head, key: str) -> None:
    """Raises WebSocketError unless this answers the client's request with that key."""
    version, _, rest = response.first_line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest.startswith("101"):
        raise WebSocketError(PROTOCOL_ERROR, f"it answered {response.first_line[:100]!r}")
    if not response.has_token("upgrade", "websocket") or response.fields.get("sec-websocket-accept") != _accept(key):
        raise WebSocketError(PROTOCOL_ERROR, "it answered with another key than was asked for")


_UPGRADE = ("Upgrade: websocket", "Connection: Upgrade")


def _lines(lines: tuple[str, ...]) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _accept(key: str) -> str:
    digest = hashlib.sha1((key + _GUID).encode("latin-1"), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def frame(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """One frame with all of a message; a client masks it with 4 random bytes."""
    size, masked = len(payload), _MASKED if mask else 0
    if size <= _CONTROL_LIMIT_BYTES:
        head = bytes((_FINAL | opcode, masked | size))
    elif size < 2**16:
        head = bytes((_FINAL | opcode, masked | 126)) + size.to_bytes(2)
    else:
        head = bytes((_FINAL | opcode, masked | 127)) + size.to_bytes(8)
    return head + mask + _mask(payload, mask) if mask else head + payload


def close_payload(code: int, reason: str = "") -> bytes:
    """What a close frame holds; of a reason as much as there is space for."""
    return code.to_bytes(2) + reason.encode()[: _CONTROL_LIMIT_BYTES - 2].decode("utf-8", "ignore").encode()


def close_reason(payload: bytes) -> tuple[int, str]:
    """Code and reason of a close frame; `NO_CODE` where it names none."""
    if len(payload) < 2:
        return NO_CODE, ""
    return int.from_bytes(payload[:2]), payload[2:].decode("utf-8", "replace")


def _mask(payload: bytes, mask: bytes) -> bytes:
    """The payload masked, or unmasked: as one large number, since a loop over its bytes costs a hundred times that."""
    size = len(payload)
    repeated = (mask * (size // _MASK_BYTES + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")


class FrameReader:
    """Messages and control frames out of bytes as they come; `masked` as those of a client are, and must be."""

    def __init__(self, *, masked: bool, limit_bytes: int) -> None:
        self._masked, self._limit_bytes = masked, limit_bytes
        self._buffer = bytearray()
        self._message: bytearray | None = None
        self._opcode = _CONTINUATION

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of what is whole now: messages (TEXT, BINARY), CLOSE, PING, PONG.

        Raises WebSocketError, after which nothing more can be read.
        """
        self._buffer += data
        while (found := self._next_frame()) is not None:
            is_final, opcode, payload = found
            if opcode in _CONTROL or (self._message is None and is_final and opcode != _CONTINUATION):
                yield opcode, payload
            elif (self._message is None) == (opcode == _CONTINUATION):
                raise WebSocketError(PROTOCOL_ERROR, "a fragment out of order")
            else:
                if self._message is None:
                    self._message, self._opcode = bytearray(), opcode
                self._message += payload
                if is_final:
                    message, self._message = bytes(self._message), None
                    yield self._opcode, message

    def _next_frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second, start = buffer[0], buffer[1], 2
        opcode, size = first & _OPCODE, second & _LENGTH
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start])
        self._check(first, second, opcode, size)
        if self._masked:
            start += _MASK_BYTES
        end = start + size
        if len(buffer) < end:
            return None
        payload = bytes(buffer[start:end])
        if self._masked:
            payload = _mask(payload, bytes(buffer[start - _MASK_BYTES : start]))
        del buffer[:end]
        return bool(first & _FINAL), opcode, payload

    def _check(self, first: int, second: int, opcode: int, size: int) -> None:
        if first & _RESERVED or (opcode not in _DATA and opcode not in _CONTROL):
            raise WebSocketError(PROTOCOL_ERROR, "a frame of an unknown kind")
        if bool(second & _MASKED) != self._masked:
            raise WebSocketError(PROTOCOL_ERROR, "a frame without a mask" if self._masked else "a frame with a mask")
        if opcode in _CONTROL:
            if size > _CONTROL_LIMIT_BYTES or not first & _FINAL:
                raise WebSocketError(PROTOCOL_ERROR, "a control frame that is too long")
        elif size + (0 if self._message is None else len(self._message)) > self._limit_bytes:
            raise WebSocketError(TOO_BIG, f"read limited at {self._limit_bytes + 1} bytes")
