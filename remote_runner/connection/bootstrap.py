"""How a login becomes the agent of a session: what is sent to the shell there, and what it answers.

docs/protocol.md, section 1.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from remote_runner.connection.frames import PROTOCOL, BreachError, decode_object
from remote_runner.inventory.systems import System

COMMAND = "exec /bin/sh -s"
_NOISE_BYTES = 4 << 10


@functools.cache
def _script() -> str:
    """The script without comments and indentation: the shell there reads it byte by byte, if it is bash."""
    lines = Path(__file__).with_name("bootstrap.sh").read_text(encoding="utf-8").splitlines()
    return "\n".join(
        line if line.endswith("'") else line.strip() for line in lines if line.strip() and line.strip()[0] != "#"
    )


def script(values: Mapping[str, str]) -> bytes:
    """What to send: the variables and the script as one compound command, which is read whole before it runs."""
    variables = b"".join(name.encode() + b"=" + _quoted(value) + b"\n" for name, value in values.items())
    return b"{\n" + variables + _script().encode() + b"\n}\n"


def _quoted(value: str) -> bytes:
    return b"'" + os.fsencode(value).replace(b"'", b"'\\''") + b"'"


class Answers:
    """The lines of the host that begin with the nonce; everything before them is noise."""

    def __init__(self, nonce: str) -> None:
        self._mark = b"\n" + nonce.encode() + b" "
        self._rest = b"\n"  # begins with the end of a line, unless all of it is noise
        self._first = b""
        self._last = b""
        self.size = 0  # of all that came

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self.size += len(data)
        self._rest += data

    def next(self) -> tuple[str, str] | None:
        """The next answer: its first word and the rest of its line. `None` where there is none yet."""
        start = self._rest.find(self._mark)
        if start < 0:
            # What may still be the beginning of an answer is kept.
            last = self._rest.rfind(b"\n")
            cut = last if last >= 0 and len(self._rest) - last < len(self._mark) else len(self._rest)
            self._drop(self._rest[:cut])
            self._rest = self._rest[cut:]
            return None
        end = self._rest.find(b"\n", start + 1)
        if end < 0:
            return None
        self._drop(self._rest[:start])
        line = self._rest[start + len(self._mark) : end]
        self._rest = self._rest[end:]
        kind, _, said = line.decode(errors="replace").rstrip("\r").partition(" ")
        return kind, said

    def rest(self) -> bytes:
        """What came behind the last answer."""
        return self._rest[1:]

    def noise(self) -> str:
        """What else was said: the beginning and the end of it."""
        return (self._first + self._last + self._rest[:_NOISE_BYTES]).decode(errors="replace").strip()

    def _drop(self, data: bytes) -> None:
        room = _NOISE_BYTES - len(self._first)
        self._first += data[:room]
        self._last = (self._last + data[room:])[-_NOISE_BYTES:]


@dataclass(frozen=True)
class Greeting:
    """What the agent says of itself and its host."""

    agent: str
    epoch: int
    received: int
    base: PurePosixPath
    uid: int
    user: str
    system: System
    hostname: str
    boot: str
    pid: int
    address: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the object of the greeting. Raises `BreachError`, `UnknownSystemError`."""
        said = decode_object(text.encode(errors="replace"))
        if said.get("protocol") != PROTOCOL:
            raise BreachError(f"it speaks version {str(said.get('protocol'))[:20]} of the protocol, not {PROTOCOL}")
        return cls(
            _word(said, "agent"),
            _number(said, "epoch"),
            _number(said, "received"),
            PurePosixPath(_word(said, "base")),
            _number(said, "uid"),
            _word(said, "user"),
            System.from_uname(_word(said, "sysname"), _word(said, "machine"), _number(said, "bits")),
            _word(said, "hostname"),
            _word(said, "boot"),
            _number(said, "pid"),
            _word(said, "address"),
        )


def _word(said: Mapping[str, Any], key: str) -> str:
    value = said.get(key)
    if not isinstance(value, str) or len(value) > 4096:
        raise BreachError(f"a greeting without {key}")
    return value


def _number(said: Mapping[str, Any], key: str) -> int:
    value = said.get(key)
    if not isinstance(value, int) or value is True or not 0 <= value < 1 << 63:
        raise BreachError(f"a greeting without {key}")
    return value
