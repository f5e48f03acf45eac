"""McNemar's test: are two classifiers that answered the same images equally often right?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import Interval, paired_difference_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """What the images tell that one of two classifiers alone got right."""

    n_images: int
    only_first: int
    """Images that the first alone got right."""
    only_second: int
    """Images that the second alone got right."""
    p_value: float
    """Two-sided and exact: how probable a split at least as uneven is if neither is better."""
    difference: float
    """Accuracy of the second less that of the first, -1 to 1."""
    interval: Interval
    """Of the difference, at 95%; as ``paired_difference_interval``."""

    @property
    def n_discordant(self) -> int:
        """Images that exactly one of the two got right."""
        return self.only_first + self.only_second

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "n_images": self.n_images,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "p_value": self.p_value,
            "difference": self.difference,
            "interval": list(self.interval),
        }


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Compare two classifiers by which of the same images they got right.

    The test is the exact binomial one for every number of images: with no difference, each
    discordant image is one or the other's with probability 1/2 (McNemar, Psychometrika 12, 1947,
    pages 153-157, there by an approximation).

    Args:
        first: Whether the first got each image right, ``(n,)``.
        second: The same of the second, in the same order, ``(n,)``.

    Raises:
        ValueError: If the two are not of the same images, or there is none.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"first and second must be of the same (n,) images, n at least 1, got {first.shape} "
            f"and {second.shape}"
        )
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(second & ~first))
    n = len(first)
    return McNemar(
        n_images=n,
        only_first=only_first,
        only_second=only_second,
        p_value=_two_sided(min(only_first, only_second), only_first + only_second),
        difference=(only_second - only_first) / n,
        interval=paired_difference_interval(only_first, only_second, n),
    )


def _two_sided(fewer: int, n: int) -> float:
    """Probability that a fair coin thrown ``n`` times shows a side at most ``fewer`` times.

    In whole numbers, as the binomials of thousands of discordant images leave the range of floats.
    """
    ways, total = 1, 1
    for k in range(1, fewer + 1):
        ways = ways * (n - k + 1) // k
        total += ways
    # Where both sides occur equally often, the middle is counted twice.
    return min(float(2 * total / 2**n), 1.0)
