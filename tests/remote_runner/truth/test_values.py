"""What agents say in samples and looks, and what is believed of it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from remote_runner.connection.verbs.facts import ClockExchange
from remote_runner.truth.values import HostState, Trips, clock_value, instance_line, sample_in

RUNS = {"a": [1.25, 4096, 2, 7, 0, 10.0], "b": [0, 0, 0, 0, 0, 0]}
SAMPLE = {"ns": 1_500_000_000, "host": {"cpu_s": 12.340000000001, "load": 0.5, "weather": 1}, "runs": RUNS}


def line(**changed: Any) -> bytes:
    return json.dumps(SAMPLE | changed).encode()


def test_a_sample() -> None:
    found = sample_in(line(), {"a": None, "c": None})
    assert found is not None
    assert (found.there_s, found.runs) == (1.5, {"a": (1.25, 4096.0, 2.0, 7.0, 0.0, 10.0)})
    state = HostState.from_said(7.25, found.host)
    assert state.to_value() == {"at": 7.25, "cpu_s": 12.34, "load": 0.5}


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"1", b"null", b"\xff", b"[" * 100_000, line(ns="x"), line(ns=-1)])
def test_what_is_no_sample(text: bytes) -> None:
    assert sample_in(text, {"a": None}) is None


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1, 1e300, "7", True, None, [], {}])
def test_numbers_that_are_none_are_left_out(nonsense: Any) -> None:
    found = sample_in(line(host={"load": nonsense}, runs={"a": [nonsense] * 6}), {"a": None})
    assert found is not None
    assert (HostState.from_said(0.0, found.host).told, found.runs) == ({}, {})
    found = sample_in(line(host=nonsense, runs=nonsense), {"a": None})
    assert found is not None
    assert (HostState.from_said(0.0, found.host).told, found.runs) == ({}, {})


def test_the_line_of_an_instance() -> None:
    assert json.loads(instance_line(1795906699.9412, (1.5, 2830336.0, 2.0, 7.0, 0.0, 4096.0))) == {
        **{"at": 1795906699.941, "cpu_s": 1.5, "rss_bytes": 2830336, "threads": 2, "descriptors": 7},
        **{"read_bytes": 0, "written_bytes": 4096},
    }


def test_a_counter_that_grows() -> None:
    before = HostState(0.0, {"errors": 5, "load": 1})
    assert HostState(1.0, {"errors": 7}).since(before, "errors") == 2
    assert HostState(1.0, {"errors": 3}).since(before, "errors") is None  # the host began anew
    assert HostState(1.0, {}).since(before, "errors") is None


def test_round_trips() -> None:
    # The host's clock is 5 s ahead; the fastest look took 10 ms.
    trips = Trips([ClockExchange(i, i + 5 + 0.005, i + 0.01 * i) for i in range(1, 21)])
    assert trips.clock is not None
    assert trips.clock.uncertainty_s == pytest.approx(0.005)
    assert clock_value(trips.clock) == {"offset_s": 5.0, "uncertainty_s": 0.005}
    assert trips.to_value() == {
        **{"count": 20, "p0_s": 0.01, "p25_s": 0.05, "p50_s": 0.1, "p75_s": 0.15, "p90_s": 0.18, "p100_s": 0.2}
    }
    assert (Trips().clock, clock_value(None), Trips().to_value()) == (None, None, {"count": 0})
