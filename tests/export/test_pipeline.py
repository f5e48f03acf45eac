from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from glora_deploy.backbones.load import build_empty
from glora_deploy.data.preprocess import Preprocessing
from glora_deploy.errors import (
    ArtifactError,
    BackboneMismatchError,
    NonFiniteError,
    NotInStoreError,
    NotRunnableError,
    ParityError,
    StoreError,
)
from glora_deploy.export import pipeline as pipeline_module
from glora_deploy.export.int8 import quantize as quantize_module
from glora_deploy.export.int8.quantize import QuantizeConfig
from glora_deploy.export.int8.report import QuantizeReport
from glora_deploy.export.onnx_model.ort_session import OnnxSession
from glora_deploy.export.onnx_model.with_preprocessing import with_preprocessing
from glora_deploy.export.parity_check.stages import ExportStages, SkipStage, Stage
from glora_deploy.export.parity_check.torch_networks import torch_logits
from glora_deploy.export.pipeline import ExportConfig, copy_out, export, prove_again
from glora_deploy.export.stored_backbone import backbone_of, provide_backbone
from glora_deploy.export.tensorrt_plan.config import PlanConfig
from glora_deploy.machine import Machine
from glora_deploy.parity import DEFAULT_LIMITS, Comparison, Limits, Report
from glora_deploy.precision import Precision
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.folder_lock import OpenFolder
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.store.store import ArtifactStore
from glora_deploy.tensorrt_runtime.engine import Engine
from glora_deploy.tensorrt_runtime.library import Gpu
from glora_deploy.tensorrt_runtime.plan_json import read_plan_info
from stored_tasks import (
    LABELS,
    make_backbone,
    make_overflowing_backbone,
    make_stored_task,
    merged_state,
)

CONFIGS = {
    "vit": ("vit_tiny_patch16_224", {}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    # Nothing in these normalises the input: noise at 1e4 has logits as large.
    "resnet": ("test_resnet", {}),
    "efficientnet": ("test_efficientnet", {}),
    # Its graph holds a folded constant that is not laid out row by row.
    "xcit": ("xcit_nano_12_p16_224", {"depth": 2}),
    # Its attention has an axis more than the exporter knows.
    "hiera": ("hiera_tiny_224", {"embed_dim": 24, "stages": [1, 1, 1, 1]}),
}


def images_like(artifact: Artifact, n: int = 3) -> np.ndarray:
    shape = (n, *artifact.manifest.backbone.input_size)
    return np.random.default_rng(5).standard_normal(shape, dtype=np.float32)


def expected_logits(store: ArtifactStore, artifact: Artifact, images: np.ndarray) -> np.ndarray:
    """Those of the float64 merge."""
    recorded = artifact.manifest.backbone
    model = build_empty(recorded.name, recorded.model_args, len(LABELS)).double()
    model.load_state_dict(merged_state(store, artifact), strict=True, assign=True)
    return torch_logits(model)(images)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_export_in_fp32_holds_exactly_what_it_says_and_every_stage_agrees(
    tmp_path: Path, name: str
) -> None:
    architecture, model_args = CONFIGS[name]
    store, artifact = make_stored_task(tmp_path, backbone=make_backbone(architecture, **model_args))
    done = export(store, artifact, ExportConfig(formats=("onnx",), n_images=5))
    assert done.report.passed
    assert {step.stage for step in done.report.steps} == {
        "supernet-fp32",
        "merged-fp32",
        "onnx-fp32",
    }
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "config.json",
        "export.json",
        "model.onnx",
        "model.safetensors",
        "parity.json",
    ]
    assert done.record.usable
    assert store.verify() == []
    images = images_like(artifact)
    expected = expected_logits(store, artifact, images)
    found = OnnxSession(done.folder / "model.onnx").logits(images)
    # float32 sums of a few hundred terms, a handful of layers deep
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_the_onnx_model_points_into_the_one_copy_of_the_weights(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    done = export(store, artifact, ExportConfig(formats=("onnx",), n_images=1))
    model = onnx.load_model(done.folder / "model.onnx", load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer}
    with safe_open(done.folder / "model.safetensors", framework="np") as file:
        assert set(file.keys()) <= names
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["task"], metadata["version"]) == ("pets", "v1")
    assert json.loads(metadata["labels"]) == list(LABELS)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_exports_pass_within_their_limits(tmp_path: Path, precision: str) -> None:
    store, artifact = make_stored_task(tmp_path)
    config = ExportConfig(formats=("delta", "onnx"), precision=precision, n_images=6)  # type: ignore[arg-type]
    done = export(store, artifact, config)
    done.report.require_passed()
    state = load_file(done.folder / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {
        torch.float16 if precision == "fp16" else torch.bfloat16
    }
    delta = done.folder / "delta" / "adapter.safetensors"
    n_numbers = artifact.manifest.n_parameters + artifact.manifest.n_head_parameters
    assert delta.stat().st_size <= 2 * n_numbers + 65536
    outcomes = {step.stage: step.outcome for step in done.report.steps}
    assert outcomes[f"delta-{precision}"] == "pass"
    assert outcomes[f"onnx-{precision}"] == ("pass" if precision == "fp16" else "skipped")


def test_timm_alone_loads_the_merged_folder_with_strict_keys(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    done = export(store, artifact, ExportConfig(n_images=1))
    images = images_like(artifact)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys
sys.modules["glora_deploy"] = None  # this package must not be needed
import numpy, timm, torch
model = timm.create_model("local-dir:{done.folder}", pretrained=True).eval()
assert model.pretrained_cfg["label_names"] == {list(LABELS)!r}
from safetensors.torch import load_file
model.load_state_dict(load_file("{done.folder}/model.safetensors"), strict=True)
with torch.inference_mode():
    logits = model(torch.from_numpy(numpy.load("{tmp_path}/images.npy")))
numpy.save("{tmp_path}/logits.npy", logits.numpy())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    expected = expected_logits(store, artifact, images)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-5)


def test_a_failing_comparison_is_kept_and_marks_the_export_unusable(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    nothing = Limits(max_error=0, min_cosine=1, min_agreement=1, tie=0)
    config = ExportConfig(n_images=2, limits={**DEFAULT_LIMITS, "fp32": nothing})
    done = export(store, artifact, config)
    assert not done.report.passed
    record = ExportRecord.read(store.export_dir(artifact, "fp32"))
    assert record is not None
    assert not record.usable
    assert (done.folder / "model.safetensors").is_file()


def test_a_second_format_keeps_the_first_and_its_weights(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    first = export(store, artifact, ExportConfig(n_images=1))
    before = (first.folder / "model.safetensors").read_bytes()
    second = export(store, artifact, ExportConfig(formats=("onnx",), n_images=1))
    assert second.record.formats == ("merged", "onnx")
    assert (second.folder / "model.safetensors").read_bytes() == before
    # onnx refuses weights that have a second name.
    assert (second.folder / "model.safetensors").stat().st_nlink == 1
    third = export(store, artifact, ExportConfig(n_images=1))
    assert third.record.formats == ("merged", "onnx")
    assert store.verify() == []


def test_weights_beyond_half_precision_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path, scale=3000.0)
    with pytest.raises(NonFiniteError, match=r"must be finite in fp16\. Export it in fp32\."):
        export(store, artifact, ExportConfig(precision="fp16", n_images=1))
    assert not store.export_dir(artifact, "fp16").exists()
    assert store.verify() == []


def test_what_overflows_in_half_precision_is_kept_in_fp32_and_stays_on_record(
    tmp_path: Path,
) -> None:
    backbone = make_overflowing_backbone()
    store, artifact = make_stored_task(tmp_path, backbone=backbone, kinds=["linear"])
    done = export(store, artifact, ExportConfig(formats=("onnx",), precision="fp16", n_images=4))
    assert done.report.passed
    assert any("blocks.1.mlp" in kept for kept in done.report.overflow)
    steps = {step.stage: step for step in done.report.steps}
    assert steps["onnx-fp16"].outcome == "pass"
    assert steps["merged-fp16"].outcome == "skipped"
    assert "leaves fp16; the ONNX model computes it in fp32" in steps["merged-fp16"].reason
    again = export(store, artifact, ExportConfig(formats=("delta",), precision="fp16", n_images=1))
    assert again.report.overflow == done.report.overflow
    assert again.report.passed


def test_an_altered_file_of_the_present_export_is_named_and_stays(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    done = export(store, artifact, ExportConfig(n_images=1))
    weights = done.folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: sha256 is .* on disk"):
        prove_again(store, artifact, ExportConfig(n_images=1))


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "export.json"])
def test_a_damaged_export_is_made_again(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, artifact = make_stored_task(tmp_path)
    config = ExportConfig(formats=("delta", "onnx"), n_images=1)
    before = export(store, artifact, config)
    path = before.folder / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match=name):
        prove_again(store, artifact, ExportConfig(n_images=1))
    with caplog.at_level(logging.WARNING):
        export(store, artifact, ExportConfig(formats=("onnx",), n_images=1))
    assert ("is not kept" in caplog.text) == (name == "model.safetensors")
    assert ("Nothing of it is kept" in caplog.text) == (name == "export.json")
    after = prove_again(store, artifact, ExportConfig(n_images=1))
    assert after.passed
    assert (before.folder / "delta" / "adapter.safetensors").exists() == (name != "export.json")
    assert store.verify() == []


def test_verify_measures_again_and_replaces_only_the_report(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    done = export(store, artifact, ExportConfig(formats=("onnx",), n_images=1))
    report = prove_again(store, artifact, ExportConfig(n_images=4))
    assert report.passed
    assert {s.n_images for s in report.steps if s.inputs == report.data} == {4}
    again = ExportRecord.read(done.folder)
    assert again is not None
    assert again.files.keys() == done.record.files.keys()
    changed = {n for n, file in again.files.items() if file != done.record.files[n]}
    assert changed == {"parity.json"}


def test_no_other_exporter_replaces_what_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, artifact = make_stored_task(tmp_path)
    export(store, artifact, ExportConfig(n_images=1))
    alone, read = [], ExportRecord.read

    def watched(folder: Path) -> ExportRecord | None:
        with OpenFolder(artifact.path) as other:
            alone.append(not other.lock(wait=False))
        return read(folder)

    monkeypatch.setattr(ExportRecord, "read", watched)
    prove_again(store, artifact, ExportConfig(n_images=1))
    assert alone == [True]


def test_an_export_whose_version_is_removed_meanwhile_is_one_clear_line(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)

    def remove(step: str) -> None:
        if step == "merging":
            ArtifactStore(store.root).remove(artifact.task, artifact.version, force=True)

    with pytest.raises(NotInStoreError, match=r"/v1 is not in the store$"):
        export(store, artifact, ExportConfig(n_images=1), on_step=remove)
    assert store.tasks() == []


def test_verify_without_an_export_says_how_to_make_one(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    with pytest.raises(
        StoreError, match=r"no export is here.*--task pets --version v1 --precision fp32 --store "
    ):
        prove_again(store, artifact, ExportConfig())


def test_a_delta_on_another_backbone_is_refused_naming_both(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    with pytest.raises(BackboneMismatchError, match=r"random:0 .*this is random:1 "):
        provide_backbone(store, artifact.manifest, make_backbone(seed=1))


def test_a_backbone_missing_from_the_store_can_be_given_by_hand(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    for path in (tmp_path / ".backbones").rglob("*.*"):
        path.unlink()
    (tmp_path / ".backbones" / artifact.manifest.backbone.fingerprint).rmdir()
    with pytest.raises(StoreError, match=r"Give it with --checkpoint random:0\."):
        export(store, artifact, ExportConfig(n_images=1))
    provide_backbone(store, artifact.manifest, make_backbone())
    assert export(store, artifact, ExportConfig(n_images=1)).report.passed


def test_an_altered_backbone_in_the_store_is_refused_naming_both(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    path = backbone_of(store, artifact.manifest) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    fingerprint = artifact.manifest.backbone.fingerprint
    with pytest.raises(BackboneMismatchError, match=rf"was trained on {fingerprint[:12]}\.\."):
        export(store, artifact, ExportConfig(n_images=1))


def test_a_further_task_needs_no_torch_until_its_networks_are_compared(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    export(store, artifact, ExportConfig(formats=("onnx",), n_images=1))  # keeps the skeleton
    make_stored_task(tmp_path, "birds", seed=1)
    code = f"""
import sys
from glora_deploy.export.pipeline import ExportConfig, export
from glora_deploy.store.store import ArtifactStore
store = ArtifactStore.open({str(tmp_path)!r})
config = ExportConfig(formats=("delta", "onnx"), precision="fp16", n_images=1)
export(store, store.get("birds"), config, on_step=lambda s: print("torch" in sys.modules, s))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    steps = [line.split(" ", 1) for line in run.stdout.splitlines()]
    without = [step for torch, step in steps if torch == "False"]
    assert without[-2:] == ["comparing onnx-fp16", "comparing supernet-fp32"]
    assert "writing the ONNX model" in without


@pytest.mark.parametrize(
    ("source", "option"),
    [
        ("timm:vit_small_patch16_224.dino", "--backbone vit_small_patch16_224.dino"),
        ("packaged:demo-vit", "--backbone demo-vit"),
        ("file:mine.npz", "--checkpoint mine.npz"),
    ],
)
def test_a_missing_backbone_is_asked_for_as_it_was_given(
    tmp_path: Path, source: str, option: str
) -> None:
    backbone = replace(make_backbone(), source=source)
    store, artifact = make_stored_task(tmp_path, backbone=backbone)
    shutil.rmtree(backbone_of(store, artifact.manifest))
    with pytest.raises(StoreError, match=rf"Give it with {re.escape(option)}\.$"):
        backbone_of(store, artifact.manifest)


def test_a_file_that_holds_its_weights_is_copied_out_alone(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path / "store")
    formats = ("onnx",)
    done = export(store, artifact, ExportConfig(formats=formats, n_images=1))
    found = copy_out(done, tmp_path / "two", formats)
    assert [path.name for path in found] == [
        "model.onnx",
        "model.safetensors",
        "parity.json",
        "export.json",
    ]
    done = export(store, artifact, ExportConfig(formats=formats, single_file=True, n_images=1))
    found = copy_out(done, tmp_path / "one", formats)
    assert [path.name for path in found] == ["model.onnx", "parity.json", "export.json"]
    record = ExportRecord.read(tmp_path / "one")
    assert record is not None
    assert record.formats == ("onnx",)
    record.require_of(tmp_path / "one", artifact.manifest, "fp32")
    images = images_like(artifact)
    np.testing.assert_array_equal(
        OnnxSession(tmp_path / "one" / "model.onnx").logits(images),
        OnnxSession(tmp_path / "two" / "model.onnx").logits(images),
    )


def test_a_report_names_the_machine_and_what_computed_each_stage(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    done = export(store, artifact, ExportConfig(formats=("onnx",), precision="fp16", n_images=1))
    written = Report.from_json((done.folder / "parity.json").read_bytes(), "parity.json")
    assert written.machine == Machine.here()
    assert {step.stage: step.provider for step in written.steps} == {
        "supernet-fp32": "torch on the CPU",
        "merged-fp32": "torch on the CPU",
        "merged-fp16": "torch on the CPU",
        "onnx-fp16": "CPUExecutionProvider, in fp32 where the CPU has no fp16",
    }
    older = json.loads((done.folder / "parity.json").read_text())
    del older["machine"]
    for step in older["steps"]:
        del step["provider"]
    read = Report.from_json(json.dumps(older).encode(), "parity.json")
    assert (read.machine, read.steps[0].provider, read.passed) == (None, "", True)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_onnx_model_is_measured_on_a_gpu_too_where_onnx_runtime_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    _, artifact = make_stored_task(tmp_path)
    made: list[tuple[Path, dict[str, object]]] = []

    class Session:
        def __init__(self, model: Path, **options: object) -> None:
            made.append((model, options))

        def logits(self, images: np.ndarray) -> np.ndarray:
            return images

    stages = ExportStages(artifact, tmp_path, tmp_path / "export", tmp_path)

    def on_gpu() -> Stage | None:
        found = {stage.name: stage for stage in stages.all(precision, ("onnx",))}
        return found.get(f"onnx-{precision}-cuda")

    monkeypatch.setattr("glora_deploy.export.parity_check.stages.has_cuda", lambda: False)
    assert on_gpu() is None
    monkeypatch.setattr("glora_deploy.export.parity_check.stages.has_cuda", lambda: True)
    stage = on_gpu()
    if precision == "bf16":
        assert stage is None
        return
    assert stage is not None
    assert (stage.precision, stage.provider) == (precision, "CUDAExecutionProvider")
    monkeypatch.setattr("glora_deploy.export.parity_check.stages.find_gpu", lambda: None)
    with pytest.raises(SkipStage, match="no GPU here; run the verify command where the model"):
        stage.load()
    monkeypatch.setattr(
        "glora_deploy.export.parity_check.stages.find_gpu", lambda: Gpu("NVIDIA H200", "9.0")
    )
    monkeypatch.setattr("glora_deploy.export.parity_check.stages.OnnxSession", Session)
    stage.load()
    assert made == [(tmp_path / "export" / "model.onnx", {"device": "cuda", "lean": True})]


def test_an_int8_model_is_a_step_of_the_report_and_stays_one(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    int8 = ExportConfig(formats=("int8",), quantize=QuantizeConfig(max_loss=1), n_images=1)
    first = export(store, artifact, int8)
    step = first.report.steps[-1]
    assert (step.stage, step.provider) == ("int8", "CPUExecutionProvider")
    assert step == QuantizeReport.read(first.folder).step()
    kept = export(store, artifact, ExportConfig(formats=("delta",), n_images=1))
    assert kept.record.formats == ("merged", "delta", "onnx", "int8")
    assert kept.report.steps[-1] == step
    # What an earlier release quantised may saturate, which nothing there tells.
    path = kept.folder / "int8.json"
    path.write_text(path.read_text().replace('"target"', '"aim"'))
    record = kept.record.model_copy(
        update={"files": {**kept.record.files, "int8.json": FileRecord.of_file(path)}}
    )
    record.write(kept.folder)
    dropped = export(store, artifact, ExportConfig(formats=("delta",), n_images=1))
    assert dropped.record.formats == ("merged", "delta", "onnx")
    assert not (dropped.folder / "model.int8.onnx").exists()


def test_a_model_with_preprocessing_stays_and_follows_the_graph_beside_it(tmp_path: Path) -> None:
    store, artifact = make_stored_task(tmp_path)
    config = ExportConfig(formats=("pixels",), n_images=1)
    first = export(store, artifact, config)
    assert first.record.formats == ("merged", "onnx", "pixels")
    assert first.report.steps[-1].stage == "pixels-fp32"
    kept = export(store, artifact, ExportConfig(formats=("delta",), n_images=1))
    assert kept.record.formats == ("merged", "delta", "onnx", "pixels")
    assert kept.record.files["model.pixels.onnx"] == first.record.files["model.pixels.onnx"]
    single = ExportConfig(formats=("onnx",), single_file=True, n_images=1)
    again = export(store, artifact, single)
    assert again.record.formats == kept.record.formats
    for name in ("model.onnx", "model.pixels.onnx"):
        weights = again.record.files["model.safetensors"].size_bytes
        assert again.record.files[name].size_bytes > weights
    # A graph that is damaged is made again, and with it the one that holds it.
    (again.folder / "model.onnx").write_bytes(b"damaged")
    mended = export(store, artifact, ExportConfig(formats=("merged",), n_images=1))
    assert mended.record.formats == kept.record.formats
    assert mended.record.files["model.pixels.onnx"] == first.record.files["model.pixels.onnx"]


def test_a_model_whose_pixels_are_not_pillows_makes_the_export_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, artifact = make_stored_task(tmp_path)
    squash = replace(
        Preprocessing(**artifact.manifest.preprocessing.model_dump()), crop_mode="squash"
    )
    monkeypatch.setattr(
        pipeline_module, "with_preprocessing", lambda graph, _: with_preprocessing(graph, squash)
    )
    done = export(store, artifact, ExportConfig(formats=("pixels",), n_images=1))
    assert not done.record.usable
    with pytest.raises(ParityError, match=r"pixels-fp32 on noise .*: .* differ from Pillow's"):
        done.report.require_passed()


def test_a_model_with_the_preprocessing_of_another_network_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, artifact = make_stored_task(tmp_path)
    done = export(store, artifact, ExportConfig(formats=("pixels",), n_images=1))
    path = done.folder / "model.pixels.onnx"
    model = onnx.load(path, load_external_data=False)
    for prop in model.metadata_props:
        prop.value = prop.value.replace("bicubic", "bilinear")
    path.write_bytes(model.SerializeToString())
    files = {**done.record.files, path.name: FileRecord.of_file(path)}
    done.record.model_copy(update={"files": files}).write(done.folder)
    with pytest.raises(ArtifactError, match=r"model.pixels.onnx: preprocessing must be"):
        prove_again(store, artifact, ExportConfig(n_images=1))
    again = export(store, artifact, ExportConfig(formats=("delta",), n_images=1))
    assert again.record.formats == ("merged", "delta", "onnx")
    assert "Its format, pixels, is not kept." in caplog.text


def test_verify_measures_int8_on_this_machine_and_fails_where_it_loses_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, artifact = make_stored_task(tmp_path)
    agreement = 0.75
    compared = quantize_module.compare_models

    def compare(*models: Any) -> tuple[None, Comparison, int]:
        """What this CPU finds, apart from how many images keep their class."""
        _, comparison, n_images = compared(*models)
        return None, comparison.model_copy(update={"agreement": agreement}), n_images

    monkeypatch.setattr(quantize_module, "compare_models", compare)
    config = QuantizeConfig(max_loss=0.5, target="vnni", threads=1)
    done = export(store, artifact, ExportConfig(formats=("int8",), quantize=config, n_images=1))
    here = Machine.here()
    serving = here.model_copy(update={"cpu": "Old CPU", "instruction_sets": ("avx2",)})
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: serving))
    monkeypatch.setattr(quantize_module, "multiplies_exactly", lambda: False)
    assert prove_again(store, artifact, ExportConfig(n_images=1)).passed
    agreement = 0.25
    report = prove_again(store, artifact, ExportConfig(n_images=1))
    assert report.machine == serving
    again = QuantizeReport.read(done.folder)
    assert (again.machine, again.exact, again.n_calibration) == (serving, False, 128)
    step = report.steps[-1]
    assert (step.stage, step.outcome) == ("int8", "fail")
    assert step.reason == (
        "int8 must lose at most 50 percentage points, loses 75.0 points of top-1 on 64 images; "
        "Old CPU (avx2) saturates 8-bit products: leave out --int8-target"
    )
    record = ExportRecord.read(done.folder)
    assert record is not None
    assert not record.usable
    with pytest.raises(ParityError, match=r"pets/v1 fp32: int8 on seeded noise: .*marked unusable"):
        report.require_passed()


@pytest.mark.tensorrt
def test_a_plan_stays_as_it_was_built_until_its_graph_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt_rtx installed")
    store, artifact = make_stored_task(tmp_path)
    plan = PlanConfig(batch=(1, 2, 4))
    first = export(store, artifact, ExportConfig(formats=("trt",), plan=plan, n_images=1))
    before = (first.folder / "model.plan").read_bytes()
    again = export(store, artifact, ExportConfig(formats=("onnx", "delta"), n_images=1))
    assert again.record.formats == ("merged", "delta", "onnx", "trt")
    assert (again.folder / "model.plan").read_bytes() == before
    assert read_plan_info(again.folder).batch == (1, 2, 4)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with caplog.at_level(logging.WARNING):
        changed = export(
            store, artifact, ExportConfig(formats=("onnx",), single_file=True, n_images=1)
        )
    assert changed.record.formats == ("merged", "delta", "onnx")
    assert "The plan is not kept: ask for trt" in caplog.text
    assert not list(changed.folder.glob("*plan*"))
    assert store.verify() == []


def test_a_plan_that_this_gpu_cannot_run_is_built_and_its_stage_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX (extra rtx) is not installed")
    store, artifact = make_stored_task(tmp_path)
    monkeypatch.setattr(
        "glora_deploy.export.parity_check.stages.find_gpu", lambda: Gpu("NVIDIA H200", "9.0")
    )

    def refuse(folder: Path) -> Engine:
        raise NotRunnableError("model.plan: must run on a GPU of compute capability 8.9, got 9.0.")

    monkeypatch.setattr("glora_deploy.tensorrt_runtime.engine.Engine", refuse)
    plan = PlanConfig(backend="rtx", batch=(1, 2, 4))
    exported = export(store, artifact, ExportConfig(formats=("trt",), plan=plan, n_images=1))
    (step,) = [step for step in exported.report.steps if step.stage == "trt-fp32"]
    assert step.outcome == "skipped"
    assert step.reason is not None
    assert "got 9.0. Run the verify command" in step.reason
    assert "trt" in exported.record.formats
