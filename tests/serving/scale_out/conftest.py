"""One store of tasks of unlike answers, one process on it, and a front with two replicas."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress

import pytest

from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from marked_tasks import add_marked_task

# Its own deprecated calls warn, and warnings are errors.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with suppress(ModuleNotFoundError):
        import ray.serve  # noqa: F401

TASKS = ("ants", "bees", "cats", "dogs")
SETTINGS = EngineSettings(threads=1, watch_s=0.2)


@pytest.fixture(scope="module")
def scaled_store(
    trained: tuple[ArtifactStore, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> ArtifactStore:
    """Task i answers class i; ``ants`` has two versions, and its first is not current."""
    root = tmp_path_factory.mktemp("scaled") / "artifacts"
    shutil.copytree(trained[0].root, root)
    made = ArtifactStore.open(root)
    add_marked_task(made, trained[1], "ants", mark=5, n_classes=8, seed=9)
    for mark, task in enumerate(TASKS):
        add_marked_task(made, trained[1], task, mark=mark, n_classes=8, seed=mark)
    return made


@pytest.fixture(scope="module")
def one_process(scaled_store: ArtifactStore) -> Iterator[StoreEngine]:
    with StoreEngine(scaled_store.root, SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def two_replicas(scaled_store: ArtifactStore) -> Iterator[StoreEngine]:
    pytest.importorskip("ray", reason="needs the extra ray")
    from glora_deploy.serving.scale_out.cluster import replicas
    from glora_deploy.serving.scale_out.routed_engine import RoutedEngine
    from glora_deploy.serving.scale_out.scale import Scale

    with replicas(scaled_store.root, SETTINGS, Scale(replicas=2, cpus=0.5)) as handle:
        made = RoutedEngine(scaled_store.root, SETTINGS, handle)
        yield made
        made.close(5)
