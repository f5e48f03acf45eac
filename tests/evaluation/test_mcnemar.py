"""McNemar's test against SciPy's binomial test."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.evaluation.mcnemar import mcnemar

stats = pytest.importorskip("scipy.stats", reason="the reference is SciPy")


def answers_with(
    both: int, first: int, second: int, neither: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who is right on which image, this many of each kind, in a seeded order."""
    counts = (both, first, second, neither)
    rows = np.repeat(np.array([(1, 1), (1, 0), (0, 1), (0, 0)], bool), counts, axis=0)
    rows = np.random.default_rng(0).permutation(rows)
    return rows[:, 0], rows[:, 1]


@pytest.mark.parametrize(
    ("first", "second"),
    [(0, 1), (1, 0), (1, 1), (0, 5), (6, 0), (3, 8), (7, 7), (40, 21), (700, 640), (3000, 3001)],
)
def test_the_p_value_is_that_of_the_exact_binomial_test(first: int, second: int) -> None:
    found = mcnemar(*answers_with(11, first, second, 4))
    assert (found.only_first, found.only_second) == (first, second)
    assert found.n_discordant == first + second
    expected = stats.binomtest(first, first + second, 0.5).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert found.difference == pytest.approx((second - first) / (15 + first + second))
    low, high = found.interval
    assert low < found.difference < high


def test_many_discordant_images_are_no_problem_for_floats() -> None:
    found = mcnemar(*answers_with(0, 900, 2500, 0))
    assert found.p_value == pytest.approx(stats.binomtest(900, 3400, 0.5).pvalue, rel=1e-9)
    assert mcnemar(*answers_with(0, 0, 5000, 0)).p_value == 0  # 2 ** -4999 is no float


def test_one_against_itself_differs_in_nothing() -> None:
    answers, _ = answers_with(30, 9, 0, 2)
    found = mcnemar(answers, answers)
    assert (found.n_discordant, found.p_value, found.difference) == (0, 1.0, 0.0)
    assert found.interval.low < 0 < found.interval.high


def test_the_other_way_round_only_the_signs_change() -> None:
    first, second = answers_with(20, 9, 4, 5)
    one, other = mcnemar(first, second), mcnemar(second, first)
    assert one.p_value == other.p_value
    assert one.difference == -other.difference
    assert one.interval == pytest.approx((-other.interval.high, -other.interval.low))


@pytest.mark.parametrize(("n_first", "n_second"), [(0, 0), (3, 4)])
def test_answers_to_other_images_are_refused(n_first: int, n_second: int) -> None:
    with pytest.raises(ValueError, match="must be of the same"):
        mcnemar(np.ones(n_first, bool), np.ones(n_second, bool))
