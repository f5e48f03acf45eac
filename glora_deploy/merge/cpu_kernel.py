"""The compiled part of the fused merge: Numba kernels written in terms of register tiles.

A *tile* is a block of ``ROWS x LANES`` numbers that stays in vector registers: float64, or float32
where the factors of the low-rank products are float32. Left to itself the compiler reloads and
checks too much to keep up with memory, so the few operations that the merge needs are given here as
intrinsics, and the kernels read like the formula. They know nothing of layers: ``cpu`` checks and
prepares what they get.

Everything compiled lives in this one file, because Numba's on-disk cache notices changes only in
the file of the function it compiled. The cache lies in ``__pycache__`` beside this file, or, where
that is read-only, in the user's cache folder (``NUMBA_CACHE_DIR`` overrides both). Where nothing
can be written each process compiles again, in about a second per output format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import llvmlite.ir as ir
import numba
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, models, register_model

# Numba's own types say less than these.
_intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = intrinsic
_cgutils: Any = cgutils
_config: Any = numba.config
_host_features: Callable[[], str] = get_host_cpu_features

# A tile must leave registers free: AVX-512 has 32 of 8 doubles, others hold 64 doubles or less.
# LANES is twice ROWS: a transposed tile is two squares.
_features = _host_features() if _config.CPU_FEATURES is None else _config.CPU_FEATURES
ROWS, LANES = (8, 16) if "+avx512f" in _features else (4, 8)
_LINE_BYTES = 64
_STREAMED_BYTES = 2**20

_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_ROW = ir.VectorType(_DOUBLE, LANES)
_SINGLE_ROW = ir.VectorType(_FLOAT, LANES)
_PEAK = ir.VectorType(_I32, LANES)
_CONTRACT = ("contract",)  # allows a fused multiply-add, nothing else


class _TileType(types.Type):
    def __init__(self, element: Any, row: Any) -> None:
        super().__init__(f"Tile({ROWS}x{LANES}, {element})")
        self.row = row


class _PeakType(types.Type):
    """The largest magnitude written so far, by lane, as the bits of the output format."""

    def __init__(self) -> None:
        super().__init__(f"Peak({LANES})")


_tiles = {
    types.float64: _TileType(types.float64, _ROW),
    types.float32: _TileType(types.float32, _SINGLE_ROW),
}
_peak = _PeakType()


@register_model(_TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, ir.ArrayType(fe_type.row, ROWS))  # type: ignore[no-untyped-call]


@register_model(_PeakType)
class _PeakModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _PEAK)  # type: ignore[no-untyped-call]


def _to_tile(builder: Any, rows: Sequence[Any]) -> Any:
    tile = ir.Constant(ir.ArrayType(rows[0].type, ROWS), ir.Undefined)
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
    context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any, lanes: int
) -> Any:
    """Neighbours of one row, in the array's dtype; a map of a file may start at any address."""
    vector = ir.VectorType(context.get_value_type(array_type.dtype), lanes)
    pointer = _pointer(context, builder, array_type, array, row, column)
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)


@_intrinsic
def _constant(typing: Any, value: Any) -> Any:
    """A tile of one number, in its type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _to_tile(builder, [_splat(builder, args[0])] * ROWS)

    return _tiles[value](value), codegen


@_intrinsic
def _begin(typing: Any, factors: Any) -> Any:
    """What ``w0`` is multiplied by if A is nothing: a tile in the type of the factors.

    In float64 that is one. In float32 it is zero, and ``_end`` adds ``w0`` last: rounding then
    costs digits of the change alone.
    """
    tile = _tiles[factors.dtype]
    start = 1.0 if factors.dtype == types.float64 else 0.0

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _to_tile(builder, [_full(tile.row, start)] * ROWS)

    return tile(factors), codegen


@_intrinsic
def _end(typing: Any, tile: Any, frozen: Any) -> Any:
    """See ``_begin``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if tile == _tiles[types.float64]:
            return args[0]
        pairs = zip(*(_rows(builder, arg) for arg in args), strict=True)
        return _to_tile(builder, [builder.fadd(x, y) for x, y in pairs])

    return tile(tile, frozen), codegen


def _lanes(builder: Any, left: Any, right: Any, lanes: Sequence[int]) -> Any:
    """Lanes of two vectors laid end to end."""
    return builder.shuffle_vector(
        left, right, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))
    )


def _turned(builder: Any, square: list[Any]) -> list[Any]:
    """The transpose of ROWS vectors of ROWS numbers.

    Interleaving each row q with row q + ROWS / 2 moves one bit of the index; all bits are moved
    after as many rounds as there are.
    """
    half = ROWS // 2
    low = [lane for q in range(half) for lane in (q, q + ROWS)]
    high = [lane + half for lane in low]
    for _ in range(ROWS.bit_length() - 1):
        square = [
            _lanes(builder, square[q], square[q + half], lanes)
            for q in range(half)
            for lanes in (low, high)
        ]
    return square


def _widen(builder: Any, row: Any, to: Any = _ROW) -> Any:
    return row if row.type == to else builder.fpext(row, to)


@_intrinsic
def _load(typing: Any, array: Any, row: Any, column: Any, like: Any) -> Any:
    """The tile whose first number is ``array[row, column]``, in the type of another tile."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, i, j, _ = args
        rows = [
            _load_vector(context, builder, array, values, _plus(builder, i, q), j, LANES)
            for q in range(ROWS)
        ]
        return _to_tile(builder, [_widen(builder, row, like.row) for row in rows])

    return like(array, types.intp, types.intp, like), codegen


@_intrinsic
def _load_transposed(typing: Any, array: Any, row: Any, column: Any, like: Any) -> Any:
    """The tile whose row q is ``array[row : row + LANES, column + q]``, typed like another tile."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, i, j, _ = args
        rows = [
            _load_vector(context, builder, array, values, _plus(builder, i, q), j, ROWS)
            for q in range(LANES)
        ]
        halves = zip(_turned(builder, rows[:ROWS]), _turned(builder, rows[ROWS:]), strict=True)
        joined = [_lanes(builder, left, right, range(LANES)) for left, right in halves]
        return _to_tile(builder, [_widen(builder, row, like.row) for row in joined])

    return like(array, types.intp, types.intp, like), codegen


@_intrinsic
def _add_product(typing: Any, tile: Any, x: Any, y: Any) -> Any:
    """``tile + x * y``, elementwise."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        z, x, y = (_rows(builder, arg) for arg in args)
        return _to_tile(
            builder, [_multiply_add(builder, *xyz) for xyz in zip(x, y, z, strict=True)]
        )

    return tile(tile, tile, tile), codegen


@_intrinsic
def _add_outer(typing: Any, tile: Any, down: Any, up: Any, k: Any, row: Any, column: Any) -> Any:
    """``tile`` plus one term of a low-rank product: ``down[k, row + q] * up[k, column + l]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, downs, ups, k, i, j = args
        factors = _load_vector(context, builder, up, ups, k, j, LANES)
        rows = []
        for q, row in enumerate(_rows(builder, sums)):
            index = _plus(builder, i, q)
            factor = builder.load(_pointer(context, builder, down, downs, k, index))
            rows.append(_multiply_add(builder, _splat(builder, factor), factors, row))
        return _to_tile(builder, rows)

    return tile(tile, down, up, types.intp, types.intp, types.intp), codegen


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


_PRECISION = {types.uint16: 10, types.int16: 7}
"""Numba has no 16-bit floats: binary16 travels as uint16 and bfloat16 as int16."""


def _store_of(*, stream: bool) -> Callable[..., Any]:
    """An intrinsic that rounds a tile to an array's format and writes it at ``(row, column)``.

    A streaming store goes to memory past the caches, and need not fetch what it overwrites: a third
    less traffic. The address must be a multiple of the length of a row of the tile. The intrinsic
    returns the new peak.
    """

    @_intrinsic
    def store(typing: Any, array: Any, row: Any, column: Any, tile: Any, peak: Any) -> Any:
        bits = array.dtype.bitwidth
        integers = ir.VectorType(ir.IntType(bits), LANES)

        def rounded(builder: Any, row: Any) -> Any:
            if array.dtype == types.float32:
                return row if row.type == _SINGLE_ROW else builder.fptrunc(row, _SINGLE_ROW)
            return _narrow_bits(builder, _widen(builder, row), _PRECISION[array.dtype])

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, i, j, values, peak = args
            no_sign = _full(integers, 2 ** (bits - 1) - 1)
            highest = _full(integers, 0)
            for q, wide in enumerate(_rows(builder, values)):
                row = rounded(builder, wide)
                magnitude = builder.and_(builder.bitcast(row, integers), no_sign)
                highest = _largest(builder, magnitude, highest)
                pointer = _pointer(context, builder, array, out, _plus(builder, i, q), j)
                pointer = builder.bitcast(pointer, row.type.as_pointer())
                stored = builder.store(row, pointer, align=LANES * bits // 8 if stream else 1)
                if stream:
                    stored.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))
            return _largest(builder, highest if bits == 32 else builder.zext(highest, _PEAK), peak)

        return _peak(array, types.intp, types.intp, tile, _peak), codegen

    return store


_store = _store_of(stream=False)
_stream = _store_of(stream=True)


@_intrinsic
def _fence(typing: Any) -> Any:
    """Wait for streaming stores: they are not ordered with those that tell others of the result."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


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


def _prefetch_of(n_rows: int, *, write: bool = False) -> Callable[..., Any]:
    """An intrinsic that asks for a cache line of each of n_rows rows."""

    @_intrinsic
    def prefetch(typing: Any, array: Any, row: Any, column: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            values, i, j = args
            byte = ir.IntType(8).as_pointer()
            function = _cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32]),
                "llvm.prefetch.p0",
            )
            purpose, keep, data = _I32(int(write)), _I32(3), _I32(1)
            for q in range(n_rows):
                pointer = _pointer(context, builder, array, values, _plus(builder, i, q), j)
                builder.call(function, [builder.bitcast(pointer, byte), purpose, keep, data])
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp), codegen

    return prefetch


_prefetch = _prefetch_of(ROWS)
_prefetch_tall = _prefetch_of(LANES)
_prefetch_for_writing = _prefetch_of(ROWS, write=True)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, run without the interpreter's lock, keep on disk if possible."""
    compiled: Any = njit(nogil=True)(function)
    with contextlib.suppress(RuntimeError):  # nowhere to write
        compiled.enable_caching()
    return cast("Callable[..., Any]", compiled)


@njit(forceinline=True)
def _add_low_rank(tile: Any, down: Any, up: Any, i: int, j: int) -> Any:
    """``tile`` plus what ``down.T @ up`` holds from ``(i, j)`` on."""
    for k in range(down.shape[0]):
        tile = _add_outer(tile, down, up, k, i, j)
    return tile


@njit(forceinline=True)
def _lead(out: Any) -> int:
    """Columns of out before the first that starts a cache line; -1 if it should not be streamed.

    Tiles must cover whole lines, all rows must have lines begin at the same columns, and a small
    result had better stay in the cache.
    """
    line = _LINE_BYTES // out.itemsize
    if LANES % line or out.shape[1] % line or out.size * out.itemsize < _STREAMED_BYTES:
        return -1
    offset = -out.ctypes.data % _LINE_BYTES
    return -1 if offset % out.itemsize else offset // out.itemsize


@njit(forceinline=True)
def _first(lead: int) -> int:
    """Where a walk in steps of LANES over the columns begins, so that it meets ``lead``."""
    return lead - LANES if lead > 0 else 0


@njit(fastmath={"contract", "reassoc"})
def _dot(w0: Any, row: int, c: Any) -> float:
    total = 0.0
    for j in range(w0.shape[1]):
        total += np.float64(w0[row, j]) * c[0, j]
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
) -> Any:
    """Write ``w0 * (1 + a_down.T @ a_up) + b_down.T @ b_up`` and ``w0 @ c.T``.

    Both sides of w0 measure at least LANES. Where a side is no multiple of a tile's, the last tile
    reaches back over the one before and writes the same numbers again.

    Args:
        w0: ``(d_out, d_in)`` float32.
        out: ``(d_out, d_in)`` float32, uint16 (binary16) or int16 (bfloat16).
        a_down: ``(rank, d_out)``, float64 or float32: sums are formed in that type; b_down
            likewise.
        a_up: ``(rank, d_in)`` of the same type; b_up likewise.
        b_down: See a_down.
        b_up: See a_up.
        c: ``(1, d_in)`` float64, or without a row.
        shift: ``(d_out,)`` float64, gets ``w0 @ c.T`` unless c has no row.

    Returns:
        The bits, without sign, of the number of largest magnitude written.
    """
    d_out, d_in = w0.shape
    lead = _lead(out)
    peak = _no_peak()
    for row in range(0, d_out, ROWS):
        i = min(row, d_out - ROWS)
        following = min(i + ROWS, d_out - ROWS)
        for column in range(_first(lead), d_in, LANES):
            j = min(max(column, 0), d_in - LANES)
            _prefetch(w0, following, j)
            if lead < 0:
                _prefetch_for_writing(out, following, j)
            tile = _add_low_rank(_begin(a_up), a_down, a_up, i, j)
            frozen = _load(w0, i, j, tile)
            tile = _add_product(_constant(a_up.dtype.type(-0.0)), frozen, tile)
            tile = _end(_add_low_rank(tile, b_down, b_up, i, j), frozen)
            if lead >= 0 and j == column:
                peak = _stream(out, i, j, tile, peak)
            else:
                peak = _store(out, i, j, tile, peak)
        if c.shape[0]:
            for q in range(i, i + ROWS):
                shift[q] = _dot(w0, q, c)
    _fence()
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
) -> Any:
    """As ``_merge_rows``, with ``out (d_in, d_out)``.

    The tiles lie in the result as they are, so that it is written in long pieces: transposing on
    the way in costs a few shuffles, on the way out it would split cache lines.
    """
    d_out, d_in = w0.shape
    lead = _lead(out)
    # Lines that are not streamed had better be finished while they are in the cache.
    step = LANES if lead >= 0 else 8 * LANES
    peak = _no_peak()
    for block in range(_first(lead), d_out, step):
        for row in range(0, d_in, ROWS):
            j = min(row, d_in - ROWS)
            ahead = min(j + 4 * LANES, d_in - ROWS)
            for column in range(block, min(block + step, d_out), LANES):
                i = min(max(column, 0), d_out - LANES)
                if row % LANES == 0:
                    _prefetch_tall(w0, i, ahead)
                if lead < 0:
                    _prefetch_for_writing(out, ahead, i)
                tile = _add_low_rank(_begin(a_up), a_up, a_down, j, i)
                frozen = _load_transposed(w0, i, j, tile)
                tile = _add_product(_constant(a_up.dtype.type(-0.0)), frozen, tile)
                tile = _end(_add_low_rank(tile, b_up, b_down, j, i), frozen)
                if lead >= 0 and i == column:
                    peak = _stream(out, j, i, tile, peak)
                else:
                    peak = _store(out, j, i, tile, peak)
        if c.shape[0]:
            for q in range(max(block, 0), min(block + step, d_out)):
                shift[q] = _dot(w0, q, c)
    _fence()
    return _highest(peak)


def _round_tiles(values: Any, out: Any) -> Any:
    """Round ``values (n, LANES)`` float64 to ``out (n, LANES)``, n a multiple of ROWS.

    Returns:
        As ``_merge_rows``.
    """
    peak = _no_peak()
    for i in range(0, values.shape[0], ROWS):
        peak = _store(out, i, 0, _load(values, i, 0, _constant(0.0)), peak)
    return _highest(peak)


merge_rows = _compiled(_merge_rows)
merge_rows_transposed = _compiled(_merge_rows_transposed)
round_tiles = _compiled(_round_tiles)
