"""A session's state on one side, without I/O: numbers, acknowledgements, windows, send order, resuming.

Its caller calls `attach` and `resume` (the agent's side resumes by itself, with HELLO), then `receive` with
what came and `pull` for what to send, with the time of a monotonic clock. `take_touched` returns the streams to which
something happened, `take_opened` those that the peer opened. The rules are in docs/protocol.md.
"""

from __future__ import annotations

import json
import math
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remote_runner.connection.frames import (
    ACK,
    BYE,
    CLOSE,
    CREDIT,
    DATA,
    END,
    HELLO,
    MESSAGE,
    MOST_DATA_BYTES,
    OPEN,
    PING,
    PONG,
    BreachError,
    Decoder,
    Message,
    decode_message,
    decode_object,
    encode_message,
    header,
)

WINDOW_BYTES = 256 << 10  # of a lane, to begin with
MOST_WINDOW_BYTES = 8 << 20
CONNECTION_BYTES = 16 << 20
ACK_BYTES = 64 << 10
ACK_S = 1.0
LEAST_BULK_BYTES = 64 << 10
MOST_BULK_BYTES = 8 << 20
_INTERACTIVE_BYTES = 64 << 10  # a lane that has more waiting is bulk
_QUEUE_BYTES = 256 << 10  # of a stream, not yet sent; a writer waits beyond it
_READ_BYTES = 256 << 10
# What a peer can make this side hold beside the windows. Each is far beyond what happens, and a breach.
MOST_MESSAGE_BYTES = 4 << 20  # of messages not received yet, on all streams
_MESSAGE_BYTES = 256  # of the smallest, as it lies in memory
_MOST_OPEN_BYTES = 256  # of an OPEN of the agent, which says but whose connection it is
MOST_STREAMS = 1 << 16
MOST_UNACKNOWLEDGED = 1 << 18  # frames: each stream that the peer opens is answered with one
_LANES = 4

_LONG = struct.Struct(">Q")
_INT = struct.Struct(">I")

_NUMBERED = frozenset((OPEN, MESSAGE, DATA, CREDIT, END, CLOSE, BYE))


@dataclass(slots=True, eq=False)
class Inward:
    """One lane of a stream as it is received."""

    chunks: deque[bytes] = field(default_factory=deque)
    window: int = WINDOW_BYTES
    credit: int = WINDOW_BYTES  # what the peer may still send
    consumed: int = 0  # and has not been granted again
    is_ended: bool = False


@dataclass(slots=True, eq=False)
class Outward:
    """One lane of a stream as it is sent."""

    credit: int = WINDOW_BYTES
    waiting: int = 0  # bytes among the urgent frames
    is_ended: bool = False


@dataclass(slots=True, eq=False)
class StreamState:
    """A stream; `closing` is what came with the peer's CLOSE, `owner` is for the code that waits for the stream."""

    id: int
    head: Message
    messages: deque[Message] = field(default_factory=deque)
    message_bytes: int = 0  # of these, as long as one of them waits
    inward: dict[int, Inward] = field(default_factory=dict)
    outward: dict[int, Outward] = field(default_factory=dict)
    bulk: deque[_Queued] = field(default_factory=deque)
    queued: int = 0  # bytes not yet sent
    closing: Message | None = None
    is_closed_here: bool = False
    is_closed_there: bool = False
    is_touched: bool = False
    owner: Any = None

    def has_data(self, lane: int) -> bool:
        """Whether a `read` of that lane would return something, its end included."""
        found = self.inward.get(lane)
        return (
            self.is_closed_there or self.is_closed_here or (found is not None and bool(found.chunks or found.is_ended))
        )


_Queued = tuple[int, int, StreamState | None, bytes | memoryview, Outward | None]
"""kind, lane, stream, payload, and the lane that waits for it: numbered when it is sent."""

_Sent = tuple[int, bytes, bytes | memoryview, bool, float]
"""number, header, payload, whether it is bulk, when it was sent"""


class SessionCore:
    """Both sides have one; `is_client` says whose streams have odd numbers."""

    def __init__(self, *, is_client: bool = True) -> None:
        self.received = 0  # the number of the last frame that came
        self.hello: dict[str, Any] | None = None  # the client's, on the agent's side
        self.has_bye = False
        self.is_attached = False
        self._is_client = is_client
        self._streams: dict[int, StreamState] = {}
        self._next_stream = 1 if is_client else 2
        self._last_opened = 0
        self._touched: list[StreamState] = []
        self._opened: list[StreamState] = []
        self._message_bytes = 0
        self._decoder = Decoder()
        # Sending.
        self._sent = 0
        self._acknowledged = 0
        self._kept: deque[_Sent] = deque()
        self._kept_bytes = 0
        self._again: deque[_Sent] = deque()
        self._control: dict[int, bytes] = {}  # by kind: of what was not sent yet, only the last counts
        self._urgent: deque[_Queued] = deque()
        self._bulky: deque[StreamState] = deque()  # those with bulk that waits, in turn
        self._queued = 0
        self._waiting: dict[int, StreamState] = {}  # whose writers found no room
        # How much bulk may be under way.
        self._bulk_limit = LEAST_BULK_BYTES
        self._bulk_kept = 0
        self._is_limited = False
        self._is_found = False  # it was once too much
        self._limit_changed = 0
        self._shortest_s = math.inf
        # What is to be acknowledged.
        self._unacknowledged = 0
        self._owes_ack = False

    # The carrier's side

    def attach(self) -> None:
        """A new attachment begins: what the one before has left of a frame is dropped."""
        self.is_attached = False
        self._decoder = Decoder()
        self._control.clear()
        self._unacknowledged, self._owes_ack = 0, False  # the greeting, or HELLO, says what came

    def resume(self, peer_received: int, now: float, hello: Mapping[str, Any] | None = None) -> None:
        """Go on: the peer has that frame, and all before it. The client's `hello` goes first.

        Raises `BreachError` where the peer cannot have it.
        """
        if not self._acknowledged <= peer_received <= self._sent:
            raise BreachError(f"it has {peer_received} frames of {self._sent}, and had {self._acknowledged}")
        self._shortest_s, self._bulk_limit, self._limit_changed = math.inf, LEAST_BULK_BYTES, self._sent
        self._is_found = False
        self._acknowledge(peer_received, math.inf)
        self._kept = deque((number, head, payload, bulk, now) for number, head, payload, bulk, _ in self._kept)
        self._again = deque(self._kept)
        if hello is not None:
            self._add_control(HELLO, json.dumps({**hello, "received": self.received}).encode())
        self.is_attached = True

    def detach(self) -> None:
        """The attachment is over: nothing is sent until the next."""
        self.is_attached = False

    def receive(self, data: bytes | memoryview, now: float) -> None:
        """Take the bytes received. Raises `BreachError`; the frames before the breach count."""
        streams, touched = self._streams, self._touched
        received, size = self.received, 0
        try:
            for kind, lane, number_of_stream, number, payload in self._decoder.feed(data):
                if kind not in _NUMBERED:
                    self._take_control(kind, payload, now)
                    continue
                if number != received + 1:
                    if 0 < number <= received:
                        continue  # it came by an attachment before
                    raise BreachError(f"frame {number} behind {received}")
                if kind == DATA and (stream := streams.get(number_of_stream)) is not None:
                    if not stream.is_closed_here:
                        self._take_data(stream, lane, payload)
                        if not stream.is_touched:
                            stream.is_touched = True
                            touched.append(stream)
                else:
                    self._take(kind, lane, number_of_stream, payload)
                received = number
                size += len(payload)
        finally:
            if received > self.received:
                self.received = received
                self._owes_ack = True
                self._unacknowledged += size
                if self._unacknowledged >= ACK_BYTES:
                    self.acknowledge()

    def pull(self, now: float, most: int = 256 << 10) -> list[bytes | memoryview]:
        """What is to be written now, in order: about `most` bytes, [] where nothing may be sent."""
        if not self.is_attached:
            return []
        buffers: list[bytes | memoryview] = []
        size = 0
        if self._owes_ack and (self._again or self._urgent or self._bulky):
            self.acknowledge()
        buffers += self._control.values()
        self._control.clear()
        while self._again and size < most:
            number, head, payload, _, _ = self._again.popleft()
            if number > self._acknowledged:
                buffers += (head, payload) if payload else (head,)
                size += len(payload)
        if self._again:
            return buffers
        while size < most:
            is_bulk = not self._urgent
            if is_bulk:
                if not self._bulky:
                    break
                if self._bulk_kept >= self._bulk_limit:
                    self._is_limited = True
                    break
                queued = self._bulky[0].bulk[0]
            else:
                queued = self._urgent[0]
            kind, lane, stream, payload, outward = queued
            length = len(payload)
            if self._kept_bytes + length > CONNECTION_BYTES:
                break
            if is_bulk:
                turn = self._bulky.popleft()
                turn.bulk.popleft()
                if turn.bulk:
                    self._bulky.append(turn)
            else:
                self._urgent.popleft()
            if outward is not None:
                outward.waiting -= length
            if stream is not None and kind == DATA:
                stream.queued -= length
                self._queued -= length
            self._sent += 1
            head = header(kind, lane, 0 if stream is None else stream.id, self._sent, length)
            is_bulk = is_bulk and kind == DATA
            self._kept.append((self._sent, head, payload, is_bulk, now))
            self._kept_bytes += length
            if is_bulk:
                self._bulk_kept += length
            buffers += (head, payload) if payload else (head,)
            size += length + len(head)
        if self._waiting and self._queued < CONNECTION_BYTES:
            self._call_writers()
        return buffers

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._add_control(PING, bytes(8))

    @property
    def owes_ack(self) -> bool:
        """Whether something came that is to be acknowledged within `ACK_S`."""
        return self._owes_ack

    def acknowledge(self) -> None:
        """Acknowledge what was received."""
        self._unacknowledged, self._owes_ack = 0, False
        self._add_control(ACK, _LONG.pack(self.received))

    @property
    def has_sent_all(self) -> bool:
        """Whether nothing waits, and all that was sent has arrived."""
        return not (self._kept or self._urgent or self._bulky)

    def take_touched(self) -> list[StreamState]:
        """The streams that something has happened to since the last call: something came, or there is room to write."""
        touched, self._touched = self._touched, []
        for stream in touched:
            stream.is_touched = False
        return touched

    def take_opened(self) -> list[StreamState]:
        """The streams that the peer has opened since the last call."""
        opened, self._opened = self._opened, []
        return opened

    @property
    def streams(self) -> list[StreamState]:
        """All that are not over."""
        return list(self._streams.values())

    # The streams' side

    def open(self, head: Mapping[str, Any], fields: tuple[bytes, ...] = ()) -> StreamState:
        """Open a stream. Raises `ValueError` for an invalid message."""
        payload = encode_message(head, fields)
        stream = StreamState(self._next_stream, Message(dict(head), fields))
        self._next_stream += 2
        self._streams[stream.id] = stream
        self._urgent.append((OPEN, 0, stream, payload, None))
        return stream

    def send(self, stream: StreamState, head: Mapping[str, Any], fields: tuple[bytes, ...] = ()) -> None:
        """Send a message on an open stream; on one that is closed nothing happens."""
        payload = encode_message(head, fields)
        if not stream.is_closed_here:
            self._urgent.append((MESSAGE, 0, stream, payload, None))

    def write(self, stream: StreamState, lane: int, data: bytes | memoryview, *, bulk: bool = False) -> int:
        """Queue bytes, as many as there are credit and room for; returns how many. 0: the stream will be touched."""
        if stream.is_closed_here:
            return 0
        outward = stream.outward.get(lane)
        if outward is None:
            outward = stream.outward[lane] = Outward()
        room = max(0, min(_QUEUE_BYTES - stream.queued, CONNECTION_BYTES - self._queued))
        taken = min(len(data), outward.credit, room)
        if taken == room < len(data):
            self._waiting[stream.id] = stream
        outward.credit -= taken
        stream.queued += taken
        self._queued += taken
        is_bulk = bulk or bool(stream.bulk) or outward.waiting + taken > _INTERACTIVE_BYTES
        whole = data if len(data) <= MOST_DATA_BYTES else memoryview(data)  # of which nothing is copied
        for start in range(0, taken, MOST_DATA_BYTES):
            piece = whole[start : min(taken, start + MOST_DATA_BYTES)]
            if is_bulk:
                self._add_bulk(stream, (DATA, lane, stream, piece, None))
            else:
                outward.waiting += len(piece)
                self._urgent.append((DATA, lane, stream, piece, outward))
        return taken

    def end(self, stream: StreamState, lane: int) -> None:
        """Nothing more comes on that lane."""
        outward = stream.outward.setdefault(lane, Outward())
        if not (stream.is_closed_here or outward.is_ended):
            outward.is_ended = True
            self._add_behind(stream, (END, lane, stream, b"", None))

    def close(self, stream: StreamState, failure: Mapping[str, Any] | None = None) -> None:
        """Be done with the stream. What it has queued goes first, unless the peer is done with it as well."""
        stream.messages.clear()
        self._count_messages(stream)
        self._close(stream, failure)

    def _close(self, stream: StreamState, failure: Mapping[str, Any] | None = None) -> None:
        if stream.is_closed_here:
            return
        stream.is_closed_here = True
        if stream.is_closed_there:
            self._streams.pop(stream.id, None)
            self._queued -= sum(len(queued[3]) for queued in stream.bulk)
            stream.queued -= sum(len(queued[3]) for queued in stream.bulk)
            if stream.bulk:
                stream.bulk.clear()
                self._bulky.remove(stream)
        else:
            stream.inward.clear()
        self._touch(stream)
        self._add_behind(stream, (CLOSE, 0, stream, b"" if failure is None else encode_message(failure), None))

    def take_message(self, stream: StreamState) -> Message | None:
        """The next message that has come, if there is one."""
        if not stream.messages:
            return None
        message = stream.messages.popleft()
        self._count_messages(stream)
        return message

    def _count_messages(self, stream: StreamState) -> None:
        if not stream.messages:
            self._message_bytes -= stream.message_bytes
            stream.message_bytes = 0

    def read(self, stream: StreamState, lane: int) -> bytes | None:
        """What has come on that lane, b"" at its end, `None` where nothing is there yet."""
        found = stream.inward.get(lane)
        if found is None or not found.chunks:
            is_over = stream.is_closed_there or stream.is_closed_here or (found is not None and found.is_ended)
            return b"" if is_over else None
        # Together: a turn of whoever reads costs more than the copy.
        chunks = found.chunks
        parts = [chunks.popleft()]
        size = len(parts[0])
        while chunks and size + len(chunks[0]) <= _READ_BYTES:
            size += len(chunks[0])
            parts.append(chunks.popleft())
        return b"".join(parts)

    def consume(self, stream: StreamState, lane: int, size: int) -> None:
        """That much of the lane has been dealt with: the peer may send as much again."""
        found = stream.inward.get(lane)
        if found is None:
            return
        found.consumed += size
        if found.consumed >= found.window // 4:
            self._grant(stream, lane, found, found.consumed)
            found.consumed = 0

    def grant(self, stream: StreamState, lane: int, size: int) -> None:
        """Widen the lane's window by that much, up to `MOST_WINDOW_BYTES`."""
        found = stream.inward.setdefault(lane, Inward())
        size = min(size, MOST_WINDOW_BYTES - found.window)
        if size > 0:
            found.window += size
            self._grant(stream, lane, found, size)

    def bye(self) -> None:
        """End the session, behind everything else that is urgent."""
        self._urgent.append((BYE, 0, None, b"", None))

    # What comes

    def _take_control(self, kind: int, payload: bytes, now: float) -> None:
        if kind == ACK:
            if len(payload) != 8:
                raise BreachError("an ACK without its number")
            number = _LONG.unpack(payload)[0]
            if number > self._sent:
                raise BreachError(f"an ACK for {number}, and {self._sent} were sent")
            self._acknowledge(number, now)
        elif kind == PING:
            self._add_control(PONG, payload)
        elif kind == HELLO:
            if self._is_client:
                raise BreachError("a HELLO from the agent")
            self.hello = decode_object(payload)
            received = self.hello.get("received")
            if not isinstance(received, int):
                raise BreachError("a HELLO that does not say what was received")
            self.resume(received, now)

    def _take_data(self, stream: StreamState, lane: int, payload: bytes) -> None:
        found = stream.inward.get(lane)
        if found is None:
            found = stream.inward[_lane(lane)] = Inward()
        found.credit -= len(payload)
        if found.credit < 0:
            raise BreachError(f"DATA beyond the credit of stream {stream.id}")
        if found.is_ended:
            raise BreachError(f"DATA behind the END of stream {stream.id}")
        if payload:
            found.chunks.append(payload)

    def _take(self, kind: int, lane: int, number: int, payload: bytes) -> None:
        if kind == OPEN:
            self._take_open(number, payload)
            return
        if kind == BYE:
            self.has_bye = True
            return
        stream = self._streams.get(number)
        if stream is None:
            ours = number % 2 == self._next_stream % 2
            if number == 0 or (number >= self._next_stream if ours else number > self._last_opened):
                raise BreachError(f"no stream {number} was opened")
            return  # it is over
        if kind == CLOSE:
            stream.closing = decode_message(payload) if payload else Message({})
            stream.is_closed_there = True
            if stream.is_closed_here:
                del self._streams[number]
            else:
                self._close(stream)
        elif stream.is_closed_here:
            return
        elif kind == MESSAGE:
            self._take_message(stream, payload)
        elif kind == CREDIT:
            if len(payload) != 4:
                raise BreachError("a CREDIT without its size")
            stream.outward.setdefault(_lane(lane), Outward()).credit += _INT.unpack(payload)[0]
        elif kind == END:
            stream.inward.setdefault(_lane(lane), Inward()).is_ended = True
        self._touch(stream)

    def _take_message(self, stream: StreamState, payload: bytes) -> None:
        size = _MESSAGE_BYTES + len(payload)
        if self._message_bytes + size > MOST_MESSAGE_BYTES:
            raise BreachError(f"messages of more than {MOST_MESSAGE_BYTES} bytes that nobody has asked for")
        stream.messages.append(decode_message(payload))
        stream.message_bytes += size
        self._message_bytes += size

    def _take_open(self, number: int, payload: bytes) -> None:
        if number % 2 == self._next_stream % 2 or number <= self._last_opened:
            raise BreachError(f"stream {number} cannot be opened")
        if self._is_client:
            waiting = len(self._urgent) + len(self._kept)
            if len(payload) > _MOST_OPEN_BYTES or len(self._streams) > MOST_STREAMS or waiting > MOST_UNACKNOWLEDGED:
                raise BreachError(f"stream {number} is more than an agent opens")
        stream = StreamState(number, decode_message(payload))
        self._last_opened = number
        self._streams[number] = stream
        self._opened.append(stream)

    # What goes

    def _add_control(self, kind: int, payload: bytes) -> None:
        self._control[kind] = header(kind, 0, 0, 0, len(payload)) + payload

    def _add_bulk(self, stream: StreamState, queued: _Queued) -> None:
        if not stream.bulk:
            self._bulky.append(stream)
        stream.bulk.append(queued)

    def _add_behind(self, stream: StreamState, queued: _Queued) -> None:
        if stream.bulk:
            stream.bulk.append(queued)
        else:
            self._urgent.append(queued)

    def _grant(self, stream: StreamState, lane: int, found: Inward, size: int) -> None:
        if not (stream.is_closed_here or stream.is_closed_there or found.is_ended):
            found.credit += size
            self._urgent.append((CREDIT, lane, stream, _INT.pack(size), None))

    def _call_writers(self) -> None:
        for stream in list(self._waiting.values()):
            if stream.queued <= _QUEUE_BYTES // 2:
                del self._waiting[stream.id]
                self._touch(stream)

    def _touch(self, stream: StreamState) -> None:
        if not stream.is_touched:
            stream.is_touched = True
            self._touched.append(stream)

    def _acknowledge(self, number: int, now: float) -> None:
        bulk = 0
        last: _Sent | None = None
        while self._kept and self._kept[0][0] <= number:
            sent = self._kept.popleft()
            length = len(sent[2])
            self._kept_bytes -= length
            if sent[3]:
                bulk += length
                last = sent
        self._acknowledged = max(self._acknowledged, number)
        self._bulk_kept -= bulk
        # An ACK for less may have waited for its second.
        if last is not None and bulk >= ACK_BYTES and math.isfinite(now):
            self._adapt(last[0], now - last[4])

    def _adapt(self, number: int, took_s: float) -> None:
        """Keep the bulk that is under way below what the line carries in half a second."""
        self._shortest_s = min(self._shortest_s, took_s)
        if number <= self._limit_changed:
            return  # sent under another limit
        if took_s > self._shortest_s + 0.5:
            self._bulk_limit = max(LEAST_BULK_BYTES, self._bulk_limit // 2)
            self._is_found = True
        elif took_s <= self._shortest_s + 0.1 and self._is_limited:
            more = LEAST_BULK_BYTES if self._is_found else self._bulk_limit
            self._bulk_limit = min(MOST_BULK_BYTES, self._bulk_limit + more)
        else:
            return
        self._is_limited = False
        self._limit_changed = self._sent


def _lane(lane: int) -> int:
    if lane >= _LANES:
        raise BreachError(f"lane {lane}")
    return lane
