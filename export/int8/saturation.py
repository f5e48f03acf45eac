"""Whether the products of an int8 model can leave 16 bits, where some CPUs add them.

x86 CPUs with AVX2 or AVX-512 but without VNNI (Intel before Cascade Lake, AMD before Zen 4)
multiply unsigned activations by signed weights with ``vpmaddubsw``: two products are added in 16
bits, and a sum outside them becomes the nearest number that 16 bits hold. Nothing is said, and the
logits are wrong. CPUs with VNNI or AMX, and Arm's, add 8-bit products without loss. ONNX Runtime's
kernels (``QgemmU8S8KernelAvx2`` and the like in its MLAS) choose by the CPU they find.

Which two weights meet depends on how a kernel lays them out, so the bound here is over any two of
one output channel. With 7 bits, ``-64`` to ``64``, no two of them can leave 16 bits: 255 * 128 is
32,640.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Target = Literal["any", "vnni", "arm"]
"""CPUs that an int8 file gives right numbers on: any, those that VNNI or AMX let multiply all 8
bits exactly, or Arm's, which all do."""

ACTIVATION_MAX = 255
"""Largest activation: they are unsigned."""
SUM_MAX = 2**15 - 1
"""Largest sum of two products that 16 bits hold."""


def largest_sum(weights: Iterable[tuple[NDArray[np.int8], int]]) -> int:
    """Largest magnitude that two products of one output channel can add up to.

    Whatever the activations are, they are at most ``ACTIVATION_MAX``. At most ``SUM_MAX`` means
    that a model of these weights cannot saturate, on any CPU.

    Args:
        weights: Each as it is stored, with the axis of its output channels.
    """
    return max((ACTIVATION_MAX * _two_largest(array, axis) for array, axis in weights), default=0)


def _two_largest(weights: NDArray[np.int8], axis: int) -> int:
    """Largest sum of the magnitudes of two weights that share an index of this axis."""
    magnitudes = np.abs(np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).astype(int))
    return int(np.sort(magnitudes, axis=1)[:, -2:].sum(axis=1).max())
