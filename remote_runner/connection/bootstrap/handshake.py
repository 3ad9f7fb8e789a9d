"""Turning a login into a session's agent: what is sent to the shell there, and what it answers.

docs/protocol.md, section 1.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from remote_runner.connection.frames import PROTOCOL, BreachError, decode_object
from remote_runner.connection.transports.pipes import MOST_SAID_BYTES, Pipes
from remote_runner.connection.transports.transport import Transport
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    FarShellError,
    HostError,
    HostUnreachableError,
    NoFarDirectoryError,
    UnknownSystemError,
)
from remote_runner.inventory.systems import System

_NOISE_BYTES = 4 << 10
_AGAIN_S = 5.0  # for an agent that runs already, at least
_ENDING_S = 2.0


class AgentGoneError(Exception):
    """The host has no agent of this session any more; its words, where it has some, say why."""


class SilentProgramError(Exception):
    """The program that is there ended before it greeted: cut off when it was written, or for another machine."""

    def __init__(self, error: HostError) -> None:
        super().__init__(str(error))
        self.error = error  # to be raised where another program ends alike


@functools.cache
def _script() -> str:
    """The script without comments and indentation: a shell reads it byte by byte from its stdin, if it is bash."""
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
        """Take the bytes received."""
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
        """The bytes behind the last answer."""
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


@dataclass(frozen=True)
class Bootstrap:
    """The conversation with a host's shell, from the script to the agent's greeting.

    connect_s: for how long the host may be silent once it has answered. program: where the program for a system is.
    """

    transport: Transport
    connect_s: float
    program: Callable[[System], Awaitable[Path]]

    async def run(
        self, pipes: Pipes, nonce: str, epoch: int, deadline: Deadline, logged_in: Callable[[], None]
    ) -> tuple[Greeting, bytes]:
        """Speak until the agent greets: its greeting, and what came behind it. `logged_in` is called by then.

        Raises what keeps it from that: `HostError`, `AgentGoneError`, `SilentProgramError`, `RemoteRunnerError` where
        the program cannot be built.
        """
        name = self.transport.name
        answers = Answers(nonce)
        is_starting = False
        # A host that has answered has the time that it takes; an agent that runs already is waited for no longer than
        # what is left.
        answering_s = self.connect_s
        if epoch > 1:
            answering_s = min(answering_s, max(_AGAIN_S, deadline.remaining_s))
        try:
            async with asyncio.timeout(min(deadline.remaining_s, pipes.answer_s or deadline.remaining_s)) as limit:
                with suppress(OSError):  # who does not read says why below
                    await pipes.write(pipes.opening)
                while (answer := await self._next(pipes, answers)) is not None:
                    logged_in()
                    limit.reschedule(asyncio.get_running_loop().time() + answering_s)
                    kind, words = answer
                    if kind == "agent":
                        return self._read_greeting(words, epoch), answers.rest()
                    if kind == "need":
                        limit.reschedule(None)
                        await self._send_program(pipes, words, limit)
                    elif kind == "start":
                        is_starting = True
                    elif kind == "gone" and epoch > 1:
                        raise AgentGoneError
                    elif kind == "fault":
                        raise self._fault(words)
        except TimeoutError:
            said = f"{answers.noise()}\n{pipes.words()}"
            await pipes.close()
            if is_starting:
                raise FarShellError(name, "its agent was started, and does not answer", stderr=said) from None
            raise self.transport.explain(None, said) from None
        status = await pipes.close(wait_s=_ENDING_S)
        said = f"{answers.noise()}\n{pipes.words()}"
        if is_starting and self.transport.is_from_host(status):
            raise SilentProgramError(
                FarShellError(
                    name,
                    f"its agent ended with status {status} as it began",
                    stderr=said,
                    next_step="see what it says above; if it is about threads or memory, look there for what holds "
                    "them all (ulimit -u, TasksMax, free -m)",
                )
            )
        raise self.transport.explain(status, said)

    async def _next(self, pipes: Pipes, answers: Answers) -> tuple[str, str] | None:
        """The next answer; `None` where the host says nothing more."""
        while (answer := answers.next()) is None:
            data = await pipes.read()
            answers.feed(data)
            if max(answers.size, pipes.said_bytes) > MOST_SAID_BYTES:
                raise HostUnreachableError(
                    self.transport.name,
                    "it sends banners without end, and never a login",
                    next_step="find out what answers there",
                )
            if not data:
                return None
        return answer

    def _read_greeting(self, words: str, epoch: int) -> Greeting:
        try:
            greeting = Greeting.parse(words)
        except (BreachError, UnknownSystemError) as error:
            raise FarShellError(self.transport.name, f"its agent does not answer as ours does: {error}") from error
        if greeting.epoch != epoch:
            raise FarShellError(self.transport.name, f"its agent answers for attachment {greeting.epoch}, not {epoch}")
        return greeting

    async def _send_program(self, pipes: Pipes, words: str, limit: asyncio.Timeout) -> None:
        """Send the program for what the host says it is.

        Raises `FarShellError`, and `RemoteRunnerError` where it cannot be built.
        """
        sysname, machine, bits = (*words.split(), "", "", "")[:3]
        try:
            system = System.from_uname(sysname, machine, int(bits) if bits in ("32", "64") else 0)
        except UnknownSystemError as error:
            raise FarShellError(self.transport.name, f"there is no agent for it: {error}") from error
        path = await self.program(system)
        program = await asyncio.to_thread(path.read_bytes)

        def progressed() -> None:
            limit.reschedule(asyncio.get_running_loop().time() + self.connect_s)

        progressed()
        with suppress(OSError):  # the host says why
            await pipes.write(b"%d\n" % len(program) + program, progressed)

    def _fault(self, words: str) -> HostError:
        kind, _, said = words.partition(" ")
        said = "".join(c if c.isprintable() else "?" for c in said)[:2000].rstrip("; ")
        if kind == "room":
            return HostError(
                self.transport.name,
                f"our program cannot be written there: {said}",
                next_step="make room there, or name another place with `directory` in inventory.yaml",
            )
        return NoFarDirectoryError(
            self.transport.name,
            f"no directory there will do: {said}",
            next_step="name one with `directory` in inventory.yaml that is this user's own, and that nobody else can "
            "exchange",
        )
