"""The embedded sync service, for runs without Testground's daemon: `SyncCore` behind sockets.

On loopback only: there is no authentication in the protocol, and hosts come to it through ssh forwards.

What is meant to differ from the official service; tests/testground/test_sync_recordings.py holds it, as all else:

- A message goes to its subscribers at once, not at the next tick of 100 ms.
- Requests of one connection are handled in the order in which they come.
- A frame may have 1 MiB, not 32 KiB; a longer one ends the connection with the same code, and a reason of that size.
  (Subscribers on the Go SDK read 32 KiB, whichever service sends.)
- A cancelled barrier stays silent; there it is answered when it is met.
- A payload's text keeps the order of its keys and the digits of its integers; there keys are sorted, `<`, `>` and `&`
  escaped, and every number is a 64-bit float.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

from testground.errors import SyncListenError
from testground.sync import websocket
from testground.sync.core import DEFAULT_IDLE_S, Connection, SyncCore
from testground.sync.peer import CLOSE_TIMEOUT_S, Peer
from testground.sync.protocol import DEFAULT_PORT, Close

_PORTS_TO_TRY = 20
_BACKLOG = 1024
_READ_BYTES = 64 * 1024
_SHORTEST_SLEEP_S = 0.05

_Result = TypeVar("_Result")


class SyncService:
    """A sync service in a thread of its own; a context manager.

    Listens on `port` (0: a free one, then in `.port`) of 127.0.0.1 and, where there is IPv6, of ::1, since `localhost`
    may mean either. What it remembers of a run is freed by `forget_run`, or when for `idle_s` nobody was connected who
    had used it. Raises SyncListenError.
    """

    def __init__(
        self, port: int = 0, *, idle_s: float = DEFAULT_IDLE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.port = port
        self._idle_s = idle_s
        self._core = SyncCore(idle_s=idle_s, clock=clock)
        self._peers: dict[Connection, Peer] = {}
        self._buffer = bytearray(_READ_BYTES)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._is_up = threading.Event()
        self._has_ended = threading.Event()
        self._failure: BaseException | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens, as `HOST:PORT`."""
        return f"localhost:{self.port}"

    def __enter__(self) -> Self:
        sockets = _listen(self.port)
        self.port = sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(sockets,), name="sync-service", daemon=True)
        self._thread.start()
        self._is_up.wait()
        if self._failure is not None:
            raise SyncListenError(self.endpoint, f"cannot start: {self._failure}") from self._failure
        return self

    def __exit__(self, *_: object) -> None:
        loop, stop, thread = self._loop, self._stop, self._thread
        if thread is None:
            return
        if loop is not None and stop is not None and not self._has_ended.is_set():
            loop.call_soon_threadsafe(stop.set)
        thread.join()

    def wait(self) -> None:
        """Return when the service has ended; raises SyncListenError if it ended by itself."""
        self._has_ended.wait()
        if self._failure is not None:
            raise SyncListenError(self.endpoint, f"ended by itself: {self._failure}") from self._failure

    def forget_run(self, run: str) -> bool:
        """Free what is remembered of a run; returns whether there was anything. From any thread."""
        return self._call(lambda: self._core.forget_run(run))

    def runs(self) -> tuple[str, ...]:
        """The runs that something is remembered of. From any thread."""
        return self._call(lambda: self._core.runs)

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """The function's result, from the service's thread while that runs."""
        if self._loop is None or self._has_ended.is_set():
            return function()

        async def call() -> _Result:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _run(self, sockets: list[socket.socket]) -> None:
        try:
            asyncio.run(self._serve(sockets))
        except Exception as error:  # noqa: BLE001 (kept for whoever waits; a thread has no caller)
            self._failure = error
        finally:
            self._has_ended.set()
            self._is_up.set()

    async def _serve(self, sockets: list[socket.socket]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        servers = [
            await self._loop.create_server(
                lambda: Peer(self._core, self._peers, self._buffer), sock=sock, backlog=_BACKLOG
            )
            for sock in sockets
        ]
        forgetting = asyncio.create_task(self._forget_idle())
        self._is_up.set()
        await self._stop.wait()
        forgetting.cancel()
        for server in servers:
            server.close()
        peers = list(self._peers.values())
        for peer in peers:
            peer.end(Close(websocket.GOING_AWAY, ""))
        if peers:
            _, reading_nothing = await asyncio.wait([peer.gone for peer in peers], timeout=CLOSE_TIMEOUT_S)
            for peer in self._peers.values():
                peer.abort()
            await asyncio.gather(*reading_nothing)

    async def _forget_idle(self) -> None:
        while True:
            await asyncio.sleep(max(self._idle_s / 12, _SHORTEST_SLEEP_S))
            self._core.forget_idle()


def serve_forever(port: int = DEFAULT_PORT, on_ready: Callable[[int], None] = lambda port: None) -> None:
    """Serve alone until interrupted (SIGINT); `on_ready` gets the port once clients can connect.

    Raises SyncListenError.
    """
    with SyncService(port) as service:
        on_ready(service.port)
        try:
            service.wait()
        except KeyboardInterrupt:
            return


def _listen(port: int) -> list[socket.socket]:
    """Sockets on `port` of each loopback address there is; for port 0 on one port that is free on all of them."""
    for _ in range(_PORTS_TO_TRY if port == 0 else 1):
        first = _bind(socket.AF_INET, "127.0.0.1", port)
        if first is None:
            raise SyncListenError(
                f"127.0.0.1:{port}", "there is no such address", next_step="bring the loopback interface up"
            )
        chosen = first.getsockname()[1]
        try:
            second = _bind(socket.AF_INET6, "::1", chosen)
        except SyncListenError:
            first.close()
            if port != 0:
                raise
            continue  # free on one address, taken on the other
        return [first] if second is None else [first, second]
    raise SyncListenError("localhost:0", f"none of {_PORTS_TO_TRY} ports was free on both 127.0.0.1 and ::1")


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket | None:
    """A listening socket; None where the machine has no such address (no IPv6, or none on loopback)."""
    try:
        # The protocol is named because asyncio sets TCP_NODELAY only where it is (40 ms an answer without).
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError:
        return None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
        return listening
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            next_step = "end the program that listens there (Testground's own sync service?), or take another port"
            raise SyncListenError(endpoint, "the port is taken", next_step=next_step) from error
        raise SyncListenError(endpoint, f"cannot listen: {error.strerror}") from error
    except OverflowError as error:
        listening.close()
        raise SyncListenError(f"{host}:{port}", "no port number", next_step="take a port from 0 to 65535") from error
