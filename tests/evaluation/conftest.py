"""Coloured images in folders, and a store with two versions that were trained on them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from colour_files import train_colours, write_colours
from glora_deploy.store.store import ArtifactStore


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that no test changes."""
    root = tmp_path_factory.mktemp("images") / "colours"
    write_colours(root)
    return root


@pytest.fixture(scope="session")
def store(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """A store with ``colours/v1`` and ``v2`` that no test changes."""
    return train_colours(colours, tmp_path_factory.mktemp("trained") / "artifacts")


@pytest.fixture
def own_store(store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """A copy that a test may change; it names the same images."""
    shutil.copytree(store.root, tmp_path / "artifacts")
    return ArtifactStore.open(tmp_path / "artifacts")
