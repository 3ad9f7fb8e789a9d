"""The verdict on an instance, from its stdout alone: the rules of testground v0.6.0 (recordings/verdict).

Pure: bytes go in as they come, reports come out; the exit status plays no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from testground.events import (
    CrashEvent,
    FailureEvent,
    MessageEvent,
    StageEndEvent,
    StageStartEvent,
    StartEvent,
    SuccessEvent,
    parse_line,
)
from testground.go_json import marshal
from testground.go_stack import without_stack
from testground.terminal import harmless

LINE_LIMIT_BYTES = 64 * 1024
"""A line this long, its newline counted, is still read; the first that is longer ends the reading."""


class Word(Enum):
    """Testground's word before each line it prints."""

    START = "START"
    OK = "OK"
    FAIL = "FAIL"
    CRASH = "CRASH"
    INCOMPLETE = "INCOMPLETE"
    MESSAGE = "MESSAGE"
    OTHER = "OTHER"
    ERROR = "ERROR"
    INTERNAL_ERR = "INTERNAL_ERR"


class Verdict(Enum):
    """How an instance ended: only `OK` is a success."""

    OK = "ok"
    FAILED = "failed"
    CRASHED = "crashed"
    INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Report:
    """One thing to print; `ts_ns` is the instance's own time of it (since the epoch), None means now.

    `msg` is that field of a message event's line.
    """

    word: Word
    text: str
    ts_ns: int | None = None
    msg: str = ""


class Lines:
    """Cuts a stream into lines as Go's bufio.Scanner does, with its limit; `too_long` says that it was met."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self.too_long = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes, without their line endings; none after one that is too long."""
        start = 0
        while not self.too_long:
            end = data.find(b"\n", start)
            piece_end = len(data) if end < 0 else end
            size_bytes = len(self._rest) + piece_end - start
            if size_bytes >= LINE_LIMIT_BYTES:
                self.too_long = True
                self._rest.clear()
                return
            if end < 0:
                self._rest += data[start:]
                return
            line = bytes(self._rest) + data[start:end] if self._rest else data[start:end]
            self._rest.clear()
            start = end + 1
            yield line.removesuffix(b"\r")

    def end(self) -> Iterator[bytes]:
        """What stands after the last newline, if anything."""
        if self._rest:
            line = bytes(self._rest)
            self._rest.clear()
            yield line.removesuffix(b"\r")


class StdoutReader:
    """Reads one instance's stdout. `done` says that nothing more will be read: the reader's end may be closed."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._succeeded = False
        self._failures: list[tuple[Verdict, str]] = []
        self._why_ended = "its stdout ended without a success event"
        self.done = False

    def feed(self, data: bytes) -> list[Report]:
        """What the daemon would print for these bytes."""
        reports: list[Report] = []
        if self.done:
            return reports
        for line in self._lines.feed(data):
            if not self._read(line, reports):
                return reports
        if self._lines.too_long:
            self._why_ended = f"a line of more than {LINE_LIMIT_BYTES} bytes ended the reading of its stdout"
            self._finish(reports)
        return reports

    def end(self) -> list[Report]:
        """What the daemon would print at the end of stdout; harmless when done before."""
        reports: list[Report] = []
        if self.done:
            return reports
        for line in self._lines.end():
            if not self._read(line, reports):
                return reports
        self._finish(reports)
        return reports

    @property
    def verdict(self) -> Verdict:
        """The verdict on what was read so far."""
        if self._failures:
            return self._failures[0][0]
        return Verdict.OK if self._succeeded else Verdict.INCOMPLETE

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, as far as was read; "" for a success."""
        match self.verdict:
            case Verdict.OK:
                return ""
            case Verdict.INCOMPLETE:
                return self._why_ended
            case _:
                # sdk-go tells a panic twice: by its stack alone, then by its reason.
                told = (words for verdict, words in self._failures if verdict is self.verdict)
                first = self._failures[0][1]
                return next((words for words in told if not words.startswith("goroutine ")), without_stack(first))

    def _read(self, line: bytes, reports: list[Report]) -> bool:
        """Read a line; returns whether to go on reading."""
        found = parse_line(line)
        if found is None:
            reports.append(Report(Word.OTHER, line.decode("utf-8", "replace")))
            return True
        match found.event:
            case SuccessEvent():
                self._succeeded = True
                reports.append(Report(Word.OK, "", found.ts_ns))
            case FailureEvent(error=error):
                self._failures.append((Verdict.FAILED, error))
                reports.append(Report(Word.FAIL, error, found.ts_ns))
            case CrashEvent(error=error, stacktrace=stacktrace):
                self._failures.append((Verdict.CRASHED, error))
                reports.append(Report(Word.CRASH, error + stacktrace, found.ts_ns))
            case MessageEvent(message):
                reports.append(Report(Word.MESSAGE, message, found.ts_ns, found.msg))
            case StartEvent(runenv):
                reports.append(Report(Word.START, _start_text(runenv), found.ts_ns))
            case StageStartEvent() | StageEndEvent():
                pass
            case _:
                self._why_ended = f"an unknown event ended the reading of its stdout: {', '.join(found.event.names)}"
                reports.append(Report(Word.INTERNAL_ERR, _UNKNOWN, found.ts_ns))
                self._finish(reports)
                return False
        return True

    def _finish(self, reports: list[Report]) -> None:
        self.done = True
        if self.verdict is Verdict.INCOMPLETE:
            reports.append(Report(Word.INCOMPLETE, ""))


class StderrReader:
    """Reads one instance's stderr: every line is an ERROR, the first that is too long ends the reading."""

    def __init__(self) -> None:
        self._lines = Lines()
        self.done = False

    def feed(self, data: bytes) -> list[Report]:
        """What the daemon would print for these bytes."""
        if self.done:
            return []
        reports = [Report(Word.ERROR, line.decode("utf-8", "replace")) for line in self._lines.feed(data)]
        if self._lines.too_long:
            self.done = True
            reports.append(Report(Word.ERROR, "bufio.Scanner: token too long"))
        return reports

    def end(self) -> list[Report]:
        """What the daemon would print at the end of stderr; harmless when done before."""
        if self.done:
            return []
        self.done = True
        return [Report(Word.ERROR, line.decode("utf-8", "replace")) for line in self._lines.end()]


def print_line(report: Report, tag: str, *, started_ns: int, now_ns: int) -> str:
    """The daemon's line for a report, without a line ending: `0.0089s    MESSAGE << single[000] >> text`.

    Times are nanoseconds since the epoch; `tag` is `group[000]`. An instance's clock may be behind: then 0.
    Unlike the daemon's it does nothing to a terminal, whatever the instance printed.
    """
    at_ns = now_ns if report.ts_ns is None else report.ts_ns
    return f"{max(0, at_ns - started_ns) / 1e9:5.4f}s {report.word.value:>10} << {tag} >> {harmless(report.text)}"


# What Go prints for an event whose seven kinds are all absent.
_UNKNOWN = "unknown event: {" + " ".join(["<nil>"] * 7) + "}"

# The daemon reads the run environment into its own structure and prints that: its order, its omissions, its zero time.
_START_KEYS = (
    *("plan", "case", "run", "repo", "commit", "branch", "tag", "outputs_path", "temp_path", "instances", "role"),
    *("params", "group", "group_instances", "test_sidecar", "network", "start_time", "capture_profiles"),
    "disable_metrics",
)
_START_ALWAYS: Mapping[str, object] = {
    "plan": "",
    "case": "",
    "run": "",
    "instances": 0,
    "start_time": "0001-01-01T00:00:00Z",
}


def _start_text(runenv: Mapping[str, object]) -> str:
    shown = []
    for key in _START_KEYS:
        value = runenv.get(key) or _START_ALWAYS.get(key)
        if value or key in _START_ALWAYS:
            try:
                shown.append(f'"{key}":{marshal(value)}')
            except (TypeError, ValueError, RecursionError):
                continue
    return "{" + ",".join(shown) + "}"
