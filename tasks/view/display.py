"""The display of a running task: the live view, where there is one, and lines.

There is one, as there is one terminal.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from remote_runner.progress import Progress
from tasks.view.how import How, Level, is_drawn
from tasks.view.model import Model

if TYPE_CHECKING:
    from tasks.view.slow_builds import SlowBuilds
    from tasks.view.terminal import TerminalView


class Display:
    """Hears of events in any thread; keeps their state also where nothing is drawn."""

    def __init__(self) -> None:
        self.how = How()
        self._lock = threading.Lock()
        self._model = Model()
        self._view: TerminalView | None = None
        self._slow_builds: SlowBuilds | None = None
        self._has_colours = False

    @contextmanager
    def shown(self, how: How, environ: Mapping[str, str]) -> Iterator[None]:
        """In the body, what is told is shown in this way."""
        self.how, self._model = how, Model()
        self._has_colours = is_drawn(replace(how, level=Level.USUAL), environ, is_terminal=True)
        if is_drawn(how, environ, is_terminal=_is_terminal(2)):
            from tasks.view.terminal import TerminalView

            self._view = TerminalView(2, self._state)
        elif how.level > Level.QUIET:
            from tasks.view.slow_builds import SlowBuilds

            self._slow_builds = SlowBuilds()
        try:
            yield
        finally:
            self.end()
            self.how = How()

    @property
    def level(self) -> Level:
        return self.how.level

    @property
    def has_colours(self) -> bool:
        """Whether results may have colours: they go to a terminal that takes them."""
        return self._has_colours and _is_terminal(1)

    @property
    def is_drawn(self) -> bool:
        return self._view is not None

    def covers(self, fd: int) -> bool:
        """Whether what is written to this descriptor would spoil the view."""
        return self._view is not None and _is_terminal(fd)

    def expect(self, title: str, who: Iterable[tuple[str, str]]) -> None:
        """From here on these (name and group, a host twice its name) are looked at."""
        with self._lock:
            self._model.expect(title, who, time.monotonic())

    def tell(self, event: Progress) -> None:
        """Something has happened."""
        with self._lock:
            self._model.take(event, time.monotonic())
        if (view := self._view) is not None:
            view.tell(event)
        elif (builds := self._slow_builds) is not None:
            builds.tell(event)

    @contextmanager
    def _state(self) -> Iterator[Model]:
        with self._lock:
            yield self._model

    def host_of(self, who: str) -> str:
        """Where an instance is, as far as is known."""
        with self._lock:
            return self._model.host_of(who)

    def left_there(self) -> dict[str, list[str]]:
        """Whose directories are still on which host."""
        with self._lock:
            return self._model.left_there()

    def line(self, text: str, *, wait: bool = False) -> bool:
        """Print it above the view; False if there is none. A caller that prints much has to `wait` for the terminal."""
        view = self._view
        if view is None:
            return False
        view.line(text, wait=wait)
        return True

    def end(self) -> None:
        """Take the view away: what comes now is written as usual."""
        view, self._view = self._view, None
        if view is not None:
            view.end()
        builds, self._slow_builds = self._slow_builds, None
        if builds is not None:
            builds.end()


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


DISPLAY = Display()
