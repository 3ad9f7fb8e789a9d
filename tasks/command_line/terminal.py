"""Handing this process's terminal to a command on a host."""

from __future__ import annotations

import asyncio
import os
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remote_runner.cancellation import Cancellation
    from remote_runner.connection.verbs.job import Window
    from remote_runner.connection.verbs.run import Run


_FD = 0


def window() -> Window:
    """Its size."""
    from remote_runner.connection.verbs.job import Window

    columns, rows = os.get_terminal_size(_FD)
    return Window(rows, columns)


@contextmanager
def handed_to(run: Run, stop: Cancellation) -> Iterator[None]:
    """In the body the run gets each key as it is pressed, and new sizes of the window; `stop` gives the keys back."""
    before = termios.tcgetattr(_FD)
    loop = asyncio.get_running_loop()
    telling: set[asyncio.Task[None]] = set()

    def resize() -> None:
        with suppress(OSError):
            task = loop.create_task(run.resize(window()))
            telling.add(task)
            task.add_done_callback(telling.discard)

    def give_back() -> None:
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(_FD, termios.TCSADRAIN, before)

    stop.then(give_back)
    loop.add_signal_handler(signal.SIGWINCH, resize)
    try:
        if not stop.is_set:
            tty.setraw(_FD, termios.TCSADRAIN)
        resize()  # it may have changed while the command was started
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        stop.forget(give_back)
        give_back()
