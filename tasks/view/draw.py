"""The view as lines for a terminal: the only module that knows rich."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from remote_runner.sizes import size
from tasks.view.model import Counts, Row, Transfer, View

_WIDE = 100
# The terminal's own colours, which its user can read on its own background; yellow, pale on white, is not among them.
_STYLES = {"waiting": "", "running": "bold blue", "ok": "green", "failed": "bold red"}
_NARROW = {"waiting": "wait", "running": "run", "ok": "ok", "failed": "fail"}
_MOST_BUILDS = 3
# Of less there is nothing to see.
_LEAST_BYTES = 256 << 10
_UNPLACED = "(no host yet)"


def new_console(width: int) -> Console:
    """What lines of that width are drawn with."""
    return Console(width=width, force_terminal=True, color_system="standard", legacy_windows=False, highlight=False)


def draw(view: View, console: Console) -> list[str]:
    """The view, as lines that fit the console."""
    with console.capture() as captured:
        console.print()
        if view.rows:
            console.print(_table(view, console.width))
        if view.hidden:
            console.print(Text(f"… and {view.hidden} {view.by}s more", style="dim"))
        for what, since_s in view.builds[:_MOST_BUILDS]:
            console.print(_within(Text(f"building {what} {_elapsed(since_s)}"), console))
        console.print(_within(_total(view), console))
    return captured.get().splitlines()


def _table(view: View, width: int) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    is_wide = width >= _WIDE
    name_width = max(len(view.by), *(len(row.name or _UNPLACED) for row in view.rows))
    table.add_column(view.by, no_wrap=True, overflow="ellipsis", min_width=min(name_width, 40 if is_wide else 16))
    if not view.single:
        for name in _STYLES:
            header = name if is_wide else _NARROW[name]
            table.add_column(header, justify="right", no_wrap=True, min_width=len(header))
    table.add_column("time", justify="right", no_wrap=True, min_width=7 if is_wide else 5)
    table.add_column("now", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in view.rows:
        counts = [] if view.single else _cells(row.counts)
        table.add_row(
            Text(row.name) if row.name else Text(_UNPLACED, "dim"),
            *counts,
            _elapsed(row.elapsed_s),
            _now(row, short=not is_wide),
        )
    return table


def _cells(counts: Counts) -> list[Text]:
    found = [(getattr(counts, name), style) for name, style in _STYLES.items()]
    return [Text(str(number), style) if number else Text("·", "dim") for number, style in found]


def _now(row: Row, *, short: bool) -> Text:
    if not row.step and row.counts.total and not row.counts.waiting:
        return Text("failed", _STYLES["failed"]) if row.counts.failed else Text("ok", _STYLES["ok"])
    words = row.step
    if row.transfer is not None and max(row.transfer.done_bytes, row.transfer.total_bytes or 0) >= _LEAST_BYTES:
        words = f"{row.transfer.what} {_transfer_words(row.transfer, short=short)}"
    return Text(words)


def _total(view: View) -> Text:
    """The line of the whole: what is dispensable stands last, where the line is cut."""
    line = Text()
    line.append(_elapsed(view.elapsed_s), "bold")
    for name, style in _STYLES.items():
        number = getattr(view.counts, name)
        line.append("  ")
        line.append(f"{number} {name}", style if number else "dim")
    line.append(f"  {view.title}", "dim")
    return line


def _within(line: Text, console: Console) -> Text:
    line.truncate(console.width, overflow="ellipsis")
    return line


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
