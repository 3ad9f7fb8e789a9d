"""Metrics: their numbers and lines against those that the Go SDK was recorded with, and InfluxDB's form of them."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from testground.influxdb import event_line, metric_line
from testground.metrics import Metric, Metrics, MetricType, encode_metric
from tests.recordings import RECORDINGS

# Of the two kinds that no recording shows (sdk-go v0.3.0, runtime/metrics_types.go).
UNRECORDED = {"meter": {"count", "mean", "m1", "m5", "m15"}, "ewma": {"rate"}}


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Written:
    """Where metrics are written to, with a clock of its own and no writing but when asked for."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.problems: list[str] = []
        self.clock = Clock()
        self.api = Metrics(
            self._write, interval_s=3600, on_problem=self.problems.append, clock=self.clock, clock_ns=lambda: 7
        )

    def _write(self, metric: Metric) -> None:
        encode_metric(metric)
        self.metrics.append(metric)

    def now(self) -> dict[str, Any]:
        self.metrics.clear()
        self.api.write_all()
        return {metric.name: dict(metric.measures) for metric in self.metrics}


def recorded_lines() -> list[bytes]:
    files = [
        path for name in ("results", "diagnostics") for path in RECORDINGS.glob(f"local-exec/*/single/*/{name}.out")
    ]
    lines = [line for path in sorted(files) for line in path.read_bytes().splitlines(keepends=True)]
    assert len(lines) > 250
    return lines


def test_recorded_lines_are_written_as_they_were_read() -> None:
    for line in recorded_lines():
        found = json.loads(line)
        metric = Metric(found["ts"], MetricType(found["type"]), found["name"], found["measures"])
        assert encode_metric(metric) == line


def test_every_kind_has_the_recorded_measures() -> None:
    expected: dict[str, set[str]] = defaultdict(set, UNRECORDED)
    for line in recorded_lines():
        found = json.loads(line)
        expected[found["type"]] = set(found["measures"])
    written = Written()
    written.api.record_point("a point", 3)
    written.api.counter("counter").inc()
    written.api.gauge("gauge").update(1.5)
    written.api.ewma("ewma", 0.5).update()
    written.api.meter("meter").mark()
    written.api.histogram("histogram").update(1)
    written.api.timer("timer").update_ns(1)
    written.api.write_all()
    assert {str(metric.type): set(metric.measures) for metric in written.metrics} == expected
    assert set(expected) == {str(kind) for kind in MetricType}


def test_a_timer_computes_what_the_recorded_one_did() -> None:
    """The SDK's own timer, updated once just after each 5 s tick, as it was recorded six times."""
    path = RECORDINGS / "local-exec/metrics/single/0/diagnostics.out"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    recorded = [row["measures"] for row in rows if row["name"] == "runtime.ReadMemStats"]
    assert len(recorded) == 6
    written = Written()
    timer = written.api.timer("t")
    before = 0.0
    for measures in recorded:
        written.clock.now_s += 5
        total = measures["mean"] * measures["count"]
        timer.update_ns(round(total - before))
        before = total
        found = written.now()["t"]
        # Its clock ran a little further than 5 s each time.
        assert found.pop("meanrate") == pytest.approx(measures["meanrate"], rel=1e-3)
        assert found == pytest.approx({name: value for name, value in measures.items() if name != "meanrate"}, rel=1e-9)


def test_a_meters_rates_fall_when_nothing_comes() -> None:
    written = Written()
    meter = written.api.meter("m")
    meter.mark(50)
    assert written.now()["m"] == {"count": 50, "mean": 0, "m1": 0, "m5": 0, "m15": 0}
    written.clock.now_s += 5
    assert written.now()["m"] == pytest.approx({"count": 50, "mean": 10, "m1": 10, "m5": 10, "m15": 10})
    written.clock.now_s += 60
    found = written.now()["m"]
    assert found["m1"] == pytest.approx(10 / 2.718281828459045)
    assert found["m5"] == pytest.approx(10 * 2.718281828459045 ** (-1 / 5))
    assert found["mean"] == pytest.approx(50 / 65)


def test_an_ewma_is_a_rate_per_second() -> None:
    written = Written()
    ewma = written.api.ewma("e", 0.5)
    for amount, rate in ((20, 4.0), (0, 2.0), (40, 5.0)):
        ewma.update(amount)
        written.clock.now_s += 5
        assert written.now()["e"] == {"rate": rate}


def test_counters_and_gauges_are_what_they_were_set_to() -> None:
    written = Written()
    counter = written.api.counter("c")
    counter.inc(5)
    counter.dec()
    written.api.gauge("g").update(2.5)
    written.api.gauge("f", lambda: 7)
    assert written.now() == {"c": {"count": 4}, "g": {"value": 2.5}, "f": {"value": 7}}
    counter.clear()
    assert written.now()["c"] == {"count": 0}
    assert written.api.counter("c") is counter


def test_a_histogram_of_more_values_than_it_keeps_stays_a_fair_choice() -> None:
    written = Written()
    histogram = written.api.histogram("h", reservoir_size=100)
    for value in range(10_000):
        histogram.update(value)
    found = written.now()["h"]
    assert found["count"] == 10_000
    assert 0 <= found["min"] < 1_000 < 9_000 < found["max"] < 10_000  # wrong once in 37,000 runs if it keeps its word
    assert 3_000 < found["p50"] < 7_000


def test_an_empty_histogram_is_all_zeros_as_recorded() -> None:
    written = Written()
    written.api.histogram("h")
    assert set(written.now()["h"].values()) == {0}


def test_a_name_stands_for_one_kind() -> None:
    written = Written()
    written.api.counter("n")
    with pytest.raises(TypeError, match="metric 'n' is a counter, not a gauge"):
        written.api.gauge("n")


def test_what_cannot_be_written_is_told_once_and_the_rest_is_written() -> None:
    written = Written()
    written.api.gauge("bad", lambda: 1 / 0)
    written.api.gauge("good")
    assert set(written.now()) == set(written.now()) == {"good"}
    written.api.record_point("nan", float("nan"))
    assert written.problems == [
        "metric bad: not written: ZeroDivisionError: division by zero",
        "metric nan: not written: ValueError: nan has no JSON",
    ]
    with pytest.raises(ValueError, match="inf is no value"):
        written.api.histogram("h").update(float("inf"))


def test_everything_is_written_regularly_and_once_more_at_the_end() -> None:
    seen: list[Metric] = []
    twice = threading.Event()

    def write(metric: Metric) -> None:
        seen.append(metric)
        if len(seen) >= 2:
            twice.set()

    metrics = Metrics(write, interval_s=0.01, on_problem=pytest.fail)
    counter = metrics.counter("c")
    assert twice.wait(20)
    counter.inc()
    metrics.close()
    assert seen[-1].measures == {"count": 1}
    count = len(seen)
    metrics.close()
    assert len(seen) == count


def test_time_is_taken_in_nanoseconds() -> None:
    written = Written()
    with written.api.timer("t").time():
        threading.Event().wait(0.01)
    assert 10_000_000 <= written.now()["t"]["max"] < 5_000_000_000


def test_influxdb_lines_have_the_recorded_names() -> None:
    text = (RECORDINGS / "influxdb-writes.txt").read_text()
    tags = {"group_id": "single", "run": "r"}
    gauge = Metric(5, MetricType.GAUGE, "example.gauge1", {"value": 9})
    line = metric_line("results", "example", "metrics", gauge, tags)
    assert line == "results.example-metrics.example.gauge1.gauge,group_id=single,run=r value=9.0 5"
    assert '["results.example-metrics.example.gauge1.gauge"]' in text
    diagnostic = metric_line(
        "diagnostics", "example", "metrics", Metric(5, MetricType.GAUGE, "runtime.NumThread", {"value": 7}), tags
    )
    assert f'["{diagnostic.split(",")[0]}"]' in text
    start, success = (event_line(name, 6, tags) for name in ("start_event", "SuccessEvent"))
    assert start == "events,event_type=start_event,group_id=single,run=r count=1i 6"
    assert '"start_event","single"' in text
    assert '"SuccessEvent","single"' in text
    assert success != start


def test_tags_in_a_metrics_name_become_tags() -> None:
    point = Metric(5, MetricType.POINT, "latency,peer=b,broken,unit=ms", {"value": 1.5})
    line = metric_line("results", "p", "c", point, {"run": "r", "host": "dex"})
    assert line == "results.p-c.latency.point,host=dex,peer=b,run=r,unit=ms value=1.5 5"


def test_odd_characters_stay_within_their_place_in_a_line() -> None:
    point = Metric(5, MetricType.POINT, "a b", {"value": 1e30})
    line = metric_line("results", "p=q", "c", point, {"run": "x y,z=1\nnext", "empty": "", "path": "c:\\"})
    assert line == r"results.p=q-c.a\ b.point,path=c:\\ ,run=x\ y\,z\=1\ next value=1e+30 5"


def test_a_metrics_name_may_hold_anything(tmp_path: Path) -> None:
    line = encode_metric(Metric(1, MetricType.POINT, 'ü"\n\ud800', {"value": 1.0}))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["name"] == 'ü"\n?'
