"""The sync service's wire forms: JSON text frames as the official service (v0.1.0+) reads and writes them.

Source: `recordings/sync-service.jsonl`. A request names one of four actions, or cancels an earlier request by its id; a
response has always five keys and ends with a newline. The Go program decodes with encoding/json, whose rules hold here
too: unknown fields are ignored, null and absent mean the zero value, a value of another type is a bad frame.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring
from math import isfinite

OFFICIAL_LIMIT_BYTES = 32_768
"""The longest frame that Testground's own service reads; a longer one ends the connection."""


@dataclass(frozen=True, slots=True)
class SignalEntry:
    """Count one more entry into a state."""

    state: str


@dataclass(frozen=True, slots=True)
class Barrier:
    """Answer when the state has been entered `target` times; a target of 0 or less is met at once."""

    state: str
    target: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Append a message to a topic; `payload` is compact JSON text."""

    topic: str
    payload: str


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Answer with each message of a topic, from its first one on, in order."""

    topic: str


Action = SignalEntry | Barrier | Publish | Subscribe


@dataclass(frozen=True, slots=True)
class Request:
    """One frame to the service. Without an action and without `is_cancel` it asks for nothing and gets no answer."""

    id: str
    action: Action | None = None
    is_cancel: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """One frame from the service; `subscribe` is a message as JSON text ("" if the frame carries none)."""

    id: str
    error: str = ""
    publish_seq: int | None = None
    subscribe: str = ""
    signal_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """The service ends the connection."""

    code: int
    reason: str


def endpoint(host: str, port: int) -> str:
    """An address as messages have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


BAD_FRAME = Close(1007, "failed to unmarshal JSON")


class BadFrameError(ValueError):
    """The frame is not of the protocol; the reader turns this into a close code or an error of its own."""


def state_key(*, run: str, plan: str, case: str, state: str) -> str:
    """The service's name for a state of one run."""
    return f"run:{run}:plan:{plan}:case:{case}:states:{state}"


def topic_key(*, run: str, plan: str, case: str, topic: str) -> str:
    """The service's name for a topic of one run."""
    return f"run:{run}:plan:{plan}:case:{case}:topics:{topic}"


def events_key(*, run: str, plan: str, case: str) -> str:
    """The topic to which a run's instances publish their events."""
    return f"run:{run}:plan:{plan}:case:{case}:run_events"


def run_of_key(key: str) -> str:
    """The run that a state or topic belongs to; "" for a key of another form."""
    prefix, _, rest = key.partition(":")
    run, separator, _ = rest.partition(":plan:")
    return run if prefix == "run" and separator else ""


def quote(text: str) -> str:
    """The text as JSON; a lone surrogate, which UTF-8 cannot carry, becomes U+FFFD as in the Go service."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return encode_basestring(text)


def compact(value: object) -> str:
    """The JSON text of a value, without spaces.

    Raises TypeError, ValueError or RecursionError for what is not JSON value (NaN and infinities included).
    """
    text = _COMPACT.encode(value)
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def encode_request(request: Request) -> str:
    """The frame that makes a request."""
    head = f'{{"id":{quote(request.id)},"is_cancel":{"true" if request.is_cancel else "false"}'
    match request.action:
        case SignalEntry(state):
            return f'{head},"signal_entry":{{"state":{quote(state)}}}}}'
        case Barrier(state, target):
            return f'{head},"barrier":{{"state":{quote(state)},"target":{target}}}}}'
        case Publish(topic, payload):
            return f'{head},"publish":{{"topic":{quote(topic)},"payload":{payload}}}}}'
        case Subscribe(topic):
            return f'{head},"subscribe":{{"topic":{quote(topic)}}}}}'
        case None:
            return head + "}"


def encode_response(response: Response) -> str:
    """The frame that answers a request, byte for byte as recorded."""
    return _response(response, quote(response.subscribe))


def message_frame(request_id: str, quoted_message: str) -> str:
    """The frame that brings a subscriber one message; the message is quoted once for all of its subscribers."""
    return _response(Response(request_id), quoted_message)


def _response(response: Response, quoted_message: str) -> str:
    published = "null" if response.publish_seq is None else f'{{"seq":{response.publish_seq}}}'
    signalled = "null" if response.signal_seq is None else f'{{"seq":{response.signal_seq}}}'
    return (
        f'{{"id":{quote(response.id)},"error":{quote(response.error)},"publish":{published},'
        f'"subscribe":{quoted_message},"signal_entry":{signalled}}}\n'
    )


def decode_request(frame: bytes | str) -> Request:
    """Read a frame to the service. Where it names several actions, the first of publish, subscribe, barrier and
    signal_entry counts (recorded: `two-requests-in-one`).

    Raises BadFrameError.
    """
    found = _load(frame)
    request_id = _string(found, "id")
    is_cancel = found.get("is_cancel") or False
    if not isinstance(is_cancel, bool):
        raise BadFrameError("is_cancel is no boolean")
    actions: list[Action] = []
    if (fields := _object(found, "publish")) is not None:
        try:
            actions.append(Publish(_string(fields, "topic"), compact(fields.get("payload"))))
        except (ValueError, RecursionError) as error:
            raise BadFrameError("payload is not JSON value") from error
    if (fields := _object(found, "subscribe")) is not None:
        actions.append(Subscribe(_string(fields, "topic")))
    if (fields := _object(found, "barrier")) is not None:
        target = _integer(fields, "target")
        actions.append(Barrier(_string(fields, "state"), 0 if target is None else target))
    if (fields := _object(found, "signal_entry")) is not None:
        actions.append(SignalEntry(_string(fields, "state")))
    return Request(request_id, actions[0] if actions else None, is_cancel)


def decode_response(frame: bytes | str) -> Response:
    """Read a frame from the service.

    Raises BadFrameError.
    """
    found = _load(frame)
    published, signalled = _object(found, "publish"), _object(found, "signal_entry")
    return Response(
        _string(found, "id"),
        _string(found, "error"),
        None if published is None else _integer(published, "seq"),
        _string(found, "subscribe"),
        None if signalled is None else _integer(signalled, "seq"),
    )


def _load(frame: bytes | str) -> Mapping[str, object]:
    text = frame if isinstance(frame, str) else frame.decode("utf-8", "replace")
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadFrameError("not JSON") from error
    if not isinstance(found, dict):
        raise BadFrameError("no JSON object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits} is out of range")
    return number


# Made once: json.dumps and json.loads make one for each call that is not the plainest.
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _string(fields: Mapping[str, object], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadFrameError(f"{key} is no string")
    return value


def _integer(fields: Mapping[str, object], key: str) -> int | None:
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise BadFrameError(f"{key} is no 64-bit integer")
    return value


def _object(fields: Mapping[str, object], key: str) -> Mapping[str, object] | None:
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadFrameError(f"{key} is no object")
    return value
