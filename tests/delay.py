"""A slow wire: a TCP proxy that holds every byte for half a round trip, and the handshake for a whole one.

The kernels that tests run on often have no netem; this needs nothing.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from typing import Self

_CHUNK_BYTES = 1 << 16


class DelayProxy:
    """Listens on a free port of 127.0.0.1 (`port`) and passes on to `address:port`, `rtt_s` away.

    A context manager; runs on a thread of its own. `connections` counts those it has taken, of which it drops the first
    `drops` at once, without a word.
    """

    def __init__(self, address: str, port: int, rtt_s: float, *, drops: int = 0) -> None:
        self.target = (address, port)
        self.rtt_s = rtt_s
        self.port = 0
        self.connections = 0
        self._drops = drops
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="delay proxy", daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # lets the aborted transports close their sockets
        self._loop.close()

    def reset(self) -> None:
        """Reset every connection that goes through here."""
        self._loop.call_soon_threadsafe(self._reset)

    def _reset(self) -> None:
        for writer in self._writers:
            linger = struct.pack("ii", 1, 0)  # so that closing says RST
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.connections <= self._drops:
            writer.transport.abort()
            return
        start = self._loop.time()
        # A client may speak after one round trip, and is heard half a one later; the server knows of it then.
        try:
            await asyncio.sleep(1.5 * self.rtt_s)
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(
                self._carry(reader, far_writer, not_before=start + self.rtt_s),
                self._carry(far_reader, writer, not_before=start),
            )
        except asyncio.CancelledError:
            return  # the proxy ends; asyncio 3.11 reports a cancelled connection task as an error
        finally:
            self._writers -= {writer, far_writer}
            far_writer.transport.abort()
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, not_before: float) -> None:
        # A queue between reading and writing: the wire holds bytes, it does not stop the sender.
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)

        async def read() -> None:
            while True:
                try:
                    chunk = await reader.read(_CHUNK_BYTES)
                except OSError:
                    chunk = b""
                await queue.put((max(self._loop.time(), not_before) + self.rtt_s / 2, chunk))
                if not chunk:
                    return

        async def write() -> None:
            while True:
                due, chunk = await queue.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                try:
                    if not chunk:
                        if writer.can_write_eof():
                            writer.write_eof()
                        return
                    writer.write(chunk)
                    await writer.drain()
                except OSError:
                    return

        reading = asyncio.ensure_future(read())
        await write()
        reading.cancel()
