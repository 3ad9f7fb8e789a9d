"""Links for tests: to the small agent of `peer.py` or the real one, here or through a real sshd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from remote_runner.connection.bootstrap.program import program_for
from remote_runner.connection.link import Link, Stream
from remote_runner.connection.transports.ssh import SshTransport
from remote_runner.connection.transports.transport import LocalTransport, Transport
from remote_runner.controller import Controller
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.inventory.systems import System
from tests.needs import need
from tests.remote_runner.connection import peer

WAIT_S = 50.0
_R = TypeVar("_R")
Program = Callable[[System], Awaitable[Path]]


def run(work: Coroutine[Any, Any, _R]) -> _R:
    """Run it to its end, which comes in time."""
    return asyncio.run(asyncio.wait_for(work, WAIT_S))


def small_agent(directory: Path) -> Program:
    """The one of `peer.py`."""
    path = peer.program(directory)

    async def find(system: System) -> Path:
        return path

    return find


def real_agent() -> Path:
    """The real one's program, built where the sources have changed; Go's cache is kept between tests."""
    need("go")
    root = Path(__file__).resolve().parents[3] / "build" / "agent-cache"
    root.mkdir(parents=True, exist_ok=True)
    return program_for(System.local(), Controller(root, root), os.environ)


def local(directory: Path) -> LocalTransport:
    """This machine with a home of the test's own."""
    home = directory / "home"
    home.mkdir(exist_ok=True)
    return LocalTransport(environ={"HOME": str(home), "PATH": os.environ["PATH"]})


def by_ssh(target: SshTarget, directory: Path, **options: Any) -> SshTransport:
    """A host by ssh; its log lies in a directory of the test's own."""
    return SshTransport(target, directory / "logs", os.environ, **options)


@asynccontextmanager
async def linked(
    transport: Transport,
    program: Program,
    *,
    tolerate_s: float = 20.0,
    connect_s: float = 30.0,
    directory: str = "",
    on_open: Callable[[Stream], None] | None = None,
    told: Callable[[str], None] | None = None,
) -> AsyncIterator[Link]:
    """A link that is closed at the end of the block."""
    link = await Link.open(
        transport,
        name=transport.name,
        directory=directory,
        tolerate_s=tolerate_s,
        connect_s=connect_s,
        program=program,
        on_open=on_open,
        told=told,
    )
    try:
        yield link
    finally:
        await link.close()
