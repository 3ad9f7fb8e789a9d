"""The recorded conversation, read and written by the client's side; agent/internal/wire has the agent's test."""

from __future__ import annotations

import pytest

from remote_runner.connection.frames import Decoder, decode_message, encode_message, header
from tests.protocol import recorded


@pytest.mark.parametrize("side", ["client", "agent"])
def test_frames_read_and_write_as_they_were_recorded(side: str) -> None:
    frames = recorded()[side]
    data = b"".join(bytes.fromhex(frame["bytes"]) for frame in frames)
    decoder = Decoder()
    decoded = [frame for at in range(0, len(data), 7) for frame in decoder.feed(data[at : at + 7])]
    assert len(decoded) == len(frames)
    for frame, (kind, lane, stream, number, payload) in zip(frames, decoded, strict=True):
        assert (chr(kind), lane, stream, number) == (frame["kind"], frame["lane"], frame["stream"], frame["number"])
        assert bytes(payload).hex() == frame["payload"]
        written = header(kind, lane, stream, number, len(payload)) + bytes(payload)
        assert written.hex() == frame["bytes"]


@pytest.mark.parametrize("side", ["client", "agent"])
def test_messages_mean_what_was_meant(side: str) -> None:
    with_messages = [frame for frame in recorded()[side] if "head" in frame]
    assert with_messages
    for frame in with_messages:
        message = decode_message(bytes.fromhex(frame["payload"]))
        assert message.head == frame["head"]
        assert [field.hex() for field in message.fields] == frame["fields"]
        assert decode_message(encode_message(message.head, message.fields)) == message


def test_it_has_every_kind_that_a_run_needs() -> None:
    both = recorded()
    assert {frame["kind"] for frame in both["client"]} >= set("HOMDEXB")
    assert {frame["kind"] for frame in both["agent"]} >= set("MDEX")
