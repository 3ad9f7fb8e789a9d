"""Our WebSocket against RFC 6455: its examples, the library `websockets` at the other end, what breaks its rules."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from testground.sync import websocket
from testground.sync.websocket import FrameReader, WebSocketError, close_payload, close_reason, frame

LIMIT_BYTES = 70_000
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3


def read(data: bytes, *, masked: bool, piece_bytes: int = 2**20) -> list[tuple[int, bytes]]:
    reader = FrameReader(masked=masked, limit_bytes=LIMIT_BYTES)
    pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]
    return [found for piece in pieces for found in reader.feed(piece)]


def head_of(*lines: str) -> websocket.Head:
    head = websocket.take_head(bytearray("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"))
    assert head is not None
    return head


@pytest.mark.parametrize(
    ("data", "masked", "found"),
    [  # RFC 6455, 5.7
        ("81 05 48 65 6c 6c 6f", False, [(websocket.TEXT, b"Hello")]),
        ("81 85 37 fa 21 3d 7f 9f 4d 51 58", True, [(websocket.TEXT, b"Hello")]),
        ("01 03 48 65 6c 80 02 6c 6f", False, [(websocket.TEXT, b"Hello")]),
        ("89 05 48 65 6c 6c 6f", False, [(websocket.PING, b"Hello")]),
        ("8a 85 37 fa 21 3d 7f 9f 4d 51 58", True, [(websocket.PONG, b"Hello")]),
        ("01 03 48 65 6c 89 00 80 02 6c 6f", False, [(websocket.PING, b""), (websocket.TEXT, b"Hello")]),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 3, 100])
def test_the_examples_of_the_rfc_are_read(
    data: str, masked: bool, found: list[tuple[int, bytes]], piece_bytes: int
) -> None:
    assert read(bytes.fromhex(data), masked=masked, piece_bytes=piece_bytes) == found


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50), st.booleans())
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    payloads: list[bytes], piece_bytes: int, masked: bool
) -> None:
    sent = b"".join(frame(websocket.BINARY, payload, os.urandom(4) if masked else b"") for payload in payloads)
    assert read(sent, masked=masked, piece_bytes=piece_bytes) == [(websocket.BINARY, payload) for payload in payloads]


@pytest.mark.parametrize("size_bytes", [0, 1, 125, 126, 127, 65_535, 65_536, LIMIT_BYTES])
def test_frames_are_the_librarys_byte_for_byte(size_bytes: int) -> None:
    payload = os.urandom(size_bytes)
    theirs = Frame(Opcode.TEXT, payload)
    assert frame(websocket.TEXT, payload) == theirs.serialize(mask=False)
    assert read(theirs.serialize(mask=True), masked=True) == [(websocket.TEXT, payload)]


def test_a_message_may_be_as_long_as_the_limit_and_no_longer() -> None:
    with pytest.raises(WebSocketError, match="read limited at 70001 bytes") as raised:
        read(frame(websocket.TEXT, bytes(LIMIT_BYTES + 1), b"mask")[:20], masked=True)  # known before it is here
    assert raised.value.code == 1009
    half = Frame(Opcode.TEXT, bytes(LIMIT_BYTES // 2), fin=False).serialize(mask=True)
    with pytest.raises(WebSocketError, match="read limited"):
        read(half + Frame(Opcode.CONT, bytes(LIMIT_BYTES // 2 + 1)).serialize(mask=True), masked=True)


@pytest.mark.parametrize(
    ("data", "masked", "reason"),
    [
        ("81 05 48 65 6c 6c 6f", True, "without a mask"),
        ("81 80 00 00 00 00", False, "with a mask"),
        ("c1 00", False, "unknown kind"),
        ("83 00", False, "unknown kind"),
        ("09 00", False, "control frame"),
        ("89 7e 00 7e", False, "control frame"),
        ("80 00", False, "out of order"),
        ("01 00 81 00", False, "out of order"),
    ],
)
def test_what_breaks_the_rules_ends_the_reading(data: str, masked: bool, reason: str) -> None:
    with pytest.raises(WebSocketError, match=reason) as raised:
        read(bytes.fromhex(data), masked=masked)
    assert raised.value.code == 1002


def test_a_closing_says_code_and_reason_as_far_as_there_is_space() -> None:
    assert close_reason(close_payload(1007, "why")) == (1007, "why")
    assert close_reason(b"") == (1005, "")
    payload = close_payload(1000, "é" * 100)
    assert len(payload) <= 125
    assert close_reason(payload) == (1000, "é" * 61)


def test_hands_are_shaken_as_in_the_rfc() -> None:
    request = head_of(*websocket.request_head("localhost:5050", KEY).decode().split("\r\n")[:-2])
    is_taken, answer = websocket.response_head(request)
    assert is_taken
    assert f"\r\nSec-WebSocket-Accept: {ACCEPT}\r\n".encode() in answer
    websocket.check_response(head_of(*answer.decode().split("\r\n")[:-2]), KEY)
    with pytest.raises(WebSocketError, match="another key"):
        websocket.check_response(head_of(*answer.decode().split("\r\n")[:-2]), KEY[::-1])


def test_the_librarys_client_is_taken_and_its_server_takes_ours() -> None:
    client = ClientProtocol(parse_uri("ws://localhost:5050"))
    client.send_request(client.connect())
    request = websocket.take_head(bytearray(b"".join(client.data_to_send())))
    assert request is not None
    is_taken, answer = websocket.response_head(request)
    assert is_taken
    client.receive_data(answer)
    assert [type(event) for event in client.events_received()] == [Response]
    assert client.state is State.OPEN

    server = ServerProtocol()
    server.receive_data(websocket.request_head("localhost:5050", KEY))
    (asked,) = server.events_received()
    assert isinstance(asked, Request)
    server.send_response(server.accept(asked))
    buffer = bytearray(b"".join(server.data_to_send()) + b"behind it")
    response = websocket.take_head(buffer)
    assert response is not None
    websocket.check_response(response, KEY)
    assert buffer == b"behind it"


@pytest.mark.parametrize(
    "change",
    [
        ("GET / HTTP/1.1", "POST / HTTP/1.1"),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("Connection: Upgrade", "Connection: keep-alive"),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
        (f"Sec-WebSocket-Key: {KEY}", "X: y"),
    ],
)
def test_what_asks_for_no_websocket_is_refused(change: tuple[str, str]) -> None:
    asked = websocket.request_head("localhost", KEY).decode()
    assert change[0] in asked
    is_taken, answer = websocket.response_head(head_of(*asked.replace(*change).split("\r\n")[:-2]))
    assert not is_taken
    assert answer.startswith(b"HTTP/1.1 426 ")


def test_fields_are_read_whatever_their_case_and_how_often_they_come() -> None:
    head = head_of("GET / HTTP/1.1", "UPGRADE:WebSocket", "connection: keep-alive", "Connection:  Upgrade ")
    assert head.has_token("upgrade", "websocket")
    assert head.has_token("connection", "upgrade")
    assert not head.has_token("connection", "close")


def test_a_head_is_whole_or_not_yet_or_too_long() -> None:
    assert websocket.take_head(bytearray(b"GET / HTTP/1.1\r\nA: b\r\n")) is None
    for text in (b"x" * 20_000, b"x" * 20_000 + b"\r\n\r\n"):
        with pytest.raises(WebSocketError, match="16 KiB"):
            websocket.take_head(bytearray(text))
