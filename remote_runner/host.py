"""The door to a host: sessions (one command, three streams) and reverse forwards, here or across ssh.

`LocalHost` is this machine; `remote_runner.masters.SshHost` is any other. Both keep the same contract,
so everything above this line is one path.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from remote_runner.deadline import Deadline
from remote_runner.inventory.endpoint import Endpoint as Endpoint


class Session(ABC):
    """One command running on a host; the three descriptors are this side's ends of its pipes (blocking).

    Input may be written at once; `wait_opened` comes before reading to an end of file, because until then the far
    ends are kept here too (a refused session is asked for elsewhere without loss).
    """

    host: str
    stdin_fd: int
    stdout_fd: int
    stderr_fd: int

    @abstractmethod
    def wait_opened(self, deadline: Deadline) -> None:
        """Return once the host has taken the command.

        Raises `SessionRefusedError` when it will not, `HostLostError` when the connection ends, `DeadlineError`.
        """

    @abstractmethod
    def wait_exit(self, deadline: Deadline) -> int:
        """The command's exit status (128 + n after signal n).

        Raises `HostLostError` when the connection ended before the status came, `NoExitStatusError` when the command
        itself ended without one (ssh passes no signal numbers on), `DeadlineError`. Opens the session if need be.
        """

    def check_carrier(self) -> None:
        """Raise `HostLostError` where what carries the session has stood still for as long as a host may be silent.

        Never waits. Who waits for the session calls it every second: its pipes do not tell of that.
        """
        return

    def close_stdin(self) -> None:
        """End the command's standard input; harmless when done before."""
        if self.stdin_fd >= 0:
            os.close(self.stdin_fd)
            self.stdin_fd = -1

    def close(self) -> None:
        """Let go of all three pipes; the far command notices by its end of input."""
        self.close_stdin()
        for name in ("stdout_fd", "stderr_fd"):
            fd: int = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Host(ABC):
    """A machine that runs commands; `name` is its name in the inventory."""

    name: str
    retries: int = 0
    """How often connecting was tried again."""

    @abstractmethod
    def start_session(self, command: str, *, brief: bool = False) -> Session:
        """Ask the host to run `command` (a line for the login shell there) and return without waiting.

        `brief` marks a short session (push, probe), for which places are kept free of the long ones.
        """

    @abstractmethod
    def forward_remote(self, near: Endpoint, far_port: int = 0) -> Endpoint:
        """Make `near` (dialled from this machine) reachable on the host; returns what a program there dials.

        Port 0 lets the host choose; asked again for the same `near`, the answer is the same.
        """

    def forward_all(self, nears: Sequence[Endpoint]) -> list[Endpoint]:
        """`forward_remote` for several, each to a port that the host chooses."""
        return [self.forward_remote(near) for near in nears]

    @abstractmethod
    def forward_local(self, far: Endpoint, near_port: int = 0) -> Endpoint:
        """Make `far` (dialled from the host) reachable here, on loopback; returns what a program here dials."""

    def unchecked_ports(self, far_ports: Collection[int]) -> tuple[int, ...]:
        """Those of our forwards' ports there of which it has to be looked yet whether the network reaches them.

        The look costs a host 4 ms (`/proc/net/tcp`).
        """
        return tuple(far_ports)

    def note_private(self) -> None:  # noqa: B027 (most remember nothing)
        """The host has looked: the network reaches none of our forwards."""

    @abstractmethod
    def address(self) -> str:
        """The address by which this machine reached the host."""

    def abandon(self) -> None:  # noqa: B027 (most have nothing to give up)
        """Give up the connection that is just being opened: who waits for it gets an error soon. None opens later."""

    @abstractmethod
    def close(self) -> None:
        """Drop this process's claims (places, forwards); what other processes use stays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
