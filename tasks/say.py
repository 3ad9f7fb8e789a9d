"""What tasks print: results on stdout, progress on stderr; no control characters, no secrets of the inventory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from remote_runner.errors import ControllerError
from remote_runner.secrets import Secrets
from remote_runner.typed import as_typed
from tasks.view.display import DISPLAY
from tasks.view.how import Level
from tasks.view.table import USUAL_WIDTH, coloured, filled, table
from testground.terminal import harmless, harmless_json

_secrets: list[Secrets] = []


def keep_secret(secrets: Secrets) -> None:
    """Never print these in this process from now on."""
    _secrets.append(secrets)


def printable(text: str) -> str:
    """A text as it may be printed."""
    for secrets in _secrets:
        text = secrets.hide(text)
    return harmless(text)


def message(words: str) -> str:
    """A message for the user as it stands on stderr: a terminal would break its lines within a word."""
    return filled(printable(as_typed(words)), _columns_of(2))


def say(words: str) -> None:
    """A message for the user, on stderr; if that cannot be written, it is dropped."""
    text = message(words)
    if not DISPLAY.line(text):
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def note(words: str) -> None:
    """The same, for messages that `--quiet` leaves out."""
    if DISPLAY.level > Level.QUIET:
        say(words)


def show(result: str, *, has_outcomes: bool = False) -> None:
    """One line of the result, on stdout; what `has_outcomes` gets their colours on a terminal.

    Raises `ControllerError`, and `BrokenPipeError` when its reader has gone.
    """
    text = printable(result)
    _put_out(coloured(text) if has_outcomes and DISPLAY.has_colours else text)


def show_json(value: Any) -> None:
    """The result as JSON, on stdout; raises as `show`."""
    for secrets in _secrets:
        value = secrets.hide_in(value)
    _put_out(harmless_json(json.dumps(value, indent=2, ensure_ascii=False)))


def _put_out(text: str) -> None:
    DISPLAY.end()
    try:
        print(text, flush=True)
    except OSError as error:
        give_up_stdout()
        if isinstance(error, BrokenPipeError):
            raise
        raise unwritable_stdout(error.strerror or str(error)) from error


def unwritable_stdout(why: str) -> ControllerError:
    """The error for a stdout that cannot be written to."""
    return ControllerError(f"stdout cannot be written: {why}", next_step="send it to where there is room")


def give_up_stdout() -> None:
    """Let what is still held for stdout go nowhere: Python would try to write it once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def near(path: Path) -> str:
    """A path as it is written from here, where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def age(seconds: float) -> str:
    """A time span for people, in its largest unit: 40 s, 5 min, 3 h, 12 d."""
    for limit, unit_s, unit in ((100, 1, "s"), (100 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def show_table(
    rows: Sequence[Sequence[str]], *, header: Sequence[str], least: Sequence[str] = (), cut: str = ""
) -> None:
    """A table of results on stdout, as wide as that is: see `table`."""
    show(table(rows, header=header, width=result_width(), least=least, cut=cut), has_outcomes=True)


def result_width() -> int:
    """How many columns stdout has; if it is not a terminal, COLUMNS, else 80."""
    return shutil.get_terminal_size((USUAL_WIDTH, 24)).columns


def filled_to() -> int | None:
    """Where sentences of the result are broken: only a terminal would break them within a word."""
    return _columns_of(1)


def _columns_of(fd: int) -> int | None:
    """How many columns the terminal at this descriptor has; `None` where there is none, or it does not know."""
    try:
        return os.get_terminal_size(fd).columns or None
    except OSError:
        return None
