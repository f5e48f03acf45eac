"""The classification extension: the k best classes of each image as strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tensors import object_array


def class_strings(values: NDArray[np.float32], labels: Sequence[str], k: int) -> NDArray[Any]:
    """``value:index:label`` of the k best classes, the best first; of equals, the lower index.

    Args:
        values: ``(n, n_classes)``.
        labels: Class names.
        k: Most to give, at least 1.

    Returns:
        ``(n, min(k, n_classes))``, dtype object, each element bytes.
    """
    k = min(k, values.shape[1])
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    strings = [
        f"{row[index]:.6f}:{index}:{labels[index]}".encode()
        for row, best in zip(values, order, strict=True)
        for index in best
    ]
    return object_array(strings).reshape(order.shape)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities ``(n, n_classes)``; computed in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
