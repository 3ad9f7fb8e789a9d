"""The table of faults in docs/faults.md: its rows come from the tests of faults, its times from their results.

A test of a fault has a mark of `fault` and takes the fixture `clock`. `make faults` runs them all by themselves, and
then `python -m tests.faults`, which writes the table anew from the results that they left (in tests/results/).
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
RESULTS = ROOT / "tests" / "results" / "faults"
_BEGIN, _END = "<!-- faults: ", "<!-- end of faults -->"


@dataclass(frozen=True)
class Fault:
    """A row of the table: what happens to us, what comes of it, and how soon that is so at the latest."""

    what: str
    outcome: str
    bound: str


FAULTS: list[Fault] = []


def fault(what: str, outcome: str, bound: str) -> pytest.MarkDecorator:
    """Mark a test as the one of a fault (a row of the table)."""
    row = Fault(what, outcome, bound)
    assert what not in [other.what for other in FAULTS], f"two tests of one fault: {what}"
    FAULTS.append(row)
    return pytest.mark.fault.with_args(row)


@dataclass
class FaultClock:
    """Measures from a fault to the known state, and leaves the result for the table."""

    row: Fault
    test: str
    began_s: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """The fault happens now."""
        self.began_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_s

    def stop(self, bound_s: float) -> None:
        """The state is known now: assert that this is within the bound, by this test's settings, and note it."""
        elapsed_s = self.elapsed_s
        assert elapsed_s <= bound_s, f"{self.row.what}: {elapsed_s:.1f} s, and at most {bound_s:g} s are allowed"
        RESULTS.mkdir(parents=True, exist_ok=True)
        file = RESULTS / f"{''.join(c if c.isalnum() else '-' for c in self.test)}.json"
        values = {"what": self.row.what, "measured_s": round(elapsed_s, 1), "bound_s": bound_s}
        file.write_text(json.dumps(values), encoding="utf-8")


def known_faults() -> list[Fault]:
    """The rows in the order of the tests; imports them."""
    for file in sorted((ROOT / "tests" / "integration").glob("test_*.py")):
        importlib.import_module(f"tests.integration.{file.stem}")
    return FAULTS


def with_faults(text: str, rows: Iterable[tuple[Fault, str]]) -> str:
    """The page's text with these rows, each with what was measured."""
    begin = text.index("-->\n", text.index(_BEGIN)) + 4
    lines = ["| fault | what happens | bound | measured |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.what} | {row.outcome} | {row.bound} | {measured} |" for row, measured in rows]
    return f"{text[:begin]}" + "\n".join(lines) + f"\n{text[text.index(_END) :]}"


def rows_of(text: str) -> list[tuple[Fault, str]]:
    """The rows that the page's text has."""
    begin = text.index("-->\n", text.index(_BEGIN)) + 4
    rows = []
    for line in text[begin : text.index(_END)].strip().splitlines()[2:]:
        what, outcome, bound, measured = (cell.strip() for cell in line.strip("|").split("|"))
        rows.append((Fault(what, outcome, bound), measured))
    return rows


def measured_rows() -> list[tuple[Fault, str]]:
    """Every row with what the last run of its tests measured; "" where none was run."""
    results: dict[str, list[tuple[float, float]]] = {}
    for file in sorted(RESULTS.glob("*.json")):
        values = json.loads(file.read_text(encoding="utf-8"))
        results.setdefault(values["what"], []).append((values["measured_s"], values["bound_s"]))
    return [(row, _words(results.get(row.what, []))) for row in known_faults()]


def _words(results: list[tuple[float, float]]) -> str:
    if not results:
        return ""
    times = sorted(measured for measured, _ in results)
    span = f"{times[0]:.1f} s" if len(times) == 1 else f"{times[0]:.1f} to {times[-1]:.1f} s"
    bounds = sorted({bound for _, bound in results})
    return f"{span} (of {' or '.join(f'{bound:g}' for bound in bounds)} s)"


def main() -> None:
    """Write the table."""
    rows = measured_rows()
    missing = [row.what for row, measured in rows if not measured]
    if missing:
        sys.exit("no result of: " + "; ".join(missing) + "\nrun their tests first: make faults")
    PAGE.write_text(with_faults(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    from tests import faults

    faults.main()
