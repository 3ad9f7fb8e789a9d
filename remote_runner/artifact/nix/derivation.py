"""Reading a derivation's file for the one thing that is needed: the system that builds it."""

from __future__ import annotations

import re

# Strings of the ATerm format escape quotes and backslashes by a backslash; lists and tuples hold strings only.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\](),]', re.DOTALL)


def derivation_system(text: str) -> str:
    """The system in a `.drv` file: `Derive(outputs, input derivations, input sources, SYSTEM, builder, …)`.

    Not by `nix show-derivation`, whose name and format change from version to version. Raises `ValueError`.
    """
    depth = commas = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "[(":
            depth += 1
        elif token in "])":
            depth -= 1
        elif token == "," and depth == 1:
            commas += 1
        elif depth == 1 and commas == 3:
            return token[1:-1]
    raise ValueError("no derivation")
