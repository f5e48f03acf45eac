"""A task that was really trained, exported with its ONNX model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
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
