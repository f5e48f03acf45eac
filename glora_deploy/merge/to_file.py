"""Backbone and delta in, the merged network's safetensors file out, one layer at a time.

Needs no torch and no second copy of the weights: the backbone is read through a memory map, each
adapted layer is merged straight into the mapped output, everything else is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackboneMismatchError, NonFiniteError
from ..glora.forms import LayerShape
from ..glora.support_value import split_delta
from ..precision import PRECISIONS, Precision, is_float
from ..store.mapped_safetensors import TensorMap, create_tensor_file, map_tensors
from .cpu import MergeJob, fused_merge_layers

BYTES_AT_ONCE = 12 * 2**20
"""Frozen weights merged together: small layers keep every thread busy, a large one goes alone."""


def write_merged(
    path: Path,
    backbone: Path,
    delta: Mapping[str, NDArray[Any]],
    layers: Mapping[str, LayerShape],
    *,
    precision: Precision = "fp32",
    metadata: Mapping[str, str],
) -> None:
    """Write the merged network: plain state-dict names, every float tensor in one precision.

    Args:
        path: New safetensors file.
        backbone: safetensors file of the frozen backbone without classifier, float32.
        delta: ``layer.A_d``-style support tensors, and the classifier under its own names.
        layers: The adapted layers.
        precision: ``fp32``, ``fp16`` or ``bf16``; integer tensors keep their dtype.
        metadata: Text pairs for the file's header.

    Raises:
        NonFiniteError: If a tensor is not finite in this precision; names the first. The file is
            removed.
        BackboneMismatchError: If an adapted layer is not in the backbone.
        OSError: If there is no space.
    """
    frozen = map_tensors(backbone)
    supports, head = split_delta(delta, layers)
    if missing := sorted(layer for layer in supports if f"{layer}.weight" not in frozen):
        raise BackboneMismatchError(
            f"{backbone}: has no layer {missing[0]}, which the delta adapts"
        )
    target = PRECISIONS[precision]
    specs = {
        name: (target if is_float(value.dtype) else value.dtype, value.shape)
        for name, value in (*frozen.items(), *head.items())
    }
    out = create_tensor_file(path, specs, metadata)
    try:
        for name in _write(out, frozen, supports, head):
            raise NonFiniteError(
                f"{name}: the merged tensor must be finite in {precision}. "
                + ("Export it in fp32." if precision != "fp32" else "The delta is damaged.")
            )
    except BaseException:
        path.unlink()
        raise


def _write(
    out: TensorMap,
    frozen: TensorMap,
    supports: Mapping[str, Mapping[str, NDArray[Any]]],
    head: Mapping[str, NDArray[Any]],
) -> Iterator[str]:
    """Fill every output tensor; yields the names of those that are not finite.

    Pages are given back as soon as they are done, so memory stays at about one group of layers.
    """
    merged = set()
    for group in _groups(supports, frozen):
        jobs = {}
        for layer in group:
            weight, bias = f"{layer}.weight", f"{layer}.bias"
            rows = out[weight].shape[0]
            jobs[weight] = MergeJob(
                frozen[weight].reshape(rows, -1),
                frozen.get(bias),
                supports[layer],
                out[weight].reshape(rows, -1),
                out.get(bias),
            )
            merged |= {weight, bias}
        yield from fused_merge_layers(jobs)
        for weight in jobs:
            frozen.release(weight)
            out.release(weight)
    for name in sorted((frozen.keys() | head.keys()) - merged):
        target = out[name]
        with np.errstate(over="ignore"):  # reported below, by name
            target[...] = head[name] if name in head else frozen[name]
        if is_float(target.dtype) and not np.isfinite(target).all():
            yield name
        out.release(name)


def _groups(layers: Iterable[str], frozen: TensorMap) -> Iterator[list[str]]:
    """The layers in order, as many at a time as stay within ``BYTES_AT_ONCE``, at least one."""
    group: list[str] = []
    n_bytes = 0
    for layer in layers:
        size = frozen[f"{layer}.weight"].nbytes
        if group and n_bytes + size > BYTES_AT_ONCE:
            yield group
            group, n_bytes = [], 0
        group.append(layer)
        n_bytes += size
    if group:
        yield group
