"""Engines on stores, and images for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.store import ArtifactStore
from marked_tasks import OpenEngine


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
