"""A program on a host, run as ssh would run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from remote_runner.connection.link import Link, Stream, StreamClosed
from remote_runner.connection.verbs import faults
from remote_runner.connection.verbs.job import raw, variables
from remote_runner.connection.verbs.validation import nonsense, part, whole
from remote_runner.errors import HostError

STDIN_LANE, STDOUT_LANE, STDERR_LANE = 0, 1, 2


class Command:
    """A program that runs on a host. Its output waits there until it is read here."""

    def __init__(self, host: str, program: str, stream: Stream) -> None:
        self._host = host
        self._program = program
        self._stream = stream

    @classmethod
    async def start(cls, link: Link, argv: Sequence[str], env: Mapping[str, str | bytes], cwd: str) -> Self:
        """Ask for a program; `cwd` "" is the home. Raises `HostError`."""
        head = {"verb": "exec", "argc": len(argv), "cwd": cwd, "login_env": True}
        stream = await link.request(head, *map(raw, argv), *variables(env))
        command = cls(link.name, argv[0], stream)
        try:
            part(link.name, (await stream.receive()).head, "started")
        except BaseException as error:
            await stream.close()
            if isinstance(error, StreamClosed):
                raise command._failed(error) from error
            raise
        return command

    async def write(self, data: bytes) -> None:
        """Hand bytes to its stdin, waiting until it takes them. Raises `BrokenPipeError` once it has ended."""
        try:
            await self._stream.write(STDIN_LANE, data)
        except StreamClosed as closed:
            raise BrokenPipeError(f"{self._program} on {self._host} has ended") from closed

    async def end_input(self) -> None:
        """Let it read the end of its stdin."""
        await self._stream.end(STDIN_LANE)

    async def read(self, lane: int) -> bytes:
        """The next bytes of its stdout or stderr, b"" at the end."""
        return await self._stream.read(lane)

    async def wait(self) -> int:
        """Its exit status, 128 + n after signal n, once its stdout and stderr have ended: both have to be read."""
        said: dict[str, Any] | None = None
        try:
            while True:
                said = part(self._host, (await self._stream.receive()).head, "exited")
        except StreamClosed as closed:
            if said is None or closed.kind:
                raise self._failed(closed) from closed
            return status_of(self._host, said)
        finally:
            await self._stream.close()

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        await self._stream.send({"signal": number})

    async def close(self) -> None:
        """End it, if it still runs: TERM, after 2 s KILL."""
        await self._stream.close()

    def _failed(self, closed: StreamClosed) -> HostError:
        return faults.command_fault(self._host, self._program, closed)


def status_of(host: str, said: Mapping[str, Any]) -> int:
    """An exit status as sh says it, in a message about an end. Raises `FarShellError` if it is not one."""
    status, signal = whole(said.get("status"), 255), whole(said.get("signal", 0), 127)
    if status is None or signal is None:
        raise nonsense(host, said)
    return 128 + signal if signal else status
