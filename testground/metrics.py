"""An instance's metrics: the kinds in Testground's SDKs, and the lines they are written as.

Forms and numbers are those of sdk-go v0.3.0 (recordings/local-exec/metrics and /output): points are written at once,
everything else as a snapshot of its present value, regularly and once more at the end.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from testground.go_json import marshal

RATE_TICK_S = 5.0
"""Rates are averaged over steps of so many seconds, as in the SDK."""
RESERVOIR_SIZE = 1028
"""How many of its values a histogram or timer keeps to tell their distribution by."""
_QUANTILES = {"p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "p999": 0.999, "p9999": 0.9999}


class MetricType(StrEnum):
    """The kinds of metrics, by the word in a metric line."""

    POINT = "point"
    COUNTER = "counter"
    EWMA = "ewma"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    METER = "meter"
    TIMER = "timer"


@dataclass(frozen=True, slots=True)
class Metric:
    """What a metric was at a moment (nanoseconds since the epoch); `name` may carry tags: `name,key=value,…`."""

    ts_ns: int
    type: MetricType
    name: str
    measures: Mapping[str, float]


def encode_metric(metric: Metric) -> bytes:
    """The metric's line in `results.out` or `diagnostics.out`; raises ValueError for a measure that is not a number."""
    name = json.dumps(metric.name, ensure_ascii=False)
    text = f'{{"ts":{metric.ts_ns},"type":"{metric.type}","name":{name},"measures":{marshal(metric.measures)}}}\n'
    return text.encode("utf-8", "replace")


class Counter:
    """Counts up and down."""

    type = MetricType.COUNTER

    def __init__(self, guard: threading.Lock) -> None:
        self._guard = guard
        self._count = 0

    def inc(self, amount: int = 1) -> None:
        """Add to the count."""
        with self._guard:
            self._count += amount

    def dec(self, amount: int = 1) -> None:
        """Take from the count."""
        self.inc(-amount)

    def clear(self) -> None:
        """Count from 0 again."""
        with self._guard:
            self._count = 0

    def measures(self) -> dict[str, float]:
        """The count."""
        with self._guard:
            return {"count": self._count}


class Gauge:
    """A value that is as it was last set, or as `function` says whenever it is written."""

    type = MetricType.GAUGE

    def __init__(self, function: Callable[[], float] | None = None) -> None:
        self._function = function
        self._value = 0.0

    def update(self, value: float) -> None:
        """Set the value."""
        self._value = value

    def measures(self) -> dict[str, float]:
        """The value."""
        return {"value": self._value if self._function is None else self._function()}


class Ewma:
    """How often something happens, per second; of late counts more (`alpha`, 0 to 1: the larger, the more)."""

    type = MetricType.EWMA

    def __init__(self, guard: threading.Lock, clock: Callable[[], float], alpha: float) -> None:
        self._guard = guard
        self._rate = _Rate(alpha, clock)

    def update(self, amount: int = 1) -> None:
        """It has happened, `amount` times."""
        with self._guard:
            self._rate.add(amount)

    def measures(self) -> dict[str, float]:
        """The rate per second."""
        with self._guard:
            return {"rate": self._rate.per_s()}


class Meter:
    """How often something happened, in all and per second, over all time and of late (1, 5 and 15 minutes)."""

    type = MetricType.METER

    def __init__(self, guard: threading.Lock, clock: Callable[[], float]) -> None:
        self._guard = guard
        self._rates = _Rates(clock)

    def mark(self, amount: int = 1) -> None:
        """It has happened, `amount` times."""
        with self._guard:
            self._rates.add(amount)

    def measures(self) -> dict[str, float]:
        """Count and rates per second."""
        with self._guard:
            return {"count": self._rates.count, "mean": self._rates.mean_per_s(), **self._rates.of_late()}


class Histogram:
    """How values are distributed; of more than `reservoir_size` a random choice is kept, all being equally likely."""

    type = MetricType.HISTOGRAM

    def __init__(self, guard: threading.Lock, reservoir_size: int) -> None:
        self._guard = guard
        self._reservoir = _Reservoir(reservoir_size)

    def update(self, value: float) -> None:
        """Take one value."""
        with self._guard:
            self._reservoir.add(value)

    def measures(self) -> dict[str, float]:
        """Count of all values; extremes, mean, spread and quantiles of those kept."""
        with self._guard:
            return self._reservoir.measures()


class Timer:
    """How long something takes (nanoseconds), and how often it happens."""

    type = MetricType.TIMER

    def __init__(self, guard: threading.Lock, clock: Callable[[], float], reservoir_size: int) -> None:
        self._guard = guard
        self._reservoir = _Reservoir(reservoir_size)
        self._rates = _Rates(clock)

    def update_ns(self, duration_ns: int) -> None:
        """It took so long, this time."""
        with self._guard:
            self._reservoir.add(duration_ns)
            self._rates.add(1)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Take the time of the body."""
        start_ns = time.perf_counter_ns()
        try:
            yield
        finally:
            self.update_ns(time.perf_counter_ns() - start_ns)

    def measures(self) -> dict[str, float]:
        """Those of a histogram (nanoseconds) and of a meter, whose mean is called `meanrate` here."""
        with self._guard:
            rates = {"meanrate": self._rates.mean_per_s(), **self._rates.of_late()}
            return self._reservoir.measures() | rates


Instrument = Counter | Gauge | Ewma | Meter | Histogram | Timer
_Kind = TypeVar("_Kind", bound=Instrument)


class Metrics:
    """The metrics of one file: `write` is given each point at once, and a snapshot of everything else every
    `interval_s` and at `close`.

    Asking for a name again gives the same instrument; for one of another kind it is a TypeError. What cannot be
    written (a function that fails, a value that is no number) is told to `on_problem`, once per name.
    """

    def __init__(
        self,
        write: Callable[[Metric], None],
        *,
        interval_s: float,
        on_problem: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._write, self._interval_s, self._on_problem = write, interval_s, on_problem
        self._clock, self._clock_ns = clock, clock_ns
        self._guard = threading.Lock()  # of the instruments' values
        self._registry_guard = threading.Lock()
        self._instruments: dict[str, Instrument] = {}
        self._problems: set[str] = set()
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def record_point(self, name: str, value: float) -> None:
        """Write one value."""
        self._emit(name, MetricType.POINT, lambda: {"value": value})

    def counter(self, name: str) -> Counter:
        """The counter of that name."""
        return self._get(name, Counter, lambda: Counter(self._guard))

    def gauge(self, name: str, function: Callable[[], float] | None = None) -> Gauge:
        """The gauge of that name, set by `update`, or read from `function`."""
        return self._get(name, Gauge, lambda: Gauge(function))

    def ewma(self, name: str, alpha: float) -> Ewma:
        """The moving average of that name."""
        return self._get(name, Ewma, lambda: Ewma(self._guard, self._clock, alpha))

    def meter(self, name: str) -> Meter:
        """The meter of that name."""
        return self._get(name, Meter, lambda: Meter(self._guard, self._clock))

    def histogram(self, name: str, reservoir_size: int = RESERVOIR_SIZE) -> Histogram:
        """The histogram of that name."""
        return self._get(name, Histogram, lambda: Histogram(self._guard, reservoir_size))

    def timer(self, name: str, reservoir_size: int = RESERVOIR_SIZE) -> Timer:
        """The timer of that name."""
        return self._get(name, Timer, lambda: Timer(self._guard, self._clock, reservoir_size))

    def write_all(self) -> None:
        """Write a snapshot of every instrument now."""
        with self._registry_guard:
            instruments = list(self._instruments.items())
        for name, instrument in instruments:
            self._emit(name, instrument.type, instrument.measures)

    def close(self) -> None:
        """Write everything once more, and no more after that."""
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()
        self.write_all()

    def _get(self, name: str, kind: type[_Kind], make: Callable[[], _Kind]) -> _Kind:
        with self._registry_guard:
            found = self._instruments.get(name)
            if found is None:
                found = self._instruments[name] = make()
                if self._thread is None and not self._is_closed.is_set():
                    self._thread = threading.Thread(target=self._write_regularly, name="metrics", daemon=True)
                    self._thread.start()
        if not isinstance(found, kind):
            raise TypeError(f"metric {name!r} is a {found.type}, not a {kind.type}")
        return found

    def _write_regularly(self) -> None:
        while not self._is_closed.wait(self._interval_s):
            self.write_all()

    def _emit(self, name: str, kind: MetricType, measures: Callable[[], Mapping[str, float]]) -> None:
        try:
            self._write(Metric(self._clock_ns(), kind, name, measures()))
        except Exception as error:  # noqa: BLE001 (a function of the application's own may raise anything, in our thread)
            if name not in self._problems:
                self._problems.add(name)
                self._on_problem(f"metric {name}: not written: {type(error).__name__}: {error}")


class _Rate:
    """An exponentially weighted moving average of a rate per second, in steps of RATE_TICK_S."""

    def __init__(self, alpha: float, clock: Callable[[], float]) -> None:
        self._alpha, self._clock = alpha, clock
        self._next_tick_s = clock() + RATE_TICK_S
        self._uncounted = 0
        self._rate: float | None = None

    def add(self, amount: int) -> None:
        self._catch_up()
        self._uncounted += amount

    def per_s(self) -> float:
        self._catch_up()
        return self._rate or 0.0

    def _catch_up(self) -> None:
        ticks = math.floor((self._clock() - self._next_tick_s) / RATE_TICK_S) + 1
        if ticks <= 0:
            return
        self._next_tick_s += ticks * RATE_TICK_S
        now = self._uncounted / RATE_TICK_S
        self._uncounted = 0
        rate = now if self._rate is None else self._rate + self._alpha * (now - self._rate)
        self._rate = rate * (1 - self._alpha) ** (ticks - 1)  # nothing came in the ticks since


class _Rates:
    """Count, mean rate, and the rates of the last 1, 5 and 15 minutes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._start_s = clock, clock()
        self.count = 0
        self._rates = {f"m{minutes}": _Rate(1 - math.exp(-RATE_TICK_S / 60 / minutes), clock) for minutes in (1, 5, 15)}

    def add(self, amount: int) -> None:
        self.count += amount
        for rate in self._rates.values():
            rate.add(amount)

    def mean_per_s(self) -> float:
        elapsed_s = self._clock() - self._start_s
        return self.count / elapsed_s if self.count and elapsed_s > 0 else 0.0

    def of_late(self) -> dict[str, float]:
        return {name: rate.per_s() for name, rate in self._rates.items()}


class _Reservoir:
    """A uniform sample of all values seen (Vitter's algorithm R)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._values: list[float] = []

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(f"{value} is no value for a distribution")
        self._count += 1
        if len(self._values) < self._size:
            self._values.append(value)
            return
        from random import randrange

        place = randrange(self._count)
        if place < self._size:
            self._values[place] = value

    def measures(self) -> dict[str, float]:
        values = sorted(self._values)
        mean = sum(values) / len(values) if values else 0.0
        variance = sum((value - mean) ** 2 for value in values) / len(values) if values else 0.0
        return {
            "count": self._count,
            "max": values[-1] if values else 0.0,
            "mean": mean,
            "min": values[0] if values else 0.0,
            "stddev": math.sqrt(variance),
            "variance": variance,
            **{name: _quantile(values, fraction) for name, fraction in _QUANTILES.items()},
        }


def _quantile(values: Sequence[float], fraction: float) -> float:
    """Interpolated between the sorted values on either side of position fraction × (n + 1), counted from 1."""
    position = fraction * (len(values) + 1)
    if not values:
        return 0.0
    if position < 1:
        return values[0]
    if position >= len(values):
        return values[-1]
    before = values[int(position) - 1]
    return before + (position - int(position)) * (values[int(position)] - before)
