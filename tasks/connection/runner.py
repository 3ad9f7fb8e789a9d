"""Invoke's runner over a command of a host's agent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from fabric.runners import Result
from invoke.runners import Runner

from remote_runner.connection.link import StreamClosed
from remote_runner.connection.verbs.command import STDERR_LANE, STDOUT_LANE, Command
from remote_runner.errors import HostLostError
from tasks.command_line.task import Failed

if TYPE_CHECKING:
    from tasks.connection.connection import AgentConnection

_R = TypeVar("_R")

# What sshd does with a command: the login's own shell reads it.
_LOGIN_SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -c "$1"', "sh")


class AgentRunner(Runner):
    """Its reading, watching and result handling stay Invoke's.

    Ctrl-C goes to the command there, a second one and a timeout end it.
    """

    context: AgentConnection

    def __init__(self, context: AgentConnection) -> None:
        super().__init__(context)
        self._command: Command | None = None
        self._ended: Future[int] = Future()
        self._open_lanes = {STDOUT_LANE, STDERR_LANE}
        self._lanes_lock = threading.Lock()  # each is read in a thread of Invoke's
        self._is_interrupted = False
        self._before: Any = None  # what SIGINT did before it was ours

    def start(self, command: str, shell: str, env: dict[str, str], timeout: float | None = None) -> None:
        """Start the command; what `env` says is there byte for byte (Invoke's own lets the shell read it)."""
        if self.using_pty:
            raise Failed(f"{self.context.name}: a pty is not offered through a host's agent; leave pty=True out")
        self._command = self._do(self.context.agent().execute((*_LOGIN_SHELL, command), env=env))
        before = signal.getsignal(signal.SIGINT)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and callable(before) and not (self._asynchronous or self._disowned):
            # Invoke notices a Ctrl-C only while it waits, and loses one in between.
            self._before = before
            signal.signal(signal.SIGINT, lambda number, frame: self._interrupt())

    def generate_env(self, env: dict[str, str], replace_env: bool) -> dict[str, str]:
        """Only what was asked for: this machine's environment is not the host's."""
        return env

    def generate_result(self, **kwargs: Any) -> Result:
        """Fabric's result, which knows its connection."""
        return Result(**kwargs, connection=self.context)

    @property
    def process_is_finished(self) -> bool:
        """Whether its end is known."""
        return self._ended.done()

    def returncode(self) -> int:
        """Its exit status, 128 + n after signal n; raises if it is unknown."""
        return self._ended.result()

    def read_proc_stdout(self, num_bytes: int) -> bytes:
        """What came next, as much as that is."""
        return self._read(STDOUT_LANE)

    def read_proc_stderr(self, num_bytes: int) -> bytes:
        """What came next, as much as that is."""
        return self._read(STDERR_LANE)

    def _read(self, lane: int) -> bytes:
        data = b""
        with suppress(StreamClosed, HostLostError):  # `_wait` says why
            data = self._do(self._running.read(lane))
        if not data:
            with self._lanes_lock:
                self._open_lanes.discard(lane)
                is_last = not self._open_lanes
            if is_last:  # its end is told behind its streams'
                self._wait()
        return data

    def _wait(self) -> None:
        try:
            self._ended.set_result(self._do(self._running.wait()))
        except Exception as error:  # noqa: BLE001 (raised by `returncode`)
            if not self._ended.done():
                self._ended.set_exception(error)

    def _write_proc_stdin(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # the command reads no more
            self._do(self._running.write(data))

    def close_proc_stdin(self) -> None:
        """Let it read the end of its input."""
        with suppress(StreamClosed, HostLostError):
            self._do(self._running.end_input())

    def send_interrupt(self, interrupt: KeyboardInterrupt) -> None:
        """Hand on a Ctrl-C; a second one ends the command."""
        self._interrupt()

    def _interrupt(self) -> None:
        """The same, without waiting for anything."""
        if self._is_interrupted:
            self.kill()
            return
        self._is_interrupted = True
        self.context.begin(self._running.signal(signal.SIGINT))

    def kill(self) -> None:
        """End it there (TERM, then KILL), and wait no longer."""
        with suppress(InvalidStateError):  # it has ended by itself
            self._ended.set_result(128 + signal.SIGTERM)
        self.context.begin(self._running.close())

    def stop(self) -> None:
        """Leave nothing of it behind."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
        super().stop()
        if self._command is not None:
            self._do(self._command.close())

    @property
    def _running(self) -> Command:
        assert self._command is not None
        return self._command

    def _do(self, work: Coroutine[Any, Any, _R]) -> _R:
        result: _R = self.context.do(work)
        return result
