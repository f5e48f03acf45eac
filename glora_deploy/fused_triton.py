"""The Triton kernel of the fused merge; the only module that imports Triton.

Each program merges some whole rows, so that it can also form their share of ``w0 @ C``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _round(values: tl.tensor, dtype: tl.dtype) -> tl.tensor:
    """Round float64 to ``dtype`` once.

    The way to 16 bits leads through float32. Cutting to 13 bits first, the last set if anything
    was cut off, makes that step exact, so that the second is the only rounding.
    """
    if dtype == tl.float32:
        return values.to(tl.float32)
    bits = values.to(tl.int64, bitcast=True)
    cut = (1 << 40) - 1
    odd = (bits | ((bits & cut) + cut)) & ~cut
    return odd.to(tl.float64, bitcast=True).to(tl.float32).to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def merge_rows(
    w0: tl.tensor,
    a_down: tl.tensor,
    a_up: tl.tensor,
    b_down: tl.tensor,
    b_up: tl.tensor,
    c: tl.tensor,
    bias: tl.tensor,
    out_w: tl.tensor,
    out_b: tl.tensor,
    overflow: tl.tensor,
    d_out: tl.tensor,
    d_in: tl.tensor,
    rank_a: tl.tensor,
    rank_b: tl.tensor,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """``w0 * (1 + a_down @ a_up) + b_down @ b_up`` and ``bias + w0 @ c``, accumulated in float64.

    Args:
        w0: ``(d_out, d_in)`` float32.
        a_down: ``(d_out, rank_a)`` float64; b_down likewise.
        a_up: ``(rank_a, d_in)`` float64; b_up likewise.
        b_down: See a_down.
        b_up: See a_up.
        c: ``(d_in,)`` float64, not read without HAS_C.
        bias: ``(d_out,)`` float64, not read without HAS_BIAS.
        out_w: ``(d_out, d_in)``, or ``(d_in, d_out)`` if TRANSPOSED.
        out_b: ``(d_out,)``, not written without HAS_BIAS.
        overflow: ``(1,)`` int32, set to 1 if a number written is not finite.
        d_out: Rows of w0.
        d_in: Columns of w0.
        rank_a: Terms of A.
        rank_b: Terms of B.
        HAS_C: Whether there is a C.
        HAS_BIAS: Whether there is a bias.
        TRANSPOSED: Whether to write the transpose.
        ROWS: Rows of one program.
        COLUMNS: Columns it holds at a time.
    """
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real_rows = rows < d_out
    shift = tl.zeros((ROWS,), tl.float64)
    highest = 0.0
    for start in range(0, d_in, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        real_columns = columns < d_in
        real = real_rows[:, None] & real_columns[None, :]
        frozen = tl.load(w0 + rows[:, None] * d_in + columns[None, :], real, 0.0).to(tl.float64)
        factor = tl.full((ROWS, COLUMNS), 1.0, tl.float64)
        for k in range(rank_a):
            down = tl.load(a_down + rows * rank_a + k, real_rows, 0.0)
            up = tl.load(a_up + k * d_in + columns, real_columns, 0.0)
            factor += down[:, None] * up[None, :]
        merged = frozen * factor
        for k in range(rank_b):
            down = tl.load(b_down + rows * rank_b + k, real_rows, 0.0)
            up = tl.load(b_up + k * d_in + columns, real_columns, 0.0)
            merged += down[:, None] * up[None, :]
        if HAS_C:
            shift += tl.sum(frozen * tl.load(c + columns, real_columns, 0.0)[None, :], 1)
        rounded = _round(merged, out_w.dtype.element_ty)
        if TRANSPOSED:
            place = columns[None, :] * tl.cast(d_out, tl.int64) + rows[:, None]
        else:
            place = rows[:, None] * d_in + columns[None, :]
        tl.store(out_w + place, rounded, real)
        # Not a comparison with the largest number: NaN must be caught too.
        finite = tl.abs(rounded.to(tl.float32)) < float("inf")
        highest = tl.maximum(highest, tl.max(tl.where(finite, 0.0, 1.0)))
    if HAS_BIAS:
        moved = tl.load(bias + rows, real_rows, 0.0) + shift
        rounded_bias = _round(moved, out_b.dtype.element_ty)
        tl.store(out_b + rows, rounded_bias, real_rows)
        finite_bias = tl.abs(rounded_bias.to(tl.float32)) < float("inf")
        highest = tl.maximum(highest, tl.max(tl.where(finite_bias, 0.0, 1.0)))
    if highest > 0:
        tl.store(overflow, 1)  # every program that stores, stores the same
