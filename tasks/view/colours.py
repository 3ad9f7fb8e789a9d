"""The colours of what a terminal shows, as numbers among its 256, and how it is told of them: pure.

The 16 that a terminal has of its own will not do: xterm's green has a contrast of 2.2 on white, its blue 2.2 on black.
Of the others, which look the same everywhere, these have the most on both, 4.0 for red and 4.5 for the rest.
"""

from __future__ import annotations

import re

GREEN, BLUE, RED, PURPLE, GREY = 29, 63, 196, 163, 243
BOLD, END = "\x1b[1m", "\x1b[0m"
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


def begin(colour: int, *, bold: bool = False) -> str:
    """What is written before a text of that colour; behind it comes `END`."""
    return f"\x1b[{'1;' * bold}38;5;{colour}m"


def without_colours(text: str) -> str:
    """The text alone, which is all that takes columns."""
    return _COLOURS.sub("", text)
