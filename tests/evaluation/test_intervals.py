"""Intervals against SciPy, and by how often they hold the true value."""

from __future__ import annotations

import math

import pytest

from glora_deploy.evaluation.intervals import paired_difference_interval, wilson_interval

stats = pytest.importorskip("scipy.stats", reason="the reference is SciPy")


@pytest.mark.parametrize(
    ("n_correct", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (39, 40), (7, 21), (9000, 10000)]
)
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_wilson_is_that_of_scipy(n_correct: int, n: int, confidence: float) -> None:
    expected = stats.binomtest(n_correct, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(n_correct, n, confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= n_correct / n <= found.high <= 1


@pytest.mark.parametrize(("n_correct", "n"), [(0, 0), (-1, 4), (5, 4)])
def test_what_is_no_share_is_refused(n_correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="n_correct must be 0 to n"):
        wilson_interval(n_correct, n)


@pytest.mark.parametrize(
    ("p_first", "p_second"), [(0.1, 0.1), (0.05, 0.25), (0.02, 0.02), (0.01, 0.08), (0.4, 0.1)]
)
def test_the_paired_interval_holds_the_difference_about_as_often_as_it_says(
    p_first: float, p_second: float
) -> None:
    n, truth, rest = 50, p_second - p_first, 1 - p_first - p_second
    held = 0.0
    for first in range(n + 1):
        for second in range(n + 1 - first):
            low, high = paired_difference_interval(first, second, n)
            if low <= truth <= high:
                log_ways = math.lgamma(n + 1) - sum(
                    math.lgamma(k + 1) for k in (first, second, n - first - second)
                )
                held += math.exp(log_ways) * (
                    p_first**first * p_second**second * rest ** (n - first - second)
                )
    assert 0.94 < held <= 0.9995  # without the added halves 0.90 at (0.01, 0.08)


def test_the_paired_interval_stays_between_minus_one_and_one() -> None:
    assert paired_difference_interval(0, 3, 3).high == 1
    assert paired_difference_interval(1, 0, 1).low == -1


@pytest.mark.parametrize(("first", "second", "n"), [(0, 0, 0), (2, 2, 3), (-1, 0, 3)])
def test_what_are_no_counts_is_refused(first: int, second: int, n: int) -> None:
    with pytest.raises(ValueError, match="n must be at least 1 and"):
        paired_difference_interval(first, second, n)
