"""The network links between a run's hosts, measured by their agents after the run (`ground_truth: {links: true}`)."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote_runner.connection.agent import Agent
from remote_runner.connection.link import StreamClosed
from remote_runner.connection.verbs.validation import real, whole, words
from remote_runner.connection.workers import FILES
from remote_runner.errors import ControllerError, RemoteRunnerError
from remote_runner.machine.files import write_atomically
from remote_runner.truth.values import percentiles

LINKS_FILE = "remote-runner.links.json"
THROUGHPUT_S = 1.0
# A way that leads nowhere is given up by the agent after 5 s.
PAIR_S = 12.0
MOST_S = 120.0
"""For all ways; those that are left out then are told of."""
_MOST_TRIPS = 1000
LEFT_OUT = "left out: "
"""What the problem of a way begins with that was not measured."""


@dataclass
class Links:
    """Those of one run; they are measured once no application of it runs any more, one after the other.

    If applications begin again after that, the ways are measured again once those have ended.
    """

    directory: Path
    umask: int | None
    _hosts: dict[str, tuple[Agent, str]] = field(default_factory=dict)
    _running: set[str] = field(default_factory=set)
    _time: asyncio.Timeout | None = None
    _is_stopped: bool = False

    @property
    def most_s(self) -> float:
        """How long measuring them takes at most."""
        return min(MOST_S, PAIR_S * len(self._hosts) * (len(self._hosts) - 1))

    def join(self, host: str, agent: Agent, address: str) -> None:
        """Applications run on the host."""
        self._hosts[host] = (agent, address)
        self._running.add(host)
        self._halt()  # applications have the way to themselves

    def stop(self) -> None:
        """The run was stopped: what is not measured yet is left out."""
        self._is_stopped = True
        self._halt()

    def _halt(self) -> None:
        if self._time is not None:
            self._time.reschedule(0.0)

    async def leave(self, host: str) -> None:
        """They have ended there; with the last host's the ways are measured."""
        self._running.discard(host)
        if self._running or len(self._hosts) < 2:
            return
        found = await self._measure_all()
        if self._running:
            return
        text = json.dumps(found, indent=1).encode() + b"\n"
        with suppress(ControllerError):  # the outputs of each instance tell of a disk that takes nothing
            await FILES.run(lambda: write_atomically(self.directory / LINKS_FILE, text, mode=0o644, umask=self.umask))

    async def _measure_all(self) -> list[dict[str, Any]]:
        pairs = list(itertools.permutations(sorted(self._hosts), 2))
        found: list[dict[str, Any]] = []
        with suppress(TimeoutError):
            try:
                async with asyncio.timeout(0.0 if self._is_stopped else MOST_S) as self._time:
                    for one, other in pairs:
                        found.append(await self._measure(one, other))
            finally:
                self._time = None
        why = "the run was stopped" if self._is_stopped else f"measuring all ways took longer than {MOST_S:g} s"
        return found + [self._value(one, other, LEFT_OUT + why) for one, other in pairs[len(found) :]]

    def _value(self, one: str, other: str, problem: str = "") -> dict[str, Any]:
        return {"from": one, "to": other, "address": self._hosts[other][1], "problem": problem}

    async def _measure(self, one: str, other: str) -> dict[str, Any]:
        value = self._value(one, other)
        try:
            return value | await _way(self._hosts[one][0], self._hosts[other][0], value["address"])
        except (RemoteRunnerError, StreamClosed) as error:
            return value | {"problem": str(error).partition("\n")[0]}


async def _way(one: Agent, other: Agent, address: str) -> dict[str, Any]:
    async with other.asked(f"listening on {other.name}", {"verb": "meet"}, within_s=PAIR_S) as meeting:
        met = (await meeting.receive()).head
        head = {
            "verb": "reach",
            "host": address,
            "port": whole(met.get("port"), 65535),
            "token": words(met.get("token")),
            "seconds": THROUGHPUT_S,
        }
        async with one.asked(f"reaching {address}", head, within_s=PAIR_S) as stream:
            said = (await stream.receive()).head
    told = said.get("round_trips_s")
    took_s = [real(trip) for trip in told[:_MOST_TRIPS]] if isinstance(told, list) else []
    size_bytes, spent_s = whole(said.get("bytes")), real(said.get("seconds"))
    return {
        "round_trips": percentiles([trip for trip in took_s if trip is not None]),
        "bytes_per_s": round(size_bytes / spent_s) if size_bytes is not None and spent_s else None,
    }
