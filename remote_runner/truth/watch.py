"""The client of the agent's verb `watch`: reads the host's clock and state, and receives samples."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from remote_runner.connection.agent import Agent
from remote_runner.connection.link import Stream, StreamClosed
from remote_runner.connection.verbs.facts import ClockExchange, clock_of
from remote_runner.connection.verbs.validation import nonsense
from remote_runner.errors import HostError, HostLostError
from remote_runner.truth.values import HostState, Sample, Trips, sample_in

EVERY_S = 1.0
TRIPS = 20
_LANE = 0
_LONGEST_LINE = 4 << 20
# On a line with a longer round trip they do not wait for each other's answers, but go one behind the other. What is
# known of it at first is the look at the host, which takes some milliseconds itself.
_NEAR_S = 0.02
_IN_TURN_S = 0.05
_APART_S = 0.001
_ANSWER_S = 5.0
# A trip takes 0.3 ms of CPU on both sides together, and 20 of them more than all else of a short instance.
_FRESH_S = 1.0


class Watch:
    """One for each connection; it costs nothing while nothing runs there."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.runs: dict[str, object] = {}
        """The instances whose samples somebody wants."""
        self.hear: set[Callable[[Sample], None]] = set()
        self._quickest_s = math.inf
        self._asked: deque[asyncio.Future[tuple[dict[str, Any], float]]] = deque()
        self._trips = Trips()
        self._fresh_until_s = 0.0
        self._stream: asyncio.Future[Stream] | None = None
        self._readers: list[asyncio.Task[None]] = []

    async def state(self) -> HostState | None:
        """The host as it is now, by this machine's clock; `None` where it does not say."""
        asked_at = time.time()
        answer = await self._ask("state")
        return None if answer is None else HostState.from_said(asked_at, answer[0].get("state"))

    async def trips(self) -> Trips:
        """`TRIPS` round trips, each with a look at the host's clock: in all they take little more than one.

        Those of the last second, where there are some.
        """
        if time.monotonic() < self._fresh_until_s:
            return self._trips
        looks: list[ClockExchange | None] = []
        until_s = time.monotonic() + _IN_TURN_S
        while len(looks) < TRIPS and not self.is_far and time.monotonic() < until_s:
            looks.append(await self._look())
        async with asyncio.TaskGroup() as group:
            going = []
            for _ in range(TRIPS - len(looks)):
                going.append(group.create_task(self._look()))
                await asyncio.sleep(_APART_S)
        looks += [look.result() for look in going]
        self._trips = Trips([look for look in looks if look is not None])
        if len(self._trips.looks) == TRIPS:
            self._fresh_until_s = time.monotonic() + _FRESH_S
        return self._trips

    @property
    def is_far(self) -> bool:
        """Whether waiting for one answer after the other takes long, as far as that is known."""
        return self._quickest_s > _NEAR_S

    async def _look(self) -> ClockExchange | None:
        asked_s, began_s = time.time(), time.perf_counter()
        answer = await self._ask("clock")
        if answer is None or (there_s := clock_of(answer[0])) is None:
            return None
        return ClockExchange(asked_s, there_s, asked_s + answer[1] - began_s)

    async def _ask(self, what: str) -> tuple[dict[str, Any], float] | None:
        """The answer, and when it came (`perf_counter`)."""
        with suppress(HostError, StreamClosed, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                stream = await self._open()
                answer: asyncio.Future[tuple[dict[str, Any], float]] = asyncio.get_running_loop().create_future()
                self._asked.append(answer)
                asked_s = time.perf_counter()
                await stream.send({what: True})
                found = await answer
                self._quickest_s = min(self._quickest_s, found[1] - asked_s)
                return found
        return None

    async def _open(self) -> Stream:
        if self._stream is None:
            self._stream = asyncio.get_running_loop().create_future()
            self._stream.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                stream = await self.agent.watch(EVERY_S)
            except BaseException as error:
                self._stream.set_exception(HostLostError(self.agent.name, "it cannot be watched"))
                if not isinstance(error, HostError):
                    raise
            else:
                self._readers = [asyncio.create_task(self._answers(stream)), asyncio.create_task(self._lines(stream))]
                self._stream.set_result(stream)
        return await asyncio.shield(self._stream)

    async def _answers(self, stream: Stream) -> None:
        try:
            while True:
                head = (await stream.receive()).head
                came_s = time.perf_counter()
                if not self._asked:
                    raise nonsense(self.agent.name, head)
                answer = self._asked.popleft()
                if not answer.done():
                    answer.set_result((head, came_s))
        except (StreamClosed, HostError):
            for answer in self._asked:
                if not answer.done():
                    answer.set_exception(HostLostError(self.agent.name, "it is not watched any more"))
            await stream.close()

    async def _lines(self, stream: Stream) -> None:
        begun = b""
        began_s, taken = time.monotonic(), 0
        with suppress(StreamClosed, HostError):
            while data := await stream.read(_LANE):
                *lines, begun = (begun + data).split(b"\n")
                if len(begun) > _LONGEST_LINE:
                    break
                for line in lines if self.hear else ():
                    # After a cut many come at once; more than two a second in all come from no agent of ours.
                    if taken > 10 + 2 * (time.monotonic() - began_s) / EVERY_S:
                        return
                    if (sample := sample_in(line, self.runs)) is not None:
                        taken += 1
                        for hear in tuple(self.hear):
                            hear(sample)

    async def close(self) -> None:
        """Let go of it."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
