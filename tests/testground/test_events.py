"""Events against the lines that sdk-go really wrote."""

from __future__ import annotations

import json

import pytest

from testground.events import (
    CrashEvent,
    Event,
    EventLine,
    FailureEvent,
    MessageEvent,
    StageEndEvent,
    StageStartEvent,
    StartEvent,
    SuccessEvent,
    UnknownEvent,
    encode_event,
    parse_line,
)
from tests.recordings import RECORDINGS


def _encoded(event: Event) -> bytes:
    return encode_event(event, ts_ns=5, group_id="g", run_id="r")


def test_every_recorded_event_line_reads_and_writes_back_to_the_same_bytes() -> None:
    kinds = set()
    for stdout in sorted(RECORDINGS.glob("local-exec/*/single/*/stdout")):
        for line in stdout.read_bytes().splitlines(keepends=True):
            if not line.startswith(b"{"):
                assert parse_line(line) is None
                continue
            found = parse_line(line)
            assert found is not None
            assert not isinstance(found.event, UnknownEvent)
            kinds.add(type(found.event))
            again = encode_event(found.event, ts_ns=found.ts_ns, group_id=found.group_id, run_id=found.run_id)
            assert again == line
    assert kinds == {MessageEvent, StartEvent, SuccessEvent, FailureEvent, CrashEvent}


@pytest.mark.parametrize(
    "event",
    [
        MessageEvent("fine"),
        StartEvent({"plan": "p", "params": {"a": "1"}, "instances": 2, "nothing": None, "list": [1, True]}),
        SuccessEvent("g"),
        FailureEvent("g", "why"),
        CrashEvent("g", "why", "where\n\tat"),
        StageStartEvent("push", "g"),
        StageEndEvent("push", "g"),
    ],
)
def test_an_event_survives_writing_and_reading(event: Event) -> None:
    assert parse_line(_encoded(event)) == EventLine(5, "g", "r", event)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('q"\\', rb'"q\"\\"'),
        ("\n\r\t", rb'"\n\r\t"'),
        ("\b\f\x1b\x7f", b'"\\u0008\\u000c\\u001b\x7f"'),
        ("<a>&\u2028", '"<a>&\u2028"'.encode()),
        ("é🙂\ufffd", '"é🙂\ufffd"'.encode()),
        ("bad \udcff end", rb'"bad \ufffd end"'),
    ],
)
def test_text_is_escaped_as_the_go_sdk_does(text: str, written: bytes) -> None:
    line = _encoded(MessageEvent(text))
    assert b'{"message":' + written + b"}" in line
    assert line.count(b"\n") == 1
    json.loads(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b'{"not":"an event"}',
        b'{"ts":1}',
        b'{"ts":NaN,"event":{"success_event":{"group":"g"}}}',
        b'{"ts":1,"event":"success_event"}',
        b'{"ts":1,"event":{"success_event":{"group":7}}}',
        b'{"ts":1,"event":{"success_event":true}}',
        b'[{"ts":1,"event":{}}]',
        b'{"ts":1,"event":{"success_event":{"group":"g"}}} trailing',
        b"{" + b'"a":{' * 100_000,
    ],
)
def test_other_lines_are_no_events(line: bytes) -> None:
    assert parse_line(line) is None


def test_an_event_of_no_known_kind_is_a_value_of_its_own() -> None:
    found = parse_line(b'{"ts":3,"event":{"some_new_event":{"x":1}}}\r\n')
    assert found == EventLine(3, "", "", UnknownEvent(("some_new_event",)))
    assert parse_line(b'{"ts":3,"event":{}}') == EventLine(3, "", "", UnknownEvent(()))
    assert parse_line(b'{"ts":3,"event":null}') == EventLine(3, "", "", UnknownEvent(()))


@pytest.mark.parametrize("ts", [b"", b'"ts":"1",', b'"ts":1.5,', b'"ts":true,', b'"ts":null,'])
def test_an_event_counts_whatever_its_time_as_in_testground(ts: bytes) -> None:
    found = parse_line(b"{" + ts + b'"group_id":7,"event":{"success_event":{"group":"g"}}}')
    assert found == EventLine(0, "", "", SuccessEvent("g"))


def test_bytes_that_are_no_text_do_not_hide_an_event() -> None:
    found = parse_line(b'{"ts":3,"event":{"message_event":{"message":"\xff"}}}')
    assert found == EventLine(3, "", "", MessageEvent("\ufffd"))


@pytest.mark.parametrize("ts", ["9" * 400, "-" + "9" * 400, "9223372036854775808", "1e999"])
def test_a_time_that_no_clock_has_is_taken_for_none(ts: str) -> None:
    found = parse_line(b'{"ts":%s,"event":{"message_event":{"message":"m"}}}' % ts.encode())
    assert found is not None
    assert found.ts_ns == 0
