"""An agent's samples and states as values. Pure: each number is validated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from remote_runner.connection.verbs.facts import Clock, ClockExchange
from remote_runner.connection.verbs.validation import real, whole

# In the order of docs/protocol.md; counters begin anywhere and only grow.
HOST_KEYS = (
    *("cpu_s", "steal_s", "load", "available_bytes", "swap_used_bytes", "swapped_bytes"),
    *("received_bytes", "received_packets", "received_drops", "sent_bytes", "sent_packets", "sent_drops", "errors"),
    *("segments", "retransmits", "udp_drops", "throttled_s", "thermal_throttles", "pressure"),
)
INSTANCE_KEYS = ("cpu_s", "rss_bytes", "threads", "descriptors", "read_bytes", "written_bytes")
_LINE = '{"at": %.3f, "cpu_s": %.2f' + "".join(f', "{key}": %.0f' for key in INSTANCE_KEYS[1:]) + "}\n"
_MOST = 1e18


@dataclass(frozen=True)
class HostState:
    """A host at one moment (seconds since the epoch by this machine's clock), by `HOST_KEYS`, as far as it told."""

    at: float
    told: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_said(cls, at: float, said: object) -> HostState:
        values = said if isinstance(said, dict) else {}
        checked = ((key, real(values.get(key), 0, _MOST)) for key in HOST_KEYS)
        return cls(at, {key: _short(value) for key, value in checked if value is not None})

    def since(self, before: HostState, key: str) -> float | None:
        """How much a counter has grown; `None` where it is not known, or the host began anew."""
        now, then = self.told.get(key), before.told.get(key)
        return None if now is None or then is None or now < then else now - then

    def to_value(self) -> dict[str, Any]:
        return {"at": round(self.at, 3), **self.told}


@dataclass(frozen=True)
class Sample:
    """One sample of a host and of the instances there, by the host's own clock; `runs` are by `INSTANCE_KEYS`."""

    there_s: float
    host: object
    runs: Mapping[str, tuple[float, ...]]


def sample_in(line: bytes, wanted: Mapping[str, object]) -> Sample | None:
    """The sample in a line, with the wanted runs only; `None` for a line that is not a sample."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or (ns := whole(said.get("ns"), 1 << 63)) is None:
        return None
    runs = said.get("runs")
    found = {}
    for run_id in wanted:
        numbers = runs.get(run_id) if isinstance(runs, dict) else None
        # By their types here, since there may be thousands each second: `real` for each takes four times as long.
        if (
            isinstance(numbers, list)
            and len(numbers) == len(INSTANCE_KEYS)
            and all(type(number) in (int, float) and 0 <= number <= _MOST for number in numbers)
        ):
            found[run_id] = tuple(numbers)
    return Sample(ns / 1e9, said.get("host"), found)


def instance_line(at: float, numbers: Sequence[float]) -> bytes:
    """An instance's sample as a line of its file."""
    return (_LINE % (at, *numbers)).encode()


@dataclass(frozen=True)
class Trips:
    """Round trips to a host, each with a look at its clock."""

    looks: Sequence[ClockExchange] = ()

    @cached_property
    def clock(self) -> Clock | None:
        """The fastest counts: no answer was underway longer than it."""
        return min((look.clock for look in self.looks), key=lambda clock: clock.uncertainty_s, default=None)

    def to_value(self) -> dict[str, float]:
        """How many there were, and their percentiles in seconds."""
        return percentiles([look.answered_s - look.asked_s for look in self.looks])


def percentiles(took_s: Sequence[float]) -> dict[str, float]:
    """How many round trips there were, and their percentiles in seconds."""
    in_order = sorted(took_s)
    value: dict[str, float] = {"count": len(in_order)}
    for percent in (0, 25, 50, 75, 90, 100) if in_order else ():
        value[f"p{percent}_s"] = round(in_order[max(0, math.ceil(percent / 100 * len(in_order)) - 1)], 6)
    return value


def clock_value(clock: Clock | None) -> dict[str, float] | None:
    """How far a clock is ahead, and how sure that is, as it stands in files."""
    if clock is None:
        return None
    return {"offset_s": round(clock.offset_s, 6), "uncertainty_s": round(clock.uncertainty_s, 6)}


def _short(value: float) -> float:
    """Without what binary fractions add to a sum."""
    return int(value) if value.is_integer() else round(value, 4)
