"""What the trainer and the accuracies need of a split: whatever it holds, tensors and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor


class Split(Protocol):
    """One split of a task, ready to be batched: ``Pixels`` for images."""

    labels: Tensor
    """``(n,)`` int64, on the device that inputs come to."""

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """What the network takes for these examples, ``(n, ...)``."""
        ...

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of all examples in order, ``size`` at a time."""
        ...
