"""Showing what a run's instances say, at the chosen verbosity: above the view, or as the daemon's lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from remote_runner.instance.reporter import STEP, WARNING
from remote_runner.sizes import count
from tasks.say import result_width, say
from tasks.view.colours import END, GREEN, GREY, RED, begin, without_colours
from tasks.view.display import Display
from tasks.view.failures import Failure, sameness, sameness_of_warning
from tasks.view.how import Level
from tasks.view.table import filled
from testground.go_stack import without_stack
from testground.local_exec import DaemonLines
from testground.terminal import harmless
from testground.verdict import Report, Word

_FAILURES = {Word.FAIL: "failed", Word.CRASH: "crashed", Word.INCOMPLETE: "incomplete", Word.INTERNAL_ERR: "incomplete"}
_FAILED, _OK, _TAG = begin(RED, bold=True), begin(GREEN), begin(GREY)


def least_level(report: Report) -> Level:
    """From which level on it is told."""
    match report.word:
        case Word.START:
            return Level.ALL
        case Word.OK:
            return Level.STEPS
        case Word.MESSAGE if report.msg == STEP:
            return Level.STEPS
        case _:
            return Level.USUAL


class RunLines:
    """A `testground.local_exec.Listener`."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._daemon = DaemonLines(sys.stderr)
        self._told: set[tuple[str, str]] = set()
        self._failed: set[str] = set()

    def said(self, tag: str, reports: Sequence[Report], started_ns: int) -> None:
        """Show what of it is wanted."""
        shown = [report for report in map(self._shortened, reports) if self._is_shown(tag, report)]
        if not shown:
            return
        if self._display.is_drawn:
            self._display.line("\n".join(_line(report, tag, started_ns) for report in shown), wait=True)
        else:
            with suppress(OSError):  # a stderr that takes nothing ends no run
                self._daemon.said(tag, shown, started_ns)

    def ending(self, living: int, *, at_once: bool) -> None:
        """Say what happens now, and what else could be done."""
        what, they = count(living, "instance"), "it" if living == 1 else "they"
        if at_once:
            say(f"killing {what}; what {they} wrote stays on the hosts")
        else:
            say(f"stopping {what} and fetching what {they} wrote; Ctrl-C again kills")

    def _is_shown(self, tag: str, report: Report) -> bool:
        level = self._display.level
        if level < least_level(report):
            return False
        if level >= Level.STEPS:
            return True
        if report.word is Word.MESSAGE and report.msg == WARNING:
            return self._is_new((WARNING, sameness_of_warning(report.text, self._display.host_of(tag))))
        if report.word not in _FAILURES:
            return True
        if report.word is Word.INCOMPLETE and tag in self._failed:
            return False
        # The summary says how many were the same.
        self._failed.add(tag)
        return self._is_new(sameness(Failure(tag, self._display.host_of(tag), report.word.value, report.text)))

    def _shortened(self, report: Report) -> Report:
        """Without a stack, for readers who do not want every step; `fab runs.logs` has it."""
        if self._display.level >= Level.STEPS or report.word not in _FAILURES:
            return report
        return replace(report, text=without_stack(report.text))

    def _is_new(self, same: tuple[str, str]) -> bool:
        is_new = same not in self._told
        self._told.add(same)
        return is_new


def _line(report: Report, tag: str, started_ns: int) -> str:
    at_ns = time.time_ns() if report.ts_ns is None else report.ts_ns
    begin, text = f"{max(0, at_ns - started_ns) / 1e9:6.1f}s {tag}", harmless(without_colours(report.text))
    if report.msg in (WARNING, STEP):
        return f"{_TAG}{begin}{END}{filled(f'{begin} {text}', result_width())[len(begin) :]}"
    if report.word is Word.OK:
        return f"{_TAG}{begin}{END} {_OK}{report.word.value}{END}"
    if report.word not in _FAILURES:
        return f"{_TAG}{begin}{END} {text}"  # the application's line is its own, however long it is
    word = report.word.value
    text = filled(f"{begin} {word} {text}", result_width())
    return f"{_TAG}{begin}{END} {_FAILED}{word}{END}{text[len(begin) + 1 + len(word) :]}"
