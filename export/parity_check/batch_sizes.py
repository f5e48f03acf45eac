"""What computes logits, and the batches that it is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = Callable[[NDArray[Any]], NDArray[Any]]
"""Images ``(n, 3, h, w)`` float32 in, logits ``(n, n_classes)`` out."""

BATCH = 4
"""Images a stage sees at once: parity runs beside the export, in bounded memory."""


def in_batches(run: Logits) -> Logits:
    """Feed a stage the batch sizes that matter: one, two, an odd one, then full ones."""

    def logits(images: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([run(images[start:stop]) for start, stop in _batches(len(images))])

    return logits


def within(run: Logits, least: int, most: int) -> Logits:
    """Feed a stage that takes ``least`` to ``most`` images at once: split, and pad with repeats."""

    def logits(images: NDArray[Any]) -> NDArray[Any]:
        found = []
        for start in range(0, len(images), most):
            part = images[start : start + most]
            padded = np.resize(part, (max(least, len(part)), *part.shape[1:]))
            found.append(run(padded)[: len(part)])
        return np.concatenate(found)

    return logits


def _batches(n: int) -> Iterator[tuple[int, int]]:
    start = 0
    for size in (1, 2, 3):
        if start < n:
            yield start, min(start + size, n)
        start += size
    for begin in range(start, n, BATCH):
        yield begin, min(begin + BATCH, n)
