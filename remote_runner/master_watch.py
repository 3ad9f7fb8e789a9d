"""Whether a control master still does something: it is asked every few seconds, and its answer is never waited for."""

from __future__ import annotations

import time
from pathlib import Path

from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, MasterError
from remote_runner.mux import MuxConnection

_PAUSE_S = 3.0
_CONNECT_S = 0.05  # the kernel connects at once, unless many wait already for a master that takes nobody


class MasterWatch:
    """Watches the master at `path`; not for several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._asked: MuxConnection | None = None
        self._owes_since_s = 0.0  # 0: it owes nothing
        self._next_s = time.monotonic() + _PAUSE_S
        self.pid = 0
        """The master's process, once it has answered."""

    def silent_s(self) -> float:
        """For how long it has owed an answer, in seconds; to be called every second or so.

        0 also where no master is left: the sessions on it tell of that.
        """
        now_s = time.monotonic()
        if self._asked is not None:
            self._look()
        if self._asked is None and now_s >= self._next_s:
            self._next_s = now_s + _PAUSE_S
            self._ask(now_s)
        return now_s - self._owes_since_s if self._owes_since_s else 0.0

    def close(self) -> None:
        """Ask no more."""
        if self._asked is not None:
            self._asked.close()
            self._asked = None

    def _ask(self, now_s: float) -> None:
        self._owes_since_s = self._owes_since_s or now_s
        try:
            self._asked = MuxConnection(self._path, Deadline.after(_CONNECT_S))
            self._asked.ask_alive()
        except DeadlineError:
            pass
        except MasterError:
            self._settle()

    def _look(self) -> None:
        assert self._asked is not None
        try:
            self.pid = self._asked.wait_alive(Deadline.after(0.0))
        except DeadlineError:
            return
        except MasterError:
            pass
        self._settle()

    def _settle(self) -> None:
        self._owes_since_s = 0.0
        self.close()
