from __future__ import annotations

import resource
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

from glora_deploy.errors import ExportError, GloraDeployError
from glora_deploy.export.onnx_model.half_precision import to_precision
from glora_deploy.export.onnx_model.trace import trace_graph
from glora_deploy.export.onnx_model.write import write_onnx
from glora_deploy.export.tensorrt_plan import build as to_tensorrt
from glora_deploy.export.tensorrt_plan.build import build_plan, write_plan
from glora_deploy.export.tensorrt_plan.config import PlanConfig
from glora_deploy.precision import Precision
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.tensorrt_runtime import library
from glora_deploy.tensorrt_runtime.library import find_gpu, logger_of
from glora_deploy.tensorrt_runtime.plan_json import PlanInfo, TensorRecord, read_plan_info
from onnx_networks import make_network, make_skeleton, write_weights

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra rtx) is not installed")
pytestmark = pytest.mark.tensorrt

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
RTX = PlanConfig(backend="rtx", batch=(1, 2, 4))
FILES = {"model.onnx", "model.safetensors"}


def make_export(folder: Path, kind: str = "vit", precision: Precision = "fp32") -> Path:
    """An export folder of a small network: model.safetensors and model.onnx."""
    write_weights(make_network(kind), folder, DTYPES[precision])
    skeleton = make_skeleton(kind)
    write_onnx(folder, skeleton if precision == "fp32" else to_precision(skeleton, precision), {})
    return folder


@cache
def tiny_skeleton() -> bytes:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    return trace_graph(model, (3, 224, 224)).SerializeToString()


def make_tiny(folder: Path, precision: Precision) -> Path:
    """The same of vit_tiny_patch16_224 with random weights and 7 classes."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7).eval()
    write_weights(model, folder, DTYPES[precision])
    skeleton = onnx.load_model_from_string(tiny_skeleton())
    write_onnx(folder, skeleton if precision == "fp32" else to_precision(skeleton, precision), {})
    return folder


def make_graph(folder: Path, *nodes: onnx.NodeProto, batch: int | str = "batch") -> Path:
    """An export folder of a graph made by hand, ``image (batch, 4)`` to ``logits (batch, 3)``."""
    weight = helper.make_tensor("head", TensorProto.FLOAT, (4, 3), np.ones(12, np.float32))
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["image", "head"], ["logits"], name="product")],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (batch, 4))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, 3))],
        [weight],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("vendor", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets), folder / "model.onnx")
    save_file({"head": np.ones((4, 3), np.float32)}, folder / "model.safetensors")
    return folder


def build(folder: Path, config: PlanConfig = RTX) -> bytes:
    return build_plan(folder / "model.onnx", folder / "model.safetensors", config)


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small_plan(small: Path) -> bytes:
    return build(small)


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A copy of the small export that a test may write to."""
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_tiny_vit_gives_the_same_plan_twice_and_a_true_sidecar(
    tmp_path: Path, precision: Precision
) -> None:
    make_tiny(tmp_path, precision)
    weights = load_file(tmp_path / "model.safetensors")
    config = PlanConfig(backend="rtx", precision=precision, batch=(1, 3, 16))

    info = write_plan(tmp_path, config)

    assert listing(tmp_path) == FILES | {"model.plan", "plan.json"}
    assert read_plan_info(tmp_path) == info
    assert (tmp_path / "model.plan").read_bytes() == build(tmp_path, config)
    assert info == PlanInfo(
        library="tensorrt_rtx",
        version=trt.__version__,
        gpu=None,
        compute_capabilities=(),
        hardware_compatibility=None,
        inputs=(TensorRecord(name="image", dtype="float32", shape=(-1, 3, 224, 224)),),
        outputs=(TensorRecord(name="logits", dtype="float32", shape=(-1, 7)),),
        batch=(1, 3, 16),
        precision=precision,
        tf32=False,
        refittable=False,
        stripped=False,
        parameters=tuple(sorted(weights)),
        graph=FileRecord.of_file(tmp_path / "model.onnx"),
        weights=FileRecord.of_file(tmp_path / "model.safetensors"),
        plan=FileRecord.of_file(tmp_path / "model.plan"),
        build_seconds=info.build_seconds,
    )
    assert len(weights) == 152
    assert info.plan.size_bytes > info.weights.size_bytes


@pytest.mark.slow
def test_a_base_vit_is_built_in_single_and_half_precision(tmp_path: Path) -> None:
    model = timm.create_model("vit_base_patch16_224", num_classes=7).eval()
    skeleton = trace_graph(model, (3, 224, 224))
    sizes = {}
    for precision in ("fp32", "fp16"):
        folder = tmp_path / precision
        write_weights(model, folder, DTYPES[precision])
        write_onnx(
            folder, skeleton if precision == "fp32" else to_precision(skeleton, precision), {}
        )
        info = write_plan(folder, PlanConfig(backend="rtx", precision=precision))
        sizes[precision] = info.plan.size_bytes
        assert len(info.parameters) == 152
        assert 1 < info.plan.size_bytes / info.weights.size_bytes < 1.1
    assert 0.5 < sizes["fp16"] / sizes["fp32"] < 0.55


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("kind", ["dinov2", "swin", "convnext", "efficientnet"])
@pytest.mark.slow
def test_every_family_builds_in_every_precision(
    tmp_path: Path, kind: str, precision: Precision
) -> None:
    make_export(tmp_path, kind, precision)
    info = write_plan(tmp_path, PlanConfig(backend="rtx", precision=precision))
    assert info.precision == precision


def test_other_weights_give_another_plan(small_plan: bytes, folder: Path) -> None:
    write_weights(make_network("vit", seed=1), folder)
    assert build(folder) != small_plan


def test_older_interfaces_of_the_library_build_the_same_plan(
    small: Path, small_plan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(trt.OnnxParser, "load_model_proto")
    monkeypatch.delattr(trt.Builder, "build_serialized_network_to_stream")
    assert build(small) == small_plan


def test_a_self_contained_model_builds_the_same_plan(small_plan: bytes, folder: Path) -> None:
    write_onnx(folder, make_skeleton("vit"), {}, single_file=True)
    assert (folder / "model.onnx").stat().st_size > (folder / "model.safetensors").stat().st_size
    assert build(folder) == small_plan


def test_the_targets_are_those_asked_for(small_plan: bytes, folder: Path) -> None:
    plans = {small_plan}
    for targets in (("8.0",), ("12.0",), ("8.0", "12.0")):
        info = write_plan(folder, replace(RTX, compute_capabilities=targets))
        assert info.compute_capabilities == targets
        plans.add((folder / "model.plan").read_bytes())
    assert len(plans) == 4


def test_an_unknown_target_is_answered_with_those_on_offer(small: Path) -> None:
    with pytest.raises(
        ExportError, match=r"--compute-capability must be of 7\.5, 8\.0, .*12\.0.* got 6\.1"
    ):
        build(small, PlanConfig(backend="rtx", compute_capabilities=("6.1",)))


def test_a_library_without_targets_refuses_them(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(trt.IBuilderConfig, "set_compute_capability")
    with pytest.raises(ExportError, match="--compute-capability must be left out"):
        build(small, PlanConfig(backend="rtx", compute_capabilities=("8.6",)))


@pytest.mark.parametrize(
    "config",
    [
        PlanConfig(backend="rtx", hardware_compatibility="ampere_plus"),
        PlanConfig(backend="rtx", timing_cache=Path("timings")),
    ],
    ids=["--hardware-compatibility", "--timing-cache"],
)
def test_options_that_rtx_would_ignore_are_refused(
    small: Path, config: PlanConfig, request: pytest.FixtureRequest
) -> None:
    option = request.node.callspec.id
    with pytest.raises(ExportError, match=f"{option} must be left out with tensorrt_rtx"):
        build(small, config)


@pytest.mark.parametrize(
    "config",
    [PlanConfig(backend="rtx", refit=True), PlanConfig(backend="rtx", strip=True)],
    ids=["refit", "strip"],
)
def test_without_a_gpu_a_refittable_or_stripped_plan_is_refused_in_one_line(
    folder: Path, config: PlanConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    if find_gpu() is not None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(ExportError, match=r"must be built on a GPU, .* got none") as error:
        write_plan(folder, config)
    assert "\n" not in str(error.value)
    # In an export the folder is a draft that is gone when the message is read.
    assert str(folder) not in str(error.value)
    assert capfd.readouterr() == ("", "")  # the library writes to the descriptors
    assert listing(folder) == FILES


@pytest.mark.parametrize(
    ("made", "asked"),
    [("fp32", "fp16"), ("fp32", "bf16"), ("fp16", "fp32"), ("fp16", "bf16"), ("bf16", "fp16")],
)
def test_a_graph_in_another_precision_is_refused(
    tmp_path: Path, made: Precision, asked: Precision
) -> None:
    make_export(tmp_path, precision=made)
    with pytest.raises(ExportError, match=f"must be {asked} for a plan in {asked}, got {made}"):
        build(tmp_path, PlanConfig(backend="rtx", precision=asked))


@pytest.mark.parametrize(
    ("domain", "operation"), [("vendor", "FlashMagic"), ("", "Det")], ids=["custom", "standard"]
)
def test_an_unsupported_operation_is_named(tmp_path: Path, domain: str, operation: str) -> None:
    node = helper.make_node(operation, ["image"], ["logits"], name="blocks.3.odd", domain=domain)
    make_graph(tmp_path, node)
    with pytest.raises(ExportError, match=rf"got {operation} \(blocks\.3\.odd\): ") as error:
        write_plan(tmp_path, RTX)
    assert "\n" not in str(error.value)
    assert listing(tmp_path) == FILES


def test_what_the_builder_logs_is_in_the_error(tmp_path: Path) -> None:
    make_graph(tmp_path, batch=9)
    with pytest.raises(
        ExportError, match=r"^model\.onnx: tensorrt_rtx must build a plan, got "
    ) as error:
        build(tmp_path, RTX)
    assert "Input dimensions are [9,4] but profile dimensions are [1,4]" in str(error.value)
    assert "CUDA driver" not in str(error.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    path.write_bytes(b"hello world" * 99)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("spoil", [truncate, scribble, empty, Path.unlink])
def test_a_damaged_or_missing_file_is_refused_by_name(
    folder: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(folder / name)
    before = listing(folder)
    with pytest.raises(GloraDeployError, match=name):
        write_plan(folder, RTX)
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("head.bias"), r"head\.bias must be float32 \(5,\), got nothing"),
        (
            lambda w: w.update({"head.bias": w["head.bias"].astype(np.float16)}),
            r"head\.bias must be float32 \(5,\), got float16 \(5,\)",
        ),
        (
            lambda w: w.update({"head.weight": w["head.weight"].T.copy()}),
            r"head\.weight must be float32 \(5, 48\), got float32 \(48, 5\)",
        ),
    ],
    ids=["absent", "dtype", "shape"],
)
def test_weights_that_do_not_fit_the_graph_are_refused(
    folder: Path, change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ExportError, match=rf"model\.safetensors: {message}"):
        build(folder)


def test_too_little_space_is_found_before_building(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9_000_000, 8_900_000, 100_000))
    with pytest.raises(ExportError, match=r"a plan needs 0\.4 MB of free space, got 0\.1 MB"):
        write_plan(folder, RTX)
    assert listing(folder) == FILES


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow past this size; a full disk answers alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("streams", [True, False])
def test_a_disk_that_fills_up_leaves_the_old_plan_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    for name in ("model.plan", "plan.json"):
        (folder / name).write_bytes(b"old")
    if not streams:
        monkeypatch.delattr(trt.Builder, "build_serialized_network_to_stream")
    with (
        file_size_limit(1_000_000),
        pytest.raises(ExportError, match=r"model\.plan: must be written whole, got: File too"),
    ):
        write_plan(folder, RTX)
    assert listing(folder) == FILES | {"model.plan", "plan.json"}
    assert (folder / "model.plan").read_bytes() == (folder / "plan.json").read_bytes() == b"old"


def test_ctrl_c_cancels_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(tmp_path, "fp32")
    monkeypatch.setattr(to_tensorrt, "PROGRESS_AFTER_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        write_plan(
            tmp_path,
            PlanConfig(backend="rtx"),
            on_step=lambda _: signal.raise_signal(signal.SIGINT),
        )
    assert "canceled by user" in logger_of(trt).errors[0]
    assert listing(tmp_path) == FILES


def test_long_builds_tell_what_they_are_at(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_tensorrt, "PROGRESS_AFTER_S", 0.0)
    steps: list[str] = []
    build_plan(small / "model.onnx", small / "model.safetensors", RTX, on_step=steps.append)
    assert steps
    assert all(step.startswith("building the plan: ") for step in steps)


def test_short_builds_say_nothing_and_look_for_no_gpu(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise AssertionError("looked for a GPU")

    monkeypatch.setattr(library, "find_gpu", refuse)
    monkeypatch.setattr(to_tensorrt, "find_gpu", refuse)
    monkeypatch.setattr(to_tensorrt, "PROGRESS_AFTER_S", 600.0)
    steps: list[str] = []
    build_plan(small / "model.onnx", small / "model.safetensors", RTX, on_step=steps.append)
    assert steps == []
