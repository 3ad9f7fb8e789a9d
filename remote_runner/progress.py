"""Progress events as values: emitted by the work (in any thread), consumed by the display."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Began:
    """`who` (an instance, as in `single[003]`, or a host of a task) has begun a step, on `host` ("": not known yet)."""

    who: str
    step: str
    host: str


@dataclass(frozen=True, slots=True)
class Ended:
    """`who` does nothing more; `outcome` is ok, failed or incomplete; `kept`: its directory, if it is left there."""

    who: str
    outcome: str
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """The progress of a transfer to or from `host`; `who` is the instance whose outputs come ("" for a push)."""

    host: str
    what: str
    """The step: push or fetch."""
    who: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Building:
    """An application is built here; what the build says is appended to `log`."""

    app: str
    system: str
    log: Path


@dataclass(frozen=True, slots=True)
class Built:
    """That build is over, well or not."""

    app: str
    system: str


Progress = Began | Ended | Moved | Building | Built
Tell = Callable[[Progress], None]


def nobody(event: Progress) -> None:
    """Discards every event."""
