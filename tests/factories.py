"""Small typed makers of what many tests need; each gives a fresh object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glora_deploy.glora.forms import LayerForms, LayerShape
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.manifest import (
    BackboneRecord,
    LayerRecord,
    ManifestDraft,
    PreprocessingRecord,
    TrainingRecord,
)
from glora_deploy.store.store import ArtifactStore

LAYERS: Mapping[str, tuple[LayerShape, str]] = {
    "patch_embed.proj": (
        LayerShape(kind="conv", d_out=5, d_in=12, bias=True),
        "A=vector B=lora:2 C=none D=scalar E=vector",
    ),
    "blocks.0.norm1": (
        LayerShape(kind="affine", d_out=5, d_in=1, bias=True),
        "A=vector B=scalar D=none E=vector",
    ),
    "blocks.0.attn.qkv": (
        LayerShape(kind="linear", d_out=15, d_in=5, bias=True),
        "A=lora:3 B=scalar C=lora:2 D=vector E=scalar",
    ),
}
"""A convolution, an affine and a linear layer; every path and no two sizes alike."""

LABELS = ("cat", "dog", "Führerschein", "owl")


def make_draft(
    layers: Mapping[str, tuple[LayerShape, str]] = LAYERS, **changes: Any
) -> ManifestDraft:
    """A valid draft of a small network of width 5; ``changes`` replace whole fields."""
    fields: dict[str, Any] = {
        "backbone": BackboneRecord(
            name="vit_tiny_patch16_224",
            model_args={"img_size": [6, 8], "embed_dim": 5},
            source="random:0",
            fingerprint="ab" * 32,
            classifier=("head",),
            input_size=(3, 6, 8),
        ),
        "preprocessing": PreprocessingRecord(
            mean=(0.5, 0.25, 0.125),
            std=(0.5, 0.5, 0.25),
            size=(6, 8),
            interpolation="bicubic",
            crop_pct=0.875,
            crop_mode="center",
        ),
        "labels": LABELS,
        "layers": {
            name: LayerRecord.of(shape, LayerForms.parse(paths))
            for name, (shape, paths) in layers.items()
        },
        "training": TrainingRecord(
            method="glora",
            schedule="short",
            data="digits",
            splits_sha256="cd" * 32,
            seed=7,
            epochs=3,
            seconds=1.5,
            device="cpu",
            versions={"numpy": "2.0.0"},
            val_accuracy=0.75,
            test_accuracy=None,
            settings={"lr": 0.001, "ranks": [8, 4]},
        ),
    }
    return ManifestDraft(**{**fields, **changes})


def make_tensors(
    draft: ManifestDraft | None = None, *, seed: int = 0, dtype: Any = np.float32
) -> dict[str, NDArray[Any]]:
    """Seeded tensors for a draft: its supports, ``head.weight`` and ``head.bias``."""
    draft = draft or make_draft()
    n_classes = len(draft.labels)
    shapes = {**draft.support_shapes(), "head.weight": (n_classes, 5), "head.bias": (n_classes,)}
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def make_store(root: Path, tasks: Mapping[str, int] | None = None) -> ArtifactStore:
    """A store with this many versions of each task, seeds 1, 2, ...; the newest is current."""
    store = ArtifactStore.create(root)
    for task, n_versions in (tasks or {}).items():
        for seed in range(1, n_versions + 1):
            make_artifact(store, task, seed=seed)
    return store


def make_artifact(store: ArtifactStore, task: str = "pets", *, seed: int = 1) -> Artifact:
    """One more version of a task in a store."""
    draft = make_draft()
    return store.put(task, make_tensors(draft, seed=seed), draft)
