"""Stores for the serving benchmarks: random backbones, random deltas, one exported task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from glora_deploy.backbones.load import Backbone, load_backbone
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.glora.forms import LayerForms
from glora_deploy.glora.supernet_layers import find_layers
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.manifest import LayerRecord, ManifestDraft
from glora_deploy.store.manifest_fields import TrainingRecord
from glora_deploy.store.store import ArtifactStore

SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
"""A ViT whose merged weights take a quarter of a megabyte."""


def make_backbone(name: str = "vit_base_patch16_224", **model_args: Any) -> Backbone:
    """A backbone of random weights; with ``model_args`` at 32 x 32 pixels."""
    size = 32 if model_args else None
    return load_backbone(name, checkpoint="random:0", input_size=size, model_args=model_args)


def fill_store(
    root: Path,
    backbone: Backbone,
    n_tasks: int,
    *,
    forms: str = "A=lora:4 B=lora:4",
    n_classes: int = 10,
) -> ArtifactStore:
    """Tasks ``t0``, ``t1``, ...: all linear layers adapted, the first one exported to ONNX."""
    store = ArtifactStore.create(root)
    tensors = {name: tensor.numpy() for name, tensor in backbone.tensors.items()}
    store.put_backbone(backbone.fingerprint, tensors, backbone.config())
    model = backbone.build(n_classes, seed=0)
    shapes = find_layers(model, kinds=("linear",), exclude=backbone.classifier)
    chosen = LayerForms.parse(forms)
    draft = ManifestDraft(
        backbone=backbone.record(),
        preprocessing=backbone.preprocessing_record(),
        labels=tuple(f"class {index}" for index in range(n_classes)),
        layers={name: LayerRecord.of(shape, chosen) for name, shape in shapes.items()},
        training=TrainingRecord(
            method="glora",
            schedule=None,
            data=None,
            splits_sha256=None,
            seed=0,
            epochs=0,
            seconds=0.0,
            device="cpu",
            versions={"torch": torch.__version__},
            val_accuracy=None,
            test_accuracy=None,
            settings={},
        ),
    )
    head = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if name.startswith(tuple(f"{one}." for one in backbone.classifier))
    }
    for index in range(n_tasks):
        rng = np.random.default_rng(index)
        delta = {
            name: (0.02 * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in {**draft.support_shapes(), **head}.items()
        }
        store.put(f"t{index}", delta, draft)
    return store


def export_first(store: ArtifactStore) -> Artifact:
    """``t0``, exported and proven: the graph that all the others take."""
    artifact = store.get("t0")
    outcome = export(store, artifact, ExportConfig(formats=("merged", "onnx"), n_images=2))
    assert outcome.report.passed
    return artifact
