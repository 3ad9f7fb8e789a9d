"""A program on a host, run to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from remote_runner.connection.agent import Agent
from remote_runner.connection.link import StreamClosed
from remote_runner.connection.verbs.command import STDERR_LANE, STDOUT_LANE


class Finished(NamedTuple):
    """How it ended, and all that it said."""

    status: int
    stdout: bytes
    stderr: bytes


async def run_program(
    agent: Agent,
    argv: Sequence[str],
    *,
    env: Mapping[str, str | bytes] | None = None,
    cwd: str = "",
    stdin: bytes = b"",
) -> Finished:
    command = await agent.execute(argv, env=env, cwd=cwd)

    async def said(lane: int) -> bytes:
        text = b""
        while data := await command.read(lane):
            text += data
        return text

    async def feed() -> None:
        with suppress(BrokenPipeError, StreamClosed):  # it reads nothing more
            if stdin:
                await command.write(stdin)
            await command.end_input()

    feeding = asyncio.create_task(feed())
    try:
        stdout, stderr = await asyncio.gather(said(STDOUT_LANE), said(STDERR_LANE))
        return Finished(await command.wait(), stdout, stderr)
    finally:
        feeding.cancel()
        await command.close()
