"""How certain a median is, and whether two differ by more than noise. Pure, and without assumptions where possible.

A median's interval within a run is that of the order statistics (binomial, so for any distribution). Between runs that
repeat each other it is Student's t on the runs' medians, with one spread for all variants (as in an analysis of
variance), so that a variant of a single run has an interval as well. The difference of two comes from their intervals
by MOVER (Zou and Donner 2008, Statistics in Medicine 27).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

CONFIDENCE = 0.95
# Above, the normal distribution stands for the binomial and for Student's.
_MANY = 200


class Verdict(StrEnum):
    """What can be said of a difference."""

    MORE = "more than noise"
    WITHIN = "within noise"
    UNKNOWN = "too few values to tell"


@dataclass(frozen=True)
class Estimate:
    """A centre, and the interval that holds the true one with the confidence asked for; none where values are few."""

    centre: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """Of one estimate from another: its size, its interval, and what that means."""

    size: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Box:
    """A distribution in short: how many, extremes, quartiles, and the median's interval (None for few values)."""

    count: int
    least: float
    low_quartile: float
    median: float
    high_quartile: float
    most: float
    median_low: float | None
    median_high: float | None


def median(values: Sequence[float]) -> float:
    """The middle of at least one value, or halfway between the two there (importing statistics takes 20 ms)."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _normal(tail: float) -> float:
    """What a value of the normal distribution is above with this probability."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(1 - tail)


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """Interpolated between sorted values; the least at 0 and the greatest at 1."""
    position = fraction * (len(ordered) - 1)
    below = int(position)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (position - below) * (ordered[below + 1] - ordered[below])


def box(values: Sequence[float]) -> Box:
    """The distribution of at least one value."""
    ordered = sorted(values)
    middle = median_of(ordered)
    return Box(
        len(ordered),
        ordered[0],
        quantile(ordered, 0.25),
        middle.centre,
        quantile(ordered, 0.75),
        ordered[-1],
        middle.low,
        middle.high,
    )


def median_of(ordered: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The median of sorted values, with the interval between two of them; six values are needed for 95 %."""
    count = len(ordered)
    rank = _rank(count, (1 - confidence) / 2)
    centre = median(ordered)
    return Estimate(centre) if rank < 1 else Estimate(centre, ordered[rank - 1], ordered[count - rank])


def _rank(count: int, tail: float) -> int:
    """The largest k for which fewer than k of `count` fair coins show heads with probability at most `tail`."""
    if count > _MANY:
        return math.floor(count / 2 - _normal(tail) * math.sqrt(count) / 2)
    below, rank = 0.0, 0
    while (below := below + math.comb(count, rank) / 2**count) <= tail:
        rank += 1
    return rank


def of_repeats(variants: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> list[Estimate]:
    """For each variant, from the value of each of its runs: their mean with its interval.

    The spread between runs is taken to be the same for all variants; where none was repeated there is no interval.
    """
    means = [sum(runs) / len(runs) for runs in variants]
    freedom = sum(len(runs) - 1 for runs in variants)
    if freedom < 1:
        return [Estimate(mean) for mean in means]
    squares = sum((run - mean) ** 2 for runs, mean in zip(variants, means, strict=True) for run in runs)
    spread = student(confidence, freedom) * math.sqrt(squares / freedom)
    return [
        Estimate(mean, mean - spread / math.sqrt(len(runs)), mean + spread / math.sqrt(len(runs)))
        for runs, mean in zip(variants, means, strict=True)
    ]


def difference(before: Estimate, after: Estimate) -> Difference:
    """How much greater `after` is, and whether that is more than the noise of both."""
    size = after.centre - before.centre
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return Difference(size, None, None, Verdict.UNKNOWN)
    low = size - math.hypot(after.centre - after.low, before.high - before.centre)
    high = size + math.hypot(after.high - after.centre, before.centre - before.low)
    more = low > 0 or high < 0
    return Difference(size, low, high, Verdict.MORE if more else Verdict.WITHIN)


def student(confidence: float, freedom: int) -> float:
    """The t that a value of Student's distribution stays within, either side of 0, with this probability."""
    if freedom > _MANY:
        return _normal((1 - confidence) / 2)
    # By the angle, whose tangent is t / sqrt(freedom): bounded, so that halving finds it.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for step in range(2 + odd, freedom - 1, 2):
        term *= (step - 1) / step * cosine**2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
