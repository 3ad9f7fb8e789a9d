"""What a launcher sends, read from bytes; exec-go/ writes them in tests/integration/test_broker.py."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_runner.broker.place import BrokerPlace
from remote_runner.broker.protocol import (
    HEAD_BYTES,
    MAGIC,
    MOST_BYTES,
    BrokerProtocolError,
    Request,
    body_bytes,
    parse_request,
)

NAMES = st.binary(min_size=1, max_size=8).filter(lambda text: not set(text) & set(b"=\0"))
VALUES = st.binary(max_size=30).filter(lambda text: 0 not in text)


@given(st.integers(0, 0o777), VALUES, st.dictionaries(NAMES, VALUES, max_size=5))
def test_any_bytes_of_variables_and_directory_are_kept(
    umask: int, directory: bytes, environ: dict[bytes, bytes]
) -> None:
    fields = [b"%o" % umask, directory, *(name + b"=" + value for name, value in environ.items())]
    body = b"".join(field + b"\0" for field in fields)
    decoded = {os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()}
    request = Request(umask, os.fsdecode(directory), decoded)
    assert parse_request(body) == request
    assert parse_request(request.encode()[HEAD_BYTES:]) == request
    assert body_bytes(request.encode()[:HEAD_BYTES]) == len(request.encode()) - HEAD_BYTES


@given(st.binary(max_size=60))
def test_what_is_no_request_is_refused_and_nothing_else_happens(body: bytes) -> None:
    try:
        parse_request(body)
    except BrokerProtocolError:
        return
    assert body.endswith(b"\0")


@pytest.mark.parametrize("body", [b"", b"\0", b"22\0", b"22\0/", b"9\0/\0", b"22\0/\0NAME\0", b"22\0/\0A=1"])
def test_broken_requests(body: bytes) -> None:
    with pytest.raises(BrokerProtocolError):
        parse_request(body)


def test_a_head_says_how_much_follows() -> None:
    assert body_bytes(MAGIC + struct.pack(">I", 77)) == 77
    for head in (b"rrw0" + struct.pack(">I", 77), MAGIC + struct.pack(">I", MOST_BYTES + 1), b"\xff" * HEAD_BYTES):
        with pytest.raises(BrokerProtocolError, match="a request begins with"):
            body_bytes(head)


def test_the_places_are_those_of_the_launcher() -> None:
    place = BrokerPlace(Path("/run/rr/broker/0123"))
    assert (place.log, place.lock) == (Path("/run/rr/broker/0123.log"), Path("/run/rr/locks/broker-0123"))
