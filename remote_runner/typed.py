"""The program that was typed, for hints: `fab`, `fab -r DIR`, `remote-runner`, `remote-runner -C DIR`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_typed = "fab"
_gone_to = ""
_HINT = re.compile(r"(?<![\w./-])fab(?= [a-z-])(?! -[Cr] )")  # not one that was replaced already


def set_typed(words: str, gone_to: str = "") -> None:
    """Say it once, when the program starts: with the directory that `-C` names."""
    global _typed, _gone_to
    _typed, _gone_to = words, gone_to


def typed() -> str:
    """The words that begin a command like the one that was typed."""
    return _typed


def typed_program() -> tuple[str, ...]:
    """Its name alone, for the command lines of further processes of ours; empty where that is `fab`."""
    name = shlex.split(_typed)[0]
    return () if name == "fab" else (name,)


def from_where_typed(path: str) -> str:
    """A path as one writes it where the program was typed, which `-C` has left."""
    return str(Path(_gone_to) / path)


def as_typed(text: str) -> str:
    """A message's `fab TASK` with the words that were typed in the place of `fab`."""
    return _HINT.sub(lambda _: _typed, text) if _typed != "fab" else text
