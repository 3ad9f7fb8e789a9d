"""Go's stacks in a line, as sdk-go printed them (recordings/local-exec/panic)."""

from __future__ import annotations

import json

from testground.go_stack import cut_at_stack, panicked, without_stack
from tests.recordings import RECORDINGS

RECORDED = RECORDINGS / "local-exec/panic/single/0"


def test_a_recorded_panic_is_told_by_its_reason_or_else_by_its_place() -> None:
    lines = (RECORDED / "stdout").read_text(encoding="utf-8").splitlines()
    stack, reason = (json.loads(line)["event"]["crash_event"] for line in lines if '"crash_event"' in line)
    assert without_stack(stack["error"]) == "panicked in main.ExamplePanic (panic.go:12)"
    assert without_stack(reason["error"] + reason["stacktrace"]) == "intentional panic"
    # Who prints a stack is not who panicked.
    said, printed = cut_at_stack((RECORDED / "stderr").read_text(encoding="utf-8"))
    assert (said, panicked(printed)) == ("intentional panic\n", "")


def test_a_panic_that_nobody_recovered_from() -> None:
    text = "panic: no\n\ngoroutine 6 [running]:\nnet.(*T).Dial({0x1, 0x2})\n\t/go/net.go:4 +0x1\nmain.main.func1()\n"
    said, stack = cut_at_stack(f"{text}\t/a/main.go:7 +0x25\ncreated by main.main in goroutine 1\n\t/a/main.go:6\n")
    assert (said, panicked(stack)) == ("panic: no\n\n", "panicked in main.main.func1 (main.go:7)")


def test_what_has_no_stack_is_as_it_was_and_an_odd_stack_is_its_first_line() -> None:
    assert without_stack("a\n goroutine 7") == "a\n goroutine 7"
    assert without_stack("") == ""
    assert without_stack("goroutine 28 [running]:\nmain.meet()") == "goroutine 28 [running]:"
