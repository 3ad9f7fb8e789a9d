"""Without a live view, a message about a build that takes long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from remote_runner.progress import Building, Built, Progress
from testground.terminal import harmless

_AFTER_S = 5.0


def _say(words: str) -> None:
    with suppress(OSError):
        print(harmless(words), file=sys.stderr, flush=True)


class SlowBuilds:
    """Hears of builds in any thread."""

    def __init__(self, say: Callable[[str], None] = _say, after_s: float = _AFTER_S) -> None:
        self._say = say
        self._after_s = after_s
        self._lock = threading.Lock()
        self._timers: dict[tuple[str, str], threading.Timer] = {}

    def tell(self, event: Progress) -> None:
        """A build has begun, or is over; all else is left alone."""
        if isinstance(event, Building):
            words = f"{event.app} for {event.system} is still being built; what its build says: {event.log}"
            timer = threading.Timer(self._after_s, self._say, [words])
            timer.daemon = True
            with self._lock:
                self._timers[event.app, event.system] = timer
            timer.start()
        elif isinstance(event, Built):
            with self._lock:
                found = self._timers.pop((event.app, event.system), None)
            if found is not None:
                found.cancel()

    def end(self) -> None:
        """Say nothing more."""
        with self._lock:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
