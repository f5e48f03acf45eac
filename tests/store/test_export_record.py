from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from factories import make_artifact, make_store
from glora_deploy.errors import ArtifactError
from glora_deploy.parity import PARITY_FILE, Report, Step
from glora_deploy.precision import Precision
from glora_deploy.store.artifact import Artifact
from glora_deploy.store.export_record import ExportRecord, formats_of, require_precision
from glora_deploy.store.manifest_fields import FileRecord
from glora_deploy.store.store import ArtifactStore


def make_report(artifact: Artifact, precision: Precision = "fp32", **changes: Any) -> Report:
    step = Step(stage="merged-fp32", inputs="noise", n_images=1, outcome="pass")
    fields: dict[str, Any] = {
        "task": artifact.task,
        "version": artifact.version,
        "precision": precision,
        "adapter_sha256": artifact.manifest.adapter.sha256,
        "data": "noise",
        "steps": (step,),
    }
    return Report(**{**fields, **changes})


def make_export(
    store: ArtifactStore,
    artifact: Artifact,
    precision: Precision = "fp32",
    *,
    report: Report | None = None,
) -> Path:
    """A merged export of one tensor, proven."""
    dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[precision]
    with store.replace_export(artifact, precision) as folder:
        tensors = {"head.bias": np.ones(3, dtype), "steps": np.array(3, np.int64)}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        report = report or make_report(artifact, precision)
        (folder / PARITY_FILE).write_bytes(report.to_json())
        ExportRecord.of_folder(folder, artifact.manifest, precision, usable=True).write(folder)
    return store.export_dir(artifact, precision)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return make_store(tmp_path / "store")


@pytest.fixture
def artifact(store: ArtifactStore) -> Artifact:
    return make_artifact(store)


def only_problem(store: ArtifactStore) -> str:
    (finding,) = store.verify()
    assert "\n" not in finding.problem
    return finding.problem


def read(folder: Path) -> ExportRecord:
    record = ExportRecord.read(folder)
    assert record is not None
    return record


def rewrite(folder: Path, **changes: Any) -> None:
    """Edit export.json by hand; the digests of the files as they are now come with it."""
    path = folder / "export.json"
    fields = json.loads(path.read_text())
    files = {name: FileRecord.of_file(folder / name).model_dump() for name in fields["files"]}
    path.write_text(json.dumps({**fields, "files": files, **changes}))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_export_is_tied_to_its_artifact_and_proven(
    store: ArtifactStore, artifact: Artifact, precision: Precision
) -> None:
    folder = make_export(store, artifact, precision)
    record = read(folder)
    record.require_of(folder, artifact.manifest, precision)
    assert record.formats == ("merged",)
    assert record.manifest_digest == artifact.manifest.digest()
    assert record.report(folder) == make_report(artifact, precision)
    assert store.verify() == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "photos", "task must be 'pets', that of pets/v1 in fp32, got 'photos'."),
        ("version", "v2", "version must be 'v1', that of pets/v1 in fp32, got 'v2'."),
        ("precision", "fp16", "precision must be 'fp32', that of pets/v1 in fp32, got 'fp16'."),
        ("adapter_sha256", "0" * 64, "adapter_sha256 must be "),
        ("backbone_fingerprint", "0" * 64, "backbone_fingerprint must be "),
        ("manifest_digest", "0" * 64, "manifest_digest must be "),
    ],
)
def test_an_export_of_anything_else_is_refused_and_found(
    store: ArtifactStore, artifact: Artifact, field: str, value: str, message: str
) -> None:
    folder = make_export(store, artifact)
    rewrite(folder, **{field: value})
    with pytest.raises(ArtifactError) as caught:
        read(folder).require_of(folder, artifact.manifest, "fp32")
    found = str(caught.value)
    assert found.startswith(f"{folder / 'export.json'}: {message}")
    assert found.endswith("Export it again.")
    assert ("got 000000000000.." in found) == (value == "0" * 64)
    assert only_problem(store) == found


def test_the_export_of_another_task_is_found_where_it_was_copied_to(
    store: ArtifactStore, artifact: Artifact
) -> None:
    other = make_artifact(store, "photos", seed=2)
    make_export(store, other).rename(make_exports(artifact) / "fp32")
    assert ": task must be 'pets', that of pets/v1 in fp32, got 'photos'." in only_problem(store)


def make_exports(artifact: Artifact) -> Path:
    folder = artifact.path / "exports"
    folder.mkdir()
    return folder


def test_an_export_from_before_its_manifest_was_altered_is_found(
    store: ArtifactStore, artifact: Artifact
) -> None:
    folder = make_export(store, artifact)
    labels = ("cow", *artifact.manifest.labels[1:])
    other = artifact.manifest.model_copy(update={"labels": labels})
    with pytest.raises(ArtifactError, match="manifest_digest must be"):
        read(folder).require_of(folder, other, "fp32")


def test_an_older_record_without_the_digest_of_its_manifest_is_read(
    store: ArtifactStore, artifact: Artifact
) -> None:
    folder = make_export(store, artifact)
    fields = json.loads((folder / "export.json").read_text())
    del fields["manifest_digest"]
    (folder / "export.json").write_text(json.dumps(fields))
    assert store.verify() == []
    read(folder).require_of(folder, artifact.manifest, "fp32")


@pytest.mark.parametrize("formats", [[], ["merged", "onnx"], ["onnx"], ["merged", "merged"]])
def test_the_formats_must_follow_from_the_files(
    store: ArtifactStore, artifact: Artifact, formats: list[str]
) -> None:
    folder = make_export(store, artifact)
    rewrite(folder, formats=formats)
    with pytest.raises(ArtifactError) as caught:
        read(folder)
    assert str(caught.value) == (
        f"{folder / 'export.json'}: formats must be ['merged'], those whose files are here, "
        f"got {formats}. Export it again."
    )
    assert only_problem(store) == str(caught.value)


def test_formats_are_those_whose_files_are_all_there() -> None:
    assert formats_of([]) == ()
    assert formats_of(["config.json", "model.plan"]) == ()
    names = ["plan.json", "model.plan", "delta/manifest.json", "delta/adapter.safetensors", "a"]
    assert formats_of(names) == ("delta", "trt")


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", ".hidden", "a//b", "a\nb", ""])
def test_a_record_names_no_file_outside_its_folder(
    store: ArtifactStore, artifact: Artifact, name: str
) -> None:
    folder = make_export(store, artifact)
    path = folder / "export.json"
    fields = json.loads(path.read_text())
    fields["files"][name] = {"sha256": "0" * 64, "size_bytes": 0}
    path.write_text(json.dumps(fields))
    with pytest.raises(ArtifactError, match=r"export\.json: files\."):
        read(folder)


def test_a_field_that_is_missing_is_named(store: ArtifactStore, artifact: Artifact) -> None:
    folder = make_export(store, artifact)
    path = folder / "export.json"
    fields = json.loads(path.read_text())
    for field in fields.keys() - {"manifest_digest"}:
        path.write_text(json.dumps({k: v for k, v in fields.items() if k != field}))
        with pytest.raises(ArtifactError, match=f": {field}: must be present"):
            read(folder)
        assert f": {field}: must be present" in only_problem(store)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_of_another_precision_are_found(
    store: ArtifactStore, artifact: Artifact, precision: Precision
) -> None:
    folder = make_export(store, artifact, precision)
    require_precision(folder, precision)
    odd: Precision = "fp16" if precision == "fp32" else "fp32"
    stated, found = {
        "fp32": ("float32", "float16"),
        "fp16": ("float16", "float32"),
        "bf16": ("bfloat16", "float32"),
    }[precision]
    data = (make_export(store, artifact, odd) / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data)
    rewrite(folder)
    assert only_problem(store) == (
        f"{folder / 'model.safetensors'}: head.bias must be {stated} in {precision}, got {found}. "
        "Export it again."
    )


def failed(artifact: Artifact) -> Report:
    step = Step(stage="merged-fp32", inputs="noise", n_images=1, outcome="fail", reason="no")
    return make_report(artifact, steps=(step,))


REPORTS: dict[str, Callable[[Artifact], Report]] = {
    "export.json: usable must be false without a parity.json that passed, got true.": failed,
    "parity.json: task must be 'pets', that of export.json, got 'dogs'.": lambda artifact: (
        make_report(artifact, task="dogs")
    ),
    "parity.json: precision must be 'fp32', that of export.json, got 'bf16'.": lambda artifact: (
        make_report(artifact, "bf16")
    ),
    "parity.json: adapter_sha256 must be ": lambda artifact: make_report(
        artifact, adapter_sha256="0" * 64
    ),
}


@pytest.mark.parametrize("message", REPORTS)
def test_a_proof_of_anything_else_is_found(
    store: ArtifactStore, artifact: Artifact, message: str
) -> None:
    folder = make_export(store, artifact, report=REPORTS[message](artifact))
    assert only_problem(store).startswith(f"{folder}/{message}")


def test_nothing_is_usable_without_a_proof(store: ArtifactStore, artifact: Artifact) -> None:
    folder = make_export(store, artifact)
    (folder / PARITY_FILE).unlink()
    ExportRecord.of_folder(folder, artifact.manifest, "fp32", usable=True).write(folder)
    assert "usable must be false without a parity.json" in only_problem(store)
    ExportRecord.of_folder(folder, artifact.manifest, "fp32", usable=False).write(folder)
    assert store.verify() == []
