"""This machine's Nix store, asked over Nix's serve protocol."""

from __future__ import annotations

from contextlib import suppress
from typing import Self

from remote_runner.artifact.nix.here import Nix
from remote_runner.connection.transports.pipes import Pipes
from remote_runner.errors import LocalProgramError

_ENDING_S = 2.0


class LocalServer:
    """A `nix-store --serve` on this machine, which writes nothing; a `Stream` for `ServeClient`.

    Raises `LocalProgramError` where it cannot be started or ends with an error.
    """

    def __init__(self, nix: Nix) -> None:
        self._argv = (nix.nix_store, "--serve")
        self._environ = nix.environ
        self._pipes: Pipes
        self._ahead = b""

    async def __aenter__(self) -> Self:
        self._pipes = Pipes(self._argv, self._environ)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pipes.close()

    async def write(self, data: bytes) -> None:
        with suppress(OSError):  # `read_some` tells why
            await self._pipes.write(data)

    async def read_some(self, count: int) -> bytes:
        data = self._ahead or await self._pipes.read()
        if not data:
            raise await self._ended()
        self._ahead = data[count:]
        return data[:count]

    async def _ended(self) -> LocalProgramError:
        status = await self._pipes.close(wait_s=_ENDING_S)
        return LocalProgramError(
            self._argv,
            f"ended with status {status} before it had answered",
            stderr=self._pipes.words(),
            next_step="see what `nix-store --verify` says",
        )
