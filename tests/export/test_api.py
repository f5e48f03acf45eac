from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer.main

from glora_deploy.errors import BackboneMismatchError, NotInStoreError, ParityError, StoreError
from glora_deploy.export import export
from glora_deploy.export.api import NEEDS
from glora_deploy.export.cli import usage
from glora_deploy.export.cli.commands import app
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.store import ArtifactStore
from stored_tasks import make_backbone, make_stored_task


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[ArtifactStore, Artifact]:
    return make_stored_task(tmp_path_factory.mktemp("stored") / "artifacts")


def test_an_export_tells_its_steps_and_prints_nothing(
    stored: tuple[ArtifactStore, Artifact], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, artifact = stored
    steps: list[str] = []
    out = tmp_path / "out"
    done = export(
        "pets", fmt="onnx", store=store.root, images=2, out=str(out), on_step=steps.append
    )
    assert done.folder == store.export_dir(artifact, "fp32")
    assert done.report.passed
    assert done.record.formats == ("merged", "onnx")
    assert {path.name for path in out.iterdir()} == {
        "export.json",
        "model.onnx",
        "model.safetensors",
        "parity.json",
    }
    assert steps[0] == "reading the backbone and the delta"
    assert steps[-1] == "recording checksums"
    assert capfd.readouterr() == ("", "")


def test_several_formats_in_another_precision(stored: tuple[ArtifactStore, Artifact]) -> None:
    store, _ = stored
    done = export("pets", fmt=["delta", "merged"], precision="fp16", store=store.root, images=2)
    assert done.record.formats == ("merged", "delta")
    assert done.record.precision == "fp16"


def test_keywords_and_defaults_are_those_of_the_command_line() -> None:
    options = {option.name: option for option in typer.main.get_command(app).params}
    keywords = inspect.signature(export).parameters
    only_there = {
        *("help", "quiet", "log_level", "release"),
        *("keep_versions", "push", "private", "license", "revision", "token"),
    }
    assert keywords.keys() - {"on_step"} == options.keys() - only_there
    spelled = {"fmt": None, "store": Path("artifacts"), "batch": "1,8,32"}
    repeated = {"keep_float": None, "compute_capability": None}
    for name in keywords.keys() - {"on_step", "task"}:
        expected = (spelled | repeated).get(name, keywords[name].default)
        assert options[name].default == expected, name
    assert keywords["fmt"].default == ("merged",)
    assert keywords["batch"].default == (1, 8, 32)


def test_what_has_an_effect_on_what_is_as_on_the_command_line() -> None:
    formats = {"merged", "delta", "onnx", "pixels", "int8", "trt"}
    there = {names: either & formats for names, either, _ in usage._NEEDS if either & formats}
    assert {names: set(either) for names, either in NEEDS} == there


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fmt": "triton"}, "fmt must be of .*'merged', .* got 'triton'"),
        ({"fmt": []}, "name at least one format"),
        ({"quantize": "int4"}, "quantize must be 'int8' or None, got 'int4'"),
        ({"single_file": True}, "single_file: no effect without the format int8 or onnx or trt"),
        (
            {"fmt": "onnx", "max_loss": 0.5, "keep_float": ["a"]},
            "max_loss and keep_float: no effect without the format int8",
        ),
        ({"batch": (1, 2, 3)}, "batch: no effect without the format trt"),
        (
            {"fmt": "trt", "with_preprocessing": True},
            "with_preprocessing: no effect without the format onnx",
        ),
        ({"fmt": "trt", "batch": (4, 2, 3)}, "batch must be 1 <= min"),
        ({"fmt": "trt", "compute_capability": ["x"]}, "compute capability must look like 8.6"),
        ({"quantize": "int8", "precision": "fp16"}, "int8 is quantised from fp32"),
        ({"quantize": "int8", "max_loss": 2.0}, "max_loss must be 0 to 1, got 2"),
        ({"images": 0}, "parity needs at least 1 image, got 0"),
        ({"max_error": -1.0}, "max_error must be at least 0, got -1"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(
    stored: tuple[ArtifactStore, Artifact], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export("pets", store=stored[0].root, **settings)


def test_an_empty_list_asks_for_nothing(stored: tuple[ArtifactStore, Artifact]) -> None:
    done = export("pets", store=stored[0].root, images=2, keep_float=[], compute_capability=[])
    assert "merged" in done.record.formats


def test_out_is_checked_before_anything_is_made(
    stored: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    store, _ = stored
    steps: list[str] = []
    with pytest.raises(ValueError, match="out must lie outside the artifact store"):
        export("pets", store=store.root, out=store.root / "x", on_step=steps.append)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(StoreError, match="must hold one export and nothing else"):
        export("pets", store=store.root, out=tmp_path, on_step=steps.append)
    assert steps == []


def test_an_export_that_fails_its_check_is_not_copied_out(
    stored: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(stored[0].root, root)
    with pytest.raises(ParityError, match="The export is marked unusable"):
        export("pets", store=root, images=2, max_error=0, out=tmp_path / "out", precision="fp16")
    assert not (tmp_path / "out").exists()


def test_a_backbone_that_the_store_lacks_may_be_given(
    stored: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(stored[0].root, root)
    shutil.rmtree(root / ".backbones")
    shutil.rmtree(root / "pets" / "v1" / "exports", ignore_errors=True)
    assert make_backbone(seed=0).fingerprint == stored[1].manifest.backbone.fingerprint
    with pytest.raises(BackboneMismatchError):
        export("pets", store=root, checkpoint="random:1")
    done = export("pets", store=root, images=2, checkpoint="random:0")
    assert done.report.passed


def test_a_task_or_store_that_is_not_there_is_named(
    stored: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(NotInStoreError, match="no task 'birds'"):
        export("birds", store=stored[0].root)
    with pytest.raises(StoreError, match="the store must be a folder"):
        export("pets", store=tmp_path / "missing")
