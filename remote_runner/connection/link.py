"""One session with a host's agent: attached, attached again after a cut, and given up after `tolerate_s`.

Everything happens in one event loop. What comes is read, decoded and handed to the streams in one turn of the loop, and
what they send goes with one writev at the end of a turn.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from remote_runner.connection.bootstrap.handshake import AgentGoneError, Bootstrap, Greeting, SilentProgramError, script
from remote_runner.connection.bootstrap.program import identity
from remote_runner.connection.frames import PROTOCOL, BreachError, Message
from remote_runner.connection.session import ACK_S, SessionCore, StreamState
from remote_runner.connection.transports.openssh import ping_interval_s
from remote_runner.connection.transports.pipes import Pipes
from remote_runner.connection.transports.transport import Transport
from remote_runner.deadline import NEVER, Deadline
from remote_runner.errors import (
    FarShellError,
    HandshakeDroppedError,
    HostLostError,
    RemoteRunnerError,
)
from remote_runner.inventory.systems import System

__all__ = ["Greeting", "Link", "Stream", "StreamClosed"]

_log = logging.getLogger(__name__)
_HANDSHAKES = 64  # at once in this process: each is 20 ms of CPU here
_HANDSHAKE_S = 1.0  # a login that takes longer waits for an answer, and holds up no other
_LONGEST_PAUSE_S = 5.0
_LEAVE_S = 2.0
_LOCAL_S = 2.0  # what a pipe to this machine is waited for when it broke: its other end is most likely gone
_MESSAGES = -1  # keys of waiters beside the lanes that are read
_WRITING = 1000
# On Linux the one that counts a laptop's sleep as well.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_handshakes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


class StreamClosed(Exception):  # noqa: N818 (the end of a stream is not an error by itself)
    """The agent has closed the stream; `kind` is "" where nothing failed, else one of docs/protocol.md's table."""

    def __init__(self, kind: str = "", text: str = "", more: Mapping[str, Any] | None = None) -> None:
        super().__init__(text or kind or "closed")
        self.kind = kind
        self.text = text
        self.more = dict(more or {})


def _wall_s() -> float:
    return time.clock_gettime(_CLOCK)


class Stream:
    """One request, or one connection that the agent has accepted. Everything raises `HostLostError` once the link is
    given up. Several tasks may use one stream, one for each lane and direction, and one that receives.
    """

    __slots__ = ("_core", "_link", "_state", "_taken", "_waiters")

    def __init__(self, link: Link, state: StreamState) -> None:
        state.owner = self
        self._link = link
        self._core = link._core
        self._state = state
        self._taken: dict[int, int] = {}  # bytes that `read` returned and that are not known to be dealt with
        self._waiters: dict[int, asyncio.Future[None]] = {}

    @property
    def id(self) -> int:
        """Its number."""
        return self._state.id

    @property
    def head(self) -> dict[str, Any]:
        """The head of the OPEN."""
        return self._state.head.head

    async def send(self, head: Mapping[str, Any], *fields: bytes) -> None:
        """Send a message. Does not wait. Raises `StreamClosed`."""
        self._check_open()
        self._core.send(self._state, head, fields)
        self._link._flush_soon()

    async def receive(self) -> Message:
        """The next message of the agent. Raises `StreamClosed` once it has closed the stream and all were received."""
        state = self._state
        while (message := self._core.take_message(state)) is None:
            if state.is_closed_there or state.is_closed_here:
                raise self._closed()
            await self._wait(_MESSAGES)
        return message

    async def read(self, lane: int) -> bytes:
        """The next bytes of that lane, b"" at its end. What was returned is taken for consumed at the next call."""
        taken = self._taken.pop(lane, 0)
        if taken:
            self._core.consume(self._state, lane, taken)
            self._link._flush_soon()
        while (data := self._core.read(self._state, lane)) is None:
            await self._wait(lane)
        if data:
            self._taken[lane] = len(data)
        return data

    def grant(self, lane: int, size: int) -> None:
        """Let the agent send that much more on the lane, for bulk (at most 8 MiB in all)."""
        self._core.grant(self._state, lane, size)
        self._link._flush_soon()

    async def write(self, lane: int, data: bytes, *, bulk: bool = False) -> None:
        """Send bytes, waiting for credit and for the window. Raises `StreamClosed`."""
        self._check_open()
        rest: bytes | memoryview = data
        while True:
            taken = self._core.write(self._state, lane, rest, bulk=bulk)
            if taken:
                self._link._flush_soon()
            if taken == len(rest):
                return
            rest = memoryview(rest)[taken:]
            await self._wait(_WRITING + lane)
            self._check_open()

    async def end(self, lane: int) -> None:
        """Say that nothing more comes on that lane. Does not wait."""
        self._core.end(self._state, lane)
        self._link._flush_soon()

    async def close(self) -> None:
        """Close the stream: an unfinished request is cancelled there. Does not wait; may be called again."""
        self._core.close(self._state)
        self._link._flush_soon()

    async def wait_closed(self) -> None:
        """Return once the agent has closed the stream as well."""
        while not self._state.is_closed_there:
            await self._wait(_MESSAGES)

    def _check_open(self) -> None:
        self._link._check()
        if self._state.is_closed_there or self._state.is_closed_here:
            raise self._closed()

    def _closed(self) -> StreamClosed:
        closing = self._state.closing
        if closing is None or not closing.head:
            return StreamClosed()
        more = dict(closing.head)
        kind, text = more.pop("error", ""), more.pop("text", "")
        return StreamClosed(str(kind) or "failed", str(text), more)

    async def _wait(self, key: int) -> None:
        self._link._check()
        waiter = self._waiters.get(key)
        if waiter is not None and not waiter.done():
            raise RuntimeError(f"two tasks wait for the same of stream {self.id}")
        waiter = self._waiters[key] = self._link._loop.create_future()
        await waiter
        self._link._check_unless(self._is_ready(key))

    def _is_ready(self, key: int) -> bool:
        state = self._state
        if key == _MESSAGES:
            return bool(state.messages) or state.is_closed_there or state.is_closed_here
        return key >= _WRITING or state.has_data(key)

    def _wake(self, *, all_of_them: bool = False) -> None:
        for key, waiter in self._waiters.items():
            if not waiter.done() and (all_of_them or self._is_ready(key)):
                waiter.set_result(None)


class Link:
    """A session with the agent of one host.

    attempts: how often it was tried to log in there. address: where this machine reached the host, as far as that can
    be told. lost: its result is the `HostLostError`, once the host is given up.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        directory: str,
        tolerate_s: float,
        connect_s: float,
        program: Callable[[System], Awaitable[Path]],
        on_open: Callable[[Stream], None] | None,
        told: Callable[[str], None] | None,
        meanwhile: Callable[[], object] | None,
    ) -> None:
        """Use `Link.open`."""
        self.name = name
        self.greeting: Greeting
        self.attempts = 0
        self.address = ""
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[HostLostError] = self._loop.create_future()
        self._transport = transport
        self._directory = directory
        self._tolerate_s = tolerate_s
        self._connect_s = connect_s
        self._bootstrap = Bootstrap(transport, connect_s, program)
        self._on_open = on_open
        self._told = told or (lambda text: None)
        self._meanwhile = meanwhile
        self._interval_s = ping_interval_s(tolerate_s)
        self._alive_s = max(3 * self._interval_s, tolerate_s / 2)
        if transport.is_local:
            self._alive_s, self._tolerate_s = max(self._alive_s, tolerate_s), min(tolerate_s, _LOCAL_S)
        self._session = os.urandom(16).hex()
        self._epoch = 0
        self._core = SessionCore()
        self._pipes: Pipes | None = None
        self._cut: asyncio.Future[str] = self._loop.create_future()
        self._heard_s = 0.0
        self._due_s = 0.0  # when the next look at the time is due, by a clock that goes on while the machine sleeps
        self._stood_still_s = 0.0
        self._breach_at = -1
        self._is_flushing = False
        self._is_closing = False
        self._ack_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        transport: Transport,
        *,
        name: str,
        directory: str = "",
        tolerate_s: float = 60.0,
        connect_s: float = 30.0,
        program: Callable[[System], Awaitable[Path]],
        on_open: Callable[[Stream], None] | None = None,
        told: Callable[[str], None] | None = None,
        meanwhile: Callable[[], object] | None = None,
        deadline: Deadline = NEVER,
    ) -> Link:
        """Connect. `directory` is the inventory's, `on_open` gets each stream that the agent opens (and must close it),
        `told` sentences on a connection that was lost and came back; `meanwhile` is called once the login goes on.

        Raises the `HostError` that says why there is no connection, `RemoteRunnerError` where its agent cannot
        be built, `DeadlineError`.
        """
        link = cls(transport, name, directory, tolerate_s, connect_s, program, on_open, told, meanwhile)
        soon = Deadline.after(min(connect_s, deadline.remaining_s))
        attempt = 0
        while True:
            try:
                await link._attach(soon, first=True)
                break
            except HandshakeDroppedError:
                # sshd drops at random while it is busy (MaxStartups); it says no when it is not.
                attempt += 1
                pause_s = random.uniform(0.5, 1.0) * min(2.0, 0.1 * 2.0**attempt)
                if soon.remaining_s < pause_s:
                    raise
                await asyncio.sleep(pause_s)
        link._keeper = asyncio.create_task(link._keep(), name=f"link to {name}")
        return link

    async def request(self, head: Mapping[str, Any], *fields: bytes) -> Stream:
        """Open a stream with that head and those fields (argv, then variables). During a cut it just waits its turn."""
        self._check()
        stream = Stream(self, self._core.open(head, fields))
        _log.debug("%s: stream %d opened: %s", self.name, stream.id, head.get("verb", ""))
        self._flush_soon()
        return stream

    def reconnect_with(self, environ: Mapping[str, str]) -> None:
        """The variables for the next attachment."""
        if not self._transport.is_local:
            self._transport.environ = environ

    async def why_ended_there(self) -> str:
        """Why the way to the host ended what ran there; "" where it did not."""
        return await self._transport.why_ended_there()

    async def close(self) -> None:
        """End the session: the agent ends what still runs there, and itself; waits shortly for that."""
        if self._is_closing:
            return
        self._is_closing = True
        _log.debug("%s: the connection is closed from here", self.name)
        pipes = self._pipes
        if pipes is not None and not self._cut.done():
            self._core.bye()
            self._flush_soon()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    await asyncio.shield(self._cut)
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if pipes is not None:
            await pipes.close(wait_s=0.1)
        self._transport.last_words()
        self._give_up("the connection is closed", "")

    # One attachment

    async def _attach(self, deadline: Deadline, *, first: bool) -> None:
        """Log in and go on with the session. Raises `AgentGoneError`, `RemoteRunnerError`."""
        try:
            await self._attach_once(deadline, first=first, replace=False)
        except SilentProgramError:
            try:  # it was cut off when it was written, or is for another machine
                await self._attach_once(deadline, first=first, replace=True)
            except SilentProgramError as error:
                raise error.error from None

    async def _attach_once(self, deadline: Deadline, *, first: bool, replace: bool) -> None:
        self.attempts += 1
        began_s = time.monotonic()
        if first:
            self._session, self._epoch = os.urandom(16).hex(), 1  # an agent that never answered is not waited for
        else:
            self._epoch += 1
        turns = _handshakes.setdefault(self._loop, asyncio.Semaphore(_HANDSHAKES))
        with ExitStack() as turn:
            await turns.acquire()
            turn.callback(turns.release)
            turn.callback(self._loop.call_later(_HANDSHAKE_S, turn.close).cancel)
            nonce = os.urandom(16).hex()
            values = {
                "nonce": nonce,
                "agent": identity(),
                "session": self._session,
                "epoch": str(self._epoch),
                "directory": self._directory,
                "replace": "1" if replace else "",
            }
            pipes = await self._transport.start(script(values), first=first, deadline=deadline)
            if self._meanwhile is not None:
                self._loop.call_soon(self._meanwhile)  # behind the writing of what is sent first
                self._meanwhile = None
            try:
                greeting, rest = await self._bootstrap.run(pipes, nonce, self._epoch, deadline, turn.close)
                self._carry(pipes, greeting, rest)
            except BaseException as error:
                _log.debug("%s: attachment %d failed: %r", self.name, self._epoch, error)
                await pipes.close()
                raise
        took_s = time.monotonic() - began_s
        _log.debug("%s: attachment %d: the agent answered after %.3f s", self.name, self._epoch, took_s)

    def _carry(self, pipes: Pipes, greeting: Greeting, rest: bytes) -> None:
        hello = {
            "protocol": PROTOCOL,
            "session": self._session,
            "epoch": self._epoch,
            "alive_s": self._alive_s,
            "tolerate_s": self._tolerate_s,
        }
        self._core.attach()
        try:
            self._core.resume(greeting.received, time.monotonic(), hello)
        except BreachError as error:
            raise FarShellError(self.name, f"its agent has lost count: {error}") from error
        self.greeting = greeting
        self.address = self._transport.address() or self.address or greeting.address
        self._pipes = pipes
        self._cut = self._loop.create_future()
        self._heard_s = time.monotonic()
        self._stood_still_s = 0.0
        pipes.carry(self._take, lambda: self._core.pull(time.monotonic()), self._end)
        self._tick_soon()
        if rest:
            self._take(rest)
        self._flush()

    def _take(self, data: bytes | memoryview) -> None:
        if self._cut.done():
            return
        self._heard_s = time.monotonic()
        core = self._core
        try:
            core.receive(data, self._heard_s)
        except BreachError as error:
            self._end(f"what came is not of our protocol: {error}", is_breach=True)
        for state in core.take_opened():
            stream = Stream(self, state)
            if self._on_open is None:
                core.close(state)
            else:
                self._on_open(stream)
        self._wake_touched()
        self._flush_soon()

    def _wake_touched(self) -> None:
        for state in self._core.take_touched():
            if state.owner is not None:
                state.owner._wake()

    def _flush_soon(self) -> None:
        if not self._is_flushing and self._pipes is not None:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if self._pipes is None:
            return
        self._pipes.flush()
        self._wake_touched()
        if self._core.owes_ack and self._ack_timer is None:
            self._ack_timer = self._loop.call_later(ACK_S, self._acknowledge)

    def _acknowledge(self) -> None:
        self._ack_timer = None
        if self._core.owes_ack:
            self._core.acknowledge()
            self._flush()

    def _tick_soon(self) -> None:
        self._due_s = _wall_s() + self._interval_s
        self._tick_timer = self._loop.call_later(self._interval_s, self._tick)

    def _tick(self) -> None:
        self._note_standstill()
        silent_s = time.monotonic() - self._heard_s
        if silent_s > self._alive_s:
            self._end(f"nothing was heard for {silent_s:.0f} s")
            return
        self._core.ping()
        self._transport.tidy()
        self._flush()
        self._tick_soon()

    def _note_standstill(self) -> None:
        """See whether it was this process that stood still (SIGSTOP, a laptop's sleep), and not the host."""
        late_s = _wall_s() - self._due_s
        if late_s > self._alive_s:
            self._stood_still_s = late_s
            self._heard_s = time.monotonic()  # what came meanwhile is read first
            self._due_s = _wall_s()

    def _end(self, reason: str, *, is_breach: bool = False) -> None:
        """The attachment is over."""
        if not self._cut.done():
            self._note_standstill()
        self._core.detach()
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        if is_breach and self._breach_at == self._core.received:
            reason = f"!{reason}"  # it came again, by another attachment
        if is_breach:
            self._breach_at = self._core.received
        if not self._cut.done():
            self._cut.set_result(reason)

    # All attachments

    async def _keep(self) -> None:
        """Attach again whenever the connection ends, until it is given up or closed."""
        try:
            while not self.lost.done():
                reason = await asyncio.shield(self._cut)
                cut_s = time.monotonic()
                assert self._pipes is not None
                pipes, self._pipes = self._pipes, None
                status = await pipes.close(wait_s=0.0 if reason else _LEAVE_S)
                reason = reason or self._transport.last_words() or f"it ended with status {status}"
                _log.debug("%s: attachment %d ended: %s", self.name, self._epoch, reason)
                if self._is_closing:
                    return
                if reason.startswith("!"):
                    self._give_up(reason[1:], pipes.words())
                    return
                await self._attach_again(reason, cut_s)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._give_up(f"internal error: {error!r}", "")
            raise

    async def _attach_again(self, reason: str, cut_s: float) -> None:
        # What was not heard before the cut counts: the host has not heard us for as long.
        deadline = Deadline(max(self._heard_s, cut_s - self._alive_s) + self._tolerate_s, self._tolerate_s)
        self._told(
            f"{self.name}: the connection was lost ({reason}); it is tried again for {deadline.remaining_s:.0f} s"
        )
        pause_s, attempts, told = 0.1, 0, False
        error: Exception | None = None
        while True:
            attempts += 1
            soon = Deadline.after(min(self._connect_s, max(1.0, deadline.remaining_s)))
            try:
                await self._attach(soon, first=False)
                break
            except AgentGoneError as gone:
                self._give_up(f"{reason}; {gone}" if str(gone) else self._why_gone(reason), "")
                return
            except RemoteRunnerError as found:
                error = found
                if "hosts.login" in found.next_step and not told:
                    told = True  # the user can do something about it meanwhile
                    self._told(str(found))
            if deadline.remaining_s < pause_s:
                self._give_up(
                    f"{reason}; in {time.monotonic() - cut_s:.0f} s and {attempts} attempts it did not come back",
                    str(error),
                )
                return
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        self._told(f"{self.name}: the connection is back after {time.monotonic() - cut_s:.1f} s")

    def _why_gone(self, reason: str) -> str:
        if self._stood_still_s > self._tolerate_s:
            return (
                f"this process was suspended for {self._stood_still_s:.0f} s, longer than tolerate_s "
                f"({self._tolerate_s:g} s): the host has ended what ran there"
            )
        return (
            f"{reason}; its agent is gone, and what ran there with it (it was ended, no memory was left for it, the "
            f"host started anew, or nothing was heard from here for tolerate_s, {self._tolerate_s:g} s)"
        )

    def _give_up(self, reason: str, said: str) -> None:
        if self.lost.done():
            return
        self._lost_reason, self._lost_said = reason, said
        self._core.detach()
        for timer in (self._tick_timer, self._ack_timer):
            if timer is not None:
                timer.cancel()
        self.lost.set_result(self._lost_error())
        for state in self._core.streams:
            if state.owner is not None:
                state.owner._wake(all_of_them=True)

    def _lost_error(self) -> HostLostError:
        return HostLostError(
            self.name,
            f"the connection to the host was lost: {self._lost_reason}",
            stderr=self._lost_said,
            next_step="the next use opens a new one; see also: fab clean",
        )

    def _check(self) -> None:
        if self.lost.done():
            raise self._lost_error()

    def _check_unless(self, is_ready: bool) -> None:
        if not is_ready:
            self._check()
