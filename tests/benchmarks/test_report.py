"""Results as tables."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from benchmarks.page import PAGE
from benchmarks.report import BEGIN, END, bounds_table, row_table, row_values, show, table_section, with_section
from benchmarks.work import OURS, Bound, Contestant, Result, Work

WORK = Work(
    "row",
    "a hundred things at once",
    lambda ground: nullcontext([]),
    [Contestant(name, lambda stage: {}) for name in (OURS, "`ssh`", "clush", "pssh")],
    [
        Bound("1.5 × `ssh`", times=1.5, of="`ssh`"),
        Bound("none fails", "failed"),
        Bound("64 MB", "memory_here_bytes", plus=64e6),
    ],
)
COSTS = {"failed": 0.0, "cpu_here_s": 0.5, "cpu_there_s": 0.25, "memory_here_bytes": 32e6}


@pytest.fixture
def row() -> Any:
    found = {
        OURS: Result(OURS, trials=[{"wall_s": wall, **COSTS} for wall in (1.0, 1.25, 3.0)]),
        "`ssh`": Result("`ssh`", "no outputs", [{"wall_s": 1.0, **COSTS}]),
        "clush": Result("clush", "no outputs", [{"wall_s": 2.0, **COSTS, "failed": 7.0}]),
        "pssh": Result("pssh", "no outputs", reason="not installed: a | b"),
    }
    return row_values(WORK, {"row": found})


def test_samples_are_shown_with_their_spread() -> None:
    assert show([0.5, 0.25, 0.75], "wall_s") == "0.50 s (0.25 to 0.75)"
    assert show([0.5, 0.25, 0.75], "wall_s", middle=True) == "0.50 s"
    assert show([12.345], "wall_s") == "12.3 s"
    assert show([0.0123, 0.0456], "wall_s", middle=True) == "28.9 ms"
    assert show([0.0000123], "cpu_s") == "12.3 µs"
    assert show([2e6, 2e6], "memory_here_bytes") == "2 MB"
    assert show([0.0042], "there_share") == "0.42 %"
    assert show([3.0], "failed") == "3"
    assert show([], "wall_s") == ""


def test_a_rows_table_has_a_line_for_each_contestant_and_its_bounds(row: Any) -> None:
    lines = row_table(row).splitlines()
    assert "- 1.5 × `ssh` (≤ 1.50 s), measured 1.25 s: yes" in lines
    assert "- none fails, measured failed: 0: yes" in lines
    cells = "| remote-runner | 1.25 s (1 to 3) | 0 | 0.50 s | 0.25 s | 32 MB |  |  |  | — |"
    assert cells in lines
    assert any("not installed" in line and line.startswith("| pssh |") for line in lines)


def test_the_bounds_are_told_in_one_table(row: Any) -> None:
    assert "| a hundred things at once | 64 MB | most memory 32 MB | yes |" in bounds_table([row]).splitlines()


def test_a_missed_bound_is_told(row: Any) -> None:
    row["bounds"][0]["met"] = False
    assert "| **no** |" in bounds_table([row])


def test_the_readme_has_ours_with_its_bounds_the_others_in_a_cell_and_what_they_lack(row: Any) -> None:
    values = {
        "machine": "2 cores",
        "accounts": "cgroups",
        "repeats": 3,
        "load": [[0.1, 0, 0], [1, 1, 1]],
        "rows": [row],
    }
    lines = table_section(values).splitlines()
    (line,) = [line for line in lines if line.startswith("| a hundred")]
    _, work, ours, bound, met, others, _ = (cell.strip() for cell in line.replace("\\|", "").split("|"))
    assert work == "a hundred things at once"
    assert ours == "1.25 s (1 to 3), CPU 0.50 s + 0.25 s, most memory 32 MB"
    assert (bound, met) == ("1.5 × `ssh` (≤ 1.50 s); none fails; 64 MB", "yes, yes, yes")
    assert others == "`ssh` 1 s; clush 2 s (7 failed); pssh —"
    assert "- pssh: no outputs; row: not installed: a \\| b" in lines


def test_ours_without_a_result_says_why(row: Any) -> None:
    row["contestants"][0].update(trials=[], reason="it broke")
    values = {"machine": "", "accounts": "", "repeats": 3, "load": [[0.1, 0, 0], [1, 1, 1]], "rows": [row]}
    assert "| a hundred things at once | failed: it broke |" in table_section(values)


def test_a_section_takes_the_place_of_the_last() -> None:
    text = f"# before\n{BEGIN}how -->\nold\n{END}\nafter\n"
    once = with_section(text, "new\n")
    assert once == f"# before\n{BEGIN}how -->\nnew\n{END}\nafter\n"
    assert with_section(once, "new\n") == once


def test_the_page_has_a_place_for_it() -> None:
    assert "| a row |" in with_section(PAGE.read_text(encoding="utf-8"), "| a row |\n")
