"""The verdict and the printed words against the daemon's own, for every recording of instances on the Go SDK."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testground.events import parse_line
from testground.verdict import LINE_LIMIT_BYTES, Report, StderrReader, StdoutReader, Verdict, Word, print_line
from tests.recordings import RECORDINGS
from tests.testground.daemon_text import daemon_printed, is_cut, recorded_failures

_OK = b'{"ts":1,"event":{"success_event":{"group":"g"}}}\n'
_CASES = {"artifact": 1, "failure": 1, "metrics": 1, "output": 1, "panic": 1, "params": 1, "sync": 3}


def _read(stdout: bytes, piece_bytes: int) -> tuple[StdoutReader, list[Report]]:
    reader = StdoutReader()
    reports = []
    for start in range(0, len(stdout), piece_bytes):
        reports += reader.feed(stdout[start : start + piece_bytes])
    return reader, reports + reader.end()


@pytest.mark.parametrize("case", _CASES)
def test_recorded_instances_are_printed_and_judged_as_by_the_daemon(case: str) -> None:
    directory = RECORDINGS / "local-exec" / case
    recording = (directory / "daemon.txt").read_text()
    printed = daemon_printed(recording)
    instances = sorted((directory / "single").iterdir())
    assert len(instances) == _CASES[case]
    failures = 0
    for instance in instances:
        reader, reports = _read((instance / "stdout").read_bytes(), 1000)
        by_daemon = [entry.said for entry in printed if entry.number == int(instance.name)]
        assert by_daemon
        ours = [(report.word.value, report.text) for report in reports]
        assert (ours[: len(by_daemon)] if is_cut(recording) else ours) == by_daemon
        failures += reader.verdict is not Verdict.OK
    assert is_cut(recording) or failures == recorded_failures(recording)


@pytest.mark.parametrize("case", _CASES)
def test_elapsed_times_are_the_instances_own(case: str) -> None:
    directory = RECORDINGS / "local-exec" / case
    printed = [entry for entry in daemon_printed((directory / "daemon.txt").read_text()) if entry.number == 0]
    events = [parse_line(line) for line in (directory / "single/0/stdout").read_bytes().splitlines()]
    times_ns = [event.ts_ns for event in events if event is not None]
    elapsed_s = [entry.elapsed_s for entry in printed if entry.word not in ("OTHER", "ERROR")]
    assert len(times_ns) == len(elapsed_s) or case == "metrics"  # its recording is cut
    started_ns = times_ns[0] - round(elapsed_s[0] * 1e9)
    for ts_ns, expected_s in zip(times_ns, elapsed_s, strict=False):
        line = print_line(Report(Word.MESSAGE, "text", ts_ns), "single[000]", started_ns=started_ns, now_ns=0)
        assert float(line.split("s ")[0]) == pytest.approx(expected_s, abs=0.00011)


def test_a_line_is_laid_out_as_the_daemons() -> None:
    recording = (RECORDINGS / "local-exec/failure/daemon.txt").read_text()
    report = Report(Word.MESSAGE, "This is what happens when there is a failure", 15_100_000)
    assert f"\t{print_line(report, 'single[000]', started_ns=0, now_ns=0)}\n" in recording
    report = Report(Word.OTHER, "Starting wait")
    assert f"\t{print_line(report, 'single[000]', started_ns=0, now_ns=13_100_000)}\n" in recording


def test_a_clock_behind_ours_counts_as_no_time() -> None:
    assert print_line(Report(Word.OK, "", 5), "g[001]", started_ns=10, now_ns=20) == "0.0000s         OK << g[001] >> "


@pytest.mark.parametrize("piece_bytes", [1, 7, 65536, 10**6])
@pytest.mark.parametrize(
    ("size_bytes", "ending", "is_read"),
    [
        (LINE_LIMIT_BYTES - 1, b"\n", True),
        (LINE_LIMIT_BYTES, b"\n", False),
        (LINE_LIMIT_BYTES - 2, b"\r\n", True),
        (LINE_LIMIT_BYTES - 1, b"\r\n", False),
    ],
)
def test_the_line_limit_is_gos_to_the_byte(size_bytes: int, ending: bytes, is_read: bool, piece_bytes: int) -> None:
    if piece_bytes == 1 and not is_read:
        piece_bytes = 3
    reader, reports = _read(b"a" * size_bytes + ending + _OK, piece_bytes)
    assert (reader.verdict is Verdict.OK) == is_read
    words = [report.word for report in reports]
    assert words == ([Word.OTHER, Word.OK] if is_read else [Word.INCOMPLETE])
    assert is_read or "65536 bytes" in reader.reason


@pytest.mark.parametrize(("size_bytes", "is_read"), [(LINE_LIMIT_BYTES - 1, True), (LINE_LIMIT_BYTES, False)])
def test_the_limit_holds_for_a_last_line_without_an_ending(size_bytes: int, is_read: bool) -> None:
    _, reports = _read(_OK + b"a" * size_bytes, 4096)
    assert [report.word for report in reports] == ([Word.OK, Word.OTHER] if is_read else [Word.OK])


def test_every_line_on_stderr_is_an_error() -> None:
    # Recorded: the daemon shows them so (verdict/event-on-stderr); that of `panic` it did not get to see.
    stderr = (RECORDINGS / "local-exec/panic/single/0/stderr").read_text()
    reader = StderrReader()
    reports = reader.feed(stderr.encode()) + reader.end()
    assert [(report.word, report.text) for report in reports] == [(Word.ERROR, line) for line in stderr.splitlines()]
    assert len(reports) == 16


def test_a_long_line_on_stderr_ends_that_one_only() -> None:
    reader = StderrReader()
    reports = reader.feed(b"first\n" + b"a" * LINE_LIMIT_BYTES) + reader.feed(b"\nlast\n") + reader.end()
    assert [report.text for report in reports] == ["first", "bufio.Scanner: token too long"]
    assert reader.done


@pytest.mark.parametrize(
    ("event", "verdict", "reason"),
    [
        ({"success_event": {"group": "g"}}, Verdict.OK, ""),
        ({"failure_event": {"group": "g", "error": "why"}}, Verdict.FAILED, "why"),
        ({"crash_event": {"group": "g", "error": "boom", "stacktrace": "at"}}, Verdict.CRASHED, "boom"),
        ({"message_event": {"message": "m"}}, Verdict.INCOMPLETE, "its stdout ended without a success event"),
        ({"new": {}}, Verdict.INCOMPLETE, "an unknown event ended the reading of its stdout: new"),
    ],
)
def test_a_verdict_has_its_reason(event: object, verdict: Verdict, reason: str) -> None:
    reader, _ = _read(json.dumps({"ts": 1, "event": event}).encode(), 10**6)
    assert (reader.verdict, reader.reason) == (verdict, reason)


def test_the_first_failure_is_the_reason_and_no_success_heals_it() -> None:
    lines = b"".join(
        json.dumps({"ts": 1, "event": {"failure_event": {"group": "g", "error": error}}}).encode() + b"\n"
        for error in ("first", "second")
    )
    reader, _ = _read(lines + _OK, 10**6)
    assert (reader.verdict, reader.reason) == (Verdict.FAILED, "first")


def test_a_panic_that_sdk_go_tells_twice_has_the_reason_and_not_the_stack() -> None:
    stack = {"crash_event": {"group": "g", "error": "goroutine 28 [running]:\nmain.meet()", "stacktrace": ""}}
    reason = {"crash_event": {"group": "g", "error": "index out of range", "stacktrace": "goroutine 1 [running]:"}}
    lines = [json.dumps({"ts": 1, "event": event}).encode() + b"\n" for event in (stack, reason)]
    assert _read(b"".join(lines), 10**6)[0].reason == "index out of range"
    assert _read(lines[0], 10**6)[0].reason == "goroutine 28 [running]:"


def test_the_recordings_have_no_case_that_is_not_compared() -> None:
    found = {path.name for path in Path(RECORDINGS / "local-exec").iterdir() if path.is_dir()}
    assert found == set(_CASES)


def test_a_start_event_that_is_nested_deeply_is_shown_without_it() -> None:
    nested = b"[" * 400 + b"]" * 400
    reader = StdoutReader()
    (report,) = reader.feed(b'{"ts":1,"event":{"start_event":{"runenv":{"plan":"p","params":%s}}}}\n' % nested)
    assert report.text.startswith('{"plan":"p"')
