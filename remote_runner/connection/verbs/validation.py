"""Validation of what a host reports: numbers are numbers, texts have no control characters. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from remote_runner.errors import FarShellError

LARGEST = 1 << 53
_LONGEST_TEXT = 4096
_MOST_TEXTS = 1000


def whole(value: object, most: int = LARGEST) -> int | None:
    """A count or a size from 0 to `most`; `None` for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most else None


def real(value: object, lowest: float = 0.0, highest: float = float(LARGEST)) -> float | None:
    """A number between these; `None` for anything else, NaN among it."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value <= highest:
        return None
    return float(value) if math.isfinite(value) else None


def words(value: object, most: int = _LONGEST_TEXT) -> str:
    """A text in one line without control characters; "" for anything else."""
    if not isinstance(value, str):
        return ""
    text = value[:most]
    # A name that is no UTF-8 comes as surrogates; it stays what it is.
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() or 0xDC80 <= ord(c) <= 0xDCFF else " " for c in text)
    )


def texts(value: object, most: int = _MOST_TEXTS) -> tuple[str, ...]:
    """The texts of a list, as many as anybody reads."""
    found = value if isinstance(value, list) else []
    return tuple(words(item) for item in found[:most] if isinstance(item, str))


def pairs(value: object) -> tuple[tuple[str, str], ...]:
    """The pairs of texts in a list of `[path, why]`."""
    found = value if isinstance(value, list) else []
    return tuple(
        (words(item[0]), words(item[1])) for item in found[:_MOST_TEXTS] if isinstance(item, list) and len(item) == 2
    )


def nonsense(host: str, found: object) -> FarShellError:
    """The error for what no agent of ours says."""
    return FarShellError(
        host,
        f"unexpected answer from the agent there: {words(repr(found), 200)}",
        next_step="check what runs there in place of our agent",
    )


def part(host: str, head: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under that key of a message. Raises `FarShellError` where there is none."""
    found = head.get(key)
    if not isinstance(found, dict):
        raise nonsense(host, dict(head))
    return found
