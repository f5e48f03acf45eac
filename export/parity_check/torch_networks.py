"""The torch networks that parity runs, their weights left in the files they lie in.

A network is built without numbers and its parameters are then pages of a mapped file, given back
as soon as a layer has run. Whatever the size of the network, little more than its largest layer
and the activations are in memory.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glora_deploy.backbones.load import TimmFolder, build_empty, load_timm_folder
from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import ArtifactError
from glora_deploy.glora.supernet_layers import inject, restore_supports
from glora_deploy.merge.formula import merge, split_by_layer
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import CONFIG_FILE, WEIGHTS_FILE
from glora_deploy.store.manifest import Manifest
from glora_deploy.store.mapped_safetensors import (
    TensorMap,
    create_tensor_file,
    map_tensors,
    read_layout,
)
from glora_deploy.strict_record import short

from .batch_sizes import Logits


def frozen_network(artifact: Artifact, backbone: Path) -> nn.Module:
    """The vanilla network with the frozen backbone and this task's classifier, float32.

    Args:
        artifact: The task's delta.
        backbone: The backbone's safetensors file.

    Raises:
        ArtifactError: If a file is not what the manifest says.
    """
    _, head = _split(artifact)
    return _filled(artifact.manifest, {**map_tensors(backbone), **head})


def supernet(artifact: Artifact, backbone: Path) -> nn.Module:
    """The training graph with the delta's subnet fixed, float32.

    Args:
        artifact: The task's delta.
        backbone: The backbone's safetensors file.

    Raises:
        ArtifactError: If a file is not what the manifest says.
    """
    manifest = artifact.manifest
    supports, head = _split(artifact)
    frozen = map_tensors(backbone)
    model = _filled(manifest, {**frozen, **head})
    _release_after_use(model, frozen)
    subnet = manifest.subnet()
    if not subnet:  # a linear probe: the classifier is all there is
        return model
    ranks = {path.rank for paths in subnet.values() for _, path in paths.items()} - {0}
    inject(model, manifest.shapes(), ranks=sorted(ranks or {1}), generator=torch.Generator())
    restore_supports(model, subnet, supports)
    return model.eval()


def merged_network(manifest: Manifest, weights: Path) -> nn.Module:
    """The vanilla network with every weight from one file, in the file's precision.

    Args:
        manifest: Names the architecture.
        weights: safetensors file of a whole network. May be deleted while the network lives.

    Raises:
        ArtifactError: If it is not a safetensors file.
        RuntimeError: If its names or shapes are not those of the network.
    """
    tensors = map_tensors(weights)
    model = _filled(manifest, tensors)
    _release_after_use(model, tensors)
    return model


def exported_network(manifest: Manifest, folder: Path) -> nn.Module:
    """The network of an export as whoever gets the folder loads it, in the file's precision.

    timm's own loader reads config.json and model.safetensors; nothing of the network is taken from
    the manifest, and what timm makes of the images and the classes must be what it says.

    Args:
        manifest: Of the delta that the export is of.
        folder: The export. Its files may be deleted while the network lives.

    Raises:
        ArtifactError: If timm cannot load it, or its images or classes are not those of the
            manifest; names both sides.
    """
    loaded = load_timm_folder(folder)
    _require_described(folder / CONFIG_FILE, manifest, loaded)
    model, path = loaded.model, folder / WEIGHTS_FILE
    # Buffers that no state dict holds have to follow the weights.
    model.to(next(model.parameters()).dtype)
    if _lies_in(model, path):
        tensors = map_tensors(path)
        # The same bytes through a mapping whose pages can be given back.
        model.load_state_dict({n: _tensor(t) for n, t in tensors.items()}, strict=True, assign=True)
        _release_after_use(model, tensors)
    return model


def write_reference(path: Path, artifact: Artifact, backbone: Path) -> None:
    """Write the merged network in float64: the plain formula, layer by layer, nothing rounded.

    Args:
        path: New safetensors file, twice the bytes of the float32 network.
        artifact: The task's delta.
        backbone: The backbone's safetensors file.

    Raises:
        ArtifactError: If a file is not what the manifest says.
        OSError: If there is no space.
    """
    supports, head = _split(artifact)
    frozen = map_tensors(backbone)
    whole = {**frozen, **{name: tensor.numpy() for name, tensor in head.items()}}
    specs = {
        name: (np.dtype(np.float64) if array.dtype.kind == "f" else array.dtype, array.shape)
        for name, array in whole.items()
    }
    out = create_tensor_file(path, specs, metadata={})

    def write(name: str, values: NDArray[Any]) -> None:
        out[name][...] = values
        out.release(name)
        if name in frozen:
            frozen.release(name)

    for layer, tensors in split_by_layer(supports, artifact.manifest.layers).items():
        w0, b0 = whole.pop(f"{layer}.weight"), whole.pop(f"{layer}.bias", None)
        base = None if b0 is None else _tensor(b0)
        weight, bias = merge(_tensor(w0), base, tensors, torch.float64)
        write(f"{layer}.weight", weight.numpy())
        if bias is not None:
            write(f"{layer}.bias", bias.numpy())
    for name, array in whole.items():
        write(name, array)


def torch_logits(model: nn.Module) -> Logits:
    """Run a torch network in its own dtype on the CPU; the logits are widened to float64."""
    dtype = next(model.parameters()).dtype

    @torch.inference_mode()
    def logits(images: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = model(torch.from_numpy(images).to(dtype)).double().numpy()
        return found

    return logits


def _split(artifact: Artifact) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The supports of a delta, and its classifier, widened to float32."""
    is_head = artifact.manifest.is_head
    supports: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    for name, array in artifact.tensors().items():
        tensor = torch.from_numpy(np.array(array, np.float32))
        (head if is_head(name) else supports)[name] = tensor
    return supports, head


def _require_described(path: Path, manifest: Manifest, loaded: TimmFolder) -> None:
    expected = Preprocessing(**manifest.preprocessing.model_dump())
    pairs = {
        field.name: (getattr(loaded.preprocessing, field.name), getattr(expected, field.name))
        for field in fields(Preprocessing)
    } | {"labels": (loaded.labels, manifest.labels)}
    for name, (found, stated) in pairs.items():
        if found != stated:
            raise ArtifactError(
                f"{path}: {name} must be {short(stated)} by the manifest, timm takes it as "
                f"{short(found)}. Export it again."
            )


def _lies_in(model: nn.Module, path: Path) -> bool:
    """Whether every tensor of a network is the unaltered part of this file that has its name.

    timm reads the file through one mapping, from which any tensor that it did not make itself lies
    as far as in the file; the counter tells of one that was written to.
    """
    state, places = model.state_dict(keep_vars=True), read_layout(path)
    starts = {tensor.data_ptr() - places[name].offset for name, tensor in state.items()}
    return (
        len(starts) == 1
        and starts.pop() % mmap.PAGESIZE == 0
        and all(tensor._version == 0 for tensor in state.values())
    )


def _filled(manifest: Manifest, tensors: Mapping[str, NDArray[Any] | Tensor]) -> nn.Module:
    """The vanilla network with these tensors as its parameters and buffers, not copied."""
    backbone = manifest.backbone
    model = build_empty(backbone.name, backbone.model_args, len(manifest.labels))
    state = {name: _tensor(value) for name, value in tensors.items()}
    # Buffers that no state dict holds have to follow the weights.
    model.to(next(t.dtype for t in state.values() if t.is_floating_point()))
    model.load_state_dict(state, strict=True, assign=True)
    return model


def _tensor(value: NDArray[Any] | Tensor) -> Tensor:
    """A tensor over an array's own memory."""
    if isinstance(value, Tensor):
        return value
    if value.dtype == ml_dtypes.bfloat16:  # which torch does not take from numpy
        return _tensor(value.view(np.int16)).view(torch.bfloat16)
    with warnings.catch_warnings():
        # torch knows no read-only tensors; nothing here writes into one.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(value)


def _release_after_use(model: nn.Module, tensors: TensorMap) -> None:
    """Let a file's pages go as soon as the module that they are parameters of has run."""

    def release(names: list[str], *_: object) -> None:
        for name in names:
            tensors.release(name)

    for prefix, module in model.named_modules():
        names = [
            name
            for own in (module.named_parameters, module.named_buffers)
            for name, _ in own(prefix, recurse=False)
            if name in tensors
        ]
        if names:
            module.register_forward_hook(partial(release, names))
