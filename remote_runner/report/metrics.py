"""`results.out` and `diagnostics.out` of an instance as series, one for each number worth a look."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from remote_runner.report.values import MetricKey, Series

FILES = ("results", "diagnostics")
# Which numbers of each type are shown, the first of them before the others; timers are in nanoseconds.
_DISTRIBUTION = ("p50", "p95", "p99", "max", "mean", "count")
MEASURES: Mapping[str, tuple[str, ...]] = {
    "point": ("value",),
    "gauge": ("value",),
    "counter": ("count",),
    "ewma": ("rate",),
    "meter": ("mean", "count"),
    "histogram": _DISTRIBUTION,
    "timer": (*_DISTRIBUTION, "meanrate"),
}
_NANOSECONDS = frozenset(_DISTRIBUTION) - {"count"}
SINGLE_VALUES = frozenset({"point", "gauge"})
"""The types whose every value counts by itself; of the others each is a summary of all before it."""
_LAST_LINES = 50
_TOGETHER = 200


def read_metrics(
    outputs: Path, clock_at: float, most_lines: int, unread: list[str]
) -> tuple[dict[MetricKey, Series], int]:
    """The series in an instance's outputs, times counted from `clock_at`, and how many lines were left out of them.

    A sentence for each file that cannot be read goes into `unread`.
    """
    series: dict[MetricKey, tuple[array[float], array[float]]] = {}
    left_out = 0
    for file in FILES:
        path = outputs / f"{file}.out"
        count = sum(1 for _ in lines_of(path, unread))
        kept = list(thinned(lines_of(path, []), count, most_lines))
        left_out += count - len(kept)
        for found in parsed(kept):
            _take(file, found, clock_at, series)
    return {key: Series(tuple(times), tuple(values)) for key, (times, values) in series.items()}, left_out


def lines_of(path: Path, unread: list[str]) -> Iterator[bytes]:
    """A file's lines, one after the other; none where there is no file, and of what cannot be read, which is noted."""
    try:
        with path.open("rb") as file:
            yield from file
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        unread.append(unread_words(path, error))


def unread_words(path: Path, error: OSError) -> str:
    """What a page says of a file that it lacks."""
    return f"{path} cannot be read: {error.strerror}; what it tells is not here."


def parsed(lines: Sequence[bytes]) -> Iterator[object]:
    """What lines say that are JSON. Many are parsed at once: one by one a line takes 9 µs, so 3 µs."""
    for start in range(0, len(lines), _TOGETHER):
        some = lines[start : start + _TOGETHER]
        try:
            yield from json.loads(b"[" + b",".join(some) + b"]")
        except (ValueError, RecursionError):
            for line in some:
                with suppress(ValueError, RecursionError):
                    yield json.loads(line)


def thinned(lines: Iterable[bytes], count: int, most: int) -> Iterator[bytes]:
    """Every nth of `count` lines so that about `most` are left, and all of the last ones: they sum up those before."""
    step = max(1, -(-count // most))
    return (line for number, line in enumerate(lines) if number % step == 0 or number >= count - _LAST_LINES)


def _take(file: str, found: Any, clock_at: float, series: dict[MetricKey, tuple[array[float], array[float]]]) -> None:
    try:
        at_s = found["ts"] / 1e9 - clock_at
        if not abs(at_s) < 1e12:
            return
        kind, name, measures = str(found["type"]), str(found["name"]), found["measures"]
        for measure in MEASURES.get(kind) or sorted(measures):
            value = measures.get(measure)
            if isinstance(value, int | float) and abs(value) < 1e300:
                value = value / 1e9 if kind == "timer" and measure in _NANOSECONDS else value
                times, values = series.setdefault(MetricKey(file, name, kind, measure), (array("d"), array("d")))
                times.append(at_s)
                values.append(value)
    except (LookupError, TypeError, AttributeError, OverflowError):
        return  # no metric: an application may write what it likes
