"""The view as lines for a terminal.

Of rich it takes how many columns a text has. Its tables would cost 7 ms of each frame, and 65 ms once to load them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from remote_runner.sizes import size
from tasks.view.colours import BLUE, BOLD, END, GREEN, GREY, RED, begin
from tasks.view.model import Counts, Row, Transfer, View
from tasks.view.table import GAP
from testground.terminal import harmless

_WIDE = 100
_STYLES = {"waiting": "", "running": begin(BLUE, bold=True), "ok": begin(GREEN), "failed": begin(RED, bold=True)}
_PALE = begin(GREY)
_NARROW = {"waiting": "wait", "running": "run", "ok": "ok", "failed": "fail"}
_MOST_BUILDS = 3
# Of less there is nothing to see.
_LEAST_BYTES = 256 << 10
_UNPLACED = "(no host yet)"

_Cell = tuple[str, str]
"""A text, and what is written before it (`colours.begin`)."""


def draw(view: View, width: int) -> list[str]:
    """The view, as lines of at most so many columns."""
    lines: list[Sequence[_Cell]] = [()]
    if view.rows:
        lines += _table(view, width)
    if view.hidden:
        lines.append([(f"… and {view.hidden} {view.by}s more", _PALE)])
    lines += [[(f"building {harmless(what)} {_elapsed(since_s)}", "")] for what, since_s in view.builds[:_MOST_BUILDS]]
    lines.append(_total(view))
    return [_line(cells, width) for cells in lines]


def _table(view: View, width: int) -> list[Sequence[_Cell]]:
    is_wide = width >= _WIDE
    counted = () if view.single else tuple(_STYLES)
    names = [(harmless(row.name), "") if row.name else (_UNPLACED, _PALE) for row in view.rows]
    numbers = [[*_cells(row.counts, counted), (_elapsed(row.elapsed_s), "")] for row in view.rows]
    now = [_now(row, short=not is_wide) for row in view.rows]
    header = [*((name if is_wide else _NARROW[name]) for name in counted), "time"]
    most = max(row.counts.total for row in view.rows)
    # A column is as wide as the greatest count that may stand in it: none moves while the counts grow.
    least = [*(len(str(most)) for _ in counted), 7 if is_wide else 5]
    widths = [
        max(at_least, len(title), *(len(text) for text, _ in column))
        for at_least, title, *column in zip(least, header, *numbers, strict=True)
    ]
    # What is left is for the name, and for what goes on there, which may be cut before the name is.
    left = width - sum(widths) - len(GAP) * (len(widths) + 1)
    name_width = max(cell_len(text) for text, _ in [(view.by, ""), *names])
    wanted = max(len("now"), *(cell_len(text) for text, _ in now))
    name_width = max(0, min(name_width, left, max(40 if is_wide else 16, left - wanted)))
    first = ((view.by, _PALE), [(title, _PALE) for title in header], ("now", _PALE))
    return [
        [
            (_sized(name, name_width), style),
            *((GAP + text.rjust(wide), colour) for (text, colour), wide in zip(cells, widths, strict=True)),
            (GAP, ""),
            what,
        ]
        for (name, style), cells, what in (first, *zip(names, numbers, now, strict=True))
    ]


def _cells(counts: Counts, counted: Sequence[str]) -> list[_Cell]:
    found = [(getattr(counts, name), _STYLES[name]) for name in counted]
    return [(str(number), style) if number else ("·", _PALE) for number, style in found]


def _now(row: Row, *, short: bool) -> _Cell:
    if not row.step and row.counts.total and not row.counts.waiting:
        return ("failed", _STYLES["failed"]) if row.counts.failed else ("ok", _STYLES["ok"])
    words = row.step
    if row.transfer is not None and max(row.transfer.done_bytes, row.transfer.total_bytes or 0) >= _LEAST_BYTES:
        words = f"{row.transfer.what} {_transfer_words(row.transfer, short=short)}"
    return words, ""


def _total(view: View) -> list[_Cell]:
    """The line of the whole: what is dispensable stands last, where the line is cut."""
    line = [(_elapsed(view.elapsed_s), BOLD)]
    for name, style in _STYLES.items():
        number = getattr(view.counts, name)
        line += [(GAP, ""), (f"{number} {name}", style if number else _PALE)]
    return [*line, (f"{GAP}{harmless(view.title)}", _PALE)]


def _line(cells: Sequence[_Cell], width: int) -> str:
    """The cells one behind the other; what goes beyond the width is cut."""
    line, left = "", width
    for text, style in cells:
        shown = text if cell_len(text) <= left else _sized(text, left)
        left -= cell_len(shown)
        line += f"{style}{shown}{END}" if style and shown else shown
    return line


def _sized(text: str, width: int) -> str:
    """The text in so many columns; one that is cut says so."""
    if cell_len(text) <= width or not width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…"


def _elapsed(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _transfer_words(transfer: Transfer, *, short: bool) -> str:
    """What is done of it, how fast, and how long it still takes: `21.3 MiB of 60.0 MiB, 3.1 MiB/s, 0:12 left`."""
    of = ""
    if transfer.total_bytes:
        of = f" {transfer.done_bytes / transfer.total_bytes:.0%}" if short else f" of {size(transfer.total_bytes)}"
    left = "" if transfer.left_s is None else f", {_elapsed(transfer.left_s)} left"
    return f"{size(transfer.done_bytes)}{of}, {size(int(transfer.bytes_per_s))}/s{left}"
