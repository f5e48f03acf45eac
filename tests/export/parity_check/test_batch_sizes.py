from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.export.parity_check.batch_sizes import in_batches, within


@pytest.mark.parametrize(("least", "most"), [(1, 3), (4, 4), (5, 9)])
def test_batches_are_split_and_padded_to_what_a_stage_takes(least: int, most: int) -> None:
    seen = []

    def run(images: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(images))
        return images.reshape(len(images), -1)[:, :2] * 2

    images = np.arange(7 * 12, dtype=np.float32).reshape(7, 3, 2, 2)
    found = within(run, least, most)(images)
    np.testing.assert_array_equal(found, images.reshape(7, -1)[:, :2] * 2)
    assert all(least <= n <= most for n in seen)


def test_one_two_an_odd_and_full_batches_are_fed_in_order() -> None:
    seen = []

    def run(images: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(images))
        return images[:, 0, 0]

    images = np.arange(24, dtype=np.float32).reshape(24, 1, 1, 1)
    np.testing.assert_array_equal(in_batches(run)(images)[:, 0], np.arange(24))
    assert seen == [1, 2, 3, 4, 4, 4, 4, 2]
