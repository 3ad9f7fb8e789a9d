"""A synchronous client of the sync service, safe to use from several threads."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol, Self

from testground.errors import (
    SyncClosedError,
    SyncError,
    SyncTimeoutError,
    SyncUnreachableError,
    sync_answer_error,
)
from testground.sync import DEFAULT_HOST, DEFAULT_PORT
from testground.sync.link import Link
from testground.sync.protocol import (
    OFFICIAL_LIMIT_BYTES,
    Action,
    BadFrameError,
    Barrier,
    Publish,
    Request,
    Response,
    SignalEntry,
    Subscribe,
    compact,
    decode_response,
    encode_request,
    endpoint,
    events_key,
    state_key,
    topic_key,
)
from testground.sync.websocket import WebSocketError

if TYPE_CHECKING:
    from testground.events import Event

CLOSE_TIMEOUT_S = 5.0
_WAITING_BYTES = 64 << 20
_ANSWER_BYTES = 512  # of the smallest, as it lies in memory


class RunNames(Protocol):
    """What a run's keys are made of; `testground.runenv.RunEnv` has it."""

    @property
    def run(self) -> str: ...
    @property
    def plan(self) -> str: ...
    @property
    def case(self) -> str: ...


class SyncClient:
    """One connection to the sync service at `host`:`port`, for the states and topics of one run's test case.

    Use as a context manager. `timeout_s` bounds the connecting and each answer but a barrier's. Every method may be
    called from any thread; all raise `SyncError` or one of its kinds.
    """

    def __init__(
        self,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        *,
        run: str,
        plan: str,
        case: str,
        timeout_s: float = 30.0,
    ) -> None:
        self.run, self.plan, self.case = run, plan, case
        self._address = host, port
        self.endpoint = endpoint(host, port)
        self._timeout_s = timeout_s
        self._ids = itertools.count()
        self._link: Link | None = None
        self._reader: threading.Thread | None = None
        self._guard = threading.Lock()
        self._inboxes: dict[str, _Inbox] = {}
        self._ended: SyncError | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, timeout_s: float = 30.0) -> Self:
        """A client as the SDKs make it from TEST_RUN, TEST_PLAN, TEST_CASE, SYNC_SERVICE_HOST and SYNC_SERVICE_PORT.

        Raises SyncError where SYNC_SERVICE_HOST or SYNC_SERVICE_PORT cannot be read.
        """
        host, port = service_address(environ)
        run, plan, case = (environ.get(f"TEST_{name}", "") for name in ("RUN", "PLAN", "CASE"))
        return cls(host, port, run=run, plan=plan, case=case, timeout_s=timeout_s)

    @classmethod
    def from_runenv(cls, runenv: RunNames, environ: Mapping[str, str], *, timeout_s: float = 30.0) -> Self:
        """A client for the run, plan and case of `runenv`, at the service that `environ` names.

        Raises SyncError where SYNC_SERVICE_HOST or SYNC_SERVICE_PORT cannot be read.
        """
        host, port = service_address(environ)
        return cls(host, port, run=runenv.run, plan=runenv.plan, case=runenv.case, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Connect, once and without retries.

        Raises SyncUnreachableError.
        """
        try:
            self._link = Link.open(*self._address, self._timeout_s)
        except TimeoutError as error:
            raise SyncUnreachableError(self.endpoint, f"no answer within {self._timeout_s:g} s") from error
        except OSError as error:
            raise SyncUnreachableError(self.endpoint, f"cannot connect: {error.strerror or error}") from error
        except (WebSocketError, ValueError) as error:
            raise SyncUnreachableError(self.endpoint, f"no sync service: {error}") from error
        self._reader = threading.Thread(target=self._read, args=(self._link,), name="sync-client", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """End the connection; pending calls raise SyncClosedError."""
        if self._link is not None and self._reader is not None:
            self._link.end()
            self._reader.join(CLOSE_TIMEOUT_S)
            self._link.cut()
            self._reader.join()

    def signal_entry(self, state: str) -> int:
        """Enter a state; returns how many have entered it by now, this entry included (the first gets 1)."""
        what = f"signal_entry of {state!r}"
        with self._ask(what, SignalEntry(self._state_key(state))) as asked:
            return self._signal_seq(asked)

    def barrier(self, state: str, target: int, timeout_s: float | None = None) -> None:
        """Wait until `target` have entered the state; without `timeout_s` for as long as the connection lasts."""
        with self._ask_barrier(state, target) as asked:
            self._await_barrier(asked, state, target, timeout_s)

    def signal_and_wait(self, state: str, target: int, timeout_s: float | None = None) -> int:
        """Enter a state and wait until `target` have; returns the number of this entry. One round trip, not two."""
        with self._ask(f"signal_entry of {state!r}", SignalEntry(self._state_key(state))) as signalled:
            with self._ask_barrier(state, target) as asked:
                number = self._signal_seq(signalled)
                self._await_barrier(asked, state, target, timeout_s)
                return number

    def publish(self, topic: str, payload: object) -> int:
        """Append a JSON value to a topic; returns its number there (the first gets 1)."""
        return self._publish(f"publish on {topic!r}", self._topic_key(topic), payload)

    def subscribe(self, topic: str) -> Subscription:
        """The topic's messages from its first one on, in order, those to come included."""
        what = f"subscribe to {topic!r}"
        return Subscription(self, self._ask(what, Subscribe(self._topic_key(topic))))

    def publish_subscribe(self, topic: str, payload: object) -> tuple[int, Subscription]:
        """Publish on a topic and subscribe to it."""
        number = self.publish(topic, payload)
        return number, self.subscribe(topic)

    def signal_event(self, event: Event | Mapping[str, object]) -> int:
        """Publish an event (one of `testground.events`, or its JSON object) where the run's observers read them."""
        if not isinstance(event, Mapping):
            from testground.events import encode_event

            event = json.loads(encode_event(event, ts_ns=0, group_id="", run_id=""))["event"]
        return self._publish("signal_event", events_key(run=self.run, plan=self.plan, case=self.case), event)

    def _state_key(self, state: str) -> str:
        return state_key(run=self.run, plan=self.plan, case=self.case, state=state)

    def _topic_key(self, topic: str) -> str:
        return topic_key(run=self.run, plan=self.plan, case=self.case, topic=topic)

    def _publish(self, what: str, key: str, payload: object) -> int:
        try:
            text = compact(payload)
        except (TypeError, ValueError, RecursionError) as error:
            next_step = "publish what JSON can say: objects, arrays, strings, finite numbers, true, false, null"
            raise SyncError(
                self.endpoint, f"{what}: payload is not JSON value: {error}", next_step=next_step
            ) from error
        with self._ask(what, Publish(key, text)) as asked:
            answer = asked.next(self._timeout_s)
            if answer.publish_seq is None:
                raise sync_answer_error(self.endpoint, what, repr(answer))
            return answer.publish_seq

    def _ask_barrier(self, state: str, target: int) -> _Asked:
        return self._ask(f"barrier of {target} on {state!r}", Barrier(self._state_key(state), target))

    def _await_barrier(self, asked: _Asked, state: str, target: int, timeout_s: float | None) -> None:
        asked.next(timeout_s, next_step=f"see which of the {target} did not reach state {state!r}, and why")

    def _signal_seq(self, asked: _Asked) -> int:
        answer = asked.next(self._timeout_s)
        if answer.signal_seq is None:
            raise sync_answer_error(self.endpoint, asked.what, repr(answer))
        return answer.signal_seq

    def _ask(self, what: str, action: Action) -> _Asked:
        """Send a request; its answers come to the returned inbox."""
        asked = _Asked(self, str(next(self._ids)), what)
        frame = encode_request(Request(asked.request_id, action))
        size_bytes = len(frame.encode())
        if size_bytes > OFFICIAL_LIMIT_BYTES:
            most = f"Testground's service reads at most {OFFICIAL_LIMIT_BYTES}"
            problem = f"{what}: a request of {size_bytes} bytes; {most}"
            raise SyncError(self.endpoint, problem, next_step="send less, or in several messages")
        with self._guard:
            if self._ended is not None:
                raise self._ended
            self._inboxes[asked.request_id] = asked.inbox
        self._send(frame)
        return asked

    def _send(self, frame: str) -> None:
        if self._link is None or self._reader is None:
            raise SyncClosedError(self.endpoint, None, "", next_step="open the client (`with SyncClient(…) as client`)")
        try:
            self._link.send(frame)
        except OSError as error:
            self._reader.join(CLOSE_TIMEOUT_S)  # it knows more, if the service has said why
            raise self._ended or SyncClosedError(self.endpoint, None, "") from error

    def _forget(self, request_id: str) -> None:
        with self._guard:
            self._inboxes.pop(request_id, None)

    def _read(self, link: Link) -> None:
        """Hand each response to its caller; runs in the reader's thread."""
        ended: SyncError
        try:
            for message in link.messages():
                response = decode_response(message)
                with self._guard:
                    inbox = self._inboxes.get(response.id)
                # None for a message of a cancelled subscription, or a barrier given up.
                if inbox is not None and not inbox.put(response, len(message)):
                    self._forget(response.id)
                    words = f"answers of more than {_WAITING_BYTES} bytes before one was taken"
                    inbox.end(sync_answer_error(self.endpoint, "a request", words))
            ended = SyncClosedError(self.endpoint, link.code, link.reason)
        except (BadFrameError, WebSocketError) as error:
            ended = sync_answer_error(self.endpoint, "a request", f"a frame that is {error}")
        with self._guard:
            self._ended = ended
            inboxes = list(self._inboxes.values())
        for inbox in inboxes:
            inbox.end(ended)


class _Inbox:
    """The answers to one request. What nobody takes has a bound: beyond it the request ends as a failure."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Response | SyncError, int]] = SimpleQueue()
        self._put_bytes = 0  # by the client's thread
        self._taken_bytes = 0  # by the asking one

    def put(self, answer: Response, size_bytes: int) -> bool:
        """Whether there was room for it."""
        size_bytes += _ANSWER_BYTES
        waiting_bytes = self._put_bytes - self._taken_bytes
        if waiting_bytes and waiting_bytes + size_bytes > _WAITING_BYTES:
            return False
        self._put_bytes += size_bytes
        self._queue.put((answer, size_bytes))
        return True

    def end(self, error: SyncError) -> None:
        self._queue.put((error, 0))

    def get(self, timeout_s: float | None) -> Response | SyncError:
        answer, size_bytes = self._queue.get(timeout=timeout_s)
        self._taken_bytes += size_bytes
        return answer


class _Asked:
    """A request under way: the inbox of its answers. Leaving the context means that no further one is wanted."""

    def __init__(self, client: SyncClient, request_id: str, what: str) -> None:
        self.client, self.request_id, self.what = client, request_id, what
        self.inbox = _Inbox()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client._forget(self.request_id)

    def next(self, timeout_s: float | None, *, next_step: str = "") -> Response:
        try:
            answer = self.inbox.get(timeout_s)
        except Empty:
            # An Empty comes of a timeout alone.
            raise SyncTimeoutError(self.client.endpoint, self.what, timeout_s or 0.0, next_step=next_step) from None
        if isinstance(answer, SyncError):
            raise answer
        if answer.error:
            raise sync_answer_error(self.client.endpoint, self.what, answer.error)
        return answer


class Subscription:
    """The messages of one topic, as JSON values; iterate, or ask for the `next` one with a time limit.

    Ends (StopIteration) when it is cancelled, and raises SyncClosedError when the connection ends. For one thread;
    `cancel` may come from any.
    """

    def __init__(self, client: SyncClient, asked: _Asked) -> None:
        self._client, self._asked = client, asked
        self._is_cancelled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        return self.next(None)

    def next(self, timeout_s: float | None) -> object:
        """The next message; raises SyncTimeoutError when none came in time, StopIteration after `cancel`."""
        if self._is_cancelled:
            raise StopIteration
        try:
            text = self._asked.next(timeout_s).subscribe
        except SyncError:
            if self._is_cancelled:
                raise StopIteration from None
            raise
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise sync_answer_error(self._client.endpoint, self._asked.what, text) from error

    def cancel(self) -> None:
        """Take no more messages; wakes a caller that waits for one. The service is told, and may send one more."""
        if self._is_cancelled:
            return
        self._is_cancelled = True
        self._client._forget(self._asked.request_id)
        self._asked.inbox.end(SyncClosedError(self._client.endpoint, None, ""))
        try:
            self._client._send(encode_request(Request(self._asked.request_id, is_cancel=True)))
        except SyncClosedError:
            return  # so the subscription has ended anyway


def service_address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the sync service by SYNC_SERVICE_HOST (else localhost) and SYNC_SERVICE_PORT (else 5050).

    Raises SyncError where SYNC_SERVICE_HOST or SYNC_SERVICE_PORT cannot be read.
    """
    host = environ.get("SYNC_SERVICE_HOST") or DEFAULT_HOST
    if any(character.isspace() or character in "/?#@" for character in host):
        raise _unreadable("SYNC_SERVICE_HOST", host, "a host name or address")
    digits = environ.get("SYNC_SERVICE_PORT") or str(DEFAULT_PORT)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) < 65536):
        raise _unreadable("SYNC_SERVICE_PORT", digits, "a port number (1 to 65535)")
    return host, int(digits)


def _unreadable(variable: str, found: str, expected: str) -> SyncError:
    return SyncError("", f"{variable} is {found!r}; expected {expected}", next_step=f"set {variable} to {expected}")
