"""Testground's events: the JSON lines an instance writes to its stdout, and how they are read back.

The form is that of sdk-go v0.3.0 as recorded (`recordings/local-exec/*/single/*/stdout`):
`{"ts":<ns>,"msg":"","group_id":"…","run_id":"…","event":{"message_event":{"message":"…"}}}` and a newline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """Something worth telling."""

    message: str


@dataclass(frozen=True, slots=True)
class StartEvent:
    """The instance has begun; `runenv` is what it was given (plan, case, run, params, …), JSON values."""

    runenv: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SuccessEvent:
    """The instance's work succeeded."""

    group: str


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """The instance's work failed."""

    group: str
    error: str


@dataclass(frozen=True, slots=True)
class CrashEvent:
    """The instance ended in a way nobody had thought of."""

    group: str
    error: str
    stacktrace: str


@dataclass(frozen=True, slots=True)
class StageStartEvent:
    """A named part of the instance's work begins."""

    name: str
    group: str


@dataclass(frozen=True, slots=True)
class StageEndEvent:
    """A named part of the instance's work has ended."""

    name: str
    group: str


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of no kind that Testground knows; its daemon stops reading the instance here. Read, never written."""

    names: tuple[str, ...]


Event = MessageEvent | StartEvent | SuccessEvent | FailureEvent | CrashEvent | StageStartEvent | StageEndEvent


@dataclass(frozen=True, slots=True)
class EventLine:
    """One line that counts: when (nanoseconds since the epoch, by the instance's clock), whose, and what.

    The SDKs leave `msg`, which is a field of their logger, empty.
    """

    ts_ns: int
    group_id: str
    run_id: str
    event: Event | UnknownEvent
    msg: str = ""


def encode_event(event: Event, *, ts_ns: int, group_id: str, run_id: str, msg: str = "") -> bytes:
    """The event's line, newline included; the key order and the escaping are those of the Go SDK."""
    name, body = _body(event)
    return (
        f'{{"ts":{ts_ns},"msg":{_text(msg)},"group_id":{_text(group_id)},"run_id":{_text(run_id)},'
        f'"event":{{"{name}":{body}}}}}\n'
    ).encode()


def _body(event: Event) -> tuple[str, str]:
    match event:
        case MessageEvent(message):
            return "message_event", f'{{"message":{_text(message)}}}'
        case StartEvent(runenv):
            return "start_event", f'{{"runenv":{_value(runenv)}}}'
        case SuccessEvent(group):
            return "success_event", f'{{"group":{_text(group)}}}'
        case FailureEvent(group, error):
            return "failure_event", f'{{"group":{_text(group)},"error":{_text(error)}}}'
        case CrashEvent(group, error, stacktrace):
            return (
                "crash_event",
                f'{{"group":{_text(group)},"error":{_text(error)},"stacktrace":{_text(stacktrace)}}}',
            )
        case StageStartEvent(name, group):
            return "stage_start_event", f'{{"name":{_text(name)},"group":{_text(group)}}}'
        case StageEndEvent(name, group):
            return "stage_end_event", f'{{"name":{_text(name)},"group":{_text(group)}}}'


# The SDK's logger escapes only what JSON demands (a crash's "\n\t" are recorded); text that is not Unicode,
# here a lone surrogate from the surrogateescape of an environment variable, becomes the replacement character.
_ESCAPES = {number: f"\\u{number:04x}" for number in range(0x20)} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    ord('"'): '\\"',
    ord("\\"): "\\\\",
}


def _text(text: str) -> str:
    escaped = text.translate(_ESCAPES)
    if not escaped.isascii():
        escaped = "".join("\\ufffd" if "\ud800" <= char <= "\udfff" else char for char in escaped)
    return f'"{escaped}"'


def _value(value: object) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_text(str(key))}:{_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    return json.dumps(value, allow_nan=False)


def parse_line(line: bytes) -> EventLine | None:
    """The event in one line of stdout (with or without its line ending); None for any other line.

    A JSON object whose `event` is an object counts, an event of no known kind (or null) as `UnknownEvent`.
    Like testground v0.6.0 (pkg/runner/pretty.go) it takes a missing or unreadable `ts` for 0.
    """
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        return _event_line(json.loads(line.decode("utf-8", "replace"), parse_constant=_no_constant))
    except (ValueError, TypeError, RecursionError):  # not JSON, or JSON of another shape
        return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _event_line(found: Mapping[str, object]) -> EventLine | None:
    if "event" not in found:
        return None
    ts_ns, event = found.get("ts"), found["event"]
    if not isinstance(ts_ns, int) or isinstance(ts_ns, bool) or not -(2**63) <= ts_ns < 2**63:
        ts_ns = 0
    group_id, run_id, msg = (
        value if isinstance(value, str) else "" for value in map(found.get, ("group_id", "run_id", "msg"))
    )
    return EventLine(ts_ns, group_id, run_id, _event(_mapping({} if event is None else event)), msg)


def _event(event: Mapping[str, object]) -> Event | UnknownEvent:
    for name, read in _READERS.items():
        body = event.get(name)
        if body is not None:
            return read(_mapping(body))
    return UnknownEvent(tuple(event))


_READERS: dict[str, Callable[[Mapping[str, object]], Event]] = {
    "success_event": lambda body: SuccessEvent(_string(body, "group")),
    "failure_event": lambda body: FailureEvent(_string(body, "group"), _string(body, "error")),
    "crash_event": lambda body: CrashEvent(_string(body, "group"), _string(body, "error"), _string(body, "stacktrace")),
    "message_event": lambda body: MessageEvent(_string(body, "message")),
    "start_event": lambda body: StartEvent(_mapping(body.get("runenv") or {})),
    "stage_start_event": lambda body: StageStartEvent(_string(body, "name"), _string(body, "group")),
    "stage_end_event": lambda body: StageEndEvent(_string(body, "name"), _string(body, "group")),
}


def _string(body: Mapping[str, object], key: str) -> str:
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(key)
    return value if value.isascii() else _unicode(value)


def _unicode(text: str) -> str:
    """The text with every lone surrogate (JSON can spell one) replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError("object")
    return value
