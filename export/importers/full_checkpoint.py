"""A fully fine-tuned timm checkpoint, brought onto the layers of its backbone.

What a fine-tuning changes outside of layers that have supports is folded into them where that is
exact: LayerScale into the layer before it, the statistics of a BatchNorm into its own affine. What
is left is named, with how much it changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glora_deploy.backbones.checkpoint_file import CheckpointFile
from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError, NonFiniteError

from .assemble import Array, Target

_COUNTER = "num_batches_tracked"
_SCALES = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2", "gamma": "mlp.fc2"}
"""LayerScale of timm's blocks, ConvNeXt's last, and the layer whose output it scales."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A fine-tuned network in the place of a backbone."""

    where: str
    """The file, for errors."""
    tensors: dict[str, NDArray[Any]]
    """All of it, by state-dict name, the counters of BatchNorm apart."""
    head: dict[str, NDArray[Any]]
    """The classifier."""
    layers: dict[str, tuple[Array, Array | None]]
    """Weight ``(d_out, d_in)`` and bias ``(d_out,)`` that each layer would need for the backbone
    to become this network, float64."""
    n_classes: int
    """Rows of the classifier."""
    left_out: dict[str, float]
    """What no layer can take over, and the norm of its change over its own norm."""


def read_full(checkpoint: Path | str, backbone: Backbone) -> Tuned:
    """Read a checkpoint, without running code of it, and hold it against its backbone.

    Args:
        checkpoint: safetensors, or what ``torch.save`` wrote; ``FILE#PART`` for a part of one.
        backbone: What it was tuned from.

    Raises:
        StoreError: If there is no such file.
        ArtifactError: If it is damaged, or holds several networks.
        BackboneMismatchError: If a tensor is missing, of another shape, or not of this network.
        NonFiniteError: If a tensor holds NaN or infinity.
    """
    file = CheckpointFile.parse(checkpoint)
    where = file.source.removeprefix("file:")
    found = file.find(file.read(), backbone.tensors.keys())
    heads = tuple(f"{name}." for name in backbone.classifier)
    tensors: dict[str, NDArray[Any]] = {}
    for name, tensor in found.items():
        if isinstance(tensor, Tensor) and not name.endswith(_COUNTER):
            tensors[name] = tensor.float().numpy()
    _require_network(tensors, backbone, heads, where)
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise NonFiniteError(f"{where}: {name} must be finite, it is not")
    head = {name: values for name, values in tensors.items() if name.startswith(heads)}
    n_classes = len(head[f"{backbone.classifier[0]}.weight"])
    target = Target(backbone, n_classes)
    wide = {name: values.astype(np.float64) for name, values in tensors.items()}
    taken: set[str] = set(head)
    layers = {}
    for layer in target.shapes:
        weight, bias = wide[f"{layer}.weight"], wide.get(f"{layer}.bias")
        taken |= {f"{layer}.weight", f"{layer}.bias"}
        layers[layer] = (weight.reshape(len(weight), -1), bias)
    _fold_scales(layers, wide, backbone, taken)
    _fold_statistics(layers, wide, target, taken)
    return Tuned(where, tensors, head, layers, n_classes, _left_out(wide, backbone, taken))


def _require_network(
    tensors: Mapping[str, NDArray[Any]], backbone: Backbone, heads: tuple[str, ...], where: str
) -> None:
    if not any(name.startswith(heads) for name in tensors):
        raise BackboneMismatchError(
            f"{where}: must hold the network and its classifier {', '.join(backbone.classifier)}, "
            "it does not. Give the backbone that it was tuned from."
        )
    for name, tensor in backbone.tensors.items():
        if name.endswith(_COUNTER):
            continue
        shape = tuple(tensor.shape)
        found = tensors[name].shape if name in tensors else "missing"
        if found != shape:
            raise BackboneMismatchError(
                f"{where}: {name} must have shape {shape}, the backbone's, got {found}. Give the "
                "backbone that it was tuned from, and its --input-size."
            )
    for name in tensors:
        if name not in backbone.tensors and not name.startswith(heads):
            raise BackboneMismatchError(f"{where}: {name} is no tensor of the backbone")


def _fold_scales(
    layers: dict[str, tuple[Array, Array | None]],
    tuned: Mapping[str, Array],
    backbone: Backbone,
    taken: set[str],
) -> None:
    """What a changed LayerScale multiplies, the layer before it can multiply."""
    for name in tuned:
        scaled = (
            name.removesuffix(end) + layer for end, layer in _SCALES.items() if name.endswith(end)
        )
        if (layer := next((each for each in scaled if each in layers), None)) is None:
            continue
        frozen = backbone.tensors[name].numpy().astype(np.float64)
        if not frozen.all():  # nothing makes up for a factor of zero
            continue
        ratio = tuned[name] / frozen
        weight, bias = layers[layer]
        layers[layer] = (ratio[:, None] * weight, None if bias is None else ratio * bias)
        taken.add(name)


def _fold_statistics(
    layers: dict[str, tuple[Array, Array | None]],
    tuned: Mapping[str, Array],
    target: Target,
    taken: set[str],
) -> None:
    """A BatchNorm of other statistics is one of the frozen statistics with another affine."""
    frozen = target.backbone.tensors
    for layer, eps in target.batch_norms.items():
        if layer not in layers or layers[layer][1] is None:
            continue
        names = f"{layer}.running_mean", f"{layer}.running_var"
        mean, var = (frozen[name].numpy().astype(np.float64) for name in names)
        new_mean, new_var = (tuned[name] for name in names)
        weight, bias = layers[layer]
        assert bias is not None
        slope = weight[:, 0] / np.sqrt(new_var + eps)
        shifted = bias + slope * (mean - new_mean)
        layers[layer] = ((slope * np.sqrt(var + eps))[:, None], shifted)
        taken.update(names)


def _left_out(tuned: Mapping[str, Array], backbone: Backbone, taken: set[str]) -> dict[str, float]:
    found = {}
    for name, tensor in backbone.tensors.items():
        if name in taken or name.endswith(_COUNTER):
            continue
        frozen = tensor.numpy().astype(np.float64)
        change = float(np.linalg.norm(tuned[name] - frozen))
        if change:
            found[name] = change / (float(np.linalg.norm(frozen)) or 1.0)
    return found


def require_all(tuned: Tuned) -> None:
    """Refuse a network of which something cannot be taken over.

    Raises:
        ArtifactError: If there is; names it.
    """
    if not tuned.left_out:
        return
    shown = ", ".join(f"{name} ({change:.1%})" for name, change in tuned.left_out.items())
    raise ArtifactError(
        f"{tuned.where}: no layer can take over what changed in {shown}. With --leave-out the "
        "delta does without, and the report says how far its answers are from the network's."
    )
