"""An asyncio client of the sync service, one connection for all instances of a process, of whatever runs.

`testground.sync.client` is the one for applications: synchronous, and of one run.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
from collections.abc import AsyncGenerator
from contextlib import suppress

from testground.errors import SyncClosedError, SyncError, SyncTimeoutError, SyncUnreachableError, sync_answer_error
from testground.sync import websocket
from testground.sync.client import RunNames
from testground.sync.protocol import (
    Action,
    BadFrameError,
    Publish,
    Request,
    Response,
    SignalEntry,
    Subscribe,
    compact,
    decode_response,
    encode_request,
    endpoint,
    state_key,
    topic_key,
)
from testground.sync.websocket import WebSocketError

_LIMIT_BYTES = 2**22 + 2**10
_READ_BYTES = 64 * 1024
_PING_S = 30.0
_WAITING_BYTES = 8 << 20
_ANSWER_BYTES = 512  # of the smallest, as it lies in memory


class _Inbox:
    """The answers to one request. What nobody takes has a bound: beyond it the request ends as a failure."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Response | SyncError, int]] = asyncio.Queue()
        self._waiting_bytes = 0

    def put(self, answer: Response, size_bytes: int) -> bool:
        """Whether there was room for it."""
        size_bytes += _ANSWER_BYTES
        if self._waiting_bytes and self._waiting_bytes + size_bytes > _WAITING_BYTES:
            return False
        self._waiting_bytes += size_bytes
        self._queue.put_nowait((answer, size_bytes))
        return True

    def end(self, error: SyncError) -> None:
        self._queue.put_nowait((error, 0))

    async def get(self) -> Response | SyncError:
        answer, size_bytes = await self._queue.get()
        self._waiting_bytes -= size_bytes
        return answer


class SharedSyncClient:
    """One connection to the sync service at `host`:`port`; `open` makes it. For one event loop.

    Every method raises `SyncError` or one of its kinds; `timeout_s` bounds the connecting and each answer.
    """

    def __init__(self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.endpoint = endpoint(host, port)
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count()
        self._inboxes: dict[str, _Inbox] = {}
        self._ended: SyncError | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, host: str, port: int, *, timeout_s: float = 30.0) -> SharedSyncClient:
        """Connect, once and without retries. Raises `SyncUnreachableError`."""
        where = endpoint(host, port)
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    early = await _shake_hands(reader, writer, where)
                except BaseException:
                    writer.close()
                    raise
        except TimeoutError as error:
            raise SyncUnreachableError(where, f"no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise SyncUnreachableError(where, f"cannot connect: {error.strerror or error}") from error
        except (WebSocketError, ValueError) as error:
            raise SyncUnreachableError(where, f"no sync service: {error}") from error
        client = cls(host, port, reader, writer)
        client._task = asyncio.create_task(client._read(early))
        return client

    @property
    def is_open(self) -> bool:
        """Whether it can still be asked."""
        return self._ended is None

    async def signal_entry(self, names: RunNames, state: str, *, timeout_s: float = 30.0) -> int:
        """Enter a state of that run; how many have entered it by now, this entry included."""
        key = state_key(run=names.run, plan=names.plan, case=names.case, state=state)
        what = f"signal_entry of {state!r}"
        answer = await self._ask(SignalEntry(key), what, timeout_s)
        if answer.signal_seq is None:
            raise sync_answer_error(self.endpoint, what, "no number")
        return answer.signal_seq

    async def publish(self, names: RunNames, topic: str, payload: object, *, timeout_s: float = 30.0) -> int:
        """Append a message to a topic of that run; its number there."""
        key = topic_key(run=names.run, plan=names.plan, case=names.case, topic=topic)
        what = f"publish to {topic!r}"
        answer = await self._ask(Publish(key, compact(payload)), what, timeout_s)
        if answer.publish_seq is None:
            raise sync_answer_error(self.endpoint, what, "no number")
        return answer.publish_seq

    async def subscribe(self, names: RunNames, topic: str, *, timeout_s: float) -> AsyncGenerator[object, None]:
        """The messages of a topic, from its first one on; each has to come within `timeout_s`."""
        key = topic_key(run=names.run, plan=names.plan, case=names.case, topic=topic)
        what = f"message of {topic!r}"
        request_id, inbox = self._send(Subscribe(key))
        try:
            while True:
                text = (await self._answer(inbox, what, timeout_s)).subscribe
                try:
                    message = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise sync_answer_error(self.endpoint, what, text) from error
                yield message
        finally:
            self._inboxes.pop(request_id, None)
            if self._ended is None:
                self._write(websocket.TEXT, encode_request(Request(request_id, is_cancel=True)).encode())

    async def close(self) -> None:
        """End the connection; pending calls raise `SyncClosedError`."""
        if self._ended is None:
            self._write(websocket.CLOSE, websocket.close_payload(websocket.NORMAL))
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._writer.close()

    async def _ask(self, action: Action, what: str, timeout_s: float) -> Response:
        request_id, inbox = self._send(action)
        try:
            return await self._answer(inbox, what, timeout_s)
        finally:
            self._inboxes.pop(request_id, None)

    def _send(self, action: Action) -> tuple[str, _Inbox]:
        if self._ended is not None:
            raise self._ended
        request_id = str(next(self._ids))
        inbox = _Inbox()
        self._inboxes[request_id] = inbox
        self._write(websocket.TEXT, encode_request(Request(request_id, action)).encode())
        return request_id, inbox

    async def _answer(self, inbox: _Inbox, what: str, timeout_s: float) -> Response:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await inbox.get()
        except TimeoutError:
            raise SyncTimeoutError(self.endpoint, what, timeout_s) from None
        if isinstance(answer, SyncError):
            raise answer
        if answer.error:
            raise sync_answer_error(self.endpoint, what, answer.error)
        return answer

    def _write(self, opcode: int, payload: bytes) -> None:
        self._writer.write(websocket.frame(opcode, payload, os.urandom(4)))

    async def _read(self, early: bytes) -> None:
        frames = websocket.FrameReader(masked=False, limit_bytes=_LIMIT_BYTES)
        data = early
        ended: SyncError = SyncClosedError(self.endpoint, None, "")
        try:
            while True:
                for opcode, payload in frames.feed(data):
                    if opcode == websocket.CLOSE:
                        code, reason = websocket.close_reason(payload)
                        ended = SyncClosedError(self.endpoint, code, reason)
                        return
                    if opcode == websocket.PING:
                        self._write(websocket.PONG, payload)
                    elif opcode != websocket.PONG:
                        self._deliver(payload)
                await self._writer.drain()  # a service that takes no answers to its pings is not listened to either
                data = await self._receive()
                if not data:
                    return
        except (WebSocketError, BadFrameError) as error:
            ended = sync_answer_error(self.endpoint, "a request", f"a frame that is {error}")
        except OSError as error:
            ended = SyncClosedError(self.endpoint, None, str(error))
        finally:
            self._ended = ended
            for inbox in self._inboxes.values():
                inbox.end(ended)
            self._writer.close()

    async def _receive(self) -> bytes:
        while True:
            try:
                async with asyncio.timeout(_PING_S):
                    return await self._reader.read(_READ_BYTES)
            except TimeoutError:
                self._write(websocket.PING, b"")

    def _deliver(self, payload: bytes) -> None:
        answer = decode_response(payload)
        inbox = self._inboxes.get(answer.id)
        if inbox is not None and not inbox.put(answer, len(payload)):
            del self._inboxes[answer.id]
            words = f"answers of more than {_WAITING_BYTES} bytes before one was taken"
            inbox.end(sync_answer_error(self.endpoint, "a request", words))


async def _shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> bytes:
    """Open the WebSocket; returns what has come behind the service's answer."""
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(websocket.request_head(host, key))
    buffer = bytearray()
    while (head := websocket.take_head(buffer)) is None:
        data = await reader.read(_READ_BYTES)
        if not data:
            raise WebSocketError(websocket.PROTOCOL_ERROR, f"it hung up after {bytes(buffer[:100])!r}")
        buffer += data
    websocket.check_response(head, key)
    return bytes(buffer)
