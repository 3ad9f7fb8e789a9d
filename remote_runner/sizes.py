"""Sizes, counts and lists as words."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int, what: str, many: str = "") -> str:
    """So many of something: 1 file, 3 files; `many` is its plural where that is another."""
    return f"{number} {what if number == 1 else many or f'{what}s'}"


def listed(words: Sequence[str], most: int, between: str = ", ") -> str:
    """So many of them, and how many more there are."""
    more = f"{' ' if between == ', ' else between}and {len(words) - most} more" if len(words) > most else ""
    return between.join(words[:most]) + more


def size(size_bytes: int) -> str:
    """A size for people: 512 bytes, 1.5 KiB, 20 MiB."""
    if size_bytes < 1024:
        return f"{size_bytes} bytes"
    value, units = size_bytes / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    unit = units[0]
    return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
