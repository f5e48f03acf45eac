"""A task that is really trained in a few seconds, and exported with its ONNX model."""

from __future__ import annotations

from pathlib import Path

import pytest

from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline
from glora_deploy.training.config import RunConfig, SearchConfig, TrainConfig
from tasks import make_task, use_small_backbone

ONNX = ExportConfig(formats=("merged", "onnx"), n_images=2)


def train_and_export(root: Path) -> tuple[ArtifactStore, Artifact]:
    """A store with the task ``colours``: 3 labels, 32 x 32 pixels, exported in fp32."""
    train = TrainConfig.preset("short", epochs=8, batch_size=12, lr=1e-2, ranks=(3, 2))
    search = SearchConfig(population=4, generations=1, top_k=2, mutations=2, crossovers=2)
    config = RunConfig(task="colours", data="colours", train=train, search=search)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_task", lambda spec, seed: make_task())
        use_small_backbone(patch)
        (outcome,) = pipeline.run(config, root, lambda *_: None)
    store = ArtifactStore.open(root)
    assert export(store, outcome.artifact, ONNX).report.passed
    return store, outcome.artifact
