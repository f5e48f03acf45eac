"""Rounding the float64 sums of a merge once, whatever the format. The kernels do the same."""

from __future__ import annotations

import torch
from torch import Tensor


def round_once(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 numbers of any shape once.

    Torch converts to 16 bits through float32, which rounds twice. Cutting to 13 bits first, the
    last set if anything was cut off, makes float32 exact and keeps the second rounding right.
    """
    if dtype in (torch.float32, torch.float64):
        return values.to(dtype)
    bits, cut = values.view(torch.int64), 2**40 - 1
    return ((bits | ((bits & cut) + cut)) & ~cut).view(torch.float64).to(dtype)
