"""Replays the recorded conversations with the official sync service, and says where a service answers otherwise.

A recording is a list of events, one WebSocket frame each (`recordings/README.md`). A replay sends what went out, in the
recorded order, and yields events of the same form; `differences` compares the two, frame texts as they are.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any, Protocol

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.connection import Connection as ClientConnection

from testground.sync.core import Connection, SyncCore
from testground.sync.peer import LIMIT_BYTES
from testground.sync.protocol import Close

Event = dict[str, Any]

_QUIET_S = 0.15  # more than the official service's tick


def load(path: Path) -> list[Event]:
    """The events of a recording, long payloads written out."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def written_out(frame: Any) -> Any:
    """A frame with `<y repeated N times>` replaced by what it stands for."""
    if not isinstance(frame, str):
        return frame
    return re.sub(r"<(.) repeated (\d+) times>", lambda found: found[1] * int(found[2]), frame)


def as_meant(recorded: list[Event]) -> list[Event]:
    """The recording as the embedded service should have made it: with the differences that its docstring lists."""
    scenarios = dict(_scenarios(recorded))
    taken = scenarios["payload-30000"]
    return [event for name, events in scenarios.items() for event in _as_meant(name, events, taken)]


def _as_meant(scenario: str, recorded: list[Event], taken: list[Event]) -> list[Event]:
    """One scenario; `taken` is the one with a payload that the official service takes as well."""
    match scenario:
        case "barrier-cancel":
            return [event for event in recorded if (event["client"], event["way"]) != ("a", "in")]
        case "payload-33000" | "payload-65536" | "payload-200000":
            found: list[Event] = json.loads(json.dumps(taken).replace("30000", scenario.removeprefix("payload-")))
            return found
        case "payload-40-KiB":
            published, subscribed = (event for event in recorded if event["way"] == "out")
            _, answer, _, message, closed, _ = taken
            frame = message["frame"].replace('"id":"0"', '"id":"1"').replace("<y repeated 30000", "<x repeated 40960")
            events = [published, answer, subscribed, message | {"frame": frame}, closed]
            return [event | {"scenario": scenario, "client": "a"} for event in events]
        case "payload-1100000":
            reason = f"read limited at {LIMIT_BYTES + 1} bytes"
            return [
                event | {"frame": {"code": 1009, "reason": reason}} if _code(event) == 1009 else event
                for event in recorded
            ]
    return recorded


def _code(event: Event) -> object:
    return event["frame"]["code"] if event["way"] == "closed" else None


class Wire(Protocol):
    """A service to replay against."""

    keeps_order: bool
    """Whether it handles the requests of one connection in the order in which they come."""

    def send(self, client: str, frame: str | bytes) -> str | None:
        """Send a frame; the error's text if the connection is closed."""

    def settle(self, client: str) -> list[Event]:
        """Everything the client was sent because of what any client has sent until now, its closing included."""

    def close(self, client: str) -> Event:
        """End a client's connection (if it is open) and tell how it ended."""


class CoreWire:
    """The service's core alone."""

    keeps_order = True

    def __init__(self) -> None:
        self._core = SyncCore()
        self._connections: dict[str, Connection] = {}
        self._closed: dict[str, Close] = {}

    def send(self, client: str, frame: str | bytes) -> str | None:
        if client in self._closed:
            close = self._closed[client]
            how = f"Close(code={close.code}, reason={close.reason!r})"
            return f"ConnectionClosedError({how}, {how}, True)"
        if len(frame) > LIMIT_BYTES:
            self._core.end(self._connection(client), Close(1009, f"read limited at {LIMIT_BYTES + 1} bytes"))
        else:
            self._core.receive(self._connection(client), frame)
        return None

    def settle(self, client: str) -> list[Event]:
        events: list[Event] = []
        while (frame := self._core.take(self._connection(client))) is not None:
            if isinstance(frame, Close):
                self._closed[client] = frame
                events.append({"way": "closed", "frame": {"code": frame.code, "reason": frame.reason}})
            else:
                events.append({"way": "in", "frame": frame})
        return events

    def close(self, client: str) -> Event:
        close = self._closed.pop(client, Close(1000, ""))
        self._core.disconnect(self._connections.pop(client))
        return {"way": "closed", "frame": {"code": close.code, "reason": close.reason}}

    def _connection(self, client: str) -> Connection:
        return self._connections.setdefault(client, self._core.connect())


class SocketWire:
    """A running service."""

    FENCE = "fence"

    def __init__(self, port: int, *, keeps_order: bool = True) -> None:
        self.keeps_order = keeps_order
        self._uri = f"ws://127.0.0.1:{port}"
        self._connections: dict[str, ClientConnection] = {}
        self._is_over: set[str] = set()
        self._fences = count()

    def send(self, client: str, frame: str | bytes) -> str | None:
        try:
            self._connection(client).send(frame)
        except ConnectionClosed as error:
            return repr(error)
        return None

    def settle(self, client: str) -> list[Event]:
        """Subscribes the client to a topic of its own and publishes there: what comes before that message is all."""
        if client in self._is_over:
            return []
        connection, number, events = self._connection(client), next(self._fences), list[Event]()
        topic = f"{self.FENCE} {client} {number}"
        try:
            if not self.keeps_order:  # it may be about to close, and a frame on its way then would take the reason away
                with contextlib.suppress(TimeoutError):
                    while True:
                        events.append({"way": "in", "frame": connection.recv(timeout=_QUIET_S)})
            for request in ({"subscribe": {"topic": topic}}, {"publish": {"topic": topic, "payload": number}}):
                connection.send(json.dumps({"id": self.FENCE, **request}))
            while True:
                frame = connection.recv(timeout=20)
                found = json.loads(frame)
                if found["id"] != self.FENCE:
                    events.append({"way": "in", "frame": frame})
                elif found["subscribe"] == str(number):
                    return events
        except ConnectionClosed as error:
            self._is_over.add(client)
            code, reason = (error.rcvd.code, error.rcvd.reason) if error.rcvd else (1006, "")
            return [*events, {"way": "closed", "frame": {"code": code, "reason": reason}}]

    def close(self, client: str) -> Event:
        connection = self._connections.pop(client)
        self._is_over.discard(client)
        connection.close()
        return {"way": "closed", "frame": {"code": connection.close_code, "reason": connection.close_reason}}

    def _connection(self, client: str) -> ClientConnection:
        if client not in self._connections:
            self._connections[client] = connect(self._uri, compression=None, proxy=None, max_size=None).__enter__()
        return self._connections[client]


def replay(recorded: list[Event], wire: Wire) -> list[Event]:
    """What happens when a service hears what the recorded one heard."""
    return [event for _, scenario in _scenarios(recorded) for event in _replay_scenario(scenario, wire)]


def _replay_scenario(recorded: list[Event], wire: Wire) -> Iterator[Event]:
    open_clients: list[str] = []
    index = 0
    while index < len(recorded):
        event = recorded[index]
        client, scenario = event["client"], event["scenario"]
        if event["way"] == "out":
            burst = [event]
            while index + len(burst) < len(recorded) and recorded[index + len(burst)]["way"] == "out":
                burst.append(recorded[index + len(burst)])
            index += len(burst)
            yield from burst
            before = None
            for sent in _as_handled(burst, recorded):
                sender = sent["client"]
                # Two connections have no order between them unless waited for.
                if before is not None and not (before == sender and wire.keeps_order):
                    for came in wire.settle(before):
                        yield {"scenario": scenario, "client": before, **came}
                before = sender
                if sender not in open_clients:
                    open_clients.append(sender)
                error = wire.send(sender, _bytes_or_text(sent["frame"]))
                if error is not None:
                    yield {"scenario": scenario, "client": sender, "way": "send-failed", "frame": {"error": error}}
            # Twice: what the last one settled did may have made something for the first.
            for other in sorted(open_clients) * 2:
                for came in wire.settle(other):
                    yield {"scenario": scenario, "client": other, **came}
        else:
            index += 1
            if event["way"] == "closed" and client in open_clients and _ends_here(recorded[index:], client):
                open_clients.remove(client)
                ending = wire.close(client)
                if ending["frame"]["code"] == 1000:  # else it was told when the service closed
                    yield {"scenario": scenario, "client": client, **ending}
            elif event["way"] == "closed-by-client":
                yield {"scenario": scenario, "client": client, "way": "closed-by-client", "frame": None}
    for client in list(open_clients):
        open_clients.remove(client)
        ending = wire.close(client)
        if ending["frame"]["code"] == 1000:
            yield {"scenario": recorded[0]["scenario"], "client": client, **ending}


def _ends_here(rest: list[Event], client: str) -> bool:
    return not any(event["client"] == client and event["way"] == "out" for event in rest)


def _bytes_or_text(frame: Any) -> str | bytes:
    if isinstance(frame, dict):
        return re.sub(rb"run:\d+:", b"run:RUN:", bytes.fromhex(frame["binary"]))  # the recording names it RUN elsewhere
    text = written_out(frame)
    assert isinstance(text, str)
    return text


def _as_handled(burst: list[Event], recorded: list[Event]) -> list[Event]:
    """A burst of publishes in the order in which the recorded service numbered them.

    That service takes requests sent at once in any order, ours in theirs; so that one recorded order can be demanded,
    they are sent in it.
    """
    if not all('"publish"' in str(event["frame"]) for event in burst) or len({event["client"] for event in burst}) > 1:
        return burst
    numbers: dict[object, int] = {}
    for event in recorded:
        if event["way"] == "in" and event["client"] == burst[0]["client"]:
            published = _fields(event["frame"]).get("publish")
            if isinstance(published, dict) and isinstance(published.get("seq"), int):
                numbers[_fields(event["frame"]).get("id")] = published["seq"]
    return sorted(burst, key=lambda event: numbers.get(_fields(event["frame"]).get("id"), 0))


def _fields(frame: Any) -> dict[str, Any]:
    try:
        found = json.loads(frame)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def differences(recorded: list[Event], observed: list[Event]) -> list[str]:
    """Where two lists of events differ; empty if they tell the same.

    Between two requests, frames that answer different requests may come in any order (they do, as recorded); those
    with one id may not.
    """
    expected, found = _by_place(recorded), _by_place(observed)
    return [
        f"{place}: recorded {expected.get(place)}, came {found.get(place)}"
        for place in dict.fromkeys([*expected, *found])
        if expected.get(place) != found.get(place)
    ]


def _by_place(events: list[Event]) -> dict[tuple[object, ...], list[Any]]:
    places: dict[tuple[object, ...], list[Any]] = defaultdict(list)
    for scenario, members in _scenarios(events):
        step, before = 0, ""
        for event in members:
            step += event["way"] == "out" and before != "out"
            before = event["way"]
            request_id = repr(_fields(event["frame"]).get("id")) if event["way"] == "in" else ""
            places[scenario, step, event["client"], event["way"], request_id].append(written_out(event["frame"]))
    return dict(places)


def _scenarios(events: list[Event]) -> Iterator[tuple[str, list[Event]]]:
    for scenario, members in groupby(events, key=lambda event: event["scenario"]):
        yield scenario, list(members)
