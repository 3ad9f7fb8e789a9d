"""What a person types. A plan's fabfile is one line: `from tasks import ns`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from invoke import Collection

    ns: Collection


def __getattr__(name: str) -> Collection:
    """The collection, imported when it is asked for: that takes 0.3 s, in which somebody may press Ctrl-C."""
    if name != "ns":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from tasks.collection import ns
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(130) from None
    return ns
