"""What carries a connection: a command whose standard streams reach a POSIX shell on the host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from remote_runner.deadline import Deadline
from remote_runner.errors import HostError


@dataclass
class Pipes:
    """A transport's process that runs: this side's ends of its pipes (not blocking) and the file with its words."""

    pid: int
    stdin: int
    stdout: int
    stderr: Path


class Transport(Protocol):
    """A way to a host."""

    name: str

    async def start(self, *, first: bool, deadline: Deadline) -> Pipes:
        """Start the process; `first` for the attachment of a session, where the host may be asked by another way."""
        ...

    def explain(self, status: int | None, stderr: str) -> HostError:
        """Why it ended before the host answered; `status` is `None` when it was ended at the deadline."""
        ...
