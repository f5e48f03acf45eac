"""The precisions of an export, by name and as dtypes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np

Precision = Literal["fp32", "fp16", "bf16"]

PRECISIONS: Mapping[Precision, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
"""dtype of the float tensors of an export in each precision."""


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether its values are fractions; NumPy takes bfloat16 for a kind of its own."""
    return dtype.kind == "f" or dtype == PRECISIONS["bf16"]
