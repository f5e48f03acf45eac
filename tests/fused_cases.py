"""Layers for the tests of the fused merges, and what their results must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from glora_deploy.glora.forms import SUPPORTS, LayerForms, LayerShape
from reference import Float64, reference_merge, reference_round

SCALES = (1.0, 1.0, 1e-3, 1e3, 1e-30, 1e30)


@dataclass(frozen=True)
class Case:
    """One frozen layer and its supports."""

    w0: NDArray[np.float32]
    b0: NDArray[np.float32] | None
    supports: Mapping[str, NDArray[Any]]


def make_case(
    d_out: int,
    d_in: int,
    paths: str = "A=lora:4 B=lora:3 C=lora:2 D=vector E=scalar",
    *,
    bias: bool = True,
    seed: int = 0,
) -> Case:
    """A seeded layer of ordinary numbers."""
    rng = np.random.default_rng(seed)
    shape = LayerShape(kind="linear", d_out=d_out, d_in=d_in, bias=bias)

    def normal(*sizes: int) -> NDArray[np.float32]:
        return rng.standard_normal(sizes).astype(np.float32)

    tensors = LayerForms.parse(paths).tensor_shapes(shape)
    return Case(
        normal(d_out, d_in),
        normal(d_out) if bias else None,
        {name: normal(*sizes) for name, sizes in tensors.items()},
    )


@st.composite
def cases(draw: st.DrawFn, largest: int = 40) -> Case:
    """Any small layer: every form, rank and magnitude, with zeros and with A near or at -1."""
    shape = LayerShape(
        kind="linear",
        d_out=draw(st.integers(1, largest)),
        d_in=draw(st.integers(1, largest)),
        bias=draw(st.booleans()),
    )
    chosen = {
        support: draw(st.sampled_from(shape.choices(support, [draw(st.integers(1, 9))])))
        for support in SUPPORTS
    }
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def numbers(sizes: tuple[int, ...]) -> NDArray[np.float32]:
        values = rng.standard_normal(sizes) * draw(st.sampled_from(SCALES))
        zeros = draw(st.sampled_from([None, 0.0, -0.0]))
        if zeros is not None:
            values[rng.random(sizes) < 0.2] = zeros
        return values.astype(np.float32)

    supports = {
        name: numbers(sizes) for name, sizes in LayerForms(**chosen).tensor_shapes(shape).items()
    }
    if "A" in supports and draw(st.booleans()):
        supports["A"] = np.full_like(supports["A"], -1)
    if "A_d" in supports and draw(st.booleans()):
        supports["A_d"][:, :1], supports["A_u"][:1] = -0.5, 2
    w0, b0 = numbers((shape.d_out, shape.d_in)), numbers((shape.d_out,))
    return Case(w0, b0 if shape.bias else None, supports)


def require_merged(case: Case, w: NDArray[Any], b: NDArray[Any] | None) -> None:
    """Fail unless w and b are the float64 merge rounded once.

    Float64 sums may be formed in any order: the result must lie between the roundings of the ends
    of what that leaves open, which but for cancellation is one number or two neighbours.
    """
    want_w, want_b = reference_merge(case.w0, case.b0, case.supports)
    size_w, size_b = reference_merge(
        np.abs(case.w0),
        None if case.b0 is None else np.abs(case.b0),
        {name: np.abs(support) for name, support in case.supports.items()},
    )
    _require_rounded(w, want_w, size_w)
    assert (b is None) == (want_b is None)
    if b is not None and want_b is not None and size_b is not None:
        _require_rounded(b, want_b, size_b)


def _require_rounded(got: NDArray[Any], want: Float64, size: Float64) -> None:
    slack = 64 * np.finfo(np.float64).eps * size  # sums of at most 64 terms
    low = reference_round(want - slack, got.dtype.name)
    high = reference_round(want + slack, got.dtype.name)
    wide = got.astype(np.float64)
    wrong = ~((low <= wide) & (wide <= high))
    assert not wrong.any(), (np.argwhere(wrong)[:3], wide[wrong][:3], want[wrong][:3])


def units_apart(got: NDArray[np.float32], want: NDArray[np.float32]) -> int:
    """How many float32 numbers lie between two arrays, at most; both zeros count as one."""
    ordered = [
        np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
        for bits in (array.view(np.int32).astype(np.int64) for array in (got, want))
    ]
    return int(np.abs(ordered[0] - ordered[1]).max())
