"""Writing an instance's events to stdout and `run.out`, and its metrics to `results.out` and `diagnostics.out`."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from testground.errors import RunEnvError
from testground.events import (
    CrashEvent,
    Event,
    FailureEvent,
    MessageEvent,
    StageEndEvent,
    StageStartEvent,
    StartEvent,
    SuccessEvent,
    encode_event,
)
from testground.influxdb import InfluxWriter, event_line, metric_line
from testground.metrics import Metric, Metrics, encode_metric

if TYPE_CHECKING:
    from testground.runenv import RunEnv

RESULTS_INTERVAL_S = 1.0
DIAGNOSTICS_INTERVAL_S = 5.0

# What the SDK tells InfluxDB, in its words (recordings/influxdb-writes.txt shows the odd one out).
_COUNTED_EVENTS: dict[type[Event], str] = {
    StartEvent: "start_event",
    SuccessEvent: "SuccessEvent",
    FailureEvent: "failure_event",
    CrashEvent: "crash_event",
}


def tags_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The tags that tell remote-runner's instances apart in InfluxDB: `host` and `system`, where they are known."""
    known = {"host": environ.get("REMOTE_RUNNER_HOST"), "system": environ.get("REMOTE_RUNNER_SYSTEM")}
    return {name: value for name, value in known.items() if value}


class Recorder:
    """Records one instance's events and metrics; a context manager, or to be closed. For any number of threads.

    Nothing that goes wrong with recording ends the application: each file or service that cannot be written is told
    of in one message. `results` and `diagnostics` are the two sets of metrics, written every second and every five.
    With `TEST_DISABLE_METRICS`, or without an `INFLUXDB_URL`, metrics go to files alone. InfluxDB is also given `tags`.
    """

    def __init__(
        self,
        runenv: RunEnv,
        *,
        tags: Mapping[str, str] | None = None,
        stdout: BinaryIO | None = None,
        stderr: BinaryIO | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._runenv = runenv
        self._stdout = sys.stdout.buffer if stdout is None else stdout
        self._stderr = sys.stderr.buffer if stderr is None else stderr
        self._clock_ns = clock_ns
        self._tags = {"group_id": runenv.group_id, "run": runenv.run, **(tags or {})}
        self._guard = threading.Lock()  # one line at a time, the same order on stdout and in run.out
        self._problems: deque[str] = deque()
        self._files: list[_OutputFile] = []
        self._run_out, self._run_err = self._open("run.out"), self._open("run.err")
        self._influx = self._open_influx()
        self.results = self._open_metrics("results", RESULTS_INTERVAL_S)
        self.diagnostics = self._open_metrics("diagnostics", DIAGNOSTICS_INTERVAL_S)
        self._tell_problems()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write all metrics once more and send what InfluxDB has not got."""
        self.results.close()
        self.diagnostics.close()
        if self._influx is not None:
            self._influx.close()
        self._tell_problems()
        for file in self._files:
            file.close()

    def message(self, text: str) -> None:
        """Tell something."""
        self._record(MessageEvent(text))

    def start(self) -> None:
        """The instance has begun; tells what it was given."""
        self._record(StartEvent(self._runenv.to_start_event()))

    def success(self) -> None:
        """The instance's work succeeded. Testground demands this of every instance."""
        self._record(SuccessEvent(self._runenv.group_id))

    def failure(self, error: BaseException | str) -> None:
        """The instance's work failed."""
        self._record(FailureEvent(self._runenv.group_id, str(error)))

    def crash(self, error: BaseException) -> None:
        """The instance ends by an exception that nobody thought of; its traceback goes to stderr and `run.err`, too."""
        import traceback

        stack = "".join(traceback.format_exception(error))
        text = stack.encode("utf-8", "replace")
        with self._guard:
            _write(self._stderr, text)
            self._run_err.write(text)
        self._record(CrashEvent(self._runenv.group_id, str(error) or type(error).__name__, stack))

    def stage_start(self, name: str) -> None:
        """A named part of the work begins."""
        self._record(StageStartEvent(name, self._runenv.group_id))

    def stage_end(self, name: str) -> None:
        """A named part of the work has ended."""
        self._record(StageEndEvent(name, self._runenv.group_id))

    def _record(self, event: Event) -> None:
        with self._guard:
            ts_ns = self._clock_ns()
            line = encode_event(event, ts_ns=ts_ns, group_id=self._runenv.group_id, run_id=self._runenv.run)
            _write(self._stdout, line)
            self._run_out.write(line)
        counted = _COUNTED_EVENTS.get(type(event))
        if self._influx is not None and counted is not None:
            self._influx.write(event_line(counted, ts_ns, self._tags))
        self._tell_problems()

    def _tell_problems(self) -> None:
        """Tell what went wrong with recording; not from inside `_record`, whose line comes first."""
        with suppress(IndexError):
            while True:
                self.message(self._problems.popleft())

    def _open(self, name: str) -> _OutputFile:
        file = _OutputFile(self._runenv.outputs_path / name, self._problems.append)
        self._files.append(file)
        return file

    def _open_influx(self) -> InfluxWriter | None:
        if self._runenv.disable_metrics:
            return None
        try:
            address = self._runenv.influxdb
        except RunEnvError as error:
            self._problems.append(f"no metrics to InfluxDB: {error}")
            return None
        if address is None:
            return None
        scheme = "https" if self._runenv.influxdb_url.startswith("https:") else "http"
        return InfluxWriter(scheme, address.host, address.port, self.message)

    def _open_metrics(self, kind: str, interval_s: float) -> Metrics:
        file, influx, runenv, tags = self._open(f"{kind}.out"), self._influx, self._runenv, self._tags

        def write(metric: Metric) -> None:
            file.write(encode_metric(metric))
            if influx is not None:
                influx.write(metric_line(kind, runenv.plan, runenv.case, metric, tags))

        return Metrics(write, interval_s=interval_s, on_problem=self.message, clock_ns=self._clock_ns)


class _OutputFile:
    """A file of the outputs, each write complete at once; `on_problem` is told why it cannot be written, once."""

    def __init__(self, path: Path, on_problem: Callable[[str], None]) -> None:
        self._path, self._on_problem = path, on_problem
        self._file: BinaryIO | None = None
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            self._give_up(error)

    def write(self, line: bytes) -> None:
        if self._file is not None:
            try:
                self._file.write(line)
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self, error: OSError) -> None:
        self.close()
        self._on_problem(f"outputs: {self._path} is not written any further: {error.strerror}")


def _write(stream: BinaryIO, line: bytes) -> None:
    try:
        stream.write(line)
        stream.flush()
    except (OSError, ValueError):
        # Nobody reads there (any more); the file beside it has the line.
        return
