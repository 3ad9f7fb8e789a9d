"""Metrics and events to Testground's InfluxDB (version 1, line protocol), as the SDKs write them.

Database `testground`, which nobody here creates. Source of the names: recordings/influxdb-writes.txt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testground.metrics import Metric

DATABASE = "testground"
BATCH_LINES = 128
BATCH_INTERVAL_S = 1.0
TIMEOUT_S = 5.0
# Beyond this, lines are dropped while a batch is under way: an InfluxDB that hangs must not cost memory without end.
MAX_PENDING_LINES = 50_000


def metric_line(kind: str, plan: str, case: str, metric: Metric, tags: Mapping[str, str]) -> str:
    """The line of a metric; `kind` is `results` or `diagnostics`. Tags in the metric's name (`name,key=value`) join."""
    name, *named = metric.name.split(",")
    own = dict(pair.split("=", 1) for pair in named if "=" in pair)
    fields = ",".join(f"{key}={float(value)!r}" for key, value in sorted(metric.measures.items()))
    return f"{_head(f'{kind}.{plan}-{case}.{name}.{metric.type}', {**tags, **own})} {fields} {metric.ts_ns}"


def event_line(event_type: str, ts_ns: int, tags: Mapping[str, str]) -> str:
    """The line that counts one event, for example a `start_event`."""
    return f"{_head('events', {**tags, 'event_type': event_type})} count=1i {ts_ns}"


def _head(measurement: str, tags: Mapping[str, str]) -> str:
    pairs = (
        f",{_escaped(key, ', =')}={_escaped(value, ', =')}" for key, value in sorted(tags.items()) if key and value
    )
    return _escaped(measurement, ", ") + "".join(pairs)


def _escaped(text: str, special: str) -> str:
    """The text with special characters escaped by a backslash; a newline, which has no escape, becomes a space.

    A backslash at the end would escape what follows, so it gets a space after it.
    """
    flat = " ".join(text.splitlines()) if text.splitlines() != [text] else text
    if flat.endswith("\\"):
        flat += " "
    return "".join(f"\\{character}" if character in special else character for character in flat)


class InfluxWriter:
    """Sends lines in batches from a thread of its own, so that a slow or absent InfluxDB holds nobody up.

    `on_problem` is told of the first failure, and of no other; the lines of a batch that failed are lost.
    """

    def __init__(self, scheme: str, host: str, port: int, on_problem: Callable[[str], None]) -> None:
        self._scheme, self._host, self._port, self._on_problem = scheme, host, port, on_problem
        self._pending: list[str] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._has_failed = False
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Send a line with one of the next batches."""
        with self._changed:
            if len(self._pending) < MAX_PENDING_LINES and not self._is_closing:
                self._pending.append(line)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._send_batches, name="influxdb", daemon=True)
                    self._thread.start()
                if len(self._pending) >= BATCH_LINES:
                    self._changed.notify()

    def close(self) -> None:
        """Send what is left; waits for that no longer than one request may take, twice."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(2 * TIMEOUT_S)

    def _send_batches(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or len(self._pending) >= BATCH_LINES, BATCH_INTERVAL_S)
                batch, self._pending = self._pending, []
                is_last = self._is_closing
            if batch:
                self._send(batch)
            if is_last:
                return

    def _send(self, batch: list[str]) -> None:
        import http.client

        kind = http.client.HTTPSConnection if self._scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            body = "\n".join(batch).encode("utf-8", "replace")
            connection.request("POST", f"/write?db={DATABASE}&precision=ns", body)
            response = connection.getresponse()
            answer = response.read(500).decode("utf-8", "replace").strip()
            problem = "" if response.status == 204 else f"status {response.status} {answer}"
        except (OSError, http.client.HTTPException) as error:
            problem = f"{error}" or type(error).__name__
        finally:
            connection.close()
        if problem and not self._has_failed:
            self._has_failed = True
            self._on_problem(
                f"InfluxDB at {self._host}:{self._port} takes no metrics, they are in the outputs alone: {problem}"
            )
