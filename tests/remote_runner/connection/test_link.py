"""A link to an agent over a real process: streams, cuts, silence, the end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from remote_runner.connection.link import Link
from remote_runner.connection.transport import LocalTransport
from remote_runner.inventory.systems import System
from tests.remote_runner.connection import peer


def test_x(tmp_path: Path) -> None:
    async def run() -> None:
        program = peer.program(tmp_path)

        async def find(system: System) -> Path:
            return program

        link = await Link.open(
            LocalTransport(environ={"HOME": str(tmp_path)}), name="localhost", tolerate_s=6, program=find, told=print
        )
        print(link.greeting)
        s = await link.request({"verb": "say", "a": 1}, b"x", b"y")
        print(await s.receive())
        await link.close()

    asyncio.run(run())
