"""The embedded service says what the official one said, frame for frame, but for the differences that its docstring
lists; and the comparison would notice anything else."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from testground.sync.client import SyncClient
from testground.sync.service import SyncService
from tests.recordings import RECORDINGS
from tests.testground.sync_replay import CoreWire, Event, SocketWire, as_meant, differences, load, replay

LARGER = {"payload-33000", "payload-40-KiB", "payload-65536", "payload-200000"}


@pytest.fixture(scope="module")
def recorded() -> list[Event]:
    return as_meant(load(RECORDINGS / "sync-service.jsonl"))


def test_the_core_answers_as_recorded(recorded: list[Event]) -> None:
    assert differences(recorded, replay(recorded, CoreWire())) == []


def test_the_service_answers_as_recorded(recorded: list[Event]) -> None:
    with SyncService() as service:
        assert differences(recorded, replay(recorded, SocketWire(service.port))) == []


def test_it_differs_where_it_is_meant_to_and_nowhere_else(recorded: list[Event]) -> None:
    official = load(RECORDINGS / "sync-service.jsonl")
    differing = differences(official, replay(recorded, CoreWire()))
    scenarios = {difference.split("'")[1] for difference in differing}
    assert scenarios == LARGER | {"payload-1100000", "barrier-cancel"}
    cancelled = [difference for difference in differing if "'barrier-cancel'" in difference]
    assert len(cancelled) == 1
    assert cancelled[0].endswith("came None")  # silent, where the official one answers


def test_a_message_waits_for_no_tick_and_a_burst_keeps_its_order() -> None:
    """The differences that the service's docstring names."""
    with SyncService() as service, SyncClient(port=service.port, run="r", plan="p", case="c") as client:
        with client.subscribe("t") as messages:
            began_s = time.monotonic()
            for number in range(50):
                assert client.publish("t", number) == number + 1
                assert messages.next(5) == number
    assert time.monotonic() - began_s < 50 * 0.1 / 2  # the official one: a tick of 100 ms each


@pytest.mark.slow
def test_any_change_of_what_was_received_is_noticed(recorded: list[Event]) -> None:
    observed = replay(recorded, CoreWire())
    mutations = 0
    for index, event in enumerate(recorded):
        scenario = event["scenario"]
        came = [other for other in observed if other["scenario"] == scenario]
        first = next(at for at, other in enumerate(recorded) if other["scenario"] == scenario)
        same = [other for other in recorded if other["scenario"] == scenario]
        assert differences(same, came) == []
        for mutant in _mutants(event):
            mutated = [*same[: index - first], *mutant, *same[index - first + 1 :]]
            assert differences(mutated, came), f"not noticed in {scenario}: {event} -> {mutant}"
            mutations += 1
    assert mutations > 1500


@pytest.mark.slow
def test_any_other_number_of_a_publish_is_noticed_when_replayed(recorded: list[Event]) -> None:
    """The order in which a burst is sent comes from the recording: a change there must not go along with it."""
    same = [event for event in recorded if event["scenario"] == "publish-types"]
    for index, event in enumerate(same):
        for mutant in _mutants(event):
            mutated = [*same[:index], *mutant, *same[index + 1 :]]
            assert differences(mutated, replay(mutated, CoreWire())), f"not noticed: {event} -> {mutant}"


def _mutants(event: Event) -> Iterator[list[Event]]:
    """Lists of events to stand for one that was received: each with one key, value or code changed, or it left out."""
    if event["way"] == "out":
        return
    yield []
    yield [event, event]
    yield [event | {"way": "in" if event["way"] != "in" else "closed"}]
    yield [event | {"client": "b" if event["client"] == "a" else "a"}]
    frame = event["frame"]
    if not isinstance(frame, str):
        for changed in _changes(frame):
            yield [event | {"frame": changed}]
        return
    assert frame.endswith("\n")
    yield [event | {"frame": frame[:-1]}]
    yield [event | {"frame": frame.replace(",", ", ", 1)}]
    fields = json.loads(frame)
    yield [event | {"frame": _text(dict(reversed(fields.items())))}]
    for changed in _changes(fields):
        yield [event | {"frame": _text(changed)}]


def _text(fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"


def _changes(value: Any) -> Iterator[Any]:
    """Each JSON value that differs from the given one in one key or one value."""
    if isinstance(value, dict):
        for key in value:
            yield {other: inner for other, inner in value.items() if other != key}
            yield {(other + "x" if other == key else other): inner for other, inner in value.items()}
            for changed in _changes(value[key]):
                yield copy.deepcopy(value) | {key: changed}
        yield value | {"more": 1}
    elif isinstance(value, str):
        yield value + "x"
        yield None
        if value:
            yield value[:-1]
    elif isinstance(value, int):
        yield value + 1
        yield str(value)
        yield None
    else:
        assert value is None
        yield {}
        yield 0
        yield ""
