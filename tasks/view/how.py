"""How much is shown, and whether it is drawn: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How much is told."""

    QUIET = -1
    """The summary, and what failed before there is one."""
    USUAL = 0
    """The application's lines, failures, warnings, the summary."""
    STEPS = 1
    """Each step as well, and every failure though another was the same."""
    ALL = 2
    """What Testground itself shows."""


@dataclass(frozen=True)
class How:
    """What a person asked for."""

    level: Level = Level.USUAL
    plain: bool = False

    @classmethod
    def from_options(cls, *, quiet: bool, verbose: int, plain: bool) -> How:
        """From -q, -v as often as it was given, and --plain; -q wins."""
        return cls(Level.QUIET if quiet else Level(min(verbose, Level.ALL)), plain)


def is_drawn(how: How, environ: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Whether a view is drawn: on a capable terminal, where it is wanted.

    NO_COLOR counts where it is not empty (no-color.org).
    """
    if how.plain or how.level is Level.QUIET or not is_terminal:
        return False
    return not environ.get("NO_COLOR") and environ.get("TERM", "dumb") not in ("dumb", "")
