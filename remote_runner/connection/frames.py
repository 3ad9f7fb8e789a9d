"""Frames and messages as docs/protocol.md has them; values in, bytes out."""

from __future__ import annotations

from typing import Any, NamedTuple


class Message(NamedTuple):
    """A JSON object, and fields of bytes behind it (arguments, variables, paths)."""

    head: dict[str, Any]
    fields: tuple[bytes, ...] = ()
