"""A Hub on this machine and a task to push to it, for the tests of both directions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from hub_server import HubServer, local_hub
from pushed import Pushed
from stored_tasks import make_stored_task


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, Artifact]:
    store, artifact = make_stored_task(tmp_path_factory.mktemp("exported"))
    assert export(store, artifact, ExportConfig(n_images=2)).report.passed
    return store, artifact


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with local_hub(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def task(hub: HubServer, exported: tuple[ArtifactStore, Artifact]) -> Pushed:
    return Pushed(hub, *exported)


@pytest.fixture
def own_task(task: Pushed, tmp_path: Path) -> Pushed:
    """A copy of the task that a test may damage."""
    root = tmp_path / "own"
    shutil.copytree(task.store.root, root)
    store = ArtifactStore.open(root)
    return Pushed(task.hub, store, store.get("pets"))
