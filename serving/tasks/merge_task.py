"""A delta folded into a network's slots: what a swap computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glora_deploy.errors import BackboneMismatchError, NonFiniteError
from glora_deploy.glora.support_value import split_delta
from glora_deploy.merge.cpu import MergeJob, fused_merge, fused_merge_layers
from glora_deploy.merge.cpu_kernel import LANES
from glora_deploy.store.manifest import Manifest

from ..engines.network import Slot


def adapted_tensors(manifest: Manifest) -> tuple[str, ...]:
    """Names of the backbone's tensors that a delta changes."""
    return tuple(
        f"{name}.{part}"
        for name, layer in manifest.layers.items()
        for part in (("weight", "bias") if layer.layer_shape().bias else ("weight",))
    )


def warm_up(dtype: np.dtype[Any]) -> None:
    """Have the merge compiled, or its compiled form loaded, before a request waits for it."""
    w0 = np.zeros((LANES, LANES), np.float32)
    for transposed in (False, True):
        out = np.empty_like(w0, dtype)
        fused_merge(
            w0, w0[0], {}, out_w=out, out_b=out[0].copy(), transposed=transposed, exact=False
        )


def head_of(
    manifest: Manifest, delta: Mapping[str, NDArray[Any]], dtype: np.dtype[Any]
) -> dict[str, NDArray[Any]]:
    """The classifier in a delta, in a network's dtype; its memory is its own.

    Raises:
        NonFiniteError: If a number is too large for the dtype.
    """
    with np.errstate(over="ignore"):  # reported here, by name
        head = {name: delta[name].astype(dtype) for name in manifest.head}
    for name, value in head.items():
        if not np.isfinite(value).all():
            raise NonFiniteError(f"{manifest.task}: {name} must be finite in {dtype}")
    return head


def merge_task(
    manifest: Manifest,
    delta: Mapping[str, NDArray[Any]],
    frozen: Mapping[str, NDArray[Any]],
    slots: Mapping[str, Slot],
    out: Mapping[str, NDArray[Any]],
) -> None:
    """Write every adapted tensor of a task into its slot.

    Sums of the weights are formed in float32 (``fused_merge`` states the bound): a swap is as fast
    as memory on any processor, and differs from an export by a rounding or two.

    Args:
        manifest: Of the delta.
        delta: Its tensors by name. Not modified.
        frozen: The backbone's. Not modified.
        slots: What the network takes, by name.
        out: The same slots as arrays.

    Raises:
        BackboneMismatchError: If an adapted layer is not in the backbone, or has another shape.
        NonFiniteError: If a merged number is not finite in the slots' dtype.
    """
    supports, _ = split_delta(delta, manifest.layers)
    jobs = {}
    for layer, tensors in supports.items():
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        if weight not in slots:
            continue  # the network does not read it
        if weight not in frozen:
            raise BackboneMismatchError(f"the backbone must have {layer}, which the delta adapts")
        w0 = frozen[weight]
        w0 = w0.reshape(len(w0), -1)
        transposed = slots[weight].transposed
        jobs[layer] = MergeJob(
            w0,
            frozen.get(bias),
            tensors,
            out[weight].reshape(w0.shape[:: -1 if transposed else 1]),
            out.get(bias),
            transposed,
            exact=False,
        )
    try:
        bad = fused_merge_layers(jobs)
    except ValueError as error:
        raise BackboneMismatchError(f"{manifest.task}/{manifest.version}: {error}") from error
    if bad:
        raise NonFiniteError(
            f"{manifest.task}/{manifest.version}: {bad[0]} must be finite when merged, "
            f"got NaN or infinity in {len(bad)} layers"
        )
