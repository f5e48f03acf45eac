"""Stores of tasks that cannot be taken for one another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from marked_tasks import N_TASKS, OpenEngine, add_marked_task


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


@pytest.fixture
def open_engine() -> Iterator[OpenEngine]:
    """Engines with one thread that watch nothing unless told to; closed at the end."""
    engines = []

    def open_one(store: ArtifactStore, **changes: object) -> StoreEngine:
        fields: dict[str, object] = {"threads": 1, "watch_s": None, **changes}
        engines.append(StoreEngine(store.root, EngineSettings(**fields)))  # type: ignore[arg-type]
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


@pytest.fixture
def images() -> NDArray[np.float32]:
    """Three preprocessed images of 32 x 32 pixels."""
    return np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
