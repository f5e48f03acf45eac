from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from huggingface_hub import hf_hub_download

from glora_deploy.errors import (
    ArtifactError,
    ExportError,
    MissingDependencyError,
    NotInStoreError,
    ParityError,
    StoreError,
)
from glora_deploy.export.pipeline import ExportConfig, Exported, copy_out, export
from glora_deploy.serving import Predictor, exported_model
from glora_deploy.serving.onnx_session import OnnxSession
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import ExportRecord
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.store.store import ArtifactStore
from hub_server import local_hub
from pushed import REPO, Pushed
from tasks import make_images

PICTURE = make_images(1, seed=5, size=40).image(0)


def fp32(store: ArtifactStore) -> Path:
    return store.export_dir(store.get("colours"), "fp32")


def command(store: ArtifactStore, *more: str) -> str:
    words = ["glora export --task colours --fmt onnx", *more]
    return f"Run: {' '.join([*words, '--store', str(store.root)])}"


def record_again(folder: Path, **changes: Any) -> None:
    """Let export.json state the files as they are now."""
    record = ExportRecord.read(folder)
    assert record is not None
    files = {name: FileRecord.of_file(folder / name) for name in record.files}
    record.model_copy(update={"files": files, **changes}).write(folder)


def describe_again(folder: Path, **changes: str) -> None:
    """Change what the model says of itself, and state it in export.json."""
    model = onnx.load_model(folder / "model.onnx", load_external_data=False)
    for entry in model.metadata_props:
        entry.value = changes.get(entry.key, entry.value)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    record_again(folder)


def exported(store: ArtifactStore, artifact: Artifact) -> Exported:
    folder = store.export_dir(artifact, "fp32")
    record = ExportRecord.read(folder)
    assert record is not None
    report = record.report(folder)
    assert report is not None
    return Exported(folder, report, record)


# huggingface_hub 2.4 hands httpx2 2.16 a large file in a way that is going away.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_every_kind_of_folder_answers_as_the_store_does(
    trained: tuple[ArtifactStore, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, artifact = trained
    copy_out(exported(store, artifact), tmp_path / "out", ["merged", "onnx"])
    assert (tmp_path / "out" / "export.json").exists()
    shutil.copytree(fp32(store), tmp_path / "copied")
    with local_hub(monkeypatch, tmp_path) as hub:
        pushed = Pushed(hub, store, artifact)
        pushed.push()
        (cached,) = {
            Path(hf_hub_download(REPO, name, endpoint=hub.endpoint)).parents[name.count("/")]
            for name in pushed.files
        }
    assert (cached / "model.safetensors").is_symlink()
    expected = Predictor.from_store(store.root, "colours").predict(PICTURE, top_k=None)
    for folder in (fp32(store), tmp_path / "out", tmp_path / "copied", cached):
        assert Predictor.from_folder(folder).predict(PICTURE, top_k=None) == expected


def test_a_model_that_holds_its_weights_answers_alike(
    own_store: ArtifactStore, tmp_path: Path
) -> None:
    expected = Predictor.from_store(own_store.root, "colours").predict(PICTURE, top_k=None)
    config = ExportConfig(formats=("onnx",), single_file=True, n_images=2)
    copy_out(export(own_store, own_store.get("colours"), config), tmp_path / "out", ["onnx"])
    assert not (tmp_path / "out" / "model.safetensors").exists()
    for found in (
        Predictor.from_store(own_store.root, "colours"),
        Predictor.from_folder(tmp_path / "out"),
    ):
        answer = found.predict(PICTURE, top_k=None)
        assert [one.label for one in answer.top] == [one.label for one in expected.top]
        for one, other in zip(answer.top, expected.top, strict=True):
            assert one.probability == pytest.approx(other.probability, rel=1e-4)  # float32


def test_a_model_that_takes_decoded_pixels_answers_as_a_predictor_beside_it(
    own_store: ArtifactStore, tmp_path: Path
) -> None:
    config = ExportConfig(formats=("onnx", "pixels"), n_images=2)
    done = export(own_store, own_store.get("colours"), config)
    copy_out(done, tmp_path / "out", ["onnx", "pixels"])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.pixels.onnx")
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    predictor = Predictor.from_folder(tmp_path / "out")
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (32, 32), (7, 200), (300, 41), (480, 640)]:
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        (probabilities,) = session.run(["probabilities"], {"pixels": pixels[None]})
        answer = predictor.predict(pixels, top_k=None)
        assert answer.label == labels[probabilities[0].argmax()]
        for one in answer.top:
            found = probabilities[0, labels.index(one.label)]
            assert found == pytest.approx(one.probability, abs=1e-6)  # a softmax in float32


def test_an_fp16_export_answers_nearly_alike(own_store: ArtifactStore) -> None:
    expected = Predictor.from_store(own_store.root, "colours").predict(PICTURE)
    config = ExportConfig(formats=("onnx",), precision="fp16", n_images=2)
    assert export(own_store, own_store.get("colours"), config).report.passed
    half = Predictor.from_store(own_store.root, "colours", precision="fp16")
    assert half.precision == "fp16"
    answer = half.predict(PICTURE)
    assert answer.label == expected.label
    assert answer.probability == pytest.approx(expected.probability, abs=0.02)  # 11 bits


def test_an_export_that_is_replaced_while_it_is_loaded_is_loaded_again(
    own_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fp32(own_store)
    loaded: list[Path] = []

    class Slow(OnnxSession):
        def __init__(self, path: Path, threads: int | None = None) -> None:
            super().__init__(path, threads)
            loaded.append(path)
            if len(loaded) < 3:
                shutil.copytree(folder, folder.with_name("new"))
                folder.rename(folder.with_name(f"old-{len(loaded)}"))
                folder.with_name("new").rename(folder)
            if len(loaded) == 1:
                raise ExportError("its weights are of the other export")

    monkeypatch.setattr(exported_model, "OnnxSession", Slow)
    Predictor.from_store(own_store.root, "colours")
    assert len(loaded) == 3


def test_without_an_export_the_command_that_makes_it_is_named(own_store: ArtifactStore) -> None:
    shutil.rmtree(fp32(own_store))
    with pytest.raises(StoreError) as caught:
        Predictor.from_store(own_store.root, "colours")
    assert str(caught.value) == f"{fp32(own_store)}: no export is here. {command(own_store)}"
    with pytest.raises(StoreError) as caught:
        Predictor.from_store(own_store.root, "colours", "v1", precision="fp16")
    assert "exports/fp16: no export is here. Run: glora export" in str(caught.value)
    assert str(caught.value).endswith(f"--precision fp16 --store {own_store.root} --version v1")
    with pytest.raises(NotInStoreError, match=r"no task 'shapes' in .*; tasks here: colours"):
        Predictor.from_store(own_store.root, "shapes")
    with pytest.raises(StoreError, match="the store must be a folder, got nothing there"):
        Predictor.from_store(own_store.root / "elsewhere", "colours")


def test_an_export_without_an_onnx_model_is_refused(own_store: ArtifactStore) -> None:
    folder = fp32(own_store)
    (folder / "model.onnx").unlink()
    record = ExportRecord.read(folder)
    assert record is not None
    files = {name: file for name, file in record.files.items() if name != "model.onnx"}
    record.model_copy(update={"files": files, "formats": ("merged",)}).write(folder)
    with pytest.raises(StoreError) as caught:
        Predictor.from_store(own_store.root, "colours")
    assert str(caught.value) == f"{folder}: holds no model.onnx. {command(own_store)}"


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "parity.json"])
def test_an_altered_file_is_refused(own_store: ArtifactStore, name: str) -> None:
    path = fp32(own_store) / name
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name}: .*sha256.* Run: glora export"):
        Predictor.from_store(own_store.root, "colours")
    if name != "parity.json":  # which is read first, and may be no JSON any more
        with pytest.raises(ArtifactError, match=f"{name}: .*sha256"):
            Predictor.from_folder(fp32(own_store))


def test_a_missing_file_is_refused(own_store: ArtifactStore) -> None:
    (fp32(own_store) / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors: must be a file, none is here"):
        Predictor.from_store(own_store.root, "colours")


def test_an_export_that_was_not_proven_is_refused(own_store: ArtifactStore) -> None:
    folder = fp32(own_store)
    report = json.loads((folder / "parity.json").read_text("utf-8"))
    report["steps"][-1] |= {"outcome": "fail", "reason": "it differs by 7"}
    (folder / "parity.json").write_text(json.dumps(report), "utf-8")
    record_again(folder, usable=False)
    for load in (
        lambda: Predictor.from_store(own_store.root, "colours"),
        lambda: Predictor.from_folder(folder),
    ):
        with pytest.raises(ParityError, match=r"parity.json: colours/v1 fp32: .* it differs by 7"):
            load()
    (folder / "export.json").unlink()
    with pytest.raises(ParityError, match=r"parity.json: colours/v1 fp32: .* it differs by 7"):
        Predictor.from_folder(folder)


def test_an_export_that_is_marked_unusable_is_refused(own_store: ArtifactStore) -> None:
    record_again(fp32(own_store), usable=False)
    with pytest.raises(
        ParityError, match=r"export.json: usable must be true, got false. Run: glora"
    ):
        Predictor.from_store(own_store.root, "colours")


def test_the_export_of_another_version_is_refused(own_store: ArtifactStore) -> None:
    first = own_store.get("colours", "v1")
    tensors = {name: tensor * 2 for name, tensor in first.tensors().items()}
    second = own_store.put("colours", tensors, first.manifest)
    shutil.copytree(own_store.export_dir(first, "fp32"), own_store.export_dir(second, "fp32"))
    with pytest.raises(ArtifactError, match=r"export.json: version must be 'v2', .* got 'v1'"):
        Predictor.from_store(own_store.root, "colours")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", '["green", "red", "blue"]', "labels must be .*'red', 'green', 'blue'"),
        ("task", "shapes", "task must be 'colours', got 'shapes'"),
        ("precision", "fp16", "precision must be 'fp32', got 'fp16'"),
        ("labels", '["red"', "its metadata must state labels and preprocessing"),
        ("preprocessing", "{}", "its metadata must state labels and preprocessing"),
    ],
)
def test_a_model_that_says_otherwise_than_its_manifest_is_refused(
    own_store: ArtifactStore, key: str, value: str, message: str
) -> None:
    describe_again(fp32(own_store), **{key: value})
    with pytest.raises(ArtifactError, match=f"model.onnx: {message}"):
        Predictor.from_store(own_store.root, "colours")


def test_other_preprocessing_than_the_manifests_is_refused(own_store: ArtifactStore) -> None:
    stated = own_store.get("colours").manifest.preprocessing.model_copy(update={"crop_pct": 0.5})
    describe_again(fp32(own_store), preprocessing=stated.model_dump_json())
    with pytest.raises(ArtifactError, match=r"model.onnx: preprocessing must be"):
        Predictor.from_store(own_store.root, "colours")


def test_a_folder_whose_labels_do_not_fit_its_model_is_refused(own_store: ArtifactStore) -> None:
    describe_again(fp32(own_store), labels='["red", "green"]')
    with pytest.raises(ArtifactError, match=r"the shape of logits must be \(2,\), got \(3,\)"):
        Predictor.from_folder(fp32(own_store))


def test_a_pushed_folder_is_held_against_the_manifest_of_its_delta(
    trained: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    out = tmp_path / "repository"
    copy_out(exported(*trained), out, ["merged", "onnx"])
    (out / "export.json").unlink()  # which no push writes
    (out / "glora").mkdir()
    for name in ("manifest.json", "adapter.safetensors"):
        shutil.copyfile(trained[1].path / name, out / "glora" / name)
    assert Predictor.from_folder(out).labels == ("red", "green", "blue")
    model = onnx.load_model(out / "model.onnx", load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == "labels":
            entry.value = '["green", "red", "blue"]'
    (out / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"model.onnx: labels must be .*'red', 'green', 'blue'"):
        Predictor.from_folder(out)


def test_a_folder_that_no_export_wrote_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match=r"has no parity.json. Run: .* --task TASK --fmt onnx"):
            Predictor.from_folder(folder)


def test_a_folder_without_a_model_names_the_command_that_makes_it(
    trained: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copy_out(exported(*trained), out, ["merged"])
    with pytest.raises(StoreError) as caught:
        Predictor.from_folder(out)
    assert str(caught.value) == (
        f"{out}: holds no model.onnx. Run: glora export --task colours --fmt onnx --out {out}"
    )


def test_what_onnx_runtime_refuses_is_one_line(
    trained: tuple[ArtifactStore, Artifact], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copy_out(exported(*trained), out, ["onnx"])
    (out / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors: must be a file, none is here"):
        Predictor.from_folder(out)
    (out / "export.json").unlink()
    with pytest.raises(ExportError, match=r"model.onnx: ONNX Runtime must load it, got: .+ Run: g"):
        Predictor.from_folder(out)


def test_a_type_that_onnx_runtime_does_not_know_is_not_made_again(
    own_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(formats=("onnx",), precision="bf16", n_images=2)
    export(own_store, own_store.get("colours"), config)

    def refuse(path: Path, threads: int | None) -> OnnxSession:
        raise ExportError(f"{path}: ONNX Runtime must load it, got: NOT_IMPLEMENTED")

    monkeypatch.setattr(exported_model, "OnnxSession", refuse)
    with pytest.raises(ExportError, match=r"NOT_IMPLEMENTED .*: take the precision fp32 or fp16.$"):
        Predictor.from_store(own_store.root, "colours", precision="bf16")


@pytest.mark.parametrize("name", ["exports/fp32", "fp32"])
def test_a_folder_outside_of_a_store_is_made_again_with_out(
    trained: tuple[ArtifactStore, Artifact], tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    copy_out(exported(*trained), out, ["merged"])
    with pytest.raises(StoreError, match=rf" --fmt onnx --out {out}$"):
        Predictor.from_folder(out)


def test_a_folder_of_a_store_is_made_again_there(own_store: ArtifactStore) -> None:
    (fp32(own_store) / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=rf" --store {own_store.root} --version v1$"):
        Predictor.from_folder(fp32(own_store))


def test_a_missing_onnx_runtime_is_named(
    trained: tuple[ArtifactStore, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="needs onnxruntime: pip install"):
        Predictor.from_store(trained[0].root, "colours")
