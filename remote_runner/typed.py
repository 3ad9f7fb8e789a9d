"""The program that was typed, for hints: `fab`, `fab -r DIR`, `remote-runner`, `remote-runner -C DIR`."""

from __future__ import annotations

import re

_typed = "fab"
_HINT = re.compile(r"(?<![\w./-])fab(?= [a-z-])(?! -[Cr] )")  # not one that was replaced already


def set_typed(words: str) -> None:
    """Say it once, when the program starts."""
    global _typed
    _typed = words


def typed() -> str:
    """The words that begin a command like the one that was typed."""
    return _typed


def as_typed(text: str) -> str:
    """A message's `fab TASK` with the words that were typed in the place of `fab`."""
    return _HINT.sub(lambda _: _typed, text) if _typed != "fab" else text
