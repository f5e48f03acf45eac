"""The merge of one layer in one pass over memory, on the CPU: what a swap costs.

For a frozen layer ``y = w0 x + b0`` (``glora.forms`` has the names and shapes of the supports;
``*`` is elementwise; arXiv:2306.07967, section 3)::

    w = w0 + w0 * A + B          b = b0 + b0 * D + E + w0 @ C

Each weight is read once, folded in float64 registers and rounded once. What a plain tensor program
would write down in between (A, B and their sums, each as large as w0) never reaches memory.

One call is one thread's work, and other threads may merge at the same time: ``fused_merge_layers``
gives each thread whole layers. Numba's parallel loops would not do, as they must not be entered by
two threads at once nor be used on both sides of a fork, and servers do both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from ..glora.forms import LayerShape, Support
from ..glora.support_value import factors_of, value_of
from . import cpu_kernel
from .cpu_kernel import LANES, ROWS

Float64 = NDArray[np.float64]
Shape = tuple[int, ...]

N_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
"""Threads that ``fused_merge_layers`` uses: ``NUMBA_NUM_THREADS``, by default one per core."""

_CARRIERS = {"float32": np.float32, "float16": np.uint16, "bfloat16": np.int16}
_OF_C = ("C", "C_d", "C_u")
_INFINITY = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name  # NumPy puts it together anew each time


def fused_merge(
    w0: NDArray[np.float32],
    b0: NDArray[np.float32] | None,
    supports: Mapping[str, NDArray[Any]],
    *,
    out_w: NDArray[Any],
    out_b: NDArray[Any] | None,
    transposed: bool = False,
    exact: bool = True,
) -> bool:
    """Write the merged layer into ``out_w`` and ``out_b``.

    The result is the float64 merge rounded once to the dtype of the output; float64 sums may be
    formed in another order than in the formula. Several threads may merge at once.

    Without ``exact`` the weight's sums are formed in float32, twice as many in one step of the
    processor: what a swap needs on processors of few float64 lanes. With ``u = 2**-24``, the merge
    in float64 ``w``, and the ranks of A and B, each float32 weight is then off by at most::

        u * |w| + u * (rank_A + rank_B + 2) * (|w0| * sum(|A_d| * |A_u|) + sum(|B_d| * |B_u|))

    That is within two units of the rounded float64 merge wherever the terms of the change come to
    no more than a share ``1 / (rank_A + rank_B + 2)`` of the merged weight. Supports of float64 are
    rounded to float32 first; where a sum leaves float32 the result is not finite, and says so. The
    bias is exact in either case.

    Args:
        w0: Frozen weight ``(d_out, d_in)``, C-contiguous; may be a read-only map of a file. Not
            modified.
        b0: Frozen bias ``(d_out,)``, or None. Not modified.
        supports: The layer's tensors by name, of any real floating dtype; those absent count as
            none. Not modified.
        out_w: C-contiguous ``(d_out, d_in)``, or ``(d_in, d_out)`` if transposed, of float32,
            float16 or bfloat16 (of ``ml_dtypes``); shares no memory with w0. Wide rows that start
            on a cache line (as torch's do) are written fastest.
        out_b: ``(d_out,)`` of out_w's dtype; None where b0 is.
        transposed: Write the transpose of the merged weight.
        exact: Form the weight's sums in float64.

    Returns:
        Whether every number written is finite in the output's dtype. If it is not, the outputs
        hold what was computed, infinities and all, and the caller must not use them.

    Raises:
        ValueError: If shapes, dtypes or layouts are not as above, or a support is not one that this
            layer can have.
    """
    _require_arrays(w0, b0, supports, out_w, out_b)
    require_shapes(
        w0.shape,
        None if b0 is None else b0.shape,
        tuple((name, support.shape) for name, support in supports.items()),
        out_w.shape,
        None if out_b is None else out_b.shape,
        transposed,
    )
    with np.errstate(all="ignore"):  # the result says what NumPy would warn of
        shift, finite = _merge_weight(w0, supports, out_w, transposed, exact)
        if b0 is None or out_b is None:
            return finite
        bias = b0.astype(np.float64)
        if "D" in supports:
            bias += b0 * supports["D"].astype(np.float64)
        if "E" in supports:
            bias += supports["E"]
        if not supports.keys().isdisjoint(_OF_C):
            bias += shift
        return _round_into(bias, out_b) and finite


@dataclass(frozen=True, slots=True)
class MergeJob:
    """The arguments of one ``fused_merge``."""

    w0: NDArray[np.float32]
    b0: NDArray[np.float32] | None
    supports: Mapping[str, NDArray[Any]]
    out_w: NDArray[Any]
    out_b: NDArray[Any] | None
    transposed: bool = False
    exact: bool = True

    def run(self) -> bool:
        """Merge; whether every number written is finite."""
        return fused_merge(
            self.w0,
            self.b0,
            self.supports,
            out_w=self.out_w,
            out_b=self.out_b,
            transposed=self.transposed,
            exact=self.exact,
        )


def fused_merge_layers(jobs: Mapping[str, MergeJob]) -> list[str]:
    """Merge many layers, as many at a time as there are threads.

    Args:
        jobs: What to merge, by layer; outputs must not overlap.

    Returns:
        The layers whose outputs are not all finite, in the order of jobs.

    Raises:
        ValueError: If a job does not fit, with the name of its layer; the outputs of the others
            are then undefined.
    """
    with ThreadPoolExecutor(N_THREADS, "fused-merge") as pool:
        finite = pool.map(_run, jobs, jobs.values())
        return [layer for layer, good in zip(jobs, finite, strict=True) if not good]


def _run(layer: str, job: MergeJob) -> bool:
    try:
        return job.run()
    except ValueError as error:
        raise ValueError(f"{layer}: {error}") from error


def _merge_weight(
    w0: NDArray[np.float32],
    supports: Mapping[str, NDArray[Any]],
    out: NDArray[Any],
    transposed: bool,
    exact: bool,
) -> tuple[Float64, bool]:
    """Write the merged weight; return ``w0 @ C`` (undefined without C) and whether w is finite."""
    d_out, d_in = w0.shape
    frozen = _padded(w0, LANES, LANES).view()
    frozen.flags.writeable = False  # else Numba compiles once more for writeable arrays
    whole = frozen.shape == w0.shape
    target = out if whole else np.empty(frozen.shape[:: -1 if transposed else 1], out.dtype)
    shift = np.empty(len(frozen))
    dtype = np.float64 if exact else np.float32
    factors = (*_factors(supports, "A", d_out, d_in), *_factors(supports, "B", d_out, d_in))
    arguments = (
        frozen,
        target.view(_CARRIERS[_name(out.dtype)]),
        *(_padded(np.ascontiguousarray(factor, dtype), 0, LANES) for factor in factors),
        _padded(_input_shift(supports), 0, LANES),
        shift,
    )
    kernel = cpu_kernel.merge_rows_transposed if transposed else cpu_kernel.merge_rows
    peak = kernel(*arguments)
    if not whole:
        out[...] = target[: out.shape[0], : out.shape[1]]
    return shift[:d_out], bool(peak < _INFINITY[_name(out.dtype)])


def _padded(matrix: NDArray[Any], n_rows: int, n_columns: int) -> NDArray[Any]:
    """A matrix of at least this size, zeros beyond its bounds; itself if it is large enough."""
    rows, columns = matrix.shape
    if rows >= n_rows and columns >= n_columns:
        return matrix
    padded = np.zeros((max(rows, n_rows), max(columns, n_columns)), matrix.dtype)
    padded[:rows, :columns] = matrix
    return padded


def _factors(
    supports: Mapping[str, NDArray[Any]], support: Support, d_out: int, d_in: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A or B as ``down.T @ up``: ``down (rank, d_out)``, ``up (rank, d_in)``; rank 0 if absent."""
    found = factors_of(supports, support)
    if found is None:
        return np.empty((0, d_out)), np.empty((0, d_in))
    down, up = found
    if up is None:
        down, up = np.broadcast_to(down, (d_out, 1)), np.ones((1, d_in))
    return down.T, up


def _input_shift(supports: Mapping[str, NDArray[Any]]) -> Float64:
    """C as ``(1, d_in)``, or no row if absent."""
    wide = {name: supports[name].astype(np.float64) for name in _OF_C if name in supports}
    c = value_of(wide, "C")
    return np.empty((0, 1)) if c is None else np.ascontiguousarray(c.T)


def _round_into(values: Float64, out: NDArray[Any]) -> bool:
    """Round a vector into ``out``; whether all of it is finite there."""
    carrier = _CARRIERS[_name(out.dtype)]
    n_rows = -(-values.size // (ROWS * LANES)) * ROWS
    tiles = np.zeros((n_rows, LANES))
    tiles.reshape(-1)[: values.size] = values
    rounded = np.empty((n_rows, LANES), carrier)
    peak = cpu_kernel.round_tiles(tiles, rounded)
    out.view(carrier)[:] = rounded.reshape(-1)[: values.size]
    return bool(peak < _INFINITY[_name(out.dtype)])


def _require_arrays(
    w0: NDArray[Any],
    b0: NDArray[Any] | None,
    supports: Mapping[str, NDArray[Any]],
    out_w: NDArray[Any],
    out_b: NDArray[Any] | None,
) -> None:
    """Refuse dtypes and layouts that the kernels cannot read or write."""
    floats = ("float16", "bfloat16", "float32", "float64")
    for thing, array, dtypes in (
        ("w0", w0, ("float32",)),
        ("b0", b0, ("float32",)),
        ("out_w", out_w, tuple(_CARRIERS)),
        ("out_b", out_b, (_name(out_w.dtype),)),
        *((name, support, floats) for name, support in supports.items()),
    ):
        if array is not None and _name(array.dtype) not in dtypes:
            raise ValueError(f"{thing} must be of {' or '.join(dtypes)}, got {_name(array.dtype)}")
    for thing, array in (("w0", w0), ("out_w", out_w)):
        if not array.flags.c_contiguous:
            raise ValueError(f"{thing} must be C-contiguous, got strides {array.strides}")
    if not out_w.flags.writeable:
        raise ValueError("out_w must be writeable, got a read-only array")
    if np.may_share_memory(w0, out_w):
        raise ValueError(
            "out_w must not overlap w0, which later merges read again, got both in one"
        )


@functools.lru_cache(maxsize=4096)
def require_shapes(
    w0: Shape,
    b0: Shape | None,
    supports: tuple[tuple[str, Shape], ...],
    out_w: Shape,
    out_b: Shape | None,
    transposed: bool,
) -> None:
    """Refuse shapes that are not those of one layer, its supports and its outputs.

    Args:
        w0: ``(d_out, d_in)``.
        b0: ``(d_out,)``, or None.
        supports: Name and shape of each tensor.
        out_w: ``(d_out, d_in)``, or ``(d_in, d_out)`` if transposed.
        out_b: As b0.
        transposed: Whether the merge writes the transpose.

    Raises:
        ValueError: If one does not fit; names it.
    """
    if len(w0) != 2 or 0 in w0:
        raise ValueError(f"w0 must have shape (d_out, d_in), neither zero, got {w0}")
    d_out, d_in = w0
    layer = LayerShape(kind="linear", d_out=d_out, d_in=d_in, bias=b0 is not None)
    layer.require_fit(dict(supports))
    bias = None if b0 is None else (d_out,)
    for name, shape, rule in (
        ("b0", b0, bias),
        ("out_b", out_b, bias),
        ("out_w", out_w, w0[::-1] if transposed else w0),
    ):
        if shape != rule:
            duty = f"have shape {rule}" if rule else "be absent"
            place = f"where w0 is {w0}{'' if b0 else ' without b0'}"
            raise ValueError(f"{name} must {duty} {place}, got {shape or 'none'}")
