from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_networks import make_images, make_network, make_skeleton, write_weights

from glora_deploy.errors import ExportError
from glora_deploy.export import engine as engine_module
from glora_deploy.export.engine import Engine, refit, set_weights
from glora_deploy.export.plan import PlanConfig
from glora_deploy.export.runtime import OnnxSession
from glora_deploy.export.tensorrt_library import find_gpu
from glora_deploy.export.to_onnx import write_onnx
from glora_deploy.export.to_tensorrt import write_plan
from glora_deploy.tensor_file import map_tensors

PARAMETERS = {
    "head.bias": ("FLOAT", 3),
    "norm.weight": ("HALF", 4),
    "qkv.weight": ("BF16", 6),
}


class FakeRefitter:
    """What the engine uses of TensorRT's ``Refitter``: it reads the memory when it refits."""

    def __init__(self) -> None:
        self.weights: dict[str, tuple[str, int, int]] = {}
        self.constants = ["val_7"]
        self.missing: list[str] = []
        self.works = True
        self.taken: dict[str, bytes] = {}

    def get_all_weights(self) -> list[str]:
        return [*PARAMETERS, *self.constants]

    def get_weights_prototype(self, name: str) -> SimpleNamespace:
        dtype, size = PARAMETERS[name]
        return SimpleNamespace(dtype=SimpleNamespace(name=dtype), size=size)

    def set_named_weights(self, name: str, weights: tuple[Any, int, int]) -> bool:
        dtype, address, size = weights
        self.weights[name] = (dtype.name, address, size)
        return True

    def get_missing_weights(self) -> list[str]:
        return self.missing

    def refit_cuda_engine(self) -> bool:
        for name, (dtype, address, size) in self.weights.items():
            width = 4 if dtype == "FLOAT" else 2
            self.taken[name] = ctypes.string_at(address, size * width)
        return self.works


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("tensorrt")
    module.Weights = lambda dtype, address, size: (dtype, address, size)  # type: ignore[attr-defined]
    logger = SimpleNamespace(errors=["a failed", "b failed"])
    monkeypatch.setattr(engine_module, "logger_of", lambda _: logger)
    return module


def make_tensors() -> dict[str, NDArray[Any]]:
    """One task's tensors; the last two are not laid out as the engine wants them."""
    return {
        "head.bias": np.arange(3, dtype=np.float32),
        "norm.weight": np.arange(8, dtype=np.float16)[::2],
        "qkv.weight": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(3, 2).T,
    }


def test_a_refit_writes_every_weight_in_row_major_order(library: ModuleType) -> None:
    refitter, tensors = FakeRefitter(), make_tensors()
    kept = set_weights(library, refitter, tuple(PARAMETERS), tensors)
    refit(library, refitter)
    assert refitter.taken == {name: tensor.tobytes() for name, tensor in tensors.items()}
    assert len(kept) == len(tensors)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_set_that_is_not_exactly_the_weights_is_refused(library: ModuleType, change: str) -> None:
    refitter, tensors = FakeRefitter(), make_tensors()
    if change == "missing":
        tensors.pop("norm.weight")
    else:
        tensors["val_7"] = np.zeros(1, np.float32)
    odd = "norm.weight" if change == "missing" else "val_7"
    with pytest.raises(ValueError, match=f"must be the 3 weights of the plan, .* differ in {odd}"):
        set_weights(library, refitter, tuple(PARAMETERS), tensors)
    assert refitter.weights == {}


@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (np.zeros(4, np.float32), "4 of float32"),
        (np.zeros(5, np.float16), "5 of float16"),
        (np.zeros(4, np.int64), "4 of int64"),
    ],
)
def test_a_weight_of_another_type_or_size_is_refused_before_any_is_set(
    library: ModuleType, tensor: NDArray[Any], got: str
) -> None:
    refitter, tensors = FakeRefitter(), make_tensors()
    tensors["norm.weight"] = tensor
    with pytest.raises(ValueError, match=f"norm.weight: must be 4 numbers of type HALF, got {got}"):
        set_weights(library, refitter, tuple(PARAMETERS), tensors)
    assert refitter.weights == {}


def test_a_weight_that_the_engine_has_fixed_is_named(library: ModuleType) -> None:
    refitter = FakeRefitter()
    parameters = (*PARAMETERS, "pos_embed")
    tensors = {**make_tensors(), "pos_embed": np.zeros(2, np.float32)}
    with pytest.raises(ExportError, match="must be refittable, got pos_embed fixed"):
        set_weights(library, refitter, parameters, tensors)


def test_a_refit_that_leaves_something_out_is_refused(library: ModuleType) -> None:
    refitter = FakeRefitter()
    refitter.missing = ["tmp_weight_3"]
    with pytest.raises(ExportError, match="must be complete, tmp_weight_3 are missing"):
        refit(library, refitter)


def test_a_failing_refit_says_what_the_library_logged_last(library: ModuleType) -> None:
    refitter = FakeRefitter()
    refitter.works = False
    with pytest.raises(ExportError, match="must be refitted, got b failed"):
        refit(library, refitter)


gpu = [
    pytest.mark.gpu,
    pytest.mark.tensorrt,
    pytest.mark.skipif(find_gpu() is None, reason="no CUDA device"),
]


def make_plan(folder: Path, seed: int, config: PlanConfig) -> Path:
    """An export folder of a small ViT with weights of this seed, and its plan."""
    write_weights(make_network("vit", seed), folder)
    write_onnx(folder, make_skeleton("vit"), {})
    write_plan(folder, config)
    return folder


@pytest.fixture
def two_tasks(tmp_path: Path) -> tuple[Path, Path]:
    config = PlanConfig(batch=(1, 2, 8), refit=True)
    return make_plan(tmp_path / "a", 0, config), make_plan(tmp_path / "b", 1, config)


@pytest.mark.parametrize("n", [1, 2, 5], ids="batch{}".format)
@pytest.mark.parametrize("strip", [pytest.param(s, marks=gpu) for s in (False, True)])
def test_an_engine_computes_what_onnx_runtime_computes(tmp_path: Path, n: int, strip: bool) -> None:
    folder = make_plan(tmp_path, 0, PlanConfig(batch=(1, 2, 8), strip=strip))
    images = make_images("vit", n)
    expected = OnnxSession(folder / "model.onnx").logits(images)
    # float32 without TF32; only the order of sums differs.
    np.testing.assert_allclose(Engine(folder).logits(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [pytest.param(9, marks=gpu)])
def test_a_batch_outside_the_profile_is_refused(tmp_path: Path, n: int) -> None:
    engine = Engine(make_plan(tmp_path, 0, PlanConfig(batch=(1, 2, 8))))
    with pytest.raises(ValueError, match="images must be 1 to 8"):
        engine.logits(make_images("vit", n))


@pytest.mark.parametrize("batch", [pytest.param(2, marks=gpu)])
def test_an_engine_can_be_timed(tmp_path: Path, batch: int) -> None:
    engine = Engine(make_plan(tmp_path, 0, PlanConfig(batch=(1, 2, 8))))
    assert 0 < engine.time_ms(batch, repeats=5) < 1000


@pytest.mark.parametrize("n", [pytest.param(3, marks=gpu)])
def test_refitting_to_another_task_and_back_is_exact(two_tasks: tuple[Path, Path], n: int) -> None:
    a, b = two_tasks
    images = make_images("vit", n)
    engine = Engine(a)
    first = engine.logits(images)
    engine.refit(map_tensors(b / "model.safetensors"))
    other = engine.logits(images)
    engine.refit(map_tensors(a / "model.safetensors"))
    again = engine.logits(images)
    assert again.tobytes() == first.tobytes()
    expected = OnnxSession(b / "model.onnx").logits(images)
    np.testing.assert_allclose(other, expected, rtol=0, atol=1e-4)
    assert np.abs(other - first).max() > 0.1
