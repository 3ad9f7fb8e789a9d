"""Where a broker listens, which depends on everything that it is started with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from remote_runner.broker.protocol import MAGIC
from remote_runner.controller import Controller

VARIABLE = "REMOTE_RUNNER_BROKER"
"""What the broker is told of its socket (inode and path); `off` makes an instance run in its own process."""
DIRECTORY = "broker"
_NAMES = ("PATH", "HOME", "LANG", "TZ", "REMOTE_RUNNER_DEBUG")
_PREFIXES = ("LC_", "PYTHON", "LD_", "DYLD_")


@dataclass(frozen=True)
class BrokerPlace:
    """The socket, what the broker says, and the lock under which the socket is made and removed."""

    socket: Path

    @classmethod
    def of(cls, controller: Controller, words: Sequence[str], directory: str, environ: Mapping[str, str]) -> Self:
        """The place of the broker that is started by these words; exec-go/broker.go finds the same one."""
        text = "\0".join((MAGIC.decode(), directory, *words, *interpreter_variables(environ)))
        return cls(controller.runtime / DIRECTORY / _key(text.encode(errors="surrogateescape")))

    @property
    def log(self) -> Path:
        """What it and its interpreter said."""
        return self.socket.with_name(f"{self.socket.name}.log")

    @property
    def lock(self) -> Path:
        """Held while its socket comes or goes."""
        return self.socket.parent.parent / "locks" / self.lock_name

    @property
    def lock_name(self) -> str:
        """The lock's name among those of `Controller.lock`."""
        return f"broker-{self.socket.name}"


def _key(text: bytes) -> str:
    """FNV-1a of 64 bits: what a launcher can have without importing much."""
    found = 0xCBF29CE484222325
    for byte in text:
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{found:x}"


def interpreter_variables(environ: Mapping[str, str]) -> list[str]:
    """The variables that decide how an interpreter starts, as NAME=VALUE, sorted; the others are an instance's own."""
    return sorted(f"{name}={value}" for name, value in environ.items() if name in _NAMES or name.startswith(_PREFIXES))
