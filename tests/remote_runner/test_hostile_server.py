"""A server that never stops talking before the login is given up in time, and what it says does not pile up here."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import asyncssh
import pytest

from remote_runner.controller import Controller
from remote_runner.errors import HandshakeDroppedError, HostUnreachableError
from remote_runner.masters import SshHost
from tests.hosts import UserSshd

WAIT_S = 30.0
WORDS = "Welcome to this machine.\r\n" * 100
Serve = Callable[[], Awaitable[asyncio.Server | asyncssh.SSHAcceptor]]


@contextmanager
def served(serve: Serve) -> Iterator[int]:
    """The port of that server, which runs on a thread."""

    async def run() -> None:
        server = await serve()
        ports.put(server.sockets[0].getsockname()[1])
        while not over.is_set():
            await asyncio.sleep(0.05)
        server.close()

    over, ports = threading.Event(), SimpleQueue[int]()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield ports.get(timeout=WAIT_S)
    finally:
        over.set()
        thread.join()


def log_bytes(controller: Controller) -> int:
    return sum(path.stat().st_size for path in controller.runtime.glob("*.log"))


def test_words_without_end_before_the_protocol(user_sshd: UserSshd, controller: Controller) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                writer.write(WORDS.encode())
                await writer.drain()

    with served(lambda: asyncio.start_server(talk, "127.0.0.1", 0)) as port:
        with SshHost(user_sshd.through(port), controller, os.environ, connect_s=2) as host:
            with pytest.raises(HandshakeDroppedError):
                host.start_session("true")
    assert log_bytes(controller) < 1 << 20


def test_banners_without_end(user_sshd: UserSshd, controller: Controller) -> None:
    class Talks(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._connection: Any = conn  # asyncssh 2.20 types a part of it

        async def begin_auth(self, username: str) -> bool:
            with suppress(OSError, asyncssh.Error):
                while not self._connection.is_closed():
                    self._connection.send_auth_banner(WORDS * 10)
                    await asyncio.sleep(0.001)
            return True

    async def serve() -> asyncssh.SSHAcceptor:
        return await asyncssh.create_server(Talks, "127.0.0.1", 0, server_host_keys=[str(key)])

    key: Path = user_sshd.keys.server
    with served(serve) as port:
        with SshHost(user_sshd.through(port), controller, os.environ, connect_s=WAIT_S) as host:
            with pytest.raises(HostUnreachableError, match="banners without end"):
                host.start_session("true")
    assert log_bytes(controller) == 0
