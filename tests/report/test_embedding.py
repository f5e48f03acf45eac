from __future__ import annotations

import numpy as np

from glora_deploy.report.embedding import share_of_like_neighbours, t_sne


def clusters(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of points far apart, in turn."""
    rng = np.random.default_rng(0)
    classes = np.arange(n) % 3
    centres = 40 * np.eye(3, 7)
    return (centres[classes] + rng.normal(size=(n, 7))).astype(np.float32), classes


def test_a_map_keeps_groups_together_and_is_the_same_at_every_call() -> None:
    features, classes = clusters()
    points = t_sne(features, seed=0)
    assert points.shape == (30, 2)
    assert share_of_like_neighbours(points.astype(np.float32), classes) == 1
    assert np.array_equal(t_sne(features, seed=0), points)


def test_equal_points_have_a_map_too() -> None:
    assert not t_sne(np.ones((12, 5), np.float32), seed=0).any()


def test_like_neighbours_are_counted_among_the_others() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(25, 4)).astype(np.float32)
    classes = rng.integers(0, 3, 25)
    n_alike = 0
    for i in range(25):
        distances = [float(((features[i] - other) ** 2).sum()) for other in features]
        distances[i] = float("inf")
        n_alike += classes[distances.index(min(distances))] == classes[i]
    assert share_of_like_neighbours(features, classes) == n_alike / 25
