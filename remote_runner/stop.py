"""The wish to end an instance: seen by who looks, and raised where the main thread waits for something."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class InstanceStoppedError(BaseException):
    """The instance shall end; says why.

    Not an `Exception`: nobody takes it for a fault of the step that it ends, keeps it, or shares it with processes that
    wait for that step.
    """


class Stop(threading.Event):
    """Set when an instance shall end; `reason` then says why.

    `request` may be called from a signal handler and from any thread. In an `interruptible` block it raises
    `InstanceStoppedError` in the main thread, once, whatever that thread waits for (from another thread only where
    SIGTERM's handler calls it as well).
    """

    def __init__(self) -> None:
        super().__init__()
        self.reason = ""
        self._interrupts = False
        self._is_held_off = False
        self._calls: list[Callable[[], None]] = []
        self._calls_lock = threading.RLock()  # a signal's handler may ask while its thread has it

    def on_signals(self) -> None:
        """From now on SIGTERM, SIGINT and SIGHUP are requests. For the main thread."""

        def end(number: int, frame: FrameType | None) -> None:
            self.request(f"somebody here ended the instance ({signal.Signals(number).name})")

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)

    def request(self, reason: str) -> None:
        """Ask for the end; only the first request counts."""
        if not self.reason:  # plain attributes: a signal may come in the middle of this
            self.reason = reason
            self.set()
            with self._calls_lock:
                for call in self._calls:
                    call()
        if threading.current_thread() is not threading.main_thread():
            _wake_main_thread()
        elif not self._is_held_off:
            self._interrupt()

    @contextmanager
    def also(self, call: Callable[[], None]) -> Iterator[None]:
        """Within the block a request calls this as well, one that came before at once; it neither waits nor raises."""
        with self._calls_lock:
            self._calls.append(call)
            if self.is_set():
                call()
        try:
            yield
        finally:
            with self._calls_lock:
                self._calls.remove(call)

    def check(self) -> None:
        """Raise `InstanceStoppedError` if somebody has asked."""
        if self.is_set():
            raise InstanceStoppedError(self.reason)

    def _interrupt(self) -> None:
        interrupts, self._interrupts = self._interrupts, False
        if interrupts:
            raise InstanceStoppedError(self.reason)

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """In this short block nothing is raised, but at its end: for what must not be cut off from its result."""
        self._is_held_off = True
        try:
            yield
        finally:
            self._is_held_off = False
        if self.is_set():
            self._interrupt()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """For the main thread: until its end a request raises here. What is opened inside is closed outside."""
        self._interrupts = True
        try:
            self.check()
            yield
        finally:
            self._interrupts = False
        self.check()


def _wake_main_thread() -> None:
    # Only a signal ends what it waits for; its handler comes to `request` again.
    ident = threading.main_thread().ident
    if callable(signal.getsignal(signal.SIGTERM)) and ident is not None:
        signal.pthread_kill(ident, signal.SIGTERM)
