"""The shared store by a shorter name, and a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from glora_deploy.store.store import ArtifactStore


@pytest.fixture
def colours(colour_images: Path) -> Path:
    """The images; no test changes them."""
    return colour_images


@pytest.fixture
def store(colour_store: ArtifactStore) -> ArtifactStore:
    """``colours/v1``, exported and current, and ``v2``; no test changes it."""
    return colour_store


@pytest.fixture
def own_store(colour_store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """A copy that a test may change; it names the same images."""
    shutil.copytree(colour_store.root, tmp_path / "artifacts")
    return ArtifactStore.open(tmp_path / "artifacts")
