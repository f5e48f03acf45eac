"""Fold supports into frozen layers, and into a whole network of them.

One formula for every layer, as in the authors' ``GLoRA/layer.py:76-81`` (arXiv:2306.07967,
equations 10-14); ``*`` is elementwise and everything reads the frozen w0::

    w = w0 + w0 * A + B          b = b0 + b0 * D + E + w0 @ C

``merge`` is the plain float64 statement of it. ``merge_into`` writes the same numbers into an
existing network with the one-pass kernels, for those who merge often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..glora.forms import LayerShape
from ..glora.support_value import split_delta, value_of
from .cpu import MergeJob, fused_merge_layers
from .cuda import CudaMergeJob, fused_merge_layers_cuda
from .rounding import round_once

Supports = Mapping[str, Tensor]
"""The tensors of one layer, named and shaped as in ``glora.forms``: ``A_d``, ``A_u``, ``B``, ..."""


def merge(
    w0: Tensor, b0: Tensor | None, supports: Supports, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]:
    """Fold the supports into a frozen layer: computed in float64, rounded once.

    Args:
        w0: Frozen weight, ``(d_out, ...)``; a kernel counts as ``(d_out, d_in)`` flattened, a
            per-channel weight ``(d_out,)`` as ``(d_out, 1)``. Not modified.
        b0: Frozen bias ``(d_out,)``, or None. Not modified.
        supports: The layer's tensors, shaped as ``glora.forms`` says; any floating dtype.
        dtype: Of the result; w0's by default.

    Returns:
        The merged weight, shaped as w0, and bias ``(d_out,)`` or None.

    Raises:
        ValueError: If a support does not fit the layer; names it.
    """
    _require_fit(w0, b0, supports)
    dtype = dtype or w0.dtype
    wide = {name: tensor.to(w0.device, torch.float64) for name, tensor in supports.items()}
    frozen = w0.to(torch.float64).reshape(w0.shape[0], -1)
    # In place, and one support at a time: at most three float64 copies of the layer in memory.
    if (a := value_of(wide, "A")) is None:
        w = frozen.clone()
    else:
        w = frozen * a
        w += frozen
    del a
    if (b := value_of(wide, "B")) is not None:
        w += b
    del b
    weight = round_once(w, dtype).reshape(w0.shape)
    if b0 is None:
        return weight, None
    base = b0.to(torch.float64)
    bias = base.clone()
    if (d := value_of(wide, "D")) is not None:
        bias += base * d
    if (e := value_of(wide, "E")) is not None:
        bias += e
    if (c := value_of(wide, "C")) is not None:
        # The frozen weight, not the merged one: C moves the input of the frozen layer.
        bias += (frozen @ c).squeeze(1)
    return weight, round_once(bias, dtype)


def _require_fit(w0: Tensor, b0: Tensor | None, supports: Supports) -> None:
    """Refuse what torch would broadcast or multiply although it is no support of this layer."""
    shape = LayerShape(
        kind="affine" if w0.ndim == 1 else "linear",  # a convolution's rules are a linear layer's
        d_out=w0.shape[0],
        d_in=math.prod(w0.shape[1:]),
        bias=b0 is not None,
    )
    shape.require_fit({name: tuple(tensor.shape) for name, tensor in supports.items()})


def split_by_layer(supports: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, Supports]:
    """Group ``layer.A_d``-style names by layer; layers without supports get an empty mapping.

    Raises:
        ValueError: If a name belongs to none of the layers.
    """
    grouped, rest = split_delta(supports, layers)
    for name in rest:
        raise ValueError(f"{name}: no such layer among the {len(grouped)} to adapt")
    return dict(grouped)


@torch.no_grad()
def merge_into(
    target: nn.Module,
    frozen: Mapping[str, Tensor],
    supports: Mapping[str, Tensor],
    layers: Iterable[str],
) -> None:
    """Overwrite the weights of ``layers`` in ``target`` with the merge of frozen and supports.

    Every layer is written, also those without supports, so the result never depends on what
    ``target`` held before. If a layer raises, ``target`` holds a mixture: merge into it again.

    Args:
        target: Vanilla network of the same architecture, fp32 or half, contiguous parameters.
        frozen: ``layer.weight`` and ``layer.bias`` of the backbone, float32, on target's device.
        supports: ``layer.A_d``-style names.
        layers: The adapted layers.

    Raises:
        NonFiniteError: If a merged weight is not finite in target's dtype; names the layer.
        ValueError: If a support belongs to none of the layers, or does not fit its own; names it.
    """
    jobs: dict[str, MergeJob] = {}
    cuda_jobs: dict[str, CudaMergeJob] = {}
    for layer, tensors in split_by_layer(supports, layers).items():
        module = target.get_submodule(layer)
        w0, b0 = frozen[f"{layer}.weight"], frozen.get(f"{layer}.bias")
        out_w, out_b = module.weight, getattr(module, "bias", None)  # RMSNorm has no such attribute
        assert isinstance(out_w, Tensor)
        assert out_b is None or isinstance(out_b, Tensor)
        rows = out_w.shape[0]
        if out_w.device.type == "cuda":
            out = out_w.data.view(rows, -1)
            cuda_jobs[layer] = CudaMergeJob(w0.reshape(rows, -1), b0, tensors, out, out_b)
        else:
            jobs[layer] = MergeJob(
                w0.reshape(rows, -1).numpy(),
                None if b0 is None else b0.numpy(),
                {name: tensor.detach().numpy() for name, tensor in tensors.items()},
                out_w.data.view(rows, -1).numpy(),
                None if out_b is None else out_b.data.numpy(),
            )
    not_finite = fused_merge_layers(jobs) + fused_merge_layers_cuda(cuda_jobs)
    if not_finite:
        dtype = next(target.parameters()).dtype
        raise NonFiniteError(f"{not_finite[0]}: the merged weight must be finite in {dtype}")
