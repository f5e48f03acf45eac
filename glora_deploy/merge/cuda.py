"""The one-pass merge of ``cpu`` on torch tensors: a Triton kernel, and plain PyTorch.

Both compute ``w = w0 + w0 * A + B`` and ``b = b0 + b0 * D + E + w0 @ C`` in float64 and round once.
Float32 sums would be off by many units in the last place wherever A or B nearly cancels w0. A
data-centre GPU hides the float64 work behind memory; a consumer GPU does float64 at 1/64 of its
float32 rate, so that there a merge takes about as long as the arithmetic, some milliseconds for a
ViT-B, not as long as the copy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..glora.forms import SUPPORTS, FormKind, Support, kind_of
from ..glora.support_value import value_of
from .cpu import require_shapes
from .rounding import round_once

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class CudaMergeJob:
    """One layer to merge; everything lies on w0's device."""

    w0: Tensor
    """Frozen weight ``(d_out, d_in)`` float32, contiguous. Not modified."""
    b0: Tensor | None
    """Frozen bias ``(d_out,)`` float32, or None. Not modified."""
    supports: Mapping[str, Tensor]
    """By name, of any floating dtype; those absent count as none. Not modified."""
    out_w: Tensor
    """Gets the merged weight: contiguous ``(d_out, d_in)``, or ``(d_in, d_out)`` if transposed, of
    float32, float16 or bfloat16; shares no memory with w0."""
    out_b: Tensor | None
    """Gets the merged bias: contiguous ``(d_out,)`` of out_w's dtype; None where b0 is."""
    transposed: bool = False
    """Write the transpose of the merged weight."""


def fused_merge_layers_cuda(jobs: Mapping[str, CudaMergeJob]) -> list[str]:
    """Merge many layers of one GPU, each in one pass over memory, and wait for it once, at the end.

    Without Triton (the CPU builds of torch do not bring it) each is a ``fused_merge_torch``.

    Args:
        jobs: What to merge, by layer; outputs must not overlap.

    Returns:
        The layers whose outputs are not all finite, in the order of jobs.

    Raises:
        ValueError: If a job is not as its fields say, or a support is not one that its layer can
            have, with the name of the layer; the outputs of the others are then undefined.
    """
    if not jobs:
        return []
    if importlib.util.find_spec("triton") is None:
        return [layer for layer, job in jobs.items() if not _merge_plainly(layer, job)]
    device = next(iter(jobs.values())).w0.device
    flags = torch.zeros(len(jobs), dtype=torch.int32, device=device)
    for i, (layer, job) in enumerate(jobs.items()):
        with _naming(layer):
            _launch(job, flags[i:])
    return [name for name, flag in zip(jobs, flags.tolist(), strict=True) if flag]


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Begin what a job is refused with by the name of its layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{layer}: {error}") from error


def _merge_plainly(layer: str, job: CudaMergeJob) -> bool:
    with _naming(layer):
        return fused_merge_torch(
            job.w0,
            job.b0,
            job.supports,
            out_w=job.out_w,
            out_b=job.out_b,
            transposed=job.transposed,
        )


def _launch(job: CudaMergeJob, flag: Tensor) -> None:
    """Start the merge of one layer; its first int32 of ``flag`` becomes 1 if it is not finite."""
    from .cuda_kernel import merge_rows

    w0, b0, out_w, out_b = job.w0, job.b0, job.out_w, job.out_b
    _require(w0, b0, job.supports, out_w, out_b, job.transposed)
    d_out, d_in = w0.shape
    shapes = {name: tensor.shape for name, tensor in job.supports.items()}
    a, b, c, d, e = (
        _Stored.of(support, kind_of(support, shapes), job.supports, flag) for support in SUPPORTS
    )
    # A transposed tile is written along its rows, so it needs more of them.
    rows, columns = (32, 64) if job.transposed else (8, 256)
    merge_rows[(-(-d_out // rows),)](
        w0,
        flag if b0 is None else b0,
        a.first,
        a.second,
        b.first,
        b.second,
        c.first,
        c.second,
        d.first,
        e.first,
        out_w,
        flag if out_b is None else out_b,
        flag,
        d_out,
        d_in,
        a.rank,
        b.rank,
        c.rank,
        A=a.form,
        B=b.form,
        C=c.form,
        D=d.form,
        E=e.form,
        HAS_BIAS=b0 is not None,
        TRANSPOSED=job.transposed,
        ROWS=rows,
        COLUMNS=columns,
    )


_FORMS: dict[FormKind, int] = {"none": 0, "lora": 1, "vector": 2, "scalar": 3}
"""As in ``cuda_kernel``."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """One support as the kernel takes it."""

    form: int
    rank: int
    first: Tensor
    second: Tensor

    @classmethod
    def of(
        cls, support: Support, kind: FormKind, supports: Mapping[str, Tensor], unused: Tensor
    ) -> _Stored:
        """From the layer's tensors; ``unused`` stands for those that are not read."""
        form = _FORMS[kind]
        if kind == "none":
            return cls(form, 0, unused, unused)
        if kind == "lora":
            down, up = supports[f"{support}_d"], supports[f"{support}_u"]
            return cls(form, down.shape[-1], down.contiguous(), up.contiguous())
        return cls(form, 0, supports[support].contiguous(), unused)


@torch.no_grad()
def fused_merge_torch(
    w0: Tensor,
    b0: Tensor | None,
    supports: Mapping[str, Tensor],
    *,
    out_w: Tensor,
    out_b: Tensor | None,
    transposed: bool = False,
) -> bool:
    """Merge one layer by ordinary tensor operations, on any device that has float64.

    Needs room for several float64 copies of the weight.

    Args:
        w0: This and the others as in ``CudaMergeJob``.
        b0: Frozen bias.
        supports: The layer's tensors.
        out_w: Gets the merged weight.
        out_b: Gets the merged bias.
        transposed: Write the transpose of the merged weight.

    Returns:
        Whether every number written is finite in the output's dtype. If it is not, the outputs
        hold what was computed, infinities and all, and the caller must not use them.

    Raises:
        ValueError: If an argument is not as it must be; names it.
    """
    _require(w0, b0, supports, out_w, out_b, transposed)
    wide = _wide(supports)
    frozen = w0.double()
    a, b = value_of(wide, "A"), value_of(wide, "B")
    w = frozen if a is None else frozen * (1 + a)
    w = round_once(w if b is None else w + b, out_w.dtype)
    out_w.copy_(w.T if transposed else w)
    finite = w.isfinite().all()
    bias = _bias(b0, wide)
    if bias is not None and out_b is not None:
        c = value_of(wide, "C")
        shifted = bias if c is None else bias + (frozen @ c).squeeze(1)
        out_b.copy_(round_once(shifted, out_b.dtype))
        finite &= out_b.isfinite().all()
    return bool(finite)


def _wide(supports: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: support.detach().double() for name, support in supports.items()}


def _bias(b0: Tensor | None, wide: Mapping[str, Tensor]) -> Tensor | None:
    """``b0 + b0 * D + E`` ``(d_out,)`` float64, or None without bias."""
    if b0 is None:
        return None
    bias = b0.detach().double()
    scaled = bias + bias * wide["D"] if "D" in wide else bias
    return scaled + wide["E"] if "E" in wide else scaled


def _require(
    w0: Tensor,
    b0: Tensor | None,
    supports: Mapping[str, Tensor],
    out_w: Tensor,
    out_b: Tensor | None,
    transposed: bool,
) -> None:
    for thing, tensor, dtypes in (
        ("w0", w0, (torch.float32,)),
        ("b0", b0, (torch.float32,)),
        ("out_w", out_w, _DTYPES),
        ("out_b", out_b, (out_w.dtype,)),
        *((name, support, (*_DTYPES, torch.float64)) for name, support in supports.items()),
    ):
        if tensor is None:
            continue
        if tensor.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            got = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{thing} must be of {names}, got {got}")
        if tensor.device != w0.device:
            raise ValueError(f"{thing} must be on w0's {w0.device}, got {tensor.device}")
    for thing, tensor in (("w0", w0), ("out_w", out_w)):
        if not tensor.is_contiguous():
            raise ValueError(f"{thing} must be contiguous, got strides {tensor.stride()}")
    if w0.untyped_storage().data_ptr() == out_w.untyped_storage().data_ptr():
        raise ValueError(
            "out_w must not overlap w0, which later merges read again, got both in one"
        )
    require_shapes(
        tuple(w0.shape),
        None if b0 is None else tuple(b0.shape),
        tuple((name, tuple(support.shape)) for name, support in supports.items()),
        tuple(out_w.shape),
        None if out_b is None else tuple(out_b.shape),
        transposed,
    )
