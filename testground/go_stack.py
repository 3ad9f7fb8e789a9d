"""The stacks that Go prints of a panic, in a line. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePosixPath

_BEGIN = re.compile(r"goroutine \d+ \[[^\]\n]{1,200}\]:")
_PLACE = re.compile(r"\t(\S+):(\d+)")
# Prints the stack of the function that calls it, which has recovered from somebody else's panic.
_PRINTS = "runtime/debug.PrintStack("


def without_stack(text: str) -> str:
    """A text up to the stack in it, which sdk-go puts directly behind; of nothing but a stack, where its panic was."""
    said, stack = cut_at_stack(text)
    return said.rstrip() or panicked(stack) or stack.partition("\n")[0]


def cut_at_stack(text: str) -> tuple[str, str]:
    """What stands before the first stack, and all from there on."""
    found = _BEGIN.search(text)
    at = len(text) if found is None else found.start()
    return text[:at], text[at:]


def panicked(stack: str) -> str:
    """Where: `panicked in main.meet (main.go:75)`, the program's own function if it is on the stack; "" if unknown."""
    if _PRINTS in stack:
        return ""
    frames = list(_frames(stack.splitlines()))
    names = [function for function, _ in frames]
    frames = frames[names.index("panic") + 1 :] if "panic" in names else frames
    own = [frame for frame in frames if frame[0].startswith("main.")]
    return next((f"panicked in {function} ({place})" for function, place in own or frames), "")


def _frames(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each function with the file and line where it was; two lines of the stack tell that."""
    for called, place in pairwise(lines):
        function = called.rpartition("(")[0]
        found = _PLACE.match(place)
        if found and function and not called.startswith("created by "):
            yield function, f"{PurePosixPath(found[1]).name}:{found[2]}"
