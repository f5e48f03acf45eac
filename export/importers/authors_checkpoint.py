"""Checkpoints of the authors' GLoRA release: one supernet's tensors, cut down to one subnet.

Their ``.pt`` holds, for each linear layer, ``Ad, Au, Bd, Bu, Cd, Cu, D, E`` and the classifier
under timm's names (``GLoRA/utils.py:37-44`` of Arnav0400/ViT-Slim). What a path uses of them is a
slice: lora of rank r the leading r columns and rows, vector the first column, scalar, which they
call ``constant``, its first entry (``GLoRA/layer.py:31-54``). The file does not say which subnet
was chosen, so that is given beside it, in any of three forms:

- lines as this project prints them, ``blocks.0.attn.qkv: A=lora:4 B=vector``;
- JSON, their list of ``{"A": "LoRA_4", "B": "vector", ...}``, one per layer in module order;
- ``checkpoint-20.pth.tar`` of their search, whose best candidate is taken.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor

from glora_deploy.backbones.checkpoint_file import load_torch
from glora_deploy.backbones.load import Backbone
from glora_deploy.errors import ArtifactError, BackboneMismatchError, StoreError
from glora_deploy.file_kind import require_weights
from glora_deploy.glora.forms import SUPPORTS, Form, LayerForms, LayerShape, Subnet, Support

from .assemble import Array, Imported, Part, Place, Target, assemble
from .detect_lycoris import refuse_lycoris, require_no_lycoris, safetensors_names

_TENSOR = re.compile(r"(?P<layer>.+)\.(?P<name>[ABC][du]|[DE])")
_NAMES = ("Ad", "Au", "Bd", "Bu", "Cd", "Cu", "D", "E")
# How torch's two file formats begin: a zip archive, and the older bare pickle.
_TORCH_FILE = (b"PK", b"\x80\x02")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An authors' ``.pt``, fitted to no backbone yet."""

    path: Path
    tensors: Mapping[str, NDArray[Any]]
    subnet: Path
    """File that says which subnet to take."""


def read_checkpoint(path: Path, subnet: Path) -> Checkpoint:
    """Read an authors' ``.pt``, without running code.

    Args:
        path: The file.
        subnet: File that says which subnet to take, see above.

    Raises:
        StoreError: If a file is missing.
        ArtifactError: If the first is damaged or holds something else, LyCORIS' GLoRA among it.
    """
    if not path.is_file():
        refuse_lycoris(path)
        raise StoreError(f"{path}: must be a file, none is here. Give the authors' .pt file.")
    kind = require_weights(path)
    if kind == "safetensors":
        require_no_lycoris(safetensors_names(path), path)
    if kind != "torch":
        raise ArtifactError(f"{path}: must be a .pt of the authors' release, got {kind}")
    content = load_torch(path)
    tensors = {name: t for name, t in content.items() if isinstance(t, Tensor)}
    if not tensors or len(tensors) < len(content) or not all(isinstance(n, str) for n in content):
        raise ArtifactError(f"{path}: must map names to tensors. Give the authors' .pt file.")
    require_no_lycoris(tensors, path)
    if not subnet.is_file():
        raise StoreError(f"{subnet}: must be a file, none is here. Give the chosen subnet.")
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    return Checkpoint(path, arrays, subnet)


def import_glora(checkpoint: Checkpoint, backbone: Backbone) -> Imported:
    """Take one subnet out of an authors' checkpoint.

    Args:
        checkpoint: As from :func:`read_checkpoint`.
        backbone: The network it was trained on; theirs is timm's
            ``vit_base_patch16_224.orig_in21k``.

    Raises:
        ArtifactError: If a tensor is of no support, or the subnet's file holds something else.
        BackboneMismatchError: If layers, shapes or classifier differ from the backbone's.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    heads = tuple(f"{name}." for name in backbone.classifier)
    classifier = {name: value for name, value in tensors.items() if name.startswith(heads)}
    layers: dict[str, dict[str, Array]] = defaultdict(dict)
    for name, value in tensors.items():
        if found := _TENSOR.fullmatch(name):
            layers[found["layer"]][found["name"]] = np.asarray(value, np.float64)
        elif name not in classifier:
            raise ArtifactError(
                f"{path}: {name} must be a support (Ad, Au, ..., E) or the classifier "
                f"{', '.join(backbone.classifier)}, it is neither"
            )
    weight = f"{backbone.classifier[0]}.weight"
    if weight not in classifier:
        raise BackboneMismatchError(f"{path}: must hold the classifier's {weight}, it does not")
    target = Target(backbone, len(classifier[weight]))
    _require_layers(target, layers, path)
    order = [name for name in target.shapes if name in layers]
    chosen = _read_subnet(checkpoint.subnet, order)
    parts = {
        Place(layer): Part(_slices(layers[layer], paths, target.shapes[layer], f"{path}: {layer}"))
        for layer, paths in chosen.items()
    }
    origin: dict[str, JsonValue] = {"imported_from": f"GLoRA release: {path.name}"}
    return assemble(target, parts, classifier, where=str(path), origin=origin)


def _require_layers(target: Target, layers: Mapping[str, Mapping[str, Array]], path: Path) -> None:
    for layer, tensors in sorted(layers.items()):
        shape = target.shapes.get(layer)
        if shape is None or shape.kind != "linear":
            raise BackboneMismatchError(
                f"{path}: {layer} must be a linear layer of the backbone, "
                f"{target.backbone.architecture} has none of this name. "
                "Give the backbone it was trained on."
            )
        if missing := [name for name in _NAMES if name not in tensors]:
            raise ArtifactError(f"{path}: {layer} must have {missing[0]}, it does not")
        rank = tensors["Ad"].shape[-1]
        for name, expected in _shapes(shape, rank).items():
            if tensors[name].shape != expected:
                raise BackboneMismatchError(
                    f"{path}: {layer}.{name} must have shape {expected} to fit the backbone's "
                    f"({shape.d_out}, {shape.d_in}), got {tensors[name].shape}. "
                    "Give the backbone it was trained on."
                )


def _shapes(shape: LayerShape, rank: int) -> dict[str, tuple[int, ...]]:
    """Every tensor that the release keeps for a layer."""
    d_out, d_in = shape.d_out, shape.d_in
    return {
        "Ad": (d_out, rank),
        "Au": (rank, d_in),
        "Bd": (d_out, rank),
        "Bu": (rank, d_in),
        "Cd": (d_in, rank),
        "Cu": (rank, 1),
        "D": (d_out,),
        "E": (d_out,),
    }


def _slices(
    tensors: Mapping[str, Array], paths: LayerForms, shape: LayerShape, where: str
) -> dict[str, Array]:
    """What the paths use of one layer's supernet tensors, named as a delta names them."""
    supports: dict[str, Array] = {}
    for support, path in paths.items():
        if path.kind == "none":
            continue
        if not shape.bias and support in "CDE":
            if support == "D":
                continue  # theirs has no effect without a bias
            raise ArtifactError(
                f"{where}: {support}={path} would give a bias to a layer that has none. "
                "Only a subnet with C and E none there keeps the network's architecture."
            )
        if support in "DE":
            stored = tensors[support]
            supports[support] = stored[:1] if path.kind == "scalar" else stored
            continue
        down, up = tensors[f"{support}d"], tensors[f"{support}u"]
        if path.kind == "lora":
            if path.rank > len(up):
                raise ArtifactError(
                    f"{where}: {support}={path} must be of a rank up to {len(up)}, which "
                    "the checkpoint holds. Give the subnet of this checkpoint."
                )
            supports |= {f"{support}_d": down[:, : path.rank], f"{support}_u": up[: path.rank]}
        else:
            supports[support] = down[:1, :1] if path.kind == "scalar" else down[:, :1]
    return supports


def _read_subnet(path: Path, layers: Sequence[str]) -> Subnet:
    """The subnet in a file, over these layers in module order."""
    data = path.read_bytes()
    if data.startswith(_TORCH_FILE):
        return _from_search(load_torch(path), layers, path)
    try:
        text = data.decode()
        if text.lstrip().startswith("["):
            return _from_list(json.loads(text), layers, path)
        subnet = Subnet.parse(text)
    except ValueError as error:
        raise ArtifactError(f"{path}: must be a subnet: {error}") from error
    if odd := sorted(subnet.keys() ^ set(layers)):
        raise BackboneMismatchError(
            f"{path}: the subnet and the checkpoint differ in {len(odd)} layers: {odd[0]}"
        )
    return subnet


def _from_search(content: Mapping[Any, Any], layers: Sequence[str], path: Path) -> Subnet:
    """The best candidate of a search: its lists are sorted, best first."""
    ranked = content.get("keep_top_k")
    best = [found[0] for found in ranked.values() if found] if isinstance(ranked, dict) else []
    if not best:
        raise ArtifactError(f"{path}: must hold keep_top_k with a candidate, it does not")
    return _from_list(list(best[0]), layers, path)


def _from_list(choices: object, layers: Sequence[str], path: Path) -> Subnet:
    if not isinstance(choices, list) or len(choices) != len(layers):
        found = len(choices) if isinstance(choices, list) else type(choices).__name__
        raise BackboneMismatchError(
            f"{path}: must list one choice for each of the {len(layers)} layers, got {found}"
        )
    return Subnet({layer: _paths(c, path) for layer, c in zip(layers, choices, strict=True)})


def _paths(choice: object, path: Path) -> LayerForms:
    if not isinstance(choice, dict) or choice.keys() != set(SUPPORTS):
        raise ArtifactError(f"{path}: a choice must have A to E, got {choice!r}")
    return LayerForms(**{support: _path(support, choice[support], path) for support in SUPPORTS})


def _path(support: Support, text: object, path: Path) -> Form:
    match = re.fullmatch(r"LoRA_([1-9][0-9]{0,4})|vector|constant|none", str(text))
    lora = bool(match and match[1])
    if match is None or (lora and support in "DE") or (text == "constant" and support == "C"):
        raise ArtifactError(f"{path}: {support} cannot be {text!r}")
    if lora:
        return Form("lora", int(match[1]))
    return Form.parse("scalar" if text == "constant" else str(text))
