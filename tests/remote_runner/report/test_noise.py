"""The statistics of the report: against published tables, and against simulated samples."""

from __future__ import annotations

import random

import pytest

from remote_runner.report.noise import (
    Estimate,
    Verdict,
    box,
    difference,
    median,
    median_of,
    of_repeats,
    quantile,
    student,
)


@pytest.mark.parametrize(
    ("freedom", "confidence", "t"),
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (5, 0.99, 4.032), (10, 0.95, 2.228), (30, 0.95, 2.042), (1000, 0.95, 1.960)],
)
def test_students_t_is_that_of_the_tables(freedom: int, confidence: float, t: float) -> None:
    assert student(confidence, freedom) == pytest.approx(t, abs=1e-3)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (10, 2), (20, 6), (50, 18), (100, 40)])
def test_a_medians_interval_is_that_of_the_order_statistics(count: int, rank: int) -> None:
    # The ranks of published tables for 95 % (e.g. of the sign test).
    values = [float(value) for value in range(1, count + 1)]
    assert median_of(values) == Estimate((count + 1) / 2, rank, count + 1 - rank)


def test_few_values_have_no_interval() -> None:
    assert median_of([1.0, 2.0, 3.0, 4.0, 5.0]) == Estimate(3.0)


@pytest.mark.parametrize("count", [8, 60, 500])
def test_the_interval_holds_the_median_of_what_was_drawn_from(count: int) -> None:
    chance = random.Random(7)
    held = 0
    for _ in range(300):
        found = median_of(sorted(chance.lognormvariate(0, 1) for _ in range(count)))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    assert held >= 300 * 0.92


def test_quantiles_lie_between_values() -> None:
    assert [quantile([1.0, 2.0, 4.0], fraction) for fraction in (0, 0.25, 0.5, 0.75, 1)] == [1, 1.5, 2, 3, 4]
    assert quantile([7.0], 0.9) == 7
    assert median([3.0, 1.0]) == 2
    assert box([5.0]).median == 5


def test_repeats_share_one_spread() -> None:
    # Two variants, three runs each, variance 1 in both: the interval is mean ± t(4) / sqrt(3).
    first, second = of_repeats([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    assert first.centre == 2
    assert first.high == pytest.approx(2 + 2.776 / 3**0.5, abs=1e-3)
    assert second.low == pytest.approx(12 - 2.776 / 3**0.5, abs=1e-3)
    single = of_repeats([[1.0, 2.0, 3.0], [9.0]])[1]
    assert single.low == pytest.approx(9 - 4.303, abs=1e-3)
    assert of_repeats([[1.0], [2.0]]) == [Estimate(1.0), Estimate(2.0)]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (Estimate(10, 9, 11), Estimate(10.5, 9.5, 11.5), Verdict.WITHIN),
        (Estimate(10, 9, 11), Estimate(14, 13, 15), Verdict.MORE),
        (Estimate(10, 9, 11), Estimate(6, 5, 7), Verdict.MORE),
        (Estimate(10, 10, 10), Estimate(10, 10, 10), Verdict.WITHIN),
        (Estimate(10, 10, 10), Estimate(11, 11, 11), Verdict.MORE),
        (Estimate(10), Estimate(99, 98, 100), Verdict.UNKNOWN),
    ],
)
def test_a_difference_is_noise_or_more(before: Estimate, after: Estimate, verdict: Verdict) -> None:
    assert difference(before, after).verdict is verdict


def test_equal_distributions_rarely_differ() -> None:
    chance = random.Random(3)
    wrong = 0
    for _ in range(300):
        first, second = (median_of(sorted(chance.lognormvariate(0, 1) for _ in range(40))) for _ in range(2))
        wrong += difference(first, second).verdict is Verdict.MORE
    assert wrong <= 300 * 0.08
