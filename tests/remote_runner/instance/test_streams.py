"""The line limit: what comes in comes out, but for what Testground could not read."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest

from remote_runner.instance.streams import LONGEST_LINE, LineGuard, shorten
from testground.events import CrashEvent, FailureEvent, MessageEvent, SuccessEvent, encode_event, parse_line
from testground.verdict import StdoutReader, Verdict


class Collected:
    def __init__(self, directory: Path) -> None:
        self.pieces: list[bytes] = []
        self.file = directory / "remote-runner.stdout.lines"
        self.guard = LineGuard(lambda lines: self.pieces.append(bytes(lines)), self.file)

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def event(event: MessageEvent | SuccessEvent | FailureEvent | CrashEvent) -> bytes:
    return encode_event(event, ts_ns=1690000000000000000, group_id="single", run_id="r")


@pytest.mark.parametrize("chunk", [1, 7, 4096, 100_000])
def test_short_lines_pass_byte_for_byte(tmp_path: Path, chunk: int) -> None:
    seeded = random.Random(chunk)
    data = b"".join(seeded.randbytes(seeded.choice([0, 1, 80, 5000])).replace(b"\n", b"\r") + b"\n" for _ in range(40))
    data += b"no newline at the end"
    collected = Collected(tmp_path)
    for start in range(0, len(data), chunk):
        collected.guard.feed(data[start : start + chunk])
    assert all(piece.endswith(b"\n") for piece in collected.pieces)
    collected.guard.close()
    assert collected.data == data
    assert not collected.file.exists()


def test_the_last_words_are_at_hand(tmp_path: Path) -> None:
    collected = Collected(tmp_path)
    assert collected.guard.last == b""
    collected.guard.feed(b"first\n" * 1000 + b"Error: no ")
    collected.guard.feed(b"such name")
    collected.guard.close()
    assert collected.guard.last == b"Error: no such name"
    collected.guard.feed(b"x" * 1000 + b"the end\n")
    assert collected.guard.last.endswith(b"xthe end\n")
    assert len(collected.guard.last) == 400


def test_of_very_much_only_the_beginning_is_kept_and_that_is_said(tmp_path: Path) -> None:
    collected = Collected(tmp_path)
    collected.guard = LineGuard(lambda lines: collected.pieces.append(bytes(lines)), collected.file, kept_bytes=300_000)
    for _ in range(2):
        for _ in range(20):
            collected.guard.feed(b"x" * 10_000)
        collected.guard.feed(b"\n")
    collected.guard.close()
    first, second = collected.data.splitlines()
    assert b"[cut: 200001 bytes, whole as line 1 of" in first
    assert b"[cut: 200001 bytes, its first 99999 bytes as line 2 of" in second
    assert collected.file.stat().st_size == 300_000


@pytest.mark.parametrize("length", [LONGEST_LINE - 1, LONGEST_LINE, LONGEST_LINE + 1, 65536, 1_000_000])
@pytest.mark.parametrize("chunk", [1000, 61440, 1 << 20])
def test_every_line_fits_and_the_whole_one_is_kept(tmp_path: Path, length: int, chunk: int) -> None:
    line = b"x" * (length - 1) + b"\n"
    data = b"before\n" + line + b"after\n"
    collected = Collected(tmp_path)
    for start in range(0, len(data), chunk):
        collected.guard.feed(data[start : start + chunk])
    collected.guard.close()
    lines = collected.data.splitlines(keepends=True)
    assert lines[0] == b"before\n"
    assert lines[2:] == [b"after\n"]
    if length <= LONGEST_LINE:
        assert lines[1] == line
    else:
        assert len(lines[1]) <= LONGEST_LINE
        assert f"[cut: {length} bytes, whole as line 1 of {collected.file.name}]".encode() in lines[1]
        assert collected.file.read_bytes() == line


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, 'quote " and \\ ' * 20_000, "ü€😀" * 40_000, "\n\t\x01" * 60_000],
    ids=["plain", "escapes", "unicode", "controls"],
)
def test_a_long_event_stays_an_event(tmp_path: Path, text: str) -> None:
    for made in (MessageEvent(text), FailureEvent("single", text), CrashEvent("single", "short", text)):
        collected = Collected(tmp_path)
        collected.guard.feed(event(made))
        collected.guard.close()
        assert len(collected.data) <= LONGEST_LINE
        found = parse_line(collected.data)
        assert found is not None
        assert type(found.event) is type(made)
        assert found.ts_ns == 1690000000000000000
        cut = found.event.message if isinstance(found.event, MessageEvent) else str(vars_of(found.event))
        assert "[cut: " in cut
    assert collected.guard.seen.failure


def vars_of(event: object) -> list[str]:
    return [getattr(event, name) for name in event.__slots__]  # type: ignore[attr-defined]


def test_every_place_for_the_cut_leaves_json() -> None:
    # The cut falls on each position around escapes and sequences of several bytes.
    for shift in range(16):
        line = event(MessageEvent("x" * shift + '\\"\u20ac😀\x01' * 9000))
        shortened = shorten(line[:LONGEST_LINE], len(line), "whole as line 1 of f")
        assert json.loads(shortened)["event"]["message_event"]["message"].startswith("x" * shift)


def test_an_event_with_its_time_last_gets_one() -> None:
    line = b'{"event":{"message_event":{"message":"' + b"a" * 100_000 + b'"}},"ts":1}\n'
    found = json.loads(shorten(line[:LONGEST_LINE], len(line), "whole as line 1 of f"))
    assert found["ts"] > 1690000000000000000


def test_an_event_of_many_short_values_is_cut_between_them() -> None:
    params = ",".join(f'"p{number}":"value"' for number in range(10_000))
    line = b'{"ts":1,"event":{"start_event":{"runenv":{"plan":"p","params":{' + params.encode() + b"}}}}}\n"
    found = json.loads(shorten(line[:LONGEST_LINE], len(line), "whole as line 1 of f"))
    assert found["event"]["start_event"]["runenv"]["params"]["p100"] == "value"


@pytest.mark.parametrize("line", [b"}" * 70_000, b'{"ts":1]' + b" " * 70_000, b'{"msg":"' + b"a" * 70_000 + b'"}'])
def test_what_is_no_event_is_cut_as_text(line: bytes) -> None:
    assert b"[cut: 9 bytes" in shorten(line, 9, "whole as line 1 of f")


def test_the_daemon_reads_on_behind_a_long_line(tmp_path: Path) -> None:
    collected = Collected(tmp_path)
    collected.guard.feed(b"y" * 300_000 + b"\n" + event(SuccessEvent("single")))
    collected.guard.close()
    reader = StdoutReader()
    reader.feed(collected.data)
    reader.end()
    assert reader.verdict is Verdict.OK
    assert collected.guard.seen.success
    assert not collected.guard.seen.failure


def test_words_about_events_are_none(tmp_path: Path) -> None:
    collected = Collected(tmp_path)
    collected.guard.feed(b'waiting for the "success_event" to come\n')
    assert not collected.guard.seen.success


def test_memory_stays_flat_for_a_line_without_end(tmp_path: Path) -> None:
    collected = Collected(tmp_path)
    chunk = b"z" * (1 << 18)
    collected.guard.feed(chunk)
    tracemalloc.start()
    for _ in range(200):
        collected.guard.feed(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    collected.guard.close()
    assert peak < 4 << 20
    assert collected.file.stat().st_size == 201 << 18
