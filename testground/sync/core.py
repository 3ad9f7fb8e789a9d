"""What the sync service decides, without any input or output: counters, barriers, topics, subscriptions.

Whoever moves the bytes calls `receive` with each frame of a connection, is told which connections have something to
send now, and pulls that with `take`. Pulling, because a subscriber that reads slowly then costs a cursor into the
topic's messages and not a copy of each of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

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

DEFAULT_IDLE_S = 6 * 3600.0
"""A run that nobody is connected for and nobody has spoken of for so long is forgotten."""


class Connection:
    """One client's side of the service; made by `SyncCore.connect`."""

    def __init__(self) -> None:
        self._answers: deque[str | Close] = deque()
        self._ready: deque[_Subscription] = deque()
        self._subscriptions: dict[_Subscription, None] = {}
        self._waited_states: set[_State] = set()
        self._runs: set[_Run] = set()
        self._is_ending = False


class _Subscription:
    def __init__(self, connection: Connection, request_id: str, topic: _Topic) -> None:
        self.connection, self.request_id, self.topic = connection, request_id, topic
        self.sent = 0
        self.is_ready = False
        self.is_cancelled = False


class _Topic:
    def __init__(self) -> None:
        self.messages: list[str] = []  # JSON text, quoted once more: as it stands in a response
        self.subscriptions: dict[_Subscription, None] = {}


class _State:
    def __init__(self) -> None:
        self.count = 0
        self.waiting: dict[int, list[tuple[Connection, str]]] = {}  # by target: who, and the request's id


class _Run:
    def __init__(self, name: str) -> None:
        self.name = name
        self.states: dict[str, _State] = {}
        self.topics: dict[str, _Topic] = {}
        self.connections: set[Connection] = set()
        self.last_used_s = 0.0


class SyncCore:
    """The service's whole memory. Not thread-safe: one thread (or event loop) owns it.

    `clock` gives monotonic seconds; a run unused for `idle_s` with no client connected that had used it is freed by
    `forget_idle`.
    """

    def __init__(self, *, idle_s: float = DEFAULT_IDLE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s = idle_s
        self._clock = clock
        self._runs: dict[str, _Run] = {}

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

    def receive(self, connection: Connection, frame: bytes | str) -> Iterable[Connection]:
        """Take one frame from a client; returns the connections that have something to send because of it."""
        if connection._is_ending:
            return ()
        try:
            request = decode_request(frame)
        except BadFrameError:
            return self.end(connection, BAD_FRAME)
        if request.is_cancel:
            _cancel(connection, request.id)
            return ()
        if request.action is None:
            return ()
        return self._act(connection, request.id, request.action)

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
            return connection._answers.popleft()
        while connection._ready:
            subscription = connection._ready.popleft()
            subscription.is_ready = False
            messages = subscription.topic.messages
            if subscription.sent >= len(messages):
                continue  # its run was forgotten meanwhile
            message = messages[subscription.sent]
            subscription.sent += 1
            if subscription.is_cancelled:
                _unsubscribe(subscription)
            elif subscription.sent < len(messages):
                _mark_ready(subscription)
            return message_frame(subscription.request_id, message)
        return None

    def forget_run(self, run: str) -> bool:
        """Free everything of a run, at its owner's word; whoever still waits in it is never answered.

        Returns whether there was such a run.
        """
        forgotten = self._runs.pop(run, None)
        if forgotten is None:
            return False
        for topic in forgotten.topics.values():
            topic.messages.clear()
            for subscription in list(topic.subscriptions):
                _unsubscribe(subscription)
        for connection in forgotten.connections:
            connection._runs.discard(forgotten)
            connection._waited_states.difference_update(forgotten.states.values())
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
        for subscription in list(connection._subscriptions):
            _unsubscribe(subscription)
        connection._ready.clear()
        for state in connection._waited_states:
            _stop_waiting(state, connection)
        connection._waited_states.clear()
        now_s = self._clock()
        for run in connection._runs:
            run.connections.discard(connection)
            run.last_used_s = now_s
        connection._runs.clear()

    def _run(self, connection: Connection, key: str) -> _Run:
        name = run_of_key(key)
        run = self._runs.get(name)
        if run is None:
            run = self._runs[name] = _Run(name)
        run.last_used_s = self._clock()
        run.connections.add(connection)
        connection._runs.add(run)
        return run

    def _act(self, connection: Connection, request_id: str, action: Action) -> Iterable[Connection]:
        match action:
            case SignalEntry(key):
                return self._signal(connection, request_id, self._run(connection, key).states.setdefault(key, _State()))
            case Barrier(key, target):
                state = self._run(connection, key).states.setdefault(key, _State())
                if target > state.count:
                    state.waiting.setdefault(target, []).append((connection, request_id))
                    connection._waited_states.add(state)
                    return ()
                connection._answers.append(encode_response(Response(request_id)))
                return (connection,)
            case Publish(key, payload):
                topic = self._run(connection, key).topics.setdefault(key, _Topic())
                topic.messages.append(quote(payload))
                connection._answers.append(encode_response(Response(request_id, publish_seq=len(topic.messages))))
                woken = {connection: None}
                for subscription in topic.subscriptions:
                    _mark_ready(subscription)
                    woken[subscription.connection] = None
                return woken
            case Subscribe(key):
                topic = self._run(connection, key).topics.setdefault(key, _Topic())
                subscription = _Subscription(connection, request_id, topic)
                topic.subscriptions[subscription] = None
                connection._subscriptions[subscription] = None
                if topic.messages:
                    _mark_ready(subscription)
                return (connection,)

    def _signal(self, connection: Connection, request_id: str, state: _State) -> Iterable[Connection]:
        state.count += 1
        connection._answers.append(encode_response(Response(request_id, signal_seq=state.count)))
        woken = {connection: None}
        # Whoever waited for less was answered when the count got there.
        for waiting, waiting_id in state.waiting.pop(state.count, ()):
            waiting._answers.append(encode_response(Response(waiting_id)))
            woken[waiting] = None
        return woken


def _mark_ready(subscription: _Subscription) -> None:
    if not subscription.is_ready:
        subscription.is_ready = True
        subscription.connection._ready.append(subscription)


def _cancel(connection: Connection, request_id: str) -> None:
    """End the newest subscription with this id, or else the barriers with it that are not met yet.

    As recorded of the official service, a subscription still brings one message after its cancelling.
    """
    for subscription in reversed(connection._subscriptions):
        if subscription.request_id == request_id and not subscription.is_cancelled:
            subscription.is_cancelled = True
            return
    for state in connection._waited_states:
        _stop_waiting(state, connection, request_id)


def _unsubscribe(subscription: _Subscription) -> None:
    subscription.topic.subscriptions.pop(subscription, None)
    subscription.connection._subscriptions.pop(subscription, None)


def _stop_waiting(state: _State, connection: Connection, request_id: str | None = None) -> None:
    """Take a client's barriers off a state: those with this id, or all."""
    for target, waiting in list(state.waiting.items()):
        left = [(who, its_id) for who, its_id in waiting if who is not connection or request_id not in (None, its_id)]
        if left:
            state.waiting[target] = left
        else:
            del state.waiting[target]
