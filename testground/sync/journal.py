"""A journal of the sync service: which client reached which state when, and how long it waited."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from testground.sync.protocol import run_of_key

MOST_ENTRIES = 100_000
"""Of each run; what comes after is not kept."""


@dataclass(slots=True)
class Entry:
    """A signal (`seq`: its place among those of the state), or a wait (`target`, and when it was met, None for never).

    `client` is the connection's name. Times are seconds since the epoch.
    """

    at: float
    client: str
    state: str
    seq: int | None = None
    target: int | None = None
    met_at: float | None = None


class Journal:
    """The entries of all runs, each until it is taken. Not thread-safe, as the core that writes it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[str, list[Entry]] = {}

    def signalled(self, client: str, key: str, seq: int) -> None:
        """A client has signalled entry to the state of this key."""
        self._add(key, Entry(self._clock(), client, _name(key), seq=seq))

    def waits(self, client: str, key: str, target: int) -> Entry:
        """A client waits at a barrier from now on."""
        entry = Entry(self._clock(), client, _name(key), target=target)
        self._add(key, entry)
        return entry

    def met(self, entry: Entry) -> None:
        """That wait is over."""
        entry.met_at = self._clock()

    def take(self, run: str) -> list[Entry]:
        """The run's entries in their order; they are kept no longer."""
        return self._entries.pop(run, [])

    def _add(self, key: str, entry: Entry) -> None:
        entries = self._entries.setdefault(run_of_key(key), [])
        if len(entries) < MOST_ENTRIES:
            entries.append(entry)


def _name(key: str) -> str:
    """The state's own name, of `run:…:plan:…:case:…:states:<name>`."""
    return key.partition(":states:")[2] or key
