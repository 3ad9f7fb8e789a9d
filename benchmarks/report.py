"""Results as text: the table of a row, that of the bounds, and the page's; pure functions of the results' JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.work import OURS, Result, Work, judge

Values = Mapping[str, Any]
"""A part of the JSON."""

BEGIN, END = "<!-- benchmarks: ", "<!-- end of benchmarks -->"
_COLUMNS = (
    ("wall time", "wall_s"),
    ("failed", "failed"),
    ("CPU here", "cpu_here_s"),
    ("CPU there", "cpu_there_s"),
    ("memory here", "memory_here_bytes"),
    ("memory there", "memory_there_bytes"),
    ("TCP", "connections"),
    ("sessions", "sessions"),
)

_REASON_CHARACTERS = 120
_NAMES = {
    "failed": "failed:",
    "started_s": "all started after",
    "connections": "TCP connections:",
    "sessions": "sessions:",
    "memory_here_bytes": "most memory",
    "there_share": "there",
    "here_share": "here",
    "pss_each_bytes": "each",
    "pss_growth_bytes": "growth",
    "publish_s": "publish",
    "entry_s": "an entry",
    "entry_cpu_s": "CPU of an entry",
    "service_bytes": "memory",
}


def row_values(work: Work, results: Mapping[str, Mapping[str, Result]]) -> Values:
    """A row as JSON values, judged by the results of all rows so far."""
    return {
        "name": work.name,
        "title": work.title,
        "contestants": [vars(result) for result in results[work.name].values()],
        "bounds": [vars(judge(bound, work.name, results)) for bound in work.bounds],
    }


def row_table(row: Values) -> str:
    """All that was measured in a row, a line for each contestant, and its bounds."""
    heads = [head for head, _ in _COLUMNS]
    lines = [f"## {row['title']} ({row['name']})", ""]
    lines += [f"- {_bound(verdict)}: {_met(verdict)}" for verdict in row["bounds"]]
    lines += ["", _line(["by", *heads, "does not"]), _line(["---"] * (len(heads) + 2))]
    for one in row["contestants"]:
        cells = [show(_samples(one, measure), measure) for _, measure in _COLUMNS]
        if one["reason"]:
            cells[0] = " ".join(filter(None, [cells[0], f"failed: {one['reason']}"]))
        lines.append(_line([one["name"], *cells, one["lacks"] or "—"]))
    return "\n".join(lines) + "\n"


def bounds_table(rows: Sequence[Values]) -> str:
    """Every bound in a line."""
    lines = [_line(["work", "bound", OURS, "met"]), _line(["---"] * 4)]
    lines += [
        _line([row["title"], _limit(verdict), _value(verdict), _met(verdict)])
        for row in rows
        for verdict in row["bounds"]
    ]
    return "\n".join(lines) + "\n"


def table_section(values: Values) -> str:
    """The page's tables: of each row ours with its bounds and the others in a cell, and what the others lack."""
    lines = [
        f"{values['machine']}, load average {values['load'][0][0]:.1f} before; {values['accounts']}. Medians of "
        f"{values['repeats']} in one run (least to greatest); CPU is that of all processes, here + on the hosts.",
        "",
        _line(["work", OURS, "bound", "met", "others"]),
        _line(["---"] * 5),
    ]
    for row in values["rows"]:
        ours, *others = row["contestants"]
        bounds = row["bounds"]
        lines.append(
            _line(
                [
                    row["title"],
                    _ours(ours, bounds),
                    "; ".join(_limit(verdict) for verdict in bounds) or "—",
                    ", ".join(_met(verdict) for verdict in bounds) or "—",
                    "; ".join(_other(one) for one in others) or "—",
                ]
            )
        )
    lines += ["", "What the others do not do, and why one has no result:", ""]
    lines += [f"- {name}: {'; '.join(words)}" for name, words in _remarks(values["rows"]).items()]
    return "\n".join(lines) + "\n"


def with_section(text: str, section: str) -> str:
    """The page's text with this section between its marks."""
    begin = text.index("-->\n", text.index(BEGIN)) + 4
    return f"{text[:begin]}{section}{text[text.index(END) :]}"


def _ours(ours: Values, bounds: Iterable[Values]) -> str:
    if not ours["trials"]:
        return f"failed: {_cell(ours['reason'])}"
    parts = [show(_samples(ours, "wall_s"), "wall_s")]
    cpu = [show(_samples(ours, f"cpu_{side}_s"), f"cpu_{side}_s", middle=True) for side in ("here", "there")]
    if all(cpu):
        parts.append(f"CPU {cpu[0]} + {cpu[1]}")
    parts += [_value(verdict) for verdict in bounds if verdict["measure"] not in ("wall_s", "failed")]
    failed = max(_samples(ours, "failed"), default=0)
    if failed:
        parts.append(f"{failed:.0f} failed")
    if ours["reason"]:
        parts.append(f"then failed: {_cell(ours['reason'])}")
    return ", ".join(parts)


def _other(one: Values) -> str:
    if not one["trials"]:
        return f"{one['name']} —"
    failed = max(_samples(one, "failed"), default=0)
    words = f"{one['name']} {show(_samples(one, 'wall_s'), 'wall_s', middle=True)}"
    return f"{words} ({failed:.0f} failed)" if failed else words


def _remarks(rows: Iterable[Values]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        for one in row["contestants"][1:]:
            words = found.setdefault(one["name"], [])
            if one["lacks"] and one["lacks"] not in words:
                words.append(one["lacks"])
            if one["reason"]:
                words.append(f"{row['name']}: {_cell(one['reason'][:_REASON_CHARACTERS])}")
    return {name: words for name, words in found.items() if words}


def _samples(one: Values, measure: str) -> list[float]:
    return [trial[measure] for trial in one["trials"] if measure in trial]


def show(samples: Sequence[float], measure: str, *, middle: bool = False) -> str:
    """Median (least to greatest) with a unit, as it stands in a table; "" where there are none."""
    if not samples:
        return ""
    scale, unit = _unit(max(samples), measure)
    texts = [_digits(value / scale) for value in (statistics.median(samples), min(samples), max(samples))]
    shown = f"{texts[0]} {unit}".strip()
    return shown if middle or texts[1] == texts[2] else f"{shown} ({texts[1]} to {texts[2]})"


def _unit(greatest: float, measure: str) -> tuple[float, str]:
    if measure.endswith("_bytes"):
        return 1e6, "MB"
    if measure.endswith("_share"):
        return 0.01, "%"
    if not measure.endswith("_s"):
        return 1.0, ""
    return (1.0, "s") if greatest >= 0.1 or not greatest else (1e-3, "ms") if greatest >= 1e-4 else (1e-6, "µs")


def _digits(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def _bound(verdict: Values) -> str:
    return f"{_limit(verdict)}, measured {_value(verdict) or 'nothing'}"


def _limit(verdict: Values) -> str:
    """`1.5 × ssh (1.2 s)`; without brackets where the words are the number."""
    if not verdict["limit"]:
        return str(verdict["words"])
    number = show([verdict["limit"]], verdict["measure"])
    return str(verdict["words"]) if number in verdict["words"] else f"{verdict['words']} (≤ {number})"


def _value(verdict: Values) -> str:
    if verdict["value"] is None:
        return ""
    shown = show([verdict["value"]], verdict["measure"])
    return f"{_NAMES.get(verdict['measure'], '')} {shown}".strip()


def _met(verdict: Values) -> str:
    return "not judged" if verdict["met"] is None else "yes" if verdict["met"] else "**no**"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
