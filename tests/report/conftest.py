"""A task whose classes have hostile names, really trained, and the report on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from glora_deploy.report import WrittenReport, write_report
from glora_deploy.store.store import ArtifactStore
from glora_deploy.training import pipeline
from glora_deploy.training.config import RunConfig, SearchConfig, TrainConfig
from tasks import use_small_backbone

for package in ("matplotlib", "jinja2", "sklearn"):
    pytest.importorskip(package, reason=f"{package} is not installed (extra `report`)")

LABELS = ("$x_1$ & 花", "<img src=x onerror=alert(1)>", '<script>"alert(1)"')
"""In the order of their labels; the first has letters that the font of the PNGs lacks."""


@pytest.fixture(scope="session")
def hostile_store(colour_images: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """``colours/v1`` by the search, trained once more on both splits, and ``v2`` by LoRA."""
    data, root = (tmp_path_factory.mktemp(name) / name for name in ("images", "artifacts"))
    for split in ("train", "val", "test"):
        for name, label in zip(("red", "green", "blue"), LABELS, strict=True):
            shutil.copytree(colour_images / split / name, data / split / label)
    search = SearchConfig(population=4, generations=2, top_k=2, mutations=2, crossovers=2)
    glora = TrainConfig.preset("short", epochs=8, batch_size=12, lr=1e-2, ranks=(3, 2))
    lora = TrainConfig.preset("short", epochs=1, batch_size=12, ranks=(2,))
    spec = f"folder:{data}"
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        for config in (
            RunConfig(task="colours", data=spec, train=glora, search=search, retrain=True),
            RunConfig(task="colours", data=spec, train=lora, search=None, method="lora"),
        ):
            pipeline.run(config, root, lambda *_: None)
    return ArtifactStore.open(root)


@pytest.fixture(scope="session")
def hostile_report(
    hostile_store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory
) -> WrittenReport:
    """The report on ``colours/v1``; no test changes it."""
    out = tmp_path_factory.mktemp("report") / "colours"
    return write_report("colours", "v1", store=hostile_store.root, out=out)
