"""The table of faults has a row for each test of one, and in each what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import PAGE, Fault, FaultClock, known_faults, rows_of, with_faults


@pytest.mark.slow
def test_the_table_has_the_rows_of_the_tests_and_none_is_empty() -> None:
    rows = rows_of(PAGE.read_text(encoding="utf-8"))
    assert [row for row, _ in rows] == known_faults(), "make faults"
    assert [row.what for row, measured in rows if not measured] == []


def test_rows_are_read_as_they_are_written() -> None:
    rows = [(Fault("a cable", "it goes on", "`grace_s` + 5 s"), "0.1 to 2.0 s (of 7 s)"), (Fault("b", "c", "d"), "")]
    text = "# before\n<!-- faults: how -->\nold\n<!-- end of faults -->\nafter\n"
    written = with_faults(text, rows)
    assert rows_of(written) == rows
    assert written.startswith("# before\n")
    assert written.endswith("<!-- end of faults -->\nafter\n")


def test_what_takes_longer_than_its_bound_fails_and_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.RESULTS", tmp_path / "results")
    clock = FaultClock(Fault("a", "b", "c"), "test", began_s=0.0)
    with pytest.raises(AssertionError, match="at most 1 s"):
        clock.stop(1)
    assert not (tmp_path / "results").exists()
