"""Hosts for rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.ground import Ground, Way, slurm
from tests.delay import DelayProxy

RTT_S = 0.1


@contextmanager
def one(ground: Ground) -> Iterator[Sequence[Way]]:
    """One host on the same machine."""
    yield ground.ways()


@contextmanager
def two(ground: Ground) -> Iterator[Sequence[Way]]:
    """Two of them."""
    yield ground.ways(2)


@contextmanager
def five(ground: Ground) -> Iterator[Sequence[Way]]:
    """Five."""
    yield ground.ways(5)


@contextmanager
def fifty(ground: Ground) -> Iterator[Sequence[Way]]:
    """Fifty."""
    yield ground.ways(50)


@contextmanager
def slurm_fifty(ground: Ground) -> Iterator[Sequence[Way]]:
    """Fifty nodes of a Slurm."""
    with slurm(ground, 50) as way:
        yield [way]


@contextmanager
def far_away(ground: Ground) -> Iterator[Sequence[Way]]:
    """One host at a round trip of 100 ms."""
    (way,) = ground.ways()
    with DelayProxy(way.host.address, way.host.port, RTT_S) as proxy:
        yield [Way(way.host, way.host.through(proxy.port))]
