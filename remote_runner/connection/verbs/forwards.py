"""Forwards: each connection to a listener on one side is a stream, and is dialled on the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from remote_runner.connection.link import Link, Stream, StreamClosed
from remote_runner.connection.verbs import faults
from remote_runner.connection.verbs.validation import nonsense, part, whole, words
from remote_runner.errors import DeadlineError, FarShellError, HostLostError, PortTakenError
from remote_runner.inventory.endpoint import Endpoint

_LANE = 0
_CHUNK_BYTES = 64 << 10
# How long dialling may take, here or there.
_DIAL_S = 30.0
# With a cut of the connection in it.
_LISTEN_S = 300.0
# At once through one port: a bound on what a host can make this process hold.
_MOST_CONNECTIONS = 2048


@dataclass
class Relayed:
    """The peer of a relayed connection: a program on the host, and its run once the agent has found it."""

    host: str
    instance_id: str = ""


class _Forward:
    """A port on one side; the connections to it are tasks here. It leads somewhere while it is in use."""

    port: int

    def __init__(self) -> None:
        self._connections: set[asyncio.Task[None]] = set()
        self._users = 0

    @contextmanager
    def use(self) -> Iterator[None]:
        """Use it in the body. With the last user its connections end."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._end_connections()

    @property
    def in_use(self) -> bool:
        """Whether it leads anywhere."""
        return self._users > 0

    @property
    def _has_room(self) -> bool:
        return self._users > 0 and len(self._connections) < _MOST_CONNECTIONS

    def _carry(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def _end_connections(self) -> None:
        for task in self._connections:
            task.cancel()


class Listener(_Forward):
    """A port of a host's loopback; what connects to it is dialled here, at `near`.

    by_port: who is behind each connection that is dialled, by its port here.
    """

    def __init__(
        self,
        host: str,
        stream: Stream,
        near: Endpoint,
        told: Callable[[str], None],
        listeners: Listeners,
        by_port: dict[int, Relayed],
    ) -> None:
        super().__init__()
        self._host = host
        self._stream = stream
        self._near = near
        self._told = told
        self._by_stream = listeners.by_stream
        self._by_port = by_port
        self._has_failed = False
        self._relayed: dict[int, Relayed] = {}
        self._listening: asyncio.Task[None] | None = None

    async def open(self, port: int) -> None:
        """Wait for the port; 0 is any. Raises `PortTakenError` and what every request raises."""
        self._by_stream[self._stream.id] = self
        try:
            async with asyncio.timeout(_LISTEN_S):
                self.port = self._port_of((await self._stream.receive()).head, port)
        except BaseException as error:
            await self.close()
            if isinstance(error, StreamClosed):
                raise faults.listen_fault(self._host, port, error) from error
            if isinstance(error, TimeoutError):
                raise DeadlineError(f"{self._host}: listening for {self._near}", _LISTEN_S) from error
            raise
        self._listening = asyncio.create_task(self._listen())

    def _port_of(self, head: dict[str, Any], wanted: int) -> int:
        port = whole(head.get("listening"), 65535)
        if not port or wanted not in (0, port):
            raise nonsense(self._host, head)
        return port

    def accept(self, stream: Stream) -> None:
        """Take a connection that the host let in."""
        if not self._has_room:
            self._carry(stream.close())
            return
        self._relayed[stream.id] = Relayed(self._host)
        self._carry(self._serve(stream))

    async def close(self) -> None:
        """End the port there and its connections."""
        self._by_stream.pop(self._stream.id, None)
        if self._listening is not None:
            self._listening.cancel()
        self._end_connections()
        await self._stream.close()

    async def _listen(self) -> None:
        """What the host says of connections, of those that it did not let in, and that it listens no more."""
        try:
            while True:
                head = (await self._stream.receive()).head
                if "of" in head:
                    self._note(part(self._host, head, "of"))
                    continue
                refused = part(self._host, head, "refused")
                uid = whole(refused.get("uid"))
                self._told(
                    f"{self._host}: a program of {'an unknown user' if uid is None else f'user {uid}'} there was not "
                    f"let through to {self._near}; `forward_users: any` (inventory.yaml) lets everybody in"
                )
        except (StreamClosed, FarShellError) as error:
            self._told(f"{self._host}: nothing listens there any more for {self._near}: {error}")
        except HostLostError:
            pass  # the instance that uses it reports so

    def _note(self, of: dict[str, Any]) -> None:
        relayed = self._relayed.get(whole(of.get("stream")) or 0)
        if relayed is not None:  # else it is over
            relayed.instance_id = words(of.get("run"))

    async def _serve(self, stream: Stream) -> None:
        try:
            await self._dial(stream)
        finally:
            self._relayed.pop(stream.id, None)

    async def _dial(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(_DIAL_S):
                reader, writer = await asyncio.open_connection(self._near.host, self._near.port, limit=_CHUNK_BYTES)
        except (OSError, TimeoutError) as error:
            if not self._has_failed:
                self._has_failed = True
                why = (error.strerror if isinstance(error, OSError) else None) or "no answer"
                self._told(f"{self._host}: a program there wants {self._near}, which cannot be dialled here: {why}")
            await stream.close()
        except BaseException:
            await stream.close()
            raise
        else:
            port = writer.get_extra_info("sockname")[1]
            self._by_port[port] = self._relayed[stream.id]
            try:
                await relay(stream, reader, writer)
            finally:
                self._by_port.pop(port, None)


class Listeners:
    """The listeners of one connection, each by the number of its stream."""

    def __init__(self) -> None:
        self.by_stream: dict[int, Listener] = {}
        self._refused: set[asyncio.Task[None]] = set()

    def accept(self, stream: Stream) -> None:
        """Take a connection that the host let in."""
        listener = self.by_stream.get(whole(stream.head.get("accepted")) or 0)
        if listener is not None:
            listener.accept(stream)
            return
        task = asyncio.create_task(stream.close())
        self._refused.add(task)
        task.add_done_callback(self._refused.discard)


class LocalForward(_Forward):
    """A port of this machine's loopback; what connects to it is dialled on the host, at `far`."""

    def __init__(self, link: Link, far: Endpoint) -> None:
        super().__init__()
        self._link = link
        self._far = far

    async def open(self, port: int) -> None:
        """Listen; 0 is any port. Raises `PortTakenError`."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self._has_room:
                self._carry(self._serve(reader, writer))
            else:
                writer.close()

        try:
            self._server = await asyncio.start_server(accept, "127.0.0.1", port, limit=_CHUNK_BYTES)
        except OSError as error:
            raise PortTakenError(
                self._link.name,
                f"port {port or 'any'} of this machine's loopback cannot be listened on: {error.strerror}",
                next_step="name another port" if port else "",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        self._link.lost.add_done_callback(self._give_up)

    @property
    def is_open(self) -> bool:
        return self._server.is_serving()

    def _end_connections(self) -> None:
        # Here an unused port is closed: the next run on this machine may want that number.
        self._link.lost.remove_done_callback(self._give_up)
        self._server.close()
        super()._end_connections()

    def _give_up(self, _: object) -> None:
        self._end_connections()

    async def close(self) -> None:
        """End the port here and its connections."""
        self._end_connections()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = {"verb": "dial", "host": self._far.host, "port": self._far.port}
        stream: Stream | None = None
        try:
            async with asyncio.timeout(2 * _DIAL_S):
                stream = await self._link.request(head)
                await stream.receive()
        except BaseException as error:
            writer.close()
            if stream is not None:
                await stream.close()
            if not isinstance(error, StreamClosed | HostLostError | TimeoutError):
                raise
        else:
            await relay(stream, reader, writer)


async def relay(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes both ways until both sides have ended, or one breaks off. Raises nothing that a peer can cause."""
    upwards = asyncio.create_task(_carry_up(reader, stream))
    try:
        while data := await stream.read(_LANE):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
        await stream.receive()  # no words come on such a stream: only its CLOSE, when both ways have ended
    except (StreamClosed, HostLostError, OSError):
        pass
    except BaseException:
        writer.transport.abort()  # what is not written yet has no reader any more
        raise
    finally:
        upwards.cancel()
        writer.close()
        await stream.close()


async def _carry_up(reader: asyncio.StreamReader, stream: Stream) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            await stream.write(_LANE, data)
        await stream.end(_LANE)
    except OSError:
        await stream.close()
    except (StreamClosed, HostLostError):
        pass
