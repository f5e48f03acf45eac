"""How far a measured share, or the difference of two, may be off by the choice of images."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A range of values, its ends included."""

    low: float
    high: float


def wilson_interval(n_correct: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share (J. Am. Stat. Assoc. 22, 1927, pages 209-212).

    Args:
        n_correct: Successes, 0 to ``n``.
        n: Trials, at least 1.
        confidence: Share of such intervals that hold the true value.
    """
    if not 0 <= n_correct <= n or n < 1:
        raise ValueError(f"n_correct must be 0 to n, and n at least 1, got {n_correct} of {n}")
    z2 = _z(confidence) ** 2
    share = n_correct / n
    centre = share + z2 / (2 * n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    # At the ends the formula gives 0 and 1 up to rounding.
    low = 0.0 if n_correct == 0 else (centre - half) / (1 + z2 / n)
    high = 1.0 if n_correct == n else (centre + half) / (1 + z2 / n)
    return Interval(low, high)


def paired_difference_interval(
    only_first: int, only_second: int, n: int, confidence: float = CONFIDENCE
) -> Interval:
    """Interval of the second's share less the first's, both of the same ``n`` trials.

    Wald's interval with half a trial added to each cell of the 2 x 2 table (Agresti and Min,
    Stat. Med. 24, 2005, pages 729-740), cut off at -1 and 1.

    Args:
        only_first: Trials in which the first alone succeeded.
        only_second: Trials in which the second alone succeeded.
        n: All trials, at least the sum of the two, and at least 1.
        confidence: Share of such intervals that hold the true value.
    """
    if min(only_first, only_second) < 0 or n < max(only_first + only_second, 1):
        raise ValueError(
            f"n must be at least 1 and {only_first} + {only_second}, which are counts, got {n}"
        )
    first, second, total = only_first + 0.5, only_second + 0.5, n + 2
    difference = (second - first) / total
    half = _z(confidence) * math.sqrt(first + second - (second - first) ** 2 / total) / total
    return Interval(max(difference - half, -1.0), min(difference + half, 1.0))


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
