"""The compiled part of the fused merge: Numba kernels written in terms of register tiles.

A *tile* is a block of ``ROWS x LANES`` float64 numbers that stays in vector registers. Left to
itself the compiler reloads and checks too much to keep up with memory, so the few operations that
the merge needs are given here as intrinsics, and the kernels read like the formula. They know
nothing of layers: ``fused_merge`` checks and prepares what they get.

Everything compiled lives in this one file, because Numba's on-disk cache notices changes only in
the file of the function it compiled. The cache lies in ``__pycache__`` beside this file, or, where
that is read-only, in the user's cache folder (``NUMBA_CACHE_DIR`` overrides both). Where nothing
can be written each process compiles again, which takes a few seconds per output format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import llvmlite.ir as ir  # type: ignore[import-untyped]
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, models, register_model

# Numba's own types say less than these.
_intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic
_cgutils: Any = cgutils
_cpu_features: Callable[[], str] = get_host_cpu_features

# A tile must leave registers free: AVX-512 has 32 of 8 doubles, others hold 64 doubles or less.
ROWS, LANES = (8, 16) if "+avx512f" in _cpu_features() else (4, 8)
BLOCK = 32
"""Rows merged together for a transposed result: two cache lines of float32."""

_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_ROW = ir.VectorType(_DOUBLE, LANES)
_PEAK = ir.VectorType(_I32, LANES)
_CONTRACT = ("contract",)  # allows a fused multiply-add, nothing else


class _TileType(types.Type):
    def __init__(self) -> None:
        super().__init__(f"Tile({ROWS}x{LANES})")


class _PeakType(types.Type):
    """The largest magnitude written so far, by lane, as the bits of the output format."""

    def __init__(self) -> None:
        super().__init__(f"Peak({LANES})")


_tile, _peak = _TileType(), _PeakType()


@register_model(_TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, ir.ArrayType(_ROW, ROWS))  # type: ignore[no-untyped-call]


@register_model(_PeakType)
class _PeakModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _PEAK)  # type: ignore[no-untyped-call]


def _to_tile(builder: Any, rows: Sequence[Any]) -> Any:
    tile = ir.Constant(ir.ArrayType(_ROW, ROWS), ir.Undefined)
    for q, row in enumerate(rows):
        tile = builder.insert_value(tile, row, q)
    return tile


def _rows(builder: Any, tile: Any) -> list[Any]:
    return [builder.extract_value(tile, q) for q in range(ROWS)]


def _plus(builder: Any, index: Any, offset: int) -> Any:
    return builder.add(index, ir.Constant(index.type, offset))


def _full(vector: Any, value: float) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _splat(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(first, undefined, _full(_PEAK, 0))


def _multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return builder.fadd(builder.fmul(x, y, flags=_CONTRACT), z, flags=_CONTRACT)


def _largest(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", x, y), x, y)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any) -> Any:
    struct = context.make_array(array_type)(context, builder, array)
    return _cgutils.get_item_pointer(context, builder, array_type, struct, [row, column])


def _load_vector(
    context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any
) -> Any:
    """LANES neighbours of one row, as float64."""
    vector = ir.VectorType(context.get_value_type(array_type.dtype), LANES)
    pointer = _pointer(context, builder, array_type, array, row, column)
    loaded = builder.load(
        builder.bitcast(pointer, vector.as_pointer()), align=array_type.dtype.bitwidth // 8
    )
    return loaded if array_type.dtype == types.float64 else builder.fpext(loaded, _ROW)


@_intrinsic
def _constant(typing: Any, value: Any) -> Any:
    """A tile of one number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _to_tile(builder, [_splat(builder, args[0])] * ROWS)

    return _tile(types.float64), codegen


@_intrinsic
def _load(typing: Any, array: Any, row: Any, column: Any) -> Any:
    """The tile whose first number is ``array[row, column]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, i, j = args
        rows = [
            _load_vector(context, builder, signature.args[0], values, _plus(builder, i, q), j)
            for q in range(ROWS)
        ]
        return _to_tile(builder, rows)

    return _tile(array, types.intp, types.intp), codegen


@_intrinsic
def _add_product(typing: Any, tile: Any, x: Any, y: Any) -> Any:
    """``tile + x * y``, elementwise."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        z, x, y = (_rows(builder, arg) for arg in args)
        return _to_tile(
            builder, [_multiply_add(builder, *xyz) for xyz in zip(x, y, z, strict=True)]
        )

    return _tile(_tile, _tile, _tile), codegen


@_intrinsic
def _add_outer(typing: Any, tile: Any, down: Any, up: Any, k: Any, row: Any, column: Any) -> Any:
    """``tile`` plus one term of a low-rank product: ``down[k, row + q] * up[k, column + l]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tile, down, up, k, i, j = args
        factors = _load_vector(context, builder, signature.args[2], up, k, j)
        rows = []
        for q, row in enumerate(_rows(builder, tile)):
            index = _plus(builder, i, q)
            factor = builder.load(_pointer(context, builder, signature.args[1], down, k, index))
            rows.append(_multiply_add(builder, _splat(builder, factor), factors, row))
        return _to_tile(builder, rows)

    return _tile(_tile, down, up, types.intp, types.intp, types.intp), codegen


def _lanes(builder: Any, vector: Any, lanes: Sequence[int], other: Any = None) -> Any:
    """The named lanes of a vector, or of two laid end to end."""
    other = ir.Constant(vector.type, ir.Undefined) if other is None else other
    return builder.shuffle_vector(
        vector, other, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))
    )


def _narrow_bits(builder: Any, x: Any, precision: int) -> Any:
    """Bits of float64 numbers in a 16-bit format, rounded once to nearest even.

    Adding ``2**52`` units in the last place of the result makes the float64 adder do the rounding,
    for subnormals too; going through float32 would round twice.

    Args:
        builder: Of the function being compiled.
        x: Vector of float64.
        precision: Stored bits of the significand: 10 for binary16, 7 for bfloat16.
    """
    bias = 2 ** (14 - precision) - 1
    infinity = (2 * bias + 1) << precision
    wide = ir.VectorType(_I64, x.type.count)
    bits = builder.bitcast(x, wide)
    magnitude = builder.bitcast(builder.and_(bits, _full(wide, 2**63 - 1)), x.type)
    # Below the smallest normal number the unit in the last place no longer shrinks.
    smallest = _full(wide, (1024 - bias) << 52)
    exponent = _largest(builder, builder.and_(bits, _full(wide, 0x7FF << 52)), smallest)
    shift = builder.add(exponent, _full(wide, (52 - precision) << 52))
    rounded = builder.fadd(magnitude, builder.bitcast(shift, x.type))
    significand = builder.sub(builder.bitcast(rounded, wide), shift)
    steps = builder.lshr(builder.sub(exponent, smallest), _full(wide, 52 - precision))
    narrow = builder.add(significand, steps)
    # Midway between the largest number and the one that would follow it.
    limit = _full(x.type, (2 - 2.0 ** -(precision + 1)) * 2.0**bias)
    fits = builder.fcmp_ordered("<", magnitude, limit)
    narrow = builder.select(fits, narrow, _full(wide, infinity))
    quiet_nan = _full(wide, infinity | 1 << (precision - 1))
    narrow = builder.select(builder.fcmp_unordered("uno", x, x), quiet_nan, narrow)
    sign = builder.and_(builder.lshr(bits, _full(wide, 48)), _full(wide, 0x8000))
    return builder.trunc(builder.or_(narrow, sign), ir.VectorType(_I16, x.type.count))


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of ``ROWS`` vectors, each a vector of ROWS numbers.

    Interleaving row q with row q + ROWS / 2 turns ROWS x ROWS numbers by one bit of the index.
    """
    columns = []
    for start in range(0, LANES, ROWS):
        square = [_lanes(builder, row, range(start, start + ROWS)) for row in rows]
        for _ in range(ROWS.bit_length() - 1):
            square = [
                _lanes(
                    builder,
                    square[q],
                    [lane for low in range(ROWS // 2) for lane in (low + high, low + high + ROWS)],
                    square[q + ROWS // 2],
                )
                for q in range(ROWS // 2)
                for high in (0, ROWS // 2)
            ]
        columns += square
    return columns


_PRECISION = {types.uint16: 10, types.int16: 7}
"""Numba has no 16-bit floats: binary16 travels as uint16 and bfloat16 as int16."""


def _rounding_store(transposed: bool) -> Callable[..., Any]:
    """An intrinsic that rounds a tile to an array's format and writes it there, upright or turned.

    It returns the new peak.
    """

    @_intrinsic
    def store(typing: Any, array: Any, row: Any, column: Any, tile: Any, peak: Any) -> Any:
        bits = array.dtype.bitwidth
        integers = ir.VectorType(ir.IntType(bits), LANES)

        def rounded(builder: Any, row: Any) -> Any:
            if array.dtype == types.float32:
                return builder.fptrunc(row, ir.VectorType(_FLOAT, LANES))
            return _narrow_bits(builder, row, _PRECISION[array.dtype])

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, i, j, tile, peak = args
            rows = [rounded(builder, row) for row in _rows(builder, tile)]
            highest = _full(integers, 0)
            for row in rows:
                sign_free = _full(integers, 2 ** (bits - 1) - 1)
                magnitude = builder.and_(builder.bitcast(row, integers), sign_free)
                highest = _largest(builder, magnitude, highest)
            for q, row in enumerate(_transposed(builder, rows) if transposed else rows):
                pointer = _pointer(context, builder, array, out, _plus(builder, i, q), j)
                vector = row.type.as_pointer()
                builder.store(row, builder.bitcast(pointer, vector), align=bits // 8)
            return _largest(builder, highest if bits == 32 else builder.zext(highest, _PEAK), peak)

        return _peak(array, types.intp, types.intp, _tile, _peak), codegen

    return store


_store = _rounding_store(transposed=False)
_store_transposed = _rounding_store(transposed=True)


@_intrinsic
def _no_peak(typing: Any) -> Any:
    """The peak before anything is written."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _full(_PEAK, 0)

    return _peak(), codegen


@_intrinsic
def _highest(typing: Any, peak: Any) -> Any:
    """The peak over all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        highest = _I32(0)
        for lane in range(LANES):
            highest = _largest(builder, builder.extract_element(args[0], _I32(lane)), highest)
        return highest

    return types.uint32(_peak), codegen


def _prefetch_hint(write: bool) -> Callable[..., Any]:
    @_intrinsic
    def prefetch(typing: Any, array: Any, row: Any, column: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, i, j = args
            byte = ir.IntType(8).as_pointer()
            function = _cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32]),
                "llvm.prefetch.p0",
            )
            for q in range(ROWS):
                pointer = _pointer(
                    context, builder, signature.args[0], out, _plus(builder, i, q), j
                )
                keep, data = _I32(3), _I32(1)
                builder.call(
                    function, [builder.bitcast(pointer, byte), _I32(int(write)), keep, data]
                )
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp), codegen

    return prefetch


_prefetch = _prefetch_hint(write=False)
_prefetch_for_writing = _prefetch_hint(write=True)


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile on first call, release the interpreter lock, and remember on disk where possible."""
    compiled: Any = njit(nogil=True, **options)(function)
    with contextlib.suppress(RuntimeError):  # nowhere to write
        compiled.enable_caching()
    return cast("Callable[..., Any]", compiled)


@njit(forceinline=True)
def _merge_tile(
    w: Any, i: int, j: int, a_down: Any, a_up: Any, b_down: Any, b_up: Any, row: int, column: int
) -> Any:
    """The merged weights at ``(row, column)``; the frozen ones stand at ``w[i, j]``."""
    tile = _constant(1.0)
    for k in range(a_down.shape[0]):
        tile = _add_outer(tile, a_down, a_up, k, row, column)
    tile = _add_product(_constant(-0.0), _load(w, i, j), tile)  # x + -0.0 is x, also for -0.0
    for k in range(b_down.shape[0]):
        tile = _add_outer(tile, b_down, b_up, k, row, column)
    return tile


@njit(forceinline=True)
def _cut(w0: Any, row: int, column: int, edge: Any) -> None:
    """Copy what lies inside w0 of the tile at ``(row, column)``, and zeros for the rest."""
    d_out, d_in = w0.shape
    for q in range(ROWS):
        for lane in range(LANES):
            inside = row + q < d_out and column + lane < d_in
            edge[q, lane] = w0[row + q, column + lane] if inside else 0.0


@njit(forceinline=True)
def _paste(out: Any, row: int, column: int, edge: Any) -> None:
    """Copy what fits of ``edge`` to ``out[row:, column:]``."""
    for q in range(min(edge.shape[0], out.shape[0] - row)):
        for lane in range(min(edge.shape[1], out.shape[1] - column)):
            out[row + q, column + lane] = edge[q, lane]


@njit(fastmath={"contract", "reassoc"})
def _dot(w0: Any, row: int, c: Any) -> float:
    total = 0.0
    for j in range(w0.shape[1]):
        total += np.float64(w0[row, j]) * c[j]
    return total


def _merge_rows(
    w0: Any,
    out: Any,
    a_down: Any,
    a_up: Any,
    b_down: Any,
    b_up: Any,
    c: Any,
    shift: Any,
    start: int,
    stop: int,
) -> Any:
    """Write ``w0 * (1 + a_down.T @ a_up) + b_down.T @ b_up`` for rows start to stop.

    Args:
        w0: ``(d_out, d_in)`` float32.
        out: ``(d_out, d_in)`` float32, uint16 (binary16) or int16 (bfloat16).
        a_down: ``(rank, n)`` float64, ``n`` at least d_out rounded up to ROWS; so is b_down.
        a_up: ``(rank, n)`` float64, ``n`` at least d_in rounded up to LANES; so is b_up.
        b_down: See a_down.
        b_up: See a_up.
        c: ``(d_in,)`` float64, or of length 0.
        shift: ``(d_out,)`` float64, gets ``w0 @ c`` unless c has length 0.
        start: First row, a multiple of ROWS.
        stop: End of the rows.

    Returns:
        The bits, without sign, of the number of largest magnitude written.
    """
    d_out, d_in = w0.shape
    edge_in = np.empty((ROWS, LANES), w0.dtype)
    edge_out = np.empty((ROWS, LANES), out.dtype)
    peak = _no_peak()
    for i in range(start, stop, ROWS):
        following = min(i + ROWS, d_out - ROWS)
        for j in range(0, d_in, LANES):
            if i + ROWS <= d_out and j + LANES <= d_in:
                _prefetch(w0, following, j)
                _prefetch_for_writing(out, following, j)
                tile = _merge_tile(w0, i, j, a_down, a_up, b_down, b_up, i, j)
                peak = _store(out, i, j, tile, peak)
            else:
                _cut(w0, i, j, edge_in)
                tile = _merge_tile(edge_in, 0, 0, a_down, a_up, b_down, b_up, i, j)
                peak = _store(edge_out, 0, 0, tile, peak)
                _paste(out, i, j, edge_out)
        if c.size:
            for row in range(i, min(i + ROWS, d_out)):
                shift[row] = _dot(w0, row, c)
    return _highest(peak)


def _merge_rows_transposed(
    w0: Any,
    out: Any,
    a_down: Any,
    a_up: Any,
    b_down: Any,
    b_up: Any,
    c: Any,
    shift: Any,
    start: int,
    stop: int,
) -> Any:
    """As ``_merge_rows``, with ``out (d_in, d_out)``; start is a multiple of BLOCK.

    A block of rows is finished before the next column of tiles, so that cache lines of the result
    are written whole.
    """
    d_out, d_in = w0.shape
    edge_in = np.empty((ROWS, LANES), w0.dtype)
    edge_out = np.empty((LANES, ROWS), out.dtype)
    peak = _no_peak()
    for block in range(start, stop, BLOCK):
        for j in range(0, d_in, LANES):
            for i in range(block, min(block + BLOCK, stop), ROWS):
                if i + ROWS <= d_out and j + LANES <= d_in:
                    _prefetch(w0, i, min(j + 4 * LANES, d_in - LANES))
                    tile = _merge_tile(w0, i, j, a_down, a_up, b_down, b_up, i, j)
                    peak = _store_transposed(out, j, i, tile, peak)
                else:
                    _cut(w0, i, j, edge_in)
                    tile = _merge_tile(edge_in, 0, 0, a_down, a_up, b_down, b_up, i, j)
                    peak = _store_transposed(edge_out, 0, 0, tile, peak)
                    _paste(out, j, i, edge_out)
        if c.size:
            for row in range(block, min(block + BLOCK, stop)):
                shift[row] = _dot(w0, row, c)
    return _highest(peak)


def _round_tiles(values: Any, out: Any) -> Any:
    """Round ``values (n, LANES)`` float64 to ``out (n, LANES)``, n a multiple of ROWS.

    Returns:
        As ``_merge_rows``.
    """
    peak = _no_peak()
    for i in range(0, values.shape[0], ROWS):
        peak = _store(out, i, 0, _load(values, i, 0), peak)
    return _highest(peak)


merge_rows = _compiled(_merge_rows)
merge_rows_transposed = _compiled(_merge_rows_transposed)
round_tiles = _compiled(_round_tiles)
