"""The names of instances, as Testground prints them: `single[003]`. Pure."""

from __future__ import annotations

import re

_INSTANCE = re.compile(r"(.*?)(?:\[(\d{1,9})\]|/(\d{1,9}))")


def tag_of(group: str, number: int) -> str:
    """An instance as Testground names it: `single[003]`."""
    return f"{group}[{number:03d}]"


def as_tag(name: str) -> str:
    """The same of one that is written otherwise, `single[3]` or `single/3`; "" for what names no instance."""
    match = _INSTANCE.fullmatch(name)
    return tag_of(match[1], int(match[2] or match[3])) if match else ""
