"""Two sessions over a pipe that cuts, delays and repeats: everything arrives once, in order, within the windows."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_runner.connection import frames, session
from remote_runner.connection.frames import BreachError, header
from remote_runner.connection.session import SessionCore, StreamState


@dataclass
class Wire:
    """A client, an agent, and what is under way between them; the agent echoes lane 0 and answers each message."""

    client: SessionCore = field(default_factory=SessionCore)
    agent: SessionCore = field(default_factory=lambda: SessionCore(is_client=False))
    there: bytearray = field(default_factory=bytearray)
    back: bytearray = field(default_factory=bytearray)
    now: float = 0.0
    asked: list[StreamState] = field(default_factory=list)
    echo: dict[int, bytes] = field(default_factory=dict)
    before: deque[bytes] = field(default_factory=deque)  # whole frames that the agent once sent

    def attach(self) -> None:
        self.there.clear()
        self.back.clear()
        self.agent.attach()
        self.client.attach()
        self.client.resume(self.agent.received, self.now, {"epoch": 1})

    def cut(self) -> None:
        self.client.detach()
        self.agent.detach()

    def send(self) -> None:
        self.there += b"".join(self.client.pull(self.now, 20_000))
        self.back += b"".join(self.agent.pull(self.now, 20_000))

    def deliver(self, there: int, back: int) -> None:
        """That many bytes arrive at either side."""
        if not self.client.is_attached:
            return
        data, self.there = bytes(self.there[:there]), self.there[there:]
        if data:
            self.agent.receive(data, self.now)
        data, self.back = bytes(self.back[:back]), self.back[back:]
        if data:
            self.client.receive(data, self.now)
        self.act()
        for core in (self.client, self.agent):
            assert core._kept_bytes <= session.CONNECTION_BYTES
            assert core._kept_bytes == sum(len(sent[2]) for sent in core._kept)
            assert core._queued == sum(
                len(queued[3])
                for queued in [*core._urgent, *(queued for stream in core._bulky for queued in stream.bulk)]
                if queued[0] == frames.DATA
            )

    def act(self) -> None:
        self.asked += self.agent.take_opened()
        for stream in self.asked:
            while (message := self.agent.take_message(stream)) is not None:
                self.agent.send(stream, {"answer": message.head})
            rest = self.echo.pop(stream.id, b"")
            while not stream.is_closed_here:
                data = rest or self.agent.read(stream, 0)
                if data == b"":
                    self.agent.end(stream, 0)
                    self.agent.close(stream, {"error": "done"})
                if not data:
                    break
                taken = self.agent.write(stream, 0, data)
                self.agent.consume(stream, 0, taken)
                rest = data[taken:]
                if not taken:
                    break
            if rest:
                self.echo[stream.id] = rest


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 5), st.sampled_from([500, 70_000, 600_000]))
def test_streams_are_byte_for_byte_through_cuts(seed: int, streams: int, most: int) -> None:
    chance = random.Random(seed)
    wire = Wire()
    wire.attach()
    sent = {n: chance.randbytes(chance.randrange(most)) for n in range(streams)}
    left = dict(sent)
    opened = {n: wire.client.open({"verb": "echo", "n": n}, (b"field",)) for n in range(streams)}
    came = dict.fromkeys(range(streams), b"")
    asked = dict.fromkeys(range(streams), 0)
    answers: dict[int, list[int]] = {n: [] for n in range(streams)}
    for turn in range(3000):
        wire.now += 0.01
        for n, stream in opened.items():
            if left[n]:
                size = chance.randrange(1, 90_000)
                left[n] = left[n][wire.client.write(stream, 0, left[n][:size], bulk=n % 2 == 0) :]
                if not left[n]:
                    wire.client.end(stream, 0)
                if chance.random() < 0.2:
                    wire.client.send(stream, {"n": asked[n]})
                    asked[n] += 1
            elif not sent[n]:
                wire.client.end(stream, 0)
            if chance.random() < 0.7 and (data := wire.client.read(stream, 0)):
                came[n] += data
                wire.client.consume(stream, 0, len(data))
            while (message := wire.client.take_message(stream)) is not None:
                answers[n].append(message.head["answer"]["n"])
        wire.send()
        fate = chance.random()
        if fate < 0.05 and turn < 500:
            wire.cut()
        elif not wire.client.is_attached:
            wire.attach()
        wire.deliver(chance.randrange(200_000), chance.randrange(200_000))
        wire.act()
        if turn % 10 == 9:
            wire.client.acknowledge()
            wire.agent.acknowledge()
        if all(came[n] == sent[n] and opened[n].is_closed_there for n in sent) and wire.client.has_sent_all:
            break
    assert came == sent
    assert answers == {n: list(range(asked[n])) for n in asked}
    assert all(stream.closing is not None and stream.closing.head == {"error": "done"} for stream in opened.values())
    assert wire.client.streams == []
    assert wire.client.has_sent_all


def attached() -> Wire:
    wire = Wire()
    wire.attach()
    wire.send()
    wire.deliver(1 << 20, 1 << 20)
    return wire


def settle(wire: Wire) -> None:
    for _ in range(200):
        wire.send()
        if not (wire.there or wire.back):
            return
        wire.deliver(1 << 20, 1 << 20)


def test_what_an_old_attachment_delivers_again_counts_once() -> None:
    wire = attached()
    stream = wire.client.open({"verb": "echo"})
    wire.client.write(stream, 0, b"hello")
    wire.send()
    before = bytes(wire.there)
    settle(wire)
    wire.agent.receive(before, wire.now)
    settle(wire)
    assert wire.client.read(stream, 0) == b"hello"
    assert wire.client.read(stream, 0) is None


def test_nothing_is_sent_beyond_the_connections_window_while_nothing_is_acknowledged() -> None:
    core = SessionCore()
    core.attach()
    core.resume(0, 0.0)
    for _ in range(30):
        core.send(core.open({}), {"x": "y" * 600_000})
    sent = sum(len(buffer) for _ in range(100) for buffer in core.pull(0.0, 1 << 24))
    assert (15 << 20) < sent < (16 << 20) + 10_000
    core.receive(header(frames.ACK, 0, 0, 0, 8) + (20).to_bytes(8, "big"), 0.0)
    assert core.pull(0.0)


def test_a_lane_stops_at_its_credit_and_goes_on_with_more() -> None:
    wire = attached()
    stream = wire.client.open({"verb": "wait"})
    taken, data = 0, bytes(100_000)
    while part := wire.client.write(stream, 0, data):
        taken += part
        wire.client.pull(0.0, 1 << 20)
    assert taken == session.WINDOW_BYTES
    credit = header(frames.CREDIT, 0, stream.id, 1, 4) + (1000).to_bytes(4, "big")
    wire.client.take_touched()
    wire.client.receive(credit, 0.0)
    assert wire.client.take_touched() == [stream]
    assert wire.client.write(stream, 0, data) == 1000


def test_small_frames_go_before_bulk_and_bulk_takes_turns() -> None:
    wire = attached()
    streams = [wire.client.open({}) for _ in range(3)]
    settle(wire)
    for stream in streams[:2]:
        assert wire.client.write(stream, 0, bytes(200_000), bulk=True) == 200_000
    wire.client.send(streams[2], {"x": 1})
    wire.client.write(streams[2], 0, b"small")
    sent = frames.Decoder().feed(b"".join(wire.client.pull(0.0, 1 << 20)))
    assert [frame[0] for frame in sent[:2]] == [frames.MESSAGE, frames.DATA]
    assert sum(len(frame[4]) for frame in sent[2:]) == session.LEAST_BULK_BYTES  # no more before it is acknowledged
    wire.client.receive(header(frames.ACK, 0, 0, 0, 8) + sent[-1][3].to_bytes(8, "big"), 0.01)
    more = frames.Decoder().feed(b"".join(wire.client.pull(0.0, 1 << 20)))
    assert [frame[2] for frame in more[:2]] == [streams[1].id, streams[0].id]


def bulk_under_way(rate: float, rtt_s: float, seconds: float) -> tuple[float, float]:
    """How much bulk is under way at the end on a line of that rate, and how much of the line was used."""
    core, now = SessionCore(), 0.0
    core.attach()
    core.resume(0, 0.0)
    stream = core.open({})
    stream.outward[0] = session.Outward()
    line: deque[tuple[float, int, int]] = deque()  # when it arrives, number, size
    free_s, done, decoder = 0.0, 0, frames.Decoder()
    while now < seconds:
        stream.outward[0].credit = 1 << 30
        core.write(stream, 0, bytes(256_000), bulk=True)
        for frame in decoder.feed(b"".join(core.pull(now))):
            if frame[3]:
                free_s = max(free_s, now) + len(frame[4]) / rate
                line.append((free_s + rtt_s, frame[3], len(frame[4])))
        if line and line[0][0] <= now:
            while line and line[0][0] <= now:
                _, number, size = line.popleft()
                done += size
            core.receive(header(frames.ACK, 0, 0, 0, 8) + number.to_bytes(8, "big"), now)
        else:
            now = line[0][0]
    return core._bulk_kept, done / (rate * seconds)


@pytest.mark.parametrize(("rate", "rtt_s"), [(250_000, 0.02), (250_000, 0.2), (12_500_000, 0.1), (50_000_000, 0.001)])
def test_bulk_under_way_stays_below_half_a_second_and_fills_the_line(rate: int, rtt_s: float) -> None:
    under_way, used = bulk_under_way(rate, rtt_s, 10.0)
    assert under_way <= rate * (rtt_s + 0.5) + 2 * session.LEAST_BULK_BYTES
    assert used > 0.85


BREACHES = {
    "a stream that nobody opened": header(frames.MESSAGE, 0, 7, 1, 2) + b"{}",
    "an odd stream opened by the agent": header(frames.OPEN, 0, 9, 1, 2) + b"{}",
    "a number left out": header(frames.OPEN, 0, 2, 2, 2) + b"{}",
    "a frame without its number": header(frames.OPEN, 0, 2, 0, 2) + b"{}",
    "no JSON": header(frames.OPEN, 0, 2, 1, 2) + b"{x",
    "an ACK of what was not sent": header(frames.ACK, 0, 0, 0, 8) + (99).to_bytes(8, "big"),
    "an ACK of nothing": header(frames.ACK, 0, 0, 0, 0),
    "more to an OPEN than whose connection it is": header(frames.OPEN, 0, 2, 1, 300) + b'{"a":"' + b"x" * 292 + b'"}',
    "a HELLO": header(frames.HELLO, 0, 0, 0, 2) + b"{}",
}


@pytest.mark.parametrize("wire", BREACHES.values(), ids=BREACHES)
def test_what_breaks_the_rules_is_a_breach(wire: bytes) -> None:
    core = SessionCore()
    core.attach()
    core.resume(0, 0.0)
    with pytest.raises(BreachError):
        core.receive(wire, 0.0)
    assert core.received == 0


def test_data_beyond_the_credit_is_a_breach_and_what_came_before_counts() -> None:
    core = SessionCore()
    core.attach()
    core.resume(0, 0.0)
    stream = core.open({})
    piece = bytes(frames.MOST_DATA_BYTES)
    data = b"".join(header(frames.DATA, 1, stream.id, number, len(piece)) + piece for number in range(1, 10))
    with pytest.raises(BreachError, match="beyond the credit"):
        core.receive(data, 0.0)
    assert core.received == 4


def test_frames_on_a_stream_that_is_over_are_ignored() -> None:
    core = SessionCore()
    core.attach()
    core.resume(0, 0.0)
    stream = core.open({})
    core.receive(header(frames.CLOSE, 0, stream.id, 1, 0) + header(frames.MESSAGE, 0, stream.id, 2, 2) + b"{}", 0.0)
    assert core.received == 2
    assert core.streams == []
    assert core.read(stream, 1) == b""


def test_an_agent_that_claims_what_was_never_sent_is_a_breach() -> None:
    core = SessionCore()
    core.attach()
    with pytest.raises(BreachError):
        core.resume(1, 0.0)


def client() -> SessionCore:
    core = SessionCore()
    core.attach()
    core.resume(0, 0.0)
    return core


def test_messages_that_nobody_receives_are_a_breach() -> None:
    core = client()
    streams = [core.open({}), core.open({})]
    payload = b'{"a":"' + b"x" * (frames.MOST_PAYLOAD_BYTES - 8) + b'"}'
    flood = [
        header(frames.MESSAGE, 0, streams[number % 2].id, number, len(payload)) + payload for number in range(1, 13)
    ]
    core.receive(b"".join(flood[:3]), 0.0)
    assert core.take_message(streams[0]) is not None
    with pytest.raises(BreachError, match="nobody has asked for"):
        core.receive(b"".join(flood[3:]), 0.0)
    assert core.received <= 4

    core = client()
    streams = [core.open({}), core.open({})]
    for frame in flood:  # whoever receives them may have any number
        core.receive(frame, 0.0)
        while any(core.take_message(stream) for stream in streams):
            pass
    assert core.received == len(flood)


@pytest.mark.parametrize("closes", [False, True])
def test_streams_that_the_agent_opens_without_end_are_a_breach(closes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_STREAMS", 1000)
    monkeypatch.setattr(session, "MOST_UNACKNOWLEDGED", 1000)
    core = client()

    def opens(stream: int) -> None:
        number = stream if closes else stream // 2
        core.receive(header(frames.OPEN, 0, stream, number - closes, 2) + b"{}", 0.0)
        for opened in core.take_opened():
            core.close(opened)
        core.pull(0.0)
        if closes:
            core.receive(header(frames.CLOSE, 0, stream, number, 0), 0.0)

    with pytest.raises(BreachError, match="more than an agent opens"):
        deque(map(opens, range(2, 5000, 2)), 0)
    assert len(core.streams) <= 1001
    assert len(core._urgent) + len(core._kept) <= 1001


def test_signs_of_life_do_not_pile_up_where_nothing_goes_out() -> None:
    core = client()
    core.pull(0.0)
    for number in range(1000):
        core.receive(header(frames.PING, 0, 0, 0, 8) + number.to_bytes(8, "big"), 0.0)
    assert core.pull(0.0) == [header(frames.PONG, 0, 0, 0, 8) + (999).to_bytes(8, "big")]


@pytest.mark.parametrize(("kind", "payload"), [(frames.DATA, b"x"), (frames.END, b""), (frames.CREDIT, bytes(4))])
def test_there_are_four_lanes(kind: int, payload: bytes) -> None:
    core = client()
    stream = core.open({})
    with pytest.raises(BreachError, match="lane 4"):
        core.receive(header(kind, 4, stream.id, 1, len(payload)) + payload, 0.0)
