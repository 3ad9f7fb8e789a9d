"""An instance's own words among the application's: Testground events on stdout, whole lines only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from remote_runner.descriptors import write_all
from remote_runner.secrets import Secrets
from testground.events import CrashEvent, Event, FailureEvent, MessageEvent, encode_event
from testground.terminal import harmless

# Testground stops reading an instance at a line of 64 KiB; an error with a page of stderr stays well below.
LONGEST_TEXT = 16_000


class Reporter:
    """Writes to an instance's stdout and stderr; several threads may, no line is cut by another's.

    Testground closes its end of a stream that it reads no further. What is written there then is dropped, and
    `on_unread` is told once for each stream, with its name. Our own words are made harmless for a terminal and go
    without the `secrets`; the application's lines pass as they are.
    """

    def __init__(
        self, stdout_fd: int, stderr_fd: int, *, group_id: str, run_id: str, on_unread: Callable[[str], None]
    ) -> None:
        self._fds: dict[str, int] = {"stdout": stdout_fd, "stderr": stderr_fd}
        self._on_unread = on_unread
        self._group_id = group_id
        self._run_id = run_id
        self._lock = threading.Lock()
        self.secrets = Secrets()

    def message(self, text: str) -> None:
        """A message event."""
        self._event(MessageEvent(self._words(text)))

    def failure(self, text: str) -> None:
        """The failure event that makes Testground's verdict, with the reason and the next step."""
        self._event(FailureEvent(self._group_id, self._words(text)))

    def crash(self, text: str, trace: str) -> None:
        """A fault of remote-runner's own."""
        self._event(CrashEvent(self._group_id, self._words(text), self._words(trace)))

    def lines(self, stream: str, data: bytes | memoryview) -> None:
        """The application's own whole lines, to the same stream here (`stdout` or `stderr`)."""
        with self._lock:
            fd = self._fds.get(stream)
            if fd is None:
                return
            try:
                write_all(fd, data)
                return
            except OSError:  # EPIPE; or what it goes to is full or gone, and nothing can be told there either
                del self._fds[stream]
        self._on_unread(stream)

    def _event(self, event: Event) -> None:
        line = encode_event(event, ts_ns=time.time_ns(), group_id=self._group_id, run_id=self._run_id)
        self.lines("stdout", line)

    def _words(self, text: str) -> str:
        text = harmless(self.secrets.hide(text))
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
