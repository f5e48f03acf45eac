"""Stores that hold real networks: untrained backbones, random deltas, everything else as in use."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from glora_deploy.backbones.load import Backbone, load_backbone
from glora_deploy.export.parity_check.torch_networks import write_reference
from glora_deploy.export.stored_backbone import backbone_of
from glora_deploy.glora.forms import LayerKind
from glora_deploy.glora.supernet_layers import extract_supports, find_layers, glora_layers, inject
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.fingerprint import fingerprint
from glora_deploy.store.manifest import LayerRecord, ManifestDraft
from glora_deploy.store.manifest_fields import TrainingRecord
from glora_deploy.store.store import ArtifactStore

LABELS = ("ant", "bee", "cat", "dog", "elk")


def make_backbone(
    name: str = "vit_tiny_patch16_224", *, seed: int = 0, input_size: int = 32, **model_args: Any
) -> Backbone:
    """An untrained timm backbone; a ViT of two narrow blocks by default."""
    if not model_args and name == "vit_tiny_patch16_224":
        model_args = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return load_backbone(
        name, checkpoint=f"random:{seed}", input_size=input_size, model_args=model_args
    )


def make_overflowing_backbone() -> Backbone:
    """The small ViT with hidden values of about 1e5, which the layer after them takes back."""
    backbone = make_backbone()
    backbone.tensors["blocks.1.norm2.weight"].mul_(500)
    backbone.tensors["blocks.1.mlp.fc1.weight"].mul_(400)
    backbone.tensors["blocks.1.mlp.fc2.weight"].div_(400)
    tensors = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    return replace(backbone, fingerprint=fingerprint(tensors))


def make_stored_task(
    root: Path,
    task: str = "pets",
    *,
    backbone: Backbone | None = None,
    kinds: Sequence[LayerKind] = ("linear", "conv", "affine"),
    seed: int = 0,
    scale: float = 0.05,
    data: str | None = None,
    labels: Sequence[str] = LABELS,
) -> tuple[ArtifactStore, Artifact]:
    """A store with one more version of a task: a random subnet with random values on a backbone.

    Args:
        root: Of the store; made if missing.
        task: Its name.
        backbone: Kept in the store; a small untrained ViT by default.
        kinds: Which layers carry supports.
        seed: Of subnet, values and classifier.
        scale: Standard deviation of every support tensor.
        data: Data spec for the manifest.
        labels: Class names.
    """
    backbone = backbone or make_backbone()
    store = ArtifactStore.create(root)
    tensors = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    store.put_backbone(backbone.fingerprint, tensors, backbone.config())
    model = backbone.build(len(labels), seed=seed)
    layers = find_layers(model, kinds=kinds, exclude=backbone.classifier)
    generator = torch.Generator().manual_seed(seed)
    space = inject(model, layers, ranks=(3, 2), generator=generator)
    with torch.no_grad():
        for layer in glora_layers(model).values():
            for name, parameter in layer.named_parameters():
                if not name.startswith("base."):
                    parameter.normal_(0, scale, generator=generator)
    subnet = space.draw(random.Random(seed))
    heads = tuple(f"{head}." for head in backbone.classifier)
    delta = {name: t.numpy() for name, t in extract_supports(model, subnet).items()}
    delta |= {
        name: tensor.detach().numpy()
        for name, tensor in model.state_dict().items()
        if name.startswith(heads)
    }
    draft = ManifestDraft(
        backbone=backbone.record(),
        preprocessing=backbone.preprocessing_record(),
        labels=tuple(labels),
        layers={n: LayerRecord.of(space.shapes[n], paths) for n, paths in subnet.items()},
        training=TrainingRecord(
            method="glora",
            schedule="short",
            data=data,
            splits_sha256=None,
            seed=seed,
            epochs=1,
            seconds=1.0,
            device="cpu",
            versions={"torch": torch.__version__},
            val_accuracy=0.5,
            test_accuracy=0.5,
            settings={},
        ),
    )
    return store, store.put(task, {n: np.ascontiguousarray(v) for n, v in delta.items()}, draft)


def merged_state(store: ArtifactStore, artifact: Artifact) -> dict[str, torch.Tensor]:
    """The state dict of the merged network, float64: the plain formula, rounded nowhere."""
    with store.scratch("the reference") as scratch:
        path = scratch / "model.safetensors"
        write_reference(path, artifact, backbone_of(store, artifact.manifest) / "model.safetensors")
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
