"""Frames and messages: out of any pieces the same, and nothing that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_runner.connection import frames
from remote_runner.connection.frames import BreachError, Decoder, decode_message, encode_message, header

NUMBERS = st.integers(0, (1 << 64) - 1)
FRAMES = st.lists(
    st.tuples(
        st.just(frames.DATA), st.integers(0, 255), st.integers(0, (1 << 32) - 1), NUMBERS, st.binary(max_size=300)
    ),
    max_size=20,
)


@given(FRAMES, st.lists(st.integers(1, 400), max_size=200))
def test_frames_come_out_of_any_pieces_as_they_went_in(sent: list[frames.Frame], cuts: list[int]) -> None:
    wire = b"".join(header(*frame[:4], len(frame[4])) + frame[4] for frame in sent)
    decoder, came, start = Decoder(), [], 0
    for size in [*cuts, len(wire)]:
        buffer = bytearray(wire[start : start + size])
        came += decoder.feed(memoryview(buffer))
        buffer[:] = bytes(len(buffer))  # the next bytes come into the same memory
        start += size
    assert came == sent


def test_a_frame_is_eighteen_bytes_and_a_payload() -> None:
    wire = header(frames.DATA, 1, 0x01020304, 5, 2) + b"hi"
    assert wire == bytes.fromhex("00000002 44 01 01020304 0000000000000005") + b"hi"
    assert len(wire) == frames.HEADER_BYTES + 2


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (frames.DATA, frames.MOST_DATA_BYTES + 1),
        (frames.MESSAGE, frames.MOST_PAYLOAD_BYTES + 1),
        (frames.ACK, 9),
        (frames.END, 1),
        (ord("?"), 0),
        (0, 0),
    ],
)
def test_what_is_no_frame_is_refused_by_its_header(kind: int, size: int) -> None:
    with pytest.raises(BreachError):
        Decoder().feed(header(kind, 0, 1, 1, size))


@given(st.binary(max_size=200))
def test_noise_is_refused_or_waits_for_more(noise: bytes) -> None:
    decoder = Decoder()
    try:
        decoder.feed(noise)
    except BreachError:
        return


HEADS = st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text()))
FIELDS = st.lists(st.binary().filter(lambda field: b"\0" not in field)).map(tuple)


@pytest.mark.slow
@given(HEADS, FIELDS)
def test_messages_come_out_as_they_went_in(head: dict[str, Any], fields: tuple[bytes, ...]) -> None:
    assert decode_message(encode_message(head, fields)) == (head, fields)


def test_a_message_is_json_and_fields_behind_zero_bytes() -> None:
    assert encode_message({"verb": "run"}, (b"a", b"", b"\xff")) == b'{"verb":"run"}\0a\0\0\xff'
    with pytest.raises(ValueError, match="zero byte"):
        encode_message({}, (b"\0",))
    with pytest.raises(ValueError, match="at most"):
        encode_message({}, (bytes(1) * 0 + b"x" * frames.MOST_PAYLOAD_BYTES,))


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"1", b"{", b'{"a":NaN}', b'{"a":' + b"9" * 5000 + b"}", b"[" * 100_000, json.dumps("x").encode()],
)
def test_what_is_no_object_is_a_breach(text: bytes) -> None:
    with pytest.raises(BreachError):
        decode_message(text)
