from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from glora_deploy.errors import ExportError, GloraDeployError, NotRunnableError
from glora_deploy.export.onnx_model.half_precision import to_precision
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.write import write_onnx
from glora_deploy.export.tensorrt_plan.build import write_plan
from glora_deploy.export.tensorrt_plan.config import PlanConfig
from glora_deploy.precision import Precision
from glora_deploy.store.mapped_safetensors import map_tensors
from glora_deploy.tensorrt_runtime import engine as engine_module
from glora_deploy.tensorrt_runtime.engine import Engine, refit, require_covered, set_weights
from glora_deploy.tensorrt_runtime.library import Gpu, find_gpu, load_tensorrt
from onnx_networks import make_images, make_network, make_skeleton, write_weights

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


def test_a_set_without_one_of_the_weights_is_refused(library: ModuleType) -> None:
    refitter, tensors = FakeRefitter(), make_tensors()
    tensors.pop("norm.weight")
    with pytest.raises(ValueError, match="must hold all 3 weights of the plan, got none for norm"):
        set_weights(library, refitter, tuple(PARAMETERS), tensors)
    assert refitter.weights == {}


def test_tensors_that_the_graph_does_not_read_are_left_alone(library: ModuleType) -> None:
    refitter = FakeRefitter()
    tensors = {**make_tensors(), "norm.num_batches_tracked": np.zeros((), np.int64)}
    set_weights(library, refitter, tuple(PARAMETERS), tensors)
    assert refitter.weights.keys() == PARAMETERS.keys()


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


class FakeRuntime:
    """A runtime that knows a plan's GPUs."""

    def __init__(self, diagnostics: int) -> None:
        self.diagnostics = diagnostics

    def get_engine_validity(self, plan: memoryview) -> tuple[str, int]:
        return "INVALID", self.diagnostics


@pytest.mark.parametrize(
    ("diagnostics", "covered"), [(0, True), (32, True), (2, False), (34, False)]
)
def test_a_gpu_that_the_library_leaves_out_is_named(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch, diagnostics: int, covered: bool
) -> None:
    library.EngineInvalidityDiagnostics = SimpleNamespace(UNSUPPORTED_CC=2)  # type: ignore[attr-defined]
    monkeypatch.setattr(engine_module, "find_gpu", lambda: Gpu("NVIDIA H200", "9.0"))
    runtime = FakeRuntime(diagnostics)
    if covered:
        require_covered(library, runtime, memoryview(b"plan"))
        return
    with pytest.raises(NotRunnableError, match=r"got NVIDIA H200, compute capability 9\.0"):
        require_covered(library, runtime, memoryview(b"plan"))


def why_no_engine() -> str | None:
    """What this machine lacks to run an engine."""
    if (gpu := find_gpu()) is None:
        return "no CUDA device"
    try:
        library, name = load_tensorrt()
    except GloraDeployError as error:
        return str(error)
    if name == "tensorrt_rtx" and gpu.capability.startswith(("9.", "10.")):
        return f"{name} {library.__version__} does not support {gpu.name}"
    return None


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs engines, and skip it where none can run."""
    reason = why_no_engine()
    skip = pytest.mark.skipif(reason is not None, reason=str(reason))
    return pytest.mark.gpu(pytest.mark.tensorrt(skip(test)))


ATOL: dict[Precision, float] = {
    "fp32": 1e-4,  # no TF32: only the order of sums differs
    "fp16": 5e-2,  # ONNX Runtime on the CPU computes half-precision graphs in float32
}


def make_plan(folder: Path, config: PlanConfig, seed: int = 0) -> Path:
    """An export folder of a small ViT with weights of this seed, and its plan."""
    half = config.precision == "fp16"
    write_weights(make_network("vit", seed), folder, torch.float16 if half else torch.float32)
    skeleton = make_skeleton("vit")
    write_onnx(folder, to_precision(skeleton, "fp16") if half else skeleton, {})
    write_plan(folder, config)
    return folder


@on_gpu
@pytest.mark.parametrize("precision", ATOL)
@pytest.mark.parametrize("kind", ["plain", "refit", "strip"])
def test_an_engine_computes_what_onnx_runtime_computes(
    tmp_path: Path, precision: Precision, kind: str
) -> None:
    config = PlanConfig(
        precision=precision, batch=(1, 2, 8), refit=kind == "refit", strip=kind == "strip"
    )
    engine = Engine(make_plan(tmp_path, config))
    session = OnnxSession(tmp_path / "model.onnx")
    for n in (1, 2, 5, 8):
        images = make_images("vit", n)
        np.testing.assert_allclose(
            engine.logits(images), session.logits(images), rtol=0, atol=ATOL[precision]
        )


@on_gpu
@pytest.mark.parametrize("precision", ATOL)
def test_refitting_to_another_task_and_back_is_exact(tmp_path: Path, precision: Precision) -> None:
    config = PlanConfig(precision=precision, batch=(1, 2, 8), refit=True)
    a = make_plan(tmp_path / "a", config, seed=0)
    b = make_plan(tmp_path / "b", config, seed=1)
    images = make_images("vit", 3)
    engine = Engine(a)
    first = engine.logits(images)
    engine.refit(map_tensors(b / "model.safetensors"))
    other = engine.logits(images)
    engine.refit(map_tensors(a / "model.safetensors"))
    assert engine.logits(images).tobytes() == first.tobytes()
    expected = OnnxSession(b / "model.onnx").logits(images)
    np.testing.assert_allclose(other, expected, rtol=0, atol=ATOL[precision])
    assert np.abs(other - first).max() > 10 * ATOL[precision]


@on_gpu
def test_a_plan_not_built_for_it_is_not_refitted(tmp_path: Path) -> None:
    engine = Engine(make_plan(tmp_path, PlanConfig(batch=(1, 2, 8))))
    with pytest.raises(ExportError, match="must be built with refit"):
        engine.refit(map_tensors(tmp_path / "model.safetensors"))


@on_gpu
def test_images_outside_the_profile_are_refused(tmp_path: Path) -> None:
    engine = Engine(make_plan(tmp_path, PlanConfig(batch=(2, 2, 8))))
    for images in (make_images("vit", 1), make_images("vit", 9), make_images("dinov2", 2)):
        with pytest.raises(ValueError, match=r"images must be 2 to 8 of \(3, 32, 32\)"):
            engine.logits(images)


@on_gpu
def test_an_engine_can_be_timed(tmp_path: Path) -> None:
    engine = Engine(make_plan(tmp_path, PlanConfig(batch=(1, 2, 8))))
    assert 0 < engine.time_ms(2, repeats=5) < math.inf


def test_without_a_gpu_an_engine_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra rtx) is not installed")
    if find_gpu() is not None:
        pytest.skip("this machine has a GPU")
    folder = make_plan(tmp_path, PlanConfig(backend="rtx", batch=(1, 2, 8)))
    with pytest.raises(ExportError, match=r"must run on a GPU, got none\. Use the ONNX model"):
        Engine(folder)
