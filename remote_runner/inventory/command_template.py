"""A builder's command as words with placeholders: `go build -o {out} .` with `{goos}` and the like filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

PLACEHOLDERS: dict[str, str] = {
    "system": "the system built for, as Nix names it (`x86_64-linux`)",
    "os": "its operating system (`linux`, `darwin`)",
    "arch": "its processor (`x86_64`, `aarch64`)",
    "goos": "Go's name of the operating system",
    "goarch": "Go's name of the processor (`amd64`, `arm64`)",
    "goarm": "the `GOARM` of 32-bit ARM (`7`, `6`), else empty",
    "out": "the file or folder that the command has to make; nothing is there when it starts",
    "python": "the Python that remote-runner runs in",
    "plan": "the plan's directory, which is also where the command runs",
}

# `{{` and `}}` stand for a brace; a brace that encloses no word stays as it is.
_BRACES = re.compile(r"\{\{|\}\}|\{(\w+)\}")


def unknown_placeholders(words: Sequence[str]) -> tuple[str, ...]:
    """The names in braces that are no placeholders."""
    found = (match[1] for word in words for match in _BRACES.finditer(word))
    return tuple(name for name in found if name and name not in PLACEHOLDERS)


def fill(words: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """The words with every placeholder replaced; a word stays one word, whatever its value holds."""
    return tuple(_BRACES.sub(lambda match: values[match[1]] if match[1] else match[0][0], word) for word in words)
