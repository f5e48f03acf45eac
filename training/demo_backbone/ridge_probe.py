"""How much frozen features already tell about a task: ridge regression on one-hot labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PENALTIES = tuple(10.0**exponent for exponent in range(-3, 5))
"""Offered to the validation split."""


def ridge_accuracy(
    features: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    labels: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
) -> float:
    """Test accuracy of a linear classifier on fixed features.

    Args:
        features: Of the train, val and test images, ``(n, d)`` each.
        labels: Of the same images, ``(n,)`` each.

    Returns:
        Share of the test images classified rightly, with the penalty that did best on val (the
        smallest of equals).
    """
    train, val, test = (part.astype(np.float64) for part in features)
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, val, test = ((part - mean) / std for part in (train, val, test))
    targets = np.eye(labels[0].max() + 1)[labels[0]]
    centre = targets.mean(axis=0)
    gram, moments = train.T @ train, train.T @ (targets - centre)
    best_val, best_test = -1.0, 0.0
    for penalty in PENALTIES:
        weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), moments)
        scores = [part @ weights + centre for part in (val, test)]
        on_val, on_test = (
            float(np.mean(score.argmax(axis=1) == label))
            for score, label in zip(scores, labels[1:], strict=True)
        )
        if on_val > best_val:
            best_val, best_test = on_val, on_test
    return best_test
