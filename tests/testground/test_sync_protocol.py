"""Wire forms of the sync protocol, on values."""

from __future__ import annotations

import json

import pytest

from testground.sync.protocol import (
    BadFrameError,
    Barrier,
    Publish,
    Request,
    Response,
    SignalEntry,
    Subscribe,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    events_key,
    run_of_key,
    state_key,
    topic_key,
)
from tests.recordings import RECORDINGS
from tests.testground.sync_replay import load, written_out

# Scenarios in which the recorder wrote what no SDK writes.
ODD = {"two-requests-in-one", "empty-id", "id-missing", "id-number", "not-json", "json-not-object", "unknown-field"}
NAMES = {"run": "RUN", "plan": "rec", "case": "rec"}


def test_our_requests_are_those_that_were_recorded() -> None:
    checked = 0
    for event in load(RECORDINGS / "sync-service.jsonl"):
        if event["way"] != "out" or event["scenario"] in ODD | {"payload-missing"} or isinstance(event["frame"], dict):
            continue
        frame = json.loads(written_out(event["frame"]))
        request = decode_request(json.dumps(frame))
        assert json.loads(encode_request(request)) == frame, event["scenario"]
        match request.action:
            case SignalEntry(key) | Barrier(key, _) if key:
                assert key == state_key(**NAMES, state=key.rpartition(":")[2])
            case Publish(key, _) | Subscribe(key) if key:
                assert key == topic_key(**NAMES, topic=key.rpartition(":")[2])
        checked += 1
    assert checked > 60


def test_every_recorded_response_is_written_as_it_was_read() -> None:
    for event in load(RECORDINGS / "sync-service.jsonl"):
        if event["way"] == "in":
            frame = written_out(event["frame"])
            assert encode_response(decode_response(frame)) == frame


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "null",
        "1",
        '"text"',
        '{"id":"0"} {"id":"1"}',
        '{"id":["0"]}',
        '{"id":"0","is_cancel":"yes"}',
        '{"id":"0","is_cancel":1}',
        '{"id":"0","signal_entry":"state"}',
        '{"id":"0","signal_entry":{"state":1}}',
        '{"id":"0","barrier":{"state":"s","target":"1"}}',
        '{"id":"0","barrier":{"state":"s","target":1.5}}',
        '{"id":"0","barrier":{"state":"s","target":2.0}}',
        '{"id":"0","barrier":{"state":"s","target":true}}',
        '{"id":"0","barrier":{"state":"s","target":9223372036854775808}}',
        '{"id":"0","publish":{"topic":"t","payload":NaN}}',
        '{"id":"0","publish":{"topic":"t","payload":-Infinity}}',
        '{"id":"0","publish":{"topic":"t","payload":1e400}}',
        '{"id":"0","publish":{"topic":"t","payload":' + "9" * 5000 + "}}",
        '{"id":"0","publish":{"topic":"t","payload":' + "[" * 16000 + "]" * 16000 + "}}",
        '{"id":"0","subscribe":[]}',
        # a later action is read as well, although an earlier one counts
        '{"id":"0","publish":{"topic":"t"},"signal_entry":{"state":1}}',
    ],
)
def test_frames_of_another_shape_are_refused(frame: str) -> None:
    with pytest.raises(BadFrameError):
        decode_request(frame)


@pytest.mark.parametrize(
    ("frame", "request_"),
    [
        ("{}", Request("")),
        ('{"id":null,"is_cancel":null,"barrier":null,"publish":null}', Request("")),
        ('{"id":"0","barrier":{"state":null,"target":null}}', Request("0", Barrier("", 0))),
        ('{"id":"0","signal_entry":{}}', Request("0", SignalEntry(""))),
        ('{"id":"0","is_cancel":true}', Request("0", is_cancel=True)),
        ('{"publish":{"payload":{"b":1,"a":[1.5,"é"]}}}', Request("", Publish("", '{"b":1,"a":[1.5,"é"]}'))),
        ('{"publish":{"payload":9007199254740993}}', Request("", Publish("", "9007199254740993"))),
        ('{"publish":{"payload":"\\ud83d\\ude00 \\ud83d"}}', Request("", Publish("", '"😀 \ufffd"'))),
    ],
)
def test_absent_and_null_mean_the_zero_value(frame: str, request_: Request) -> None:
    assert decode_request(frame) == request_
    assert decode_request(frame.encode()) == request_


def test_a_binary_frame_that_is_no_utf_8_is_read_with_replacements() -> None:
    assert decode_request(b'{"id":"\xff"}') == Request("\ufffd")


def test_a_lone_surrogate_never_reaches_the_wire() -> None:
    frame = encode_response(Response(decode_request('{"id":"\\ud800"}').id))
    assert frame.encode() == '{"id":"\ufffd","error":"","publish":null,"subscribe":"","signal_entry":null}\n'.encode()


def test_keys_name_the_run() -> None:
    assert state_key(run="r", plan="p", case="c", state="s") == "run:r:plan:p:case:c:states:s"
    assert topic_key(run="r", plan="p", case="c", topic="t") == "run:r:plan:p:case:c:topics:t"
    assert events_key(run="r", plan="p", case="c") == "run:r:plan:p:case:c:run_events"
    assert run_of_key("run:r:plan:p:case:c:run_events") == "r"
    assert run_of_key("run:a:b:plan:p:case:c:states:run:x:plan:y") == "a:b"
    assert [run_of_key(key) for key in ("", "states:1", "run:r", "walk:r:plan:p")] == ["", "", "", ""]
