"""A task that was really trained, exported with its ONNX model; and tasks of unlike answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from marked_tasks import N_TASKS, add_marked_task
from trained_task import train_and_export


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, Artifact]:
    """A store with the task ``colours``: 3 labels, 32 x 32 pixels, exported in fp32."""
    return train_and_export(tmp_path_factory.mktemp("trained") / "artifacts")


@pytest.fixture
def own_store(trained: tuple[ArtifactStore, Artifact], tmp_path: Path) -> ArtifactStore:
    """A copy that a test may damage."""
    shutil.copytree(trained[0].root, tmp_path / "artifacts")
    return ArtifactStore.open(tmp_path / "artifacts")


@pytest.fixture(scope="session")
def marked(
    trained: tuple[ArtifactStore, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> ArtifactStore:
    """``colours``, which was exported, and ``t0`` to ``t5``: task i answers class i, of 8 + i."""
    store, base = trained
    root = tmp_path_factory.mktemp("marked") / "artifacts"
    shutil.copytree(store.root, root)
    copy = ArtifactStore.open(root)
    for index in range(N_TASKS):
        add_marked_task(copy, base, f"t{index}", mark=index, n_classes=8 + index, seed=index)
    return copy


@pytest.fixture
def own_marked(marked: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """A copy that a test may change and damage."""
    shutil.copytree(marked.root, tmp_path / "artifacts")
    return ArtifactStore.open(tmp_path / "artifacts")
