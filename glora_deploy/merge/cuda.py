"""The one-pass merge of ``cpu`` on torch tensors: a Triton kernel, and plain PyTorch.

Both compute ``w = w0 + w0 * A + B`` and ``b = b0 + b0 * D + E + w0 @ C`` in float64 and round once.
Float32 sums would be off by many units in the last place wherever A or B nearly cancels w0. A
data-centre GPU hides the float64 work behind memory; a consumer GPU does float64 at 1/64 of its
float32 rate, so that there a merge takes about as long as the arithmetic, some milliseconds for a
ViT-B, not as long as the copy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .cpu import require_shapes
from .rounding import round_once

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def fused_merge_cuda(
    w0: Tensor,
    b0: Tensor | None,
    supports: Mapping[str, Tensor],
    *,
    out_w: Tensor,
    out_b: Tensor | None,
    transposed: bool = False,
) -> bool:
    """Write the merged layer into ``out_w`` and ``out_b`` in one pass over the GPU's memory.

    Without Triton (the CPU builds of torch do not bring it) this is ``fused_merge_torch``.

    Args:
        w0: Frozen weight ``(d_out, d_in)`` float32, contiguous. Not modified.
        b0: Frozen bias ``(d_out,)`` float32, or None. Not modified.
        supports: The layer's tensors by name, of any floating dtype, on w0's device; those absent
            count as none. Not modified.
        out_w: Contiguous ``(d_out, d_in)``, or ``(d_in, d_out)`` if transposed, of float32, float16
            or bfloat16, on w0's device; shares no memory with w0.
        out_b: Contiguous ``(d_out,)`` of out_w's dtype; None where b0 is.
        transposed: Write the transpose of the merged weight.

    Returns:
        Whether every number written is finite in the output's dtype; this waits for the GPU.

    Raises:
        ValueError: If shapes, dtypes, layouts or devices are not as above, or a support is not one
            that this layer can have.
    """
    if importlib.util.find_spec("triton") is None:
        return fused_merge_torch(w0, b0, supports, out_w=out_w, out_b=out_b, transposed=transposed)
    flag = torch.zeros(1, dtype=torch.int32, device=w0.device)
    _launch(CudaMergeJob(w0, b0, supports, out_w, out_b, transposed), flag)
    return not flag.item()


@dataclass(frozen=True, slots=True)
class CudaMergeJob:
    """The arguments of one ``fused_merge_cuda``."""

    w0: Tensor
    b0: Tensor | None
    supports: Mapping[str, Tensor]
    out_w: Tensor
    out_b: Tensor | None
    transposed: bool = False


def fused_merge_layers_cuda(jobs: Mapping[str, CudaMergeJob]) -> list[str]:
    """Merge many layers of one GPU, waiting for it once, at the end.

    Args:
        jobs: What to merge, by layer; outputs must not overlap.

    Returns:
        The layers whose outputs are not all finite, in the order of jobs.

    Raises:
        ValueError: If a job does not fit; the outputs of the others are then undefined.
    """
    if not jobs:
        return []
    if importlib.util.find_spec("triton") is None:
        return [name for name, job in jobs.items() if not _merge_plainly(job)]
    device = next(iter(jobs.values())).w0.device
    flags = torch.zeros(len(jobs), dtype=torch.int32, device=device)
    for i, job in enumerate(jobs.values()):
        _launch(job, flags[i:])
    return [name for name, flag in zip(jobs, flags.tolist(), strict=True) if flag]


def _merge_plainly(job: CudaMergeJob) -> bool:
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
    a, b, c, d, e = (_Stored.of(name, job.supports, flag) for name in "ABCDE")
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


_NONE, _LORA, _VECTOR, _SCALAR = range(4)
"""As in ``cuda_kernel``."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """One support as the kernel takes it."""

    form: int
    rank: int
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, support: str, supports: Mapping[str, Tensor], unused: Tensor) -> _Stored:
        """From the layer's tensors; ``unused`` stands for those that are not read."""
        if (down := supports.get(f"{support}_d")) is not None:
            up = supports[f"{support}_u"]
            return cls(_LORA, down.shape[-1], down.contiguous(), up.contiguous())
        if (whole := supports.get(support)) is None:
            return cls(_NONE, 0, unused, unused)
        # A vector of one row is a scalar: the same number wherever it is added. C has none.
        form = _SCALAR if whole.numel() == 1 and support != "C" else _VECTOR
        return cls(form, 0, whole.contiguous(), unused)


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
    """As ``fused_merge_cuda``, by ordinary tensor operations on any device that has float64.

    Needs room for several float64 copies of the weight.
    """
    _require(w0, b0, supports, out_w, out_b, transposed)
    wide = _wide(supports)
    frozen = w0.double()
    a_down, a_up = _factors(wide, "A", w0)
    b_down, b_up = _factors(wide, "B", w0)
    w = round_once(frozen * (1 + a_down @ a_up) + b_down @ b_up, out_w.dtype)
    out_w.copy_(w.T if transposed else w)
    finite = w.isfinite().all()
    bias = _bias(b0, wide)
    if bias is not None and out_b is not None:
        c = _input_shift(wide)
        out_b.copy_(round_once(bias if c is None else bias + frozen @ c, out_b.dtype))
        finite &= out_b.isfinite().all()
    return bool(finite)


def _wide(supports: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: support.detach().double() for name, support in supports.items()}


def _factors(wide: Mapping[str, Tensor], name: str, w0: Tensor) -> tuple[Tensor, Tensor]:
    """A or B as ``down (d_out, rank) @ up (rank, d_in)``, contiguous.

    Vector and scalar are products of rank one with a row of ones.
    """
    d_out, d_in = w0.shape
    if f"{name}_d" in wide:
        return wide[f"{name}_d"].contiguous(), wide[f"{name}_u"].contiguous()
    rank = int(name in wide)
    ones = torch.ones(rank, d_in, dtype=torch.float64, device=w0.device)
    return wide.get(name, ones.T[:1]).expand(d_out, rank).contiguous(), ones


def _input_shift(wide: Mapping[str, Tensor]) -> Tensor | None:
    """C as ``(d_in,)``, or None if absent."""
    if "C_d" in wide:
        return (wide["C_d"] @ wide["C_u"])[:, 0].contiguous()
    return wide["C"][:, 0].contiguous() if "C" in wide else None


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
