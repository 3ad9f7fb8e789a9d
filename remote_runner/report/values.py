"""A run's data as values. Times are seconds since the run's start, on this machine's clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from remote_runner.records.barriers import Signal, Wait
from testground.tags import tag_of


@dataclass(frozen=True)
class Span:
    """A step, or a stage of the application: from when to when, what came of it."""

    name: str
    start_s: float
    end_s: float
    detail: str = ""
    failed: bool = False


class MetricKey(NamedTuple):
    """One number of a metric: the file it is in, name (with tags), type, and measure."""

    file: str
    name: str
    type: str
    measure: str


@dataclass(frozen=True)
class Series:
    """What something was over time; as many times as values."""

    times_s: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Instance:
    """One instance; `usage` holds its samples by their measure."""

    group: str
    index: int
    host: str
    system: str
    outcome: str
    reason: str
    start_s: float
    end_s: float
    steps: tuple[Span, ...]
    stages: tuple[Span, ...] = ()
    metrics: Mapping[MetricKey, Series] = field(default_factory=dict)
    usage: Mapping[str, Series] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As everywhere: single[003]."""
        return tag_of(self.group, self.index)


@dataclass(frozen=True)
class Host:
    """A host: its facts as they were recorded, and its samples by measure."""

    name: str
    system: str
    truth: Mapping[str, Any]
    usage: Mapping[str, Series]


@dataclass(frozen=True)
class Link:
    """The way from one host to another at `address`: what was measured of it, or the `problem` it has."""

    source: str
    target: str
    address: str
    median_s: float | None
    p90_s: float | None
    bytes_per_s: float | None
    problem: str


@dataclass(frozen=True)
class Run:
    """A run; `lacking` has a sentence for each thing that its files do not tell."""

    id: str
    plan: str
    case: str
    directory: Path
    started_at: float
    duration_s: float
    outcome: str
    cancelled: str
    doubts: tuple[str, ...]
    groups: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any]
    instances: tuple[Instance, ...]
    hosts: tuple[Host, ...]
    signals: tuple[Signal, ...]
    waits: tuple[Wait, ...]
    links: tuple[Link, ...]
    lacking: tuple[str, ...]
