"""One host during one run: its state before and after, its samples, and the doubts that follow.

All of it happens beside the instances: nothing waits for it but the end of the last one there.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from remote_runner.cancellation import Cancellation
from remote_runner.connection.link import StreamClosed
from remote_runner.connection.verbs.facts import HostFacts
from remote_runner.connection.workers import FILES
from remote_runner.errors import ControllerError, HostError, RemoteRunnerError
from remote_runner.machine.files import safe_name, write_atomically
from remote_runner.outputs import SAMPLES_FILE
from remote_runner.sizes import listed
from remote_runner.truth.doubts import Observed, doubts
from remote_runner.truth.influx import Influx, Point
from remote_runner.truth.links import Links
from remote_runner.truth.values import INSTANCE_KEYS, HostState, Sample, Trips, clock_value, instance_line
from remote_runner.truth.watch import Watch

HOSTS_DIRECTORY = "remote-runner.hosts"
_FACTS = ("cores", "kernel", "memory", "system", "processor", "governor", "virtualization")
# Before they go to a file; a minute of one instance.
_HELD_LINES = 60
_END_S = 2.0
_MOST_HOSTS = 5
_CLOSING_S = 30.0  # for measuring the ways where no instance waits for it

Append = Callable[[Path, bytes], None]


@dataclass(frozen=True)
class RunOn:
    """What is observed: a host and a run; `directory` is the run's in the outputs (`None`: there is none).

    `umask` holds for what is made there (`None`: that of the process).
    """

    host: str
    run: str
    plan: str
    case: str
    directory: Path | None
    umask: int | None = field(default=None, compare=False)


class Observation:
    """For one event loop."""

    def __init__(self, run_on: RunOn, influx: Influx | None, links: Links | None) -> None:
        self.run_on = run_on
        self._links = links
        self._append: Append | None = None
        self._has_directory = False
        self._influx = influx
        self._watch: Watch | None = None
        self._taken: set[Seat] = set()
        self._seats: dict[str, Seat] = {}  # those whose application runs
        self._cpu_of_ended_s = 0.0
        self._most = 0
        self._shortest_s: float | None = None
        self._began = asyncio.Event()
        self._before: HostState | None = None
        self._after: HostState | None = None
        self._trips_before, self._trips_after = Trips(), Trips()
        self._facts: HostFacts | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is observed now."""
        return not self._taken and (self._ending is None or self._ending.done())

    def seat(self, watch: Watch, append: Append | None, outputs: Path, instance_id: str, group: str) -> Seat:
        """A place for an instance on the host; with the first one the host is looked at.

        append: adds to a file of this run, and does not block.
        """
        self._append = append
        if self._watch is not watch:
            self._watch = watch
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(watch))
        seat = Seat(self, watch, outputs, instance_id, group)
        self._taken.add(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        """Its instance is over."""
        self._taken.discard(seat)

    async def _look(self, watch: Watch) -> None:
        state = await watch.state()
        self._before = self._before or state
        if self.run_on.directory is not None:
            with suppress(OSError):  # else the outputs of each instance tell of a disk that takes nothing
                await FILES.run(self._make_directory)
                self._has_directory = True
        # Nothing of this is in the way of an application's start, and what is pushed before that is not in its way.
        await self._began.wait()
        facts = asyncio.ensure_future(self._ask_facts(watch)) if watch.is_far else None
        self._trips_before = await watch.trips()
        await (facts or self._ask_facts(watch))

    async def _ask_facts(self, watch: Watch) -> None:
        with suppress(HostError, StreamClosed, RemoteRunnerError):
            self._facts = HostFacts.from_said(watch.agent.greeting, await watch.agent.facts(*_FACTS))

    def _make_directory(self) -> None:
        directory, umask = self._path("").parent, self.run_on.umask
        with suppress(FileExistsError):
            directory.mkdir(parents=True)
            if umask is not None:
                directory.chmod(0o777 & ~umask)

    def add(self, seat: Seat, address: str) -> None:
        """An application has been started, on a host that others reach at `address`."""
        if self._links is not None:
            self._links.join(self.run_on.host, seat.watch.agent, address)
        seat.watch.hear.add(self._hear)
        self._seats[seat.instance_id] = seat
        seat.watch.runs[seat.instance_id] = None
        self._most = max(self._most, len(self._seats))
        self._began.set()

    def remove(self, seat: Seat, cpu_s: float, took_s: float | None) -> None:
        """It has ended."""
        if self._seats.pop(seat.instance_id, None) is None:
            return
        seat.watch.runs.pop(seat.instance_id, None)
        self._cpu_of_ended_s += cpu_s
        if took_s is not None:
            self._shortest_s = took_s if self._shortest_s is None else min(self._shortest_s, took_s)
        if not any(other.watch is seat.watch for other in self._seats.values()):
            seat.watch.hear.discard(self._hear)
        if not self._seats:
            self._ending = asyncio.create_task(self._end(seat, self._ending))

    async def _end(self, seat: Seat, earlier: asyncio.Task[None] | None) -> None:
        # An application may end before the look ahead of it has; on a far host neither waits for the other's answers.
        before = [asyncio.wait({task}, timeout=_END_S) for task in (earlier, self._looking) if task is not None]
        await asyncio.gather(self._look_behind(seat), *before)
        if self._has_directory:
            # json's own `indent` is not written in C, and the last instance there waits for this.
            lines = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in self.to_value().items())
            text = f"{{\n{lines}\n}}\n".encode()
            path = self._path(".json")
            with suppress(ControllerError):
                await FILES.run(lambda: write_atomically(path, text, mode=0o644, umask=self.run_on.umask))
        if self._links is not None and not self._seats:
            await self._links.leave(self.run_on.host)
        if self._influx is not None:
            await self._influx.flush()

    async def _look_behind(self, seat: Seat) -> None:
        state = asyncio.ensure_future(seat.watch.state())
        await seat.is_home.wait()  # what comes over the line until then would stand in the way of the round trips
        self._trips_after = await seat.watch.trips()
        self._after = await state or self._after

    def _path(self, ending: str) -> Path:
        assert self.run_on.directory is not None
        return self.run_on.directory / HOSTS_DIRECTORY / f"{safe_name(self.run_on.host)}{ending}"

    @property
    def _links_s(self) -> float:
        return 0.0 if self._links is None else self._links.most_s

    @property
    def _offset_s(self) -> float:
        clock = self._trips_after.clock or self._trips_before.clock
        return 0.0 if clock is None else clock.offset_s

    def _hear(self, sample: Sample) -> None:
        at = sample.there_s - self._offset_s
        state = HostState.from_said(at, sample.host)
        self._after = state
        self.point("remote-runner.host", {}, state.told, at)
        if self._has_directory:
            self.write(self._path(".samples.jsonl"), json.dumps(state.to_value()).encode() + b"\n")
        for instance_id, numbers in sample.runs.items():
            if (seat := self._seats.get(instance_id)) is not None:
                seat.hear(at, numbers)

    def point(self, measurement: str, tags: dict[str, str], fields: Any, at: float) -> None:
        """Into InfluxDB, where the run has one."""
        if self._influx is not None and not self._influx.has_failed:
            run = {"plan": self.run_on.plan, "case": self.run_on.case, "run": self.run_on.run, "host": self.run_on.host}
            self._influx.add(Point(measurement, {**run, **tags}, dict(fields), at))

    def write(self, path: Path, data: bytes) -> None:
        """Append to a file of the run."""
        if self._append is not None:
            self._append(path, data)

    @property
    def observed(self) -> Observed:
        """What is known until now."""
        clocks = [clock for clock in (self._trips_before.clock, self._trips_after.clock) if clock is not None]
        return Observed(
            host=self.run_on.host,
            cores=None if self._facts is None else self._facts.cores,
            cores_online=None if self._facts is None else self._facts.cores_online,
            before=self._before,
            after=self._after,
            clock=min(clocks, key=lambda clock: clock.uncertainty_s, default=None),
            instances=self._most,
            cpu_s=self._cpu_of_ended_s + sum(seat.cpu_s for seat in self._seats.values()),
            shortest_s=self._shortest_s,
        )

    def to_value(self) -> dict[str, Any]:
        """What stands in the host's file (docs/ground-truth.md)."""
        observed = self.observed
        return {
            "host": self.run_on.host,
            "run": self.run_on.run,
            "facts": None if self._facts is None else facts_value(self._facts),
            "clock": clock_value(observed.clock),
            "before": _moment(self._before, self._trips_before),
            "after": _moment(self._after, self._trips_after),
            "instances": observed.instances,
            "instances_cpu_s": round(observed.cpu_s, 3),
            "shortest_s": None if observed.shortest_s is None else round(observed.shortest_s, 6),
            "doubts": list(doubts(observed)),
        }

    async def settle(self, stop: Cancellation) -> tuple[str, ...]:
        """The doubts, once what goes on has ended: for the last instance there, that is the look behind the run.

        With `stop`, the ways to other hosts are not measured any more.
        """
        if self._ending is not None and not self._seats:
            with nullcontext() if self._links is None else stop.telling(self._links.stop):
                await asyncio.wait({self._ending}, timeout=4 * _END_S + self._links_s)
        return doubts(self.observed)

    async def close(self) -> None:
        """Let go of it; what is being written is waited for."""
        if self._ending is not None:
            await asyncio.wait({self._ending}, timeout=_END_S + min(self._links_s, _CLOSING_S))
            if self._links is not None and not self._ending.done():
                self._links.stop()
                await asyncio.wait({self._ending}, timeout=_END_S)
        self.abandon()

    def abandon(self) -> None:
        """Let go of it at once."""
        for task in (self._ending, self._looking):
            if task is not None:
                task.cancel()


class Seat:
    """One instance's part; a context manager."""

    def __init__(self, observation: Observation, watch: Watch, outputs: Path, instance_id: str, group: str) -> None:
        self.watch = watch
        self.instance_id = instance_id
        self.cpu_s = 0.0
        self._observation = observation
        self._path = outputs / SAMPLES_FILE
        self._tags = {"group_id": group, "instance": outputs.name}
        self._lines: list[bytes] = []
        self._began_s: float | None = None
        self.is_home = asyncio.Event()
        """Its outputs have come, or will not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(None)
        self.is_home.set()
        self._observation.leave(self)

    def begin(self, address: str) -> None:
        """The application runs; others reach its host at `address`."""
        self._began_s = time.monotonic()
        self._observation.add(self, address)

    def hear(self, at: float, numbers: tuple[float, ...]) -> None:
        """One sample of it."""
        self.cpu_s = numbers[0]
        self._lines.append(instance_line(at, numbers))
        fields = zip(INSTANCE_KEYS, numbers, strict=True)
        self._observation.point("remote-runner.instance", self._tags, fields, at)
        if len(self._lines) >= _HELD_LINES:
            self._flush()

    def end(self, cpu_s: float | None) -> None:
        """It has ended, and has used so much, where its host said so."""
        if self._began_s is not None:
            took_s = time.monotonic() - self._began_s if cpu_s is not None else None
            self._began_s = None
            self._flush()
            self._observation.remove(self, max(self.cpu_s, cpu_s or 0.0), took_s)

    def _flush(self) -> None:
        if self._lines:
            self._observation.write(self._path, b"".join(self._lines))
            self._lines = []

    async def settle(self, stop: Cancellation) -> tuple[str, ...]:
        """What there is to doubt of the host; waits for the look behind the run where this was the last instance."""
        return await self._observation.settle(stop)

    @property
    def clock_value(self) -> dict[str, float] | None:
        """How far the host's clock is ahead, for a record."""
        return clock_value(self._observation.observed.clock)


def facts_value(facts: HostFacts) -> dict[str, Any]:
    """What a run's numbers depend on."""
    return {
        "hostname": facts.hostname,
        "system": str(facts.system),
        "system_name": facts.system_name,
        "kernel": facts.kernel,
        "processor": facts.processor,
        "cores": facts.cores,
        "cores_online": facts.cores_online,
        "governor": facts.governor,
        "memory_bytes": facts.memory_bytes,
        "swap_bytes": facts.swap_bytes,
        "virtualization": facts.virtualization,
    }


def _moment(state: HostState | None, trips: Trips) -> dict[str, Any] | None:
    if state is None:
        return None
    return {**state.to_value(), "clock": clock_value(trips.clock), "round_trips": trips.to_value()}


def run_doubts(run_directory: Path) -> tuple[str, ...]:
    """The doubts of a whole run, by what stands in its outputs; one of each file that cannot be read.

    What differs in nothing but the host and numbers is one doubt, in the first host's words.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for path in sorted((run_directory / HOSTS_DIRECTORY).glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            host, told = str(value["host"]), [doubt for doubt in value["doubts"] if isinstance(doubt, str)]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            host, told = "", [f"{path.stem}: what was seen of it is not known, for {path} cannot be read"]
        for doubt in told:
            same = re.sub(r"[\d.]+", "…", doubt.replace(host, "…")) if host else doubt
            found.setdefault(same, (doubt, []))[1].append(host)
    return tuple(
        doubt if len(hosts) == 1 else f"{doubt}; likewise {listed(hosts[1:], _MOST_HOSTS)}"
        for doubt, hosts in found.values()
    )
