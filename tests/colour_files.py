"""The task of coloured images as files in folders, really trained: two versions of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline
from glora_deploy.training.config import RunConfig, SearchConfig, TrainConfig
from tasks import make_images, use_small_backbone

NAMES = ("red", "green", "blue")
N_TEST = 21
N_MISLABELLED = 4
"""Test images in the folder of the next class, so that nobody can answer all of them."""


def write_colours(root: Path) -> None:
    """``root/{train,val,test}/{red,green,blue}/*.png``."""
    for split, n, seed in (("train", 36, 0), ("val", 18, 1), ("test", N_TEST, 2)):
        images = make_images(n, seed=seed)
        for i in range(n):
            wrong = split == "test" and i < N_MISLABELLED
            folder = root / split / NAMES[(int(images.labels[i]) + wrong) % len(NAMES)]
            folder.mkdir(parents=True, exist_ok=True)
            images.image(i).save(folder / f"{i:02}.png")


def train_colours(data: Path, root: Path) -> ArtifactStore:
    """A store with ``colours``: v1 by the search, current; v2 by LoRA, hardly trained.

    v1 is exported with its ONNX model. The backbone is an untrained ViT of narrow blocks.
    """
    search = SearchConfig(population=4, generations=1, top_k=2, mutations=2, crossovers=2)
    glora = TrainConfig.preset("short", epochs=8, batch_size=12, lr=1e-2, ranks=(3, 2))
    lora = TrainConfig.preset("short", epochs=1, batch_size=12, lr=1e-5, ranks=(2,))
    spec = f"folder:{data}"
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        for config in (
            RunConfig(task="colours", data=spec, train=glora, search=search),
            RunConfig(task="colours", data=spec, train=lora, search=None, method="lora"),
        ):
            pipeline.run(config, root, lambda *_: None)
    store = ArtifactStore.open(root)
    artifact = store.set_current("colours", "v1")
    config = ExportConfig(formats=("merged", "onnx"), n_images=2)
    assert export(store, artifact, config).report.passed
    return store
