"""What is around a TensorRT engine: refits, cuts, and which plan answers for whom.

The engine itself needs a GPU that TensorRT supports; here PyTorch computes what it would.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plan_files import make_plan_info, plant_plan

from glora_deploy.errors import ExportError, NotRunnableError
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.serving.engines.network import Buffer
from glora_deploy.serving.engines.plan import (
    PlanModel,
    RefittedPlan,
    cut_to_plan,
    find_refittable,
    plan_of,
)
from glora_deploy.serving.errors import LoadError
from glora_deploy.serving.tasks.engine import StoreEngine
from glora_deploy.serving.tasks.settings import EngineSettings
from glora_deploy.store.mapped_safetensors import map_tensors
from glora_deploy.tensorrt_runtime.plan_json import PlanInfo
from onnx_networks import make_images, make_network, torch_logits, write_weights
from stored_tasks import make_stored_task

HEAD = ("head.weight", "head.bias")
ADAPTED = ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "blocks.1.mlp.fc2.weight")
BATCH = (2, 2, 4)
ATOL = 2e-5


class EngineOfTorch:
    """An engine's manners around a network in PyTorch."""

    opened = 0

    def __init__(self, folder: Path) -> None:
        type(self).opened += 1
        self.model = make_network("vit")
        self.info: PlanInfo = make_plan_info(
            batch=BATCH, refittable=True, parameters=tuple(self.model.state_dict())
        )
        self.n_refits = 0
        self.fails = False

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        least, _, most = self.info.batch
        assert least <= len(images) <= most
        return torch_logits(self.model, images)

    def refit(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        state = self.model.state_dict()
        assert tensors.keys() == state.keys()
        for index, (name, place) in enumerate(state.items()):
            if self.fails and index == len(state) // 2:
                raise ExportError("model.plan: must be refitted, got no memory")
            place.copy_(torch.from_numpy(tensors[name].copy()))
        self.n_refits += 1


def make_task(seed: int) -> torch.nn.Module:
    """The backbone with other adapted weights and another head."""
    task, other = make_network("vit"), make_network("vit", seed=seed).state_dict()
    for name in (*ADAPTED, *HEAD):
        task.state_dict()[name].copy_(other[name])
    return task


@pytest.fixture
def network(tmp_path: Path) -> RefittedPlan:
    frozen = map_tensors(write_weights(make_network("vit"), tmp_path))
    EngineOfTorch.opened = 0
    return RefittedPlan(tmp_path, "fp32", frozen, adapted=ADAPTED, head=HEAD, open_it=EngineOfTorch)


def bound(network: RefittedPlan, task: torch.nn.Module) -> Any:
    state = {name: tensor.numpy() for name, tensor in task.state_dict().items()}
    views = network.layout.views(Buffer(network.layout.size_bytes))
    assert views.keys() == set(ADAPTED)
    for name, view in views.items():
        view[...] = state[name]
    return network.bind(views, {name: state[name] for name in HEAD})


def test_one_engine_answers_for_task_after_task(network: RefittedPlan) -> None:
    tasks = [make_task(seed) for seed in (3, 4)]
    weights = [bound(network, task) for task in tasks]
    images = make_images("vit")
    for index in (0, 1, 1, 0):
        found = network.run(weights[index], images)
        np.testing.assert_allclose(found, torch_logits(tasks[index], images), atol=ATOL)
    engine: Any = network._engine
    assert (engine.n_refits, EngineOfTorch.opened) == (3, 1)
    assert not np.allclose(torch_logits(tasks[0], images), torch_logits(tasks[1], images), atol=0.1)


def test_after_a_refit_that_failed_half_way_the_plan_is_loaded_anew(network: RefittedPlan) -> None:
    tasks = [make_task(seed) for seed in (3, 4)]
    weights = [bound(network, task) for task in tasks]
    images = make_images("vit")
    network.run(weights[0], images)
    engine: Any = network._engine
    engine.fails = True
    with pytest.raises(ExportError, match="must be refitted"):
        network.run(weights[1], images)
    found = network.run(weights[0], images)
    np.testing.assert_allclose(found, torch_logits(tasks[0], images), atol=ATOL)
    assert EngineOfTorch.opened == 2


def test_batches_are_cut_and_filled_up_to_what_the_plan_takes(tmp_path: Path) -> None:
    engine = EngineOfTorch(tmp_path)
    images = np.random.default_rng(0).standard_normal((9, 3, 32, 32), np.float32)
    for n in (1, 2, 4, 5, 9):
        expected = torch_logits(engine.model, images[:n])
        np.testing.assert_allclose(cut_to_plan(engine, images[:n]), expected, atol=ATOL)
        model = PlanModel(tmp_path, EngineOfTorch)
        np.testing.assert_allclose(model.logits(images[:n]), expected, atol=ATOL)


def test_a_plan_of_another_network_is_refused(tmp_path: Path) -> None:
    frozen = map_tensors(write_weights(make_network("swin"), tmp_path))
    with pytest.raises(LoadError, match=r"the backbone must hold .*, which its plan reads"):
        RefittedPlan(tmp_path, "fp32", frozen, adapted=(), head=HEAD, open_it=EngineOfTorch)


def test_the_proven_plan_of_a_task_with_as_many_classes_is_found(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    store, first = make_stored_task(root, "first", seed=1)
    _, second = make_stored_task(root, "second", seed=2)
    _, more = make_stored_task(root, "more", seed=3, labels=("a", "b", "c", "d", "e", "f", "g"))
    export(store, second, ExportConfig(formats=("merged", "onnx"), n_images=1))
    folder = store.export_dir(second, "fp32")
    assert find_refittable(store, first, "fp32", [first, second]) is None
    plant_plan(folder, second)
    own = plan_of(store, second, "fp32")
    assert own is not None
    assert not own.refittable
    assert find_refittable(store, first, "fp32", [second]) is None
    plant_plan(folder, second, refittable=True)
    assert find_refittable(store, first, "fp32", [second]) == folder
    assert find_refittable(store, second, "fp32", []) == folder
    assert find_refittable(store, more, "fp32", [second]) is None  # another number of classes
    assert find_refittable(store, first, "fp16", [second]) is None
    plant_plan(folder, second, refittable=True, usable=False)
    assert find_refittable(store, first, "fp32", [second]) is None
    plant_plan(folder, second, refittable=True)
    (folder / "plan.json").write_bytes(make_plan_info(refittable=True).to_json())
    assert plan_of(store, second, "fp32") is None  # not the one that was recorded


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs no GPU")
@pytest.mark.parametrize("backend", ["tensorrt", "torch"])
def test_without_a_gpu_the_engine_does_not_start(backend: Any, tmp_path: Path) -> None:
    store, _ = make_stored_task(tmp_path / "artifacts")
    with pytest.raises(NotRunnableError, match="device cuda must have a GPU"):
        StoreEngine(store.root, EngineSettings(backend=backend, device="cuda"))
    with pytest.raises(ValueError, match="device must be cuda with tensorrt"):
        EngineSettings(backend="tensorrt")
