"""What tasks print: results on stdout, words on stderr; harmless for a terminal, without the inventory's secrets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from remote_runner.errors import ControllerError
from remote_runner.secrets import Secrets
from testground.terminal import harmless, harmless_json

_secrets: list[Secrets] = []


def keep_secret(secrets: Secrets) -> None:
    """From now on these are printed nowhere by this process."""
    _secrets.append(secrets)


def printable(text: str) -> str:
    """A text as it may be printed."""
    for secrets in _secrets:
        text = secrets.hide(text)
    return harmless(text)


def say(words: str) -> None:
    """One piece of text for the person, on stderr; where that takes nothing, nobody can be told so."""
    with suppress(OSError):
        print(printable(words), file=sys.stderr, flush=True)


def show(result: str) -> None:
    """One line of the result, on stdout. Raises `ControllerError`, and `BrokenPipeError` when its reader has gone."""
    _put_out(printable(result))


def show_json(value: Any) -> None:
    """The result as JSON, on stdout; raises as `show`."""
    for secrets in _secrets:
        value = secrets.hide_in(value)
    _put_out(harmless_json(json.dumps(value, indent=2, ensure_ascii=False)))


def _put_out(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        give_up_stdout()
        if isinstance(error, BrokenPipeError):
            raise
        raise unwritable_stdout(error.strerror or str(error)) from error


def unwritable_stdout(why: str) -> ControllerError:
    """The error for a stdout that takes no more."""
    return ControllerError(f"stdout cannot be written: {why}", next_step="send it to where there is room")


def give_up_stdout() -> None:
    """Let what is still held for stdout go nowhere: Python would try to write it once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def age(seconds: float) -> str:
    """A time span for people, in its largest unit: 40 s, 5 min, 3 h, 12 d."""
    for limit, unit_s, unit in ((100, 1, "s"), (100 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str]) -> str:
    """Rows in aligned columns below a header; columns of numbers are aligned at the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [
        all(_is_number(cell) for cell in column[1:]) and any(cell[:1].isdigit() for cell in column[1:])
        for column in columns
    ]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(".", "", 1).isdigit()
