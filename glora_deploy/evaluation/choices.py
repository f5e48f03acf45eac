"""What one can choose from when something is evaluated; imports nothing heavy."""

from __future__ import annotations

from typing import Literal, TypeAlias

Split: TypeAlias = Literal["test", "val", "train", "all"]
"""Of a data set; ``all`` is train, val and test together."""

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
"""Where a delta computes; ``auto`` takes CUDA where there is one."""
