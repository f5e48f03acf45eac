"""The Triton kernel of the fused merge; the only module that imports Triton.

Each program merges some whole rows, so that it can also form their share of ``w0 @ C``. It reads
the supports as they are stored, in any floating dtype, so that a merge is one launch: preparing
float64 factors beforehand costs several times what the merge itself does.
"""

from __future__ import annotations

import triton
import triton.language as tl

NONE = tl.constexpr(0)
LORA = tl.constexpr(1)
VECTOR = tl.constexpr(2)
SCALAR = tl.constexpr(3)


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
def _add_support(
    tile: tl.tensor,
    down: tl.tensor,
    up: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    real_rows: tl.tensor,
    real_columns: tl.tensor,
    d_in: tl.tensor,
    rank: tl.tensor,
    FORM: tl.constexpr,
) -> tl.tensor:
    """A tile of float64 and on it the same tile of A or B, from the form it is stored in."""
    if FORM == LORA:
        for k in range(rank):
            of_row = tl.load(down + rows * rank + k, real_rows, 0.0).to(tl.float64)
            of_column = tl.load(up + k * d_in + columns, real_columns, 0.0).to(tl.float64)
            tile += of_row[:, None] * of_column[None, :]
    if FORM == VECTOR:
        tile += tl.load(down + rows, real_rows, 0.0).to(tl.float64)[:, None]
    if FORM == SCALAR:
        tile += tl.load(down).to(tl.float64)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def merge_rows(
    w0: tl.tensor,
    b0: tl.tensor,
    a: tl.tensor,
    a_up: tl.tensor,
    b: tl.tensor,
    b_up: tl.tensor,
    c: tl.tensor,
    c_up: tl.tensor,
    d: tl.tensor,
    e: tl.tensor,
    out_w: tl.tensor,
    out_b: tl.tensor,
    overflow: tl.tensor,
    d_out: tl.tensor,
    d_in: tl.tensor,
    rank_a: tl.tensor,
    rank_b: tl.tensor,
    rank_c: tl.tensor,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """``w0 + w0 * A + B`` and ``b0 + b0 * D + E + w0 @ C``, accumulated in float64.

    Args:
        w0: ``(d_out, d_in)`` float32.
        b0: ``(d_out,)`` float32, not read without HAS_BIAS.
        a: A: ``(d_out, rank_a)`` if lora, ``(d_out,)`` if vector, one number if scalar; any
            floating dtype, not read if none.
        a_up: ``(rank_a, d_in)``, read if A is lora.
        b: B, as a.
        b_up: As a_up.
        c: C: ``(d_in, rank_c)`` if lora, ``(d_in,)`` if vector.
        c_up: ``(rank_c,)``, read if C is lora.
        d: D: ``(d_out,)`` if vector, one number if scalar.
        e: E, as d.
        out_w: ``(d_out, d_in)``, or ``(d_in, d_out)`` if TRANSPOSED.
        out_b: ``(d_out,)``, not written without HAS_BIAS.
        overflow: ``(1,)`` int32, set to 1 if a number written is not finite.
        d_out: Rows of w0.
        d_in: Columns of w0.
        rank_a: Of A.
        rank_b: Of B.
        rank_c: Of C.
        A: Form of A: NONE, LORA, VECTOR or SCALAR; likewise the next four.
        B: Form of B.
        C: Form of C.
        D: Form of D.
        E: Form of E.
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
        factor = _add_support(
            factor, a, a_up, rows, columns, real_rows, real_columns, d_in, rank_a, A
        )
        merged = _add_support(
            frozen * factor, b, b_up, rows, columns, real_rows, real_columns, d_in, rank_b, B
        )
        if C == LORA:
            moved_by = tl.zeros((COLUMNS,), tl.float64)
            for k in range(rank_c):
                down = tl.load(c + columns * rank_c + k, real_columns, 0.0).to(tl.float64)
                moved_by += down * tl.load(c_up + k).to(tl.float64)
            shift += tl.sum(frozen * moved_by[None, :], 1)
        if C == VECTOR:
            moved_by = tl.load(c + columns, real_columns, 0.0).to(tl.float64)
            shift += tl.sum(frozen * moved_by[None, :], 1)
        rounded = _round(merged, out_w.dtype.element_ty)
        if TRANSPOSED:
            place = columns[None, :] * tl.cast(d_out, tl.int64) + rows[:, None]
        else:
            place = rows[:, None] * d_in + columns[None, :]
        tl.store(out_w + place, rounded, real)
        # Not a comparison with the largest number: NaN must be caught too. The mask keeps what a
        # scalar or vector B puts beyond the last row or column out of it.
        finite = (tl.abs(rounded.to(tl.float32)) < float("inf")) | (real == 0)
        highest = tl.maximum(highest, tl.max(tl.where(finite, 0.0, 1.0)))
    if HAS_BIAS:
        bias = tl.load(b0 + rows, real_rows, 0.0).to(tl.float64)
        moved = bias + shift
        if D == VECTOR:
            moved += bias * tl.load(d + rows, real_rows, 0.0).to(tl.float64)
        if D == SCALAR:
            moved += bias * tl.load(d).to(tl.float64)
        if E == VECTOR:
            moved += tl.load(e + rows, real_rows, 0.0).to(tl.float64)
        if E == SCALAR:
            moved += tl.load(e).to(tl.float64)
        rounded_bias = _round(moved, out_b.dtype.element_ty)
        tl.store(out_b + rows, rounded_bias, real_rows)
        finite_bias = (tl.abs(rounded_bias.to(tl.float32)) < float("inf")) | (real_rows == 0)
        highest = tl.maximum(highest, tl.max(tl.where(finite_bias, 0.0, 1.0)))
    if highest > 0:
        tl.store(overflow, 1)  # every program that stores, stores the same
