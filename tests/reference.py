"""The formulas of arXiv:2306.07967, section 3, written out slowly in float64.

Shares no code with the package, so that a mistake made there is not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Supports = Mapping[str, NDArray[Any]]


def reference_support(supports: Supports, name: str, shape: tuple[int, ...]) -> Float64:
    """One support written out in full, ``shape``; all zeros if it is absent."""
    full = np.zeros(shape)
    if f"{name}_d" in supports:
        down = supports[f"{name}_d"].astype(np.float64)  # (rows, rank)
        up = supports[f"{name}_u"].astype(np.float64)  # (rank, columns)
        full += np.einsum("ir,rj->ij", down, up)
    elif name in supports:
        full += supports[name].astype(np.float64)  # vector and scalar broadcast
    return full


FORMATS = {"float32": (24, -149, 128), "float16": (11, -24, 16), "bfloat16": (8, -133, 128)}
"""Bits of the significand, and the exponents of the least number and of the first too large."""


def reference_round(values: Float64, dtype: str) -> Float64:
    """Values of a narrower format nearest to float64 values, ties to even, as float64."""
    bits, least, too_large = FORMATS[dtype]
    _, exponents = np.frexp(values)
    unit = np.ldexp(1.0, np.maximum(exponents - bits, least))
    rounded = np.rint(values / unit) * unit  # both exact: unit is a power of two
    return np.where(np.abs(rounded) < 2.0**too_large, rounded, np.copysign(np.inf, values))


def reference_merge(
    w0: NDArray[Any], b0: NDArray[Any] | None, supports: Supports
) -> tuple[Float64, Float64 | None]:
    """The merged layer ``w (d_out, d_in)``, ``b (d_out,)``; b is None where the layer has no bias.

    ``w = w0 + w0 * A + B`` and ``b = b0 + b0 * D + E + w0 @ C``, where ``*`` is elementwise.
    """
    d_out, d_in = w0.shape
    frozen = w0.astype(np.float64)
    A = reference_support(supports, "A", (d_out, d_in))
    B = reference_support(supports, "B", (d_out, d_in))
    w = frozen + frozen * A + B
    if b0 is None:
        return w, None
    C = reference_support(supports, "C", (d_in, 1))
    D = reference_support(supports, "D", (d_out,))
    E = reference_support(supports, "E", (d_out,))
    b = b0.astype(np.float64)
    return w, b + b * D + E + np.einsum("ij,jk->i", frozen, C)
