"""The sync service without I/O: counters, barriers, topics, subscriptions.

The caller passes each frame of a connection to `receive`, which returns the connections that have something to send,
and pulls that with `take`. Pulling, since a slow subscriber then costs a cursor into the topic's messages instead of a
copy of each.

Everything that a client can fill is bounded, and each client has a share: what would exceed it is answered with an
error. A client that does not read its answers is not read from (`is_behind`).
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from testground.sync.journal import Entry, Journal
from testground.sync.protocol import (
    BAD_FRAME,
    Action,
    BadFrameError,
    Barrier,
    Close,
    Publish,
    Response,
    SignalEntry,
    Subscribe,
    decode_request,
    encode_response,
    message_frame,
    quote,
    run_of_key,
)

_Made = TypeVar("_Made")

DEFAULT_IDLE_S = 6 * 3600.0
"""A run that nobody is connected for and nobody has spoken of for so long is forgotten."""


@dataclass(frozen=True)
class Limits:
    """How much is kept, in bytes of memory: messages and names (until their run is forgotten), and what waits."""

    kept_bytes: int = 512 * 2**20
    kept_for_one_bytes: int = 64 * 2**20
    """What one client added to runs that are remembered."""
    open_requests: int = 2**15
    open_bytes: int = 8 * 2**20
    """What one client's subscriptions and barriers take."""
    cancelled: int = 64
    """So many of one client's cancelled subscriptions wait for their last message; then the oldest goes without."""
    unsent_bytes: int = 2**20
    """With so much to be sent a client is behind."""


# What an entry of ours costs beside the texts in it, about.
_OVERHEAD_BYTES = 500


class Connection:
    """One client's side of the service; made by `SyncCore.connect`. `name` says whose it is, for the journal."""

    def __init__(self) -> None:
        self.name = ""
        self._answers: deque[str | Close] = deque()
        self._unsent_bytes = 0
        self._ready: OrderedDict[_Subscription, None] = OrderedDict()  # in turn; those that end leave it
        # What is open, by the request's id, the newest last; and how much that is.
        self._subscriptions: dict[str, dict[_Subscription, None]] = {}
        self._barriers: dict[str, dict[_Barrier, None]] = {}
        self._open_requests = 0
        self._open_bytes = 0
        self._cancelled: dict[_Subscription, None] = {}
        self._kept_bytes: dict[_Run, int] = {}
        self._kept_in_all_bytes = 0
        self._is_ending = False


class _Subscription:
    __slots__ = ("connection", "is_cancelled", "request_id", "sent", "topic")

    def __init__(self, connection: Connection, request_id: str, topic: _Topic) -> None:
        self.connection, self.request_id, self.topic = connection, request_id, topic
        self.sent = 0
        self.is_cancelled = False


class _Barrier:
    __slots__ = ("connection", "noted", "request_id", "state", "target")

    def __init__(self, connection: Connection, request_id: str, state: _State, target: int) -> None:
        self.connection, self.request_id, self.state, self.target = connection, request_id, state, target
        self.noted: Entry | None = None


class _Topic:
    def __init__(self) -> None:
        self.messages: list[str] = []  # JSON text, quoted once more: as it stands in a response
        self.subscriptions: dict[_Subscription, None] = {}


class _State:
    def __init__(self) -> None:
        self.count = 0
        self.waiting: dict[int, dict[_Barrier, None]] = {}  # by target


class _Run:
    def __init__(self, name: str) -> None:
        self.name = name
        self.states: dict[str, _State] = {}
        self.topics: dict[str, _Topic] = {}
        self.connections: set[Connection] = set()
        self.kept_bytes = 0
        self.last_used_s = 0.0


_Request = TypeVar("_Request", _Subscription, _Barrier)


class _TooMuchError(Exception):
    """The request would go beyond a bound; its text is the answer."""


class SyncCore:
    """The service's whole memory. Not thread-safe: one thread (or event loop) owns it.

    `clock` gives monotonic seconds; a run unused for `idle_s` with no client connected that had used it is freed by
    `forget_idle`.
    """

    def __init__(
        self,
        *,
        idle_s: float = DEFAULT_IDLE_S,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits = Limits(),
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._idle_s = idle_s
        self._clock = clock
        self._limits = limits
        self._runs: dict[str, _Run] = {}
        self._kept_bytes = 0

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs in memory ("" stands for keys that name none)."""
        return tuple(self._runs)

    def connect(self) -> Connection:
        """A client has come."""
        return Connection()

    def disconnect(self, connection: Connection) -> None:
        """A client has gone: nothing more is sent to it, and what it published or signalled stays."""
        self._leave(connection)
        connection._answers.clear()
        connection._unsent_bytes = 0

    def is_behind(self, connection: Connection) -> bool:
        """Whether so much is to be sent to a client that no more is to be taken from it."""
        return connection._unsent_bytes > self._limits.unsent_bytes

    def receive(self, connection: Connection, frame: bytes | str) -> Iterable[Connection]:
        """Take one frame from a client; returns the connections that have something to send because of it."""
        if connection._is_ending:
            return ()
        try:
            request = decode_request(frame)
        except BadFrameError:
            return self.end(connection, BAD_FRAME)
        if request.is_cancel:
            self._cancel(connection, request.id)
            return ()
        if request.action is None:
            return ()
        try:
            return self._act(connection, request.id, request.action)
        except _TooMuchError as error:
            _answer(connection, Response(request.id, error=str(error)))
            return (connection,)

    def end(self, connection: Connection, close: Close) -> Iterable[Connection]:
        """Send a client what it was answered already and then a closing, which waits now; hear it no more."""
        if not connection._is_ending:
            self._leave(connection)
            connection._answers.append(close)
        return (connection,)

    def take(self, connection: Connection) -> str | Close | None:
        """The next thing to send to a client, None if there is nothing now. After a `Close` comes nothing more.

        Answers go before messages, and subscriptions of one client take turns, so that a long topic delays neither.
        """
        if connection._answers:
            answer = connection._answers.popleft()
            if isinstance(answer, str):
                connection._unsent_bytes -= len(answer)
            return answer
        if not connection._ready:
            return None
        subscription, _ = connection._ready.popitem(last=False)
        messages = subscription.topic.messages
        message = messages[subscription.sent]
        subscription.sent += 1
        if subscription.is_cancelled:
            _unsubscribe(subscription)
        elif subscription.sent < len(messages):
            connection._ready[subscription] = None
        return message_frame(subscription.request_id, message)

    def forget_run(self, run: str) -> bool:
        """Free everything of a run, when its owner says so; pending requests in it are never answered.

        Returns whether there was such a run.
        """
        forgotten = self._runs.pop(run, None)
        if forgotten is None:
            return False
        for topic in forgotten.topics.values():
            topic.messages.clear()
            for subscription in list(topic.subscriptions):
                _unsubscribe(subscription)
        for state in forgotten.states.values():
            for barrier in [barrier for waiting in state.waiting.values() for barrier in waiting]:
                _stop_waiting(barrier)
        for connection in forgotten.connections:
            connection._kept_in_all_bytes -= connection._kept_bytes.pop(forgotten)
        self._kept_bytes -= forgotten.kept_bytes
        return True

    def forget_idle(self) -> tuple[str, ...]:
        """Free the runs that have been idle for too long; returns their names."""
        since_s = self._clock() - self._idle_s
        idle = [run.name for run in self._runs.values() if not run.connections and run.last_used_s <= since_s]
        for name in idle:
            self.forget_run(name)
        return tuple(idle)

    def _leave(self, connection: Connection) -> None:
        connection._is_ending = True
        for subscription in [one for those in connection._subscriptions.values() for one in those]:
            _unsubscribe(subscription)
        for subscription in list(connection._cancelled):
            _unsubscribe(subscription)
        connection._ready.clear()
        for barrier in [one for those in connection._barriers.values() for one in those]:
            _stop_waiting(barrier)
        now_s = self._clock()
        for run in connection._kept_bytes:
            run.connections.discard(connection)
            run.last_used_s = now_s
        connection._kept_bytes.clear()
        connection._kept_in_all_bytes = 0

    def _run(self, connection: Connection, key: str) -> _Run:
        name = run_of_key(key)
        run = self._runs.get(name)
        if run is None:
            run = _Run(name)
            self._keep(connection, run, name)
            self._runs[name] = run
        run.last_used_s = self._clock()
        run.connections.add(connection)
        connection._kept_bytes.setdefault(run, 0)
        return run

    def _keep(self, connection: Connection, run: _Run, text: str) -> None:
        """Count what is to be remembered of a run at a client's word. Raises `_TooMuchError`."""
        size = sys.getsizeof(text) + _OVERHEAD_BYTES
        limits = self._limits
        if self._kept_bytes + size > limits.kept_bytes:
            raise _TooMuchError(f"the sync service keeps no more than {limits.kept_bytes} bytes of all runs")
        if connection._kept_in_all_bytes + size > limits.kept_for_one_bytes:
            raise _TooMuchError(f"the sync service keeps no more than {limits.kept_for_one_bytes} bytes of one client")
        connection._kept_bytes[run] = connection._kept_bytes.get(run, 0) + size
        connection._kept_in_all_bytes += size
        run.kept_bytes += size
        self._kept_bytes += size

    def _state(self, connection: Connection, key: str) -> _State:
        return self._made(connection, key, lambda run: run.states, _State)

    def _topic(self, connection: Connection, key: str) -> _Topic:
        return self._made(connection, key, lambda run: run.topics, _Topic)

    def _made(
        self, connection: Connection, key: str, kept: Callable[[_Run], dict[str, _Made]], new: Callable[[], _Made]
    ) -> _Made:
        """What a run has of that key, made where there is none."""
        run = self._run(connection, key)
        found = kept(run).get(key)
        if found is None:
            self._keep(connection, run, key)
            found = kept(run)[key] = new()
        return found

    def _open(self, connection: Connection, request_id: str) -> None:
        """Count what waits at a client's word. Raises `_TooMuchError`."""
        limits = self._limits
        size = _open_bytes(request_id)
        if connection._open_requests >= limits.open_requests or connection._open_bytes + size > limits.open_bytes:
            raise _TooMuchError(f"{connection._open_requests} requests of this client are open; no more are taken")
        connection._open_requests += 1
        connection._open_bytes += size

    def _act(self, connection: Connection, request_id: str, action: Action) -> Iterable[Connection]:
        match action:
            case SignalEntry(key):
                return self._signal(connection, request_id, key, self._state(connection, key))
            case Barrier(key, target):
                state = self._state(connection, key)
                if target > state.count:
                    self._open(connection, request_id)
                    barrier = _Barrier(connection, request_id, state, target)
                    if self._journal is not None:
                        barrier.noted = self._journal.waits(connection.name, key, target)
                    state.waiting.setdefault(target, {})[barrier] = None
                    connection._barriers.setdefault(request_id, {})[barrier] = None
                    return ()
                if self._journal is not None:
                    self._journal.met(self._journal.waits(connection.name, key, target))
                _answer(connection, Response(request_id))
                return (connection,)
            case Publish(key, payload):
                topic = self._topic(connection, key)
                message = quote(payload)
                self._keep(connection, self._run(connection, key), message)
                topic.messages.append(message)
                _answer(connection, Response(request_id, publish_seq=len(topic.messages)))
                woken = {connection: None}
                for subscription in topic.subscriptions:
                    subscription.connection._ready[subscription] = None
                    woken[subscription.connection] = None
                return woken
            case Subscribe(key):
                topic = self._topic(connection, key)
                self._open(connection, request_id)
                subscription = _Subscription(connection, request_id, topic)
                topic.subscriptions[subscription] = None
                connection._subscriptions.setdefault(request_id, {})[subscription] = None
                if topic.messages:
                    connection._ready[subscription] = None
                return (connection,)

    def _signal(self, connection: Connection, request_id: str, key: str, state: _State) -> Iterable[Connection]:
        state.count += 1
        if self._journal is not None:
            self._journal.signalled(connection.name, key, state.count)
        _answer(connection, Response(request_id, signal_seq=state.count))
        woken = {connection: None}
        # Barriers with a smaller target were answered when the count got there.
        for barrier in list(state.waiting.get(state.count, ())):
            _stop_waiting(barrier)
            if self._journal is not None and barrier.noted is not None:
                self._journal.met(barrier.noted)
            _answer(barrier.connection, Response(barrier.request_id))
            woken[barrier.connection] = None
        return woken

    def _cancel(self, connection: Connection, request_id: str) -> None:
        """End the newest subscription with this id, or else the barriers with it that are not met yet.

        As recorded of the official service, a subscription still brings one message after its cancelling.
        """
        if those := connection._subscriptions.get(request_id):
            subscription, _ = those.popitem()
            if not those:
                del connection._subscriptions[request_id]
            subscription.is_cancelled = True
            connection._cancelled[subscription] = None
            if len(connection._cancelled) > self._limits.cancelled:
                _unsubscribe(next(iter(connection._cancelled)))
        else:
            for barrier in list(connection._barriers.get(request_id, ())):
                _stop_waiting(barrier)


def _answer(connection: Connection, response: Response) -> None:
    text = encode_response(response)
    connection._answers.append(text)
    connection._unsent_bytes += len(text)


def _unsubscribe(subscription: _Subscription) -> None:
    connection = subscription.connection
    if subscription not in subscription.topic.subscriptions:
        return  # it was ended before
    del subscription.topic.subscriptions[subscription]
    connection._ready.pop(subscription, None)
    if subscription.is_cancelled:
        del connection._cancelled[subscription]
    else:
        _take_out(connection._subscriptions, subscription.request_id, subscription)
    _close(connection, subscription.request_id)


def _stop_waiting(barrier: _Barrier) -> None:
    waiting = barrier.state.waiting[barrier.target]
    del waiting[barrier]
    if not waiting:
        del barrier.state.waiting[barrier.target]
    _take_out(barrier.connection._barriers, barrier.request_id, barrier)
    _close(barrier.connection, barrier.request_id)


def _take_out(those: dict[str, dict[_Request, None]], request_id: str, one: _Request) -> None:
    del those[request_id][one]
    if not those[request_id]:
        del those[request_id]


def _open_bytes(request_id: str) -> int:
    return sys.getsizeof(request_id) + _OVERHEAD_BYTES


def _close(connection: Connection, request_id: str) -> None:
    connection._open_requests -= 1
    connection._open_bytes -= _open_bytes(request_id)
