"""What a run's sync service saw, read from its lines (sync_log.py): arrivals, waits, and barriers never met. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from testground.tags import as_tag


@dataclass(frozen=True)
class Signal:
    """A client of the sync service that signalled entry to a state, as the `seq`th one."""

    client: str
    state: str
    seq: int
    at_s: float


@dataclass(frozen=True)
class Wait:
    """A client of the sync service at a barrier, from when it asked until it was met (None: it never was)."""

    client: str
    state: str
    target: int
    start_s: float
    end_s: float | None


@dataclass(frozen=True)
class Unmet:
    """A barrier that was never met: how many came to its state, and the instances that did not, where that is known.

    Where as many came as were waited for, who waited had given up before.
    """

    state: str
    target: int
    came: int
    missing: tuple[str, ...]


def arrivals_and_waits(
    lines: Iterable[Mapping[str, Any]], hosts: Iterable[tuple[str, str]], start_at: float = 0.0
) -> tuple[tuple[Signal, ...], tuple[Wait, ...]]:
    """The lines as values, in seconds since `start_at`; what is malformed is left out.

    hosts: each instance (`single[003]`) with its host; a host's only instance is known by its client (`dex #1`).
    """
    by_host: dict[str, list[str]] = {}
    for name, host in hosts:
        by_host.setdefault(host, []).append(name)
    signals, waits = [], []
    for line in lines:
        at, state, client = _seconds(line.get("at")), line.get("state"), line.get("client")
        if at is None or not isinstance(state, str) or not isinstance(client, str):
            continue
        if len(only := by_host.get(client.rpartition(" #")[0], [])) == 1:
            client = only[0]
        client = as_tag(client) or client
        seq, target, met_at = (_seconds(line.get(key)) for key in ("seq", "target", "met_at"))
        if seq is not None:
            signals.append(Signal(client, state, int(seq), at - start_at))
        elif target is not None:
            waits.append(Wait(client, state, int(target), at - start_at, None if met_at is None else met_at - start_at))
    return tuple(signals), tuple(waits)


def unmet_barriers(signals: Iterable[Signal], waits: Iterable[Wait], groups: Mapping[str, str]) -> Iterator[Unmet]:
    """The barriers that nobody got past, in the order in which they were first waited at.

    groups: every instance with its group. Who is missing is told where the target is the number of all instances, or
    of those of the groups that came.
    """
    came: dict[str, list[str]] = {}
    for signal in signals:
        came.setdefault(signal.state, []).append(signal.client)
    waiting: dict[tuple[str, int], list[Wait]] = {}
    for wait in waits:
        waiting.setdefault((wait.state, wait.target), []).append(wait)
    for (state, target), members in waiting.items():
        arrived = came.get(state, [])
        if any(wait.end_s is not None for wait in members):
            continue
        theirs = {groups.get(client) for client in (*arrived, *(wait.client for wait in members))}
        expected = [name for name, group in groups.items() if group in theirs]
        if len(expected) != target:
            expected = list(groups)
        known = len(expected) == target and None not in theirs and len(set(arrived)) == len(arrived)
        missing = [name for name in expected if name not in arrived] if known else []
        yield Unmet(state, target, min(len(arrived), target), tuple(missing))


def _seconds(value: object) -> float | None:
    """A number of a line, whatever it is of."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None
