"""The network in PyTorch answers as ONNX Runtime's does, task after task."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from glora_deploy.serving.engines.torch_network import TorchNetwork
from glora_deploy.serving.errors import LoadError
from glora_deploy.serving.tasks.contract import InferRequest
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.mapped_safetensors import map_tensors
from glora_deploy.store.store import ArtifactStore
from marked_tasks import add_marked_task, reference_logits
from stored_tasks import make_backbone, make_stored_task

ATOL = 5e-5  # float32; logits near 1
IMAGES = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """Three tasks on a ViT and one on a ResNet, none of them exported."""
    root = tmp_path_factory.mktemp("torch") / "artifacts"
    store, base = make_stored_task(root, "base")
    for index in range(3):
        add_marked_task(store, base, f"t{index}", mark=index, n_classes=4 + index, seed=index)
    make_stored_task(root, "convolutional", backbone=make_backbone("resnet10t"), seed=3)
    return store


def open_engine(store: ArtifactStore, **changes: object) -> StoreEngine:
    fields = {"backend": "torch", "watch_s": None, **changes}
    return StoreEngine(store.root, EngineSettings(**fields))  # type: ignore[arg-type]


def test_it_needs_no_export_and_answers_as_the_merged_network(store: ArtifactStore) -> None:
    assert not (store.root / ".skeletons").exists()
    with open_engine(store) as engine:
        for task in engine.tasks():
            answer = engine.submit(InferRequest(task=task, images=IMAGES)).result()
            expected = reference_logits(store, store.get(task), IMAGES)
            np.testing.assert_allclose(answer.logits, expected, rtol=1e-5, atol=ATOL)


def test_tasks_in_turn_from_many_threads_get_their_own_answers(store: ArtifactStore) -> None:
    with open_engine(store, memory_budget_bytes=300_000) as engine:

        def client(seed: int) -> int:
            rng = np.random.default_rng(seed)
            wrong = 0
            for _ in range(30):
                index = int(rng.integers(3))
                request = InferRequest(task=f"t{index}", images=IMAGES[:2])
                wrong += (engine.submit(request).result().logits.argmax(1) != index).any()
            return int(wrong)

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(client, range(4))) == 0
        assert engine.usage().swaps > 10


def test_a_head_that_is_no_linear_layer_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = store.get("t0")
    manifest = artifact.manifest
    frozen = map_tensors(store.backbone_path(manifest.backbone.fingerprint) / "model.safetensors")
    two = manifest.backbone.model_copy(update={"classifier": ("head", "head_dist")})
    with pytest.raises(LoadError, match="the head must be one linear layer"):
        TorchNetwork(manifest.model_copy(update={"backbone": two}), frozen, adapted=())
    deeper = manifest.backbone.model_copy(
        update={"model_args": {**manifest.backbone.model_args, "depth": 3}}
    )
    with pytest.raises(LoadError, match="the backbone must fit timm's"):
        TorchNetwork(manifest.model_copy(update={"backbone": deeper}), frozen, adapted=())
