"""The live view in a terminal: a thread redraws it a few times a second, with new lines above it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from remote_runner.progress import Building, Built, Progress
from tasks.view.colours import END, GREY, begin, without_colours
from tasks.view.model import Model, View
from testground.terminal import harmless

_EVERY_S = 0.2
# So many lines of a tall terminal are for what else is said.
_OTHER_LINES = 12
# What ends sooner needs no view.
_FIRST_S = 0.3
# What waits for a slow terminal, in characters.
_HELD = 4 << 20
_LOG_BYTES = 64 * 1024
_ERASE_BELOW = "\x1b[0J"
# A terminal that knows it shows all of what stands between at once; others take it for nothing.
_TOGETHER, _SHOWN = "\x1b[?2026h", "\x1b[?2026l"


class TerminalView:
    """Draws on one descriptor until `end`. Its methods may be called in any thread, `tell` and `line` at any time."""

    def __init__(self, fd: int, state: Callable[[], AbstractContextManager[Model]]) -> None:
        self._fd = fd
        self._state = state
        self._lock = threading.Condition()
        self._lines: list[str] = []
        self._held = 0
        self._logs: dict[tuple[str, str], _Log] = {}
        self._is_over = False
        self._drawn: list[int] = []
        self._seen: tuple[View, int] | None = None
        self._view: list[str] = []
        self._began_s = time.monotonic()
        self._thread = threading.Thread(target=self._draw_until_over, name="view", daemon=True)
        self._thread.start()

    def tell(self, event: Progress) -> None:
        """Something has happened that has lines of its own: a build has a log."""
        if isinstance(event, Building):
            with self._lock:
                self._logs[event.app, event.system] = _Log(event.log, event.app)
        elif isinstance(event, Built):
            with self._lock:
                log = self._logs.pop((event.app, event.system), None)
                self._lines.extend(log.new_lines(is_over=True) if log else ())

    def line(self, text: str, *, wait: bool = False) -> None:
        """Print a line (or several) above the view. A caller that prints much has to `wait` for the terminal."""
        with self._lock:
            self._lines.append(text)
            self._held += len(text)
            while wait and self._held > _HELD and not self._is_over:
                self._lock.wait(_EVERY_S)

    def end(self) -> None:
        """Take the view away; the lines stay. Returns when the terminal is the caller's."""
        with self._lock:
            self._is_over = True
            self._lock.notify_all()
        self._thread.join()

    def _draw_until_over(self) -> None:
        is_over = False
        while not is_over:
            with self._lock:
                self._lock.wait_for(lambda: self._is_over, _EVERY_S)
                is_over = self._is_over
                for log in self._logs.values():
                    self._lines.extend(log.new_lines())
                lines, self._lines, self._held = self._lines, [], 0
                self._lock.notify_all()
            with suppress(OSError):  # the terminal is gone
                self._draw(lines, is_over=is_over)

    def _draw(self, lines: list[str], *, is_over: bool) -> None:
        columns, rows = os.get_terminal_size(self._fd)
        columns, rows = columns or 80, rows or 24  # a terminal that does not know its size says 0
        view: list[str] = []
        now_s = time.monotonic()
        if not is_over and now_s - self._began_s >= _FIRST_S:
            view = self._rendered(max(20, columns - 1), max(3, rows // 2, rows - _OTHER_LINES), now_s)
        if not lines and view == self._view:
            return
        self._view = view
        # A terminal that has become narrower may have broken what was drawn into more lines.
        above = sum(max(1, -(-width // columns)) for width in self._drawn)
        back = f"\r\x1b[{above - 1}A" if above > 1 else "\r"
        text = _TOGETHER + back * bool(self._drawn) + _ERASE_BELOW
        text += "".join(f"{line}\n" for line in lines) + "\n".join(view) + _SHOWN
        self._drawn = [_width(line) for line in view]
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(self._fd, data) :]

    def _rendered(self, columns: int, most: int, now_s: float) -> list[str]:
        from tasks.view.draw import draw

        with self._state() as model:
            seen = (model.view(now_s, most), columns) if model.has_rows else None
        if seen is None:
            view: list[str] = []
        else:
            view = self._view if seen == self._seen else draw(seen[0], columns)
        self._seen = seen
        return view


class _Log:
    """A build's log, read as it grows."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._read_bytes = 0
        self._begun = b""

    def new_lines(self, *, is_over: bool = False) -> list[str]:
        """The lines that have come since the last time, each with the application's name."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                data = file.read(-1 if is_over else _LOG_BYTES)
        except OSError:  # it says nothing yet
            return []
        self._read_bytes += len(data)
        *lines, self._begun = (self._begun + data).split(b"\n")
        if is_over and self._begun:
            lines.append(self._begun)
        texts = (harmless(without_colours(line.decode("utf-8", "replace"))) for line in lines)
        return [f"{begin(GREY)}{self._name}:{END} {text}" for text in texts]


def _width(line: str) -> int:
    """How many columns a drawn line takes: its colours take none."""
    from rich.cells import cell_len

    return cell_len(without_colours(line))
