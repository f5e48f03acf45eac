"""Stores with versions that can be published, and origins for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from glora_deploy.export.pipeline import export
from glora_deploy.store.store import ArtifactStore
from object_server import ONNX, Origin, before, moto_server
from stored_tasks import make_backbone, make_stored_task


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """``pets/v1``, ``v2``, ``v3`` and ``cars/v1`` on one backbone, exported; v1 and v1 current."""
    root = tmp_path_factory.mktemp("exported") / "artifacts"
    backbone = make_backbone()
    for seed, task in enumerate(("pets", "pets", "pets", "cars")):
        store, artifact = make_stored_task(root, task, backbone=backbone, seed=seed)
        assert export(store, artifact, ONNX).report.passed
    store.set_current("pets", "v1")
    return store


@pytest.fixture
def store(exported: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """A copy that a test may change."""
    shutil.copytree(exported.root, tmp_path / "artifacts")
    return ArtifactStore.open(tmp_path / "artifacts")


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def origin(moto_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """An origin of this test alone, behind a proxy of its own, in the environment's endpoint."""
    with before(moto_port) as objects:
        for name, value in {
            "AWS_ENDPOINT_URL": objects.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
        }.items():
            monkeypatch.setenv(name, value)
        yield Origin(objects, uuid4().hex)
