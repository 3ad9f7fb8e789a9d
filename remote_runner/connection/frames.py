"""Frames and messages of docs/protocol.md: parsing bytes into values, and back.

A frame is a plain tuple: a thousand instances pass through here, and a tuple costs a fifth of an object.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

PROTOCOL = 1

HEADER = struct.Struct(">IBBIQ")  # length, kind, lane, stream, number
HEADER_BYTES = HEADER.size
MOST_PAYLOAD_BYTES = 1 << 20
MOST_DATA_BYTES = 1 << 16

HELLO, ACK, PING, PONG, OPEN, MESSAGE, DATA, CREDIT, END, CLOSE, BYE = b"HAPQOMDCEXB"

# Every kind with its largest payload.
_MOST_BYTES = {
    HELLO: MOST_PAYLOAD_BYTES,
    ACK: 8,
    PING: 8,
    PONG: 8,
    OPEN: MOST_PAYLOAD_BYTES,
    MESSAGE: MOST_PAYLOAD_BYTES,
    DATA: MOST_DATA_BYTES,
    CREDIT: 4,
    END: 0,
    CLOSE: MOST_PAYLOAD_BYTES,
    BYE: 0,
}

Frame = tuple[int, int, int, int, bytes]
"""kind, lane, stream, number, payload"""


class BreachError(Exception):
    """The bytes received break this protocol; the text says how."""


class Message(NamedTuple):
    """A JSON object, and fields of bytes behind it (arguments, variables, paths)."""

    head: dict[str, Any]
    fields: tuple[bytes, ...] = ()


def header(kind: int, lane: int, stream: int, number: int, size: int) -> bytes:
    """The header of a payload of that many bytes."""
    return HEADER.pack(size, kind, lane, stream, number)


def encode_message(head: Mapping[str, Any], fields: tuple[bytes, ...] = ()) -> bytes:
    """A message as a payload. Raises `ValueError` for a field with a zero byte, and for what does not fit."""
    if any(b"\0" in field for field in fields):
        raise ValueError("a field holds a zero byte")
    payload = b"\0".join((_COMPACT.encode(head).encode(), *fields))
    if len(payload) > MOST_PAYLOAD_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes; at most {MOST_PAYLOAD_BYTES} can be sent")
    return payload


def decode_message(payload: bytes) -> Message:
    """The message in a payload. Raises `BreachError`."""
    text, *fields = payload.split(b"\0")
    return Message(decode_object(text), tuple(fields))


def decode_object(text: bytes) -> dict[str, Any]:
    """A JSON object as the protocol has it: no NaN, no numbers that Python would read for minutes."""
    try:
        value = _DECODER.decode(text.decode(errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise BreachError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise BreachError("a message is a JSON object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


# Made once: json.dumps and json.loads make one for each call that is not the plainest.
_COMPACT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


class Decoder:
    """Frames out of what comes in pieces."""

    def __init__(self) -> None:
        self._begun = b""  # a header that is not whole
        self._frame = (0, 0, 0, 0)  # the one whose payload comes in parts
        self._parts: list[bytes | memoryview] = []
        self._missing = 0

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """The frames that are whole by now. Raises `BreachError`."""
        frames: list[Frame] = []
        at = 0
        if self._missing:
            part = data[: self._missing]
            self._missing -= len(part)
            if self._missing:
                self._parts.append(bytes(part))
                return frames
            frames.append((*self._frame, b"".join((*self._parts, part))))
            self._parts.clear()
            at = len(part)
        elif self._begun:
            data = self._begun + data
        end = len(data)
        while end - at >= HEADER_BYTES:
            size, kind, lane, stream, number = HEADER.unpack_from(data, at)
            if size > _MOST_BYTES.get(kind, -1):
                raise BreachError(f"a frame of kind {kind} with {size} bytes")
            at += HEADER_BYTES
            after = at + size
            if after > end:
                self._frame, self._missing = (kind, lane, stream, number), after - end
                self._parts.append(bytes(data[at:]))
                at = end
                break
            frames.append((kind, lane, stream, number, bytes(data[at:after])))
            at = after
        self._begun = bytes(data[at:])
        return frames
