"""The official sync service and the embedded one, started now and asked the same: where `sync-service` is on PATH."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testground.sync.protocol import OFFICIAL_LIMIT_BYTES
from tests.hosts import which
from tests.needs import need
from tests.recordings import RECORDINGS
from tests.testground.live_sync import TEXT
from tests.testground.sync_replay import Event, as_meant, differences, load

ROOT = Path(__file__).resolve().parents[2]
ALONE = ("-n", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh")  # unshare: a loopback of its own, its ports are free


@pytest.fixture(scope="module")
def came() -> dict[str, list[Any]]:
    need("sync-service")
    argv = [which("unshare"), *ALONE, sys.executable, "-m", "tests.testground.live_sync"]
    recording = RECORDINGS / "sync-service.jsonl"
    done = subprocess.run([*argv, str(recording)], cwd=ROOT, stdout=subprocess.PIPE, timeout=300, check=True)
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def of(scenario: str, events: list[Event]) -> list[Event]:
    return [event for event in events if event["scenario"] == scenario and event["way"] != "out"]


def test_both_answer_each_recorded_scenario_alike_but_where_it_is_meant(came: dict[str, list[Any]]) -> None:
    recorded = load(RECORDINGS / "sync-service.jsonl")
    scenarios = {event["scenario"] for event in recorded}
    official, embedded = (
        [event for event in came[which_one] if event["scenario"] in scenarios] for which_one in ("official", "embedded")
    )
    assert differences(recorded, official) == []
    assert differences(as_meant(recorded), embedded) == []


def test_a_payload_is_the_same_value_in_another_text(came: dict[str, list[Any]]) -> None:
    official, embedded = (
        next(text for event in of("text", events) if (text := json.loads(event["frame"])["subscribe"]))
        for events in (came["official"], came["embedded"])
    )
    assert official == r'{"a":"\u003c\u0026\u003e","b":1,"f":1,"n":9007199254740992}'
    assert embedded == '{"b":1,"a":"<&>","n":9007199254740993,"f":1.0}'
    assert json.loads(embedded) == TEXT
    assert json.loads(official) == {**TEXT, "n": float(2**53 + 1)}


def test_the_official_limit_is_where_our_client_has_it(came: dict[str, list[Any]]) -> None:
    most, more = (f"frame-{size_bytes}" for size_bytes in (OFFICIAL_LIMIT_BYTES, OFFICIAL_LIMIT_BYTES + 1))
    assert [event["way"] for event in of(most, came["official"])] == ["in", "closed"]
    (closed,) = of(more, came["official"])
    assert closed["frame"]["code"] == 1009
    assert [event["way"] for event in of(more, came["embedded"])] == ["in", "closed"]


def test_our_client_is_understood_by_the_official_service(came: dict[str, list[Any]]) -> None:
    assert came["client"] == [1, 2, 1, 2, 30_000, {"é": [1.5, None]}, 1]
