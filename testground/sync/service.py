"""The embedded sync service, for runs without Testground's daemon: `SyncCore` behind sockets.

On loopback only: there is no authentication in the protocol, and hosts come to it through ssh forwards.

What is meant to differ from the official service; tests/testground/test_sync_recordings.py holds it, as all else:

- A message goes to its subscribers at once, not at the next tick of 100 ms.
- Requests of one connection are handled in the order in which they come.
- A frame may have 1 MiB, not 32 KiB; a longer one ends the connection with the same code, and a reason of that size.
  (Subscribers on the Go SDK read 32 KiB, whichever service sends.)
- A cancelled barrier stays silent; there it is answered when it is met.
- What clients can fill has bounds (`core.Limits`); what goes beyond is answered with an error.
- A payload's text keeps the order of its keys and the digits of its integers; there keys are sorted, `<`, `>` and `&`
  escaped, and every number is a 64-bit float.
"""

from __future__ import annotations

import errno
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from testground.errors import SyncListenError
from testground.sync import DEFAULT_PORT, websocket
from testground.sync.core import DEFAULT_IDLE_S, Connection, SyncCore
from testground.sync.journal import Entry, Journal
from testground.sync.peer import CLOSE_TIMEOUT_S, WRITE_TIMEOUT_S, Peer
from testground.sync.protocol import Close

_PORTS_TO_TRY = 20
_BACKLOG = 1024
_READ_BYTES = 64 * 1024
_TICK_S = 1.0


class SyncService:
    """A sync service in a thread of its own; a context manager.

    Listens on `port` (0: a free one, then in `.port`) of 127.0.0.1 and, where there is IPv6, of ::1, since `localhost`
    may mean either. What it remembers of a run is freed by `forget_run`, or when for `idle_s` nobody was connected who
    had used it. With `name_of`, which names a client by its port here, a journal is kept (`journal_of`). A client that
    takes nothing for `write_timeout_s` is cut off. Raises SyncListenError, at the end too,
    if it has ended by itself before.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        idle_s: float = DEFAULT_IDLE_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        name_of: Callable[[int], str] | None = None,
    ) -> None:
        self.port = port
        self._journal = None if name_of is None else Journal()
        self._name_of = name_of
        self._core = SyncCore(idle_s=idle_s, clock=clock, journal=self._journal)
        self._write_timeout_s = write_timeout_s
        self._core_lock = threading.Lock()
        self._peers: dict[Connection, Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._end: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._has_ended = threading.Event()
        self._failure: BaseException | None = None

    @property
    def endpoint(self) -> str:
        """Where it listens, as `HOST:PORT`."""
        return f"localhost:{self.port}"

    def __enter__(self) -> Self:
        listening = _listen(self.port)
        self.port = listening[0].getsockname()[1]
        self._end, ended = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(listening, ended), name="sync-service", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._end is not None and self._thread is not None:
            self._end.close()
            self._thread.join()
        if kind is None:
            self.wait()

    def wait(self) -> None:
        """Return when the service has ended; raises SyncListenError if it ended by itself."""
        self._has_ended.wait()
        if self._failure is not None:
            raise SyncListenError(self.endpoint, f"ended by itself: {self._failure}") from self._failure

    def forget_run(self, run: str) -> bool:
        """Free what is remembered of a run; returns whether there was anything. From any thread."""
        with self._core_lock:
            return self._core.forget_run(run)

    def journal_of(self, run: str) -> list[Entry]:
        """What its clients did in a run, once; nothing without `name_of`. From any thread."""
        with self._core_lock:
            return [] if self._journal is None else self._journal.take(run)

    def runs(self) -> tuple[str, ...]:
        """The runs that something is remembered of. From any thread."""
        with self._core_lock:
            return self._core.runs

    def _run(self, listening: list[socket.socket], ended: socket.socket) -> None:
        try:
            with self._selector:
                self._serve(listening, ended)
        except Exception as error:  # noqa: BLE001 (kept for the caller that waits; a thread has none)
            self._failure = error
        finally:
            for opened in (*listening, ended, *(peer.socket for peer in self._peers.values())):
                opened.close()
            self._has_ended.set()

    def _serve(self, listening: list[socket.socket], ended: socket.socket) -> None:
        """Serve until the other end of `ended` is closed, and then until every client has heard of it."""
        buffer = memoryview(bytearray(_READ_BYTES))
        self._selector.register(ended, selectors.EVENT_READ)
        for sock in listening:
            sock.setblocking(False)
        tick_s, until_s, is_stopping = time.monotonic(), math.inf, False
        while not is_stopping or (self._peers and time.monotonic() < until_s):
            if (now_s := time.monotonic()) >= tick_s:
                self._tick(now_s, now_s - tick_s, () if is_stopping else listening)
                tick_s = now_s + _TICK_S
            peers: list[tuple[Peer, int]] = []
            for key, events in self._selector.select(max(0.0, tick_s - time.monotonic())):
                if isinstance(key.data, Peer):
                    peers.append((key.data, events))
                elif key.fileobj in listening:
                    self._accept(key.fileobj)
                else:
                    is_stopping, until_s = True, time.monotonic() + CLOSE_TIMEOUT_S
                    self._stop(listening, ended)
                    break
            with self._core_lock:
                self._turn(peers, buffer)

    def _turn(self, peers: Sequence[tuple[Peer, int]], buffer: memoryview) -> None:
        """What is to be done for clients whose sockets have something to read, or take something again.

        All is read first and then all is written: 64,000 signal_entry a second by 200 clients, 35,000 with each answer
        as soon as it is there, which wakes its client from a sleep of its own.
        """
        woken: dict[Connection, None] = {}
        for peer, events in peers:
            if events & selectors.EVENT_WRITE:
                peer.resume()
                woken[peer.connection] = None
            if events & selectors.EVENT_READ:
                if self._name_of is not None and not peer.connection.name:
                    # Not at accept: its relay may not have announced it by then.
                    peer.connection.name = self._name_of(peer.port)
                woken.update(dict.fromkeys(peer.read(buffer)))
        for connection in woken:
            if (other := self._peers.get(connection)) is not None:  # else it was dropped meanwhile
                other.write()
                self._settle(other)

    def _settle(self, peer: Peer) -> None:
        """Wait for what the client is waiting for now, or drop it."""
        if peer.has_ended:
            self._drop(peer)
        elif self._selector.get_key(peer.socket).events != peer.interest:
            self._selector.modify(peer.socket, peer.interest, peer)

    def _drop(self, peer: Peer) -> None:
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self._core.disconnect(peer.connection)
        del self._peers[peer.connection]

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_BACKLOG):
            try:
                connected, _ = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._selector.unregister(listening)  # until the next tick: there are no more files now
                return
            peer = Peer(connected, self._core, write_timeout_s=self._write_timeout_s)
            self._peers[peer.connection] = peer
            self._selector.register(connected, peer.interest, peer)

    def _tick(self, now_s: float, late_s: float, listening: Sequence[socket.socket]) -> None:
        """What is due by the clock; while this process was stopped (Ctrl-Z), the time of no client went on."""
        registered = self._selector.get_map()
        for sock in listening:
            if sock not in registered:
                self._selector.register(sock, selectors.EVENT_READ)
        with self._core_lock:
            for peer in list(self._peers.values()):
                if peer.until_s is None:
                    continue
                peer.until_s += late_s
                if now_s >= peer.until_s:
                    self._drop(peer)
            self._core.forget_idle()

    def _stop(self, listening: Sequence[socket.socket], ended: socket.socket) -> None:
        """Take nobody any more, and say goodbye."""
        registered = self._selector.get_map()
        for sock in (*listening, ended):
            if sock in registered:
                self._selector.unregister(sock)
            sock.close()
        with self._core_lock:
            for peer in list(self._peers.values()):
                peer.end(Close(websocket.GOING_AWAY, ""))
                self._settle(peer)


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
        listening = socket.socket(family, socket.SOCK_STREAM)
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
