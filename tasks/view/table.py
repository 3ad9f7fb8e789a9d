"""Tables and texts fitted to a width. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence

from tasks.view.colours import END, GREEN, PURPLE, RED, begin

GAP = "  "
_COMMAND = re.compile(r"(?<=try: ).*|`[^`]*`")
USUAL_WIDTH = 80
# How narrow the column that is cut may become before nothing is cut any more.
_LEAST_CUT = 12
_NUMBER = re.compile(r"-?|failed|\d*\.?\d*( of \d+)?")


def table(
    rows: Sequence[Sequence[str]],
    *,
    header: Sequence[str],
    width: int | None = None,
    least: Sequence[str] = (),
    cut: str = "",
) -> str:
    """Rows in aligned columns below a header; columns of numbers are aligned at the right.

    Where they are wider than `width`, the columns that `least` names are left out, its first one first, and at last the
    column `cut` is cut. What is left is shown as it is.
    """
    kept = list(range(len(header)))
    columns = [[name, *(row[number] for row in rows)] for number, name in enumerate(header)]
    widths = [max(map(len, column)) for column in columns]

    def too_wide() -> int:
        return 0 if width is None else sum(widths[number] + len(GAP) for number in kept) - len(GAP) - width

    for name in least:
        if too_wide() <= 0:
            break
        kept.remove(header.index(name))
    if (over := too_wide()) > 0 and cut:
        number = header.index(cut)
        widths[number] = max(widths[number] - over, min(widths[number], _LEAST_CUT))
        columns[number] = [_cut(cell, widths[number]) for cell in columns[number]]
    right = {number for number in kept if _is_numeric(columns[number][1:])}
    lines = []
    for position in range(len(rows) + 1):
        cells = [
            columns[number][position].rjust(widths[number])
            if number in right
            else columns[number][position].ljust(widths[number])
            for number in kept
        ]
        lines.append(GAP.join(cells).rstrip())
    return "\n".join(lines)


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"


def _is_numeric(cells: Collection[str]) -> bool:
    return all(map(_NUMBER.fullmatch, cells)) and any(cell[:1].isdigit() for cell in cells)


_COLOURS = {
    "ok": begin(GREEN),
    "failed": begin(RED, bold=True),
    "crashed": begin(RED, bold=True),
    "incomplete": begin(PURPLE, bold=True),
    "fail": begin(RED, bold=True),
    "warn": begin(PURPLE, bold=True),
}


def coloured(text: str) -> str:
    """The table with each outcome below its header that is a cell of its own in its colour; the word says the same."""
    header, *lines = text.split("\n")
    return "\n".join([header, *(GAP.join(_cell(cell) for cell in line.split(GAP)) for line in lines)])


def _cell(cell: str) -> str:
    word = cell.strip()
    return cell.replace(word, f"{_COLOURS[word]}{word}{END}") if word in _COLOURS else cell


def filled(text: str, width: int | None) -> str:
    """A text whose lines are no wider than that, as far as its words allow; what goes on is indented."""
    if width is None:
        return text
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += wrapped(line, width, f"{indent}  ") or [line]
    return "\n".join(lines)


def wrapped(line: str, width: int, indent: str = "") -> list[str]:
    """A line as lines of that width, those after the first one indented; none breaks a word, or a command to copy."""
    kept = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), line)
    lines = textwrap.wrap(kept, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]
