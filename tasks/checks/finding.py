"""A check's finding as a value, and how findings are shown. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from remote_runner.errors import RemoteRunnerError
from remote_runner.typed import as_typed
from tasks.view.table import wrapped

HERE = "here"


class Outcome(Enum):
    """What a finding means for a run: only what fails keeps one from going well."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What `check` found at `where` (a host's name, or `HERE`), and what to do about it ("" where nothing need be)."""

    where: str
    check: str
    outcome: Outcome
    found: str
    next_step: str = ""
    fixed: bool = False
    """Whether --fix has done something about it; `found` says what."""

    def to_json(self) -> dict[str, object]:
        return {
            "where": self.where,
            "check": self.check,
            "outcome": self.outcome.value,
            "found": self.found,
            "next_step": self.next_step or None,
            "fixed": self.fixed,
        }


def ok(where: str, check: str, found: str) -> Finding:
    """Nothing need be done."""
    return Finding(where, check, Outcome.OK, found)


def warn(where: str, check: str, found: str, next_step: str = "") -> Finding:
    """It may matter."""
    return Finding(where, check, Outcome.WARN, found, next_step)


def fail(where: str, check: str, found: str, next_step: str = "") -> Finding:
    """A run that uses it fails."""
    return Finding(where, check, Outcome.FAIL, found, next_step)


def failure(where: str, check: str, error: RemoteRunnerError) -> Finding:
    """An error of which the same can be said, with the last words of the program that told it."""
    first, *more = str(error).splitlines()
    said = [line.strip().removeprefix("| ") for line in more if line.strip().startswith("| ")]
    return fail(where, check, ": ".join([first.removeprefix(f"{where}: "), *said[-1:]]), error.next_step)


# Of more hosts those that are well get one row.
_FEW_HOSTS = 3


def condensed(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of which somebody reads all: of many hosts, one for each that is well in everything."""
    hosts = list(dict.fromkeys(finding.where for finding in findings if finding.where != HERE))
    if len(hosts) <= _FEW_HOSTS:
        return list(findings)
    shown = [finding for finding in findings if finding.where == HERE]
    for host in hosts:
        own = [finding for finding in findings if finding.where == host]
        bad = [finding for finding in own if finding.outcome is not Outcome.OK]
        shown += bad or [ok(host, "all", ", ".join(finding.check for finding in own))]
    return shown


_HEADER = ("where", "check", "outcome", "found, and what to do")
_LEAST_WORDS = 24


def findings_table(findings: Sequence[Finding], width: int) -> str:
    """A row for each, in at most so many columns; what was found goes on below itself, what to do behind an arrow."""
    rows = [(finding.where, finding.check, finding.outcome.value) for finding in findings]
    widths = [max(map(len, column)) for column in zip(_HEADER[:3], *rows, strict=True)]
    indent = sum(widths) + 2 * len(widths)
    words_width = max(_LEAST_WORDS, width - indent)
    lines = [_line(_HEADER[:3], widths, _HEADER[3])]
    for row, finding in zip(rows, findings, strict=True):
        first, *more = textwrap.wrap(as_typed(finding.found), words_width, break_on_hyphens=False) or [""]
        for number, step in enumerate(as_typed(finding.next_step).splitlines()):
            more += wrapped(f"{'  ' if number else '→ '}{step.strip()}", words_width, "  ")
        lines += [_line(row, widths, first), *(" " * indent + line for line in more)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], words: str) -> str:
    return "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), words]).rstrip()
